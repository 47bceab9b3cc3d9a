"""trainables/audit.py against hand computation, and what a trial does about a term that sends no gradient."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from search.payload import trial_config
from spaces import load_study
from trainables import datasets, mlp
from trainables.audit import BATCH, DeadTerm, TermAudit, audit, dead_terms
from trainables.context import Context, TeacherOutputs, TrialConfig
from trainables.datasets import Rows
from trainables.losses import cross_entropy
from trainables.streams import Streams
from trainables.variants import VARIANTS, Term

# a linear model by hand: two seeds with two weights and a bias each, whose terms have constant gradients


def linear(seeds=2):
    weights = torch.zeros(seeds, 2, requires_grad=True)
    bias = torch.zeros(seeds, 1, requires_grad=True)

    def towards(*gradients):
        """(S, batch): a value whose mean over a batch of two has these gradients (w1, w2, b), one for each seed."""
        g = torch.tensor(gradients, dtype=torch.float32)
        value = (weights * g[:, :2]).sum(dim=1, keepdim=True) + bias * g[:, 2:]
        return value * torch.tensor([0.5, 1.5])

    return [weights, bias], towards


def test_norms_shares_and_cosines_by_hand():
    parameters, towards = linear()
    terms = {
        "a": Term(towards([3, 4, 0], [2, 3, 6]), 2.0),  # norms 5 and 7
        "b": Term(towards([0, 0, 10], [0, 14, 0]), 0.5),  # norms 10 and 14
    }
    audited = audit(terms, towards([4, 3, 0], [0, 1, 0]), parameters)
    assert audited["a"].weight == 2.0
    assert audited["a"].norm == pytest.approx(6)
    assert audited["b"].norm == pytest.approx(12)
    assert audited["a"].share == pytest.approx((10 / 15 + 14 / 21) / 2)
    assert audited["b"].share == pytest.approx((5 / 15 + 7 / 21) / 2)
    assert audited["a"].cosine == pytest.approx((24 / 25 + 3 / 7) / 2)
    assert audited["b"].cosine == pytest.approx((0 + 1) / 2)


def test_shares_are_taken_seed_by_seed_before_they_are_averaged():
    parameters, towards = linear()
    terms = {"a": Term(towards([1, 0, 0], [0, 30, 0]), 1.0), "b": Term(towards([3, 0, 0], [0, 10, 0]), 1.0)}
    audited = audit(terms, towards([1, 0, 0], [0, 1, 0]), parameters)
    assert audited["a"].share == pytest.approx((1 / 4 + 3 / 4) / 2)
    assert audited["b"].share == pytest.approx((3 / 4 + 1 / 4) / 2)


def test_the_size_of_a_weight_counts_towards_the_share_and_its_sign_does_not():
    parameters, towards = linear(seeds=1)
    terms = {"a": Term(towards([1, 0, 0]), -3.0), "b": Term(towards([0, 1, 0]), 1.0)}
    audited = audit(terms, towards([1, 0, 0]), parameters)
    assert audited["a"].share == pytest.approx(0.75)
    assert audited["a"].norm == pytest.approx(1)
    assert audited["a"].cosine == pytest.approx(1)


def test_a_detached_term_has_norm_and_share_zero_and_no_cosine():
    parameters, towards = linear()
    terms = {
        "ce": Term(towards([3, 4, 0], [3, 4, 0]), 1.0),
        "printed": Term(towards([1, 1, 1], [1, 1, 1]).detach() + 7.0, 1.0),
    }
    audited = audit(terms, terms["ce"].value, parameters)
    assert (audited["printed"].norm, audited["printed"].share) == (0.0, 0.0)
    assert math.isnan(audited["printed"].cosine)
    assert audited["ce"].share == pytest.approx(1)
    assert audited["ce"].cosine == pytest.approx(1)
    assert dead_terms([audited]) == ["printed"]


def test_the_audit_leaves_no_gradient_behind_and_the_graph_usable():
    parameters, towards = linear()
    terms = {"ce": Term(towards([3, 4, 0], [3, 4, 0]), 1.0)}
    audit(terms, terms["ce"].value, parameters)
    assert all(p.grad is None for p in parameters)
    terms["ce"].value.sum().backward()


# terms for what is learned beside the student


def gate(seeds=2):
    """Like `linear`, of an extra with two weights a seed."""
    weights = torch.zeros(seeds, 2, requires_grad=True)

    def towards(*gradients):
        return (weights * torch.tensor(gradients, dtype=torch.float32)).sum(dim=1, keepdim=True).expand(-1, 2)

    return [weights], towards


def test_a_term_for_the_extras_has_its_norm_on_them_and_neither_share_nor_cosine():
    parameters, towards = linear()
    extras, on_extras = gate()
    terms = {
        "ce": Term(towards([3, 4, 0], [3, 4, 0]), 1.0),
        "gate": Term(on_extras([3, 4], [6, 8]), 0.25, trains_extras=True),
    }
    audited = audit(terms, terms["ce"].value, parameters, extras)
    assert audited["gate"].weight == 0.25
    assert audited["gate"].norm == pytest.approx((5 + 10) / 2)
    assert math.isnan(audited["gate"].share)
    assert math.isnan(audited["gate"].cosine)


def test_a_term_for_the_extras_is_no_part_of_the_others_shares():
    parameters, towards = linear()
    extras, on_extras = gate()
    own = {"ce": Term(towards([3, 4, 0], [3, 4, 0]), 1.0), "kd": Term(towards([0, 0, 10], [0, 0, 10]), 0.5)}
    beside = {"gate": Term(on_extras([3e6, 4e6], [6e6, 8e6]), 1e3, trains_extras=True)}
    alone, together = (audit(t, own["ce"].value, parameters, extras) for t in (own, own | beside))
    assert {name: together[name] for name in own} == alone
    assert together.keys() == own.keys() | beside.keys()
    assert together["ce"].share + together["kd"].share == pytest.approx(1)


def test_what_a_term_for_the_extras_sends_the_student_does_not_count():
    parameters, towards = linear()
    extras, on_extras = gate()
    both = Term(towards([30, 40, 0], [30, 40, 0]) + on_extras([3, 4], [3, 4]), 1.0, trains_extras=True)
    student_alone = Term(towards([30, 40, 0], [30, 40, 0]), 1.0, trains_extras=True)
    terms = {"ce": Term(towards([3, 4, 0], [3, 4, 0]), 1.0), "both": both, "student": student_alone}
    audited = audit(terms, terms["ce"].value, parameters, extras)
    assert audited["both"].norm == pytest.approx(5)
    assert audited["student"].norm == 0
    assert audited["ce"].share == pytest.approx(1)


@pytest.mark.parametrize(("weight", "dead"), [(1.0, ["gate"]), (0.0, [])])
def test_a_term_that_sends_the_extras_no_gradient_is_dead_if_it_has_a_weight(weight, dead):
    parameters, towards = linear()
    extras, on_extras = gate()
    terms = {
        "ce": Term(towards([3, 4, 0], [3, 4, 0]), 1.0),
        "gate": Term(on_extras([3, 4], [6, 8]).detach(), weight, trains_extras=True),
        "living": Term(on_extras([3, 4], [6, 8]), weight, trains_extras=True),
    }
    assert dead_terms([audit(terms, terms["ce"].value, parameters, extras)]) == dead


def test_an_extra_that_trains_does_not_hide_a_student_that_does_not():
    parameters, towards = linear()
    extras, on_extras = gate()
    terms = {
        "ce": Term(towards([3, 4, 0], [3, 4, 0]), 1.0),
        "kd": Term(towards([3, 4, 0], [3, 4, 0]).detach(), 1.0),
        "gate": Term(on_extras([3, 4], [6, 8]), 1.0, trains_extras=True),
    }
    assert dead_terms([audit(terms, terms["ce"].value, parameters, extras)]) == ["kd"]


# which terms are dead


def found(**norms):
    """One audit by hand: name=norm, or name=(norm, weight)."""
    pairs = {name: n if isinstance(n, tuple) else (n, 1.0) for name, n in norms.items()}
    return {name: TermAudit(weight, norm, 0.5, 0.0) for name, (norm, weight) in pairs.items()}


@pytest.mark.parametrize(
    ("audits", "dead"),
    [
        ([found(ce=1.0, kd=0.5)], []),
        ([found(ce=1.0, kd=0.0)], ["kd"]),
        ([found(ce=1e6, kd=1e-7)], ["kd"]),  # a rounding error beside the largest norm
        ([found(ce=1e6, kd=1e-5)], []),
        ([found(ce=1.0, kd=(0.0, 0.0))], []),  # without a weight nothing is promised
        ([found(ce=0.0, kd=0.0)], ["ce", "kd"]),
        ([found(ce=1.0, at=0.0, kd=0.0)], ["at", "kd"]),
        ([found(ce=1.0, at=0.0, kd=0.0), found(ce=1.0, at=0.0, kd=0.1)], ["at"]),
        ([found(ce=1.0, kd=0.0), found(ce=0.0, kd=1.0)], []),
    ],
)
def test_a_term_is_dead_if_it_has_a_weight_and_no_gradient_on_any_batch(audits, dead):
    assert dead_terms(audits) == dead


# in a trial

STUDY = load_study("mlp-ensemble", ["data.n_samples=600", "data.fresh_rows=0"])
DATA = datasets.load(asdict(STUDY.data)).without_test()
LOGITS = 3 * np.random.default_rng(0).standard_normal((len(DATA.train), 2)).astype(np.float32)
CONTEXT = Context(
    fit=DATA.train,
    validation=DATA.validation,
    classes=DATA.classes,
    teachers=(TeacherOutputs(LOGITS, np.zeros(0, dtype=np.int64)),),
    streams=Streams(STUDY.name),
)


@pytest.fixture
def trial(monkeypatch):
    """Train a variant of the test's own: a second term, or a third too, beside the cross-entropy."""

    def run(*further, weight=1.0, context=CONTEXT, **config):
        def variant(student, teacher, labels, hp):
            terms = {"ce": Term(cross_entropy(student.logits, labels), 1.0)}
            for name, term in zip(("second", "third"), further, strict=False):
                terms[name] = Term(term(student.logits, labels), weight)
            return terms

        monkeypatch.setitem(VARIANTS, "of this test", variant)
        hp = {"learning_rate": 1e-3, "weight_decay": 0.0, "batch_size": 64}
        config = {"replicates": (0, 1), "epochs": 1, "student": asdict(STUDY.student), **config}
        return list(mlp.train(TrialConfig("of this test", hp, **config), context))

    return run


