"""Splits, fingerprints and fresh rows of the generated table: what may be seen, and that the population is the same."""

import dataclasses
import pickle
from dataclasses import asdict

import numpy as np
import pytest
from sklearn.datasets import make_classification
from sklearn.model_selection import train_test_split

from spaces import load_study
from spaces.families import MakeClassification
from trainables import datasets
from trainables.datasets import Rows, Scaling
from trainables.datasets.generated import Population

SPEC = asdict(load_study("mlp-ensemble").data)
ARTICLE = {"n_samples": 5000, "n_features": 20, "n_informative": 10, "n_redundant": 5, "random_state": 42}


@pytest.fixture(scope="module")
def data():
    return datasets.load(SPEC)


@pytest.fixture(scope="module")
def population():
    return Population.of(SPEC)


@pytest.fixture(scope="module")
def table():
    return make_classification(**ARTICLE)


# splits


def test_the_splits_are_disjoint_and_of_the_documented_sizes(data):
    assert [len(rows) for rows in (data.train, data.validation, data.test)] == [3200, 800, 1000]
    seen = np.concatenate([rows.fingerprints() for rows in (data.train, data.validation, data.test)])
    assert len(np.unique(seen)) == 5000


def test_the_test_rows_are_the_articles(data, table):
    rest_x, test_x, rest_y, test_y = train_test_split(*table, test_size=0.2, random_state=42)
    assert np.array_equal(data.test.x, test_x)
    assert np.array_equal(data.test.y, test_y)
    rest = data.fit_rows("train+validation")
    assert set(zip(rest.fingerprints(), rest.y, strict=True)) == set(
        zip(Rows(rest_x, rest_y).fingerprints(), rest_y, strict=True)
    )


def test_train_and_validation_have_the_same_class_balance(data):
    assert data.train.y.mean() == pytest.approx(data.validation.y.mean(), abs=0.002)


def test_the_rows_to_fit_on_are_train_or_train_then_validation(data):
    assert np.array_equal(data.fit_rows("train").x, data.train.x)
    both = data.fit_rows("train+validation")
    assert np.array_equal(both.x, np.concatenate([data.train.x, data.validation.x]))
    assert np.array_equal(both.y, np.concatenate([data.train.y, data.validation.y]))


def test_what_the_search_may_see_holds_no_test_row_not_even_in_its_pickle(data):
    shown = data.without_test()
    assert shown.test is None
    assert shown.population is None
    everything, carried = pickle.dumps(data), pickle.dumps(shown)
    for hidden in (data.test, data.population):
        for row in hidden.x[:20]:
            assert row.tobytes() in everything
            assert row.tobytes() not in carried
    assert data.validation.x[0].tobytes() in carried


@pytest.mark.parametrize(
    "name", [f.name for f in dataclasses.fields(MakeClassification) if f.name not in ("kind", "validation_rows")]
)
def test_the_loader_reads_everything_that_a_study_may_say(name):
    spec = {**SPEC, "n_samples": 200, "fresh_rows": 1}
    assert len(datasets.load(spec).population) == 1
    with pytest.raises(KeyError, match=name):
        datasets.load({key: value for key, value in spec.items() if key != name})


# fingerprints and scaling


def test_fingerprints_follow_a_rows_features_only():
    x = np.arange(12.0).reshape(4, 3)
    whole = Rows(x, np.zeros(4, dtype=np.int64)).fingerprints()
    order = [2, 0, 3, 1]
    assert np.array_equal(Rows(x[order], np.ones(4, dtype=np.int64)).fingerprints(), whole[order])
    assert np.array_equal(Rows(np.asfortranarray(x), np.zeros(4, dtype=np.int64)).fingerprints(), whole)
    touched = np.nextafter(x, np.inf)
    assert not np.isin(Rows(touched, np.zeros(4, dtype=np.int64)).fingerprints(), whole).any()


def test_scaling_standardises_the_rows_it_was_fitted_on_and_leaves_constants():
    x = np.column_stack([np.random.default_rng(0).normal(5, 3, 50), np.full(50, 7.0)])
    scaled = Scaling.of(Rows(x, np.zeros(50, dtype=np.int64)))(x)
    assert scaled[:, 0].mean() == pytest.approx(0)
    assert scaled[:, 0].std() == pytest.approx(1)
    assert (scaled[:, 1] == 0).all()


