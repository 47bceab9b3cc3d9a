"""A user's CSV or Parquet file for binary classification: read, checked, split; every refusal is one line.

The categories of a column are listed from the whole file, test rows too: a code is only a name. What can be learnt
about them is fitted later, on the rows to fit on.
"""

import csv
import difflib
import gzip
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trainables.datasets import BadData, Column, Dataset, Rows, Say, shortened

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

PARQUET = (".parquet", ".pq")
SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", ".txt.gz", *PARQUET)
LARGE = 50_000_000  # bytes of a file that takes seconds to read
LEAST_ROWS = 100  # of a split
LEAST_OF_CLASS = 10  # rows of each class in a split
NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal", "boolean")  # the kinds as pandas infers them
TEXTS = ("string", "categorical", "mixed-integer")
TRUTH = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)
SIZES = {">": np.greater, ">=": np.greater_equal, "<": np.less, "<=": np.less_equal}
WORD = r"""'[^']+'|"[^"]+"|[^=<>!'"\s][^=<>!'"]*?"""
CONDITION = re.compile(rf"\s*({WORD})\s*(==|!=|>=|<=|>|<)\s*({WORD})\s*")


def load(spec: Mapping[str, Any], progress: Say | None = None) -> Dataset:
    """The rows of a table in three splits, each in the order of the file; raises BadData.

    spec: `path`, `delimiter`, `encoding`; `target`, and `positive`, its value that is class 1 (None where the values
    are plainly true and false); `features` (None: all but the target), `drop`, `categorical` (columns of numbers that
    are names), `segments`; `duplicates` (`drop` or `keep`); `test_fraction`, or `shift`, a condition such as
    "Month == Nov": where it holds is the test split, with `least_test_positives` rows of each class (a missing cell
    fulfils no condition); `validation_fraction` of the rest; `train_limit` (rows, or None); `split_seed`.
    progress: is told when a large file is read.
    """
    path = Path(spec["path"]).expanduser().resolve()
    try:
        return _load(path, spec, progress)
    except BadData as error:
        raise BadData(" ".join(f"{path}: {error}".splitlines())) from error


def _load(path: Path, spec: Mapping[str, Any], progress: Say | None) -> Dataset:
    frame, features = _read(path, spec, progress)
    kept, notes = _rows_to_keep(frame, spec)
    if not kept.all():
        frame = frame[kept]
    y = _classes(frame[spec["target"]], spec["target"], spec["positive"])
    shifted = None if spec["shift"] is None else _holds(spec["shift"], frame)
    frame = frame[features]
    columns, x = _encoded(frame, spec)
    del frame  # as large as x
    identity = _fingerprints(x, kept)
    parts = _split(y, shifted, spec)
    notes += [*_notes_on_columns(columns, x, y, np.concatenate(parts[:2])), *_notes_on_splits(columns, x, *parts)]
    train, validation, test = (Rows(x[part], y[part], identity[part]) for part in parts)
    return Dataset(2, train, validation, test, None, columns, tuple(_names(spec, "segments")), tuple(notes))


def numbered(spec: Mapping[str, Any], id_name: str | None = None) -> tuple[Indices, list[str]]:
    """Of every row of the file its fingerprint and its id, in the file's order where that is a number from 0.

    spec: of a table that `load` has read. id_name: the column that says each row's id, if there is one of that name;
    a row of the data that shares its id with one that was left out comes after it. Raises BadData.
    """
    frame, features = _read(Path(spec["path"]).expanduser().resolve(), spec, None)
    kept, _ = _rows_to_keep(frame, spec)
    prints: Indices = pd.util.hash_array(np.arange(len(kept))).view(np.int64)  # for those left out, in no split
    prints[kept] = _fingerprints(_encoded(frame.loc[kept, features], spec)[1], kept)
    if id_name not in frame:
        return prints, [str(number) for number in range(len(kept))]
    places, texts = _texts(frame[id_name])
    own = places[kept]
    if (own < 0).any() or len(np.unique(own)) < len(own):
        raise BadData(f"column {id_name!r} cannot tell rows apart: it has empty cells, or one id in several rows")
    order = np.concatenate([np.flatnonzero(~kept), np.flatnonzero(kept)])
    return prints[order], [texts[place] if place >= 0 else "" for place in places[order]]


def _encoded(frame: pd.DataFrame, spec: Mapping[str, Any]) -> tuple[tuple[Column, ...], Floats]:
    """The columns of these features, and what stands in them (n, columns)."""
    if empty := [name for name in frame if frame[name].isna().all()]:
        raise BadData(f"features without a value in any row: give drop: {_names(spec, 'drop') + empty}")
    columns = tuple(_column(frame[name], name, name in _names(spec, "categorical")) for name in frame)
    return columns, encode_frame(frame, columns)


