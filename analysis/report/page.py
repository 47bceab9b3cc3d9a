"""The report of one run, composed from its ledger and written as one HTML file."""

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from analysis import tables
from analysis.comparison import compare
from analysis.insights import insights
from analysis.report import curves, figures
from analysis.report.parts import Json, Section, Table, embedded, from_rich
from analysis.report.pictures import gallery
from analysis.units import Unit
from search.ledger import Ledger
from spaces import A_A_CONTROL, Study, load_study

FILE = "report.html"
AGAIN_S = 5.0  # between two rebuilds while a sweep is watched


@dataclass(frozen=True)
class _Read:
    """What the page is made of, read once."""

    study: Study
    result: Json
    insights: Json
    courses: list[curves.Course]
    chosen: dict[str, str]  # arm -> the trial that it deploys
    meta: Json
    versions: Json
    asked: str  # study.yaml
    phases: list[tuple[str, str, float]]
    unit: Unit

    @functools.cached_property
    def lines(self) -> dict[str, Json]:
        return figures.colours(list(self.study.arms))


def write(run: Path, reload_s: float | None = None) -> Path:
    """Write RUN/report.html from what the ledger holds now, whole or not at all; returns its path.

    reload_s: after how many seconds the page loads itself again, for a sweep that goes on.
    """
    page = render(run, reload_s)
    path = run / FILE
    new = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        new.write_text(page, encoding="utf-8")
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    return path


def write_while_it_grows(run: Path, say: Callable[[str], None], wait: Callable[[float], Any] = time.sleep) -> None:
    """Write the report again and again until the sweep has finished or Ctrl-C; the last page does not load itself."""
    say(f"{run / FILE} is rebuilt every few seconds until the sweep has finished; Ctrl-C ends it")
    try:
        while not _finished(run):
            began = time.perf_counter()
            write(run, AGAIN_S)
            wait(max(AGAIN_S, 2 * (time.perf_counter() - began)))  # never most of a core that trials want
    except KeyboardInterrupt:
        pass
    write(run)


def _finished(run: Path) -> bool:
    with Ledger.open(run) as ledger:
        return ledger.finished


def render(run: Path, reload_s: float | None = None) -> str:
    """The page as text. Raises NotALedger for a folder that is no run."""
    read = _read(run)
    result, unit = read.result, read.unit
    sections = [s for s in _sections(read, run) if not s.is_empty]
    drawn = {f.key: f.spec() for s in sections for f in s.figures}
    return str(
        _template().render(
            study=read.study,
            result=result,
            state=_state(read),
            headline=headline(result, unit),
            sections=sections,
            figures=embedded(drawn),
            trials=embedded(curves.trial_rows(read.courses, unit)),
            comparison=embedded(result),
            rows=len(read.courses),
            command=command(read),
            asked=read.asked,
            values=unit.values,
            reload_s=reload_s,
            written=time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
            plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
            style=Markup(_text("page.css")),
            script=Markup(_text("page.js")),
            verdicts=VERDICTS,
        )
    )


def _read(run: Path) -> _Read:
    with Ledger.open(run) as ledger:
        study = load_study(run / "study.yaml")
        result = compare(run)
        found = insights(run, result)
        trials = ledger.trials()
        courses = curves.courses(trials, ledger.epochs(), ledger.ends())
        revisions = ledger.revisions()
        code = revisions[-1].code if revisions else {}
        return _Read(
            study,
            result,
            found,
            courses,
            {arm["arm"]: arm["tuned"]["trial"] for arm in result["arms"] if arm["tuned"]},
            ledger.meta,
            {name: version for name, version in code.items() if not name.endswith(".py")},
            (run / "study.yaml").read_text(encoding="utf-8"),
            ledger.phases(),
            Unit.of(result["metric"]),
        )


VERDICTS = {
    **{"better": "good", "replicates": "good"},
    **{"worse": "bad", "reversed": "bad"},
    **{"equivalent": "same", "smaller": "same", "indistinguishable": "open", "inconclusive": "open"},
    "not distinguishable from noise": "open",
}


