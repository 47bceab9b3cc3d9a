"""The comparison for a person: the ablation table and what it says in words."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

Json = Mapping[str, Any]
COLOURS = {"better": "green", "worse": "red", "equivalent": "cyan", "replicates": "green", "reversed": "red"}


WIDTH = 150  # of tables that go to a file or a pipe


def show(result: Json, console: Console | None = None) -> None:
    """Print the whole comparison."""
    (console or wide_console()).print(render(result), highlight=False)


def wide_console() -> Console:
    """A console as wide as the terminal, or wide enough for every table where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def new_table(title: str, left: Sequence[str], right: Sequence[str] = (), caption: str | None = None) -> Table:
    """A plain table with text columns first and number columns after."""
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for number, heading in enumerate((*left, *right)):
        table.add_column(heading, justify="left" if number < len(left) else "right", no_wrap=number == 0)
    return table


def render(result: Json) -> RenderableType:
    parts: list[RenderableType] = [_ablation(result), *_sentences(result)]
    if result["contrasts"]:
        parts.append(_contrasts(result["contrasts"], result["margin"]))
    if any(effect["mean"] is not None for effect in result["effects"]):
        parts.append(_effects(result["effects"]))
    if result["teacher"]:
        parts.append(_teacher(result["teacher"]))
    parts += [table for table in (_beside(result), _best_of_epochs(result)) if table is not None]
    parts.append(_budget(result))
    parts += [Text(f"note: {note}", style="dim") for note in result["notes"]]
    return Group(*parts)


def percent(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}"


def interval(pair: Sequence[float] | None, sign: bool = False) -> str:
    if pair is None:
        return ""
    form = "+.2f" if sign else ".2f"
    return f"[{100 * pair[0]:{form}}, {100 * pair[1]:{form}}]"


def p_value(p: float | None) -> str:
    return "-" if p is None else ("<0.001" if p < 0.001 else f"{p:.3f}")


def points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.2f}"


def _ablation(result: Json) -> Table:
    table = new_table(
        f"{result['study']}: {result['metric']} in percent, with 95 % intervals over seeds and test rows",
        ("arm", "verdict"),
        ("published", "as published", "tuned", "n", "difference", "p (Holm)"),
        caption=f"tuned: n seeds under the winners of independent searches; difference: to tuned {result['baseline']}, "
        "its interval corrected like p",
    )
    for arm in result["arms"]:
        given, tuned = arm["as_published"] or {}, arm["tuned"] or arm.get("fixed") or {}
        delta = arm["delta_vs_baseline"] or {}
        table.add_row(
            arm["arm"] + (" (A/A)" if arm["arm"].endswith("_again") else ""),
            _verdict(arm),
            percent(arm["published"]),
            f"{percent(given.get('mean'))} {interval(given.get('ci95'))}" if given else "-",
            f"{percent(tuned.get('mean'))} {interval(tuned.get('ci95'))}",
            str(tuned.get("n", "-")),
            f"{points(delta.get('mean'))} {interval(delta.get('ci95_family'), sign=True)}",
            p_value(delta.get("p_adjusted")),
        )
    return table


def _verdict(arm: Json) -> Text:
    if arm["delta_vs_baseline"] is None:
        return Text("baseline" if arm["arm"] == "hard_labels" else "-", style="dim")
    return Text(str(arm["verdict"]), style=COLOURS.get(arm["verdict"], ""))