def _fingerprints(x: Floats, kept: Mask) -> Indices:
    """(n,) of the rows that are kept, each of its number in the file and of what stands in it."""
    rows = pd.DataFrame(x, index=np.flatnonzero(kept), copy=False)
    prints: Indices = pd.util.hash_pandas_object(rows).to_numpy().view(np.int64)
    return prints


# The file


def _read(path: Path, spec: Mapping[str, Any], progress: Say | None) -> tuple[pd.DataFrame, list[str]]:
    """The whole table, and the names of its features in the order of the file."""
    if not path.is_file():
        raise BadData(f"this {'is a folder' if path.is_dir() else 'file does not exist'}: give the path of a file")
    if not path.name.lower().endswith(SUFFIXES):
        raise BadData(f"what kind of file is it? Expected a name that ends in {', '.join(SUFFIXES)}")
    if progress and path.stat().st_size >= LARGE:
        progress(f"reading {path} ({path.stat().st_size / 1e6:,.0f} MB)")
    with _explained(path, spec):
        if not path.name.lower().endswith(PARQUET):
            header = _header(path, spec)
            features = _features(header, spec)  # before the rows: a wrong delimiter would show as a ragged row
            return _csv(path, header, spec), features
        frame = pd.read_parquet(path)
        if frame.index.names != [None]:
            frame = frame.reset_index()
        frame.columns = [str(name) for name in frame.columns]
        return frame, _features(list(frame.columns), spec)


@contextmanager
def _explained(path: Path, spec: Mapping[str, Any]) -> Iterator[None]:
    """Whatever reading trips over, as BadData."""
    try:
        yield
    except BadData:
        raise
    except UnicodeError as error:
        with path.open("rb") as file:
            likely = "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "latin-1"
        raise BadData(
            f"its text is not in {spec['encoding']}: give its encoding, perhaps encoding: {likely}"
        ) from error
    except LookupError as error:
        raise BadData(f"encoding={spec['encoding']!r} is unknown: expected for example utf-8 or latin-1") from error
    except pd.errors.ParserWarning as error:
        raise BadData("its rows have more fields than the header: correct the header, or the rows") from error
    except (pd.errors.ParserError, csv.Error) as error:
        reason = str(error).removeprefix("Error tokenizing data. C error: ").strip()
        raise BadData(
            f"its rows do not fit the header ({reason}): correct them, or delimiter={spec['delimiter']!r}"
        ) from error
    except (OSError, EOFError, ImportError, ValueError, zlib.error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadData(f"it cannot be read ({reason}): make it readable, or write it anew") from error


def _opened(path: Path, spec: Mapping[str, Any]) -> TextIO:
    encoding = "utf-8-sig" if spec["encoding"].lower() in ("utf-8", "utf8") else spec["encoding"]
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding=encoding, newline="")
    return path.open(encoding=encoding, newline="")


def _header(path: Path, spec: Mapping[str, Any]) -> list[str]:
    """The names of the columns as they stand there (pandas would rename doubled ones)."""
    if len(spec["delimiter"].encode()) != 1:
        raise BadData(f"delimiter={spec['delimiter']!r}: expected one ASCII character, for example ',' or ';'")
    with _opened(path, spec) as file:
        for row in csv.reader(file, delimiter=spec["delimiter"]):
            if row:
                return [name or f"Unnamed: {i}" for i, name in enumerate(row)]
    raise BadData("the file is empty: expected a header and rows")


def _csv(path: Path, header: list[str], spec: Mapping[str, Any]) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # pandas would cut the rows
        frame = pd.read_csv(
            path,
            sep=spec["delimiter"],
            encoding=spec["encoding"],
            header=0,
            names=header,
            index_col=False,
            low_memory=False,  # one type a column
        )
    if frame[header[-1]].isna().any():  # as pandas fills up short rows
        with _opened(path, spec) as file, suppress(csv.Error):
            rows = csv.reader(file, delimiter=spec["delimiter"])
            if short := next((row for row in rows if 0 < len(row) < len(header)), None):
                raise BadData(
                    f"line {rows.line_num} has {len(short)} of the header's {len(header)} fields: correct it, or end "
                    "it with empty fields"
                )
    return frame


# The names of columns


