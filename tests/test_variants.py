"""trainables/variants.py: each variant's terms and weights against formulas written out here, and what it reads.

Those of tables, which need a gate or several teachers, are in test_table_variants.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from spaces import families
from spaces.families import (
    EXAMPLES,
    KINDS,
    LIMITS,
    NAMES,
    NEEDS_TEACHER,
    OF_FAMILY,
    OF_VARIANT,
    ORDINARY,
    WITHOUT_TEACHER,
)
from trainables import tabular, variants
from trainables.variants import VARIANTS, Outputs

HP = {
    "smoothing": 0.2,
    "temperature": 4.0,
    "kd_weight": 0.7,
    "ce_weight": 1.3,
    "fa_weight": 2.5,
    "at_weight": 11.0,
    "at_form": "sum",
}
IMAGES = [v for v in VARIANTS if v in OF_FAMILY["mlp"] + OF_FAMILY["vision"]]  # and of generated tables without columns
READ_BY_THE_TRAINER = {"layers", "mask", "mask_percentile", "mask_edge"}
RELEASED = ("released_kd", "released_fa", "released_at", "released_fa_at")
ON_MAPS = ("kd_fa", "kd_at", "kd_fa_at")
SEEDS, BATCH, CLASSES = 3, 6, 4


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch():
    """Student's and teacher's outputs and labels of SEEDS x BATCH images.

    Of two layers: the student's map is the larger at `near`, the teacher's at `far`. Only `far` has a mask.
    """
    lead = SEEDS, BATCH
    student = Outputs(
        normal(*lead, CLASSES, seed=0),
        features={"near": normal(*lead, 2, 8, 8, seed=1), "far": normal(*lead, 3, 4, 4, seed=2)},
        aligned={"near": normal(*lead, 5, 8, 8, seed=3), "far": normal(*lead, 6, 4, 4, seed=4)},
    )
    teacher = Outputs(
        normal(*lead, CLASSES, seed=5),
        features={"near": normal(*lead, 5, 4, 4, seed=6), "far": normal(*lead, 6, 8, 8, seed=7)},
        attention={"near": normal(*lead, 4, 4, seed=8).square(), "far": normal(*lead, 8, 8, seed=9).square()},
        masks={"near": None, "far": normal(*lead, 4, 4, seed=10).sigmoid()},
    )
    labels = torch.randint(CLASSES, lead, generator=torch.Generator().manual_seed(11))
    return student, teacher, labels


def at(outputs, seed):
    """One seed's part of stacked outputs."""

    def part(by_layer):
        return {layer: None if t is None else t[seed] for layer, t in by_layer.items()}

    maps = {name: part(getattr(outputs, name)) for name in ("features", "aligned", "attention", "masks")}
    return Outputs(outputs.logits[seed], **maps)


def one():
    student, teacher, labels = batch()
    return at(student, 0), at(teacher, 0), labels[0]


def terms_of(variant, student, teacher, labels, hp=HP):
    return VARIANTS[variant](student, teacher, labels, hp)


# formulas, for one seed's batch


def softmax(logits, temperature=1.0):
    e = torch.exp(logits / temperature)
    return e / e.sum(dim=-1, keepdim=True)


def towards(target, student):
    """Cross-entropy with a target distribution, per sample."""
    return -(target * torch.log(softmax(student.logits))).sum(dim=-1)


def one_hot(labels):
    return torch.eye(CLASSES, dtype=torch.float64)[labels]


def kl(student, teacher):
    p, q = softmax(teacher.logits, 4.0), softmax(student.logits, 4.0)
    return 16.0 * (p * (torch.log(p) - torch.log(q))).sum(dim=-1)


def halved(maps):
    """8x8 maps as means of 2x2 squares; 4x4 maps as they are."""
    return maps if maps.shape[-1] == 4 else maps.unflatten(-2, (4, 2)).unflatten(-1, (4, 2)).mean(dim=(-3, -1))


