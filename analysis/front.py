"""How small a student may be: the Pareto front of the confirmed students, and the smallest that serves as its teacher.

Which arm stands for a size is chosen on validation, so that no figure of the test split was picked for being high.
Sizes are then tested from the largest to the smallest, each only after the one before was shown to be within the
study's `within` of its teacher; in such a fixed sequence no correction is needed (Maurer, Hothorn & Lehmacher 1995).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.statistics import over_winners, pair
from analysis.units import Unit
from spaces import A_A_CONTROL, Study

Json = dict[str, Any]
MEASURE = {"params": "parameters", "latency": "ms_per_sample_batch_1"}
SAID = {"params": "parameters", "latency": "ms a sample"}


def front(
    study: Study,
    arms: Sequence[Mapping[str, Any]],
    units: Mapping[str, tuple[Sequence[int], Sequence[NDArray[np.float64]]]],
    teachers: Mapping[int, NDArray[np.float64]],
    alpha: float,
) -> Json | None:
    """What the study's sizes come to; None for a study without them.

    arms: as in the comparison. units: {arm: (its seeds, its winners' (seeds, rows) units)}. teachers: {set: (rows,)
    units}; seed r learned from set r mod their number.
    """
    if study.objective is None:
        return None
    measure = study.objective[1]
    students = [_point(arm, measure) for arm in arms if _is_student(arm)]
    points = [p for p in students if p["mean"] is not None and p["measured"] is not None]
    for point in points:
        seeds, groups = units[point["arm"]]
        point["on_front"] = not any(_dominates(other, point) for other in points)
        point["behind_teacher"] = _behind(seeds, groups, teachers, alpha) if teachers else None
    chosen = _chosen(points)
    smallest = _smallest(chosen, study.within)
    unit = Unit.of(study.metric)
    return {
        "objective": list(study.objective),
        "within": study.within,
        "points": sorted(points, key=lambda p: (p["measured"], -p["mean"])),
        "chosen": {str(point["size"] or "study"): point["arm"] for point in chosen},
        "smallest_within": None if smallest is None else smallest["arm"],
        "sentence": _sentence(chosen, smallest, study, unit, bool(teachers)),
    }


def _is_student(arm: Mapping[str, Any]) -> bool:
    return (arm["kind"], arm["role"]) == ("searched", "student") and arm["arm"] != A_A_CONTROL


def _point(arm: Mapping[str, Any], measure: str) -> Json:
    tuned, measured = arm["tuned"] or {}, (arm.get("evaluation") or {}).get(MEASURE[measure])
    search = tuned.get("search_value")
    return {
        "arm": arm["arm"],
        "size": arm["size"],
        "measured": None if measured is None else measured["mean"],
        "validation": search if tuned.get("val_mean") is None else tuned["val_mean"],
        "mean": tuned.get("mean"),
        "ci95": tuned.get("ci95"),
        "n": tuned.get("n", 0),
    }


def _dominates(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
    """Whether `a` is as good and as small as `b`, and one of both strictly."""
    as_good, as_small = a["mean"] >= b["mean"], a["measured"] <= b["measured"]
    return as_good and as_small and (a["mean"], a["measured"]) != (b["mean"], b["measured"])


def _behind(
    seeds: Sequence[int],
    groups: Sequence[NDArray[np.float64]],
    teachers: Mapping[int, NDArray[np.float64]],
    alpha: float,
) -> Json:
    """An arm minus these teachers, seed by seed and row by row."""
    rows = np.stack([teachers[seed % len(teachers)] for seed in seeds])
    ends = np.cumsum([len(group) for group in groups])[:-1]
    spread = over_winners([g - t for g, t in zip(groups, np.split(rows, ends), strict=True)])
    return {"mean": spread.mean, "ci95": pair(spread.interval(1 - alpha))}


def _chosen(points: Sequence[Json]) -> list[Json]:
    """The arm of each size that is best on validation, the largest student first."""
    sizes = dict.fromkeys(point["size"] for point in points)
    best = [max((p for p in points if p["size"] == size), key=lambda p: p["validation"]) for size in sizes]
    return sorted(best, key=lambda p: -p["measured"])


def _smallest(chosen: Sequence[Json], within: float) -> Json | None:
    """The last in the sequence, from the largest down, that is shown to be within of its teacher."""
    found = None
    for point in chosen:
        behind = point["behind_teacher"]
        if behind is None or behind["ci95"] is None or behind["ci95"][0] < -within:
            break
        found = point
    return found


def _sentence(chosen: Sequence[Json], smallest: Json | None, study: Study, unit: Unit, taught: bool) -> str:
    if not chosen:
        return "No student of any size has been confirmed yet."
    if not taught:
        return "Students are not compared with a teacher, since none was judged on the test rows."
    within = f"{unit.scale * study.within:g} {unit.points} of its teacher"
    if smallest is not None:
        return f"The smallest student shown to be within {within} is {_described(smallest, study, unit)}."
    return f"No student is shown to be within {within}; the largest is {_described(chosen[0], study, unit)}."


def _described(point: Json, study: Study, unit: Unit) -> str:
    assert study.objective is not None
    behind, measure = point["behind_teacher"], study.objective[1]
    size = f"{point['measured']:,.0f}" if measure == "params" else f"{point['measured']:.3f}"
    gap = f"{unit.difference(behind['mean'])} {unit.interval(behind['ci95'], sign=True)}".strip()
    return f"{point['arm']}, {size} {SAID[measure]}, {gap} {unit.points} against it"
