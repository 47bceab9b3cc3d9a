"""trainables/binary.py against scikit-learn and scipy, plain loops, cases checked by hand, and seeds that diverged."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from trainables import evaluation
from trainables.binary import auc, best_threshold, binary_metrics, platt

OF_RANKING = {"auc", "average_precision", "ks"}
MEASURES = OF_RANKING | {"accuracy", "nll", "brier", "ece", "majority"}


def made(seeds=3, n=200, share=0.3, decimals=1, seed=0):
    """Logits (S, n) with ties, and labels of which they know something; both classes occur."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.concatenate([[0, 1], rng.random(n - 2) < share]).astype(int))
    return np.round(2 * (rng.standard_normal((seeds, n)) + labels - 0.8), decimals), labels


def odds(*probabilities):
    """Logits of one seed."""
    return special.logit(np.array([probabilities]))


def calibration_by_hand(p, labels, bins=15):
    """Sum over bins ((b - 1) / B, b / B] of |B| / n |mean p - share of positives|, for one seed."""
    total = 0.0
    for b in range(1, bins + 1):
        inside = [i for i in range(len(p)) if (b - 1) / bins < p[i] <= b / bins]
        if inside:
            total += len(inside) / len(p) * abs(p[inside].mean() - labels[inside].mean())
    return total


# auc


def test_auc_of_cases_that_can_be_checked_by_hand():
    labels = [1, 1, 0, 0]
    # 3 beats 2 and 1; 2 ties with 2 and beats 1
    assert auc([[3, 2, 2, 1], [1, 2, 3, 4], [4, 3, 2, 1], [0, 0, 0, 0]], labels).tolist() == [3.5 / 4, 0, 1, 0.5]


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 60), st.sampled_from([0, 1, 8]), st.sampled_from([np.float32, np.float64]))
def test_auc_is_scikit_learns_for_each_seed(seed, n, decimals, dtype):
    logits, labels = made(3, n, decimals=decimals, seed=seed)
    logits = logits.astype(dtype)
    found = auc(logits, labels)
    assert found.dtype == np.float64
    assert found == pytest.approx([sk.roc_auc_score(labels, x) for x in logits], abs=1e-12)


@pytest.mark.parametrize("label", [0, 1])
def test_auc_of_one_class_is_nan(label):
    assert np.isnan(auc(np.ones((2, 3)), [label] * 3)).all()


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_auc_of_a_seed_that_diverged_is_nan_and_the_others_are_as_without_it(broken):
    logits, labels = made()
    whole = auc(logits, labels)
    logits[1, 7] = broken
    found = auc(logits, labels)
    assert np.isnan(found).tolist() == [False, True, False]
    assert found[[0, 2]].tolist() == whole[[0, 2]].tolist()


# binary_metrics


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("split", "share"), [("test", 0.15), ("population", 0.7)])
def test_metrics_are_those_of_scikit_learn_and_scipy_for_each_seed(split, share):
    logits, labels = made(share=share)
    found = binary_metrics(logits, labels, split)
    assert found.keys() == {f"{split}_{name}" for name in MEASURES}
    for seed, (x, p) in enumerate(zip(logits, special.expit(logits), strict=True)):
        fpr, tpr, _ = sk.roc_curve(labels, x, drop_intermediate=False)
        expected = {
            "auc": sk.roc_auc_score(labels, x),
            "average_precision": sk.average_precision_score(labels, x),
            "ks": np.abs(tpr - fpr).max(),
            "accuracy": np.mean((p > 0.5) == labels),
            "nll": sk.log_loss(labels, p),
            "brier": sk.brier_score_loss(labels, p),
            "ece": calibration_by_hand(p, labels),
            "majority": max(np.mean(labels), 1 - np.mean(labels)),
        }
        assert {name: found[f"{split}_{name}"][seed] for name in MEASURES} == pytest.approx(expected, rel=1e-12)
        assert found[f"{split}_ks"][seed] == pytest.approx(stats.ks_2samp(x[labels == 1], x[labels == 0]).statistic)