def detached(logits, labels):
    return logits.detach().square().sum(dim=-1)


def squares(logits, labels):
    return logits.square().sum(dim=-1)


def on_class_one(logits, labels):
    return squares(logits, labels) * (labels == 1)


def class_zero_first(rows):
    """Random rows whose first `rows` labels are all 0 and the others 1."""
    x = np.random.default_rng(0).standard_normal((6 * BATCH, 20))
    y = (np.arange(len(x)) >= rows).astype(np.int64)
    return replace(CONTEXT, fit=Rows(x, y), validation=None, teachers=())


def test_a_term_without_gradient_stops_the_trial_before_its_first_epoch(trial):
    with pytest.raises(DeadTerm, match="second"):
        trial(detached)
    assert len(trial(squares)) == 1


def test_a_dead_term_that_the_arm_declares_is_let_through(trial):
    (result,) = trial(detached, dead_terms=("second",))
    assert result.audits[0]["second"].norm == 0
    with pytest.raises(DeadTerm, match="second"):
        trial(detached, dead_terms=("another",))


def test_a_declared_dead_term_does_not_stop_a_trial_whose_other_term_wakes_later(trial):
    (result,) = trial(detached, on_class_one, context=class_zero_first(BATCH), dead_terms=("second",))
    assert result.audits[0]["third"].norm == 0
    with pytest.raises(DeadTerm, match="the loss term third has"):
        trial(detached, on_class_one, context=class_zero_first(4 * BATCH), dead_terms=("second",))


