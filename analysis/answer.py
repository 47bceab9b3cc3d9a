"""What a sweep ends with: its answer in two sentences, and what to type next."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from analysis.tables import baseline, conclusions
from analysis.units import Unit
from spaces import A_A_CONTROL

Json = Mapping[str, Any]
TO_BASELINE = {
    "better": "better than",
    "worse": "worse than",
    "equivalent": "equivalent to",
    "indistinguishable": "indistinguishable from",
}


def answer(result: Json) -> list[str]:
    """Two sentences of a comparison: the study's question, and the best student that runs alone."""
    return [_first(result), _best_sentence(result)]


def next_commands(result: Json, run: Path) -> list[tuple[str, str]]:
    """(what to type or open, what for) after a sweep whose comparison this is."""
    found = [(str(run / "report.html"), "every figure, in a browser")]
    settled = _seeds_that_settle(result)
    if settled:
        arm, seeds = settled
        found.append((f"distune extend {run} --confirm-seeds {seeds}", f"about what settles {arm}"))
    best = _best(result)
    if best is not None:
        found.append((f"distune export {run} --arm {best['arm']} --to {best['arm']}-student", "the student to deploy"))
    return [*found, (f"distune compare {run}", "this table again")]


def render(result: Json, run: Path) -> RenderableType:
    """Both as text, the commands aligned."""
    commands = next_commands(result, run)
    width = max(len(command) for command, _ in commands)
    return Group(
        *(Text(sentence, style="bold") for sentence in answer(result)),
        Text("next:"),
        *(Text(f"  {command:{width}}  # {why}") for command, why in commands),
    )


def _first(result: Json) -> str:
    said = conclusions(result)
    if said:
        return said[0]
    judged = [arm for arm in result["arms"] if arm["verdict"] is not None and arm["arm"] != A_A_CONTROL]
    better = [arm["arm"] for arm in judged if arm["verdict"] == "better"]
    if not judged:
        return f"Nothing was compared with tuned {baseline(result)}."
    return f"{', '.join(better) or 'No arm'} of {len(judged)} is better than tuned {baseline(result)} by this sweep."


def _best(result: Json) -> Json | None:
    students = [
        arm
        for arm in result["arms"]
        if arm["role"] == "student" and arm["arm"] != A_A_CONTROL and (arm["tuned"] or {}).get("mean") is not None
    ]
    return max(students, key=lambda arm: float(arm["tuned"]["mean"]), default=None)


def _best_sentence(result: Json) -> str:
    best, unit = _best(result), Unit.of(result["metric"])
    if best is None:
        return "No student has been confirmed."
    tuned = best["tuned"]
    where = "the baseline itself" if best["arm"] == best["baseline"] else "without a verdict"
    if best["verdict"] is not None:
        where = f"{TO_BASELINE[best['verdict']]} tuned {best['baseline']}"
    figure = f"{unit.value(tuned['mean'])} {unit.interval(tuned['ci95'])}".strip()
    measured = f"{figure} {unit.values} (n = {tuned['n']})"
    return f"Of the students that run alone {best['arm']} is highest: {measured}, {where}."


def _seeds_that_settle(result: Json) -> tuple[str, int] | None:
    """The undecided arm that takes the fewest seeds to settle, and how many: a multiple of its independent winners."""
    undecided = [
        (arm["seeds_to_settle"], arm["arm"])
        for arm in result["arms"]
        if arm["verdict"] == "indistinguishable" and arm["seeds_to_settle"] and arm["arm"] != A_A_CONTROL
    ]
    if not undecided:
        return None
    seeds, arm = min(undecided)
    winners = max((len(a["tuned"]["winners"]) for a in result["arms"] if a["tuned"]), default=1)  # a fixed arm has none
    return arm, math.ceil(seeds / winners) * winners