def test_metrics_of_four_rows_by_hand():
    labels = [1, 0, 1, 0]
    found = binary_metrics(odds(0.9, 0.8, 0.6, 0.1), labels, "test", threshold=[0.85])
    expected = {
        "test_auc": 3 / 4,
        "test_average_precision": (1 + 2 / 3) / 2,
        "test_ks": 1 / 2,  # between 0.9 and 0.8, and between 0.6 and 0.1
        "test_accuracy": 3 / 4,
        "test_accuracy_at_threshold": 3 / 4,  # 0.8 is right now, and 0.6 no longer
        "test_nll": -math.log(0.9 * 0.2 * 0.6 * 0.9) / 4,
        "test_brier": (0.01 + 0.64 + 0.16 + 0.01) / 4,
        "test_ece": (0.1 + 0.8 + 0.4 + 0.1) / 4,  # every row alone in its bin
        "test_majority": 1 / 2,
    }
    assert {name: value for name, (value,) in found.items()} == pytest.approx(expected)


def test_values_are_floats_of_plain_python():
    logits, labels = made()
    found = binary_metrics(logits.astype(np.float32), labels, "test", threshold=best_threshold(logits, labels))
    assert {type(value) for values in found.values() for value in values} == {float}
    assert {len(values) for values in found.values()} == {3}


def test_calibration_error_adds_bins_up_and_within_a_bin_lets_rows_make_up_for_each_other():
    def error(logits, labels):
        return binary_metrics(logits, labels, "test")["test_ece"]

    assert error(odds(0.9, 0.9, 0.9, 0.9), [1, 1, 1, 0]) == pytest.approx([0.15])  # 3/4 are positive
    assert error(odds(0.25, 0.25, 0.25, 0.25), [0, 1, 0, 0]) == pytest.approx([0.0])
    assert error(odds(0.2, 0.9), [0, 1]) == pytest.approx([0.15])
    assert error(odds(0.61, 0.65), [0, 1]) == pytest.approx([0.13])  # both in (9/15, 10/15]: |0.63 - 1/2|
    assert error([[1000.0, -1000.0]], [1, 0]) == [0.0]
    assert error([[1000.0, -1000.0]], [0, 1]) == [1.0]


def test_calibration_error_is_not_the_one_of_confidence_in_the_predicted_class():
    # 0.1 and 0.9 are one bin of confidence and two of probability
    logits, labels = odds(0.1, 0.9), np.array([1, 1])
    both = torch.from_numpy(np.stack([np.zeros_like(logits), logits], axis=-1))
    confidence = evaluation.calibration_error(both, torch.from_numpy(labels).expand(1, 2))
    assert confidence.tolist() == pytest.approx([0.4])
    assert binary_metrics(logits, labels, "test")["test_ece"] == pytest.approx([0.5])


def test_accuracy_and_nll_are_those_of_two_classes_with_logits_zero_and_this():
    logits, labels = made(decimals=9)
    both = torch.from_numpy(np.stack([np.zeros_like(logits), logits], axis=-1))
    expected = evaluation.test_metrics(both, torch.from_numpy(labels), "test")
    found = binary_metrics(logits, labels, "test")
    for name in ("test_accuracy", "test_nll"):
        assert found[name] == pytest.approx(expected[name])


def test_nll_of_certainty_is_the_logit_where_wrong_and_nothing_where_right():
    found = binary_metrics([[1000.0, 1000.0], [-1000.0, 1000.0]], [1, 0], "test")
    assert found["test_nll"] == [500.0, 1000.0]


@pytest.mark.parametrize("label", [0, 1])
def test_a_split_of_one_class_has_no_ranking_and_warns_of_nothing(label):
    logits, _ = made()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = binary_metrics(logits, np.full(200, label), "test")
    undefined = {name for name, values in found.items() if np.isnan(values).any()}
    assert undefined == {f"test_{name}" for name in OF_RANKING}
    assert found["test_majority"] == [1.0] * 3
    assert found["test_accuracy"] == pytest.approx(np.mean((logits > 0) == label, axis=1))