def attention(student, teacher, form):
    """The mean over both layers of the distance of normalised maps, weighted by the mask where there is one."""
    distances = []
    for layer, f in student.features.items():
        q_s, q_t = (halved(m).flatten(1) for m in ((f**2).sum(dim=1), teacher.attention[layer]))
        squared = (q_s / q_s.norm(dim=1, keepdim=True) - q_t / q_t.norm(dim=1, keepdim=True)) ** 2
        m = teacher.masks.get(layer)
        m = torch.ones_like(squared) if m is None else m.flatten(1)
        mean = (m * squared).sum(dim=1) / m.sum(dim=1)
        distances.append({"code": mean, "sum": 16 * mean, "paper": 0.5 * (16 * mean).sqrt()}[form])
    return sum(distances) / len(distances)


def alignment(student, teacher):
    distances = []
    for layer, f in student.aligned.items():
        squared = (halved(teacher.features[layer]) - halved(f)) ** 2
        m = teacher.masks.get(layer)
        m = torch.ones_like(squared[:, 0]) if m is None else m
        distances.append((m.unsqueeze(1) * squared).sum(dim=(1, 2, 3)) / (squared.shape[1] * m.sum(dim=(1, 2))))
    return sum(distances) / len(distances)


def truncated(student, teacher, pool):
    """The notebook's distance over the first channels that both have."""
    distances = []
    for layer, f in student.features.items():
        ours, theirs = halved(f), halved(teacher.features[layer])[:, : f.shape[1]]
        if pool:
            distances.append(((ours.mean(dim=(2, 3)) - theirs.mean(dim=(2, 3))) ** 2).mean(dim=1))
        else:
            distances.append(((ours - theirs) ** 2).mean(dim=(1, 2, 3)))
    return sum(distances) / len(distances)


def hard_labels(s, t, y):
    return {"ce": (1.0, towards(one_hot(y), s))}


def label_smoothing(s, t, y):
    return {"ce_smoothed": (1.0, towards(0.8 * one_hot(y) + 0.2 / CLASSES, s))}


def kd(s, t, y):
    return {"ce": (0.3, towards(one_hot(y), s)), "kd": (0.7, kl(s, t))}


def weighted_kd(s, t, y):
    return {"ce": (1.3, towards(one_hot(y), s)), "kd": (0.7, kl(s, t))}


def kd_fa(s, t, y):
    return weighted_kd(s, t, y) | {"fa": (2.5, alignment(s, t))}


def kd_at(s, t, y):
    return weighted_kd(s, t, y) | {"at": (11.0, attention(s, t, "sum"))}


def kd_fa_at(s, t, y):
    return kd_fa(s, t, y) | kd_at(s, t, y)


def half_ce(s, t, y):
    return {"ce": (0.5, towards(one_hot(y), s))}


def released_kd(s, t, y):
    return half_ce(s, t, y) | {"kd": (0.5, truncated(s, t, pool=True))}


def released_fa(s, t, y):
    return half_ce(s, t, y) | {"fa": (0.5, truncated(s, t, pool=False))}


def released_at(s, t, y):
    return half_ce(s, t, y) | {"at": (0.5, attention(s, t, "code"))}


def released_fa_at(s, t, y):
    halves = released_fa(s, t, y) | released_at(s, t, y)
    return {name: (0.5 if name == "ce" else 0.25, value) for name, (_, value) in halves.items()}


FORMULAS = {
    f.__name__: f
    for f in (
        *(hard_labels, label_smoothing, kd, weighted_kd, kd_fa, kd_at, kd_fa_at),
        *(released_kd, released_fa, released_at, released_fa_at, half_ce),
    )
}


@pytest.mark.parametrize("variant", IMAGES)
def test_terms_and_weights_are_those_of_the_formula(variant):
    terms, expected = terms_of(variant, *one()), FORMULAS[variant](*one())
    assert terms.keys() == expected.keys()
    for name, (weight, value) in expected.items():
        assert terms[name].weight == pytest.approx(weight)
        torch.testing.assert_close(terms[name].value, value)


@pytest.mark.parametrize("variant", IMAGES)
def test_a_variant_broadcasts_over_leading_dimensions(variant):
    student, teacher, labels = batch()
    stacked = terms_of(variant, student, teacher, labels)
    for seed in range(SEEDS):
        for name, alone in terms_of(variant, at(student, seed), at(teacher, seed), labels[seed]).items():
            assert alone.value.shape == (BATCH,)
            assert stacked[name].value.shape == (SEEDS, BATCH)
            torch.testing.assert_close(stacked[name].value[seed], alone.value)


