"""The examples in spaces/examples: their formulas against papers and plain loops, and that they use the contract alone.

Golden values were worked out by hand from the papers' equations.
"""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from search.local import check_study
from search.payload import load_trainable, trial_config
from search.students import load_student
from spaces import BadInput, adjust, load_study
from tests.made_runs import confirmed_run
from tests.own_studies import context_of, parameters, trained
from trainables.by_path import namespace
from trainables.losses import cross_entropy, hinton_kd
from trainables.own_variants import how_it_packs
from trainables.variants import Outputs

EXAMPLES = Path("spaces/examples")
DKD, RKD, BAN, TOKENS = (
    namespace(str(EXAMPLES.absolute() / f"{name}.py"))
    for name in ("decoupled_kd", "relational_kd", "born_again", "token_kd")
)
random = np.random.default_rng(0)


def logits(*shape):
    return torch.from_numpy(random.normal(scale=2.0, size=shape))


def batch(seeds=(), n=7, classes=5):
    labels = torch.from_numpy(random.integers(classes, size=(*seeds, n)))
    return Outputs(logits(*seeds, n, classes)), Outputs(logits(*seeds, n, classes)), labels


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


# decoupled KD

HP = {"temperature": 4.0, "tckd_weight": 1.0, "nckd_weight": 8.0}


def test_decoupled_kd_of_a_case_worked_by_hand():
    student = Outputs(torch.tensor([[0.5, 0.25, 0.25]]).log())
    teacher = Outputs(torch.tensor([[0.25, 0.5, 0.25]]).log())
    terms = DKD["decoupled_kd"](student, teacher, torch.tensor([0]), {**HP, "temperature": 1.0})
    tckd = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)  # true or not: (1/4, 3/4) and (1/2, 1/2)
    nckd = 2 / 3 * math.log((2 / 3) / 0.5) + 1 / 3 * math.log((1 / 3) / 0.5)  # the others: (2/3, 1/3) and (1/2, 1/2)
    assert terms["tckd"].value.item() == pytest.approx(tckd, abs=1e-6)
    assert terms["nckd"].value.item() == pytest.approx(nckd, abs=1e-6)
    assert (round(tckd, 6), round(nckd, 6)) == (0.130812, 0.056633)


def test_decoupled_kd_is_the_papers_equations_written_out():
    student, teacher, labels = batch()
    terms = DKD["decoupled_kd"](student, teacher, labels, HP)
    for i, y in enumerate(labels.tolist()):
        q, p = (softmax(o.logits[i].numpy() / 4.0) for o in (student, teacher))
        tckd = p[y] * np.log(p[y] / q[y]) + (1 - p[y]) * np.log((1 - p[y]) / (1 - q[y]))
        nckd = sum(p[c] / (1 - p[y]) * np.log((p[c] / (1 - p[y])) / (q[c] / (1 - q[y]))) for c in range(5) if c != y)
        assert terms["tckd"].value[i].item() == pytest.approx(16 * tckd, abs=1e-10)
        assert terms["nckd"].value[i].item() == pytest.approx(16 * nckd, abs=1e-10)
    assert {name: term.weight for name, term in terms.items()} == {"ce": 1.0, "tckd": 1.0, "nckd": 8.0}


def test_the_two_parts_add_up_to_hintons_kd():
    """Equation 6 of the paper: KD = TCKD + (1 - p of the true class) NCKD."""
    student, teacher, labels = batch()
    terms = DKD["decoupled_kd"](student, teacher, labels, HP)
    p_true = (teacher.logits / 4.0).softmax(dim=-1).gather(-1, labels[:, None]).squeeze(-1)
    whole = hinton_kd(student.logits, teacher.logits, 4.0)
    torch.testing.assert_close(terms["tckd"].value + (1 - p_true) * terms["nckd"].value, whole, rtol=0, atol=1e-10)