def _features(header: list[str], spec: Mapping[str, Any]) -> list[str]:
    """The names of the features in the order of the file; raises BadData for a name that cannot be."""
    if doubled := sorted({name for name in header if header.count(name) > 1}):
        raise BadData(f"several columns are called {shortened(doubled)}: give each its own name in the header")
    target = spec["target"]
    if target not in header:
        raise BadData(f"target: {_delimiter_hint(header) or _unknown(target, header)}")
    allowed = [name for name in header if name != target]
    for key in ("features", "drop", "categorical"):
        for name in _names(spec, key):
            if name not in allowed:
                reason = f"{name!r} is the target, expected a feature" if name == target else _unknown(name, allowed)
                raise BadData(f"{key}: {reason}")
    wanted = allowed if spec["features"] is None else _names(spec, "features")
    features = [name for name in allowed if name in wanted and name not in _names(spec, "drop")]
    if not features:
        raise BadData(f"no feature is left of the columns {shortened(header)}: give more features, or drop fewer")
    for name in _names(spec, "segments"):
        if name not in features:
            raise BadData(f"segments: {_unknown(name, features)}")
    return features


def _names(spec: Mapping[str, Any], key: str) -> list[str]:
    return [str(name) for name in spec[key] or ()]


def _unknown(name: str, allowed: Iterable[str]) -> str:
    names = {str(column).casefold(): str(column) for column in allowed}
    close = difflib.get_close_matches(name.casefold(), names, n=1)
    hint = f" (did you mean {names[close[0]]!r}?)" if close else ""
    return f"there is no column {name!r}{hint}, expected one of {shortened(list(names.values()), 20)}"


def _delimiter_hint(header: list[str]) -> str | None:
    likely = max(";\t|,", key=header[0].count)
    if len(header) > 1 or likely not in header[0]:
        return None
    given = '"\\t"' if likely == "\t" else repr(likely)
    return f"the only column is {header[0][:60]!r}, so the delimiter is probably wrong: try delimiter: {given}"


# Values


def encode_frame(frame: pd.DataFrame, columns: Sequence[Column]) -> Floats:
    """(n, columns): the rows of a table as these columns say; other columns are ignored. Raises BadData.

    A number stands as it is, a boolean as 0 or 1, a category as its code, or as len(categories) where it is none of
    the column's categories. NaN where there is no value.
    """
    x = np.empty((len(frame), len(columns)))
    for i, column in enumerate(columns):
        if column.name not in frame:
            raise BadData(_unknown(column.name, frame.columns))
        values = frame[column.name]
        x[:, i] = _codes(values, column.categories) if column.categories else _numbers(values, column.name)
    return x


def _column(values: pd.Series, name: str, categorical: bool) -> Column:
    kind = pd.api.types.infer_dtype(values, skipna=True)
    if kind not in NUMBERS + TEXTS:
        raise BadData(
            f"column {name!r} holds {kind} values, expected numbers, booleans or text: write it as one of these, or "
            "put it under drop"
        )
    if kind in TEXTS or categorical:
        return Column(name, tuple(sorted(set(_texts(values)[1]))))
    return Column(name)


def _codes(values: pd.Series, categories: Sequence[str]) -> Floats:
    places, texts = _texts(values)
    codes = {text: code for code, text in enumerate(categories)}
    table = np.array([*(codes.get(text, len(categories)) for text in texts), np.nan])
    return table[places]


def _numbers(values: pd.Series, name: str) -> Floats:
    if not pd.api.types.is_numeric_dtype(values.dtype):
        numbers = pd.to_numeric(values.astype(object), errors="coerce")
        lost = values[numbers.isna() & values.notna()]
        if len(lost):
            raise BadData(f"column {name!r} has the value {lost.iloc[0]!r}, expected numbers: correct it")
        values = numbers
    array: Floats = values.to_numpy(dtype=np.float64, na_value=np.nan)
    if infinite := int(np.isinf(array).sum()):
        raise BadData(
            f"column {name!r} has infinite values ({infinite:,}), expected finite numbers or empty cells: correct "
            "them, or put the column under drop"
        )
    return array


def _texts(values: pd.Series) -> tuple[Indices, list[str]]:
    """(n,) the place of each row's value in the list, -1 where it is missing; and the list."""
    places, distinct = pd.factorize(values)
    return places, [_text(value) for value in distinct]


def _text(value: Any) -> str:
    """The same for 1 and 1.0, as a missing cell turns a column of integers into floats."""
    whole = isinstance(value, float | np.floating) and float(value).is_integer() and abs(float(value)) < 2**53
    return str(int(value)) if whole else str(value)