def test_kd_without_weight_is_hard_labels():
    without, plain = terms_of("kd", *one(), {**HP, "kd_weight": 0.0}), terms_of("hard_labels", *one())
    assert without["kd"].weight == 0.0
    assert without["ce"].weight == plain["ce"].weight == 1.0
    assert torch.equal(without["ce"].value, plain["ce"].value)


@pytest.mark.parametrize("variant", IMAGES)
def test_only_a_variant_that_needs_a_teacher_refuses_to_go_without(variant):
    student, teacher, labels = one()
    if variant in NEEDS_TEACHER:
        with pytest.raises(AssertionError):
            terms_of(variant, student, None, labels)
    else:
        without, beside = (terms_of(variant, student, t, labels) for t in (None, teacher))
        for name, term in beside.items():
            assert torch.equal(without[name].value, term.value)


# attention's forms, layers and masks


@pytest.mark.parametrize("form", NAMES["at_form"])
@pytest.mark.parametrize("variant", ["kd_at", "kd_fa_at"])
def test_a_study_may_ask_for_every_form_of_attention_transfer(variant, form):
    student, teacher, labels = one()
    value = terms_of(variant, student, teacher, labels, {**HP, "at_form": form})["at"].value
    torch.testing.assert_close(value, attention(student, teacher, form))


@pytest.mark.parametrize("variant", [*ON_MAPS, *RELEASED])
def test_several_layers_count_as_their_mean(variant):
    student, teacher, labels = one()

    def only(layer):
        features, aligned = ({layer: maps[layer]} for maps in (student.features, student.aligned))
        return terms_of(variant, replace(student, features=features, aligned=aligned), teacher, labels)

    both, near, far = terms_of(variant, student, teacher, labels), only("near"), only("far")
    for name in both.keys() & ({"fa", "at"} | ({"kd"} if variant in RELEASED else set())):
        torch.testing.assert_close(both[name].value, (near[name].value + far[name].value) / 2)
        assert not torch.allclose(near[name].value, far[name].value)


@pytest.mark.parametrize("variant", ON_MAPS)
def test_a_mask_changes_the_terms_on_maps_and_no_other(variant):
    student, teacher, labels = one()
    masked = terms_of(variant, student, teacher, labels)
    none, absent, even = (
        terms_of(variant, student, replace(teacher, masks=masks), labels)
        for masks in ({"near": None, "far": None}, {}, {"far": torch.ones(BATCH, 4, 4, dtype=torch.float64)})
    )
    for name, term in masked.items():
        assert torch.equal(none[name].value, absent[name].value)
        torch.testing.assert_close(even[name].value, absent[name].value)
        assert (not torch.isclose(term.value, absent[name].value).any()) == (name in ("fa", "at"))


# gradients


def tracked():
    """One seed's batch whose student's tensors are leaves that ask for a gradient."""
    student, teacher, labels = one()
    features, aligned = (
        {layer: t.clone().requires_grad_() for layer, t in maps.items()} for maps in (student.features, student.aligned)
    )
    return Outputs(student.logits.clone().requires_grad_(), features, aligned), teacher, labels


def gradients(term, student):
    """Of one term: those on the logits, the features and the aligned features by name; None where nothing arrives."""
    leaves = {"logits": student.logits}
    leaves |= {f"features.{layer}": t for layer, t in student.features.items()}
    leaves |= {f"aligned.{layer}": t for layer, t in student.aligned.items()}
    if not term.value.requires_grad:
        return dict.fromkeys(leaves)
    found = torch.autograd.grad(term.value.sum(), list(leaves.values()), allow_unused=True, retain_graph=True)
    return dict(zip(leaves, found, strict=True))


FEATURES, ALIGNED = {"features.near", "features.far"}, {"aligned.near", "aligned.far"}
REACHES = {"ce": {"logits"}, "ce_smoothed": {"logits"}, "kd": {"logits"}, "fa": ALIGNED, "at": FEATURES}


