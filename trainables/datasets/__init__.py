"""Datasets: split before anything is fitted, and every row with a fingerprint, so that a leak can be seen.

A dataset is made by its loader as three disjoint splits. What the search hands to a trial is `without_test()`: the
test rows are not there to be read.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Say = Callable[[str], None]  # is told, line by line, what takes long


class BadData(ValueError):
    """The data are not there, or not such that a model can be trained and judged on them."""


class Leak(ValueError):
    """Rows that a model was fitted on turn up among the rows that it would be judged on."""


@dataclass(frozen=True)
class Rows:
    """x: (n, features) float64, unscaled, or images (n, channels, height, width) uint8; y: (n,) int64 classes.

    Of a table, x is (n, columns) float64 as `Column` says, or (n, features) float32 once it is encoded.
    identity: (n,) fingerprints where they are known: in a table two rows may be equal and yet not the same.
    teachers: (sets, n, teachers) float32, each teacher's logit of the second class, for students that need them.
    segments: parts of the rows by which results are broken down, {name: mask (n,)}.
    """

    x: NDArray[Any]
    y: NDArray[np.int64]
    identity: NDArray[np.int64] | None = None
    teachers: NDArray[np.float32] | None = None
    segments: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.y)

    def fingerprints(self) -> NDArray[np.int64]:
        """(n,) a hash of each row's features, independent of its order and its label."""
        if self.identity is not None:
            return self.identity
        rows = np.ascontiguousarray(self.x)
        digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
        return np.frombuffer(digests, dtype=np.int64)

    def joined(self, other: "Rows") -> "Rows":
        identity = None
        if self.identity is not None and other.identity is not None:
            identity = np.concatenate([self.identity, other.identity])
        return Rows(np.concatenate([self.x, other.x]), np.concatenate([self.y, other.y]), identity)

    def taken(self, indices: NDArray[np.integer[Any]]) -> "Rows":
        """The rows with these indices, in their order."""
        identity = None if self.identity is None else self.identity[indices]
        return Rows(self.x[indices], self.y[indices], identity)


@dataclass(frozen=True)
class Column:
    """One column of a table. categories: what the codes 0, 1, ... stand for, as text; empty where it is a number.

    In `Rows.x` a number stands as it is, a category as its code, and NaN where there is no value.
    """

    name: str
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """Disjoint splits of one data source; `population` holds fresh rows of a generated one, else None.

    columns: of a table; segments: the names of those by which results are broken down. notes: what a reader of the
    result must know of the data, in sentences.
    """

    classes: int
    train: Rows
    validation: Rows
    test: Rows | None
    population: Rows | None
    columns: tuple[Column, ...] = ()
    segments: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def without_test(self) -> "Dataset":
        """What the search may see."""
        return replace(self, test=None, population=None)

    def fit_rows(self, which: str) -> Rows:
        """The rows to fit on: `train` or `train+validation`."""
        return self.train if which == "train" else self.train.joined(self.validation)


@dataclass(frozen=True)
class Scaling:
    """Standardisation fitted on some rows: zero mean and unit variance of each feature there."""

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    @staticmethod
    def of(rows: Rows) -> "Scaling":
        scale = rows.x.std(axis=0)
        return Scaling(rows.x.mean(axis=0), np.where(scale > 0, scale, 1.0))

    def __call__(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return (x - self.mean) / self.scale


def refuse_overlap(what: str, fitted_on: NDArray[np.int64], split: str, rows: Rows) -> None:
    """Raise Leak if `what` was fitted on any of these rows (promise 1 of the design)."""
    shared = int(np.isin(rows.fingerprints(), fitted_on).sum())
    if shared:
        raise Leak(
            f"{what} was fitted on {shared} of the {len(rows)} {split} rows: its outputs there are not those of unseen "
            "data. Fit it on other rows"
        )


def shortened(names: list[str], at_most: int = 5) -> str:
    """Names in a sentence, the first few of them."""
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more


def load(spec: Mapping[str, Any], progress: Say | None = None) -> Dataset:
    """The dataset that a study's `data` section describes. progress: is told, line by line, what takes long."""
    dataset = _loaded(spec, progress)
    if spec.get("validation_rows") is not None:
        from trainables.datasets.order import with_named_validation

        return with_named_validation(dataset, spec)
    return dataset


def _loaded(spec: Mapping[str, Any], progress: Say | None) -> Dataset:
    if spec["kind"] == "make_classification":
        from trainables.datasets import generated

        return generated.load(spec)
    if spec["kind"] == "promotions":
        from trainables.datasets import promotions

        return promotions.load(spec)
    if spec["kind"] == "csv":
        from trainables.datasets import csv_table

        return csv_table.load(spec, progress)
    from trainables.datasets import images

    return images.load(spec, progress)
