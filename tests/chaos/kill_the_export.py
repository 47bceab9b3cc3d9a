"""An export to W&B that is killed again and again, alone or with its sweep, holds every row once in the end.

    python -m tests.chaos.kill_the_export --kills 10 --json      # minutes

A real sweep is exported while it runs. At random moments its exporter is killed with SIGKILL, or wandb-core, or the
driver with all of its children and the exporter; a driver that was killed is resumed. When the sweep has ended, what is
left is exported, and every `.wandb` file is compared with the ledger, cell by cell (tests/wandb_files.py):
`differences` must be empty, or the exit status is 1.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from tests.chaos.kill_and_resume import ARMS, TRAINABLE, study_of
from tests.chaos.processes import kill_session
from tests.wandb_files import differences, read

EXPORTER, CORE, SWEEP = "exporter", "wandb-core", "sweep and exporter"
PATIENCE_S = 600.0


def exporters(run: Path) -> dict[int, str]:
    """Process numbers of the exporter of a run folder and of its wandb-core."""
    listed = subprocess.run(["ps", "-wweo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [
        (int(pid), int(parent), words) for pid, parent, words in (line.split(None, 2) for line in listed.splitlines())
    ]
    found = {pid: EXPORTER for pid, _, words in rows if "analysis.tracking" in words and f"{run} " in f"{words} "}
    return found | {pid: CORE for pid, parent, words in rows if parent in found and "wandb-core" in words}


def kill(run: Path, *kinds: str) -> int:
    """SIGKILL them; how many there were."""
    killed = 0
    for pid, kind in exporters(run).items():
        if kind in kinds:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed += 1
    return killed


def torment(folder: Path, kills: int, rng: random.Random) -> dict[str, Any]:
    run = folder / "run"
    (folder / "noting.py").write_text(TRAINABLE)
    (folder / "study.yaml").write_text(yaml.safe_dump(study_of(kills), sort_keys=False))
    log = folder / "trained.jsonl"
    environment = os.environ | {"DISTUNE_CACHE": str(folder / "cache"), "CHAOS_LOG": str(log), "CHAOS_SLEEP_S": "0.02"}
    environment |= {"CHAOS_LIFE": "1", "WANDB_MODE": "offline"}
    plan = [(EXPORTER, CORE, SWEEP)[number % 3] for number in range(kills)]
    rng.shuffle(plan)
    done: Counter[str] = Counter()
    driver: subprocess.Popen[bytes] | None = None
    while plan or driver is None:
        if driver is None:
            begin = ["sweep", str(folder / "study.yaml"), "--arms", ARMS, "--out", str(run)]
            words = ["resume", str(run)] if run.exists() else begin
            with (folder / "said").open("ab") as said:
                command = [sys.executable, "-m", "distune", *words]
                driver = subprocess.Popen(
                    command,
                    env=environment,
                    cwd=Path(__file__).parents[2],
                    stdout=said,
                    stderr=said,
                    start_new_session=True,
                )
        if not plan:
            break
        exported, until = len(list(run.glob("wandb/offline-run-*"))), time.monotonic() + PATIENCE_S
        while len(list(run.glob("wandb/offline-run-*"))) <= exported and driver.poll() is None:
            if time.monotonic() > until:
                raise RuntimeError(f"nothing is exported any more; see {folder / 'said'}")
            time.sleep(0.02)
        time.sleep(rng.uniform(0.0, 2.0))
        if driver.poll() is not None:  # the sweep was over before all kills: what is left falls on the last export
            driver = subprocess.Popen(
                [sys.executable, "-m", "distune", "wandb", str(run)], env=environment, start_new_session=True
            )
            time.sleep(rng.uniform(1.0, 3.0))
        what = plan.pop()
        killed = kill(run, *((EXPORTER, CORE) if what == SWEEP else (what,)))
        if what == SWEEP:
            kill_session(driver.pid)
            driver.wait()
            driver = None
        done[what] += bool(killed)
    driver.wait(PATIENCE_S)
    last = [sys.executable, "-m", "distune", "wandb", str(run)]
    exported = subprocess.run(last, env=environment, check=True, stderr=subprocess.DEVNULL)
    found = read(run)
    return {
        "n": kills,
        "kills": dict(done),
        "differences": differences(run, found),
        "wandb_runs": len(found),
        "rows": sum(len(f.rows) for f in found.values()),
        "exit_status": exported.returncode,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        result = torment(Path(place), options.kills, random.Random(options.seed))
    result["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(result) if options.json else result)
    sys.exit(bool(result["differences"]))


if __name__ == "__main__":
    main()
