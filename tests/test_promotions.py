"""The generated campaigns: what each split holds, that a promotion shifts them, and what the dial does to the teachers.

`python -m tests.test_promotions 20` prints the figures of the module's docstring, over 20 random states.
"""

import sys
import tracemalloc

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from trainables import datasets
from trainables.datasets import Rows, promotions

SPEC = {
    "kind": "promotions",
    "rows": 5000,
    "test_rows": 40_000,
    "specialisation": 1.0,
    "random_state": 1,
    "validation_fraction": 0.2,
    "split_seed": 0,
}
NAMES = [column.name for column in promotions.COLUMNS]
SEGMENT = NAMES.index("Holiday")
CHANNEL = NAMES.index("Channel")
WEIGHTS = np.linspace(0, 1, 6)


def column(rows, name):
    return rows.x[:, NAMES.index(name)]


def splits(data):
    return data.train, data.validation, data.test


@pytest.fixture(scope="module")
def data():
    return datasets.load(SPEC)


# the table


def test_the_splits_have_the_rows_asked_for_and_share_none(data):
    assert [len(rows) for rows in splits(data)] == [4000, 1000, 40_000]
    assert len(np.unique(np.concatenate([rows.fingerprints() for rows in splits(data)]))) == 45_000


def test_rows_that_are_equal_have_fingerprints_of_their_own():
    x = np.tile(promotions.customers(1, False, np.random.default_rng(0)), (1000, 1))
    assert len(np.unique(promotions._fingerprints(x, first=0))) == 1000


def test_only_the_test_rows_are_of_a_promotion(data):
    assert [set(column(rows, "Promo")) for rows in splits(data)] == [{0.0}, {0.0}, {1.0}]


def test_the_same_random_state_gives_the_same_table_and_another_one_another(data):
    again, other = datasets.load(SPEC), datasets.load({**SPEC, "random_state": 2})
    for rows, same, another in zip(splits(data), splits(again), splits(other), strict=True):
        assert np.array_equal(rows.x, same.x, equal_nan=True)
        assert np.array_equal(rows.y, same.y)
        assert np.array_equal(rows.identity, same.identity)
        assert not np.isin(another.identity, rows.identity).any()


def test_another_split_seed_splits_the_same_rows_otherwise(data):
    other = datasets.load({**SPEC, "split_seed": 1})
    rest = [np.concatenate([table.train.identity, table.validation.identity]) for table in (data, other)]
    assert set(rest[0]) == set(rest[1])
    assert set(data.validation.identity) != set(other.validation.identity)


def test_the_test_rows_stay_as_they_are_whatever_is_fitted_on(data):
    other = datasets.load({**SPEC, "rows": 400, "validation_fraction": 0.5, "split_seed": 7})
    assert np.array_equal(data.test.x, other.test.x, equal_nan=True)
    assert np.array_equal(data.test.y, other.test.y)


@pytest.mark.parametrize("specialisation", [0.0, 0.5, 1.0])
def test_one_row_in_ten_buys_at_every_setting_of_the_dial(specialisation):
    data = datasets.load({**SPEC, "rows": 100_000, "specialisation": specialisation})
    assert [0.08 < rows.y.mean() < 0.12 for rows in splits(data)] == [True] * 3
    assert data.train.y.mean() == pytest.approx(data.validation.y.mean(), abs=1e-4)


def test_every_cell_is_what_its_column_says(data):
    for rows in splits(data):
        assert rows.x.shape == (len(rows), len(data.columns))
        assert (rows.x.dtype, rows.y.dtype, rows.identity.dtype) == (np.float64, np.int64, np.int64)
        for code in (named for named in data.columns if named.categories):
            assert set(column(rows, code.name)) == set(range(len(code.categories)))
        assert set(column(rows, "Holiday")) == {0.0, 1.0}
        for whole in ("Age", "Days", "Visits"):
            assert np.array_equal(column(rows, whole), np.rint(column(rows, whole)))
    assert set(data.segments) <= {named.name for named in data.columns}


