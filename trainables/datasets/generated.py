"""scikit-learn's make_classification as a dataset, with fresh rows of the very same population.

A thousand test rows are a sample too. Since the table is generated, its population can be drawn from again: the
cluster centres and mixing matrices are read off the generator while it runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import make_classification
from sklearn.model_selection import train_test_split

from trainables.datasets import Dataset, Rows

FLIPPED = 0.01  # make_classification's default share of labels drawn anew
CLUSTERS_PER_CLASS = 2
CLASSES = 2


class _Recorder(np.random.RandomState):
    """A RandomState that keeps what it drew, so that the parameters of a generated table can be read off."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.uniforms: list[Any] = []
        self.normals: list[Any] = []
        self.shuffled: list[Any] = []

    def uniform(self, *args: Any, **kwargs: Any) -> Any:
        self.uniforms.append(super().uniform(*args, **kwargs))
        return self.uniforms[-1]

    def standard_normal(self, *args: Any, **kwargs: Any) -> Any:
        self.normals.append(super().standard_normal(*args, **kwargs).copy())
        return self.normals[-1].copy()

    def shuffle(self, x: Any) -> None:
        super().shuffle(x)
        self.shuffled.append(np.array(x))


@dataclass(frozen=True)
class Population:
    """The distribution behind one make_classification table.

    centres: (clusters, informative); mixing: (clusters, informative, informative); redundant: (informative,
    redundant); columns: (features,) the final order of the columns.
    """

    centres: NDArray[np.float64]
    mixing: NDArray[np.float64]
    redundant: NDArray[np.float64]
    columns: NDArray[np.int64]

    @staticmethod
    def of(spec: Mapping[str, Any]) -> "Population":
        """Replay the table's random state once with its rows in cluster order and once as it is."""
        in_order, as_is = _Recorder(spec["random_state"]), _Recorder(spec["random_state"])
        x, _ = table(spec, in_order, shuffle=False)
        table(spec, as_is, shuffle=True)
        informative, clusters = spec["n_informative"], CLASSES * CLUSTERS_PER_CLASS
        mixing = 2 * np.stack(in_order.uniforms[:clusters]) - 1
        redundant = 2 * in_order.uniforms[clusters] - 1 if spec["n_redundant"] else np.zeros((informative, 0))
        sizes = np.full(clusters, spec["n_samples"] // CLASSES // CLUSTERS_PER_CLASS)
        sizes[: spec["n_samples"] - sizes.sum()] += 1
        first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        drawn = in_order.normals[0][first]
        centres = x[first, :informative] - np.einsum("ki,kij->kj", drawn, mixing)
        return Population(centres, mixing, redundant, as_is.shuffled[-1])

    def draw(self, rows: int, seed: int) -> Rows:
        """`rows` fresh rows, labels flipped as often as in the table."""
        random = np.random.default_rng(seed)
        clusters, informative = self.centres.shape
        features = len(self.columns)
        cluster = np.arange(rows) % clusters
        z = random.standard_normal((rows, informative))
        x = random.standard_normal((rows, features))
        for k in range(clusters):
            x[cluster == k, :informative] = z[cluster == k] @ self.mixing[k] + self.centres[k]
        x[:, informative : informative + self.redundant.shape[1]] = x[:, :informative] @ self.redundant
        y = cluster % CLASSES
        flipped = random.random(rows) < FLIPPED
        y[flipped] = random.integers(CLASSES, size=int(flipped.sum()))
        return Rows(np.ascontiguousarray(x[:, self.columns]), y.astype(np.int64))


def load(spec: Mapping[str, Any]) -> Dataset:
    """The table as the source splits it (a fifth for the test), then a fifth of the rest for validation."""
    x, y = table(spec, np.random.RandomState(spec["random_state"]), shuffle=True)
    rest_x, test_x, rest_y, test_y = train_test_split(x, y, test_size=0.2, random_state=spec["split_seed"])
    train_x, val_x, train_y, val_y = train_test_split(
        rest_x, rest_y, test_size=0.2, random_state=spec["split_seed"], stratify=rest_y
    )
    fresh = Population.of(spec).draw(spec["fresh_rows"], seed=spec["random_state"]) if spec["fresh_rows"] else None
    return Dataset(CLASSES, Rows(train_x, train_y), Rows(val_x, val_y), Rows(test_x, test_y), fresh)


def table(spec: Mapping[str, Any], random: np.random.RandomState, shuffle: bool) -> Any:
    return make_classification(
        n_samples=spec["n_samples"],
        n_features=spec["n_features"],
        n_informative=spec["n_informative"],
        n_redundant=spec["n_redundant"],
        n_classes=CLASSES,
        n_clusters_per_class=CLUSTERS_PER_CLASS,
        flip_y=FLIPPED,
        random_state=random,
        shuffle=shuffle,
    )
