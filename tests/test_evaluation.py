"""trainables/evaluation.py: every measure against loops in numpy, cases checked by hand, and a clock that is set."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainables import evaluation
from trainables.datasets import Rows
from trainables.evaluation import calibration_error, latency, noisy, occluded, robustness, validation_metrics


def made(seeds, n, classes, scale=2.0, seed=0):
    """Logits (S, n, classes) and labels (n,) which they know something of."""
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=n)
    logits = scale * (random.standard_normal((seeds, n, classes)) + np.eye(classes)[labels])
    return torch.from_numpy(logits), torch.from_numpy(labels)


def log_odds(*confidences):
    """Logits of two classes (1, n, 2): so confident are they of class 0."""
    p = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()], dim=-1).unsqueeze(0)


def error_of(logits, labels, bins=evaluation.CALIBRATION_BINS):
    return calibration_error(logits, torch.tensor(labels).expand(logits.shape[:-1]), bins).tolist()


def calibration_by_hand(logits, labels, bins):
    """Equation 3 of arXiv 1706.04599 for one seed: sum over bins ((m - 1) / M, m / M] of |B| / n |acc - conf|."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    total = 0.0
    for m in range(1, bins + 1):
        inside = [i for i in range(len(p)) if (m - 1) / bins < p[i].max() <= m / bins]
        if inside:
            accuracy = np.mean([p[i].argmax() == labels[i] for i in inside])
            total += len(inside) / len(p) * abs(accuracy - np.mean([p[i].max() for i in inside]))
    return total


# calibration


@pytest.mark.parametrize("bins", [1, 5, 15, 40])
@pytest.mark.parametrize(("classes", "scale"), [(2, 1.0), (10, 0.3), (10, 2.0), (4, 20.0)])
def test_calibration_error_equals_loops_over_bins(classes, scale, bins):
    logits, labels = made(3, 200, classes, scale)
    expected = [calibration_by_hand(one, labels.numpy(), bins) for one in logits.numpy()]
    assert calibration_error(logits, labels.expand(3, 200), bins).tolist() == pytest.approx(expected, rel=1e-12)


def test_calibration_error_of_cases_that_can_be_checked_by_hand():
    assert error_of(log_odds(0.9, 0.9, 0.9, 0.9), [0, 0, 0, 1]) == pytest.approx([0.15])  # 3/4 right, 9/10 sure
    assert error_of(log_odds(0.75, 0.75, 0.75, 0.75), [0, 1, 0, 0]) == pytest.approx([0.0])  # as sure as right
    assert error_of(log_odds(0.2), [1]) == pytest.approx([0.2])  # its confidence is that of the other class
    # two bins do not make up for each other: |1 - 0.6| and |0 - 0.9|, halved
    assert error_of(log_odds(0.6, 0.9), [0, 1]) == pytest.approx([0.65])
    # one bin does
    assert error_of(log_odds(0.6, 0.9), [0, 1], bins=1) == pytest.approx([0.25])


def test_a_confidence_between_two_bins_belongs_to_the_lower():
    # exactly 1/2 sure and right, and 0.9 sure and wrong: of (0, 1/2] and (1/2, 1] one each
    logits = torch.cat([torch.zeros(1, 1, 2, dtype=torch.float64), log_odds(0.9)], dim=1)
    assert error_of(logits, [0, 1], bins=2) == pytest.approx([(0.5 + 0.9) / 2])


def test_certainty_falls_into_the_last_bin():
    sure = torch.tensor([[[1000.0, 0.0], [1000.0, 0.0]]])
    assert error_of(sure, [0, 0]) == [0.0]
    assert error_of(sure, [1, 1]) == [1.0]
    assert error_of(sure, [0, 1]) == [0.5]


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(2, 6), st.floats(0.01, 50), st.integers(1, 20))
def test_calibration_error_is_at_least_the_gap_of_means_and_at_most_1(seed, n, classes, scale, bins):
    logits, labels = made(2, n, classes, scale, seed)
    found = calibration_error(logits, labels.expand(2, n), bins)
    confidence, predicted = logits.softmax(-1).max(-1)
    gap = (confidence.mean(-1) - (predicted == labels).double().mean(-1)).abs()
    assert (found >= gap - 1e-9).all()
    assert (found <= 1 + 1e-9).all()
    torch.testing.assert_close(calibration_error(logits, labels.expand(2, n), bins=1), gap)


