"""What a gate over the teachers is worth where one is better on some rows and the other on others, and where not.

    python -m tests.benchmarks.gate_value --json

The arms with a gate and their controls without one are trained at one configuration, the library's default, with
nothing searched and nothing selected: 50 epochs, the same seeds, rows and teachers, so that differences are paired by
seed. Both ends of the generator's dial are run, and each student is measured on the study's 40,000 test rows, which are
of a promotion, and on 40,000 fresh rows like those it was fitted on. A sweep asks another question: whether a *tuned*
arm beats another, and tuning adds noise of its own.
"""

import argparse
import json
import sys
from collections import deque
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from analysis.statistics import auc_units, paired
from search import families
from search.payload import TRAIN, build_teacher, payload_of, trial_config
from search.seeds import CONFIRMATION
from spaces import load_study
from trainables.datasets import Rows, load
from trainables.datasets.promotions import draw
from trainables.encoding import Encoder
from trainables.tabular import train

CONTRASTS = (
    ("attention_blend", "uniform_blend"),
    ("attention_blend", "global_gate_blend"),
    ("attention_student", "kd_uniform"),
)
PACK = 5


def measure(dial: float, seeds: int, epochs: int) -> list[dict[str, Any]]:
    study = load_study("promo-attention", [f"data.specialisation={dial}"])
    dataset = load(asdict(study.data))
    teachers = [build_teacher(study, 0, dataset, TRAIN, k) for k in range(study.confirm_teachers)]
    payload = payload_of(study, 0, dataset, TRAIN, [t.outputs(dataset.validation.x) for t in teachers])
    x, y = draw(40_000, False, dial, np.random.default_rng([study.data.random_state, 2]))
    encoder, said = Encoder.of(dict(payload.encoder)), np.stack([t.logits(x) for t in teachers])
    splits = {
        "with a promotion": families.of(study).judged(study, 0, dataset, TRAIN)["test"],
        "without one, as fitted on": Rows(encoder.encode(x), y, teachers=said),
    }
    scores: dict[tuple[str, str], list[np.ndarray]] = {}
    for arm in dict.fromkeys(a for pair in CONTRASTS for a in pair):
        for first in range(CONFIRMATION, CONFIRMATION + seeds, PACK):
            replicates = range(first, min(first + PACK, CONFIRMATION + seeds))
            config = trial_config(study, arm, study.arms[arm].default, replicates, epochs)
            (last,) = deque(train(replace(config, evaluate_from=epochs + 1), payload.context()), maxlen=1)
            for split, rows in splits.items():
                scores.setdefault((arm, split), []).append(last.logits(rows.x, rows.teachers)[..., 1].numpy())
        print(f"dial {dial:g}: {arm}", file=sys.stderr)
    results = []
    for split, rows in splits.items():
        for a, b in CONTRASTS:
            one, other = (auc_units(np.concatenate(scores[arm, split]), rows.y) for arm in (a, b))
            d = paired(one, other)
            results.append(
                {
                    **{"dial": dial, "rows": split, "contrast": f"{a} - {b}", "n": seeds},
                    **{"mean": d.total.mean, "ci95": d.total.interval(), "ci95_seeds": d.without_rows.interval()},
                    "auc": [float(one.mean()), float(other.mean())],
                }
            )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = [r for dial in (0.0, 1.0) for r in measure(dial, given.seeds, given.epochs)]
    if given.json:
        print(json.dumps({"n": given.seeds, "results": results}))
        return
    for r in results:
        low, high = r["ci95"]
        print(f"dial {r['dial']:g}  {r['contrast']:36} {r['rows']:26} {r['mean']:+.4f} [{low:+.4f}, {high:+.4f}]")


if __name__ == "__main__":
    main()
