"""What a user's variant costs by how it runs on a pack: as it is, under vmap, one seed after another.

    python -m tests.benchmarks.variant_packing --json

One formula (KD) in all three ways and built in, alternately, eight seeds of mlp-ensemble in one thread, teacher made
up. CPU time of a seed-epoch, each run's first epoch left out; `ratio`: to the built-in variant.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace

import pytest
import torch

from search.payload import trial_config
from spaces import load_study
from tests.own_studies import context_of
from trainables import mlp
from trainables.own_variants import run_packed
from trainables.variants import VARIANTS

SEEDS, EPOCHS = 8, 2
WAYS = {
    "built in": VARIANTS["kd"],
    **{how: run_packed(VARIANTS["kd"], how) for how in ("packed", "vmap", "one by one")},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = load_study("mlp-ensemble")
    context = context_of(study)
    config = trial_config(study, "kd", study.arms["kd"].default, range(SEEDS), epochs=1 + EPOCHS)
    raw: dict[str, list[float]] = {way: [] for way in WAYS}
    for repeat in range(1 + options.repeats):  # the first warms up
        for way, variant in WAYS.items():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(mlp, "packed_variant", lambda *given, variant=variant: variant)
                seconds = _seconds(replace(config, audit_at=()), context)
            if repeat:
                raw[way].append(seconds)
    built_in = statistics.median(raw["built in"])
    found = {
        way: {
            "ratio": statistics.median(values) / built_in,
            "median_ms": 1000 * statistics.median(values),
            "spread": (max(values) - min(values)) / statistics.median(values),
            "n": len(values),
            "raw": values,
        }
        for way, values in raw.items()
    }
    if options.json:
        print(json.dumps(found))
        return
    for way, of in found.items():
        print(f"{way}: {of['median_ms']:.2f} ms a seed-epoch, {of['ratio']:.2f} x built in (n={of['n']})")


def _seconds(config, context) -> float:
    """CPU seconds of a seed-epoch."""
    results = mlp.train(config, context)
    next(results)
    began = time.process_time()
    for _ in results:
        pass
    return (time.process_time() - began) / EPOCHS / SEEDS


if __name__ == "__main__":
    main()
