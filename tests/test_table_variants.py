"""The variants of tables against REFERENCE.md's golden values and formulas written out here in numpy.

They speak of probabilities of class 1: of the student, of each teacher (`members`, as logits), of the mix that a gate
makes of the teachers, and of a blend of student and mix.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from spaces.families import NAMES, OF_FAMILY, OF_VARIANT
from tests.test_variants import Recorded
from trainables.losses import bernoulli_kl, binary_cross_entropy, gated_mix, one_sided_kl
from trainables.variants import BLENDS, GATES, VARIANTS, Outputs, blended

TABLES = [v for v in VARIANTS if v not in OF_FAMILY["mlp"] + OF_FAMILY["vision"]]
HP = {"temperature": 2.0, "kl_weight": 0.6, "entropy_weight": 0.03, "blend_weight": 0.7}
SEEDS, BATCH, TEACHERS = 3, 8, 3


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch():
    """Students (SEEDS) with gates, what three teachers say to each of them, and labels of BATCH rows."""
    lead = SEEDS, BATCH
    student = Outputs(normal(*lead, 2, seed=0), gate=normal(*lead, TEACHERS, seed=1).softmax(dim=-1))
    labels = torch.randint(2, lead, generator=torch.Generator().manual_seed(3))
    return student, saying(2 * normal(*lead, TEACHERS, seed=2)), labels


def saying(members):
    return Outputs(members[..., :0], members=members)


def at(outputs, seed):
    def part(tensor):
        return None if tensor is None else tensor[seed]

    return Outputs(outputs.logits[seed], gate=part(outputs.gate), members=part(outputs.members))


def one():
    student, teacher, labels = batch()
    return at(student, 0), at(teacher, 0), labels[0]


def terms_of(variant, student, teacher, labels, hp=HP):
    return VARIANTS[variant](student, teacher, labels, hp)


# golden values of REFERENCE.md

GOLDEN = {
    "gate": [[0.574442516811659, 0.4255574831883411], [0.7310585786300049, 0.26894142136999516]],
    "mix": [0.7723327550434977, 0.253788284273999],
    "output": [0.6973960431226762, 0.26136485282199706],
    "bce": 0.33167650499696094,
    "kl as printed": 0.03568008156149376,
    "bernoulli kl": 0.007097540509240463,
}
PROBS = torch.tensor([[0.9, 0.6], [0.2, 0.4]], dtype=torch.float64)
LABELS = torch.tensor([1, 0])
ARTICLE = {"temperature": 1.0, "kl_weight": 0.3, "blend_weight": 0.5, "entropy_weight": 0.0}


def golden_inputs():
    own = torch.tensor([0.5, -1.0], dtype=torch.float64)
    gate = torch.tensor([[0.2, -0.1], [1.0, 0.0]], dtype=torch.float64).softmax(dim=-1)
    return Outputs(torch.stack([torch.zeros(2), own], dim=-1), gate=gate), saying(torch.logit(PROBS)), LABELS


def close(found, golden):
    np.testing.assert_allclose(found.detach().numpy(), golden, rtol=0, atol=1e-6)


def test_gate_mix_and_output_golden():
    student, teacher, _ = golden_inputs()
    output, mix = blended(student, teacher, ARTICLE)
    close(student.gate, GOLDEN["gate"])
    close(gated_mix(student.gate, PROBS), GOLDEN["mix"])
    close(mix, GOLDEN["mix"])
    close(output, GOLDEN["output"])


def test_losses_golden():
    output, mix = (torch.tensor(GOLDEN[name], dtype=torch.float64) for name in ("output", "mix"))
    close(binary_cross_entropy(output, LABELS).mean(), GOLDEN["bce"])
    close(one_sided_kl(mix, output).mean(), GOLDEN["kl as printed"])
    close(bernoulli_kl(mix, output).mean(), GOLDEN["bernoulli kl"])


@pytest.mark.parametrize(("variant", "kl"), [("as_printed", "kl as printed"), ("attention_blend", "bernoulli kl")])
def test_the_articles_model_golden_as_printed_and_with_a_kl_of_both_sides(variant, kl):
    terms = terms_of(variant, *golden_inputs(), ARTICLE)
    close(terms["ce"].value.mean(), GOLDEN["bce"])
    close(terms["kl"].value.mean(), GOLDEN[kl])
    total = sum(term.weight * term.value.mean() for term in terms.values())
    close(total, GOLDEN["bce"] + 0.3 * GOLDEN[kl])


# formulas, for one seed's batch


def probability(logit):
    return 1 / (1 + np.exp(-logit))


def power(p, temperature=2.0):
    """p^(1/T) and (1-p)^(1/T), renormalised."""
    a, b = p ** (1 / temperature), (1 - p) ** (1 / temperature)
    return a / (a + b)


def ce(p, y):
    return -(y * np.log(p) + (1 - y) * np.log(1 - p))


def kl(p, q):
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def own(s):
    return probability((s.logits[..., 1] - s.logits[..., 0]).numpy())


def members(t):
    return probability(t.members.numpy())


def mix_of(s, probs):
    return sum(s.gate[..., j].numpy() * probs[..., j] for j in range(TEACHERS))


def negative_entropy(s):
    gate = s.gate.numpy()
    return sum(gate[..., j] * np.log(gate[..., j]) for j in range(TEACHERS))


def kd_uniform(s, t, y):
    return {"ce": (1.0, ce(own(s), y)), "kl": (0.6, 4 * kl(power(members(t).mean(axis=-1)), power(own(s))))}


def attention_student(s, t, y):
    mix = mix_of(s, members(t))
    return {
        "ce": (1.0, ce(own(s), y)),
        "kl": (0.6, 4 * kl(power(mix), power(own(s)))),
        "mix_ce": (1.0, ce(mix, y)),
        "gate_entropy": (0.03, negative_entropy(s)),
    }


def blend(s, mix, y):
    output = 0.7 * own(s) + 0.3 * mix
    return {"ce": (1.0, ce(output, y)), "kl": (0.6, kl(mix, output))}


def uniform_blend(s, t, y):
    return blend(s, power(members(t)).mean(axis=-1), y)


def attention_blend(s, t, y):
    return blend(s, mix_of(s, power(members(t))), y) | {"gate_entropy": (0.03, negative_entropy(s))}


def global_gate_blend(s, t, y):
    return attention_blend(s, t, y)


def as_printed(s, t, y):
    mix = mix_of(s, power(members(t)))
    output = 0.7 * own(s) + 0.3 * mix
    return {"ce": (1.0, ce(output, y)), "kl": (0.6, mix * np.log((mix + 1e-7) / (output + 1e-7)))}


FORMULAS = {
    f.__name__: f
    for f in (kd_uniform, attention_student, attention_blend, uniform_blend, global_gate_blend, as_printed)
}


def matched(variant):
    """A student of this variant: one that has no gate sees none."""
    student, teacher, labels = batch()
    return student if variant in GATES else replace(student, gate=None), teacher, labels


def matched_one(variant):
    student, teacher, labels = matched(variant)
    return at(student, 0), at(teacher, 0), labels[0]


@pytest.mark.parametrize("variant", TABLES)
def test_terms_and_weights_are_those_of_the_formula(variant):
    student, teacher, labels = matched_one(variant)
    terms, expected = terms_of(variant, student, teacher, labels), FORMULAS[variant](student, teacher, labels.numpy())
    assert terms.keys() == expected.keys()
    for name, (weight, value) in expected.items():
        assert terms[name].weight == pytest.approx(weight)
        np.testing.assert_allclose(terms[name].value.numpy(), value, rtol=1e-9)


def test_every_variant_of_tables_has_its_formula_here():
    assert FORMULAS.keys() == set(TABLES)


@pytest.mark.parametrize("variant", TABLES)
def test_a_variant_broadcasts_over_leading_dimensions(variant):
    student, teacher, labels = matched(variant)
    stacked = terms_of(variant, student, teacher, labels)
    shared = terms_of(variant, student, at(teacher, 0), labels)
    for seed in range(SEEDS):
        for name, alone in terms_of(variant, at(student, seed), at(teacher, seed), labels[seed]).items():
            assert alone.value.shape == (BATCH,)
            assert stacked[name].value.shape == (SEEDS, BATCH)
            torch.testing.assert_close(stacked[name].value[seed], alone.value)
        for name, alone in terms_of(variant, at(student, seed), at(teacher, 0), labels[seed]).items():
            torch.testing.assert_close(shared[name].value[seed], alone.value)


@pytest.mark.parametrize("variant", TABLES)
def test_a_variant_refuses_to_go_without_its_teachers_and_without_its_gate(variant):
    student, teacher, labels = matched_one(variant)
    for missing in (None, Outputs(teacher.logits)):
        with pytest.raises(AssertionError):
            terms_of(variant, student, missing, labels)
    if "gate_entropy" in terms_of(variant, student, teacher, labels):
        with pytest.raises(AssertionError):
            terms_of(variant, replace(student, gate=None), teacher, labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", TABLES)
def test_teachers_that_say_0_or_1_and_a_gate_of_0_leave_terms_and_gradients_finite(variant, dtype):
    own_logits = torch.tensor([[0.0, 900.0], [900.0, 0.0], [0.0, 1.0]], dtype=dtype).requires_grad_()
    gate = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=dtype).requires_grad_()
    sure = saying(torch.tensor([-800.0, 800.0, -800.0], dtype=dtype).expand(3, -1))
    student = Outputs(own_logits, gate=gate if variant in GATES else None)
    for name, term in terms_of(variant, student, sure, torch.tensor([0, 1, 0])).items():
        assert torch.isfinite(term.value).all(), name
        for gradient in gradients(term.value, {"student": own_logits, "gate": gate}).values():
            assert torch.isfinite(gradient).all(), name


# what differs between them


def test_a_gate_that_is_even_makes_the_plain_average_of_the_teachers():
    student, teacher, labels = one()
    even = replace(student, gate=torch.full_like(student.gate, 1 / TEACHERS))
    for gated, plain in (("attention_student", "kd_uniform"), ("attention_blend", "uniform_blend")):
        without = terms_of(plain, replace(student, gate=None), teacher, labels)
        for name, term in without.items():
            torch.testing.assert_close(terms_of(gated, even, teacher, labels)[name].value, term.value)
            if name == "kl":
                assert not torch.isclose(terms_of(gated, student, teacher, labels)[name].value, term.value).any()


def test_the_global_gate_differs_by_its_gate_and_not_by_its_loss():
    by_row, for_all = (terms_of(v, *one()) for v in ("attention_blend", "global_gate_blend"))
    assert GATES["attention_blend"] != GATES["global_gate_blend"]
    assert by_row.keys() == for_all.keys()
    assert all(torch.equal(by_row[name].value, for_all[name].value) for name in by_row)


@pytest.mark.parametrize(("weight", "takes"), [(1.0, "own"), (0.0, "mix")])
def test_a_blend_of_one_side_alone_is_that_side(weight, takes):
    student, teacher, _ = one()
    output, mix = blended(student, teacher, {**HP, "blend_weight": weight})
    expected = {"own": own(student), "mix": mix.numpy()}[takes]
    np.testing.assert_allclose(output.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("variant", TABLES)
def test_only_what_is_for_the_gate_alone_is_declared_to_be(variant):
    beside = {name for name, term in terms_of(variant, *matched_one(variant)).items() if term.trains_extras}
    expected = {"attention_student": {"mix_ce", "gate_entropy"}, "global_gate_blend": {"gate_entropy"}}
    assert beside == expected.get(variant, set())


# gradients


def tracked(variant):
    """A seed's batch of this variant, and the tensors that ask for a gradient: student's and gate's logits."""
    student, teacher, labels = matched_one(variant)
    leaves = {"student": student.logits.clone().requires_grad_()}
    if student.gate is not None:
        leaves["gate"] = student.gate.log().requires_grad_()
    gate = leaves["gate"].softmax(dim=-1) if "gate" in leaves else None
    return Outputs(leaves["student"], gate=gate), teacher, labels, leaves


