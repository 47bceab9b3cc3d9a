"""The comparison for a person: the ablation table and what it says in words."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from analysis.units import Unit
from spaces import A_A_CONTROL

Json = Mapping[str, Any]
COLOURS = {"better": "green", "worse": "red", "equivalent": "cyan", "replicates": "green", "reversed": "red"}

WIDTH = 170  # of tables that go to a file or a pipe
ALPHA = 0.05  # as in analysis.looks, whose import of scipy a list of studies need not wait for


def show(result: Json, console: Console | None = None, but: Sequence[str] = ()) -> None:
    """Print the whole comparison, but for conclusions that are said elsewhere."""
    (console or wide_console()).print(render(result, but), highlight=False)


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


def render(result: Json, but: Sequence[str] = ()) -> RenderableType:
    unit = Unit.of(result["metric"])
    parts: list[RenderableType] = [ablation_table(result, unit), *_sentences(result, unit, but)]
    if result["contrasts"]:
        parts.append(contrasts_table(result, unit))
    if any(effect["mean"] is not None for effect in result["effects"]):
        parts.append(effects_table(result["effects"], unit))
    if result["teacher"]:
        parts += [table for table in (models_table(result["teacher"], unit),) if table is not None]
        if not result["teacher"]["models"]:
            parts.append(teacher_table(result["teacher"], unit))
    more = (gates_table(result.get("gates") or []), beside_table(result), best_of_epochs_table(result))
    parts += [table for table in more if table is not None]
    if result["front"]:
        parts.append(front_table(result["front"], unit))
    parts.append(budget_table(result, unit))
    parts += [Text(f"note: {note}", style="dim") for note in result["notes"]]
    return Group(*parts)


def percent(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}"


def p_value(p: float | None) -> str:
    return "-" if p is None else ("<0.001" if p < 0.001 else f"{p:.3f}")


def baseline(result: Json) -> str:
    """What arms are judged against, in words."""
    return f"{result['baseline']} of its size" if result["front"] else str(result["baseline"])


ROLES = {"student": "alone", "needs_teachers": "+ teachers", "reference": "teachers"}


def ablation_table(result: Json, unit: Unit) -> Table:
    several = len({arm.get("role", "student") for arm in result["arms"]}) > 1
    published = any(arm["published"] is not None for arm in result["arms"])
    table = new_table(
        f"{result['study']}: {result['metric']} in {unit.values}, with 95 % intervals over seeds and test rows",
        ("arm", *(["runs"] if several else []), "verdict"),
        (*(["published", "as published"] if published else []), "tuned", "n", "difference", "p (Holm)"),
        caption=f"tuned: n seeds under the winners of independent searches; difference: to tuned {baseline(result)}, "
        f"its interval corrected like p{_level(result)}"
        + ("; †: selected on contaminated validation rows" if any(map(_dagger, result["arms"])) else ""),
    )
    for arm in result["arms"]:
        given, tuned = arm["as_published"] or {}, arm["tuned"] or arm.get("fixed") or {}
        measured = f"{unit.value(given.get('mean'))} {unit.interval(given.get('ci95'))}" if given else "-"
        delta = arm["delta_vs_baseline"] or {}
        table.add_row(
            arm["arm"] + (" (A/A)" if arm["arm"] == A_A_CONTROL else ""),
            *([ROLES[arm["role"]]] if several else []),
            _verdict(arm),
            *([unit.value(arm["published"]), measured] if published else []),
            f"{unit.value(tuned.get('mean'))}{_dagger(arm)} {unit.interval(tuned.get('ci95'))}",
            str(tuned.get("n", "-")),
            f"{unit.difference(delta.get('mean'))} {unit.interval(delta.get('ci95_family'), sign=True)}",
            p_value(delta.get("p_adjusted")),
        )
    return table


def _dagger(arm: Json) -> str:
    """The mark of a tuned value that was selected on rows that the teacher may have seen."""
    return " †" if (arm["tuned"] or {}).get("contaminated") else ""


def _level(result: Json) -> str:
    """At which level differences are judged, where that is no longer the usual one."""
    return f", at {100 * result['alpha']:.2f} % in place of 5 %" if result["alpha"] < ALPHA else ""


def _verdict(arm: Json) -> Text:
    if arm["delta_vs_baseline"] is None:
        return Text("baseline" if arm["arm"] == arm["baseline"] else "-", style="dim")
    return Text(arm["verdict"] or "none", style=COLOURS.get(arm["verdict"] or "", "dim"))


def _sentences(result: Json, unit: Unit, but: Sequence[str]) -> list[Text]:
    """The claims in plain words, then the sentences that the study was made for, without those of `but`."""
    lines = []
    for claim in result["published_claims"]:
        measured = "not measured yet"
        if claim["measured"] is not None:
            measured = f"measured {_gain(claim['measured'], claim['ci95'], unit)}"
            if claim["population"]:
                measured += f", on fresh rows {_gain(claim['population']['mean'], claim['population']['ci95'], unit)}"
        lines.append(
            Text.assemble(
                f"published claim: {claim['claim']}: {measured} {unit.points}: ",
                (str(claim["verdict"] or "no verdict"), COLOURS.get(str(claim["verdict"]), "bold")),
            )
        )
        lines.append(Text(f"  {claim['sentence']}"))
    open_arms = [arm for arm in result["arms"] if arm["verdict"] == "indistinguishable"]
    for arm in open_arms:
        settle = arm["seeds_to_settle"]
        what = f"about {settle} seeds would settle it" if settle else "more seeds alone would not settle it"
        lines.append(Text(f"{arm['arm']}: indistinguishable from {arm['baseline']}; {what}"))
    lines += [Text(line, style="bold") for line in conclusions(result) if line not in but]
    return lines


def _gain(mean: float, pair: Sequence[float] | None, unit: Unit) -> str:
    return f"{unit.difference(mean)} {unit.interval(pair, sign=True)}".strip()


def conclusions(result: Json) -> list[str]:
    """Sentences for the student's size, the study's question, its gate and the best student, as far as it has them."""
    unit = Unit.of(result["metric"])
    answers: dict[str, Json] = {}
    for contrast in result["contrasts"]:
        answers.setdefault(contrast["question"], contrast)
    smallest = result["front"]["sentence"] if result["front"] else None
    lines = [
        smallest,
        _whether_it_helps(answers, unit),
        _whether_the_gate_helps(answers, unit),
        _against_teachers(result, unit),
    ]
    return [line for line in lines if line]


def front_table(front: Json, unit: Unit) -> Table:
    """Every confirmed student that runs alone, the smallest first."""
    measure = front["objective"][1]
    table = new_table(
        "how small a student may be",
        ("arm", "size", "on the front", "stands for its size"),
        (SIZE[measure], f"test, {unit.values}", "n", f"against its teacher, {unit.points}"),
        caption="front: by means, none is both smaller and better; an arm stands for its size by its validation",
    )
    for p in front["points"]:
        behind, own = p["behind_teacher"] or {}, p["arm"] in front["chosen"].values()
        table.add_row(
            p["arm"],
            p["size"] or "as in student",
            "yes" if p["on_front"] else "no",
            "yes" if own else "no",
            _count(int(p["measured"])) if measure == "params" else f"{p['measured']:.3f}",
            f"{unit.value(p['mean'])} {unit.interval(p['ci95'])}",
            str(p["n"]),
            f"{unit.difference(behind.get('mean'))} {unit.interval(behind.get('ci95'), sign=True)}",
        )
    return table


def _whether_it_helps(answers: Mapping[str, Json], unit: Unit) -> str | None:
    """ "Distillation helps" needs both contrasts positive: with training on labels, and with label smoothing."""
    helps, needed = answers.get("does it help"), answers.get("is a teacher needed")
    if not helps or not needed or helps["answer"] is None or needed["answer"] is None:
        return None
    gain = f"{_gain(helps['mean'], helps['ci95_family'], unit)} {unit.points}"
    if helps["answer"] == needed["answer"] == "better":
        return f"Distillation helps: {gain} over tuned training on labels, and no teacher-free control does as well."
    if helps["answer"] == "better":
        short = f"{needed['answer']}: {_gain(needed['mean'], needed['ci95_family'], unit)}"
        return (
            f"Distillation beats tuned training on labels by {gain}, but label smoothing, which needs no teacher, "
            f"is not beaten ({short})."
        )
    return f"This sweep does not show that distillation helps: against tuned training on labels {gain}."


def _whether_the_gate_helps(answers: Mapping[str, Json], unit: Unit) -> str | None:
    gate = answers.get("does the gate beat the plain average")
    if not gate or gate["answer"] is None:
        return None
    gain = f"{_gain(gate['mean'], gate['ci95_family'], unit)} {unit.points} ({gate['contrast']})"
    if gate["answer"] == "better":
        return f"The gate beats the plain average of its teachers beyond noise: {gain}."
    return f"This sweep does not show that the gate beats the plain average of its teachers: {gain}, {gate['answer']}."


def _against_teachers(result: Json, unit: Unit) -> str | None:
    """The best student that runs alone beside the best teacher: both chosen by their means, so no test."""
    students = {a["arm"]: (a["tuned"] or {}).get("mean") for a in result["arms"] if a["role"] == "student"}
    teachers = {a["arm"]: (a.get("fixed") or {}).get("mean") for a in result["arms"] if a["role"] == "reference"}
    students, teachers = ({k: v for k, v in found.items() if v is not None} for found in (students, teachers))
    if not students or not teachers:
        return None
    student, teacher = max(students, key=lambda a: students[a]), max(teachers, key=lambda a: teachers[a])
    return (
        f"Of the students that run alone {student} is highest, {unit.value(students[student])}; of teachers without a "
        f"student {teacher}, {unit.value(teachers[teacher])}."
    )


def contrasts_table(result: Json, unit: Unit) -> Table:
    table = new_table(
        f"contrasts of arms, in {unit.points} (margin {unit.value(result['margin'])}{_level(result)})",
        ("contrast", "question", "answer"),
        ("difference", "p (Holm)"),
    )
    for c in result["contrasts"]:
        table.add_row(
            c["contrast"],
            c["question"] + "?",
            Text(c["answer"] or "-", style=COLOURS.get(c["answer"] or "", "")),
            f"{unit.difference(c['mean'])} {unit.interval(c['ci95_family'], sign=True)}",
            p_value(c["p_adjusted"]),
        )
    return table


def effects_table(effects: Sequence[Json], unit: Unit) -> Table:
    table = new_table(
        f"where a difference of fixed arms comes from, in {unit.points}",
        ("effect",),
        ("mean", "95 % over seeds and rows (Holm)", "over seeds", "p (Holm)"),
    )
    for e in effects:
        table.add_row(
            e["effect"],
            unit.difference(e["mean"]),
            "exactly 0 for every row and seed" if _exactly_zero(e) else unit.interval(e["ci95_family"], sign=True),
            unit.interval(e["ci95_seeds"], sign=True),
            p_value(e["p_adjusted"]),
        )
    return table


def _exactly_zero(effect: Json) -> bool:
    return bool(effect["mean"] == 0 and effect["ci95"] == [0.0, 0.0])


BESIDE = {
    "average_precision": "AP",
    "accuracy": "accuracy",
    "accuracy_at_threshold": "at threshold",
    "majority": "majority",
    "ks": "KS",
    "brier": "Brier",
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
SIZE = {"params": "parameters", "latency": "ms, batch 1"}
PERCENT = ("calibration_error", "teacher_agreement", "majority")


def beside_table(result: Json) -> Table | None:
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
        return _count(int(value["mean"])) if value["mean"] else "-"
    if name in PERCENT or name.startswith("accuracy"):
        return percent(value["mean"], 1)
    return f"{value['mean']:.3f}"


def best_of_epochs_table(result: Json) -> Table | None:
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
        one_seed = Unit.of("accuracy").interval(b["one_seed95"])
        table.add_row(arm, where, percent(b["published"]), percent(b["mean"]), one_seed)
    return table


MODEL = {
    "test_auc": "AUC",
    "test_average_precision": "AP",
    "test_accuracy": "accuracy",
    "test_majority": "majority",
    "test_ks": "KS",
    "test_brier": "Brier",
    "test_ece": "ECE",
    "ms_per_sample_batch_1": "ms, batch 1",
    "ms_per_sample_batch_128": "ms, batch 128",
    "bytes": "kB",
}


def models_table(teacher: Json, unit: Unit) -> Table | None:
    """Teachers that are several models, one by one, as medians over the teacher sets."""
    if not teacher["models"]:
        return None
    form = "calibrated" if "bytes" in teacher["models"][0] else "as its logits were given"
    table = new_table(
        f"teachers on test ({teacher['ensemble']['n']} sets)",
        ("model",),
        list(MODEL.values()),
        caption=f"{form}; accuracy and ECE in percent; times are measured while other trials ran",
    )
    for model in teacher["models"]:
        table.add_row(model["name"], *(_of_model(key, model.get(key)) for key in MODEL))
    return table


def _of_model(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key == "bytes":
        return f"{value / 1000:,.0f}"
    if key in ("test_accuracy", "test_majority", "test_ece"):
        return percent(value, 1)
    return f"{value:.4f}" if key == "test_auc" else f"{value:.3f}"


def gates_table(gates: Sequence[Json]) -> Table | None:
    """Whom a gate prefers, beside who is better there."""
    if not gates:
        return None
    names = list(gates[0]["teachers"])
    table = new_table(
        "what the gates do, by segment of the test rows",
        ("arm", "segment", "prefers", "better there", "agrees"),
        ("rows", *(f"gate {name}" for name in names), *(f"AUC {name}" for name in names)),
        caption="gate: mean over rows and seeds; better: beyond noise, over teacher sets and rows",
    )
    for g in gates:
        of = [g["teachers"][name] for name in names]
        agrees = "-" if g["agrees"] is None else ("yes" if g["agrees"] else "no")
        auc = ["-" if t["auc"] is None else f"{t['auc']:.4f}" for t in of]
        better = g["better"] or "none"
        shown = (g["arm"], g["segment"], g["prefers"], better, agrees, f"{g['rows']:,}")
        table.add_row(*shown, *(f"{t['gate']:.3f}" for t in of), *auc)
    return table


def teacher_table(teacher: Json, unit: Unit) -> Table:
    table = new_table("teacher and student", ("",), ("published", "measured"))
    ensemble, members = teacher["ensemble"], teacher["members"]
    fresh = (
        "" if teacher["ensemble_population"] is None else f", fresh rows {unit.value(teacher['ensemble_population'])}"
    )
    table.add_row(
        f"teacher, test accuracy ({ensemble['n']} of them)"
        if members is None
        else f"ensemble, test accuracy ({ensemble['n']} sets)",
        unit.value(teacher["published"]),
        f"{unit.value(ensemble['mean'])} {unit.interval(ensemble['ci95'])}{fresh}",
    )
    if members:
        spread = f"{unit.value(members['mean'])} ({unit.value(members['min'])} to {unit.value(members['max'])})"
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


def budget_table(result: Json, unit: Unit) -> Table:
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
        config = ", ".join(f"{k} {shown(v)}" for k, v in tuned[arm].get("config", {}).items())
        optimism = unit.difference(tuned[arm].get("optimism"))
        table.add_row(arm, ended, config, str(b["seed_epochs"]), str(b["trials"]), f"{b['seconds']:.1f}", optimism)
    return table


def shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
