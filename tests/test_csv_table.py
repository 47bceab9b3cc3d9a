"""A table of one's own: what is read, how it is split, what is refused in one line, what is noted."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from trainables.datasets import BadData, Column, csv_table
from trainables.datasets.csv_table import encode_frame, load

SHOPPERS = Path(__file__).parents[2] / "shared/data/online_shoppers_intention.csv"
ROWS = 1000


def made(n=ROWS):
    """Numbers, integers, text and booleans that say nothing of the target: of each ten rows three are `good`."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": rng.normal(40, 10, n).round(6),
            "region": rng.integers(1, 5, n),
            "month": rng.choice(["Nov", "Dec", "Feb"], n),
            "member": rng.random(n) < 0.5,
            "label": np.resize(["bad", "good", "bad", "bad", "good", "bad", "bad", "bad", "good", "bad"], n),
        }
    )


@pytest.fixture
def frame():
    return made()


@pytest.fixture
def spec(tmp_path):
    return {
        "kind": "csv",
        "path": str(tmp_path / "table.csv"),
        "target": "label",
        "positive": "good",
        "features": None,
        "drop": (),
        "categorical": (),
        "delimiter": ",",
        "encoding": "utf-8",
        "shift": None,
        "duplicates": "drop",
        "test_fraction": 0.2,
        "validation_fraction": 0.2,
        "train_limit": None,
        "split_seed": 0,
        "segments": (),
        "least_test_positives": 20,
    }


@pytest.fixture
def loaded(spec):
    """Writes a frame, or the text of a file, and loads it."""

    def load_it(table, **changes):
        if isinstance(table, pd.DataFrame):
            table = table.to_csv(index=False)
        Path(spec["path"]).write_text(table, encoding="utf-8")
        return load(spec | changes)

    return load_it


def parts(data):
    return data.train, data.validation, data.test


def whole(data):
    """All rows: x, y and identity, in the order of their identity."""
    order = np.argsort(np.concatenate([rows.identity for rows in parts(data)]))
    return [np.concatenate([getattr(rows, name) for rows in parts(data)])[order] for name in ("x", "y", "identity")]


def refusal(call, *args, **changes):
    """The message of the BadData, which must be one line."""
    with pytest.raises(BadData) as caught:
        call(*args, **changes)
    message = str(caught.value)
    assert "\n" not in message
    return message


def noted(data, words):
    return [note for note in data.notes if words in note]


# What is read


def test_numbers_booleans_and_categories(loaded, frame):
    data = loaded(frame, categorical=("region",))
    assert data.columns == (
        Column("age"),
        Column("region", ("1", "2", "3", "4")),
        Column("month", ("Dec", "Feb", "Nov")),
        Column("member"),
    )
    x, y, _ = whole(data)
    expected = np.column_stack(
        [frame.age, frame.region - 1, frame.month.map({"Dec": 0, "Feb": 1, "Nov": 2}), frame.member.astype(float)]
    )
    expected = np.column_stack([expected, frame.label == "good"])
    found = np.column_stack([x, y])
    assert np.array_equal(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)])
    assert (x.dtype, y.dtype, data.classes, data.population) == (np.float64, np.int64, 2, None)


def test_missing_cells_are_nan_and_noted(loaded, frame):
    frame = frame.astype({"member": object})
    frame.loc[:9, "age"] = np.nan
    frame.loc[100:119, "member"] = None
    frame.loc[200:229, "month"] = None
    frame.loc[300:339, "region"] = np.nan
    data = loaded(frame, categorical=("region",), duplicates="keep")
    assert data.columns[1].categories == ("1", "2", "3", "4")  # not 1.0, though pandas reads floats here
    assert data.columns[3] == Column("member")
    assert np.isnan(whole(data)[0]).sum(axis=0).tolist() == [10, 40, 30, 20]
    assert noted(data, "Missing cells by column, of 1,000 rows: age (10), region (40), month (30), member (20).")