def headline(result: Json, unit: Unit) -> list[str]:
    """The verdict in words: what the study asked, then every arm that is told from the baseline, then the others."""
    lines = list(tables.conclusions(result))
    judged = [a for a in result["arms"] if a["delta_vs_baseline"] and a["arm"] != A_A_CONTROL]
    words = {"better": "Better than", "worse": "Worse than", "equivalent": "Equivalent to"}
    for verdict, said in {**words, "indistinguishable": "Not told from"}.items():
        own = sorted((a for a in judged if a["verdict"] == verdict), key=lambda a: -a["delta_vs_baseline"]["mean"])
        if own:
            named = "; ".join(f"{a['arm']} {_gain(a, unit)}{_settle(a)}" for a in own)
            lines.append(f"{said} tuned {tables.baseline(result)}, in {unit.points}: {named}.")
    silent = [a["arm"] for a in judged if a["verdict"] is None]
    if silent:
        lines.append(f"Without a verdict: {_listed(silent)}. The notes say why.")
    if not judged:
        lines.append("No arm has been compared with the tuned baseline yet.")
    return lines


def _gain(arm: Mapping[str, Any], unit: Unit) -> str:
    delta = arm["delta_vs_baseline"]
    return f"{unit.difference(delta['mean'])} {unit.interval(delta['ci95_family'], sign=True)}".strip()


def _settle(arm: Mapping[str, Any]) -> str:
    return f" (about {arm['seeds_to_settle']} seeds would settle it)" if arm["seeds_to_settle"] else ""


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _state(read: _Read) -> str | None:
    """What the reader must know first of a sweep that is not whole; None where it is."""
    if read.result["complete"]:
        return None
    trials = len(read.courses)
    ended = sum(c.end is not None for c in read.courses)
    why = next((n for n in read.result["notes"] if n.startswith("not complete")), "not complete")
    return f"{ended} of {trials} trials have ended; {why.removeprefix('not complete: ')}."


def _sections(read: _Read, run: Path) -> list[Section]:
    result, unit, study, found = read.result, read.unit, read.study, read.insights
    claims = result["published_claims"]
    drawn = [figures.differences(result, unit), figures.levels(result, unit)]
    effects = any(effect["mean"] is not None for effect in result["effects"])
    teacher = result["teacher"]
    return [
        Section(
            "answer",
            "The answer",
            figures=[f for f in drawn if f],
            tables=[from_rich(tables.ablation_table(result, unit))],
        ),
        Section("claims", "Published claims", tables=[_claims(claims, unit)] if claims else []),
        Section(
            "contrasts",
            "What the study asks",
            tables=[
                *([from_rich(tables.contrasts_table(result, unit))] if result["contrasts"] else []),
                *([from_rich(tables.effects_table(result["effects"], unit))] if effects else []),
                *([_power(found["power"], unit)] if found["power"] else []),
            ],
        ),
        Section(
            "sizes",
            "How small a student may be",
            figures=[f for f in (figures.front(result, unit),) if f],
            tables=[from_rich(tables.front_table(result["front"], unit))] if result["front"] else [],
        ),
        Section("gates", "The gate by segment", tables=_some(tables.gates_table(result.get("gates") or []))),
        Section("maps", "Where they look", gallery=gallery(run)),
        Section(
            "curves",
            "Learning curves",
            ["Validation, mean over a trial's seeds, in the search."] if read.courses else [],
            curves.learning_curves(read.courses, study, unit, read.chosen),
        ),
        Section(
            "parallel",
            "Configurations",
            [
                "Drag along an axis to keep the trials within a range; a second drag adds one, a click clears it. "
                "The table of trials below follows."
            ]
            if read.courses
            else [],
            curves.parallel_coordinates(read.courses, study, unit),
            choices=True,
        ),
        Section(
            "budget",
            "What more budget buys",
            figures=[
                f
                for f in (
                    figures.expected_performance(found["evp"], unit, read.lines),
                    figures.anytime(found["anytime"], unit, read.lines, "seed_epochs"),
                    figures.anytime(found["anytime"], unit, read.lines, "seconds"),
                )
                if f
            ],
            tables=[_optimism(found, unit)] if any(found["optimism"].values()) else [],
        ),
        Section(
            "importance",
            "What mattered",
            figures=[f for f in (figures.importance(found["importance"]),) if f],
        ),
        Section("interaction", "Temperature and weight", figures=figures.interactions(found["interaction"], unit)),
        Section(
            "gradients",
            "Gradient shares",
            ["How much of the student's gradient each loss term is, at a trial's last audit, against its score."]
            if any(len(terms) > 1 for terms in found["gradient_share"].values())
            else [],
            figures.gradient_shares(found["gradient_share"], unit),
        ),
        Section(
            "cost",
            "Budget and cost",
            figures=[f for f in (figures.cost(result, read.lines),) if f],
            tables=[
                from_rich(tables.budget_table(result, unit)),
                *([_cost(found["cost_per_point"], unit)] if found["cost_per_point"] else []),
                _seconds(result),
            ],
        ),
        Section(
            "beside",
            "Robustness, calibration, latency",
            figures=[f for f in (figures.latency(result, unit, read.lines),) if f],
            tables=[*_some(tables.beside_table(result)), *_some(tables.best_of_epochs_table(result))],
        ),
        Section(
            "teacher",
            "Teachers",
            tables=(
                []
                if not teacher
                else _some(tables.models_table(teacher, unit))
                if teacher["models"]
                else [from_rich(tables.teacher_table(teacher, unit))]
            ),
        ),
        Section("notes", "Notes", notes=list(dict.fromkeys([*result["notes"], *found["notes"]]))),
        Section("repeat", "Repeat it", ["The same command on the study below."], tables=[_versions(read)]),
    ]