def _equal(texts: list[str], given: Any) -> list[int]:
    """The indices of the texts that a given value means: the same text, else the same number, else the same truth."""
    meant = [str(given)]
    with suppress(ValueError):
        meant.append(_text(float(given)))
    for wanted in meant:
        if wanted in texts:
            return [i for i, text in enumerate(texts) if text == wanted]
    truths = [TRUTH.get(text.lower()) for text in texts]
    if None in truths:
        return []
    return [i for i, truth in enumerate(truths) if truth is TRUTH.get(str(given).lower())]


def _classes(values: pd.Series, target: str, positive: Any) -> Indices:
    """(n,) 1 where the target is the positive value, else 0."""
    places, texts = _texts(values)
    listed = shortened([repr(text) for text in sorted(texts)])
    if len(texts) != 2:
        count = "one value" if len(texts) == 1 else f"{len(texts):,} values"
        raise BadData(
            f"target {target!r} has {count} in {len(values):,} rows ({listed}), two classes are supported: give a "
            "target with two, or leave rows out of the file"
        )
    if positive is None and {TRUTH.get(text.lower()) for text in texts} != {True, False}:
        raise BadData(
            f"target {target!r} has the values {listed}: say which is class 1, as in positive: {max(texts)!r}"
        )
    chosen = _equal(texts, True if positive is None else positive)
    if not chosen:
        raise BadData(f"positive={positive!r} is not a value of the target {target!r}: expected one of {listed}")
    y: Indices = (places == chosen[0]).astype(np.int64)
    return y


def _holds(condition: str, frame: pd.DataFrame) -> Mask:
    """(n,) where a condition such as "SpecialDay > 0" holds; raises BadData unless in some rows and not in all."""
    parsed = CONDITION.fullmatch(condition)
    if not parsed:
        raise BadData(
            f"shift={condition!r} is no condition: expected a column, one of > >= < <= == != and a value, for example "
            "SpecialDay > 0 or Month == 'Nov'"
        )
    name, operator, value = (group.strip("'\"") for group in parsed.groups())
    if name not in frame:
        raise BadData(f"shift={condition!r}: {_unknown(name, frame.columns)}")
    if operator in SIZES:
        kind, limit = pd.api.types.infer_dtype(frame[name], skipna=True), pd.to_numeric(value, errors="coerce")
        if kind not in NUMBERS or np.isnan(limit):
            raise BadData(
                f"shift={condition!r} compares {kind} values with {value!r}, expected two numbers: use == or !=, or "
                "add a column to the file"
            )
        numbers = _numbers(frame[name], name)
        holds: Mask = SIZES[operator](numbers, limit)
        values = f"goes from {np.nanmin(numbers):g} to {np.nanmax(numbers):g}"
    else:
        places, texts = _texts(frame[name])
        holds = (np.isin(places, _equal(texts, value)) == (operator == "==")) & (places >= 0)
        values = f"has the values {shortened([repr(text) for text in sorted(texts)], 12)}"
    if holds.all() or not holds.any():
        where = "in every row, so that none is left to train on" if holds.any() else "in no row"
        raise BadData(f"shift={condition!r} holds {where}: {name!r} {values}; give another condition")
    return holds


# Rows and splits


def _rows_to_keep(frame: pd.DataFrame, spec: Mapping[str, Any]) -> tuple[Mask, list[str]]:
    """(n,) the rows with a target that do not repeat an earlier row of the file, and notes on the others."""
    notes = []
    kept: Mask = frame[spec["target"]].notna().to_numpy()
    if not kept.any():
        raise BadData(f"target {spec['target']!r} has no value in {len(frame):,} rows: give another target or file")
    if missing := int((~kept).sum()):
        notes.append(f"Rows without a value of the target {spec['target']} were left out: {missing:,}.")
    if spec["duplicates"] == "drop":
        lists = [name for name in frame if pd.api.types.infer_dtype(frame[name], skipna=True) == "mixed"]  # no hash
        repeated = kept & frame.drop(columns=lists).duplicated().to_numpy()
        kept = kept & ~repeated
        if repeated.any():
            notes.append(f"Rows that repeat an earlier one in every column were left out: {repeated.sum():,}.")
    return kept, notes