def test_decoupled_kd_stands_a_teacher_that_is_sure():
    student, _, labels = batch()
    sure = Outputs(200.0 * torch.nn.functional.one_hot(labels, 5).double())
    student.logits.requires_grad_()
    terms = DKD["decoupled_kd"](student, sure, labels, HP)
    (gradient,) = torch.autograd.grad(sum(t.weight * t.value.sum() for t in terms.values()), student.logits)
    assert torch.isfinite(gradient).all()


def test_of_two_classes_nothing_is_left_to_decouple():
    student, teacher, labels = batch(classes=2)
    terms = DKD["decoupled_kd"](student, teacher, labels, HP)
    assert torch.count_nonzero(terms["nckd"].value) == 0
    torch.testing.assert_close(terms["tckd"].value, hinton_kd(student.logits, teacher.logits, 4.0))


# relational KD

WEIGHTS = {"distance_weight": 25.0, "angle_weight": 50.0}


def relational(student, teacher, labels):
    return RKD["relational_kd"](student, teacher, labels, WEIGHTS)


def test_relational_distances_of_a_case_worked_by_hand():
    """Points 0, 1, 3 on a line and 0, 2, 3: distances 1, 3, 2 and 2, 3, 1, over their mean of 2."""
    student, teacher = (Outputs(torch.tensor(points)[:, None]) for points in ([0.0, 1.0, 3.0], [0.0, 2.0, 3.0]))
    terms = relational(student, teacher, torch.zeros(3, dtype=torch.int64))
    huber = 0.5 * 0.5**2  # pairs (0, 1) and (1, 2) are off by 0.5, (0, 2) by nothing
    assert terms["distance"].value.tolist() == pytest.approx([huber / 3, 2 * huber / 3, huber / 3])
    assert terms["angle"].value.tolist() == pytest.approx([0, 0, 0])  # they lie in the same order


def test_relational_angle_of_a_case_worked_by_hand():
    """A right angle at the first point against a straight line through it: the cosines are 0 and -1."""
    student = Outputs(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    teacher = Outputs(torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]))
    terms = relational(student, teacher, torch.zeros(3, dtype=torch.int64))
    off = 1 - math.cos(math.pi / 4)  # at the others the cosines are cos 45° and 1
    expected = [2 * 0.5 / 9, 2 * 0.5 * off**2 / 9, 2 * 0.5 * off**2 / 9]
    assert terms["angle"].value.tolist() == pytest.approx(expected, rel=1e-5)


def smooth_l1(x):
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def test_relational_kd_is_the_papers_equations_written_out():
    student, teacher, labels = batch(n=5)
    terms = relational(student, teacher, labels)
    distances, angles = [], []
    for outputs in (student, teacher):
        x = outputs.logits.numpy()
        d = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
        distances.append(d / np.mean([d[i, j] for i, j in itertools.permutations(range(5), 2)]))
        unit = [[(b - a) / np.linalg.norm(b - a) if (a != b).any() else 0 * a for b in x] for a in x]
        angles.append([[[u @ v for v in unit[i]] for u in unit[i]] for i in range(5)])
    for i in range(5):
        of_distance = np.mean([smooth_l1(a - b) for a, b in zip(distances[0][i], distances[1][i], strict=True)])
        of_angle = np.mean(
            [smooth_l1(a - b) for a, b in zip(np.ravel(angles[0][i]), np.ravel(angles[1][i]), strict=True)]
        )
        assert terms["distance"].value[i].item() == pytest.approx(of_distance, abs=1e-10)
        assert terms["angle"].value[i].item() == pytest.approx(of_angle, abs=1e-10)


def test_relations_do_not_change_when_the_teachers_space_is_turned_and_scaled():
    student, _, labels = batch()
    turn = torch.linalg.qr(logits(5, 5)).Q
    terms = relational(student, Outputs(3.0 * student.logits @ turn + 1.0), labels)
    assert terms["distance"].value.abs().max() < 1e-10
    assert terms["angle"].value.abs().max() < 1e-10