def _some(table: Any) -> list[Table]:
    return [] if table is None else [from_rich(table)]


def _claims(claims: Sequence[Json], unit: Unit) -> Table:
    rows = [
        (
            c["claim"],
            c["verdict"] or "no verdict",
            f"{c['sentence']} {c['notes'] or ''}".strip(),
            unit.difference(c["published"]),
            f"{unit.difference(c['measured'])} {unit.interval(c['ci95'], sign=True)}".strip(),
        )
        for c in claims
    ]
    headings = ("claim", "verdict", "in plain words", f"published, {unit.points}", "measured")
    return Table(headings, rows, 3, "", f"Source: {'; '.join(dict.fromkeys(c['source'] for c in claims))}")


def _power(power: Json, unit: Unit) -> Table:
    rows = [
        (
            arm,
            unit.difference(p["difference"]),
            str(p["seeds"] or "-"),
            "-" if p["power_now"] is None else f"{100 * p['power_now']:.0f} %",
            unit.value(p["detectable"]),
            str(p["seeds_to_settle"] or "-"),
        )
        for arm, p in power.items()
        if p
    ]
    headings = ("arm", "difference", "seeds", "power now", f"detectable, {unit.points}", "seeds to settle")
    caption = "power now: how often a sweep of this size would find a difference of this one's size; detectable: the "
    return Table(headings, rows, 1, "what this sweep could have found", caption + "difference found four times in five")


def _optimism(found: Json, unit: Unit) -> Table:
    said = {None: "not known", True: "yes", False: "no"}
    rows = [
        (
            arm,
            str(o["subsearch"]),
            said[found["saturated"].get(arm)],
            unit.value(o["search"]),
            unit.value(o["fresh"]),
            unit.difference(o["optimism"]),
        )
        for arm, winners in found["optimism"].items()
        for o in winners
    ]
    headings = ("arm", "sub-search", "saturated", "in the search", "fresh seeds", "optimism")
    caption = "saturated: twice the random trials would gain less than the margin"
    return Table(headings, rows, 3, "what the search believed of its winners, on validation", caption, True)


def _cost(found: Json, unit: Unit) -> Table:
    rows = [
        (
            arm,
            f"{c['seed_epochs']:,}",
            f"{c['seconds']:,.0f}",
            "-" if c["gain_points"] is None else f"{c['gain_points']:+.2f}",
            "no gain" if c["per_point"] is None else f"{c['per_point']:,.0f}",
        )
        for arm, c in found.items()
    ]
    headings = ("arm", "seed-epochs", "seconds", "gain, points", "seed-epochs a point")
    return Table(headings, rows, 1, "what a point over the tuned baseline cost", "a point is 0.01 of the metric")


def _seconds(result: Json) -> Table:
    rows = [(phase, f"{seconds:,.1f}") for phase, seconds in result["seconds"].items()]
    return Table(("phase", "wall seconds"), rows, 1, "the sweep by phase")


def _versions(read: _Read) -> Table:
    rows = list(read.versions.items()) or [("versions", "not recorded by the version that ran this sweep")]
    return Table(("package", "version"), rows, 2)


def command(read: _Read) -> str:
    """What repeats the sweep, where study.yaml lies in the current folder."""
    flags = {"seed": read.meta.get("seed"), **read.meta.get("options", {})}
    usual = {"seed": 0, "cpus_per_trial": 1.0, "gpus_per_trial": 0.0, "epoch_timeout": 3600.0}
    parts = ["distune sweep study.yaml"]
    for name, value in flags.items():
        if value is None or value is False or name == "address" or value == usual.get(name):
            continue
        parts.append(f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}"))
    return " ".join(parts)


@functools.cache
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("analysis.report", ".")
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(
        "page.html"
    )


def _text(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
