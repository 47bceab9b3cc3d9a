"""Classical models as teachers: rows are labelled by models that did not see them, and calibrated; what is stored is
no pickle and says the same, bit for bit, when it is read again."""

import hashlib
import importlib.util
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import skops.io
import torch
from scipy.special import expit
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import StratifiedKFold

from trainables.cache import cache_folder
from trainables.datasets import BadData, Column, Rows
from trainables.encoding import Encoder
from trainables.streams import Streams
from trainables.teachers import table_models
from trainables.teachers.table_models import MODELS, build, is_built, refuse_uninstalled

COLUMNS = (*(Column(name) for name in "abcd"), Column("colour", ("red", "green", "blue", "grey")))
SPEC = {"models": ("xgboost", "random_forest"), "tuned": False, "folds": 5, "predictions": "out_of_fold"}
STREAMS = Streams("table-models-test")
ROWS = 1200
XGBOOST, FOREST = 0, 1


def customers(n, seed, signal=1.0):
    """Four numbers with gaps and a category with gaps; signal 0: the label has nothing to do with them."""
    rng = np.random.default_rng(seed)
    x = np.column_stack([rng.normal(size=(n, 4)), rng.integers(0, 4, n)])
    score = 1.2 * x[:, 0] - x[:, 1] + x[:, 2] * x[:, 3] + 1.5 * (x[:, 4] == 1) - 0.5
    x[rng.random(x.shape) < 0.05] = np.nan
    return Rows(x, (rng.random(n) < expit(signal * score)).astype(np.int64))


def of(*models, **other):
    return {**SPEC, "models": models, **other}


def auc(rows, logits):
    return roc_auc_score(rows.y, logits)


def nll(rows, logits):
    return log_loss(rows.y, expit(logits.astype(np.float64)))


def said(teachers, rows):
    """A digest of all that they say, on the rows fitted on and on others."""
    arrays = (teachers.out_of_fold, teachers.in_sample, teachers.logits(rows.x))
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()


def raw(teachers):
    """Out of fold and not calibrated, to float32's precision."""
    slope, intercept = teachers.platt.astype(np.float64).T
    return (teachers.out_of_fold - intercept) / slope


def fold_of_row(fit, folds=5, teacher_set=0):
    """The fold that each row is held out in: what the streams say, not what the module does."""
    shuffle = STREAMS.number("folds", teacher_set) % 2**32
    found = np.empty(len(fit), dtype=int)
    for fold, (_, held_out) in enumerate(
        StratifiedKFold(folds, shuffle=True, random_state=shuffle).split(fit.x, fit.y)
    ):
        found[held_out] = fold
    return found


@pytest.fixture(scope="module")
def fit():
    return customers(ROWS, seed=1)


@pytest.fixture(scope="module")
def fresh():
    return customers(10_000, seed=2)


@pytest.fixture(scope="module")
def teachers(fit):
    return build(SPEC, COLUMNS, fit, 0, STREAMS)


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTUNE_CACHE", str(tmp_path))
    return tmp_path


# what is said of rows


def test_what_is_said_in_sample_is_too_good_and_out_of_fold_is_not(teachers, fit, fresh):
    elsewhere = teachers.logits(fresh.x)
    assert auc(fit, teachers.in_sample[:, FOREST]) > 0.97
    for m in (XGBOOST, FOREST):
        assert auc(fit, teachers.in_sample[:, m]) > auc(fresh, elsewhere[:, m]) + 0.1
        assert auc(fit, teachers.out_of_fold[:, m]) == pytest.approx(auc(fresh, elsewhere[:, m]), abs=0.03)
        assert auc(fresh, elsewhere[:, m]) > 0.75


def test_labels_without_signal_are_not_told_out_of_fold():
    noise = customers(800, seed=3, signal=0.0)
    teachers = build(SPEC, COLUMNS, noise, 0, STREAMS)
    for m in (XGBOOST, FOREST):
        assert auc(noise, teachers.in_sample[:, m]) > 0.97
        assert auc(noise, teachers.out_of_fold[:, m]) == pytest.approx(0.5, abs=0.06)


