"""Datasets: split before anything is fitted, and every row with a fingerprint, so that a leak can be seen.

A dataset is made by its loader as three disjoint splits. What the search hands to a trial is `without_test()`: the
test rows are not there to be read.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
    """x: (n, features) float64, unscaled, or images (n, channels, height, width) uint8; y: (n,) int64 classes."""

    x: NDArray[Any]
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    def fingerprints(self) -> NDArray[np.int64]:
        """(n,) a hash of each row's features, independent of its order and its label."""
        rows = np.ascontiguousarray(self.x)
        digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
        return np.frombuffer(digests, dtype=np.int64)

    def joined(self, other: "Rows") -> "Rows":
        return Rows(np.concatenate([self.x, other.x]), np.concatenate([self.y, other.y]))


@dataclass(frozen=True)
class Dataset:
    """Disjoint splits of one data source; `population` holds fresh rows of a generated one, else None."""

    classes: int
    train: Rows
    validation: Rows
    test: Rows | None
    population: Rows | None

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


def load(spec: Mapping[str, Any], progress: Say | None = None) -> Dataset:
    """The dataset that a study's `data` section describes. progress: is told, line by line, what takes long."""
    if spec["kind"] == "make_classification":
        from trainables.datasets import generated

        return generated.load(spec)
    from trainables.datasets import images

    return images.load(spec, progress)
