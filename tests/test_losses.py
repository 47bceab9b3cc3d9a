"""trainables/losses.py against REFERENCE.md's golden values, PyTorch's own losses and properties."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from trainables.losses import cross_entropy, hinton_kd, is_finite

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
