"""The same arms in several sweeps, on other data or with another budget, and what makes sweeps not comparable."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Group, RenderableType
from rich.text import Text

from analysis import paper_tables
from analysis.comparison import compare
from analysis.tables import COLOURS, new_table
from analysis.units import Unit
from spaces import A_A_CONTROL, BASELINE, Arm, BadInput, Study, load_study, to_yaml

Json = dict[str, Any]
ASKS = ("variant", "kind", "role", "teacher_rows", "student", "dead_terms")  # of an arm: what makes it what it is
MAY_DIFFER = ("data", "teacher", "student", "budget", "confirm_on", "confirm_teachers", "margin", "views", "trainable")


def compare_runs(runs: Sequence[Path]) -> Json:
    """{"runs": what `compare` says of each, under `run` its path, "arms": each arm's part of every one of them}.

    "differs" lists the settings in which the sweeps differ, as it may be: {setting: its value in every run}. In "arms",
    `in_runs` has an entry for every run, null where it lacks the arm.
    Raises BadInput for sweeps that are not comparable, and says why: another metric, an arm that is something else
    under the same name or searched over another space, no arm in common, the same run twice.
    """
    names = _names(runs)
    studies = {name: load_study(run / "study.yaml") for name, run in zip(names, runs, strict=True)}
    _require_comparable(studies)
    results = [{"run": name, **compare(run)} for name, run in zip(names, runs, strict=True)]
    arms = list(dict.fromkeys(arm for study in studies.values() for arm in study.arms))
    parts = [{arm["arm"]: arm for arm in result["arms"]} for result in results]
    return {
        "runs": results,
        "arms": [
            {
                "arm": arm,
                "in_runs": [
                    None if arm not in part else {"run": result["run"], **part[arm]}
                    for result, part in zip(results, parts, strict=True)
                ],
            }
            for arm in arms
        ],
        "differs": _differs(studies),
    }


def _names(runs: Sequence[Path]) -> list[str]:
    seen: dict[Path, Path] = {}
    for run in runs:
        if (first := seen.setdefault(run.resolve(), run)) is not run:
            raise BadInput(f"{run} is given twice (as {first}): name each run folder once")
    return [str(run) for run in runs]


def _require_comparable(studies: Mapping[str, Study]) -> None:
    (first, one), *others = studies.items()
    for name, other in others:
        if one.metric != other.metric:
            raise BadInput(
                f"{first} and {name} are not comparable: one measures {one.metric}, the other {other.metric}; compare "
                "runs of one metric"
            )
        common = [arm for arm in one.arms if arm in other.arms]
        if not set(common) - {BASELINE, A_A_CONTROL}:
            raise BadInput(
                f"{first} and {name} have no arm in common but the baseline: one has {', '.join(one.arms)}, the other "
                f"{', '.join(other.arms)}"
            )
        for arm in common:
            if why := _difference(one.arms[arm], other.arms[arm], first, name):
                raise BadInput(
                    f"{first} and {name} are not comparable: {arm} {why}; compare runs that define it alike, or search "
                    "it again under one definition"
                )


def _difference(a: Arm, b: Arm, in_a: str, in_b: str) -> str | None:
    """Why two arms of one name are not the same arm; None if they are. Their default, tried first, may differ."""
    for part in ASKS:
        if getattr(a, part) != getattr(b, part):
            return f"has {part} {_said(getattr(a, part))} in {in_a} and {_said(getattr(b, part))} in {in_b}"
    for hp in dict.fromkeys((*a.space, *b.space)):
        if a.space.get(hp) != b.space.get(hp):
            of_a, of_b = (f"over {s[hp]}" if hp in s else "not at all" for s in (a.space, b.space))
            return f"searches {hp} {of_a} in {in_a} and {of_b} in {in_b}"
    if a.kind == "fixed" and a.default != b.default:
        hp = next(h for h in {**a.default, **b.default} if a.default.get(h) != b.default.get(h))
        return f"is fixed at {hp}={a.default.get(hp)} in {in_a} and {hp}={b.default.get(hp)} in {in_b}"
    return None


def _differs(studies: Mapping[str, Study]) -> Json:
    """{setting: its value in every run} of what may differ and does, nested settings by their path.

    Where the kind of something differs (of data, say), its other settings are not listed.
    """
    flat = [_flat(yaml.safe_load(to_yaml(study))) for study in studies.values()]
    names = dict.fromkeys(n for settings in flat for n in settings if n.split(".")[0] in MAY_DIFFER)
    found = {n: [settings.get(n) for settings in flat] for n in names}
    differing = {n: values for n, values in found.items() if any(v != values[0] for v in values)}
    other_kind = tuple(n.removesuffix("kind") for n in differing if n.endswith(".kind"))
    return {n: v for n, v in differing.items() if n.endswith(".kind") or not n.startswith(other_kind)}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Json:
    found: Json = {}
    for key, value in settings.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _said(value: object) -> str:
    return str(value) if value not in ({}, ()) else "nothing of its own"


def render(result: Json) -> RenderableType:
    """For a terminal: each arm's tuned value, difference and verdict, a run after the other; then what differs."""
    unit = Unit.of(result["runs"][0]["metric"])
    letters = _letters(result)
    table = new_table(
        f"{result['runs'][0]['metric']} in {unit.values}, differences to each run's own tuned {BASELINE} in "
        f"{unit.points}",
        ("arm",),
        [f"{what} {letter}" for letter in letters for what in ("tuned", "difference", "verdict")],
        caption="95 % intervals over seeds and test rows; those of differences corrected by Holm within their run",
    )
    for arm in result["arms"]:
        cells: list[str | Text] = []
        for part in arm["in_runs"]:
            cells += [*_numbers(part, unit), Text(_verdict(part), style=COLOURS.get(_verdict(part), ""))]
        table.add_row(arm["arm"], *cells)
    differs = [f"{name}: {' | '.join(str(v) for v in values)}" for name, values in result["differs"].items()]
    return Group(table, *(Text(line) for line in (*_runs(result), *differs)))


def paper(result: Json, form: paper_tables.Format) -> str:
    """The same as LaTeX or Markdown; as CSV every arm of every run, one a row, with all digits."""
    if form == "csv":
        return paper_tables.csv_of(result["runs"])
    unit, letters = Unit.of(result["runs"][0]["metric"]), _letters(result)
    headings = ("Arm", *(f"{what} {letter}" for letter in letters for what in ("Tuned", "Difference", "Verdict")))
    rows = tuple(
        (arm["arm"], *(cell for part in arm["in_runs"] for cell in (*_numbers(part, unit), _verdict(part))))
        for arm in result["arms"]
    )
    caption = (
        f"{result['runs'][0]['metric']} in {unit.values}, 95 % intervals over seeds and test rows; differences in "
        f"{unit.points} to each run's own tuned {BASELINE}, corrected by Holm. {' '.join(_runs(result))}"
    )
    return paper_tables.write(paper_tables.PaperTable(caption, "l" + "rrl" * len(letters), headings, rows), form)


def _numbers(part: Json | None, unit: Unit) -> tuple[str, str]:
    if part is None:
        return "-", "-"
    tuned, delta = paper_tables.measured(part), part["delta_vs_baseline"] or {}
    return paper_tables.with_interval(unit, tuned.get("mean"), tuned.get("ci95")), paper_tables.gain(unit, delta)


def _verdict(part: Json | None) -> str:
    if part is None:
        return "not in it"
    return "baseline" if part["arm"] == BASELINE else part["verdict"] or "-"


def _letters(result: Json) -> list[str]:
    return [f"[{i}]" for i in range(1, len(result["runs"]) + 1)]


def _runs(result: Json) -> list[str]:
    return [
        f"{letter} {run['run']}: {run['study']}{'' if run['complete'] else ', not complete'}."
        for letter, run in zip(_letters(result), result["runs"], strict=True)
    ]