@pytest.mark.parametrize("variant", [v for v in IMAGES if v not in RELEASED])
def test_every_term_teaches_what_it_speaks_of_in_every_sample(variant):
    student, teacher, labels = tracked()
    for name, term in terms_of(variant, student, teacher, labels).items():
        arrived = {k: g for k, g in gradients(term, student).items() if g is not None}
        assert arrived.keys() == REACHES[name]
        for gradient in arrived.values():
            assert (gradient.flatten(1).norm(dim=1) > 1e-6).all()


@pytest.mark.parametrize("variant", RELEASED)
def test_a_released_variants_terms_teach_nothing_but_half_the_cross_entropy(variant):
    student, teacher, labels = tracked()
    terms = terms_of(variant, student, teacher, labels)
    for name in terms.keys() - {"ce"}:
        assert set(gradients(terms[name], student).values()) == {None}
        assert (terms[name].value > 0).all()
    sum((term.weight * term.value).mean() for term in terms.values()).backward()
    alone, _, _ = tracked()
    (0.5 * terms_of("hard_labels", alone, None, labels)["ce"].value).mean().backward()
    assert torch.equal(student.logits.grad, alone.logits.grad)
    assert all(t.grad is None for t in (*student.features.values(), *student.aligned.values()))


# hyperparameters


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


@pytest.mark.parametrize("variant", IMAGES)
def test_a_variant_reads_the_hyperparameters_that_its_space_declares(variant):
    hp = Recorded(dict.fromkeys(LIMITS, 0.5) | {name: (*values, "near")[0] for name, values in NAMES.items()})
    terms_of(variant, *one(), hp)
    assert hp.read == set(OF_VARIANT[variant]) - READ_BY_THE_TRAINER


def test_every_variant_of_images_has_its_formula_here():
    assert FORMULAS.keys() == set(IMAGES)


def test_spaces_and_trainables_know_the_same_variants_and_hyperparameters():
    assert set(OF_VARIANT) == VARIANTS.keys() | set(variants.REFERENCES)
    assert not VARIANTS.keys() & set(variants.REFERENCES)  # of teachers alone nothing is trained
    assert set().union(*OF_FAMILY.values()) == set(OF_VARIANT)
    assert OF_FAMILY.keys() == ORDINARY.keys() == KINDS.keys()
    declared = {name for names in (*OF_VARIANT.values(), *ORDINARY.values()) for name in names}
    assert LIMITS.keys() | NAMES.keys() == declared
    assert not LIMITS.keys() & NAMES.keys()
    assert {name for name, allowed in NAMES.items() if not allowed} == EXAMPLES.keys()


def test_spaces_and_trainables_know_the_same_roles_of_variants():
    assert set(variants.BLENDS) == set(families.BLENDS)
    assert set(variants.REFERENCES) == set(families.REFERENCES)
    assert set(variants.GATES) <= set(OF_FAMILY["tabular"]) & VARIANTS.keys()
    assert set(variants.READS_FEATURES) <= set(OF_FAMILY["vision"])
    assert set(NEEDS_TEACHER) | set(WITHOUT_TEACHER) == set(OF_VARIANT)
    assert tabular.FULL == families.FULL_BATCH


OF_IMAGES = sorted(set().union(*(OF_VARIANT[v] for v in IMAGES)) - READ_BY_THE_TRAINER - {"at_form"})


@pytest.mark.parametrize("name", OF_IMAGES)
def test_a_weight_weighs_the_term_of_its_name_alone(name):
    inputs = one()
    for variant in (v for v in IMAGES if name in OF_VARIANT[v]):
        before, after = (terms_of(variant, *inputs, hp) for hp in (HP, {**HP, name: HP[name] + 0.1}))
        moved = {t for t in before if before[t].weight != after[t].weight}
        changed = {t for t in before if not torch.equal(before[t].value, after[t].value)}
        weighed = {name.removesuffix("_weight")} if name.endswith("_weight") else set()
        assert moved == (weighed | {"ce"} if variant == "kd" and weighed else weighed)
        assert changed == {"temperature": {"kd"}, "smoothing": {"ce_smoothed"}}.get(name, set())


def test_no_two_variants_are_the_same_loss():
    losses = {v: sum(t.weight * t.value.sum() for t in VARIANTS[v](*one(), HP).values()).item() for v in IMAGES}
    assert all(losses[a] != pytest.approx(losses[b], rel=1e-6) for a, b in combinations(losses, 2))