def gradients(value, leaves):
    found = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True, retain_graph=True)
    return {name: g for name, g in zip(leaves, found, strict=True) if g is not None}


BOTH, STUDENT, GATE = {"student", "gate"}, {"student"}, {"gate"}
REACHES = {
    "kd_uniform": {"ce": STUDENT, "kl": STUDENT},
    "attention_student": {"ce": STUDENT, "kl": STUDENT, "mix_ce": GATE, "gate_entropy": GATE},
    "attention_blend": {"ce": BOTH, "kl": BOTH, "gate_entropy": GATE},
    "global_gate_blend": {"ce": BOTH, "kl": BOTH, "gate_entropy": GATE},
    "uniform_blend": {"ce": STUDENT, "kl": STUDENT},
    "as_printed": {"ce": BOTH, "kl": BOTH},
}


@pytest.mark.parametrize("variant", TABLES)
def test_every_term_teaches_student_or_gate_or_both_in_every_row(variant):
    student, teacher, labels, leaves = tracked(variant)
    terms = terms_of(variant, student, teacher, labels)
    assert terms.keys() == REACHES[variant].keys()
    for name, term in terms.items():
        arrived = gradients(term.value, leaves)
        assert arrived.keys() == REACHES[variant][name], name
        for gradient in arrived.values():
            assert (gradient.norm(dim=-1) > 1e-6).all()


