"""A small table made by hand, with teachers that are functions of it: what a trial of the table family is given."""

import numpy as np

from search.payload import trial_config
from spaces import load_study
from trainables.context import Context, TableOutputs
from trainables.datasets import Rows
from trainables.streams import Streams

STUDY = load_study("promo-attention")
FEATURES = 5
DEFAULTS = {name: arm.default for name, arm in STUDY.arms.items()}


def rows(n, seed, teachers=True):
    """n rows of 5 features, a label that depends on three of them, and what two noisy teachers say of it."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, FEATURES)).astype(np.float32)
    logit = 1.5 * x[:, 0] - x[:, 1] * x[:, 2] - 0.5
    y = (random.random(n) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    said = np.stack([logit + 0.3 * random.standard_normal(n), logit + random.standard_normal(n)], axis=1)
    identity = random.integers(2**62, size=n)
    return Rows(x, y, identity, said.astype(np.float32)[None] if teachers else None)


def context(n=300, n_val=200, sets=1, **changes):
    fit, validation = rows(n, 0), rows(n_val, 1)
    random = np.random.default_rng(2)
    teachers = []
    for k in range(sets):
        said = (fit.teachers[0] + 0.1 * k * random.standard_normal((n, 2))).astype(np.float32)
        sure = (said + 4 * (2 * fit.y[:, None] - 1)).astype(np.float32)
        platt = np.array([[1.0, 0.0], [0.5, 0.1]], np.float32)
        teachers.append(TableOutputs(("xgboost", "random_forest"), said, sure, fit.identity, platt))
    validation = Rows(validation.x, validation.y, validation.identity, np.repeat(validation.teachers, sets, axis=0))
    given = {"fit": Rows(fit.x, fit.y, fit.identity), "validation": validation, "teachers": teachers}
    return Context(classes=2, streams=Streams("made"), **{**given, **changes})


def config(arm, replicates=(0, 1, 2), epochs=5, **hp):
    return trial_config(STUDY, arm, {**DEFAULTS[arm], **hp}, replicates, epochs)
