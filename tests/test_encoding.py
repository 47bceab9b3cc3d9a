"""trainables/encoding.py against scikit-learn's own pipeline, and what becomes of values that it was not fitted on."""

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, PowerTransformer

from search.families import tabular
from trainables import encoding
from trainables.datasets import Column, Dataset, Rows
from trainables.encoding import MAX_CATEGORIES, Encoder, yeo_johnson

COLUMNS = (
    Column("amount"),  # skewed, with gaps
    Column("channel", ("mail", "phone", "web", "fax")),  # with gaps; nobody faxes
    Column("balance"),  # of both signs
    Column("age"),
    Column("region", ("north", "south")),
)
NUMBERS, GAPS, NAMED = [0, 2, 3], [0], [1, 4]
GONE = np.nan


def table(n=500, seed=0):
    """Rows of COLUMNS; the last category of `channel` and gaps but in `amount` and `channel` do not occur."""
    random = np.random.default_rng(seed)
    amount, channel = random.exponential(20, n), random.integers(0, 3, n).astype(float)
    amount[random.random(n) < 0.1] = GONE
    channel[random.random(n) < 0.1] = GONE
    balance, age = random.standard_normal(n) ** 3, random.integers(18, 90, n).astype(float)
    return np.stack([amount, channel, balance, age, random.integers(0, 2, n).astype(float)], axis=1)


def one(name, *values):
    """A table of one column of numbers."""
    return (Column(name),), np.array(values, dtype=float)[:, None]


# against scikit-learn


def test_numbers_gaps_and_categories_are_those_of_scikit_learns_pipeline():
    fit, other = table(), table(seed=1)
    encoder = Encoder.fit(COLUMNS, fit)
    numbers = make_pipeline(SimpleImputer(strategy="median"), PowerTransformer()).fit(fit[:, NUMBERS])
    gaps = MissingIndicator().fit(fit[:, NUMBERS])
    one_hot = OneHotEncoder(max_categories=32, handle_unknown="ignore", sparse_output=False)
    one_hot.fit(np.nan_to_num(fit[:, NAMED], nan=-1))
    for x in (fit, other):
        named = np.nan_to_num(x[:, NAMED], nan=-1)
        expected = np.concatenate(
            [numbers.transform(x[:, NUMBERS]), gaps.transform(x[:, NUMBERS]), one_hot.transform(named)], axis=1
        )
        np.testing.assert_allclose(encoder.encode(x), expected, rtol=0, atol=1e-6)


def test_features_are_named_after_their_columns_and_values():
    assert Encoder.fit(COLUMNS, table()).names == (
        *("amount", "balance", "age", "amount is missing"),
        *("channel=missing", "channel=mail", "channel=phone", "channel=web", "region=north", "region=south"),
    )


@pytest.mark.parametrize("power", [-2.0, 0.0, 0.5, 1.0, 2.0, 3.5])
def test_yeo_johnson_is_scipys(power):
    from scipy import stats

    x = np.concatenate([np.random.default_rng(0).standard_normal(50) * 4, [0.0, -1.0, 1.0]])
    found = yeo_johnson(torch.from_numpy(x)[:, None], torch.tensor([power], dtype=torch.float64))
    np.testing.assert_allclose(found[:, 0].numpy(), stats.yeojohnson(x, power), rtol=1e-12, atol=1e-12)


