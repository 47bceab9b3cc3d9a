"""What the trials did: their learning curves, their configurations side by side, and every one of them as a row."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.report.parts import Figure, Json, Table, label, rounded
from analysis.units import Unit
from search.ledger import EndRecord, EpochRecord, TrialRecord
from spaces import Range, Space, Study

CURVES = 30  # drawn of an arm, beside its best
LINES = 1500  # of an arm in parallel coordinates
TICKS = 5


@dataclass
class Course:
    """One trial: what it was asked, how it ended, and its epochs. Lists over the epochs that it reported."""

    trial: TrialRecord
    end: EndRecord | None
    epochs: list[int]
    scores: list[float]
    seed_epochs: int = 0
    seconds: float = 0.0

    @property
    def score(self) -> float | None:
        """At its last epoch that has one."""
        return next((s for s in reversed(self.scores) if math.isfinite(s)), None)


def courses(
    trials: Sequence[TrialRecord], epochs: Sequence[EpochRecord], ends: Mapping[str, EndRecord]
) -> list[Course]:
    found = {t.trial: Course(t, ends.get(t.trial), [], []) for t in trials}
    for row in epochs:
        course = found[row.trial]
        course.epochs.append(row.epoch)
        course.scores.append(row.score)
        course.seed_epochs += row.seeds
        course.seconds += row.seconds
    return list(found.values())


def learning_curves(found: Sequence[Course], study: Study, unit: Unit, chosen: Mapping[str, str]) -> list[Figure]:
    """A figure an arm: the median of its trials with the middle 80 %, some of them, and the one that was deployed.

    chosen: {arm: trial}.
    """
    figures = []
    for arm in study.searched:
        own = [c for c in found if c.trial.arm == arm and any(map(math.isfinite, c.scores))]
        if not own:
            continue
        best = next((c for c in own if c.trial.trial == chosen.get(arm)), None) or max(
            own, key=lambda c: c.score or 0.0
        )
        thin = _thinned([c for c in own if c is not best], CURVES)
        x: list[float | None] = []
        y: list[float | None] = []
        for course in thin:
            x += [*course.epochs, None]
            y += [*(rounded(unit.scale * s) for s in course.scores), None]
        at, low, middle, high = _spread(own)
        band: Json = {"x": at + at[::-1], "y": [rounded(unit.scale * v) for v in high + low[::-1]], "fill": "toself"}
        band |= {"fillcolor": "rgba(132,139,152,0.22)", "line": {"width": 0}, "name": "middle 80 %"}
        centre: Json = {"x": at, "y": [rounded(unit.scale * v) for v in middle], "name": "median"}
        centre["line"] = {"color": "#848b98", "width": 2, "dash": "dash"}
        deployed: Json = {"x": best.epochs, "y": [rounded(unit.scale * s) for s in best.scores]}
        deployed |= {"name": "deployed" if best.trial.trial in chosen.values() else "best so far"}
        deployed |= {"line": {"color": "#d2557a", "width": 3}, "text": [label(best.trial.trial)] * len(best.epochs)}
        some: Json = {"x": x, "y": y, "line": {"color": "rgba(74,125,224,0.35)", "width": 1}, "name": "trials"}
        data: list[Json] = [
            {"type": "scatter", "mode": "lines", "hoverinfo": "skip", **some},
            {"type": "scatter", "mode": "lines", "hoverinfo": "skip", **band},
            {"type": "scatter", "mode": "lines", **centre},
            {"type": "scatter", "mode": "lines+markers" if len(best.epochs) == 1 else "lines", **deployed},
        ]
        top, bottom = max(high + [s for s in best.scores if math.isfinite(s)]), min(middle[len(middle) // 10 :])
        room = 0.08 * (top - bottom) or 0.01
        window = [rounded(unit.scale * (bottom - room)), rounded(unit.scale * (top + room))]
        layout = {
            "xaxis": {"title": {"text": "epoch"}, "automargin": True},
            "yaxis": {"title": {"text": f"{study.val_metric}, {unit.values}"}, "automargin": True, "range": window},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
            "margin": {"l": 8, "r": 12, "t": 30, "b": 44},
        }
        reached = dict(zip(best.epochs, best.scores, strict=True))
        counted = _reported(own)
        rows = [
            (str(e), str(counted[e]), *(unit.value(_or_none(v)) for v in (lo, mid, hi, reached.get(e, math.nan))))
            for e, lo, mid, hi in zip(at, low, middle, high, strict=True)
        ]
        table = Table(("epoch", "trials", "10 %", "median", "90 %", best.trial.trial), rows, 0)
        note = f"{len(thin)} of the other {len(own) - 1} trials are drawn, evenly chosen in the order they were asked."
        if len(thin) == len(own) - 1:
            note = f"All {len(own)} trials are drawn."
        note += " What is far below the median is out of sight: a double click shows it."
        figures.append(Figure(f"curves-{arm}", arm, data, layout, table, note, 300))
    return figures


def _thinned(found: Sequence[Course], most: int) -> list[Course]:
    if not found:
        return []
    places = np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int))
    return [found[i] for i in places]


def _by_epoch(found: Sequence[Course]) -> dict[int, list[float]]:
    scores: dict[int, list[float]] = defaultdict(list)
    for course in found:
        for epoch, score in zip(course.epochs, course.scores, strict=True):
            if math.isfinite(score):
                scores[epoch].append(score)
    return dict(sorted(scores.items()))


def _reported(found: Sequence[Course]) -> dict[int, int]:
    return {epoch: len(scores) for epoch, scores in _by_epoch(found).items()}


def _spread(found: Sequence[Course]) -> tuple[list[int], list[float], list[float], list[float]]:
    """Epochs, and the tenth, fiftieth and ninetieth percentile of the trials that reached them."""
    scores = _by_epoch(found)
    low, middle, high = zip(*(np.percentile(v, (10, 50, 90)).tolist() for v in scores.values()), strict=True)
    return list(scores), list(low), list(middle), list(high)


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def parallel_coordinates(found: Sequence[Course], study: Study, unit: Unit) -> list[Figure]:
    """A figure an arm: a line a trial through its hyperparameters and its score. `trials` names the lines' rows."""
    figures = []
    for arm in study.searched:
        own = [(row, c) for row, c in enumerate(found) if c.trial.arm == arm and c.score is not None]
        if len(own) < 2 or not study.arms[arm].space:
            continue
        ranked = sorted(own, key=lambda pair: -(pair[1].score or 0.0))
        kept = own if len(own) <= LINES else sorted(ranked[: LINES // 3] + _every(ranked[LINES // 3 :], 2 * LINES // 3))
        shown = [c for _, c in kept]
        score = [rounded(unit.scale * (c.score or 0.0)) for c in shown]
        dimensions = [
            _dimension(name, study.arms[arm].space, [c.trial.config[name] for c in shown])
            for name in study.arms[arm].space
        ]
        dimensions.append({"label": "score", "values": score})
        line: Json = {"color": score, "colorscale": "Viridis", "showscale": False}
        trace: Json = {"type": "parcoords", "line": line, "dimensions": dimensions, "meta": [row for row, _ in kept]}
        trace |= {"labelangle": -20, "labelside": "top"}
        note = (
            f"The best {LINES // 3} and a sample of the rest: {len(kept)} of {len(own)} trials." if kept != own else ""
        )
        best = [c for _, c in ranked[:20]]
        rows = [
            (c.trial.trial, *(shown_value(c.trial.config[n]) for n in study.arms[arm].space), unit.value(c.score))
            for c in best
        ]
        table = Table(("trial", *study.arms[arm].space, "score"), rows, 1, "", "the best 20 by their last score")
        layout = {"margin": {"l": 50, "r": 40, "t": 80, "b": 24}}
        figures.append(Figure(f"parallel-{arm}", arm, [trace], layout, table, note, 400))
    return figures


def _every(pairs: Sequence[tuple[int, Course]], most: int) -> list[tuple[int, Course]]:
    places = np.unique(np.linspace(0, len(pairs) - 1, most).round().astype(int))
    return [pairs[i] for i in places]


def _dimension(name: str, space: Space, values: Sequence[Any]) -> Json:
    """An axis: of logarithms where the range is searched in them, of numbers of choices where it has choices."""
    domain = space[name]
    if isinstance(domain, Range):
        if not domain.log:
            return {"label": label(name), "values": [rounded(v) for v in values]}
        low, high = math.log10(domain.low), math.log10(domain.high)
        ticks = [float(t) for t in np.linspace(low, high, TICKS)]
        axis = {
            "label": label(name),
            "range": [low, high],
            "values": [rounded(math.log10(max(v, 1e-12))) for v in values],
        }
        return axis | {"tickvals": ticks, "ticktext": [f"{10**t:.2g}" for t in ticks]}
    choices = list(dict.fromkeys([*domain.choices, *values]))  # the default may lie outside the space
    at = {choice: i for i, choice in enumerate(choices)}
    axis = {"label": label(name), "range": [0, max(1, len(choices) - 1)], "values": [at[v] for v in values]}
    return axis | {"tickvals": list(at.values()), "ticktext": [label(str(c)) for c in choices]}


def shown_value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def trial_rows(found: Sequence[Course], unit: Unit) -> Json:
    """Every trial as columns of values, for the sortable table."""
    hyperparameters = list(dict.fromkeys(name for c in found for name in c.trial.config))
    columns: dict[str, list[Any]] = {
        "trial": [c.trial.trial for c in found],
        "arm": [c.trial.arm for c in found],
        "score": [rounded(None if c.score is None else unit.scale * c.score, 6) for c in found],
        "epoch": [c.epochs[-1] if c.epochs else None for c in found],
        "ended": [c.end.how if c.end else "unfinished" for c in found],
        "search": [c.trial.subsearch for c in found],
        "origin": [c.trial.origin for c in found],
        "seed-epochs": [c.seed_epochs for c in found],
        "seconds": [rounded(c.seconds, 4) for c in found],
    }
    for name in hyperparameters:
        values = [c.trial.config.get(name) for c in found]
        columns[name] = [rounded(v, 4) if isinstance(v, float) else v for v in values]
    messages = {i: c.end.message for i, c in enumerate(found) if c.end and c.end.message}
    return {"names": list(columns), "columns": list(columns.values()), "messages": messages}