@pytest.mark.parametrize("suffix", ["parquet", "pq", "csv.gz", "PARQUET"])
def test_other_formats_give_the_same_rows(loaded, spec, frame, tmp_path, suffix):
    frame.loc[:9, "age"] = np.nan
    frame.loc[5:7, "month"] = None
    expected = loaded(frame)
    path = tmp_path / f"table.{suffix}"
    frame.to_csv(path, index=False) if suffix == "csv.gz" else frame.to_parquet(path)
    data = load(spec | {"path": str(path)})
    assert data.columns == expected.columns
    for rows, same in zip(parts(data), parts(expected), strict=True):
        assert np.array_equal(rows.x, same.x, equal_nan=True)
        assert np.array_equal(rows.y, same.y)
        assert np.array_equal(rows.identity, same.identity)


def test_parquet_types(spec, frame, tmp_path):
    frame["month"] = frame.month.astype("category")
    frame["region"] = frame.region.astype("Int64").mask(frame.index < 10)
    frame["member"] = frame.member.astype("boolean").mask(frame.index < 5)
    frame["age"] = frame.age.astype("float32")
    frame.index.name = "customer"
    path = tmp_path / "table.parquet"
    frame[frame.age > 20].to_parquet(path)
    data = load(spec | {"path": str(path), "drop": ["customer"]})
    assert [column.name for column in data.columns] == ["age", "region", "month", "member"]
    assert data.columns[2].categories == ("Dec", "Feb", "Nov")
    assert np.isnan(whole(data)[0]).any(axis=0).tolist() == [False, True, False, True]


def test_lists_may_stand_in_a_dropped_column(spec, frame, tmp_path):
    frame["tags"] = [["a"]] * ROWS
    path = tmp_path / "table.parquet"
    pd.concat([frame, frame[:3]]).to_parquet(path)
    assert len(whole(load(spec | {"path": str(path), "drop": ["tags"]}))[1]) == ROWS


def test_delimiter_encoding_and_byte_order_mark(spec, frame, tmp_path):
    frame["city"] = "Köln"
    for delimiter, encoding in ((";", "latin-1"), ("\t", "utf-16"), ("|", "utf-8-sig")):
        frame.to_csv(spec["path"], sep=delimiter, encoding=encoding, index=False)
        given = "utf-8" if encoding == "utf-8-sig" else encoding
        data = load(spec | {"delimiter": delimiter, "encoding": given})
        assert data.columns[0].name == "age"
        assert data.columns[-1].categories == ("Köln",)


def test_features_stand_in_the_order_of_the_file(loaded, frame):
    data = loaded(frame, features=("month", "age", "member"), drop=("member",), segments=("month",))
    assert [column.name for column in data.columns] == ["age", "month"]
    assert data.segments == ("month",)


def test_fingerprints_tell_equal_rows_apart_and_stay(loaded, frame):
    twice = pd.concat([frame, frame])
    a, b = loaded(twice, duplicates="keep"), loaded(twice, duplicates="keep", split_seed=1)
    assert len(np.unique(whole(a)[2])) == 2 * ROWS
    assert np.array_equal(whole(a)[2], whole(b)[2])
    assert not np.array_equal(a.test.identity, b.test.identity)


def test_a_large_file_is_announced(loaded, frame, spec, monkeypatch):
    loaded(frame)
    monkeypatch.setattr(csv_table, "LARGE", 1)
    said = []
    load(spec, said.append)
    assert len(said) == 1
    assert spec["path"] in said[0]


# The target


@pytest.mark.parametrize(
    ("values", "positive"),
    [
        (("no", "yes"), "yes"),
        (("no", "yes"), True),  # YAML reads an unquoted yes so
        (("no", "yes"), None),
        (("False", "True"), None),
        (("FALSE", "TRUE"), "true"),
        (("false", "true"), 1),
        ((0, 1), None),
        ((0, 1), True),
        ((0, 1), "1"),
        ((0.0, 1.0), "1.0"),
        ((1, 2), 2),
        ((2.5, -1.5), -1.5),
        (("a", "0"), 0),
    ],
)
@pytest.mark.parametrize("gaps", [0, 3])
def test_the_positive_value(loaded, frame, values, positive, gaps):
    good = frame.label == "good"
    frame["label"] = pd.Series(np.where(good, values[1], values[0])).astype(object)
    frame.loc[: gaps - 1, "label"] = None
    data = loaded(frame, positive=positive)
    assert whole(data)[1].sum() == good[gaps:].sum()
    assert bool(noted(data, "Rows without a value of the target label were left out: 3.")) == bool(gaps)


