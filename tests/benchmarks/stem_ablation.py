"""Where study 3's published gain comes from: stem {max-pool, none} x loss and head {CE & 10, 0.5 CE & 1,000}.

    python -m tests.benchmarks.stem_ablation --data FOLDER --out runs/stems.jsonl --seeds 3            # ResNet-18
    python -m tests.benchmarks.stem_ablation --data FOLDER --out runs/narrow.jsonl --seeds 10 --width 16
    python -m tests.benchmarks.stem_ablation --out runs/narrow.jsonl --json                            # what is there

FOLDER holds `train/<class>/...` and `test/<class>/...`. The protocol: 10,000 training images, batch 32,
learning rate 0.01, 18 epochs, all test rows, the mean of the last 3 epochs, nothing selected. The four cells share each
seed's initialisation (where shapes agree), order and views. Since nothing flows through the released arms' distillation
terms, their cell is trained without a teacher (tests/test_vision.py holds that the parameters are then equal, to the
bit). Every finished run is one line of --out with its predictions' accuracy by epoch; a stopped benchmark goes on.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.statistics import over_seeds, over_seeds_and_rows
from trainables import vision
from trainables.context import Context, TrialConfig
from trainables.datasets import load
from trainables.streams import Streams

CELLS: dict[str, tuple[str, str, int | None]] = {
    "max-pool, CE & 10": ("torchvision", "hard_labels", None),
    "max-pool, 0.5 CE & 1,000": ("torchvision", "half_ce", 1000),
    "none, CE & 10": ("no_maxpool", "hard_labels", None),
    "none, 0.5 CE & 1,000": ("no_maxpool", "half_ce", 1000),
}
SIGNS = {
    "stem: none - max-pool": (-0.5, -0.5, 0.5, 0.5),
    "loss and head: 0.5 CE & 1,000 - CE & 10": (-0.5, 0.5, -0.5, 0.5),
    "interaction": (1.0, -1.0, -1.0, 1.0),
    "as released: (none, 0.5 CE & 1,000) - (max-pool, CE & 10)": (-1.0, 0.0, 0.0, 1.0),
}
LAST = 3


def run_cell(cell: str, seed: int, data: Any, args: argparse.Namespace) -> dict[str, Any]:
    """One cell under one seed: test accuracy of every third epoch, and how often each test row was right at the end."""
    stem, variant, outputs = CELLS[cell]
    student = {"depth": args.depth, "width": args.width, "stem": stem, "cbam": False, "outputs": outputs}
    hp = {"learning_rate": 0.01, "weight_decay": 5e-4, "batch_size": args.batch, "schedule": "constant"}
    config = TrialConfig(variant, hp, (seed,), args.epochs, student)
    compute = {"precision": "auto", "channels_last": True, "compile": False}
    context = Context(
        fit=data.train,
        validation=None,
        classes=data.classes,
        teachers=(),
        streams=Streams("stem-ablation"),
        views={"count": 8, "pad": 4, "flip": True},
        compute=compute,
    )
    began, right = time.perf_counter(), np.zeros(len(data.test))
    accuracy: dict[int, float] = {}
    for result in vision.train(config, context):
        if result.epoch <= args.epochs - LAST and result.epoch % LAST:
            continue
        correct = result.logits(data.test.x)[0].argmax(dim=-1).numpy() == data.test.y
        accuracy[result.epoch] = float(correct.mean())
        if result.epoch > args.epochs - LAST:
            right += correct / LAST
        print(f"{cell}, seed {seed}: epoch {result.epoch}, {100 * accuracy[result.epoch]:.2f} %", flush=True)
    thirds = "".join(str(round(LAST * r)) for r in right)  # 0 to 3: how many of the last epochs got the row right
    return {"cell": cell, "seed": seed, "seconds": time.perf_counter() - began, "accuracy": accuracy, "right": thirds}


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What must be the same for runs to stand in one file."""
    return {k: getattr(args, k) for k in ("depth", "width", "images", "epochs", "batch")}


def summary(runs: list[dict[str, Any]], protocol: dict[str, Any]) -> dict[str, Any]:
    """Means of the cells and the main effects, each with intervals over seeds and over seeds and test rows."""
    seeds = sorted(set.intersection(*({r["seed"] for r in runs if r["cell"] == cell} for cell in CELLS)))
    right = {
        cell: np.array(
            [[int(c) / LAST for c in r["right"]] for s in seeds for r in runs if (r["cell"], r["seed"]) == (cell, s)]
        )
        for cell in CELLS
    }
    effects = {}
    for name, signs in SIGNS.items():
        d = sum(sign * right[cell] for sign, cell in zip(signs, CELLS, strict=True)) if seeds else np.zeros((0, 2))
        effects[name] = _interval(d)
    return {
        "protocol": protocol,
        "n": len(seeds),
        "cells": {
            cell: {
                "mean": float(m.mean()) if len(m) else None,
                "spread": [float(m.mean(axis=1).min()), float(m.mean(axis=1).max())] if len(m) else None,
                "by_seed": m.mean(axis=1).tolist() if len(m) else [],
            }
            for cell, m in right.items()
        },
        "effects": effects,
        "seconds": sum(r["seconds"] for r in runs),
    }


def _interval(d: np.ndarray) -> dict[str, Any]:
    if len(d) == 0:
        return {"mean": None, "ci95": None, "ci95_seeds": None}
    whole, seeds = over_seeds_and_rows(d), over_seeds(d.mean(axis=1))
    return {"mean": whole.mean, "ci95": whole.interval(), "ci95_seeds": seeds.interval()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="image folder; without it only what --out holds is summed up")
    parser.add_argument("--out", type=Path, required=True, help="one line of JSON a run; continued if it exists")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--depth", type=int, default=18)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    protocol = lines[0]["protocol"] if lines else settings(args)
    runs = [line for line in lines if "cell" in line]
    if args.data is not None:
        if protocol != settings(args):
            parser.error(f"{args.out} holds runs of {protocol}, and {settings(args)} is asked: give another --out")
        if not lines:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps({"protocol": protocol}) + "\n")
        spec = {"kind": "image_folder", "path": str(args.data), "size": None, "grayscale": False, "skip_broken": False}
        limits = {"validation_fraction": 0.1, "train_limit": args.images, "test_limit": None, "split_seed": 0}
        data = load({**spec, **limits}, print)
        for seed in range(args.seeds):
            for cell in CELLS:
                if any((r["cell"], r["seed"]) == (cell, seed) for r in runs):
                    continue
                runs.append(run_cell(cell, seed, data, args))
                with args.out.open("a") as file:
                    file.write(json.dumps(runs[-1]) + "\n")
    found = summary(runs, protocol)
    if args.json:
        print(json.dumps(found))
        return
    print(f"{protocol}, n = {found['n']} seeds")
    for cell, m in found["cells"].items():
        print(f"  {cell:28} {m['mean'] and 100 * m['mean']:.2f} %")
    for name, e in found["effects"].items():
        interval = "" if e["ci95"] is None else f" [{100 * e['ci95'][0]:+.2f}, {100 * e['ci95'][1]:+.2f}]"
        print(f"  {name:60} {100 * e['mean']:+.2f}{interval} points")


if __name__ == "__main__":
    main()
