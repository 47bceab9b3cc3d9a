"""The main figure for a paper: every arm's difference to the tuned baseline, and what every arm reaches."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.units import Unit
from spaces import BadInput

FORMATS = (".png", ".pdf")
COLOURS = {"better": "#1f9d57", "worse": "#d64545", "equivalent": "#2f86c9"}
MARKERS = {"better": "^", "worse": "v", "equivalent": "s"}
GREY, TUNED, GIVEN, PUBLISHED = "#6b7280", "#2f62c9", "#c26a00", "#a0308c"


def refuse_format(path: Path) -> None:
    """Raises BadInput for a figure that is neither PNG nor PDF, or in a folder that does not exist."""
    if path.suffix.lower() not in FORMATS:
        raise BadInput(f"--figure {path}: the figure is written as {' or '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise BadInput(f"--figure {path}: there is no folder {path.parent}")


def write(result: Mapping[str, Any], path: Path) -> Path:
    """result: of `compare(run)`. Raises BadInput as `refuse_format`, and for a run without any confirmed arm."""
    refuse_format(path)
    arms, unit = result["arms"], Unit.of(result["metric"])
    if not any((a["tuned"] or a.get("fixed") or a["as_published"] or {}).get("mean") is not None for a in arms):
        raise BadInput(f"--figure {path}: nothing has been confirmed yet, so there is nothing to draw")
    figure = Figure(figsize=(7.2, 0.9 + 0.34 * len(arms)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for row, arm in enumerate(arms):
        _level(left, row, arm, unit)
        _difference(right, row, arm, unit)
    left.set_yticks(range(len(arms)), [a["arm"].replace("$", r"\$") for a in arms])
    left.invert_yaxis()
    left.set_xlabel(f"{result['metric']}, {unit.values}")
    right.set_xlabel(f"difference to tuned {result['baseline']}, {unit.points}")
    margin = unit.scale * result["margin"]
    right.axvspan(-margin, margin, color=GREY, alpha=0.14, lw=0)
    right.axvline(0, color=GREY, lw=0.8, ls=":")
    _within(left, 0.0, unit.scale)
    _within(right, -unit.scale, unit.scale)
    for axes in (left, right):
        axes.grid(axis="x", lw=0.4, alpha=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.xaxis.label.set_size(8)
    named = {name: h for axes in (left, right) for h, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    if named:
        figure.legend(list(named.values()), list(named), loc="outside upper left", ncols=3, fontsize=8, frameon=False)
    if not result["complete"]:
        figure.text(0.99, 0.99, "unfinished sweep", ha="right", va="top", fontsize=8, color=COLOURS["worse"])
    figure.savefig(path, dpi=200, metadata={"Creator": "distune"} if path.suffix.lower() == ".pdf" else None)
    return path


def _within(axes: Axes, low: float, high: float) -> None:
    """No further than the metric goes: two winners can leave a bar without end."""
    first, last = axes.get_xlim()
    axes.set_xlim(max(low, first), min(high, last))


def _level(axes: Axes, row: int, arm: Mapping[str, Any], unit: Unit) -> None:
    tuned, given = arm["tuned"] or arm.get("fixed") or {}, arm["as_published"] or {}
    shown = ((tuned, -0.14, TUNED, "o", "tuned here"), (given, 0.14, GIVEN, "s", "published settings, run here"))
    for found, at, colour, marker, name in shown:
        if found.get("mean") is not None:
            _bar(axes, found["mean"], found["ci95"], row + at, unit, colour, marker, name)
    if arm["published"] is not None:
        x = unit.scale * arm["published"]
        axes.plot(x, row, "D", mfc="none", mec=PUBLISHED, ms=6, ls="none", label="as the source reports it")


def _difference(axes: Axes, row: int, arm: Mapping[str, Any], unit: Unit) -> None:
    delta = arm["delta_vs_baseline"]
    if delta:
        colour = COLOURS.get(arm["verdict"] or "", GREY)
        _bar(
            axes,
            delta["mean"],
            delta["ci95_family"],
            row,
            unit,
            colour,
            MARKERS.get(arm["verdict"] or "", "o"),
            arm["verdict"] or "no verdict",
        )


def _bar(axes: Axes, mean: float, interval: Any, y: float, unit: Unit, colour: str, marker: str, name: str) -> None:
    error = [[unit.scale * (mean - interval[0])], [unit.scale * (interval[1] - mean)]] if interval else None
    axes.errorbar(unit.scale * mean, y, xerr=error, fmt=marker, color=colour, ms=4.5, lw=1.3, capsize=2.5, label=name)