def _sentences(result: Json) -> list[Text]:
    """The claims in plain words, then the one sentence that the study was made for."""
    lines = []
    for claim in result["published_claims"]:
        measured = "not measured yet"
        if claim["measured"] is not None:
            measured = f"measured {points(claim['measured'])} {interval(claim['ci95'], sign=True)}"
            if claim["population"]:
                fresh = claim["population"]
                measured += f", on fresh rows {points(fresh['mean'])} {interval(fresh['ci95'], sign=True)}"
        lines.append(
            Text.assemble(
                f"published claim: {claim['claim']}: {measured} points: ",
                (str(claim["verdict"] or "no verdict"), COLOURS.get(str(claim["verdict"]), "bold")),
            )
        )
    open_arms = [arm for arm in result["arms"] if arm["verdict"] == "indistinguishable"]
    for arm in open_arms:
        settle = arm["seeds_to_settle"]
        what = f"about {settle} seeds would settle it" if settle else "more seeds alone would not settle it"
        lines.append(Text(f"{arm['arm']}: indistinguishable from {result['baseline']}; {what}"))
    lines += [Text(line, style="bold") for line in conclusions(result)]
    return lines


def conclusions(result: Json) -> list[str]:
    """At most two sentences. "Distillation helps" needs both kd - hard_labels and kd - label_smoothing positive."""
    answers = {c["contrast"]: c for c in result["contrasts"]}
    helps, needed = answers.get("kd - hard_labels"), answers.get("kd - label_smoothing")
    if not helps or not needed or helps["answer"] is None or needed["answer"] is None:
        return []
    gain = f"{points(helps['mean'])} {interval(helps['ci95_family'], sign=True)} points"
    if helps["answer"] == needed["answer"] == "better":
        return [f"Distillation helps: {gain} over tuned training on labels, and no teacher-free control does as well."]
    if helps["answer"] == "better":
        short = f"{needed['answer']}: {points(needed['mean'])} {interval(needed['ci95_family'], sign=True)}"
        return [
            f"Distillation beats tuned training on labels by {gain}, but label smoothing, which needs no teacher, "
            f"is not beaten ({short})."
        ]
    return [f"This sweep does not show that distillation helps: against tuned training on labels {gain}."]


def _contrasts(contrasts: Sequence[Json], margin: float) -> Table:
    table = new_table(
        f"contrasts of tuned arms, in points (margin {100 * margin:.2f})",
        ("contrast", "question", "answer"),
        ("difference", "p (Holm)"),
    )
    for c in contrasts:
        table.add_row(
            c["contrast"],
            c["question"] + "?",
            Text(c["answer"] or "-", style=COLOURS.get(c["answer"] or "", "")),
            f"{points(c['mean'])} {interval(c['ci95_family'], sign=True)}",
            p_value(c["p_adjusted"]),
        )
    return table


def _effects(effects: Sequence[Json]) -> Table:
    table = new_table(
        "where a difference of fixed arms comes from, in points",
        ("effect",),
        ("mean", "95 % over seeds and rows (Holm)", "over seeds", "p (Holm)"),
    )
    for e in effects:
        table.add_row(
            e["effect"],
            points(e["mean"]),
            "exactly 0 for every row and seed" if _exactly_zero(e) else interval(e["ci95_family"], sign=True),
            interval(e["ci95_seeds"], sign=True),
            p_value(e["p_adjusted"]),
        )
    return table


def _exactly_zero(effect: Json) -> bool:
    return bool(effect["mean"] == 0 and effect["ci95"] == [0.0, 0.0])


BESIDE = {
    "nll": "NLL",
    "calibration_error": "ECE",
    "accuracy_noise_0.1": "noise 0.1",
    "accuracy_noise_0.2": "noise 0.2",
    "accuracy_occlusion_0.25": "occluded 1/4",
    "accuracy_occlusion_0.5": "occluded 1/2",
    "teacher_agreement": "as teacher",
    "ms_per_sample_batch_1": "ms, batch 1",
    "ms_per_sample_batch_128": "ms, batch 128",
    "parameters": "parameters",
}
PERCENT = ("calibration_error", "teacher_agreement")


def _beside(result: Json) -> Table | None:
    """Beside accuracy: means over the confirmed seeds of every arm, as far as they were measured."""
    found = {arm["arm"]: arm.get("evaluation") or {} for arm in result["arms"]}
    shown = [name for name in BESIDE if any(name in values for values in found.values())]
    if not shown:
        return None
    table = new_table(
        "beside accuracy, on test",
        ("arm",),
        [BESIDE[name] for name in shown],
        caption="ECE, agreement and accuracies in percent; times are medians, measured while other trials ran",
    )
    for arm, values in found.items():
        if values:
            table.add_row(arm, *(_beside_value(name, values.get(name)) for name in shown))
    return table