def test_numbers_are_standardised_on_the_rows_to_fit_on():
    encoded = Encoder.fit(COLUMNS, table()).encode(table())[:, :3]
    np.testing.assert_allclose(encoded.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(encoded.std(axis=0), 1, atol=1e-5)


# numbers by hand


def test_a_missing_number_is_the_median_and_says_that_it_was_missing():
    columns, x = one("a", 1, 2, 10, GONE)
    encoder = Encoder.fit(columns, x)
    assert encoder.names == ("a", "a is missing")
    of_median, of_gap = encoder.encode(np.array([[2.0], [GONE]]))
    assert of_median[0] == of_gap[0]
    assert (of_median[1], of_gap[1]) == (0, 1)


def test_a_gap_where_none_was_in_the_rows_to_fit_on_is_the_median():
    columns, x = one("a", 1, 2, 10)
    encoder = Encoder.fit(columns, x)
    assert encoder.names == ("a",)
    encoded = encoder.encode(np.array([[GONE], [2.0]]))
    assert np.isfinite(encoded).all()
    assert encoded[0] == encoded[1]


@pytest.mark.parametrize("columns", [COLUMNS, COLUMNS[::-1]], ids=["as they are", "the other way round"])
def test_a_row_without_any_value_has_features_that_are_numbers(columns):
    order = [COLUMNS.index(c) for c in columns]
    encoder = Encoder.fit(columns, table()[:, order])
    assert np.isfinite(encoder.encode(np.full((3, len(columns)), GONE))).all()


@pytest.mark.parametrize("value", [1_000.0, 9_999.0, -9_999.0])
def test_a_value_far_outside_the_rows_to_fit_on_is_a_number(value):
    """A column up to 100, skewed to the left, and a code such as 9999 for what is not known."""
    fit = 100 - np.exp(np.random.default_rng(0).standard_normal((1000, 1)))
    assert np.isfinite(Encoder.fit((Column("a"),), np.sign(value) * fit).encode(np.array([[value]]))).all()


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([3, 3, 3], ()),
        ([GONE, GONE], ()),
        ([3, GONE, 3], ("a is missing",)),  # what is there says nothing, that it is there may
        ([3, 4, GONE], ("a", "a is missing")),
    ],
)
def test_a_column_of_one_value_has_no_feature(values, names):
    columns, x = one("a", *values)
    encoder = Encoder.fit(columns, x)
    assert encoder.names == names
    assert encoder.encode(np.array([[3.0], [7.0], [GONE]])).shape == (3, len(names))


@pytest.mark.parametrize(
    ("codes", "names"),
    [
        ([1, 1, 1], ()),
        ([GONE, GONE], ()),
        ([1, GONE, 1], ("a=missing", "a=y")),
        ([0, 2, 2], ("a=x", "a=z")),
    ],
)
def test_a_category_that_all_rows_have_has_no_feature(codes, names):
    encoder = Encoder.fit((Column("a", ("x", "y", "z")),), np.array(codes, dtype=float)[:, None])
    assert encoder.names == names


# categories by hand


def test_a_category_that_was_not_there_is_a_row_of_zeros():
    encoder = Encoder.fit(COLUMNS, table())
    of_channel = [i for i, name in enumerate(encoder.names) if name.startswith("channel=")]
    row = table()[:1].repeat(3, axis=0)
    row[:, 1] = [3, 0, GONE]  # fax, mail, missing
    assert encoder.encode(row)[:, of_channel].tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]]


def test_a_code_that_no_column_knows_is_a_row_of_zeros_and_no_gap():
    encoder = Encoder.fit((Column("a", ("x", "y")),), np.array([[0.0], [1.0], [GONE]]))
    assert encoder.names == ("a=missing", "a=x", "a=y")
    assert encoder.encode(np.array([[2.0], [99.0], [1.0]])).tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_a_gap_among_categories_that_had_none_is_a_row_of_zeros():
    encoder = Encoder.fit((Column("a", ("x", "y")),), np.array([[0.0], [1.0]]))
    assert encoder.encode(np.array([[GONE], [1.0]])).tolist() == [[0, 0], [0, 1]]


def test_rare_categories_share_a_feature_beyond_the_most_that_a_column_may_have():
    names = tuple(f"c{i}" for i in range(50))
    counts = [20 if i < MAX_CATEGORIES - 1 else 2 for i in range(49)]  # the last does not occur
    codes = np.repeat(np.arange(49.0), counts)[:, None]
    encoder = Encoder.fit((Column("a", names),), codes)
    assert encoder.names == (*(f"a={name}" for name in names[: MAX_CATEGORIES - 1]), "a=other")
    encoded = encoder.encode(np.arange(50.0)[:, None])
    assert encoded.shape == (50, MAX_CATEGORIES)
    assert np.array_equal(encoded[: MAX_CATEGORIES - 1, :-1], np.eye(MAX_CATEGORIES - 1))
    assert encoded[:, -1].tolist() == [0] * (MAX_CATEGORIES - 1) + [1] * (49 - MAX_CATEGORIES + 1) + [0]


def test_as_many_categories_as_a_column_may_have_share_none():
    names = tuple(f"c{i}" for i in range(MAX_CATEGORIES))
    encoder = Encoder.fit((Column("a", names),), np.arange(float(MAX_CATEGORIES))[:, None])
    encoded = encoder.encode(np.arange(float(MAX_CATEGORIES))[:, None])
    assert encoded.sum(axis=1).tolist() == [1] * MAX_CATEGORIES
    assert [encoder.names[i] for i in encoded.argmax(axis=1)] == [f"a={name}" for name in names]


