"""What a sweep says beyond its verdicts: power, optimism, budgets, importance, cost. Read from the ledger, as JSON."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.comparison import compare
from analysis.importance import importance, interaction
from analysis.performance import (
    best_so_far,
    budget_grid,
    expected_best,
    expected_best_intervals,
    gain_of_doubling,
    n_with_interval,
)
from analysis.power import detectable, power, seeds_for
from search import seeds
from search.distributions import distributions
from search.ledger import EpochRecord, Ledger, RunRecord, TrialRecord
from search.selection import NEVER_WINS, choose
from spaces import A_A_CONTROL, Choice, Range, Space, Study, load_study

Json = dict[str, Any]
RANDOM = "sobol"  # origin of the trials that were drawn evenly from the space, whatever had been found before
WEIGHTS = ("kd_weight", "kl_weight")  # of the term that a temperature softens
POINT = 0.01  # of accuracy or AUC


@dataclass(frozen=True)
class Scored:
    """A trial that has ended: its score at the last rung it reached, and all that it cost. NaN: it diverged."""

    trial: TrialRecord
    score: float
    seed_epochs: int
    seconds: float

    @property
    def failed(self) -> bool:
        return not math.isfinite(self.score)


def insights(run: Path, result: Json | None = None) -> Json:
    """Everything that the report shows beside the comparison; keys and values as docs/statistics.md lists them.

    result: what `compare(run)` says, if the caller has it already. Nothing is trained, and None stands for what cannot
    be said, with the reason in `notes`. Raises NotALedger for a folder that is no run.
    """
    result = compare(run) if result is None else result
    with Ledger.open(run) as ledger:
        return _Insights(load_study(run / "study.yaml"), ledger, result).gather()


class _Insights:
    def __init__(self, study: Study, ledger: Ledger, result: Json) -> None:
        self.study, self.ledger, self.compared = study, ledger, result
        self.round = ledger.round
        self._said: dict[str, list[str]] = {}  # what is missing -> the arms that lack it
        self.trials, self.epochs, self.ends = ledger.trials(), ledger.epochs(), ledger.ends()
        self.runs = ledger.runs()
        self.on_train = [r for r in self.runs if r.fit == "train"]
        self.scored = self._scored()
        self.rng = np.random.default_rng(0)

    def gather(self) -> Json:
        evp = {arm: self._evp(arm) for arm in self.study.searched}
        return {
            "power": self._power(),
            "optimism": self._optimism(),
            "evp": evp,
            "anytime": self._anytime(),
            "importance": self._importance(),
            "interaction": self._interaction(),
            "gradient_share": self._gradient_share(),
            "cost_per_point": self._cost_per_point(),
            "saturated": {arm: self._saturated(arm) for arm in self.study.searched},
            "notes": [f"{', '.join(arms)}: {what}" if arms else what for what, arms in self._said.items()],
        }

    def _note(self, what: str, arm: str | None = None) -> None:
        arms = self._said.setdefault(what, [])
        if arm is not None and arm not in arms:
            arms.append(arm)

    def _scored(self) -> dict[str, list[Scored]]:
        """{searched arm: its trials that ended with a score at a rung, or diverged}, as they were asked."""
        rungs = set(self.study.budget.rungs)
        last: dict[str, float] = {}
        cost: dict[str, int] = defaultdict(int)
        took: dict[str, float] = defaultdict(float)
        for row in self.epochs:
            cost[row.trial] += row.seeds
            took[row.trial] += row.seconds
            if row.epoch in rungs and math.isfinite(row.score):
                last[row.trial] = row.score
        found: dict[str, list[Scored]] = {arm: [] for arm in self.study.searched}
        silent, running = 0, 0
        for t in self.trials:
            end = self.ends.get(t.trial)
            if end is None:
                running += 1
            elif end.how == "diverged":
                found[t.arm].append(Scored(t, math.nan, cost[t.trial], took[t.trial]))
            elif end.how not in NEVER_WINS and t.trial in last:
                found[t.arm].append(Scored(t, last[t.trial], cost[t.trial], took[t.trial]))
            else:
                silent += 1
        if not any(found.values()):
            self._note("no trial has ended with a score yet")
        if running:
            self._note(f"{running} trials that have not ended yet are left out")
        if silent:
            self._note(f"{silent} trials that crashed or ended before a rung are left out")
        return found

    # What the comparison could have found, and what selection believed.

    def _power(self) -> dict[str, Json | None]:
        found: dict[str, Json | None] = {}
        for arm in self.compared["arms"]:
            name, delta = arm["arm"], arm["delta_vs_baseline"]
            if delta is None:
                continue
            error, df = delta["standard_error"], delta["df"]
            if error is None or df is None or not df > 0:
                self._note("power is null: one seed or one winner has no standard error", name)
                found[name] = None
                continue
            seeds_now = self.study.budget.confirm_seeds
            margin = self.study.margin if name == A_A_CONTROL else self.compared["margin"]
            level = 1 - self.compared["alpha"] / delta["comparisons"]
            found[name] = {
                "difference": delta["mean"],
                "seeds": seeds_now,
                "seeds_to_settle": arm["seeds_to_settle"],
                "seeds_for_80": seeds_for(
                    *(delta["mean"], error, delta["standard_error_seeds"], delta["df_seeds"], seeds_now, level, margin)
                ),
                "power_now": power(delta["mean"], error, df, level, margin),
                "detectable": detectable(error, df, level, margin),
                "level": level,
                "margin": margin,
            }
        if not found:
            self._note("power is empty: no arm has been compared with the baseline yet")
        return found

    def _optimism(self) -> dict[str, list[Json]]:
        """Each winner's score on the search's seeds against its mean under the confirmation's, both on train alone."""
        again = [r for r in self.runs if r.purpose == "reevaluation"]
        chosen = choose(self.study, self.trials, self.epochs, self.ends, again)
        fresh: dict[tuple[str, int, str], list[float]] = defaultdict(list)
        for run in self.on_train:
            if run.purpose == "tuned" and self._counts(run):
                fresh[run.arm, run.subsearch, run.trial].append(_metric(run, self.study.val_metric))
        found: dict[str, list[Json]] = {arm: [] for arm in self.study.searched}
        for (arm, g), winner in sorted(chosen.items()):
            candidate = winner.candidate
            values = fresh[arm, g, candidate.trial]
            value = _finite_mean(values)
            early = candidate.epoch < self.study.budget.max_epochs
            if early:
                self._note(f"the winner of sub-search {g} was chosen before the last epoch: no optimism", arm)
            elif value is None:
                self._note(f"the winner of sub-search {g} has no finite value under fresh seeds yet", arm)
            row: Json = {"subsearch": g, "trial": candidate.trial, "search": candidate.score, "fresh": value}
            row["optimism"] = None if early or value is None else candidate.score - value
            found[arm].append(row)
        return found

    def _counts(self, run: RunRecord) -> bool:
        """Whether a confirmed seed is of the seeds that are in use now."""
        return run.replicate in seeds.of_confirmation(self.study, run.arm, run.subsearch, self.round)

    # What the budget bought.

    def _random(self, arm: str) -> tuple[list[float], float]:
        """The scores of the arm's random trials, and what one cost in the mean; a diverged one counts as the worst."""
        own = [s for s in self.scored[arm] if s.trial.origin == RANDOM]
        finite = [s.score for s in own if not s.failed]
        if not finite:
            return [], 0.0
        lost = len(own) - len(finite)
        if lost:
            self._note(f"{lost} of {len(own)} random trials diverged and count as the worst score seen", arm)
        return finite + lost * [min(finite)], sum(s.seed_epochs for s in own) / len(own)

    def _evp(self, arm: str) -> Json | None:
        values, cost = self._random(arm)
        n = len(values)
        if not n:
            self._note("no expected validation performance: no random trial has a score yet", arm)
            return None
        budgets = budget_grid(n)
        shown = budgets[budgets <= n_with_interval(n)]
        intervals = expected_best_intervals(values, shown, self.rng).clip(0, 1).tolist() if shown.size else []
        self._note(
            "expected validation performance has intervals up to a quarter of the random trials: beyond, no estimate "
            "from so few covers as it says"
        )
        return {
            "origin": "random",
            "n": n,
            "trials": budgets.tolist(),
            "mean": expected_best(values, budgets).tolist(),
            "ci95": intervals + [None] * (len(budgets) - len(intervals)),
            "seed_epochs": [float(b * cost) for b in budgets],
        }

    def _saturated(self, arm: str) -> bool | None:
        gain = gain_of_doubling(self._random(arm)[0])
        if gain is None:
            self._note("saturated is null: it takes 4 random trials with a score", arm)
            return None
        return gain < self.study.margin

    def _anytime(self) -> dict[str, list[Json]]:
        """The best score at a rung so far, against what the search had cost by then."""
        rungs, arm_of = set(self.study.budget.rungs), {t.trial: t.arm for t in self.trials}
        lost = {name for name, end in self.ends.items() if end.how in NEVER_WINS}
        by_arm: dict[str, list[EpochRecord]] = {arm: [] for arm in self.study.searched}
        for row in self.epochs:
            by_arm[arm_of[row.trial]].append(row)
        fresh: dict[str, list[float]] = defaultdict(list)
        for run in self.on_train:
            if run.purpose == "reevaluation" or (run.purpose == "tuned" and self._counts(run)):
                fresh[run.trial].append(_metric(run, self.study.val_metric))
        found = {}
        for arm, rows in by_arm.items():
            steps = best_so_far(
                (r.trial, r.seeds, r.seconds, r.score if r.epoch in rungs and r.trial not in lost else math.nan)
                for r in rows
            )
            found[arm] = [
                {
                    "seed_epochs": s.seed_epochs,
                    "seconds": s.seconds,
                    "best": s.best,
                    "trial": s.trial,
                    "fresh": _finite_mean(fresh[s.trial]),
                }
                for s in steps
            ]
        return found

    # What mattered.

    def _importance(self) -> dict[str, Json]:
        found = {}
        together = [a for a in self.study.searched if a != A_A_CONTROL]
        for arm in self.study.searched:
            found[arm] = self._importance_of([arm], self.study.arms[arm].space)
        shared = [self.study.arms[a].space for a in together]
        space = {n: d for n, d in shared[0].items() if all(n in other for other in shared)}
        whole = {"arm": Choice(tuple(together)), **space} if len(together) > 1 else space
        return {"all": self._importance_of(together, whole), **found}

    def _importance_of(self, arms: Sequence[str], space: Space) -> Json:
        own = [s for arm in arms for s in self.scored[arm] if not s.failed]
        tried = [({**s.trial.config, "arm": s.trial.arm}, s.score) for s in own]
        inside = [(c, score) for c, score in tried if all(n in c and d.contains(c[n]) for n, d in space.items())]
        if len(inside) < len(tried) and len(arms) == 1:
            self._note("importance leaves out trials that lie outside the space as it is now", arms[0])
        configs, scores = [c for c, _ in inside], [score for _, score in inside]
        measured = importance(configs, scores, distributions(space), self.rng)
        return {"parameters": measured.parameters, "n": measured.n, "caveat": measured.caveat}

    def _interaction(self) -> dict[str, Json]:
        found: dict[str, Json] = {}
        for arm in self.study.searched:
            space = self.study.arms[arm].space
            weight = next((w for w in WEIGHTS if isinstance(space.get(w), Range)), None)
            x, y = space.get("temperature"), space.get(weight or "")
            if weight is None or not isinstance(x, Range) or not isinstance(y, Range):
                continue
            own = [s for s in self.scored[arm] if not s.failed]
            random = [s for s in own if s.trial.origin == RANDOM]
            measured = interaction(
                [x.fraction(s.trial.config["temperature"]) for s in random],
                [y.fraction(s.trial.config[weight]) for s in random],
                [s.score for s in random],
            )
            if measured is None:
                self._note(f"no interaction of temperature and {weight}: too few random trials", arm)
            found[arm] = {
                "x": "temperature",
                "y": weight,
                "points": [[s.trial.config["temperature"], s.trial.config[weight], s.score] for s in own],
                "gain": measured.gain if measured else None,
                "ci95": [measured.low, measured.high] if measured else None,
                "n": len(random),
            }
        return found

    def _gradient_share(self) -> dict[str, dict[str, list[list[Any]]]]:
        """Each term's share of the gradient at the last audit of every trial that has a score."""
        last: dict[str, dict[str, float | None]] = defaultdict(dict)
        at: dict[str, int] = defaultdict(lambda: -1)
        for audited in self.ledger.audits():
            trial, epoch = audited["trial"], audited["epoch"]
            if epoch > at[trial]:
                at[trial], last[trial] = epoch, {}
            if epoch == at[trial]:
                last[trial][audited["term"]] = audited["share"]
        found: dict[str, dict[str, list[list[Any]]]] = {}
        for arm in self.study.searched:
            terms: dict[str, list[list[Any]]] = defaultdict(list)
            for s in self.scored[arm]:
                for term, share in last[s.trial.trial].items() if not s.failed else ():
                    if share is not None and math.isfinite(share):
                        terms[term].append([share, s.score, s.trial.trial])
            found[arm] = dict(terms)
        return found

    def _cost_per_point(self) -> dict[str, Json]:
        """What an arm's search cost for each point of the metric that it gained over the tuned baseline."""
        deltas: Mapping[str, Json | None] = {a["arm"]: a["delta_vs_baseline"] for a in self.compared["arms"]}
        verdicts = {a["arm"]: a["verdict"] for a in self.compared["arms"]}
        found = {}
        for arm, budget in self.compared["budget"].items():
            if arm in (*self.study.baselines, A_A_CONTROL):
                continue
            delta = deltas[arm]
            gain = None if delta is None else delta["mean"] / POINT
            bought = gain is not None and gain > 0
            if bought and verdicts[arm] != "better":
                self._note("its cost per point rests on a gain that is not told from noise", arm)
            found[arm] = {
                "seed_epochs": budget["seed_epochs"],
                "seconds": budget["seconds"],
                "gain_points": gain,
                "per_point": budget["seed_epochs"] / gain if gain is not None and bought else None,
                "seconds_per_point": budget["seconds"] / gain if gain is not None and bought else None,
            }
        return found


def _metric(run: RunRecord, name: str) -> float:
    value = run.metrics.get(name)
    return math.nan if value is None else value


def _finite_mean(values: Sequence[float]) -> float | None:
    """None for no values, and where one of them is not finite."""
    mean = math.fsum(values) / len(values) if values else math.nan
    return mean if math.isfinite(mean) else None
