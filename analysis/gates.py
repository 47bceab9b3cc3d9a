"""What a gate over teachers does with it: whom it prefers in which part of the rows, and who is better there."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.statistics import auc_units, over_seeds, over_seeds_and_rows, pair
from search.ledger import RunRecord

Json = dict[str, Any]
ALL = "all rows"
SAME = 1e-4  # of mean gates in float32


def by_segment(
    runs: Mapping[str, Sequence[RunRecord]],
    names: Mapping[int, str],
    said: Mapping[tuple[int, int], NDArray[Any]],
    labels: NDArray[Any],
    segments: Mapping[str, NDArray[np.bool_]],
) -> list[Json]:
    """One entry for every arm with a gate and every segment of the test rows.

    runs: an arm's confirmed seeds, whose metrics hold the mean gates; names: of the teachers by member; said: their
    logits (rows,) by (set, member); labels: (rows,); segments: masks (rows,). `better` is the teacher with the higher
    AUC in the segment if the difference to the next is beyond noise (95 %, over teacher sets and rows), else None;
    `agrees`: whether the gate prefers that one, None where none is better.
    """
    if not names:
        return []
    parts = {ALL: np.ones(len(labels), dtype=bool), **segments}
    quality = {part: _quality(names, said, labels, mask) for part, mask in parts.items()}
    found = []
    for arm, confirmed in runs.items():
        for part, mask in parts.items():
            if part != ALL and _is_global(confirmed, names.values(), parts):
                continue
            suffix = "" if part == ALL else f" | {part}"
            keys = {name: f"gate {name}{suffix}" for name in names.values()}
            seeds = [r for r in confirmed if all(r.metrics.get(key) is not None for key in keys.values())]
            if not seeds:
                continue
            gate = {name: over_seeds([r.metrics[key] for r in seeds]) for name, key in keys.items()}
            auc, better = quality[part]
            prefers = max(gate, key=lambda name: gate[name].mean)
            found.append(
                {
                    "arm": arm,
                    "segment": part,
                    "rows": int(mask.sum()),
                    "teachers": {
                        name: {"gate": g.mean, "ci95_seeds": pair(g.interval()), "auc": auc.get(name)}
                        for name, g in gate.items()
                    },
                    "prefers": prefers,
                    "better": better,
                    "agrees": None if better is None else prefers == better,
                }
            )
    return found


def _is_global(runs: Sequence[RunRecord], names: Iterable[str], parts: Iterable[str]) -> bool:
    """Whether the gate is the same in every segment, so that one row says all."""
    each = [(f"gate {name}", [f"gate {name} | {part}" for part in parts if part != ALL]) for name in names]
    return bool(runs) and all(
        abs(r.metrics.get(key, 0.0) - r.metrics[whole]) < SAME
        for r in runs
        for whole, keys in each
        if r.metrics.get(whole) is not None
        for key in keys
    )


def _quality(
    names: Mapping[int, str],
    said: Mapping[tuple[int, int], NDArray[Any]],
    labels: NDArray[Any],
    mask: NDArray[np.bool_],
) -> tuple[dict[str, float], str | None]:
    """AUC of every teacher on these rows, and who is better than all others beyond noise."""
    y = labels[mask]
    if not said or min((y == 0).sum(), (y == 1).sum()) < 2:
        return {}, None
    sets = sorted({k for k, _ in said})
    units = {name: auc_units(np.stack([said[k, m][mask] for k in sets]), y) for m, name in names.items()}
    auc = {name: float(u.mean()) for name, u in units.items()}
    first, *others = sorted(auc, key=lambda name: -auc[name])
    for other in others:
        interval = over_seeds_and_rows(units[first] - units[other]).interval()
        if interval is None or interval[0] <= 0:
            return auc, None
    return auc, first