@pytest.mark.parametrize(("given", "found"), [("01", [1]), ("1", [0]), (1.0, [0]), ("1.0", [0]), (True, [0]), (2, [])])
def test_the_same_text_comes_before_the_same_number(given, found):
    assert csv_table._equal(["1", "01"], given) == found


def test_the_other_value_may_be_positive(loaded, frame):
    assert whole(loaded(frame, positive="bad"))[1].sum() == (frame.label == "bad").sum()


@pytest.mark.parametrize(
    ("values", "positive", "words"),
    [
        (["good", "bad"], None, "'bad', 'good': say which is class 1, as in positive: 'good'"),
        (["good", "bad"], "great", "positive='great' is not a value of the target 'label': expected one of 'bad', 'g"),
        (["good", "good"], "good", "has one value in 1,000 rows ('good'), two classes are supported"),
        (
            ["good", "bad", "odd", "even"],
            "good",
            "has 4 values in 1,000 rows ('bad', 'even', 'good', 'odd'), two cla",
        ),
        (
            list(range(50)),
            1,
            "has 50 values in 1,000 rows ('0', '1', '10', '11', '12' and 45 more), two classes are",
        ),
        ([None], "good", "target 'label' has no value in 1,000 rows"),
        ([1, 2], None, "say which is class 1, as in positive: '2'"),
    ],
)
def test_a_target_that_is_not_of_two_classes(loaded, frame, values, positive, words):
    frame["label"] = np.resize(np.array(values, dtype=object), ROWS)
    assert words in refusal(loaded, frame, positive=positive)


# The splits


def test_splits_are_disjoint_stratified_and_reproducible(loaded, frame):
    data, again, other = loaded(frame), loaded(frame), loaded(frame, split_seed=7)
    assert [len(rows) for rows in parts(data)] == [640, 160, 200]
    assert len(np.unique(whole(data)[2])) == ROWS
    share = (frame.label == "good").mean()
    for rows, same, differs in zip(parts(data), parts(again), parts(other), strict=True):
        assert abs(rows.y.sum() - share * len(rows)) <= 1
        assert np.array_equal(rows.x, same.x)
        assert not np.array_equal(rows.identity, differs.identity)


def test_a_training_limit_keeps_the_balance_and_the_other_splits(loaded, frame):
    data, limited = loaded(frame), loaded(frame, train_limit=300)
    assert len(limited.train) == 300
    assert abs(limited.train.y.mean() - data.train.y.mean()) < 0.01
    assert np.isin(limited.train.identity, data.train.identity).all()
    assert np.array_equal(limited.test.identity, data.test.identity)
    assert np.array_equal(limited.validation.identity, data.validation.identity)
    assert len(loaded(frame, train_limit=5000).train) == 640


def test_duplicates_go_before_the_split_unless_kept(loaded, frame):
    twice = pd.concat([frame, frame[:50]])
    data = loaded(twice)
    assert len(whole(data)[1]) == ROWS
    assert noted(data, "Rows that repeat an earlier one in every column were left out: 50.")
    kept = loaded(twice, duplicates="keep")
    assert len(whole(kept)[1]) == ROWS + 50
    assert not noted(kept, "repeat")


def test_rows_that_differ_in_the_target_alone_are_no_duplicates(loaded, frame):
    other = frame[:50].assign(label=np.where(frame.label[:50] == "good", "bad", "good"))
    assert len(whole(loaded(pd.concat([frame, other])))[1]) == ROWS + 50