def test_a_dead_term_without_weight_is_let_through(trial):
    assert len(trial(detached, weight=0.0)) == 1


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_a_term_that_wakes_within_three_more_batches_is_not_dead(trial, batches):
    (result,) = trial(on_class_one, context=class_zero_first(batches * BATCH))
    assert result.audits[0]["second"].norm == 0


def test_a_term_asleep_on_four_batches_is_dead(trial):
    with pytest.raises(DeadTerm, match="second"):
        trial(on_class_one, context=class_zero_first(4 * BATCH))


def test_a_term_asleep_on_all_of_few_rows_is_dead(trial):
    context = class_zero_first(BATCH)
    few = replace(context, fit=Rows(context.fit.x[:40], context.fit.y[:40]))
    with pytest.raises(DeadTerm, match="second"):
        trial(on_class_one, context=few)


def test_a_term_that_dies_on_the_way_stops_the_trial_at_the_next_rung(trial):
    calls = 0

    def fading(logits, labels):
        nonlocal calls
        calls += 1
        return squares(logits, labels) if calls < 10 else detached(logits, labels)

    with pytest.raises(DeadTerm, match="second"):
        trial(fading, epochs=3, audit_at=(2,))


def test_trials_are_audited_at_the_first_step_and_at_rungs(trial):
    results = trial(squares, epochs=5, audit_at=(3, 5))
    assert [list(r.audits) for r in results] == [[0], [], [3], [], [5]]
    first, second = results[0].audits[0]["second"], results[2].audits[3]["second"]
    assert first.norm != second.norm


def test_a_resumed_trial_is_not_audited_as_if_it_began(trial):
    state = trial(squares)[0].state()
    (result,) = trial(squares, epochs=2, context=replace(CONTEXT, resume_epoch=1, resume=state))
    assert result.audits == {}


@pytest.mark.parametrize("arm", STUDY.arms)
def test_every_term_of_the_studys_arms_reaches_the_student(arm):
    config = trial_config(STUDY, arm, STUDY.arms[arm].default, (0, 1), epochs=1)
    (result,) = mlp.train(config, CONTEXT)
    assert all(term.norm > 1e-3 for term in result.audits[0].values())
    assert sum(term.share for term in result.audits[0].values()) == pytest.approx(1)
    if "ce" in result.audits[0]:
        assert result.audits[0]["ce"].cosine == pytest.approx(1)