def _split(y: Indices, shifted: Mask | None, spec: Mapping[str, Any]) -> tuple[Indices, Indices, Indices]:
    """The rows of train, validation and test."""
    rows, seed = np.arange(len(y)), spec["split_seed"]
    if shifted is None:
        test, rest = _drawn(rows, y, round(spec["test_fraction"] * len(rows)), (seed, 0))
        for_test, for_train = "a larger test_fraction", "smaller fractions of the others"
    else:
        test, rest = rows[shifted], rows[~shifted]
        for_test = for_train = f"another shift than {spec['shift']!r}"
    validation, train = _drawn(rest, y, round(spec["validation_fraction"] * len(rest)), (seed, 1))
    _refuse_small("test", test, y, for_test)
    _refuse_small("training", train, y, for_train)
    _refuse_small("validation", validation, y, "a larger validation_fraction")
    if spec["train_limit"] is not None and spec["train_limit"] < len(train):
        train, _ = _drawn(train, y, spec["train_limit"], (seed, 2))
        _refuse_small("training", train, y, "a larger train_limit")
    for count, what in zip(np.bincount(y[test]), ("negatives", "positives"), strict=True):
        if shifted is not None and count < spec["least_test_positives"]:
            raise BadData(
                f"shift={spec['shift']!r} leaves {count} {what} in the test split, expected at least "
                f"{spec['least_test_positives']}, as fewer tell no two models apart: give another shift, or set "
                f"data.least_test_positives={count} to go on anyway"
            )
    return train, validation, test


def _drawn(rows: Indices, y: Indices, count: int, seed: tuple[int, int]) -> tuple[Indices, Indices]:
    """`count` of these rows with their class balance, and the others, both in the order of the file."""
    mixed = np.random.default_rng(seed).permutation(rows)
    positives, negatives = mixed[y[mixed] == 1], mixed[y[mixed] == 0]
    k = round(count * len(positives) / max(len(rows), 1))
    drawn = np.sort(np.concatenate([positives[:k], negatives[: count - k]]))
    return drawn, np.setdiff1d(rows, drawn, assume_unique=True)


def _refuse_small(split: str, rows: Indices, y: Indices, instead: str) -> None:
    positives = int(y[rows].sum())
    if len(rows) < LEAST_ROWS or min(positives, len(rows) - positives) < LEAST_OF_CLASS:
        raise BadData(
            f"of {len(y):,} rows the {split} split gets {len(rows):,}, of them {positives:,} positive: every split "
            f"needs at least {LEAST_ROWS} rows and {LEAST_OF_CLASS} of each class; give more rows, or {instead}"
        )


# What a reader of the result must know


def _notes_on_columns(columns: Sequence[Column], x: Floats, y: Indices, seen: Indices) -> Iterator[str]:
    """seen: the rows whose labels may be looked at, which are not those of the test split."""
    missing = np.isnan(x).sum(axis=0)
    if missing.any():
        counts = [f"{column.name} ({n:,})" for column, n in zip(columns, missing, strict=True) if n]
        yield f"Missing cells by column, of {len(x):,} rows: {shortened(counts)}."
    for column, values, given in zip(columns, x.T, len(x) - missing, strict=True):
        if len(column.categories) > given / 2:
            yield (
                f"Column {column.name} has {len(column.categories):,} different values in {given:,} rows: if it is an "
                "id, put it under drop."
            )
        elif _predicts_perfectly(values[seen], y[seen], bool(column.categories)):
            yield (
                f"Column {column.name} predicts the target perfectly: if it is not known at prediction time, put it "
                "under drop."
            )


def _predicts_perfectly(values: Floats, y: Indices, categorical: bool) -> bool:
    """Whether a number has an AUC of 0 or 1, each category one class, or the one class alone no value."""
    missing = np.isnan(values)
    if np.array_equal(missing, y == 1) or np.array_equal(missing, y == 0):
        return True
    positives, negatives = values[~missing & (y == 1)], values[~missing & (y == 0)]
    if min(len(positives), len(negatives)) < LEAST_OF_CLASS:
        return False
    if categorical:
        return not np.intersect1d(positives, negatives).size
    return bool(positives.min() > negatives.max() or positives.max() < negatives.min())


def _notes_on_splits(
    columns: Sequence[Column], x: Floats, train: Indices, validation: Indices, test: Indices
) -> Iterator[str]:
    for i, column in enumerate(columns):
        known = np.unique(x[train, i])
        if len(known) == 1:
            yield f"Column {column.name} is constant in the training rows and has no feature."
        if column.categories:
            tested = np.unique(x[test, i][~np.isnan(x[test, i])])
            new = tested[~np.isin(tested, known) & ~np.isin(tested, x[validation, i])]
            names = shortened([column.categories[int(code)] for code in new])
            if names:
                yield f"Categories of column {column.name} occur in test rows only and are encoded as unknown: {names}."