def test_relational_kd_compares_features_pooled_over_their_maps():
    student, teacher, labels = batch()
    ours, theirs = logits(7, 3, 2, 2), logits(7, 6, 2, 2)
    by_layer = relational(
        replace(student, features={"layer3": ours}), replace(teacher, features={"layer3": theirs}), labels
    )
    pooled = relational(Outputs(ours.mean(dim=(2, 3))), Outputs(theirs.mean(dim=(2, 3))), labels % 3)
    for name in ("distance", "angle"):
        torch.testing.assert_close(by_layer[name].value, pooled[name].value)


def test_samples_that_are_alike_have_a_finite_gradient():
    same = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
    terms = relational(Outputs(same), Outputs(logits(4, 3)), torch.zeros(4, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(sum(t.weight * t.value.sum() for t in terms.values()), same)
    assert torch.isfinite(gradient).all()


# born again


def test_born_again_is_the_divergence_from_the_teacher_and_reads_no_labels():
    student, teacher, labels = batch()
    (term,) = BAN["born_again"](student, teacher, labels, {}).values()
    q, p = (o.logits.softmax(dim=-1).numpy() for o in (student, teacher))
    np.testing.assert_allclose(term.value.numpy(), (p * np.log(p / q)).sum(axis=1), atol=1e-10)
    (other,) = BAN["born_again"](student, teacher, (labels + 1) % 5, {}).values()
    assert torch.equal(term.value, other.value)
    assert list(BAN["born_again_labels"](student, teacher, labels, {})) == ["ce", "kd"]


def test_confidence_weighted_is_the_papers_sum():
    """Equation 9: the cross-entropies of a batch, each times its share of the sum of the teacher's largest outputs."""
    student, teacher, labels = batch()
    (term,) = BAN["confidence_weighted"](student, teacher, labels, {}).values()
    largest = teacher.logits.softmax(dim=-1).amax(dim=-1)
    expected = (largest / largest.sum() * cross_entropy(student.logits, labels)).sum()
    assert term.value.mean().item() == pytest.approx(expected.item(), abs=1e-12)


# all of them


@pytest.mark.parametrize(
    ("variant", "hp"),
    [
        (DKD["decoupled_kd"], HP),
        (RKD["relational_kd"], WEIGHTS),
        *((BAN[name], {}) for name in ("born_again", "born_again_labels", "confidence_weighted")),
    ],
)
def test_an_example_packs_as_it_is(variant, hp):
    assert how_it_packs(variant, *batch(seeds=(3,)), hp) == ("packed", "")


@pytest.mark.parametrize(
    ("example", "arms"),
    [
        ("decoupled-kd", ["decoupled_kd"]),
        ("relational-kd", ["relational_kd"]),
        ("born-again", ["born_again", "born_again_labels", "confidence_weighted"]),
        ("token-kd", ["token_kd"]),
    ],
)
def test_every_term_of_an_example_is_alive(example, arms):
    study = adjust(load_study(EXAMPLES / f"{example}.yaml"), arms=arms)
    if study.family == "vision":
        study = replace(study, data=replace(study.data, train_limit=80), views=replace(study.views, count=1))
    else:
        study = replace(study, data=replace(study.data, n_samples=400, fresh_rows=0))
    found = check_study(study, 1, lambda line: None)
    for arm in arms:
        assert {term["status"] for term in found["arms"][arm]["terms"]} == {"alive"}
        assert found["arms"][arm]["runs"] in ("packed", "one by one", "as your trainable says")


def test_a_packed_seed_of_a_batchs_relations_trains_as_it_does_alone():
    arms = {"relational_kd": load_study(EXAMPLES / "relational-kd.yaml").arms["relational_kd"]}
    base = load_study(EXAMPLES / "born-again.yaml")
    baseline = base.arms["hard_labels"].default
    arm = replace(arms["relational_kd"], default={**baseline, **WEIGHTS}, space={})
    study = replace(
        base, arms={**base.arms, "relational_kd": arm}, data=replace(base.data, n_samples=300, fresh_rows=0)
    )
    pack = parameters(trained(study, (0, 1), epochs=1, arm="relational_kd"))
    for place in (0, 1):
        for name, value in parameters(trained(study, (place,), epochs=1, arm="relational_kd")).items():
            torch.testing.assert_close(pack[name][place], value[0], rtol=0, atol=1e-10)


# a trainable of one's own


@pytest.fixture(scope="module")
def reading():
    study = load_study(EXAMPLES / "token-kd.yaml")
    study = replace(study, data=replace(study.data, n_samples=300, n_features=15, fresh_rows=0))
    return study, context_of(study)


def test_a_sentence_is_its_remarkable_features_and_padding():
    words, mask = TOKENS["sentences"](torch.tensor([[0.1, 2.0, -0.6], [0.0, 0.0, 0.0], [-1.0, 1.0, 1.0]]))
    assert mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert [row[: sum(m)] for row, m in zip(words.tolist(), mask.tolist(), strict=True)] == [
        [0, 1 + 2 * 1 + 1, 1 + 2 * 2],
        [0],
        [0, 1, 1 + 2 * 1 + 1, 1 + 2 * 2 + 1],
    ]


def test_padding_leaks_into_nothing_that_a_word_says():
    words, mask = TOKENS["sentences"](logits(6, 8).float())
    model = TOKENS["Transformer"](8, 2, width=16, depth=1)
    assert (mask == 0).any()
    other = torch.where(mask == 1, words, 5)
    before, after = (TOKENS["outputs"](model, w, mask) for w in (words, other))
    torch.testing.assert_close(before.logits, after.logits)
    torch.testing.assert_close(before.features["tokens"][mask == 1], after.features["tokens"][mask == 1])


def test_token_kd_is_the_mean_over_the_words_alone():
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    tokens = [logits(2, 3, 4).requires_grad_() for _ in range(2)]
    student, teacher = (Outputs(t.mean(dim=1), {"tokens": t}, masks={"tokens": mask}) for t in tokens)
    terms = TOKENS["token_kd"](student, teacher, torch.tensor([0, 1]), {"temperature": 3.0, "token_weight": 2.0})
    q, p = ([[softmax(w / 3.0) for w in row] for row in t.detach().numpy()] for t in tokens)
    kl = [[9 * (p[i][j] * np.log(p[i][j] / q[i][j])).sum() for j in range(3)] for i in range(2)]
    expected = [(kl[0][0] + kl[0][1]) / 2, kl[1][0]]
    assert terms["token_kd"].value.tolist() == pytest.approx(expected, abs=1e-10)
    (gradient,) = torch.autograd.grad(terms["token_kd"].value.sum(), tokens[0])
    assert torch.count_nonzero(gradient[mask == 0]) == 0
    assert torch.count_nonzero(gradient[mask == 1]) == gradient[mask == 1].numel()


def test_two_seeds_of_a_trial_train_as_each_does_alone(reading):
    study, context = reading
    both = trained(study, (0, 1), epochs=1, arm="token_kd", context=context).state()
    for place in (0, 1):
        alone = trained(study, (place,), epochs=1, arm="token_kd", context=context).state()
        for name, value in alone.items():
            torch.testing.assert_close(both[f"{place}{name[1:]}"], value, rtol=0, atol=1e-12)


def test_a_student_of_ones_own_trainable_says_where_its_weights_are(tmp_path):
    small = {"data": {"n_samples": 300, "fresh_rows": 0}, "confirm_teachers": 1, "confirm_on": "train"}
    trainable = f"{(EXAMPLES / 'token_kd.py').absolute()}:train"
    run = confirmed_run(tmp_path, {"extends": "mlp-ensemble", "trainable": trainable, **small}, ["hard_labels"])
    with pytest.raises(BadInput, match=r"which only that can rebuild: its weights lie in .*\.safetensors"):
        load_student(run, "hard_labels")


def test_a_resumed_trial_of_ones_own_trainable_is_the_uninterrupted_one(reading):
    study, context = reading
    config = trial_config(study, "token_kd", study.arms["token_kd"].default, (0,), epochs=2)
    results = load_trainable(study)(config, context)
    state = next(results).state()
    second = next(results)
    (again,) = load_trainable(study)(config, replace(context, resume_epoch=1, resume=state))
    assert again.epoch == second.epoch == 2
    assert again.metrics == second.metrics