def test_a_seed_that_diverged_has_nan_but_for_the_labels_own_share_and_leaves_the_others_alone():
    logits, labels = made()
    whole = binary_metrics(logits, labels, "test", threshold=[0.4] * 3)
    logits[1] = math.nan
    threshold = best_threshold(logits, labels)
    assert np.isnan(threshold).tolist() == [False, True, False]
    found = binary_metrics(logits, labels, "test", threshold=[0.4] * 3)
    for name, values in found.items():
        assert np.isnan(values[1]) == (name != "test_majority")
        assert [values[0], values[2]] == [whole[name][0], whole[name][2]]


def test_a_threshold_that_is_nan_has_nan_accuracy():
    logits, labels = made()
    found = binary_metrics(logits, labels, "test", threshold=[0.5, math.nan, 0.5])
    assert np.isnan(found["test_accuracy_at_threshold"]).tolist() == [False, True, False]
    assert np.isfinite(found["test_accuracy"]).all()


# best_threshold


@pytest.mark.parametrize(
    ("probabilities", "labels", "expected"),
    [
        ((0.1, 0.2, 0.4, 0.5), (0, 0, 1, 1), 0.3),
        ((0.1, 0.2, 0.5, 0.5), (0, 0, 1, 0), 0.35),  # 0.75 is right three times too
        ((0.2, 0.4), (1, 1), 0.1),
        ((0.6, 0.8), (0, 0), 0.9),
        ((0.1, 0.3, 0.4, 0.8), (1, 0, 1, 0), 0.35),  # 0.05 and 0.9 are right twice too
        ((0.3, 0.3), (0, 1), 0.65),  # 0.15 is right once too
    ],
)
def test_the_best_threshold_by_hand(probabilities, labels, expected):
    assert best_threshold(odds(*probabilities), labels) == pytest.approx([expected])


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 30), st.sampled_from([0, 1, 8]), st.floats(0.05, 0.95))
def test_no_threshold_is_more_accurate_and_none_as_accurate_is_nearer_to_a_half(seed, n, decimals, share):
    logits, labels = made(2, n, share, decimals, seed)
    found = best_threshold(logits, labels)
    reached = binary_metrics(logits, labels, "val", threshold=found)["val_accuracy_at_threshold"]
    for x, threshold, accuracy in zip(logits, found, reached, strict=True):
        p = special.expit(x)
        edges = sorted({0.0, 1.0, *p})
        middles = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
        by_middle = {t: np.mean((p > t) == labels) for t in middles}
        assert accuracy == max(by_middle.values())
        assert accuracy >= max(np.mean(labels == 1), np.mean(labels == 0), np.mean((p > 0.5) == labels))
        assert abs(threshold - 0.5) == min(abs(t - 0.5) for t, value in by_middle.items() if value == accuracy)


def test_a_threshold_among_probabilities_that_round_to_certainty_is_still_one():
    logits, labels = [[-1000.0, 1000.0, 50.0, 36.0]], [0, 1, 1, 0]
    found = best_threshold(logits, labels)
    assert 1 - 1e-15 < found[0] < 1
    assert binary_metrics(logits, labels, "val", found)["val_accuracy_at_threshold"] == [1.0]


# platt


def log_loss(slope, intercept, logits, labels):
    """Of Platt's targets, summed over rows."""
    m, k = labels.sum(), (1 - labels).sum()
    target = np.where(labels == 1, (m + 1) / (m + 2), 1 / (k + 2))
    z = slope * logits + intercept
    return np.sum(np.logaddexp(0, z) - target * z)


def test_platt_undoes_what_was_done_to_calibrated_logits():
    rng = np.random.default_rng(1)
    true = rng.normal(-1.5, 1.5, 200_000)
    labels = (rng.random(200_000) < special.expit(true)).astype(int)
    slope, intercept = platt(4 * true + 3, labels)
    assert (slope, intercept) == pytest.approx((1 / 4, -3 / 4), abs=0.01)


