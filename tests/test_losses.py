"""trainables/losses.py against REFERENCE.md's golden values, second implementations and properties."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from trainables.losses import (
    attention_distance,
    attention_map,
    attention_transfer,
    bernoulli_kl,
    binary_cross_entropy,
    cross_entropy,
    feature_alignment,
    gated_mix,
    hinton_kd,
    is_finite,
    one_sided_kl,
    same_size,
    softened,
)

STUDENT = torch.tensor([[1, 2, 3], [0, 0, 0]], dtype=torch.float64)
TEACHER = torch.tensor([[3, 2, 1], [2, 0, -2]], dtype=torch.float64)
LABELS = torch.tensor([2, 0])


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classes(*shape, below, seed=0):
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


# golden values


@pytest.mark.parametrize(
    ("temperature", "golden"), [(1, 0.9039878049094144), (3, 1.2543744313431198), (4, 1.2871825716071537)]
)
def test_hinton_kd_golden(temperature, golden):
    assert hinton_kd(STUDENT, TEACHER, temperature).mean().item() == pytest.approx(golden, abs=1e-6)


def test_cross_entropy_golden():
    assert cross_entropy(STUDENT, LABELS).mean().item() == pytest.approx(0.7531091265562451, abs=1e-6)


def test_the_articles_loss_golden():
    loss = 0.7 * hinton_kd(STUDENT, TEACHER, 3.0) + 0.3 * cross_entropy(STUDENT, LABELS)
    assert loss.mean().item() == pytest.approx(1.1039948399070574, abs=1e-6)


# against PyTorch


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 20.0])
def test_hinton_kd_equals_kl_div_with_batchmean(temperature):
    student, teacher = 3 * normal(16, 5), 3 * normal(16, 5, seed=1)
    log_p, p = F.log_softmax(student / temperature, dim=-1), F.softmax(teacher / temperature, dim=-1)
    reference = F.kl_div(log_p, p, reduction="batchmean") * temperature**2
    torch.testing.assert_close(hinton_kd(student, teacher, temperature).mean(), reference)


@pytest.mark.parametrize("smoothing", [0.0, 0.02, 0.1, 0.5, 1.0])
def test_cross_entropy_equals_pytorchs_with_label_smoothing(smoothing):
    logits, labels = 3 * normal(16, 5), classes(16, below=5)
    reference = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(cross_entropy(logits, labels, smoothing), reference)


# shapes


@pytest.mark.parametrize("lead", [(3,), (2, 3)])
def test_a_stacked_call_equals_single_calls(lead):
    student, teacher, labels = normal(*lead, 7, 4), normal(*lead, 7, 4, seed=1), classes(*lead, 7, below=4)
    stacked = {
        "kd": hinton_kd(student, teacher, 3.0),
        "ce": cross_entropy(student, labels),
        "smoothed": cross_entropy(student, labels, 0.1),
    }
    for place in torch.cartesian_prod(*map(torch.arange, lead)).reshape(-1, len(lead)).tolist():
        s, t, y = (tensor[tuple(place)] for tensor in (student, teacher, labels))
        single = {"kd": hinton_kd(s, t, 3.0), "ce": cross_entropy(s, y), "smoothed": cross_entropy(s, y, 0.1)}
        for name, value in single.items():
            assert value.shape == (7,)
            torch.testing.assert_close(stacked[name][tuple(place)], value)


def test_one_teacher_serves_a_pack_of_students():
    student, teacher = normal(3, 7, 4), normal(7, 4, seed=1)
    torch.testing.assert_close(hinton_kd(student, teacher, 2.0)[1], hinton_kd(student[1], teacher, 2.0))


# gradients


def test_gradients_reach_the_student_and_not_the_teacher():
    student, teacher = normal(7, 4).requires_grad_(), normal(7, 4, seed=1)
    hinton_kd(student, teacher, 3.0).sum().backward()
    # T² KL's gradient on the student's logits is T (softmax(s / T) - softmax(t / T))
    torch.testing.assert_close(student.grad, 3.0 * (F.softmax(student / 3, -1) - F.softmax(teacher / 3, -1)).detach())
    assert teacher.grad is None


# properties

rows_of_logits = st.integers(2, 6).flatmap(
    lambda width: st.lists(st.lists(st.floats(-50, 50), min_size=width, max_size=width), min_size=2, max_size=2)
)


@given(rows_of_logits, st.floats(0.5, 20))
def test_kd_is_never_negative_and_zero_where_the_logits_agree(logits, temperature):
    student, teacher = torch.tensor(logits, dtype=torch.float64)
    assert hinton_kd(student, teacher, temperature) >= -1e-9
    assert hinton_kd(student, student, temperature) == 0
    assert hinton_kd(student + 7.0, student, temperature).item() == pytest.approx(0, abs=1e-9)


def test_is_finite_judges_each_leading_row():
    values = torch.ones(4, 2, 2)
    values[1, 0, 1], values[2, 1, 0] = math.nan, -math.inf
    assert is_finite(values).tolist() == [True, False, False, True]


# attention transfer: golden values of REFERENCE.md

STUDENT_MAPS = torch.tensor([[[[1, 2], [3, 4]], [[0, 1], [0, 1]]]], dtype=torch.float64)
TEACHER_MAPS = torch.tensor([[[[4, 3], [2, 1]], [[1, 0], [1, 0]], [[2, 2], [2, 2]]]], dtype=torch.float64)
FORMS = ("code", "sum", "paper")


@pytest.mark.parametrize(
    ("form", "golden"),
    [("code", 0.2633718322097463), ("sum", 4 * 0.2633718322097463), ("paper", 1.0263953082701545 / 2)],
)
def test_attention_transfer_golden(form, golden):
    value = attention_transfer(STUDENT_MAPS, TEACHER_MAPS, form)
    assert value.shape == (1,)
    assert value.item() == pytest.approx(golden, abs=1e-6)


def test_an_attention_map_is_the_sum_of_squares_over_channels():
    assert attention_map(STUDENT_MAPS).tolist() == [[[1.0, 5.0], [9.0, 17.0]]]


# attention transfer: a second implementation, loops in numpy; and the authors' code


def pooled(maps, size):
    """Adaptive average pooling of a (height, width) array: windows from floor(i n / m) to ceil((i + 1) n / m)."""
    (height, width), (rows, columns) = maps.shape, size
    out = np.empty(size)
    for i, j in itertools.product(range(rows), range(columns)):
        down = slice(i * height // rows, -(-(i + 1) * height // rows))
        across = slice(j * width // columns, -(-(j + 1) * width // columns))
        out[i, j] = maps[down, across].mean()
    return out


def attention_by_hand(student, teacher, form, mask=None):
    """One sample: (channels, height, width) each, mask (h, w) or None."""
    maps = [sum(channel**2 for channel in f) for f in (student.numpy(), teacher.numpy())]
    size = (min(m.shape[0] for m in maps), min(m.shape[1] for m in maps))
    q_s, q_t = (m / np.sqrt((m**2).sum()) for m in (pooled(m, size) for m in maps))
    weight = np.ones(size) if mask is None else mask.numpy()
    mean = (weight * (q_s - q_t) ** 2).sum() / weight.sum()
    total = size[0] * size[1] * mean
    return {"code": mean, "sum": total, "paper": 0.5 * np.sqrt(total)}[form]


SIZES = [((4, 4), (4, 4)), ((8, 8), (4, 4)), ((4, 4), (8, 8)), ((4, 6), (3, 4)), ((7, 3), (5, 4))]


def maps_of(sizes, *lead, requires_grad=False):
    """Student's and teacher's features with 3 and 5 channels, and a mask with zeros at the smaller size."""
    student, teacher = (
        normal(*lead, c, *size, seed=c).requires_grad_(requires_grad) for c, size in zip((3, 5), sizes, strict=True)
    )
    height, width = map(min, *sizes)
    mask = normal(*lead, height, width, seed=7).relu()
    mask[..., 0, 0] = 0.5
    return student, teacher, mask


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_attention_transfer_equals_loops_over_the_smaller_map(sizes, form, masked):
    student, teacher, mask = maps_of(sizes, 3)
    value = attention_transfer(student, teacher, form, mask if masked else None)
    by_hand = [
        attention_by_hand(s, t, form, m if masked else None) for s, t, m in zip(student, teacher, mask, strict=True)
    ]
    assert value.tolist() == pytest.approx(by_hand, rel=1e-12)


def test_attention_transfer_equals_the_authors_code():
    # github.com/szagoruyko/attention-transfer, utils.py
    def at(x):
        return F.normalize(x.pow(2).mean(1).view(x.size(0), -1))

    student, teacher, _ = maps_of(((6, 5), (6, 5)), 4)
    torch.testing.assert_close(
        attention_transfer(student, teacher).mean(), (at(student) - at(teacher)).pow(2).mean(), rtol=1e-12, atol=0
    )


def test_a_teachers_kept_map_serves_as_well_as_its_features_at_any_scale():
    student, teacher, mask = maps_of(((4, 4), (4, 4)), 3)
    kept = F.normalize(attention_map(teacher).flatten(1)).reshape(3, 4, 4)
    for form in FORMS:
        torch.testing.assert_close(
            attention_distance(attention_map(student), kept, form, mask),
            attention_transfer(10 * student, 0.1 * teacher, form, mask),
        )


@pytest.mark.parametrize("lead", [(3,), (2, 3)])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_stacked_maps_equal_single_maps(lead, masked):
    student, teacher, mask = maps_of(((8, 6), (4, 3)), *lead, 2)
    regressed = normal(*lead, 2, 5, 8, 6)
    given = mask if masked else None
    stacked = [attention_transfer(student, teacher, form, given) for form in FORMS]
    stacked.append(feature_alignment(regressed, teacher, given))
    for place in itertools.product(*map(range, lead)):
        s, t, m, r = (tensor[place] for tensor in (student, teacher, mask, regressed))
        single = [attention_transfer(s, t, form, m if masked else None) for form in FORMS]
        single.append(feature_alignment(r, t, m if masked else None))
        for whole, alone in zip(stacked, single, strict=True):
            assert alone.shape == (2,)
            torch.testing.assert_close(whole[place], alone)


def test_one_teacher_and_one_mask_serve_a_stack_of_students():
    student, _, _ = maps_of(((4, 4), (4, 4)), 3, 2)
    _, teacher, mask = maps_of(((4, 4), (4, 4)), 2)
    torch.testing.assert_close(
        attention_transfer(student, teacher, "sum", mask)[1], attention_transfer(student[1], teacher, "sum", mask)
    )
    torch.testing.assert_close(
        feature_alignment(student, teacher[:, :3], mask)[1], feature_alignment(student[1], teacher[:, :3], mask)
    )


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_same_size_pools_each_side_to_the_smaller(sizes):
    a, b, _ = maps_of(sizes, 2)
    new = tuple(map(min, *sizes))
    for before, after in zip((a, b), same_size(a, b), strict=True):
        expected = [[pooled(channel, new) for channel in image] for image in before.numpy()]
        torch.testing.assert_close(after, torch.from_numpy(np.array(expected)))


@pytest.mark.parametrize("form", ["mean", "Code", ""])
def test_an_unknown_form_is_refused_with_those_allowed(form):
    with pytest.raises(ValueError, match=f"code, sum or paper, got {form!r}"):
        attention_transfer(STUDENT_MAPS, TEACHER_MAPS, form)


# masks


@pytest.mark.parametrize("form", [*FORMS, "alignment"])
def test_a_mask_of_one_value_changes_nothing(form):
    student, teacher, mask = maps_of(((8, 8), (4, 4)), 3)
    for value in (1.0, 0.25):
        even = torch.full_like(mask, value)
        if form == "alignment":
            whole, masked = (feature_alignment(normal(3, 5, 8, 8), teacher, m) for m in (None, even))
        else:
            whole, masked = (attention_transfer(student, teacher, form, m) for m in (None, even))
        torch.testing.assert_close(masked, whole, rtol=1e-12, atol=0)


def test_the_mask_sees_how_much_attention_lies_inside_it():
    # Inside the mask both maps have one shape, so that normalising there would leave no difference: but the student
    # has 3/5 of its attention's norm inside, the teacher all of it.
    student, teacher = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[1.0, 0.0]]])
    mask = torch.tensor([[[1.0, 0.0]]])
    for form, expected in {"code": 0.16, "sum": 0.32, "paper": 0.5 * math.sqrt(0.32)}.items():
        assert attention_distance(student, teacher, form, mask).item() == pytest.approx(expected, rel=1e-6)


# feature alignment


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_feature_alignment_is_the_weighted_mean_over_places_and_channels(sizes, masked):
    _, teacher, mask = maps_of(sizes, 3)
    regressed = normal(3, 5, *sizes[0], seed=2)
    new, by_hand = tuple(map(min, *sizes)), []
    for r, t, m in zip(regressed.numpy(), teacher.numpy(), mask.numpy(), strict=True):
        weight = m if masked else np.ones(new)
        squared = [(pooled(tc, new) - pooled(rc, new)) ** 2 for rc, tc in zip(r, t, strict=True)]
        by_hand.append(sum((weight * d).sum() for d in squared) / (5 * weight.sum()))
    value = feature_alignment(regressed, teacher, mask if masked else None)
    assert value.tolist() == pytest.approx(by_hand, rel=1e-12)


def test_feature_alignment_of_an_easy_case():
    regressed, teacher = torch.zeros(1, 2, 1, 2), torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]])
    assert feature_alignment(regressed, teacher).tolist() == [(1 + 4 + 9 + 0) / 4]
    assert feature_alignment(regressed, teacher, torch.tensor([[[1.0, 0.0]]])).tolist() == [(1 + 9) / 2]


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_alignment_teaches_both_the_regressor_and_the_features(masked):
    student, teacher, mask = maps_of(((8, 8), (4, 4)), 2)
    student.requires_grad_()
    regressor = torch.nn.Conv2d(3, 5, kernel_size=1, dtype=torch.float64)
    feature_alignment(regressor(student), teacher, mask if masked else None).sum().backward()
    for tensor in (student, regressor.weight, regressor.bias):
        assert (tensor.grad.abs() > 0).any()
    # outside the mask nothing is learned: each place of the mask is a 2x2 square of the student's
    outside = (mask == 0).repeat_interleave(2, -1).repeat_interleave(2, -2).unsqueeze(1).expand_as(student)
    assert outside.any()
    assert bool((student.grad[outside] == 0).all()) == masked


# gradients of both


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", [((3, 3), (3, 3)), ((4, 4), (2, 2)), ((2, 2), (4, 3))], ids=str)
def test_attention_transfers_gradient_is_that_of_finite_differences(sizes, form, masked):
    student, teacher, mask = maps_of(sizes, 2, requires_grad=True)
    given = mask if masked else None
    assert torch.autograd.gradcheck(lambda s, t: attention_transfer(s, t, form, given), (student, teacher))


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_feature_alignments_gradient_is_that_of_finite_differences(masked):
    _, teacher, mask = maps_of(((4, 4), (2, 2)), 2)
    given, regressed = mask if masked else None, normal(2, 5, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda r: feature_alignment(r, teacher, given), regressed)


def gradient_of(student, teacher, form, mask=None):
    student = student.clone().requires_grad_()
    value = attention_transfer(student, teacher, form, mask)
    value.sum().backward()
    return value.detach(), student.grad


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS)
def test_a_map_of_one_pixel_teaches_exactly_nothing(form, dtype, masked):
    student, teacher = normal(256, 8, 1, 1).to(dtype), normal(256, 3, 1, 1, seed=1).to(dtype)
    value, gradient = gradient_of(student, teacher, form, torch.ones(256, 1, 1, dtype=dtype) if masked else None)
    assert torch.equal(value, torch.zeros_like(value))
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("form", FORMS)
def test_equal_maps_have_distance_and_gradient_zero(form, masked):
    student, _, mask = maps_of(((4, 4), (4, 4)), 3)
    value, gradient = gradient_of(student, student, form, mask if masked else None)
    assert torch.equal(value, torch.zeros_like(value))
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("form", FORMS)
def test_one_equal_map_does_not_spoil_the_gradient_of_the_others(form):
    student, teacher, _ = maps_of(((4, 4), (4, 4)), 3)
    _, alone = gradient_of(student[1:], teacher[1:], form)
    _, beside = gradient_of(student, torch.cat([F.pad(student[:1], (0, 0, 0, 0, 0, 2)), teacher[1:]]), form)
    assert (beside[0] == 0).all()
    torch.testing.assert_close(beside[1:], alone)


@pytest.mark.parametrize("silent", ["student", "teacher", "both"])
@pytest.mark.parametrize("form", FORMS)
def test_a_map_of_zeros_has_a_finite_gradient(form, silent):
    student, teacher, _ = maps_of(((4, 4), (4, 4)), 2)
    if silent in ("student", "both"):
        student[0] = 0
    if silent in ("teacher", "both"):
        teacher[0] = 0
    value, gradient = gradient_of(student, teacher, form)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()
    # a zero map is at distance 1 from a normalised one, and at 0 from another zero map
    far = {"code": 1 / 16, "sum": 1.0, "paper": 0.5}[form]
    assert value[0].item() == pytest.approx(0 if silent == "both" else far)
    assert (gradient[1].abs() > 0).any()


# properties of attention transfer


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 5))
def test_attention_distance_is_symmetric_and_bounded_by_that_of_orthogonal_maps(seed, height, width):
    a, b = normal(2, 3, height, width, seed=seed), normal(2, 3, height, width, seed=seed + 1)
    for form, most in {"sum": 2.0, "code": 2.0 / (height * width), "paper": math.sqrt(2) / 2}.items():
        value = attention_transfer(a, b, form)
        torch.testing.assert_close(value, attention_transfer(b, a, form))
        assert ((value >= 0) & (value <= most + 1e-12)).all()


def test_attention_in_disjoint_places_is_as_far_as_can_be():
    left, right = torch.tensor([[[5.0, 0.0]]]), torch.tensor([[[0.0, 0.1]]])
    for form, most in {"sum": 2.0, "code": 1.0, "paper": math.sqrt(2) / 2}.items():
        assert attention_distance(left, right, form).item() == pytest.approx(most)


# tables: probabilities of class 1 (REFERENCE.md's golden values are in test_table_variants.py)

shares = st.floats(0, 1)


def probabilities(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_binary_cross_entropy_equals_pytorchs():
    p, labels = probabilities(4, 9), classes(4, 9, below=2)
    reference = F.binary_cross_entropy(p, labels.double(), reduction="none")
    torch.testing.assert_close(binary_cross_entropy(p, labels), reference)


def test_bernoulli_kl_equals_pytorchs():
    p, q = probabilities(4, 9), probabilities(4, 9, seed=1)
    reference = torch.distributions.kl_divergence(torch.distributions.Bernoulli(p), torch.distributions.Bernoulli(q))
    torch.testing.assert_close(bernoulli_kl(p, q), reference)


@given(shares, shares)
def test_bernoulli_kl_is_never_negative_and_zero_only_where_both_agree(p, q):
    p, q = (torch.tensor(x, dtype=torch.float64) for x in (p, q))
    assert bernoulli_kl(p, q) >= -1e-12
    assert bernoulli_kl(p, p) == 0
    if (p - q).abs() > 1e-3:
        assert bernoulli_kl(p, q) > 1e-7


def test_the_articles_kl_is_half_of_one_and_can_be_negative():
    p, q = torch.tensor([0.2, 0.8]), torch.tensor([0.8, 0.2])
    assert one_sided_kl(p, q).tolist() == pytest.approx([0.2 * math.log(1 / 4), 0.8 * math.log(4)], rel=1e-5)
    assert one_sided_kl(p, q)[0] < 0
    assert one_sided_kl(p, p).tolist() == [0, 0]
    p, q = (0.1 + 0.8 * probabilities(9, seed=seed) for seed in (0, 1))
    torch.testing.assert_close(one_sided_kl(p, q) + one_sided_kl(1 - p, 1 - q), bernoulli_kl(p, q), atol=3e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certainty_costs_a_finite_price_and_has_a_finite_gradient(dtype):
    certain = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=dtype)
    labels = torch.tensor([0, 1, 1, 0])
    for loss in (binary_cross_entropy, lambda q, y: bernoulli_kl(y.to(q), q), lambda q, y: one_sided_kl(y.to(q), q)):
        q = certain.clone().requires_grad_()
        value = loss(q, labels)
        value.sum().backward()
        assert torch.isfinite(value).all()
        assert torch.isfinite(q.grad).all()
    assert binary_cross_entropy(certain, labels)[:2].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert binary_cross_entropy(certain, labels)[2:].tolist() == pytest.approx([-math.log(1e-7)] * 2, rel=0.02)


@given(st.floats(0.001, 0.999), st.floats(0.25, 10))
def test_softened_is_the_root_of_the_probability_renormalised(p, temperature):
    a, b = p ** (1 / temperature), (1 - p) ** (1 / temperature)
    logit = torch.logit(torch.tensor(p, dtype=torch.float64))
    assert softened(logit, temperature).item() == pytest.approx(a / (a + b), rel=1e-9)


def test_softened_leaves_a_half_and_a_temperature_of_1_alone():
    logits = normal(9)
    torch.testing.assert_close(softened(logits, 1.0), logits.sigmoid())
    assert softened(torch.zeros(1), 7.0).item() == 0.5
    assert ((softened(logits, 3.0) - 0.5).abs() < (logits.sigmoid() - 0.5).abs()).all()


@given(st.lists(st.tuples(shares, st.floats(-5, 5)), min_size=1, max_size=5))
def test_a_gated_mix_lies_between_the_teachers(said):
    probs, gate = (torch.tensor(x, dtype=torch.float64) for x in zip(*said, strict=True))
    mix = gated_mix(gate.softmax(dim=-1), probs)
    assert probs.min() - 1e-12 <= mix <= probs.max() + 1e-12


def test_a_gate_on_one_teacher_takes_that_teacher():
    probs, whom = probabilities(3, 7, 4), classes(3, 7, below=4)
    assert torch.equal(gated_mix(F.one_hot(whom, 4).double(), probs), probs.gather(-1, whom.unsqueeze(-1)).squeeze(-1))