def _beside_value(name: str, value: Json | None) -> str:
    if value is None:
        return "-"
    if name == "parameters":
        return _count(int(value["mean"]))
    if name in PERCENT or name.startswith("accuracy"):
        return percent(value["mean"], 1)
    return f"{value['mean']:.3f}"


def _best_of_epochs(result: Json) -> Table | None:
    """The published best of epochs on the test set beside ours under the same rule; no verdict rests on it."""
    found = {arm["arm"]: arm["best_of_epochs"] for arm in result["arms"] if arm.get("best_of_epochs")}
    if not found:
        return None
    table = new_table(
        "best epoch on the test set, as the source reports it (for this comparison alone)",
        ("arm", "published lies"),
        ("published", "ours", "one more seed, 95 %"),
    )
    for arm, b in found.items():
        where = "-" if b["published_inside"] is None else ("inside" if b["published_inside"] else "outside")
        table.add_row(arm, where, percent(b["published"]), percent(b["mean"]), interval(b["one_seed95"]))
    return table


def _teacher(teacher: Json) -> Table:
    table = new_table("teacher and student", ("",), ("published", "measured"))
    ensemble, members = teacher["ensemble"], teacher["members"]
    fresh = "" if teacher["ensemble_population"] is None else f", fresh rows {percent(teacher['ensemble_population'])}"
    table.add_row(
        f"teacher, test accuracy ({ensemble['n']} of them)"
        if members is None
        else f"ensemble, test accuracy ({ensemble['n']} sets)",
        percent(teacher["published"]),
        f"{percent(ensemble['mean'])} {interval(ensemble['ci95'])}{fresh}",
    )
    if members:
        spread = f"{percent(members['mean'])} ({percent(members['min'])} to {percent(members['max'])})"
        table.add_row(f"its members ({members['n']})", "-", spread)
    edge = teacher["edge_recovered"]
    if edge:
        measured = edge["reason"] or ""
        if edge["measured"] is not None:
            measured = f"{100 * edge['measured']:.0f} % {_share(edge['ci95_seeds'])} {measured}".strip()
        published = "-" if edge["published"] is None else f"{100 * edge['published']:.1f} %"
        table.add_row("share of the ensemble's edge recovered, as published", published, measured)
    table.add_row(
        "parameters", "-", f"{_count(teacher['teacher_parameters'])} to {_count(teacher['student_parameters'])}"
    )
    if teacher["compression"]:
        table.add_row("compression", "-", f"{teacher['compression']:.0f}x")
    return table


def _share(pair: Sequence[float] | None) -> str:
    return "" if pair is None else f"[{100 * pair[0]:.0f} %, {100 * pair[1]:.0f} %]"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _budget(result: Json) -> Table:
    state = "complete" if result["complete"] else "not complete"
    fair = result["fair_budget"]
    table = new_table(
        f"budget: {state}; selection used {fair['limit']} of {fair['per_arm']} seed-epochs of search an arm",
        ("arm", "how its trials ended", "configuration to deploy"),
        ("seed-epochs", "trials", "seconds", "optimism"),
    )
    tuned = {arm["arm"]: arm["tuned"] or {} for arm in result["arms"]}
    for arm, b in result["budget"].items():
        ended = ", ".join(f"{n} {how}" for how, n in b["ended"].items())
        config = ", ".join(f"{k} {_value(v)}" for k, v in tuned[arm].get("config", {}).items())
        optimism = points(tuned[arm].get("optimism"))
        table.add_row(arm, ended, config, str(b["seed_epochs"]), str(b["trials"]), f"{b['seconds']:.1f}", optimism)
    return table


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
