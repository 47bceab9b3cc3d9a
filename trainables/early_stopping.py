"""When a pack's seeds stop, and which epoch its configuration is best at."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


class Curve:
    """The validation curve of a pack. The chosen epoch belongs to the configuration, patience to each seed.

    auc, nll: (S,) at `epoch`, where the mean AUC over the pack was best; a stopped seed counts with its last value,
    not with its best, so that no maximum is taken per seed.
    """

    def __init__(self, seeds: int, patience: int | None) -> None:
        self._patience = patience
        self.last_auc, self.last_nll = np.full(seeds, math.nan), np.full(seeds, math.nan)
        self.auc, self.nll, self.epoch = self.last_auc, self.last_nll, 0
        self._best, self._best_at = np.full(seeds, -math.inf), np.zeros(seeds)

    def enter(
        self, epoch: int, seeds: Sequence[int], values: NDArray[np.float64], nll: NDArray[np.float64]
    ) -> tuple[list[int], list[int]]:
        """values, nll: of these seeds at this epoch. Returns the places among them that improved and that stop."""
        self.last_auc, self.last_nll = self.last_auc.copy(), self.last_nll.copy()
        self.last_auc[list(seeds)], self.last_nll[list(seeds)] = values, nll
        if self.epoch == 0 or self.last_auc.mean() > self.auc.mean():
            self.auc, self.nll, self.epoch = self.last_auc, self.last_nll, epoch
        improved, stopped = [], []
        for place, (seed, value) in enumerate(zip(seeds, values, strict=True)):
            if value > self._best[seed]:
                self._best[seed], self._best_at[seed] = value, epoch
                improved.append(place)
            elif self._patience is not None and epoch - self._best_at[seed] >= self._patience:
                stopped.append(place)
        return improved, stopped

    def state(self) -> dict[str, NDArray[np.float64]]:
        names = ("last_auc", "last_nll", "auc", "nll", "_best", "_best_at")
        return {name: getattr(self, name).copy() for name in names} | {"epoch": np.array(float(self.epoch))}

    def load_state(self, state: Mapping[str, NDArray[np.float64]]) -> None:
        for name in self.state():
            setattr(self, name, int(state[name]) if name == "epoch" else state[name].copy())