# fresh rows of the same population


def test_the_redundant_columns_of_the_real_table_are_reproduced(population, table):
    in_order = np.empty_like(table[0])
    in_order[:, population.columns] = table[0]
    assert population.redundant.shape == (10, 5)
    np.testing.assert_allclose(in_order[:, 10:15], in_order[:, :10] @ population.redundant, atol=1e-9)


class Normals(np.random.RandomState):
    """A RandomState that keeps the normal numbers it drew."""

    def __init__(self, seed):
        super().__init__(seed)
        self.drawn = []

    def standard_normal(self, *args, **kwargs):
        self.drawn.append(super().standard_normal(*args, **kwargs))
        return self.drawn[-1].copy()


def test_the_informative_part_of_every_row_is_reproduced(population):
    random = Normals(42)
    x, _ = make_classification(**{**ARTICLE, "random_state": random}, shuffle=False)
    cluster = np.repeat(np.arange(4), 1250)
    for k in range(4):
        rebuilt = random.drawn[0][cluster == k] @ population.mixing[k] + population.centres[k]
        np.testing.assert_allclose(x[cluster == k, :10], rebuilt, atol=1e-9)


def test_the_centres_are_corners_of_the_cube(population):
    np.testing.assert_allclose(np.abs(population.centres), 1.0, atol=1e-9)
    assert len(np.unique(population.centres.round(), axis=0)) == 4


@pytest.mark.parametrize("change", [{"n_samples": 4003}, {"n_redundant": 0}, {"n_redundant": 10}])
def test_other_tables_are_reproduced_too(change):
    spec = {**SPEC, **change}
    population = Population.of(spec)
    x, _ = make_classification(**{name: spec[name] for name in ARTICLE})
    in_order = np.empty_like(x)
    in_order[:, population.columns] = x
    redundant = in_order[:, 10 : 10 + spec["n_redundant"]]
    np.testing.assert_allclose(redundant, in_order[:, :10] @ population.redundant, atol=1e-9)
    np.testing.assert_allclose(np.abs(population.centres), 1.0, atol=1e-9)


def test_fresh_rows_are_new_and_as_many_as_asked_for(data, table):
    assert len(data.population) == SPEC["fresh_rows"] == 60_000
    both = np.concatenate([data.population.fingerprints(), Rows(*table).fingerprints()])
    assert len(np.unique(both)) == len(both)


def test_fresh_rows_have_the_tables_class_balance(data, table):
    error = np.sqrt(0.25 / 5000 + 0.25 / 60_000)
    assert abs(data.population.y.mean() - table[1].mean()) < 4 * error


def test_fresh_rows_have_the_tables_means_and_covariances_in_each_class(data, table):
    for label in (0, 1):
        real, fresh = table[0][table[1] == label], data.population.x[data.population.y == label]
        assert largest_z(real, fresh) < 5
        assert largest_z(products(real), products(fresh)) < 5


def test_the_means_and_covariances_would_notice_classes_that_changed_places(data, table):
    real, fresh = table[0][table[1] == 0], data.population.x[data.population.y == 1]
    assert largest_z(real, fresh) > 20


def products(x):
    """(n, features²) the products whose means are the covariances."""
    centred = x - x.mean(axis=0)
    return (centred[:, :, None] * centred[:, None, :]).reshape(len(x), -1)


def largest_z(a, b):
    """The largest difference between two tables' column means, in standard errors."""
    error = np.sqrt(a.var(axis=0) / len(a) + b.var(axis=0) / len(b))
    return (np.abs(a.mean(axis=0) - b.mean(axis=0)) / error).max()


def test_one_row_in_two_hundred_bears_the_other_label(population):
    rows = population.draw(40_000, seed=1)
    cluster = np.arange(40_000) % 4
    assert (rows.y != cluster % 2).mean() == pytest.approx(0.005, abs=4 * np.sqrt(0.005 / 40_000))


def test_fresh_rows_are_a_function_of_their_seed(population):
    a, again, b = (population.draw(100, seed=seed).x for seed in (1, 1, 2))
    assert np.array_equal(a, again)
    assert not np.isin(a, b).any()