def test_the_kl_to_the_mix_teaches_the_student_as_if_the_mix_were_given():
    """T² KL's gradient on the logit of class 1 is T (softened student - softened mix)."""
    student, teacher, labels, leaves = tracked("attention_student")
    arrived = gradients(terms_of("attention_student", student, teacher, labels)["kl"].value, leaves)["student"]
    plain, _, _ = one()
    expected = 2.0 * (power(own(plain)) - power(mix_of(plain, members(teacher))))
    np.testing.assert_allclose(arrived[:, 1].numpy(), expected, rtol=1e-9)


def test_mix_ce_moves_the_gate_towards_the_teacher_that_is_right():
    student, _, labels, leaves = tracked("attention_student")
    right = (2.0 * labels - 1).double()
    teacher = saying(torch.stack([right, torch.zeros_like(right), -right], dim=-1))
    gradient = gradients(terms_of("attention_student", student, teacher, labels)["mix_ce"].value, leaves)["gate"]
    assert (gradient[:, 0] < 0).all()
    assert (gradient[:, 2] > 0).all()


def test_less_of_the_entropy_term_is_a_more_even_gate():
    student, teacher, labels, leaves = tracked("attention_student")
    gradient = gradients(terms_of("attention_student", student, teacher, labels)["gate_entropy"].value, leaves)["gate"]
    evener = (leaves["gate"] - 1e-3 * gradient).softmax(dim=-1)
    assert (evener.std(dim=-1) < student.gate.std(dim=-1)).all()