def test_values_are_missing_in_two_columns_only(data):
    missing = dict(zip(NAMES, np.isnan(data.test.x).mean(axis=0), strict=True))
    assert {name for name, share in missing.items() if share} == set(promotions.MISSING)
    for name, share in promotions.MISSING.items():
        assert missing[name] == pytest.approx(share, abs=0.005)


def test_a_million_rows_are_drawn_in_less_than_a_gigabyte():
    tracemalloc.start()
    x, y = promotions.draw(1_000_000, False, 1.0, np.random.default_rng(0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (x.shape, y.shape) == ((1_000_000, len(NAMES)), (1_000_000,))
    assert peak < 5e8


def test_a_table_may_have_a_million_rows():
    data = datasets.load({**SPEC, "rows": 1_000_000})
    assert [len(rows) for rows in splits(data)] == [800_000, 200_000, 40_000]


# the shift


def test_a_promotion_meets_other_customers():
    without, under = (promotions.customers(100_000, promo, np.random.default_rng(0)) for promo in (False, True))
    change = under.mean(axis=0)[: SEGMENT + 1] / without.mean(axis=0)[: SEGMENT + 1]
    assert [name for name, ratio in zip(NAMES, change, strict=False) if ratio < 0.95] == ["Age", "Income", "Loyalty"]
    assert [name for name, ratio in zip(NAMES, change, strict=False) if ratio > 1.05] == ["Days", "Holiday"]


@pytest.mark.parametrize("specialisation", [0.0, 1.0])
def test_the_same_customers_buy_for_other_reasons_under_a_promotion(specialisation):
    random = np.random.default_rng(0)
    under = promotions.customers(100_000, True, random)
    chance = promotions.chance(under, specialisation)
    y = random.random(len(under)) < chance
    without = under.copy()
    without[:, NAMES.index("Promo")] = 0
    chance_without = promotions.chance(without, specialisation)
    assert chance.mean() > 1.1 * chance_without.mean()
    assert roc_auc_score(y, chance) > roc_auc_score(y, chance_without) + 0.01


# the dial


def encoded(rows):
    """(n, features): what the teachers read, channels one-hot and without the constant column."""
    numbers = [k for k, name in enumerate(NAMES) if name not in ("Channel", "Promo")]
    return np.concatenate(
        [rows.x[:, numbers], np.eye(len(promotions.CHANNELS))[rows.x[:, CHANNEL].astype(int)]], axis=1
    )


def calibrated(teacher, rows, test):
    """(len(test),) probabilities after Platt's scaling, fitted on rows that the teacher was not fitted on."""
    of, on = (np.clip(teacher.predict_proba(encoded(part))[:, 1], 0.005, 0.995) for part in (rows, test))
    platt = LogisticRegression(C=1e6).fit(np.log(of / (1 - of))[:, None], rows.y)
    return platt.predict_proba(np.log(on / (1 - on))[:, None])[:, 1]


def figures(specialisation, random_state):
    """Of one table: AUC on the test rows of both teachers by segment, `gains` and `losses`."""
    from xgboost import XGBClassifier

    data = datasets.load({**SPEC, "specialisation": specialisation, "random_state": random_state})
    x, y, weekday = encoded(data.test), data.test.y, data.test.x[:, SEGMENT] == 0
    teachers = [XGBClassifier(eval_metric="logloss", random_state=0), RandomForestClassifier(random_state=0)]
    for teacher in teachers:
        teacher.fit(encoded(data.train), data.train.y)
    boosted, forest = (teacher.predict_proba(x)[:, 1] for teacher in teachers)
    found = {
        f"{where}: {name}": roc_auc_score(y[rows], said[rows])
        for where, rows in (("weekdays", weekday), ("holidays", ~weekday), ("all", slice(None)))
        for name, said in (("xgboost", boosted), ("forest", forest), ("average", boosted + forest))
    }
    found |= gains(boosted, forest, y, weekday)
    found |= losses(data, teachers[0], specialisation, np.random.default_rng([random_state, 2]))
    held_out = (calibrated(teacher, data.validation, data.test) for teacher in teachers)
    return found | {f"{name}, calibrated": gain for name, gain in gains(*held_out, y, weekday).items()}


def losses(data, boosted, specialisation, random):
    """AUC of a teacher fitted without a promotion where there is none, and of one fitted under it on the test rows."""
    usual = Rows(*promotions.draw(40_000, False, specialisation, random))
    under = Rows(*promotions.draw(len(data.train), True, specialisation, random))
    other = clone(boosted).fit(encoded(under), under.y)
    return {
        "no promotion: xgboost": roc_auc_score(usual.y, boosted.predict_proba(encoded(usual))[:, 1]),
        "all: xgboost of promotions": roc_auc_score(data.test.y, other.predict_proba(encoded(data.test))[:, 1]),
    }


def gains(boosted, forest, y, weekday):
    """AUC gained by weights by segment: 0.8 and 0.2 over the plain average, the best over the best of one for all."""

    def auc(on_weekdays, on_holidays):
        weight = np.where(weekday, on_weekdays, on_holidays)
        return roc_auc_score(y, weight * boosted + (1 - weight) * forest)

    constant = [auc(weight, weight) for weight in WEIGHTS]
    by_segment = [auc(first, second) for first in WEIGHTS for second in WEIGHTS if first != second]
    return {
        "gate of 0.8 and 0.2": auc(0.8, 0.2) - auc(0.5, 0.5),
        "best gate": max(constant + by_segment) - max(constant),
    }


@pytest.fixture(scope="module")
def dial():
    """The figures at both ends of the dial, averaged over two random states."""
    pytest.importorskip("xgboost")
    return {end: averaged(end, (1, 2)) for end in (0.0, 1.0)}


def averaged(specialisation, random_states):
    found = [figures(specialisation, random_state) for random_state in random_states]
    return {name: np.mean([one[name] for one in found]) for name in found[0]}


def test_a_teacher_fitted_without_a_promotion_loses_under_one(dial):
    for end in dial.values():
        assert end["no promotion: xgboost"] > end["all: xgboost"] + 0.01
        assert end["all: xgboost of promotions"] > end["all: xgboost"] + 0.005


def test_at_one_each_teacher_is_better_on_a_segment_of_its_own(dial):
    assert dial[1.0]["weekdays: xgboost"] > dial[1.0]["weekdays: forest"] + 0.03
    assert dial[1.0]["holidays: forest"] > dial[1.0]["holidays: xgboost"] + 0.005


def test_at_one_a_gate_by_segment_gains(dial):
    assert dial[1.0]["gate of 0.8 and 0.2"] > 0.004
    assert dial[1.0]["best gate"] > 0.003


def test_at_zero_the_teachers_differ_by_as_much_on_both_segments(dial):
    ahead = [dial[0.0][f"{where}: xgboost"] - dial[0.0][f"{where}: forest"] for where in ("weekdays", "holidays")]
    assert ahead[0] == pytest.approx(ahead[1], abs=0.02)


def test_at_zero_a_gate_by_segment_gains_nothing(dial):
    assert dial[0.0]["gate of 0.8 and 0.2"] < 0
    assert dial[0.0]["best gate"] < 0.001


def test_the_teachers_are_neither_perfect_nor_useless(dial):
    for end in dial.values():
        assert min(end["all: xgboost"], end["all: forest"]) > 0.7
        assert max(end["all: xgboost"], end["all: forest"]) < 0.86


if __name__ == "__main__":
    for end in (0.0, 1.0):
        measured = [figures(end, random_state) for random_state in range(int(sys.argv[1]))]
        for name in measured[0]:
            values = [one[name] for one in measured]
            print(f"{end:.0f}  {name:32} {np.mean(values):.4f} ({np.std(values, ddof=1):.4f})")