# metrics


def metrics_by_hand(logits, labels):
    """Accuracy and negative log-likelihood of one seed."""
    right = [row.argmax() == label for row, label in zip(logits, labels, strict=True)]
    nll = [math.log(sum(math.exp(v) for v in row)) - row[label] for row, label in zip(logits, labels, strict=True)]
    return np.mean(right), np.mean(nll)


@pytest.mark.parametrize("split", ["test", "population"])
def test_test_metrics_are_those_of_loops_for_each_seed(split):
    logits, labels = made(3, 50, 4)
    found = evaluation.test_metrics(logits, labels, split)
    assert found.keys() == {f"{split}_accuracy", f"{split}_nll", f"{split}_ece"}
    for seed in range(3):
        accuracy, nll = metrics_by_hand(logits[seed].numpy(), labels.numpy())
        assert found[f"{split}_accuracy"][seed] == pytest.approx(accuracy)
        assert found[f"{split}_nll"][seed] == pytest.approx(nll)
        error = calibration_by_hand(logits[seed].numpy(), labels.numpy(), bins=15)
        assert found[f"{split}_ece"][seed] == pytest.approx(error)


def test_validation_metrics_are_those_of_loops_for_each_seed():
    logits, labels = made(3, 50, 4)
    by_hand = [metrics_by_hand(one.numpy(), labels.numpy()) for one in logits]
    found = validation_metrics(logits, labels)
    assert found.keys() == {"val_accuracy", "val_nll"}
    assert found["val_accuracy"] == pytest.approx([accuracy for accuracy, _ in by_hand])
    assert found["val_nll"] == pytest.approx([nll for _, nll in by_hand])


# disturbed images


def pictures(n, height=8, width=8, channels=3):
    """No pixel of them is the grey of an occlusion."""
    return np.random.default_rng(5).uniform(0.0, 0.4, (n, channels, height, width)).astype(np.float32)


@pytest.mark.parametrize("disturb", [noisy, occluded])
def test_a_disturbance_is_a_function_of_its_arguments_that_leaves_them_alone(disturb):
    images = pictures(20)
    before = images.copy()
    first = disturb(images, 0.25)
    np.random.seed(1)  # noqa: NPY002 - the global state is what must not matter
    assert np.array_equal(disturb(images, 0.25), first)
    assert np.array_equal(images, before)
    assert first.shape == images.shape
    assert first.dtype == np.float32
    assert first.min() >= 0
    assert first.max() <= 1


@pytest.mark.parametrize("deviation", evaluation.NOISE)
def test_noise_has_the_deviation_asked_for_and_no_two_pixels_share_it(deviation):
    grey = np.full((50, 3, 16, 16), 0.5, dtype=np.float32)
    added = noisy(grey, deviation) - grey
    inside = np.abs(added) < 0.5  # the rest was clipped
    assert inside.mean() > 0.98
    assert added.std() == pytest.approx(deviation, rel=0.03)
    assert added.mean() == pytest.approx(0, abs=0.03 * deviation)
    assert len(np.unique(added[inside])) > 0.9 * inside.sum()


def test_noise_is_clipped_at_black_and_white():
    for value, bound in ((0.0, np.minimum), (1.0, np.maximum)):
        flat = np.full((10, 1, 16, 16), value, dtype=np.float32)
        disturbed = noisy(flat, 0.2)
        assert (disturbed == value).mean() == pytest.approx(0.5, abs=0.05)
        assert bound(disturbed, value).tolist() == flat.tolist()


@pytest.mark.parametrize(
    ("height", "width", "side", "square"),
    [(8, 8, 0.25, (2, 2)), (8, 8, 0.5, (4, 4)), (32, 16, 0.25, (8, 4)), (5, 9, 0.01, (1, 1)), (6, 6, 1.0, (6, 6))],
)
def test_an_occlusion_is_one_grey_rectangle_and_touches_nothing_else(height, width, side, square):
    images = pictures(30, height, width)
    for before, after in zip(images, occluded(images, side), strict=True):
        grey = after == np.float32(0.5)
        assert (grey == grey[0]).all()  # the same place in every channel
        down, across = np.nonzero(grey[0])
        assert (np.ptp(down) + 1, np.ptp(across) + 1) == square
        assert grey[0].sum() == square[0] * square[1]
        assert np.array_equal(after[~grey], before[~grey])


