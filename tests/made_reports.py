"""Runs whose trials differ, with audits, crashes and a confirmation, for the tests of the report."""

import math
import random

import numpy as np

from search import seeds
from search.ledger import TrialRecord
from search.selection import select
from spaces import A_A_CONTROL
from tests.made_ledgers import new_run, row, small_study

GAIN = {"kd": 0.08, "label_smoothing": 0.03}


def searched(ledger, study, trials=8):
    """So many trials of every searched arm: some crash, diverge or are stopped, the others go to the end."""
    rng = random.Random(0)
    for arm in study.searched:
        space = study.arms[arm].space
        for i in range(trials):
            name = f"{arm}-{i:05d}"
            config = study.arms[arm].default | {n: d.at(rng.random()) for n, d in space.items()}
            ledger.ask(TrialRecord(name, arm, i % study.budget.subsearches, "sobol", config, float(i)))
            best, last = 0.7 + GAIN.get(arm, 0) + rng.gauss(0, 0.02), 9 if i < 4 else rng.choice((3, 9))
            scores = [best - 0.3 / epoch for epoch in range(1, last + 1)]
            if i == 5:
                scores[-1] = math.nan
            rows = [row(epoch, score) for epoch, score in enumerate(scores, 1)]
            for each in rows:
                share = rng.random()
                each["audits"] = [audit(each["epoch"], "ce", 1 - share), audit(each["epoch"], "kd", share)]
            ledger.report(name, rows)
            how = {5: "diverged", 6: "crashed"}.get(i, "finished" if last == 9 else "stopped")
            ledger.end(name, how, last, "RuntimeError: <b>out</b> of memory" if how == "crashed" else "")


def audit(epoch, term, share):
    return {"epoch": epoch, "term": term, "weight": 1.0, "norm": 1.0, "share": share, "cosine": 0.5}


def confirmed(ledger, study, seeds_each=None, rows=400):
    """What `search.confirm` would have written for the winners and the published settings; seeds_each: not all."""
    rng = np.random.default_rng(0)
    labels, difficulty = rng.integers(0, 2, rows).astype(np.uint8), rng.random(rows)
    ledger.look("test", labels, "confirmation", seeds=study.budget.confirm_seeds)

    def add(purpose, arm, subsearch, replicate, trial):
        right = difficulty + 0.05 * rng.normal(size=rows) < 0.8 + GAIN.get(arm, 0)
        metrics = {"test_accuracy": float(right.mean()), "parameters": 3490.0, "nll": 0.5}
        if arm != A_A_CONTROL:  # a metric that one arm lacks
            metrics["ms_per_sample_batch_1"] = 0.2
        predicted = np.where(right, labels, 1 - labels).astype(np.uint8)
        ledger.finish_run(
            *(purpose, arm, subsearch, study.confirm_on, replicate),
            **{"trial": trial, "config": {}, "epochs": 9, "seconds": 0.1, "metrics": metrics},
            predictions={"test": predicted},
        )

    for (arm, g), winner in select(study, ledger).items():
        for replicate in list(seeds.of_confirmation(study, arm, g, 0))[:seeds_each]:
            add("tuned", arm, g, replicate, winner.candidate.trial)
    for arm, definition in study.arms.items():
        if definition.published:
            for replicate in range(2_000_000, 2_000_000 + (seeds_each or study.budget.confirm_seeds)):
                add("as_published", arm, -1, replicate, "")
    ledger.clock("confirmation", "end")


def finished_run(run, trials=8, arms=()):
    """A whole run of `mlp-ensemble`, or of some of its arms, under a small budget."""
    study = small_study(arms)
    with new_run(run, study) as ledger:
        searched(ledger, study, trials)
        confirmed(ledger, study)
    return run