def test_calibration_does_not_turn_models_around_that_know_nothing():
    """Such models lean away from the labels of rows left out; a negative slope would tell them."""
    logits = np.random.default_rng(0).normal(size=300)
    labels = (np.random.default_rng(1).random(300) < expit(-logits)).astype(np.int64)
    slope, intercept = table_models._calibration(logits, labels)
    assert slope == table_models.FLAT
    assert expit(slope * logits + intercept).mean() == pytest.approx(labels.mean(), abs=1e-3)


def test_a_rows_own_label_does_not_reach_the_models_that_label_it(teachers, fit):
    """Two neighbours of one fold that exchange their labels leave all folds, and all that is said in theirs, alone."""
    folds = fold_of_row(fit)
    pairs = np.flatnonzero((folds[1:] == folds[:-1]) & (fit.y[1:] != fit.y[:-1]))
    i = int(pairs[0])
    y = fit.y.copy()
    y[[i, i + 1]] = y[[i + 1, i]]
    other = Rows(fit.x, y)
    assert np.array_equal(fold_of_row(other), folds)
    differs = np.abs(raw(build(SPEC, COLUMNS, other, 0, STREAMS)) - raw(teachers)).max(axis=1)
    assert differs[folds == folds[i]].max() < 1e-4
    assert np.median(differs[folds != folds[i]]) > 0.01


def test_preprocessing_is_fitted_inside_each_fold_and_once_on_all_rows(fit, empty_cache, monkeypatch):
    seen = []
    original = Encoder.fit

    def spy(columns, x):
        seen.append(Rows(x, np.zeros(len(x), dtype=np.int64)).fingerprints())
        return original(columns, x)

    monkeypatch.setattr(Encoder, "fit", staticmethod(spy))
    build(of("logistic_regression"), COLUMNS, fit, 0, STREAMS)
    folds, every = fold_of_row(fit), fit.fingerprints()
    assert [sorted(s) for s in seen] == [sorted(every[folds != k]) for k in range(5)] + [sorted(every)]


def test_calibration_improves_what_is_said_of_unseen_rows(teachers, fit, fresh):
    slope, intercept = teachers.platt.T
    assert (slope > 0).all()
    elsewhere, before = teachers.logits(fresh.x), raw(teachers)
    for m in (XGBOOST, FOREST):
        assert nll(fit, teachers.out_of_fold[:, m]) < nll(fit, before[:, m]) + 1e-4
        assert nll(fresh, elsewhere[:, m]) < nll(fresh, (elsewhere[:, m] - intercept[m]) / slope[m]) + 1e-3
        assert expit(teachers.out_of_fold[:, m]).mean() == pytest.approx(fit.y.mean(), abs=0.005)
    assert nll(fresh, elsewhere[:, XGBOOST]) < nll(fresh, (elsewhere - intercept)[:, XGBOOST] / slope[XGBOOST]) - 0.02


def test_probabilities_stay_off_0_and_1(teachers, fit):
    forest = 1 / (2 * 100)
    assert np.abs(teachers.in_sample[:, FOREST]).max() <= np.log((1 - forest) / forest) + 1e-4
    assert np.abs(teachers.in_sample[:, XGBOOST]).max() <= np.log((1 - 1e-6) / 1e-6) + 1e-4
    assert expit(table_models._clipped([-50.0, 0.3, 50.0])) == pytest.approx([1e-6, expit(0.3), 1 - 1e-6], rel=1e-6)
    least, most = expit(raw(teachers)[:, FOREST]).min(), expit(teachers.in_sample[:, FOREST]).max()
    assert least == pytest.approx(forest, rel=1e-3)
    assert most == pytest.approx(1 - forest, rel=1e-3)


def test_above_so_many_rows_a_tree_sees_a_part_of_them(fit, monkeypatch):
    whole = table_models.KINDS["random_forest"].untrained(50_000, 0)
    part = table_models.KINDS["random_forest"].untrained(1_000_000, 0)
    assert whole.max_samples is None
    assert round(part.max_samples * 1_000_000) == 50_000
    monkeypatch.setattr(table_models, "TREE_ROWS", 100)
    tensors, about = table_models.fitted(of("random_forest", folds=2), COLUMNS, fit, 0, STREAMS)
    assert about["parameters"]["random_forest"] < 100 * 100
    assert torch.isfinite(tensors["out_of_fold"]).all()


# sets, seeds, addresses