def test_occlusions_fall_anywhere_inside():
    corners = [tuple(np.argwhere(image[0] == 0.5)[0]) for image in occluded(pictures(300, 5, 4), 0.5)]
    assert set(corners) == {(i, j) for i in range(4) for j in range(3)}  # 2x2 in 5x4: round(2.5) is 2


# robustness

ROWS = Rows(
    np.random.default_rng(6).integers(256, size=(40, 3, 8, 8), dtype=np.uint8),
    np.random.default_rng(7).integers(4, size=40),
)
DISTURBANCES = {
    "test_accuracy_noise_0.05": (noisy, 0.05),
    "test_accuracy_noise_0.1": (noisy, 0.1),
    "test_accuracy_noise_0.2": (noisy, 0.2),
    "test_accuracy_occlusion_0.25": (occluded, 0.25),
    "test_accuracy_occlusion_0.5": (occluded, 0.5),
}


def always(*answers, n):
    """Logits of one seed for each row of answers, (S, n, 4)."""
    return torch.stack([torch.eye(4)[torch.as_tensor(a).expand(n)] for a in answers])


@pytest.mark.parametrize("name", DISTURBANCES)
def test_robustness_names_the_disturbance_that_was_shown(name):
    disturb, strength = DISTURBANCES[name]
    shown = disturb((ROWS.x / 255).astype(np.float32), strength)

    def logits(x):
        """The first seed knows the labels of this disturbance only; the second always says class 1."""
        knows = ROWS.y if x.shape == shown.shape and np.allclose(x, shown, atol=1e-6) else (ROWS.y + 1) % 4
        return always(knows, 1, n=len(x))

    found = robustness(logits, ROWS)
    assert found.keys() == DISTURBANCES.keys()
    for other, values in found.items():
        assert values == [float(other == name), pytest.approx(np.mean(ROWS.y == 1))]


def test_robustness_is_judged_on_rows_spread_evenly_since_a_folders_are_sorted_by_class(monkeypatch):
    monkeypatch.setattr(evaluation, "PERTURBED_ROWS", 5)
    labels = np.repeat(np.arange(5), 4)
    rows = Rows(np.zeros((20, 1, 4, 4), dtype=np.uint8), labels)
    found = robustness(lambda x: torch.eye(5)[: len(x)].unsqueeze(0), rows)  # right only for one row of each class
    assert set(map(tuple, found.values())) == {(1.0,)}


# speed


def test_latency_is_positive_for_a_single_image_and_for_a_batch():
    head = torch.randn(3 * 8 * 8, 4, generator=torch.Generator().manual_seed(0))
    found = latency(lambda x: torch.from_numpy(x).float().flatten(1) @ head, ROWS, repeats=3)
    assert found.keys() == {"ms_per_sample_batch_1", "ms_per_sample_batch_128"}
    assert all(0 < ms < 1000 for ms in found.values())


def test_latency_is_the_median_after_the_warm_up_in_milliseconds_per_sample(monkeypatch):
    clock, seconds, shown = [0.0], iter([100.0, 1.0, 9.0, 2.0, 300.0, 64.0, 32.0, 512.0]), []
    monkeypatch.setattr(evaluation, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def logits(x):
        shown.append(x)
        clock[0] += next(seconds)
        return torch.zeros(1, len(x), 4)

    assert latency(logits, ROWS, repeats=3) == {"ms_per_sample_batch_1": 2000.0, "ms_per_sample_batch_128": 500.0}
    assert [x.shape for x in shown] == [(1, 3, 8, 8)] * 4 + [(128, 3, 8, 8)] * 4
    assert all(x.dtype == np.uint8 for x in shown)
    assert np.array_equal(shown[-1][:40], ROWS.x)  # real images, again from the first where there are fewer
    assert np.array_equal(shown[-1][40:80], ROWS.x)