@pytest.mark.parametrize(
    ("shift", "holds"),
    [
        ("month == Nov", lambda f: f.month == "Nov"),
        (" month=='Nov' ", lambda f: f.month == "Nov"),
        ('month != "Nov"', lambda f: (f.month != "Nov") & f.month.notna()),
        ("age > 40", lambda f: f.age > 40),
        ("age >= 40", lambda f: f.age >= 40),
        ("'age' < 4e1", lambda f: f.age < 40),
        ("age <= 40.0", lambda f: f.age <= 40),
        ("region == 2", lambda f: f.region == 2),
        ("region != 2.0", lambda f: f.region != 2),
        ("member == TRUE", lambda f: f.member),
        ("member == 0", lambda f: ~f.member),
        ("member < 1", lambda f: ~f.member),
        ("day of sale > 3", lambda f: f["day of sale"] > 3),
    ],
)
def test_a_shift_tests_on_the_rows_where_it_holds(loaded, frame, shift, holds):
    frame["day of sale"] = np.resize(np.arange(7), ROWS)
    frame.loc[:9, "age"] = 40.0
    frame.loc[10:19, "month"] = None
    frame.loc[20:29, "age"] = np.nan
    data = loaded(frame, shift=shift, validation_fraction=0.5)
    expected = frame[holds(frame)]
    assert np.array_equal(data.test.y, expected.label == "good")
    assert np.array_equal(data.test.x[:, 0], expected.age, equal_nan=True)
    assert len(data.validation) == round(0.5 * (ROWS - len(expected)))
    assert len(np.unique(whole(data)[2])) == ROWS


def test_a_shift_may_be_of_a_column_that_is_no_feature(loaded, frame):
    data = loaded(frame, shift="month == Nov", drop=["month"])
    assert len(data.test) == (frame.month == "Nov").sum()
    assert "month" not in [column.name for column in data.columns]


@pytest.mark.parametrize(
    ("shift", "words"),
    [
        ("mont == Nov", "there is no column 'mont' (did you mean 'month'?), expected one of age, region, month"),
        ("month = Nov", "shift='month = Nov' is no condition: expected a column, one of > >= < <= == != and a value"),
        ("month", "is no condition"),
        ("month == Nov and age > 3", "is no condition"),
        ("month == ", "is no condition"),
        ("__import__('os') == 1", "is no condition"),
        ("month > 3", "compares string values with '3', expected two numbers: use == or !="),
        ("age > old", "compares floating values with 'old', expected two numbers"),
        ("month == nov", "holds in no row: 'month' has the values 'Dec', 'Feb', 'Nov'; give another condition"),
        ("region > 4", "holds in no row: 'region' goes from 0 to 4; give another condition"),
        ("age > 0", "holds in every row, so that none is left to train on: 'age' goes from"),
        ("label == good", "of 1,000 rows the test split gets 300, of them 300 positive"),
        ("odd == 1", "the training split gets 320, of them 0 positive"),
        ("region > 3", "leaves 78 positives in the test split, expected at least 100"),
        ("few == true", "gets 20, of them 6 positive: every split needs at least 100 rows"),
    ],
)
def test_a_shift_that_cannot_be(loaded, frame, shift, words):
    frame["odd"] = ((frame.label == "good") | (frame.index % 2 == 0)).astype(int)
    frame["few"] = frame.index < 20
    frame.loc[:259, "region"] = 4
    frame.loc[260:, "region"] %= 4
    message = refusal(loaded, frame, shift=shift, least_test_positives=100)
    assert words in message
    if "leaves" in message:
        assert "set data.least_test_positives=78 to go on anyway" in message
        assert len(loaded(frame, shift=shift, least_test_positives=78).test) == 260


def test_too_few_negatives_in_a_shifted_test_split(loaded, frame):
    words = refusal(loaded, frame, shift="month == Nov", positive="bad", least_test_positives=200)
    assert "negatives in the test split, expected at least 200" in words


@pytest.mark.parametrize(
    ("n", "changes", "words"),
    [
        (20, {}, "of 20 rows the test split gets 4, of them 1 positive: every split needs at least 100 rows and 10 of"),
        (400, {}, "the test split gets 80, of them 24 positive"),
        (ROWS, {"test_fraction": 0.01}, "give more rows, or a larger test_fraction"),
        (ROWS, {"validation_fraction": 0.01}, "give more rows, or a larger validation_fraction"),
        (ROWS, {"test_fraction": 0.99}, "give more rows, or smaller fractions of the others"),
        (ROWS, {"train_limit": 99}, "the training split gets 99, of them 30 positive"),
        (ROWS, {"train_limit": 99}, "give more rows, or a larger train_limit"),
    ],
)
def test_too_few_rows(loaded, n, changes, words):
    assert words in refusal(loaded, made(n), **changes)