def test_platt_of_many_rows_is_scikit_learns_unpenalised_regression():
    logits, labels = made(1, 50_000, decimals=9)
    reference = LogisticRegression(C=np.inf, tol=1e-10).fit(logits[0][:, None], labels)
    assert platt(logits[0], labels) == pytest.approx((reference.coef_[0, 0], reference.intercept_[0]), rel=1e-3)


def test_platt_of_few_rows_is_scikit_learns_regression_on_the_smoothed_targets():
    logits, labels = made(1, 30)
    m, k = labels.sum(), (1 - labels).sum()
    target = np.where(labels == 1, (m + 1) / (m + 2), 1 / (k + 2))
    reference = LogisticRegression(C=np.inf, tol=1e-12, solver="newton-cholesky").fit(
        np.tile(logits[0], 2)[:, None], np.repeat([1, 0], 30), sample_weight=np.concatenate([target, 1 - target])
    )
    assert platt(logits[0], labels) == pytest.approx((reference.coef_[0, 0], reference.intercept_[0]), rel=1e-6)


def test_two_separable_rows_by_hand():
    # Targets 2/3 and 1/3 at logits 1 and -1: slope is their log-odds, log 2
    assert platt([1.0, -1.0], [1, 0]) == pytest.approx((math.log(2), 0), abs=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_classes_that_the_logit_separates_have_a_finite_calibration_that_is_the_best(scale, shift):
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1], 100)
    logits = np.where(labels == 1, 1, -1) * (1 + rng.random(200))
    slope, intercept = platt(scale * (logits + shift), labels)
    assert math.isfinite(slope)
    assert slope > 0
    p = special.expit(slope * scale * (logits + shift) + intercept)
    assert ((p > 0.5) == labels).all()
    own = slope * scale, intercept + slope * scale * shift
    reached = log_loss(*own, logits, labels)
    for a, b in ((1.01, 0), (0.99, 0), (1, 0.05), (1, -0.05)):
        assert reached < log_loss(a * own[0], own[1] + b, logits, labels)


def test_logits_that_say_nothing_get_the_share_of_positives_alone():
    slope, intercept = platt([0.1] * 10, [0] * 7 + [1] * 3)
    assert slope == 0
    assert special.expit(intercept) == pytest.approx((7 * (1 / 9) + 3 * (4 / 5)) / 10)


@pytest.mark.parametrize(("label", "probability"), [(0, 1 / 12), (1, 11 / 12)])
def test_one_class_gets_its_target_whatever_the_logit(label, probability):
    slope, intercept = platt(np.linspace(-2, 2, 10), [label] * 10)
    assert slope == pytest.approx(0, abs=1e-6)
    assert special.expit(intercept) == pytest.approx(probability)


def test_a_logit_that_ranks_the_wrong_way_gets_a_negative_slope():
    logits, labels = made(1)
    slope, intercept = platt(logits[0], labels)
    assert platt(-logits[0], labels) == pytest.approx((-slope, intercept))


# what is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: auc([1.0, 2.0], [0, 1]), r"\(2,\) and \(2,\)"),
        (lambda: auc([[1.0, 2.0]], [0, 1, 1]), r"\(1, 2\) and \(3,\)"),
        (lambda: auc(np.empty((1, 0)), []), "not be empty"),
        (lambda: auc([[1.0, 2.0]], [1, 2]), r"0 or 1, got \[1, 2\]"),
        (lambda: binary_metrics([[1.0, 2.0]], [[0, 1]], "test"), r"\(1, 2\) and \(1, 2\)"),
        (lambda: binary_metrics([[1.0, 2.0]], [0, 1], "test", threshold=[0.5, 0.5]), r"\(1,\), got shape \(2,\)"),
        (lambda: best_threshold([[1.0, 2.0]], [0.0, 0.5]), "0 or 1"),
        (lambda: platt([1.0, math.nan], [0, 1]), "finite"),
    ],
)
def test_errors_say_what_was_given(call, message):
    with pytest.raises(ValueError, match=message):
        call()