def test_columns_with_different_numbers_of_categories_do_not_touch_each_other():
    columns = (Column("few", ("x", "y")), Column("many", tuple("abcdefg")))
    x = np.array([[i % 2, i % 7] for i in range(14)], dtype=float)
    encoded = Encoder.fit(columns, x).encode(x)
    assert encoded.sum(axis=1).tolist() == [2] * 14
    assert encoded[:, :2].argmax(axis=1).tolist() == x[:, 0].tolist()
    assert encoded[:, 2:].argmax(axis=1).tolist() == x[:, 1].tolist()


# tables of one kind, of nothing, of no rows


@pytest.mark.parametrize("kept", [NUMBERS, NAMED], ids=["numbers", "categories"])
def test_a_table_of_one_kind_of_column_is_a_part_of_the_whole(kept):
    columns = tuple(COLUMNS[i] for i in kept)
    alone, whole = Encoder.fit(columns, table()[:, kept]), Encoder.fit(COLUMNS, table())
    of_alone = [whole.names.index(name) for name in alone.names]
    assert np.array_equal(alone.encode(table(seed=1)[:, kept]), whole.encode(table(seed=1))[:, of_alone])


def test_a_table_that_says_nothing_has_no_features():
    encoder = Encoder.fit((Column("a"), Column("b", ("x", "y"))), np.ones((5, 2)))
    assert encoder.encode(np.zeros((3, 2))).shape == (3, 0)
    assert Encoder.of(encoder.state_dict()).names == ()


@pytest.mark.parametrize("n", [0, 1, 10])
def test_what_comes_out_is_float32_with_a_row_for_each(n):
    encoder = Encoder.fit(COLUMNS, table())
    encoded = encoder.encode(table()[:n])
    assert encoded.dtype == np.float32
    assert encoded.shape == (n, len(encoder.names))


def test_the_rows_given_are_left_alone():
    x = table()
    Encoder.fit(COLUMNS, x).encode(x)
    np.testing.assert_array_equal(x, table())


# chunks and states


def test_chunks_of_rows_equal_the_whole(monkeypatch):
    encoder, x = Encoder.fit(COLUMNS, table()), table(seed=1)
    whole = encoder.encode(x)
    monkeypatch.setattr(encoding, "CHUNK", 7)
    assert np.array_equal(encoder.encode(x), whole)


def test_of_very_many_rows_some_that_lie_evenly_are_enough_to_fit_on(monkeypatch):
    monkeypatch.setattr(encoding, "FITTED_ON", 100)
    some, every_fifth = Encoder.fit(COLUMNS, table()), Encoder.fit(COLUMNS, table()[::5])
    assert all(torch.equal(t, every_fifth.state_dict()[name]) for name, t in some.state_dict().items())


def test_an_encoder_comes_back_from_its_state_bit_by_bit():
    columns = (Column("Größe"), *COLUMNS[1:])
    encoder = Encoder.fit(columns, table())
    again = Encoder.of(load(save(encoder.state_dict())))
    assert (again.columns, again.names) == (columns, encoder.names)
    assert again.state_dict().keys() == encoder.state_dict().keys()
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in encoder.state_dict().items())
    assert np.array_equal(again.encode(table(seed=1)), encoder.encode(table(seed=1)))


def test_the_module_and_the_array_are_encoded_alike():
    encoder, x = Encoder.fit(COLUMNS, table()), table(seed=1)
    assert np.array_equal(encoder(torch.from_numpy(x)).numpy(), encoder.encode(x))


def test_validation_rows_change_nothing_of_what_is_fitted():
    """What a trial is given (search.families.tabular.inputs) is encoded by the rows to fit on alone."""
    fit = Rows(table(), np.zeros(500, dtype=np.int64))

    def given(validation):
        rows = Rows(validation, np.zeros(len(validation), dtype=np.int64))
        return tabular.inputs(Dataset(2, fit, rows, None, None, COLUMNS), fit, ())

    (rows, shown, state), (same, shown_too, same_state) = given(table(seed=1)), given(100 * table(seed=1)[:, ::-1])
    assert np.array_equal(rows.x, same.x)
    assert np.array_equal(rows.x, Encoder.fit(COLUMNS, fit.x).encode(fit.x))
    assert not np.array_equal(shown.x, shown_too.x)
    assert all(torch.equal(t, same_state[name]) for name, t in state.items())
