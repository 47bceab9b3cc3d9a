"""Studies with a variant of one's own, trained in this process under a made-up teacher."""

from dataclasses import asdict
from pathlib import Path

import torch

from search import families
from search.payload import TRAIN, load_trainable, payload_of, trial_config
from trainables.datasets import load


def context_of(study, folder=Path()):
    """What the family trains on; folder: for a made-up teacher of images."""
    dataset = load(asdict(study.data))
    teacher = families.of(study).made_up(study, dataset, folder)
    return payload_of(study, 0, dataset, TRAIN, [teacher]).context()


def trained(study, replicates, epochs=2, arm="mine", context=None):
    """The last result of an arm at its default, in float64."""
    config = trial_config(study, arm, study.arms[arm].default, replicates, epochs=epochs)
    torch.set_default_dtype(torch.float64)
    try:
        *_, last = load_trainable(study)(config, context or context_of(study))
    finally:
        torch.set_default_dtype(torch.float32)
    return last


def parameters(result):
    """Of the students and of what is learned beside them."""
    return {k: v for k, v in result.state().items() if k.startswith(("model.", "extras."))}