def test_too_few_rows_of_a_class(loaded, frame):
    frame["label"] = np.where(frame.index < 40, "good", "bad")
    assert "the test split gets 200, of them 8 positive" in refusal(loaded, frame)


# Refused names


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"target": "lable"},
            "target: there is no column 'lable' (did you mean 'label'?), expected one of age, region",
        ),
        ({"drop": ["AGE"]}, "drop: there is no column 'AGE' (did you mean 'age'?)"),
        ({"features": ["ages"]}, "features: there is no column 'ages' (did you mean 'age'?)"),
        ({"categorical": ["xyz"]}, "categorical: there is no column 'xyz', expected one of age, region, month, member"),
        ({"segments": ["mont"]}, "segments: there is no column 'mont' (did you mean 'month'?)"),
        ({"segments": ["month"], "drop": ["month"]}, "segments: there is no column 'month'"),
        ({"features": ["age", "label"]}, "features: 'label' is the target, expected a feature"),
        ({"drop": ["label"]}, "drop: 'label' is the target"),
        ({"features": []}, "no feature is left"),
        ({"drop": ["age", "region", "month", "member"]}, "no feature is left of the columns age, region"),
        ({"delimiter": "::"}, "delimiter='::': expected one ASCII character"),
        ({"delimiter": "§"}, "delimiter='§': expected one ASCII character"),
        ({"encoding": "utf-9"}, "encoding='utf-9' is unknown"),
    ],
)
def test_names_that_are_not_there(loaded, frame, spec, changes, words):
    message = refusal(loaded, frame, **changes)
    assert message.startswith(f"{spec['path']}: ")
    assert words in message


@pytest.mark.parametrize(("sign", "given"), [(";", "delimiter: ';'"), ("\t", 'delimiter: "\\t"'), ("|", "'|'")])
def test_a_wrong_delimiter_is_guessed(loaded, frame, sign, given):
    message = refusal(loaded, frame.to_csv(index=False, sep=sign, decimal=","))
    assert given in message
    assert "the delimiter is probably wrong" in message


def test_one_column_is_not_always_a_wrong_delimiter(loaded):
    assert "there is no column 'label'" in refusal(loaded, "age\n1\n2\n")
    assert "no feature is left" in refusal(loaded, "label\ngood\nbad\n")


def test_doubled_column_names(loaded, spec, frame):
    text = frame.to_csv(index=False).replace("region", "age", 1)
    assert "several columns are called age: give each its own name" in refusal(loaded, text)
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = spec["path"].replace(".csv", ".parquet")
    parquet.write_table(pyarrow.table([[1, 2], [3, 4]], names=["age", "age"]), path)
    assert "age" in refusal(load, spec | {"path": path})


