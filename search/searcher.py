"""Ray Tune's searcher: one for all arms, so that one Tuner runs them side by side."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ray.tune.search import Searcher

from search.state import Live, SearchState


class ArmSearcher(Searcher):
    """Answers Ray Tune with the next trial of the arm that has spent least; None while trials run, then FINISHED.

    concurrent: says how many trials may be live at once, which changes as nodes come and go.
    """

    def __init__(self, state: SearchState, concurrent: Callable[[], int]) -> None:
        super().__init__()
        self._state, self._concurrent = state, concurrent

    def __getstate__(self) -> dict[str, Any]:
        """Nothing for Ray Tune's snapshots: a sweep resumes from its ledger."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        if self._state.stopping:
            return None if self._state.live else Searcher.FINISHED
        if len(self._state.live) >= self._concurrent():
            return None
        if any(live.alone and not live.runs for live in self._state.live.values()):
            return None  # or others would take each part of a GPU as it comes free, and it would wait for ever
        live = self._state.next_trial()
        if live is None:
            return None if self._state.live else Searcher.FINISHED
        self._state.attempt(trial_id, live)
        return self._as_config(live)

    def _as_config(self, live: Live) -> dict[str, Any]:
        return {
            "trial": live.record.trial,
            "asked": asdict(live.record),
            "replicates": list(self._state.replicates(live.record)),
            "resume_from": live.epoch,
            "alone": live.alone,
        }

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the scheduler hears why a trial ended, the searcher does not."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is what a sweep resumes from."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep resumes from its ledger: `distune resume RUN`")
