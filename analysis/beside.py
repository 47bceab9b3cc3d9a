"""What stands beside accuracy and beside the arms: calibration, robustness, speed, agreement, and factors' effects."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.statistics import Spread, family_level, holm, over_seeds, over_seeds_and_rows, pair
from search.ledger import RunRecord
from spaces import Effect

Json = dict[str, Any]
# name in the comparison -> metric of a confirmed seed
METRICS = {
    "average_precision": "test_average_precision",
    "accuracy": "test_accuracy",
    "accuracy_at_threshold": "test_accuracy_at_threshold",
    "majority": "test_majority",
    "ks": "test_ks",
    "brier": "test_brier",
    "nll": "test_nll",
    "calibration_error": "test_ece",
    "accuracy_noise_0.05": "test_accuracy_noise_0.05",
    "accuracy_noise_0.1": "test_accuracy_noise_0.1",
    "accuracy_noise_0.2": "test_accuracy_noise_0.2",
    "accuracy_occlusion_0.25": "test_accuracy_occlusion_0.25",
    "accuracy_occlusion_0.5": "test_accuracy_occlusion_0.5",
    "ms_per_sample_batch_1": "ms_per_sample_batch_1",
    "ms_per_sample_batch_128": "ms_per_sample_batch_128",
    "parameters": "parameters",
}
ALL_TEACHERS = "plain average"  # as the model of all teachers together is called in the facts
SPEED = ("ms_per_sample_batch_1", "ms_per_sample_batch_128", "parameters")


def classes(predictions: NDArray[Any]) -> NDArray[Any]:
    """Predicted classes, of predictions that are such or logits of class 1."""
    return (predictions > 0).astype(np.uint8) if predictions.dtype.kind == "f" else predictions


def models(facts: Mapping[tuple[int, int], Json]) -> list[Json]:
    """What is known of each teacher model by name, numbers as medians over the teacher sets."""
    by_name: dict[str, list[Json]] = defaultdict(list)
    for about in facts.values():
        by_name[about["name"]].append(about)
    return [
        {"name": name, "n": len(known)}
        | {key: float(np.median([k[key] for k in known])) for key in known[0] if key != "name"}
        for name, known in by_name.items()
    ]


def evaluation(
    runs: Sequence[RunRecord], predicted: NDArray[Any], teachers: Mapping[int, NDArray[Any]], judged_by: str
) -> dict[str, Json | None]:
    """{name: mean and ci95_seeds} over an arm's confirmed seeds; speed as the median over seeds, without an interval.

    predicted: (seeds, rows) classes; teachers: {set: (rows,) classes}; seed r learned from set r mod their number.
    judged_by: the study's metric, which stands elsewhere.
    """
    found: dict[str, Json | None] = {}
    for name, metric in METRICS.items():
        if name == judged_by:
            continue
        values = [r.metrics[metric] for r in runs if r.metrics.get(metric) is not None]
        if not values:
            continue
        if name in SPEED:
            found[name] = {"mean": float(np.median(values)), "ci95_seeds": None}
        else:
            found[name] = _over_seeds(values)
    if teachers:
        agree = [
            float((p == teachers[r.replicate % len(teachers)]).mean()) for r, p in zip(runs, predicted, strict=True)
        ]
        found["teacher_agreement"] = _over_seeds(agree)
    return found


def with_teachers(found: dict[str, Json | None], of_models: Sequence[Json], teacher: str | None, student: bool) -> None:
    """Add to an arm's times what its teachers take, which run before it: `teacher`, or all of them where it is None.

    student: whether one runs after them; without it the teachers' times are all there is.
    """
    wanted = next((m for m in of_models if m["name"] == (teacher or ALL_TEACHERS)), None)
    for name in SPEED:
        if wanted is not None and name in wanted:
            own = found.get(name) if student else None
            found[name] = {"mean": wanted[name] + (own["mean"] if own else 0.0), "ci95_seeds": None}


def effects(asked: Sequence[Effect], correct: Mapping[str, tuple[list[int], NDArray[np.float64]]]) -> list[Json]:
    """Each effect as a combination of arms, seed by seed and row by row, corrected by Holm among themselves.

    correct: {arm: (its seeds, (seeds, rows) correctness)}; an arm that is not confirmed is not in it.
    """
    measured: list[tuple[Spread, Spread] | None] = []
    for effect in asked:
        parts = [correct.get(arm) for arm in effect.arms]
        if any(p is None or p[0] != parts[0][0] for p in parts if parts[0] is not None) or parts[0] is None:
            measured.append(None)
            continue
        d = np.sum([w * p[1] for w, p in zip(effect.arms.values(), parts, strict=True) if p is not None], axis=0)
        measured.append((over_seeds_and_rows(d), over_seeds(d.mean(axis=1))))
    p_values = [None if m is None else m[0].p_value() for m in measured]
    adjusted = holm(p_values)
    results = []
    for effect, m, raw, corrected in zip(asked, measured, p_values, adjusted, strict=True):
        level = family_level(raw, corrected, max(1, len(measured)))
        results.append(
            {
                "effect": effect.name,
                "arms": effect.arms,
                "mean": None if m is None else m[0].mean,
                "ci95": None if m is None else pair(m[0].interval()),
                "ci95_family": None if m is None else pair(m[0].interval(level)),
                "ci95_seeds": None if m is None else pair(m[1].interval()),
                "p_value": raw,
                "p_adjusted": corrected,
            }
        )
    return results


def best_of_epochs(runs: Sequence[RunRecord], metric: str, published: float) -> Json | None:
    """Our best epoch on the test set, as the source reports its own, and where one more seed would lie.

    For this comparison alone: never for a verdict on arms.
    """
    values = [r.metrics[metric] for r in runs if r.metrics.get(metric) is not None]
    if not values:
        return None
    seeds = over_seeds(values)
    interval = one_seed(seeds)
    inside = None if interval is None else interval[0] <= published <= interval[1]
    return {"mean": seeds.mean, "one_seed95": interval, "published": published, "published_inside": inside}


def one_seed(seeds: Spread) -> list[float] | None:
    """Where one more seed on these test rows would lie: mean ± t s sqrt(1 + 1/n); a published single run should."""
    interval = seeds.interval()
    if interval is None:
        return None
    half = (interval[1] - interval[0]) / 2 * float(np.sqrt(seeds.n + 1))
    return [seeds.mean - half, seeds.mean + half]


def _over_seeds(values: Sequence[float]) -> Json:
    seeds = over_seeds(values)
    return {"mean": seeds.mean, "ci95_seeds": pair(seeds.interval())}
