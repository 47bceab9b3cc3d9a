"""What one sees while a sweep runs: a live table in a terminal, plain lines where there is none.

It goes to stderr, so that stdout stays the answer's.
"""

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table

if TYPE_CHECKING:
    from search.state import SearchState, Standing

LINE_EVERY_S = 10.0


class Progress:
    """The sweep's display. Nothing of it is needed for the sweep: `quiet` shows nothing at all."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._live: Live | None = None
        self._began = self._shown = time.monotonic()
        self._first_spent: int | None = None

    def say(self, text: str) -> None:
        """One line of news."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def phase(self, name: str, steps: int) -> Callable[[], None]:
        """Begin a phase of `steps` steps; call what comes back after each."""
        began, done = time.monotonic(), 0
        if steps:
            self.say(f"{name}: {steps} tasks")

        def tick() -> None:
            nonlocal done
            done += 1
            now = time.monotonic()
            if now - self._shown > LINE_EVERY_S or done == steps:
                self._shown = now
                left = (now - began) / done * (steps - done)
                self.say(f"{name}: {done} of {steps}, {_clock(now - began)} gone, about {_clock(left)} left")

        return tick

    def search(self, state: "SearchState") -> None:
        """Show where the search stands; cheap enough to be called at every step."""
        now = time.monotonic()
        if self._first_spent is None:
            self._first_spent, self._began = _spent(state), now
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, auto_refresh=False, transient=False)
                self._live.start()
            if now - self._shown > 0.25:
                self._shown = now
                self._live.update(self._table(state, now), refresh=True)
        elif now - self._shown > LINE_EVERY_S:
            self._shown = now
            self.say(self._line(state, now))

    def end_search(self, state: "SearchState") -> None:
        now = time.monotonic()
        if self._live is not None:
            self._live.update(self._table(state, now), refresh=True)
            self._live.stop()
            self._live = None
        else:
            self.say(self._line(state, now))

    def _rate(self, state: "SearchState", now: float) -> tuple[float, float]:
        """(seed-epochs a second since this process began, seconds left)."""
        rate = (_spent(state) - (self._first_spent or 0)) / max(now - self._began, 1e-9)
        left = sum(max(0, state.budget.search_seed_epochs - s.spent) for s in state.standing.values())
        return rate, left / rate if rate > 0 else math.nan

    def _table(self, state: "SearchState", now: float) -> Table:
        rate, left = self._rate(state, now)
        table = Table(
            caption=f"{rate:.0f} seed-epochs/s, about {_clock(left)} left", title=f"search: {state.study.name}"
        )
        for heading in ("arm", "trials", "running", "seed-epochs", "best so far", "at epoch"):
            table.add_column(heading, justify="left" if heading == "arm" else "right")
        for arm, s in state.standing.items():
            running = sum(live.record.arm == arm for live in state.live.values())
            spent = f"{s.spent} of {state.budget.search_seed_epochs}"
            table.add_row(arm, str(s.asked), str(running), spent, _best(s, state.study.metric), str(s.best_rung or "-"))
        return table

    def _line(self, state: "SearchState", now: float) -> str:
        rate, left = self._rate(state, now)
        arms = ", ".join(
            f"{arm} {s.asked} trials {100 * s.spent // state.budget.search_seed_epochs} % "
            f"best {_best(s, state.study.metric)}"
            for arm, s in state.standing.items()
        )
        return f"search: {arms}; {rate:.0f} seed-epochs/s, about {_clock(left)} left"


def _spent(state: "SearchState") -> int:
    return sum(s.spent for s in state.standing.values())


def _best(standing: "Standing", metric: str) -> str:
    score, se = standing.best_score, standing.best_se
    if not math.isfinite(score):
        return "-"
    scale, digits = (1, 4) if metric == "auc" else (100, 2)
    return f"{scale * score:.{digits}f}" + (f" ± {scale * se:.{digits}f}" if math.isfinite(se) else "")


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
