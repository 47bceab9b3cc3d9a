"""What the commands print besides a comparison: studies, plans, audits and run folders."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from analysis.tables import new_table, wide_console
from analysis.units import Unit
from search.ledger import FILE, Ledger, NotALedger
from spaces import Study
from spaces.formulas import FORMULAS, LEGEND


def list_studies(studies: Iterable[Study]) -> None:
    table = new_table("built-in studies", ("study", "question", "arms"))
    for study in studies:
        table.add_row(study.name, study.about, ", ".join(study.arms))
    wide_console().print(table)


def describe(study: Study) -> None:
    """One study: question, source, arms with what they do, spaces and published numbers, and the budget."""
    console, unit = wide_console(), Unit.of(study.metric)
    console.print(f"[bold]{study.name}[/bold]: {study.about}\nsource: {study.source or '-'}")
    table = new_table("arms", ("arm", "what it does, and its loss", "searched over", "default"), ("published",))
    for name, arm in study.arms.items():
        table.add_row(
            name,
            Text.assemble(*([arm.about, "\n"] if arm.about else []), (FORMULAS.get(arm.variant, arm.variant), "cyan")),
            "\n".join(f"{hp}: {dimension}" for hp, dimension in arm.space.items()) or "fixed",
            "\n".join(f"{hp}: {value}" for hp, value in arm.default.items()),
            "-" if arm.published is None else unit.value(arm.published.value),
        )
    console.print(table)
    console.print(LEGEND, style="dim", highlight=False)
    for claim in study.claims:
        console.print(
            f"published claim: {claim.better} > {claim.worse} by {unit.difference(claim.gain)} {unit.points} "
            f"({claim.source})"
        )
    for a, b, question in study.contrasts:
        console.print(f"contrast: {a} - {b}: {question}?")
    _budget_lines(study, console)
    for note in study.notes:
        console.print(f"note: {note}", style="dim")


def plan(study: Study, estimate: dict[str, Any]) -> dict[str, Any]:
    """What a sweep would do, as JSON-like data. estimate: of `search.local.estimate`."""
    budget = study.budget
    top, seeds = budget.reevaluation
    trials = round(budget.search_seed_epochs / budget.mean_trial_cost)
    return {
        "study": study.name,
        "arms": {
            name: {
                "kind": arm.kind,
                "space": {hp: str(d) for hp, d in arm.space.items()},
                "default": arm.default,
                "budget": budget.seed_epochs_per_arm if arm.kind == "searched" else 0,
            }
            for name, arm in study.arms.items()
        },
        "seed_epochs_per_arm": budget.seed_epochs_per_arm,
        "of_which_reevaluation": budget.seed_epochs_per_arm - budget.search_seed_epochs,
        "trials_per_arm_at_most": trials,
        "seeds_per_trial": budget.seeds_per_trial,
        "rungs": list(budget.rungs),
        "subsearches": budget.subsearches,
        "reevaluated_per_subsearch": {"trials": top, "seeds": seeds},
        "confirm_seeds": budget.confirm_seeds,
        "confirm_on": study.confirm_on,
        "estimate": estimate,
    }


def show_plan(planned: dict[str, Any]) -> None:
    console = wide_console()
    title = f"plan of a sweep of {planned['study']}; nothing is started"
    table = new_table(title, ("arm", "budget in seed-epochs", "searched over", "first trial"))
    for name, arm in planned["arms"].items():
        table.add_row(
            name,
            str(arm["budget"]) if arm["kind"] == "searched" else "fixed: none",
            "\n".join(f"{hp}: {text}" for hp, text in arm["space"].items()),
            "\n".join(f"{hp}: {value}" for hp, value in arm["default"].items()),
        )
    console.print(table)
    again, estimate = planned["reevaluated_per_subsearch"], planned["estimate"]
    lines = [
        f"search: about {planned['trials_per_arm_at_most']} trials an arm or fewer, {planned['seeds_per_trial']} seeds "
        f"each, compared at epochs {', '.join(map(str, planned['rungs']))}, in {planned['subsearches']} independent "
        "sub-searches",
        f"re-evaluation: the best {again['trials']} of each sub-search under {again['seeds']} fresh seeds, "
        f"{planned['of_which_reevaluation']} seed-epochs of the budget",
        f"confirmation: {planned['confirm_seeds']} fresh seeds an arm, trained on {planned['confirm_on']}",
        f"time: about {estimate['seconds'] / 60:.1f} min with {estimate['workers']} workers here "
        f"({estimate['seed_epochs_per_second']:.0f} seed-epochs/s, {estimate['teachers_to_train']} teachers to train)",
        f"disk: about {estimate['disk_mb']:.0f} MB in the run folder; `distune clean` frees what can be made again",
    ]
    for line in lines:
        console.print(line, highlight=False)


def show_audit(rows: Sequence[dict[str, Any]]) -> None:
    numbers = ("weight", "gradient norm", "share", "cosine with CE")
    table = new_table("gradient audit, each arm at its default", ("arm", "when", "term", ""), numbers)
    for row in rows:
        values = [_number(row[k]) for k in ("weight", "norm", "share", "cosine")]
        table.add_row(
            row["arm"], f"epoch {row['epoch']}" if row["epoch"] else "first step", row["term"], row["status"], *values
        )
    wide_console().print(table)


def show_check(found: dict[str, Any]) -> None:
    """What `search.local.check_study` found, for a person."""
    console, rows = wide_console(), found["rows"]
    table = new_table(
        f"check of {found['study']}; nothing was trained for it",
        ("arm", "variant", "seeds run", "terms, share of the first step's gradient"),
        ("ms of a seed-epoch",),
    )
    for name, arm in found["arms"].items():
        shares = ["" if t["share"] is None else f" {t['share']:.0%}" for t in arm["terms"]]
        terms = [f"{t['term']} {t['status']}{share}" for t, share in zip(arm["terms"], shares, strict=True)]
        table.add_row(
            name,
            Path(arm["variant"]).name,
            arm["runs"],
            ", ".join(terms) or "-",
            f"{1000 * arm['seconds_per_seed_epoch']:.1f}",
        )
    console.print(table)
    reasons = {arm["why"]: arm["runs"] for arm in found["arms"].values() if arm["why"]}
    for why, runs in reasons.items():
        console.print(f"{runs}: {why}", highlight=False)
    estimate = found["estimate"]
    lines = [
        f"data: {rows['train']} rows to train on, {rows['validation']} to validate, {rows['classes']} classes",
        f"memory: about {found['memory_mb']:.0f} MB a worker",
        f"time: about {estimate['seconds'] / 60:.1f} min with {estimate['workers']} workers here "
        f"({estimate['seed_epochs_per_second']:.0f} seed-epochs/s, {estimate['teachers_to_train']} teachers to train)",
        f"disk: about {estimate['disk_mb']:.0f} MB in the run folder",
        *(f"note: {note}" for note in found["notes"]),
        "gradients are those under a made-up teacher: `distune audit` trains the real one",
    ]
    for line in lines:
        console.print(line, highlight=False)


def list_runs(folder: Path) -> list[dict[str, Any]]:
    """Every run folder directly under `folder`, oldest first."""
    found = []
    for path in sorted(folder.glob(f"*/{FILE}"), key=lambda p: p.stat().st_ctime):
        try:
            with Ledger.open(path.parent) as ledger:
                phases, meta = ledger.phases(), ledger.meta
                began = [p for p, e, _ in phases if e == "begin"]
                found.append(
                    {
                        "run": str(path.parent),
                        "study": meta["study"],
                        "state": "finished"
                        if ledger.finished
                        else f"unfinished, in {began[-1] if began else 'preparation'}",
                        "trials": len(ledger.trials()),
                        "created": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(meta["created"])),
                    }
                )
        except NotALedger as error:
            found.append({"run": str(path.parent), "study": None, "state": str(error), "trials": 0, "created": None})
    return found


def show_runs(found: Sequence[dict[str, Any]], folder: Path) -> None:
    if not found:
        wide_console().print(
            f"no run folders in {folder}; start one with: distune sweep mlp-ensemble --quick", highlight=False
        )
        return
    columns = ("run", "study", "state", "created", "trials")
    table = new_table(f"runs in {folder}", columns[:-1], columns[-1:])
    for run in found:
        table.add_row(*(str(run[k] if run[k] is not None else "-") for k in columns))
    wide_console().print(table)


def _budget_lines(study: Study, console: Console) -> None:
    for name, b in (("default", study.budget), ("--quick", study.quick)):
        console.print(
            f"{name} budget: {b.seed_epochs_per_arm} seed-epochs an arm, {b.seeds_per_trial} seeds a trial, rungs at "
            f"{', '.join(map(str, b.rungs))}, {b.confirm_seeds} confirmation seeds",
            highlight=False,
        )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
