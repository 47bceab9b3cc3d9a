"""Where a sweep stands, from its ledger alone: read-only, so that it may be watched from another terminal."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from analysis.tables import new_table, wide_console
from analysis.units import Unit
from search.ledger import Ledger
from search.lock import is_driven
from search.selection import candidates, search_spend, within
from spaces import load_study

EVERY_S = 2.0


def watch(run: Path, once: bool = False, wait: Callable[[float], Any] = time.sleep) -> None:
    """Show `standing` until the sweep has finished, nobody works on it any more, or Ctrl-C; once: only now."""
    console = wide_console()
    now = standing(run)
    if once or not console.is_terminal:
        console.print(render(now), highlight=False)
        return
    with Live(render(now), console=console, auto_refresh=False) as live:
        try:
            while now["driven"] and not now["finished"]:
                wait(EVERY_S)
                now = standing(run)
                live.update(render(now), refresh=True)
        except KeyboardInterrupt:
            pass


def standing(run: Path) -> dict[str, Any]:
    """The phase, whether a process works on the run, and of each searched arm its trials, spend and best so far."""
    study = load_study(run / "study.yaml")
    with Ledger.open(run) as ledger:
        trials, epochs, ends = ledger.trials(), ledger.epochs(), ledger.ends()
        phases, runs, finished = ledger.phases(), ledger.runs(), ledger.finished
    spent = search_spend(study, trials, epochs)
    kept, _ = within(study.budget.search_seed_epochs, trials, epochs)
    best = candidates(study, trials, kept, ends)
    driven = not finished and is_driven(run)
    arms = {}
    for arm in study.searched:
        own = [t.trial for t in trials if t.arm == arm]
        leaders = [found[0] for (name, _), found in best.items() if name == arm]
        arms[arm] = {
            "trials": len(own),
            "running": sum(trial not in ends for trial in own) if driven else 0,
            "seed_epochs": spent[arm],
            "of": study.budget.search_seed_epochs,
            "best": max((c.score for c in leaders), default=None),
        }
    begun = [phase for phase, event, _ in phases if event == "begin"]
    return {
        "run": str(run),
        "study": study.name,
        "metric": study.metric,
        "phase": "finished" if finished else begun[-1] if begun else "preparation",
        "driven": driven,
        "finished": finished,
        "arms": arms,
        "confirmed_seeds": sum(r.purpose != "reevaluation" for r in runs),
    }


def render(now: dict[str, Any]) -> RenderableType:
    unit = Unit.of(now["metric"])
    table = new_table(
        f"{now['run']}: {now['study']}, {now['phase']}",
        ("arm",),
        ("trials", "running", "seed-epochs of search", f"best on validation, {unit.values}"),
    )
    for arm, s in now["arms"].items():
        spent = f"{s['seed_epochs']} of {s['of']}"
        table.add_row(arm, str(s["trials"]), str(s["running"]), spent, unit.value(s["best"]))
    said = [f"{now['confirmed_seeds']} seeds confirmed"] if now["confirmed_seeds"] else []
    if now["finished"]:
        said.append(f"the answer: distune compare {now['run']}")
    elif not now["driven"]:
        said.append(f"no process works on it: distune resume {now['run']}")
    return Group(table, *(Text(line) for line in said))