# Refused files


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.csv", None, "this file does not exist"),
        (".", None, "this is a folder"),
        ("table.xlsx", b"PK", "Expected a name that ends in .csv, .csv.gz"),
        ("table.csv", b"", "the file is empty: expected a header and rows"),
        ("table.csv", b"\n\n", "the file is empty"),
        ("table.csv", b"age,label\n", "target 'label' has no value in 0 rows"),
        ("table.csv", b"age,label\n1,g\xe9\n", "not in utf-8: give its encoding, perhaps encoding: latin-1"),
        ("table.csv", b"\xe9ge,label\n1,g\n", "perhaps encoding: latin-1"),
        ("table.csv", "age,label\n1,g".encode("utf-16"), "perhaps encoding: utf-16"),
        ("table.csv", b"age,label\n1,g\n2,b,3\n", "do not fit the header (Expected 2 fields in line 3, saw 3)"),
        ("table.csv", b"age,label\n1,g,3\n2,b,3\n", "its rows have more fields than the header"),
        ("table.csv", b"age,label\n1,g,3\n2,b\n", "its rows have more fields than the header"),
        ("table.csv", b"age,label\n1,g\n\n2\n3,b\n", "line 4 has 1 of the header's 2 fields"),
        ("table.csv", b'age,label\n1,g\n2,"b\n3,b\n', "EOF inside string"),
        ("table.csv.gz", b"age,label\n1,g\n", "it cannot be read (Not a gzipped file"),
        ("table.csv.gz", gzip.compress(b"age,label\n" + b"1,g\n2,b\n" * 9999, mtime=0)[:50], "it cannot be read"),
        ("table.parquet", b"age,label\n1,g\n", "it cannot be read"),
        ("table.parquet", b"", "it cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read(spec, tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    message = refusal(load, spec | {"path": str(path)})
    assert message.startswith(f"{path}: ")
    assert words in message


# Refused values


def test_features_without_a_value_are_named_with_a_ready_drop(loaded, frame):
    frame[["empty", "void"]] = np.nan
    assert "give drop: ['age', 'empty', 'void']" in refusal(loaded, frame, drop=["age"])
    assert len(loaded(frame, drop=["age", "empty", "void"]).columns) == 3


def test_a_nameless_index_column_can_be_dropped(loaded, frame):
    assert len(loaded(frame.to_csv(), drop=["Unnamed: 0"]).columns) == 4


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_values(loaded, frame, value):
    frame.loc[:2, "age"] = value
    assert "column 'age' has infinite values (3), expected finite numbers or empty cells" in refusal(loaded, frame)
    assert len(loaded(frame, drop=["age"]).columns) == 3


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (pd.date_range("2024-01-01", periods=ROWS), "datetime64"),
        (pd.date_range("2024-01-01", periods=ROWS).date, "date"),
        (pd.to_timedelta(np.arange(ROWS), unit="s"), "timedelta64"),
        ([[1]] * ROWS, "mixed"),
        ([b"x"] * ROWS, "bytes"),
    ],
)
def test_other_types(spec, frame, tmp_path, values, kind):
    path = tmp_path / "table.parquet"
    frame.assign(when=values).to_parquet(path)
    message = refusal(load, spec | {"path": str(path)})
    assert f"column 'when' holds {kind} values, expected numbers, booleans or text" in message
    assert len(load(spec | {"path": str(path), "drop": ["when"]}).columns) == 4


# Notes


def test_an_ordinary_table_has_no_notes(loaded, frame):
    assert loaded(frame).notes == ()


@pytest.mark.parametrize(
    ("values", "leaks"),
    [
        (lambda good: good * 1.0, True),
        (lambda good: np.where(good, -3.0, 5.0) + np.linspace(0, 1, ROWS), True),
        (lambda good: np.where(good, "paid", "open"), True),
        (lambda good: np.where(good, "a", "b").astype(object) + (np.arange(ROWS) % 7).astype(str), True),
        (lambda good: np.where(good, 5.0, np.nan), True),  # known for the positives alone
        (lambda good: np.where(np.arange(ROWS) < 100, np.nan, good * 1.0), True),
        (lambda good: 1.0 * (good ^ (np.arange(ROWS) == 0)), False),
        (lambda good: np.where(good ^ (np.arange(ROWS) == 0), "paid", "open"), False),
        (lambda good: np.where(np.arange(ROWS) < 10, good, np.nan), False),  # ten rows may do so by chance
    ],
)
def test_a_column_that_predicts_the_target_perfectly(loaded, frame, values, leaks):
    good = (frame.label == "good").to_numpy()
    found = noted(loaded(frame.assign(leak=values(good))), "predicts the target perfectly")
    expected = "Column leak predicts the target perfectly: if it is not known at prediction time, put it under drop."
    assert found == ([expected] if leaks else [])


def test_a_column_like_an_id(loaded, frame):
    data = loaded(frame.assign(session=[f"s{i % 600}" for i in range(ROWS)]))
    assert noted(data, "Column session has 600 different values in 1,000 rows: if it is an id, put it under drop.")
    half = loaded(frame.assign(session=[f"s{i % 500}" for i in range(ROWS)]))
    assert not noted(half, "id")


