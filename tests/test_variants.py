"""trainables/variants.py: each variant's terms and weights against formulas written out here, and what it reads."""

from collections.abc import Mapping
from typing import get_args

import pytest
import torch

from spaces.families import LIMITS, OF_VARIANT, ORDINARY, Variant
from trainables.variants import VARIANTS, Outputs

HP = {"smoothing": 0.2, "temperature": 4.0, "kd_weight": 0.7}
SEEDS, BATCH, CLASSES = 3, 6, 4


def batch():
    g = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(SEEDS, BATCH, CLASSES, generator=g, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.randint(CLASSES, (SEEDS, BATCH), generator=g)


def terms_of(variant, student, teacher, labels, hp=HP):
    return VARIANTS[variant](Outputs(student), Outputs(teacher), labels, hp)


def softmax(logits, temperature=1.0):
    e = torch.exp(logits / temperature)
    return e / e.sum(dim=-1, keepdim=True)


def towards(target, student):
    """Cross-entropy with a target distribution, per sample."""
    return -(target * torch.log(softmax(student))).sum(dim=-1)


def one_hot(labels):
    return torch.eye(CLASSES, dtype=torch.float64)[labels]


def hard_labels(student, teacher, labels):
    return {"ce": (1.0, towards(one_hot(labels), student))}


def label_smoothing(student, teacher, labels):
    return {"ce_smoothed": (1.0, towards(0.8 * one_hot(labels) + 0.2 / CLASSES, student))}


def kd(student, teacher, labels):
    p, q = softmax(teacher, 4.0), softmax(student, 4.0)
    kl = (p * (torch.log(p) - torch.log(q))).sum(dim=-1)
    return {"ce": (0.3, towards(one_hot(labels), student)), "kd": (0.7, 16.0 * kl)}


@pytest.mark.parametrize("formula", [hard_labels, label_smoothing, kd], ids=lambda f: f.__name__)
def test_terms_and_weights_are_those_of_the_formula(formula):
    inputs = batch()
    terms, expected = terms_of(formula.__name__, *inputs), formula(*inputs)
    assert terms.keys() == expected.keys()
    for name, (weight, value) in expected.items():
        assert terms[name].weight == pytest.approx(weight)
        torch.testing.assert_close(terms[name].value, value)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_broadcasts_over_leading_dimensions(variant):
    student, teacher, labels = batch()
    stacked = terms_of(variant, student, teacher, labels)
    for seed in range(SEEDS):
        for name, alone in terms_of(variant, student[seed], teacher[seed], labels[seed]).items():
            assert alone.value.shape == (BATCH,)
            torch.testing.assert_close(stacked[name].value[seed], alone.value)


def test_kd_without_weight_is_hard_labels():
    inputs = batch()
    without, plain = terms_of("kd", *inputs, {**HP, "kd_weight": 0.0}), terms_of("hard_labels", *inputs)
    assert without["kd"].weight == 0.0
    assert without["ce"].weight == plain["ce"].weight == 1.0
    assert torch.equal(without["ce"].value, plain["ce"].value)


class Recorded(Mapping):
    """Hyperparameters that note which of them were asked for."""

    def __init__(self, values):
        self.values_, self.read = values, set()

    def __getitem__(self, name):
        self.read.add(name)
        return self.values_[name]

    def __iter__(self):
        return iter(self.values_)

    def __len__(self):
        return len(self.values_)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_reads_the_hyperparameters_that_its_space_declares(variant):
    hp = Recorded(dict.fromkeys(LIMITS, 0.5))
    terms_of(variant, *batch(), hp)
    assert hp.read == set(OF_VARIANT[variant])


def test_spaces_and_trainables_know_the_same_variants_and_hyperparameters():
    assert set(VARIANTS) == set(get_args(Variant)) == set(OF_VARIANT)
    assert set(LIMITS) == {name for names in (*OF_VARIANT.values(), *ORDINARY.values()) for name in names}