def test_every_teacher_set_has_folds_and_models_of_its_own(teachers, fit):
    other = build(SPEC, COLUMNS, fit, 1, STREAMS)
    assert other.artefact.key != teachers.artefact.key
    assert not np.array_equal(fold_of_row(fit), fold_of_row(fit, teacher_set=1))
    assert (raw(other)[:, XGBOOST] != raw(teachers)[:, XGBOOST]).mean() > 0.5  # it draws nothing: the folds differ
    assert (other.in_sample[:, FOREST] != teachers.in_sample[:, FOREST]).mean() > 0.5


def test_rows_in_another_order_are_another_artefact_with_predictions_in_that_order(fit):
    order = np.random.default_rng(0).permutation(len(fit))
    spec = of("logistic_regression")
    straight, mixed = (build(spec, COLUMNS, rows, 0, STREAMS) for rows in (fit, fit.taken(order)))
    assert straight.artefact.key != mixed.artefact.key
    assert np.array_equal(mixed.fitted_on, fit.fingerprints()[order])
    assert mixed.in_sample == pytest.approx(straight.in_sample[order], abs=1e-2)
    assert np.corrcoef(mixed.out_of_fold[:, 0], straight.out_of_fold[order, 0])[0, 1] > 0.98


def test_few_rows_have_ten_folds_unless_told_otherwise(fit):
    def folds(rows, number):
        return table_models._recipe(of("xgboost", folds=number), COLUMNS, rows, 0, STREAMS)["folds"]

    assert [folds(customers(n, 0), None) for n in (1999, 2000)] == [10, 5]
    assert folds(fit, 3) == 3


def test_it_is_built_once_whatever_students_learn_from(fit, empty_cache, monkeypatch):
    spec = of("logistic_regression")
    assert not is_built(spec, COLUMNS, fit, 0, STREAMS)
    first = build(spec, COLUMNS, fit, 0, STREAMS)
    monkeypatch.setattr(table_models, "fitted", None)
    again = {**spec, "predictions": "in_sample"}
    assert is_built(again, COLUMNS, fit, 0, STREAMS)
    assert build(again, COLUMNS, fit, 0, STREAMS).artefact.key == first.artefact.key


@pytest.mark.parametrize(
    "change",
    [{"models": ("logistic_regression", "random_forest")}, {"tuned": True}, {"folds": 4}],
    ids=["models", "tuned", "folds"],
)
def test_the_address_depends_on_what_the_spec_says(change, fit):
    build(of("logistic_regression"), COLUMNS, fit, 0, STREAMS)
    assert not is_built({**of("logistic_regression"), **change}, COLUMNS, fit, 0, STREAMS)


def test_the_address_depends_on_columns_values_labels_and_streams(fit):
    spec = of("logistic_regression")
    build(spec, COLUMNS, fit, 0, STREAMS)
    renamed = (*COLUMNS[:4], Column("colour", ("red", "green", "blue", "pink")))
    told = Rows(np.nan_to_num(fit.x), fit.y, fit.fingerprints())  # other values under the same identity
    assert not is_built(spec, renamed, fit, 0, STREAMS)
    assert not is_built(spec, COLUMNS, told, 0, STREAMS)
    assert not is_built(spec, COLUMNS, Rows(fit.x, 1 - fit.y), 0, STREAMS)
    assert not is_built(spec, COLUMNS, fit, 0, Streams("another study"))


# stored and read again


def test_read_again_it_says_the_same_bit_for_bit(teachers, fit, fresh):
    again = build(SPEC, COLUMNS, fit, 0, STREAMS)
    assert again is not teachers
    for name in ("out_of_fold", "in_sample", "fitted_on", "platt"):
        a, b = getattr(again, name), getattr(teachers, name)
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)
    assert np.array_equal(again.logits(fresh.x), teachers.logits(fresh.x))
    assert (again.names, again.parameters, again.sizes()) == (teachers.names, teachers.parameters, teachers.sizes())


def test_the_stored_models_say_in_sample_what_the_fitted_ones_said(teachers, fit):
    slope, intercept = teachers.platt.T
    fitted_said = table_models._said(teachers._models, teachers._encoder, fit.x)
    assert np.array_equal(fitted_said.astype(np.float32), teachers.in_sample)
    assert np.array_equal((fitted_said * slope + intercept).astype(np.float32), teachers.logits(fit.x))


