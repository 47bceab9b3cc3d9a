"""One independent search of one arm: an Optuna study proposes, an ASHA object compares at rungs.

An arm has several, because tuning is random too: two searches of the same arm pick different winners.
"""

import math
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from scipy.stats import qmc

from search.distributions import distributions
from spaces import Arm, Budget, Space

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

SCORE = "score"


class SubSearch:
    """Proposals and rungs of one (arm, sub-search).

    The first trial is the arm's default; then a slice of a scrambled Sobol sequence that all arms share, so that
    shared hyperparameters take the same values; then multivariate TPE that counts running trials as bad ones.

    sobol_seed: the same for all arms of a sub-search; tpe_seed: its own. random: trials in the Sobol slice.
    """

    def __init__(self, arm: Arm, budget: Budget, random: int, order: Sequence[str], sobol_seed: int, tpe_seed: int):
        self._arm = arm
        self._points = _slice(arm.space, order, random, sobol_seed)
        self._tpe_seed = tpe_seed
        self.study = optuna.create_study(direction="maximize", sampler=self._sampler(0))
        self._open: dict[str, optuna.Trial] = {}
        self._reported: dict[str, dict[int, float]] = defaultdict(dict)
        self._max_epochs = budget.max_epochs
        self._asha = AsyncHyperBandScheduler(
            time_attr="epoch",
            metric=SCORE,
            mode="max",
            max_t=budget.max_epochs,
            grace_period=budget.rungs[0],
            reduction_factor=budget.reduction_factor,
        )
        self.asked = 0

    def _sampler(self, asked: int) -> optuna.samplers.TPESampler:
        return optuna.samplers.TPESampler(
            multivariate=True,
            constant_liar=True,
            n_startup_trials=len(self._points) + 1,
            seed=(self._tpe_seed + asked) % 2**32,
        )

    # Proposals.

    def ask(self, trial: str, number: int) -> tuple[dict[str, Any], str]:
        """The configuration of this sub-search's trial `number` and where it comes from: default, sobol or tpe."""
        if number == 0:
            config, origin = self._arm.default, "default"
        elif number <= len(self._points):
            config, origin = {**self._arm.default, **self._points[number - 1]}, "sobol"
        else:
            config, origin = {}, "tpe"
        return {**self._arm.default, **self._begin(trial, config)}, origin

    def reopen(self, trial: str, config: Mapping[str, Any]) -> None:
        """Take up a trial again that was asked in an earlier life of the sweep."""
        self._begin(trial, config)

    def _begin(self, trial: str, config: Mapping[str, Any]) -> dict[str, Any]:
        searched = {k: config[k] for k in self._arm.space if k in config}
        if searched:
            self.study.enqueue_trial(searched)
        self.asked += 1
        self._open[trial] = self.study.ask(distributions(self._arm.space))
        self._asha.on_trial_add(None, SimpleNamespace(trial_id=trial))
        return self._open[trial].params

    # What came of them. Optuna hears of every asked trial exactly once.

    def finished(self, trial: str, score: float) -> None:
        """The trial reached max_epochs."""
        self._report(trial)
        self.study.tell(self._open.pop(trial), score)

    def stopped(self, trial: str, epoch: int, score: float) -> None:
        """The trial ended at a rung: Optuna learns how far it came, and no final value."""
        self.passed(trial, epoch, score)
        self._report(trial)
        self.study.tell(self._open.pop(trial), state=TrialState.PRUNED)

    def diverged(self, trial: str) -> None:
        self.study.tell(self._open.pop(trial), state=TrialState.PRUNED)

    def crashed(self, trial: str) -> None:
        self.study.tell(self._open.pop(trial), state=TrialState.FAIL)

    # Rungs.

    def survives(self, trial: str, epoch: int, score: float, se: float) -> bool:
        """ASHA's decision at a rung, except that nothing is stopped within one standard error of the cut."""
        cut = self._cut(epoch)
        action = self._asha.on_trial_result(None, SimpleNamespace(trial_id=trial), {"epoch": epoch, SCORE: score})
        tolerance = se if math.isfinite(se) else 0.0
        return bool(action != TrialScheduler.STOP or (cut is not None and score + tolerance >= cut))

    def _cut(self, epoch: int) -> float | None:
        """The score that ASHA will ask for at this rung, from the trials that were there before; None without any."""
        bracket = self._asha._brackets[0]
        for milestone, recorded in bracket._rungs:
            if milestone == epoch:
                cut = bracket.cutoff(recorded)
                return None if cut is None else float(cut)
        return None

    def passed(self, trial: str, epoch: int, score: float) -> None:
        """A trial went on from a rung; Optuna hears of it when it hears how the trial ended."""
        self._reported[trial][epoch] = score

    def _report(self, trial: str) -> None:
        for epoch, score in self._reported.pop(trial, {}).items():
            self._open[trial].report(score, epoch)

    # Resuming.

    def replay(self, trial: str, config: Mapping[str, Any], reports: Mapping[int, float], how: str) -> None:
        """Enter a trial that has ended, as the ledger has it. reports: score by epoch, at rungs, in order."""
        self.asked += 1
        state = {"finished": TrialState.COMPLETE, "crashed": TrialState.FAIL}.get(how, TrialState.PRUNED)
        scores = list(reports.values())
        self.study.add_trial(
            optuna.trial.create_trial(
                state=state,
                params={k: config[k] for k in self._arm.space},
                distributions=distributions(self._arm.space),
                values=[scores[-1]] if how in ("finished", "stopped", "budget") else None,  # as `tell` does
                intermediate_values={} if how in ("diverged", "crashed") else dict(reports),
            )
        )

    def replay_rung(self, trial: str, epoch: int, score: float, se: float) -> bool:
        """Enter one report at a rung, in ledger order; returns the decision that was made of it then."""
        if trial not in self._asha._trial_info:
            self._asha.on_trial_add(None, SimpleNamespace(trial_id=trial))
        return self.survives(trial, epoch, score, se)

    def begin_again(self) -> None:
        """After a replay: a sampler that does not draw what it drew in an earlier life of the sweep."""
        self.study.sampler = self._sampler(self.asked)


def dimension_order(spaces: Sequence[Space]) -> list[str]:
    """The hyperparameters of all arms, shared ones first, so that they meet the same Sobol dimensions in every arm."""
    names = list(dict.fromkeys(name for space in spaces for name in space))
    return sorted(names, key=lambda n: -sum(n in space for space in spaces))


def _slice(space: Space, order: Sequence[str], size: int, seed: int) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy would rather have powers of two
        points = qmc.Sobol(len(order), scramble=True, rng=seed).random(size)
    return [{n: space[n].at(float(u)) for n, u in zip(order, point, strict=True) if n in space} for point in points]
