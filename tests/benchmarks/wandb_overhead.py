"""What the export to W&B costs a sweep, how much memory it takes, and how fast a finished sweep is exported.

The same sweep, alternately with `--wandb offline` and `--wandb off`, each a whole command with teachers from a cache:
`ratio` is the median of the ratios of neighbours. `memory_mb` is the largest sum of the exporter's and its wandb-core's
resident memory while a ledger of 500 trials is exported (and `memory_with_children_mb` with the processes that make the
comparison, the sweep's own run and the report at the end); `export_of_1000` has the seconds for 1,000 trials of four
reports, with reading back every file.
Run: python -m tests.benchmarks.wandb_overhead --json [--repeats 3]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from search.ledger import Ledger
from tests.made_ledgers import asked, new_run, small_study
from tests.wandb_files import read

STUDY = {
    "extends": "mlp-ensemble",
    "name": "overhead",
    "data": {"n_samples": 3000, "fresh_rows": 500},
    "teacher": {"members": 2, "hidden": [16], "dropout": [0.1], "epochs": 3},
    "confirm_teachers": 1,
    "budget": {
        "seed_epochs_per_arm": 6000,
        "confirm_seeds": 8,
        "max_epochs": 48,
        "subsearches": 2,
    },
}
ARMS, WORKERS = "kd,label_smoothing", 2
REPORTS = (1, 3, 9, 27)


def sweep(folder: Path, out: Path, mode: str) -> dict[str, Any]:
    """Seconds of the whole command, and how many trials it made."""
    command = [sys.executable, "-m", "distune", "sweep", str(folder / "study.yaml"), "--arms", ARMS, "--out", str(out)]
    began = time.perf_counter()
    subprocess.run(
        [*command, "--wandb", mode, "--max-concurrent", str(WORKERS)],
        check=True,
        capture_output=True,
        env=os.environ | {"DISTUNE_CACHE": str(folder / "cache")},
    )
    seconds = time.perf_counter() - began
    with Ledger.open(out) as ledger:
        trials, spent = len(ledger.trials()), sum(e.seeds for e in ledger.epochs())
    runs = len(read(out)) if mode == "offline" else 0
    return {"mode": mode, "seconds": seconds, "trials": trials, "seed_epochs_searched": spent, "wandb_runs": runs}


def made(run: Path, trials: int) -> None:
    """A ledger of finished trials of four reports each."""
    study = small_study(arms=("kd",), max_epochs=27)
    with new_run(run, study) as ledger:
        for number in range(trials):
            name = f"kd-{number:05d}"
            ledger.ask(asked(name, "kd"))
            values = {"val_accuracy": [0.9, 0.91], "val_nll": [0.3, 0.31], "loss_ce": [0.2, 0.2], "loss_kd": [0.1, 0.1]}
            for epoch in REPORTS:
                about = {"epoch": epoch, "seeds": 2, "seconds": 0.1, "score": 0.905, "se": 0.005, "nll": 0.305}
                term = {"epoch": epoch, "term": "kd", "weight": 0.5, "norm": 0.1, "share": 0.4, "cosine": 0.9}
                ledger.report(name, [{**about, "metrics": values, "audits": [term]}])
            ledger.end(name, "finished", REPORTS[-1])


def export(run: Path) -> dict[str, float]:
    """Seconds of `distune wandb`, and the largest memory of the exporter and its wandb-core while it ran, in MB."""
    began, most, most_of_all = time.perf_counter(), 0.0, 0.0
    exporting = subprocess.Popen([sys.executable, "-m", "distune", "wandb", str(run)], stderr=subprocess.DEVNULL)
    while exporting.poll() is None:
        own, of_all = _resident_mb(str(run))
        most, most_of_all = max(most, own), max(most_of_all, of_all)
        time.sleep(0.05)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "memory_mb": most, "memory_with_children_mb": most_of_all, "runs": len(read(run))}


def _resident_mb(run: str) -> tuple[float, float]:
    """Of the exporter with its wandb-core, and of these with all other processes that it has begun."""
    listed = subprocess.run(["ps", "-wweo", "pid=,ppid=,rss=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 3) for line in listed.splitlines()]
    exporters = {pid for pid, _, _, words in rows if "analysis.tracking.exporter import main" in words and run in words}
    family = set(exporters)
    for _ in range(3):
        family |= {pid for pid, ppid, _, _ in rows if ppid in family}
    own = [int(r) for pid, ppid, r, words in rows if pid in exporters or (ppid in exporters and "wandb-core" in words)]
    return sum(own) / 1e3, sum(int(r) for pid, _, r, _ in rows if pid in family) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "study.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
        sweep(folder, folder / "warm", "off")
        pairs = []
        for number in range(options.repeats):
            modes = ("offline", "off") if number % 2 else ("off", "offline")
            pairs.append({mode: sweep(folder, folder / f"{mode}{number}", mode) for mode in modes})
            print({mode: round(side["seconds"], 1) for mode, side in pairs[-1].items()}, file=sys.stderr, flush=True)
        made(folder / "500", 500)
        made(folder / "1000", 1000)
        memory, exported = export(folder / "500"), export(folder / "1000")
    ratios = [pair["offline"]["seconds"] / pair["off"]["seconds"] for pair in pairs]
    result = {
        "ratio": median(ratios),
        "n": len(ratios),
        "spread": [min(ratios), max(ratios)],
        "workers": WORKERS,
        "pairs": pairs,
        "memory_mb": memory["memory_mb"],
        "export_of_500": memory,
        "export_of_1000": exported,
    }
    if options.json:
        print(json.dumps(result))
    else:
        print(
            f"with export / without: {result['ratio']:.3f} (n = {result['n']}, {min(ratios):.3f} to {max(ratios):.3f})"
        )
        print(f"memory: {memory['memory_mb']:.0f} MB; 1,000 trials exported in {exported['seconds']:.1f} s")


if __name__ == "__main__":
    main()