def test_the_kl_as_printed_pulls_the_gate_to_whichever_teacher_says_less_and_the_proper_one_does_not():
    """Where student and mix agree there is nothing to learn: METHOD.md, "Tables"."""
    said = torch.tensor([[0.9, 0.6], [0.2, 0.4]], dtype=torch.float64)
    logits = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    gate = logits.softmax(dim=-1)
    own_logit = torch.logit(said.mean(dim=-1))
    student = Outputs(torch.stack([torch.zeros_like(own_logit), own_logit], dim=-1), gate=gate)
    hp = {**HP, "temperature": 1.0}
    pull, none = (
        gradients(terms_of(v, student, saying(torch.logit(said)), LABELS, hp)["kl"].value, {"gate": logits})["gate"]
        for v in ("as_printed", "attention_blend")
    )
    assert (pull.argmax(dim=-1) == said.argmax(dim=-1)).all()  # what a step of descent takes from
    assert (pull.abs() > 0.01).all()
    assert (none.abs() < 1e-12).all()


# hyperparameters


@pytest.mark.parametrize("variant", TABLES)
def test_a_variant_reads_the_hyperparameters_that_its_space_declares(variant):
    hp = Recorded(HP | dict.fromkeys(NAMES, "a name"))
    terms_of(variant, *matched_one(variant), hp)
    assert hp.read == set(OF_VARIANT[variant])


@pytest.mark.parametrize("name", sorted(HP))
def test_a_weight_weighs_the_term_of_its_name_alone(name):
    used = [v for v in TABLES if name in OF_VARIANT[v]]
    assert used
    for variant in used:
        inputs = matched_one(variant)
        before, after = (terms_of(variant, *inputs, hp) for hp in (HP, {**HP, name: HP[name] + 0.1}))
        moved = {t for t in before if before[t].weight != after[t].weight}
        changed = {t for t in before if not torch.equal(before[t].value, after[t].value)}
        weighed = {"kl_weight": {"kl"}, "entropy_weight": {"gate_entropy"}}.get(name, set())
        # the temperature softens a student's target, or the teachers inside a blend; that mixes both terms
        enters = {"temperature": {"ce", "kl"} if variant in BLENDS else {"kl"}, "blend_weight": {"ce", "kl"}}
        assert moved == weighed
        assert changed == enters.get(name, set())
        for term in weighed:
            assert after[term].weight == before[term].weight + 0.1