IN_A_PROCESS = """
import os, sys
import trainables.teachers.table_models as table_models
print(sorted({"xgboost", "lightgbm", "skops"} & set(sys.modules)))
from tests.test_table_models import COLUMNS, ROWS, SPEC, STREAMS, customers, said
fit, fresh = customers(ROWS, seed=1), customers(10_000, seed=2)
for folder in sys.argv[1:]:
    os.environ["DISTUNE_CACHE"] = folder
    there = table_models.is_built(SPEC, COLUMNS, fit, 0, STREAMS)
    print(there, said(table_models.build(SPEC, COLUMNS, fit, 0, STREAMS), fresh))
"""


def test_another_process_reads_the_same_and_fits_the_same_and_imports_no_library_early(teachers, fresh, tmp_path):
    command = [sys.executable, "-c", IN_A_PROCESS, str(cache_folder()), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    expected = said(teachers, fresh)
    assert done.stdout.splitlines() == ["[]", f"True {expected}", f"False {expected}"]


def test_there_is_no_pickle_in_the_artefact(teachers, fit):
    blobs = {k: v.numpy().tobytes() for k, v in teachers.artefact.tensors.items() if k.startswith("model.")}
    logistic = build(of("logistic_regression"), COLUMNS, fit, 0, STREAMS).artefact
    blobs["model.logistic_regression"] = logistic.tensors["model.logistic_regression"].numpy().tobytes()
    assert blobs.pop("model.xgboost").startswith(b"{L")  # UBJSON: an object, whose keys' lengths are 64-bit
    for blob in blobs.values():
        with zipfile.ZipFile(io.BytesIO(blob)) as stored:
            assert {Path(name).suffix for name in stored.namelist()} <= {".json", ".npy"}
            for name in stored.namelist():
                if name.endswith(".npy"):
                    assert not np.load(io.BytesIO(stored.read(name)), allow_pickle=False).dtype.hasobject


def test_a_type_that_no_teacher_needs_is_not_loaded():
    blob = skops.io.dumps(HashingVectorizer(analyzer=os.path.abspath))
    with pytest.raises(skops.io.exceptions.UntrustedTypesFoundException, match="abspath"):
        table_models.KINDS["random_forest"].restored(blob)


# every model, tuned and not


@pytest.mark.parametrize("name", MODELS)
def test_every_model_predicts_unseen_rows_and_is_read_again_bit_for_bit(name, fit, fresh):
    pytest.importorskip(table_models.KINDS[name].package)
    built, again = (build(of(name), COLUMNS, fit, 0, STREAMS) for _ in range(2))
    logits = built.logits(fresh.x)
    assert logits.shape == (len(fresh), 1)
    assert logits.dtype == built.out_of_fold.dtype == built.in_sample.dtype == np.float32
    assert auc(fresh, logits[:, 0]) > 0.75
    assert auc(fit, built.out_of_fold[:, 0]) == pytest.approx(auc(fresh, logits[:, 0]), abs=0.03)
    assert np.array_equal(again.logits(fresh.x), logits)
    assert built.sizes()[name] > 0
    assert built.parameters > 5


@pytest.mark.parametrize("name", MODELS)
def test_a_tuned_model_is_searched_in_every_fold_and_deterministic(name, monkeypatch):
    pytest.importorskip(table_models.KINDS[name].package)
    monkeypatch.setattr(table_models, "DRAWS", 2)
    monkeypatch.setitem(table_models.RandomForest.ranges, "n_estimators", [20])  # a hundred trees take long
    few, fresh = customers(600, seed=4), customers(4000, seed=5)
    searches = []
    original = table_models.RandomizedSearchCV

    def spy(estimator, *args, **kwargs):
        searches.append(original(estimator, *args, **kwargs))
        return searches[-1]

    monkeypatch.setattr(table_models, "RandomizedSearchCV", spy)
    spec = of(name, tuned=True, folds=2)
    tuned = build(spec, COLUMNS, few, 0, STREAMS)
    assert [search.n_splits_ for search in searches] == [3, 3, 3]  # two folds and the refit
    assert len({search.random_state for search in searches}) == 3
    assert auc(fresh, tuned.logits(fresh.x)[:, 0]) > 0.75
    tensors, _ = table_models.fitted(spec, COLUMNS, few, 0, STREAMS)
    assert np.array_equal(tensors["out_of_fold"].numpy(), tuned.out_of_fold)
    assert np.array_equal(tensors["in_sample"].numpy(), tuned.in_sample)


def test_parameters_are_the_nodes_of_all_trees(teachers):
    booster, forest = teachers._models.values()
    nodes = [len(booster.trees_to_dataframe()), sum(len(tree.tree_.feature) for tree in forest.estimators_)]
    assert teachers.parameters == sum(nodes)
    assert teachers.alone("xgboost").parameters == nodes[0]


def test_nodes_of_lightgbm_are_counted_as_it_counts_them(fit):
    pytest.importorskip("lightgbm")
    teachers = build(of("lightgbm"), COLUMNS, fit, 0, STREAMS)
    assert teachers.parameters == len(teachers._models["lightgbm"].trees_to_dataframe())


# what others are given


def test_one_alone_says_what_it_says_among_others(teachers, fresh):
    alone = teachers.alone("random_forest")
    assert alone.names == ("random_forest",)
    assert np.array_equal(alone.logits(fresh.x), teachers.logits(fresh.x)[:, [FOREST]])
    assert np.array_equal(alone.out_of_fold, teachers.out_of_fold[:, [FOREST]])
    assert alone.sizes() == {"random_forest": teachers.sizes()["random_forest"]}


def test_a_trial_is_given_out_of_fold_predictions_and_those_in_sample_beside_them(teachers, fresh):
    outputs = teachers.outputs(fresh.x[:50])
    assert outputs.names == ("xgboost", "random_forest")
    assert np.array_equal(outputs.fit, teachers.out_of_fold)
    assert np.array_equal(outputs.in_sample, teachers.in_sample)
    assert np.array_equal(outputs.fitted_on, teachers.fitted_on)
    assert np.array_equal(outputs.platt, teachers.platt)
    assert np.array_equal(outputs.validation, teachers.logits(fresh.x[:50]))
    assert teachers.outputs().validation is None


def test_rows_are_predicted_in_chunks(teachers, fresh, monkeypatch):
    whole = teachers.logits(fresh.x)
    monkeypatch.setattr(table_models, "CHUNK", 3000)
    assert np.array_equal(teachers.logits(fresh.x), whole)
    assert teachers.logits(fresh.x[:0]).shape == (0, 2)


def test_a_category_that_was_not_there_and_missing_values_are_predicted(teachers):
    assert np.isfinite(teachers.logits(np.array([[np.nan] * 5, [0.0, 0.0, 0.0, 0.0, 7.0]]))).all()


# refused


def test_a_library_that_is_not_installed_is_refused_in_one_line(fit, monkeypatch):
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lightgbm" else original(name))
    with pytest.raises(
        BadData, match=r"^the teacher lightgbm needs lightgbm, which is not installed: pip install"
    ) as e:
        refuse_uninstalled(["xgboost", "lightgbm"])
    assert str(e.value).endswith("or take one of xgboost, random_forest, logistic_regression")
    assert "\n" not in str(e.value)
    with pytest.raises(BadData, match="pip install lightgbm"):
        build(of("lightgbm"), COLUMNS, fit, 0, STREAMS)
    refuse_uninstalled(["xgboost", "random_forest"])


def test_scikit_learns_models_need_skops(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadData, match=r"random_forest needs skops, which is not installed: pip install skops$"):
        refuse_uninstalled(["random_forest"])


@pytest.mark.parametrize(
    ("y", "folds", "message"),
    [
        (np.zeros(50), 5, r"labelled 0 and 1, got labels \[0\]"),
        (np.arange(50) % 3, 5, r"got labels \[0, 1, 2\]"),
        (np.arange(50) < 5, 2, "2 folds need 6 rows of each class, got 5"),
        (np.arange(50) < 7, 10, "10 folds need 10 rows of each class, got 7"),
    ],
)
def test_too_few_rows_of_a_class_are_refused(y, folds, message):
    rows = Rows(customers(50, 0).x, np.asarray(y).astype(np.int64))
    with pytest.raises(BadData, match=message):
        build(of("xgboost", folds=folds), COLUMNS, rows, 0, STREAMS)
