"""A limit on a sweep's wall time: the search ends early enough for what follows it."""

import time

from search.state import SearchState
from spaces import Study

MEASURED_S = 5.0  # of search, before its speed says how long the rest will take


class Deadline:
    """seconds: of the whole sweep from now on, or None for as many as it takes."""

    def __init__(self, study: Study, seconds: float | None) -> None:
        self._study, self._seconds = study, seconds
        self._began = time.monotonic()
        self._spent_before: int | None = None
        self.passed = False

    def has_passed(self, state: SearchState) -> bool:
        """Whether what is left is as much as the re-evaluation and the confirmation take at the search's own speed."""
        if self._seconds is None:
            return False
        spent = sum(standing.spent for standing in state.standing.values())
        if self._spent_before is None:
            self._spent_before = spent
        gone, done = time.monotonic() - self._began, spent - self._spent_before
        needed = 0.0 if gone < MEASURED_S or not done else to_follow(self._study) * gone / done
        self.passed = gone + needed >= self._seconds
        return self.passed

    def note(self, state: SearchState) -> str:
        least = min(standing.spent for standing in state.standing.values())
        budget = state.budget.search_seed_epochs
        return (
            f"the search was ended by the time budget of {self._seconds:g} s when every arm had spent {least} of "
            f"{budget} seed-epochs: `distune extend` gives it more"
        )


def to_follow(study: Study) -> int:
    """Seed-epochs of the re-evaluation and the confirmation, at most."""
    budget = study.budget
    confirmed = sum(
        budget.confirm_seeds * budget.max_epochs * (2 if study.confirm_on != "train" else 1) for _ in study.searched
    )
    given = sum(budget.confirm_seeds * budget.max_epochs for arm in study.arms.values() if arm.published)
    return confirmed + given + len(study.searched) * (budget.seed_epochs_per_arm - budget.search_seed_epochs)