def test_categories_of_test_rows_only(loaded, frame):
    data = loaded(frame, shift="month == Nov")
    assert noted(data, "Categories of column month occur in test rows only and are encoded as unknown: Nov.")
    assert data.columns[2].categories == ("Dec", "Feb", "Nov")
    assert (data.test.x[:, 2] == 2).all()


def test_columns_that_are_constant_in_the_training_rows(loaded, frame):
    frame = frame.assign(
        one="x", promoted=(frame.month == "Nov") * 1.0, late=np.where(frame.month == "Nov", frame.age, np.nan)
    )
    frame["gappy"] = np.where(frame.age > 40, 1.0, np.nan)
    notes = noted(loaded(frame, shift="month == Nov"), "is constant in the training rows and has no feature")
    assert [note.split()[1] for note in notes] == ["one", "promoted", "late"]


# New rows


def test_new_rows_are_encoded_as_the_table_was(loaded, frame):
    data = loaded(frame, categorical=("region",), shift="month == Nov")
    new = frame[frame.month == "Nov"].drop(columns="label")
    assert np.array_equal(encode_frame(new[new.columns[::-1]], data.columns), data.test.x)


def test_what_is_unknown_or_missing_in_new_rows():
    columns = (Column("region", ("1", "2")), Column("month", ("Dec", "Nov")), Column("age"))
    new = pd.DataFrame({"age": ["4.5", None, True], "month": ["Nov", "May", None], "region": [2.0, None, 3.0]})
    expected = [[1, 1, 4.5], [np.nan, 2, np.nan], [2, np.nan, 1]]
    assert np.array_equal(encode_frame(new, columns), expected, equal_nan=True)
    assert encode_frame(new[:0], columns).shape == (0, 3)


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ({"ages": [1]}, "there is no column 'age' (did you mean 'ages'?), expected one of ages"),
        ({"age": ["old"]}, "column 'age' has the value 'old', expected numbers"),
        ({"age": [np.inf]}, "column 'age' has infinite values (1)"),
    ],
)
def test_new_rows_that_cannot_be_encoded(new, words):
    assert words in refusal(encode_frame, pd.DataFrame(new), (Column("age"),))


# Real data


@pytest.fixture
def shoppers(spec):
    if not SHOPPERS.exists():
        pytest.skip(f"{SHOPPERS} is not here")
    nominal = ("OperatingSystems", "Browser", "Region", "TrafficType")
    changes = {"target": "Revenue", "positive": None, "categorical": nominal, "least_test_positives": 200}
    return spec | {"path": str(SHOPPERS)} | changes


def test_online_shoppers(shoppers):
    data = load(shoppers)
    assert [len(rows) for rows in parts(data)] == [7815, 1954, 2442]  # of 12,330 - 119
    for rows in parts(data):
        assert rows.y.mean() == pytest.approx(1908 / 12211, abs=1e-3)
    assert noted(data, "Rows that repeat an earlier one in every column were left out: 119.")
    assert noted(data, "ProductRelated (12) and 3 more")
    assert not noted(data, "perfectly")


def test_online_shoppers_in_november(shoppers):
    data = load(shoppers | {"shift": "Month == Nov"})
    assert (len(data.test), data.test.y.sum()) == (2983, 760)
    assert noted(data, "column Month occur in test rows only and are encoded as unknown: Nov.")
    assert len(load(shoppers | {"shift": "Month == Nov", "duplicates": "keep"}).test) == 2998


def test_online_shoppers_near_a_special_day_can_answer_nothing(shoppers):
    shoppers["shift"] = "SpecialDay > 0"
    message = refusal(load, shoppers)
    assert "leaves 77 positives in the test split, expected at least 200" in message
    assert "set data.least_test_positives=77 to go on anyway" in message
    data = load(shoppers | {"least_test_positives": 77})
    assert (len(data.test), data.test.y.sum()) == (1249, 77)
    assert noted(data, "Column SpecialDay is constant in the training rows and has no feature.")
