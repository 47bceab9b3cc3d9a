"""From a ledger to the answer: every arm's interval and verdict, every published claim's, and what they rest on.

Tuned arms are compared by the means of their sub-searches' winners (docs/statistics.md), since tuning is random
too; published configurations are paired by seed; test rows count as a sample in both. Families are corrected by Holm,
and each verdict is read off the interval that the correction leaves.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis import beside, claims, costs, gates, looks
from analysis.front import front
from analysis.statistics import (
    Difference,
    Spread,
    arm_verdict,
    auc_units,
    between_arms,
    claim_verdict,
    family_level,
    holm,
    over_seeds,
    over_seeds_and_rows,
    over_winners,
    pair,
    paired,
    ratio,
    seeds_to_settle,
    sign_flip_p,
)
from search import seeds
from search.ledger import ENSEMBLE, Ledger, RunRecord
from search.selection import Winner, choose, deployed, fair_limit, search_spend, within
from spaces import A_A_CONTROL, BASELINE, Study, is_at_limit, load_study

Units = NDArray[np.float64]
Json = dict[str, Any]
BEST_OF_EPOCHS = "max_over_epochs_on_test"
LEAST_OF_A_SHIFT = 200  # test rows of each class
STARVED = 1e-4  # as in trainables.audit, which this layer does not import: it would take seconds


@dataclass(frozen=True)
class Confirmed:
    """One arm under the confirmation seeds: groups of (seeds, rows) units, one a winner, and the runs behind.

    A unit is what a row adds to the metric: 1 or 0 for a label that is right or not, a pseudo-value for AUC.
    """

    runs: list[RunRecord]
    groups: list[Units]
    seeds: list[int]

    @property
    def flat(self) -> Units:
        return np.concatenate(self.groups)


def compare(run: Path) -> Json:
    """The comparison of one run folder as JSON-like data: its keys are in docs/reference/compare-json.md."""
    with Ledger.open(run) as ledger:
        return _Comparison(load_study(run / "study.yaml"), ledger).result()


class _Comparison:
    def __init__(self, study: Study, ledger: Ledger) -> None:
        self.study, self.ledger = study, ledger
        self.notes: list[str] = list(study.notes)
        if study.contaminated is not None:
            self.notes.append(study.contaminated)
        self.trials, self.epochs, self.ends = ledger.trials(), ledger.epochs(), ledger.ends()
        self.runs = ledger.runs()
        again = [r for r in self.runs if r.purpose == "reevaluation"]
        self.chosen = choose(study, self.trials, self.epochs, self.ends, again)
        self.labels, self.round = ledger.labels("test"), ledger.round
        at_looks = [look["seeds"] for look in ledger.looks() if look["split"] == "test" and look["seeds"]]
        self.alpha = looks.level_at_last_look(at_looks) if at_looks else looks.ALPHA
        if repeated := looks.sentence(at_looks, replaced=self.round > 0) if at_looks else None:
            self.notes.append(repeated)
        if self.round:
            self.notes.append(
                "The search was given more budget after the test split had been opened: tuned arms are judged by fresh "
                "seeds alone, published and fixed configurations by all of theirs."
            )
        self._found: dict[tuple[str, str, str, str], Confirmed | None] = {}
        self._compared: dict[str, dict[str, Difference]] = {}
        self.tuned = {arm: self._confirmed("tuned", arm) for arm in study.searched}
        self.published = {arm: self._confirmed("as_published", arm) for arm in study.arms}
        self.fixed = {arm: self._confirmed("fixed", arm) for arm in study.arms}
        for arm, definition in study.arms.items():
            if definition.published and definition.published.config == definition.default and self.fixed[arm]:
                self.published[arm] = self.fixed[arm]  # a fixed arm whose one configuration is the published one

    def result(self) -> Json:
        (budget, dear), spent = (
            costs.by_arm(self.study, self.ledger),
            search_spend(self.study, self.trials, self.epochs),
        )
        self.notes += dear
        gpus = costs.of_gpus(self.ledger)
        wanted = self.study.budget.search_seed_epochs
        finished, unconfirmed = self.ledger.finished, self._unconfirmed()
        complete = finished and not unconfirmed and min(spent.values()) >= wanted
        limit = fair_limit(self.study, spent)
        _, past = within(limit, self.trials, self.epochs)
        if not complete:
            self.notes.append(
                f"not complete: the smallest arm has spent {min(spent.values())} of {wanted} seed-epochs of search"
                + ("" if finished else ", and the confirmation has not finished")
                + (f", and {unconfirmed} of {len(self.chosen)} winners lack confirmation seeds" if unconfirmed else "")
            )
        differences = self._differences()
        arms = [self._arm(arm, differences) for arm in self.study.arms]
        silent = [name for name, arm in self.study.arms.items() if arm.published is None]
        if silent and len(silent) < len(self.study.arms):
            self.notes.append(f"as_published is null where the source reports no number: {', '.join(silent)}")
        return {
            "study": self.study.name,
            "metric": f"test_{self.study.metric}",
            "baseline": BASELINE,
            "complete": complete,
            "budget_used": sum(b["seed_epochs"] for b in budget.values()),
            "fair_budget": {"limit": limit, "per_arm": wanted, "spent_past_limit": past},
            "margin": self._margin(differences),
            "budget": budget,
            "confirmation": costs.of_confirmation(self.ledger),
            "arms": arms,
            "contrasts": self._contrasts(),
            "published_claims": self._claims(),
            "effects": beside.effects(self.study.effects, {a: (c.seeds, c.flat) for a, c in self.fixed.items() if c}),
            "teacher": self._teacher(),
            "front": self._front(arms),
            "gates": self._gates(),
            "looks_at_test": self.ledger.looks(),
            "alpha": self.alpha,
            "seconds": costs.seconds(self.ledger),
            "notes": list(
                dict.fromkeys([*self.notes, *self.ledger.notes(), *self._starved(), *([gpus] if gpus else [])])
            ),
        }

    def _starved(self) -> list[str]:
        """Terms whose gradient never had a share worth the name, in any audit of any trial of the arm."""
        arm_of = {t.trial: t.arm for t in self.trials}
        largest: dict[tuple[str, str], float] = defaultdict(float)
        for audited in self.ledger.audits():
            if audited["weight"] and audited["share"] is not None:
                key = arm_of[audited["trial"]], audited["term"]
                largest[key] = max(largest[key], audited["share"])
        return [
            f"{arm}: the term {term} is starved: its share of the gradient stayed below {STARVED:g} in every trial"
            for (arm, term), share in largest.items()
            if share < STARVED
        ]

    # What was confirmed.

    def _confirmed(self, purpose: str, arm: str, split: str = "test", fit: str = "") -> Confirmed | None:
        """The arm's runs of this purpose, those of the trials that are chosen now; None before the confirmation."""
        key = purpose, arm, split, fit or self.study.confirm_on
        if key not in self._found:
            self._found[key] = self._read(*key)
        return self._found[key]

    def _read(self, purpose: str, arm: str, split: str, fit: str) -> Confirmed | None:
        labels = self.ledger.labels(split)
        chosen = {key[1]: w.candidate.trial for key, w in self.chosen.items() if key[0] == arm}
        groups: dict[int, list[RunRecord]] = defaultdict(list)
        for run in self.runs:
            wanted = (run.purpose, run.arm, run.fit) == (purpose, arm, fit)
            if wanted and (purpose != "tuned" or self._counts(run, chosen)):
                groups[run.subsearch].append(run)
        if not groups or labels is None:
            return None
        ordered = [sorted(groups[g], key=lambda r: r.replicate) for g in sorted(groups)]
        units = [self._units(self.ledger.predictions(runs, split), labels) for runs in ordered]
        runs = [r for part in ordered for r in part]
        return Confirmed(runs, units, [r.replicate for r in runs])

    def _counts(self, run: RunRecord, chosen: Mapping[int, str]) -> bool:
        """Whether a confirmed seed is of a trial that is chosen now, and of the seeds that are in use now."""
        current = seeds.of_confirmation(self.study, run.arm, run.subsearch, self.round)
        return chosen.get(run.subsearch) == run.trial and run.replicate in current

    def _units(self, predictions: NDArray[Any], labels: NDArray[Any]) -> Units:
        """(seeds, rows) predictions -> what each row adds to the study's metric, whose mean over rows it is."""
        if self.study.metric == "auc":
            diverged = ~np.isfinite(predictions).all(axis=1)
            if diverged.any():
                self.notes.append(
                    f"{int(diverged.sum())} seeds that diverged count as AUC 0.5: they tell nothing apart"
                )
            return auc_units(np.where(diverged[:, None], 0.0, predictions), labels)
        correct: Units = (predictions == labels).astype(np.float64)
        return correct

    def _differences(self, split: str = "test") -> dict[str, Difference]:
        """Every arm, tuned or fixed, minus the tuned baseline of its size."""
        if split not in self._compared:
            self._compared[split] = self._compare(split)
        return self._compared[split]

    def _compare(self, split: str) -> dict[str, Difference]:
        found = {a: self._confirmed("tuned" if a in self.tuned else "fixed", a, split) for a in self.study.arms}
        arms = {a: c for a, c in found.items() if c is not None and self._is_whole(a, c)}
        against = {a: arms.get(self.study.baseline_of(a)) for a in arms if a not in self.study.baselines}
        return {a: _between(arms[a], baseline) for a, baseline in against.items() if baseline is not None}

    def _is_whole(self, arm: str, confirmed: Confirmed) -> bool:
        """Whether every winner of a searched arm has its seeds: some of them say nothing of the arm."""
        budget = self.study.budget
        if arm not in self.tuned or budget.subsearches == 1:
            return True
        winners = sum(key[0] == arm for key in self.chosen)
        return len(confirmed.runs) == winners * (budget.confirm_seeds // budget.subsearches)

    def _unconfirmed(self) -> int:
        """Winners without all of their seeds: more were asked for, or another version chooses others."""
        share = self.study.budget.confirm_seeds // self.study.budget.subsearches
        have = Counter((r.arm, r.subsearch) for c in self.tuned.values() if c for r in c.runs)
        return sum(have[key] < share for key in self.chosen)

    def _margin(self, differences: Mapping[str, Difference]) -> float:
        """The study's margin, or what two searches of the baseline differ by if that is larger."""
        again = differences.get(A_A_CONTROL)
        return max(self.study.margin, abs(again.total.mean)) if again else self.study.margin

    # The arms.

    def _arm(self, arm: str, differences: Mapping[str, Difference]) -> Json:
        definition = self.study.arms[arm]
        result: Json = {
            "arm": arm,
            "kind": definition.kind,
            "role": definition.role,
            "size": definition.size,
            "baseline": self.study.baseline_of(arm),
            "published": definition.published.value if definition.published else None,
            "as_published": self._configuration(
                self.published[arm], definition.published.config if definition.published else None
            ),
            "tuned": self._tuned(arm) if definition.kind == "searched" else None,
            "delta_vs_baseline": None,
            "verdict": None,
            "seeds_to_settle": None,
        }
        if definition.kind == "fixed":
            result["fixed"] = self._configuration(self.fixed[arm], definition.default)
        shown = self.tuned.get(arm) or self.fixed.get(arm)
        if shown is not None:
            predicted = self.ledger.predictions(shown.runs, "test")
            result["evaluation"] = beside.evaluation(
                shown.runs, beside.classes(predicted), self._teacher_classes(), self.study.metric
            )
            if definition.role != "student":
                teacher, student = definition.default.get("teacher"), definition.role == "needs_teachers"
                models = beside.models(self.ledger.teacher_facts(self.study.confirm_on))
                beside.with_teachers(result["evaluation"], models, str(teacher) if teacher else None, student)
        as_published = self.published[arm]
        if definition.published and definition.published.statistic == BEST_OF_EPOCHS and as_published:
            metric = f"test_{self.study.metric}_best_epoch"
            result["best_of_epochs"] = beside.best_of_epochs(as_published.runs, metric, definition.published.value)
        if arm in differences:
            result |= self._judged(arm, differences)
        elif arm not in self.study.baselines:
            self.notes.append(f"{arm}: not confirmed yet, so it has no difference and no verdict")
        return result

    def _judged(self, arm: str, differences: Mapping[str, Difference]) -> Json:
        """Difference from the baseline, corrected inside the family of candidates; the A/A control is in no family."""
        own = self.study.candidates if self.study.arms[arm].kind == "searched" else self.study.fixed
        family = [a for a in own if a in differences]
        adjusted = dict(zip(family, holm([differences[a].total.p_value() for a in family]), strict=True))
        difference, margin = differences[arm], self._margin(differences)
        p = difference.total.p_value()
        in_family = arm in family
        p_adjusted = adjusted[arm] if in_family else p
        level = family_level(p, p_adjusted, len(family), self.alpha) if in_family else 1 - self.alpha
        if not in_family:
            margin = self.study.margin
        verdict: str | None = arm_verdict(
            difference.total, p_adjusted, level, margin, self.alpha, equivalence_margin=self.study.margin
        )
        if self._too_few_to_judge():
            verdict = None
        if self.study.budget.subsearches == 1:
            verdict = None
            self.notes.append(
                "one search an arm: the differences are between two configurations and carry no verdict on arms, "
                "since how much the tuning varies is not known"
            )
        settle = None
        if verdict == "indistinguishable" and not self.study.margin < abs(difference.total.mean) <= margin:
            aim = margin if abs(difference.total.mean) > margin else self.study.margin
            settle = seeds_to_settle(difference, self.study.budget.confirm_seeds, aim, level)
        population = self._population(arm)
        return {
            "delta_vs_baseline": {
                "mean": difference.total.mean,
                "ci95": pair(difference.total.interval()),
                "ci95_seeds": pair(difference.without_rows.interval()),
                "ci95_family": pair(difference.total.interval(level)),
                "p_value": p,
                "p_adjusted": p_adjusted,
                **_error(difference.total, ""),
                **_error(difference.without_rows, "_seeds"),
                "comparisons": len(family) if in_family else 1,
            },
            "population_delta": population,
            "verdict": verdict,
            "seeds_to_settle": settle,
        }

    def _too_few_to_judge(self) -> bool:
        """Whether the test split of a shift has too few rows of a class, and the user has asked for it all the same.

        The interval of an AUC leans on its rarer class, and what the shift leaves cannot be drawn again.
        """
        if self.labels is None or not getattr(self.study.data, "shift", None):
            return False
        fewest = int(np.bincount(self.labels, minlength=2).min())
        if fewest < LEAST_OF_A_SHIFT:
            self.notes.append(
                f"no verdicts: the shift leaves {fewest} test rows of one class, and under {LEAST_OF_A_SHIFT} nothing "
                "is called better, worse or equal"
            )
        return fewest < LEAST_OF_A_SHIFT

    def _population(self, arm: str) -> Json | None:
        """The same difference on fresh rows of a generated population, where there are any."""
        if self.ledger.labels("population") is None:
            return None
        difference = self._differences("population").get(arm)
        if difference is None:
            return None
        return {"mean": difference.total.mean, "ci95": pair(difference.total.interval())}

    def _configuration(self, confirmed: Confirmed | None, config: Mapping[str, Any] | None) -> Json | None:
        """One given configuration under the confirmation seeds."""
        if config is None:
            return None
        if confirmed is None:
            return {"mean": None, "ci95": None, "ci95_seeds": None, "n": 0, "config": dict(config)}
        whole, seeds = over_seeds_and_rows(confirmed.flat), over_seeds(confirmed.flat.mean(axis=1))
        return {
            "mean": whole.mean,
            "ci95": pair(whole.interval()),
            "ci95_seeds": pair(seeds.interval()),
            "one_seed95": beside.one_seed(seeds),
            "n": len(confirmed.runs),
            "config": dict(config),
            "population": self._mean_of(confirmed.runs, f"population_{self.study.metric}"),
        }

    def _tuned(self, arm: str) -> Json | None:
        if not any(key[0] == arm for key in self.chosen):
            self.notes.append(f"{arm}: no trial has reached a rung within the fair budget, so tuned is null")
            return None
        winner, confirmed = deployed(self.chosen, arm), self.tuned[arm]
        config = winner.candidate.config
        space = self.study.arms[arm].space
        edges = [n for n, d in space.items() if d.at_edge(config[n]) and not is_at_limit(n, d, config[n])]
        own = [self.chosen[key] for key in sorted(self.chosen) if key[0] == arm]
        result: Json = {
            "mean": None,
            "ci95": None,
            "ci95_seeds": None,
            "n": 0,
            "config": config,
            "trial": winner.candidate.trial,
            "at_edge": edges,
            "winners": [{"trial": w.candidate.trial, "config": w.candidate.config} for w in own],
            "search_value": sum(w.candidate.score for w in own) / len(own),
            "val_mean": None,
            "optimism": None,
            "refit_gain": None,
            "contaminated": self.study.contaminated is not None,
        }
        if edges:
            self.notes.append(f"{arm}: tuned value at the edge of its range: {', '.join(edges)}; consider a wider one")
        if confirmed is None:
            return result
        whole, seeds = over_winners(confirmed.groups), over_seeds(confirmed.flat.mean(axis=1))
        if whole.interval() is None:
            self.notes.append(f"{arm}: one seed is confirmed, so there is no interval")
        result |= {
            "mean": whole.mean,
            "ci95": pair(whole.interval()),
            "ci95_seeds": pair(seeds.interval()),
            "n": len(confirmed.runs),
            "winner_means": [float(g.mean()) for g in confirmed.groups],
            "population": self._mean_of(confirmed.runs, f"population_{self.study.metric}"),
        }
        return result | self._optimism(arm, result["search_value"], whole.mean, own)

    def _optimism(self, arm: str, search_value: float, refitted: float, own: Sequence[Winner]) -> Json:
        """What the search believed against the same configurations under fresh seeds, all trained on train alone."""
        on_train = self._confirmed("tuned", arm, fit="train")
        if on_train is None:
            return {}
        val_mean = self._mean_of(on_train.runs, self.study.val_metric)
        end = self.study.budget.max_epochs
        early = [w.candidate.epoch for w in own if w.candidate.epoch < end]
        if early:
            self.notes.append(
                f"{arm}: optimism is null: {len(early)} of {len(own)} winners were chosen at epoch {min(early)} and "
                f"are confirmed later: too few trials of a sub-search reached the end"
            )
        return {
            "val_mean": val_mean,
            "optimism": None if val_mean is None or early else search_value - val_mean,
            "refit_gain": None if self.study.confirm_on == "train" else refitted - over_winners(on_train.groups).mean,
        }

    @staticmethod
    def _mean_of(runs: Sequence[RunRecord], metric: str) -> float | None:
        values = [r.metrics[metric] for r in runs if r.metrics.get(metric) is not None]
        return float(np.mean(values)) if values else None

    # Claims, contrasts, teachers.

    def _claims(self) -> list[Json]:
        measured: list[Difference | None] = []
        for claim in self.study.claims:
            a, b = self._claimed(claim.better, claim.worse)
            measured.append(paired(a.flat, b.flat) if a and b and a.seeds == b.seeds else None)
        p = [None if d is None else d.total.p_value() for d in measured]
        adjusted = holm(p)
        results = []
        for claim, difference, raw, corrected in zip(self.study.claims, measured, p, adjusted, strict=True):
            level = family_level(raw, corrected, max(1, len(p)), self.alpha)
            interval = None if difference is None else difference.total.interval(level)
            low, high = interval or (None, None)
            verdict: str | None = None if difference is None else claim_verdict(claim.gain, low, high)
            if claim.not_comparable:
                verdict = f"not comparable ({claim.not_comparable})"
            results.append(
                {
                    "claim": f"{claim.better} > {claim.worse} by {_amount(claim.gain, self.study.metric)}",
                    "source": claim.source,
                    "published": claim.gain,
                    "measured": None if difference is None else difference.total.mean,
                    "ci95": pair(interval),
                    "ci95_seeds": None if difference is None else pair(difference.without_rows.interval(level)),
                    "p_adjusted": corrected,
                    "notes": claim.notes,
                    "sign_flip_p": None if difference is None else self._sign_flip(claim.better, claim.worse),
                    "population": self._claim_on_population(claim.better, claim.worse),
                    "verdict": verdict,
                    "sentence": claims.sentence(
                        claim,
                        None if difference is None else difference.total.mean,
                        interval,
                        verdict,
                        self.study.metric,
                    ),
                }
            )
        return results

    def _claimed(self, better: str, worse: str) -> tuple[Confirmed | None, Confirmed | None]:
        """Both sides of a claim under the same seeds: teachers alone have one run a set, for all of its seeds."""
        a, b = self.published[better], self.published[worse]
        if a and b and a.seeds != b.seeds:
            a_alone, b_alone = (self.study.arms[arm].role == "reference" for arm in (better, worse))
            sets = self.study.confirm_teachers
            if a_alone:
                return _for_seeds(a, b.seeds, sets), b
            if b_alone:
                return a, _for_seeds(b, a.seeds, sets)
        return a, b

    def _sign_flip(self, better: str, worse: str) -> float | None:
        a, b = self._claimed(better, worse)
        if a is None or b is None or a.seeds != b.seeds:
            return None
        return sign_flip_p(a.flat.mean(axis=1) - b.flat.mean(axis=1))

    def _claim_on_population(self, better: str, worse: str) -> Json | None:
        a, b = (self._confirmed("as_published", arm, "population") for arm in (better, worse))
        if a is None or b is None or a.seeds != b.seeds:
            return None
        difference = paired(a.flat, b.flat)
        return {"mean": difference.total.mean, "ci95": pair(difference.total.interval())}

    def _contrasts(self) -> list[Json]:
        """Questions of their own, in a family of their own."""
        differences: list[Difference | None] = []
        for a, b, _ in self.study.contrasts:
            one, other = self.tuned.get(a) or self.fixed.get(a), self.tuned.get(b) or self.fixed.get(b)
            whole = one and other and self._is_whole(a, one) and self._is_whole(b, other)
            differences.append(_between(one, other) if one and other and whole else None)
        p = [None if d is None else d.total.p_value() for d in differences]
        adjusted, margin = holm(p), self._margin(self._differences())
        silent = self._too_few_to_judge()
        results = []
        for (a, b, question), d, raw, corrected in zip(self.study.contrasts, differences, p, adjusted, strict=True):
            level = family_level(raw, corrected, max(1, len(p)), self.alpha)
            results.append(
                {
                    "contrast": f"{a} - {b}",
                    "question": question,
                    "mean": None if d is None else d.total.mean,
                    "ci95": None if d is None else pair(d.total.interval()),
                    "ci95_family": None if d is None else pair(d.total.interval(level)),
                    "p_value": raw,
                    "p_adjusted": corrected,
                    "answer": None
                    if d is None or silent
                    else arm_verdict(
                        d.total, corrected, level, margin, self.alpha, equivalence_margin=self.study.margin
                    ),
                }
            )
        return results

    def _teacher_classes(self) -> dict[int, NDArray[Any]]:
        """{teacher set: (rows,) predicted classes of the test rows}."""
        predicted = self.ledger.teacher_predictions(self.study.confirm_on, "test")
        return {k: beside.classes(said) for (k, member), said in predicted.items() if member == ENSEMBLE}

    def _front(self, arms: Sequence[Json]) -> Json | None:
        """Which size of student will do, where the study has several."""
        if self.labels is None:
            return None
        said = self.ledger.teacher_predictions(self.study.confirm_on, "test")
        teachers = {k: self._units(s[None], self.labels)[0] for (k, member), s in said.items() if member == ENSEMBLE}
        units = {arm: (c.seeds, c.groups) for arm, c in self.tuned.items() if c is not None}
        return front(self.study, arms, units, teachers, self.alpha)

    def _gates(self) -> list[Json]:
        """What every arm with a gate does with it, by segment, beside which teacher is better there."""
        if self.labels is None:
            return []
        said = self.ledger.teacher_predictions(self.study.confirm_on, "test")
        facts = self.ledger.teacher_facts(self.study.confirm_on)
        names = {member: about["name"] for (_, member), about in facts.items() if member != ENSEMBLE}
        runs = {arm: (self.tuned.get(arm) or self.fixed[arm]) for arm in self.study.arms}
        shown = {arm: confirmed.runs for arm, confirmed in runs.items() if confirmed is not None}
        return gates.by_segment(shown, names, said, self.labels, self.ledger.segments("test"))

    def _teacher(self) -> Json | None:
        """The article's derived figures: members, ensemble, parameters, and the share of its edge recovered."""
        predicted = self.ledger.teacher_predictions(self.study.confirm_on, "test")
        if not predicted or self.labels is None:
            return None
        correct = {key: self._units(said[None], self.labels)[0] for key, said in predicted.items()}
        sets = sorted({k for k, m in correct if m == ENSEMBLE})
        ensembles = np.stack([correct[k, ENSEMBLE] for k in sets])
        members = [float(c.mean()) for (_, m), c in correct.items() if m != ENSEMBLE]
        if not sets:
            return None  # the judging of the first teacher was interrupted
        whole = over_seeds_and_rows(ensembles)
        teacher_parameters = next((t["parameters"] for t in self.ledger.teachers()), None)
        student = next((r.metrics["parameters"] for r in self.runs if r.metrics.get("parameters")), None)
        population = self.ledger.teacher_predictions(self.study.confirm_on, "population")
        fresh = self.ledger.labels("population")
        on_fresh = None
        if population and fresh is not None:
            on_fresh = float(np.mean([self._units(c[None], fresh).mean() for (_, m), c in population.items() if m < 0]))
        return {
            "published": self.study.published_teacher,
            "ensemble": {"mean": whole.mean, "ci95": pair(whole.interval()), "n": len(sets)},
            "ensemble_population": on_fresh,
            "members": {"mean": float(np.mean(members)), "min": min(members), "max": max(members), "n": len(members)}
            if members
            else None,
            "teacher_parameters": teacher_parameters,
            "student_parameters": int(student) if student else None,
            "compression": teacher_parameters / student if teacher_parameters and student else None,
            "edge_recovered": self._edge(ensembles.mean(axis=1)),
            "models": beside.models(self.ledger.teacher_facts(self.study.confirm_on)),
        }

    def _edge(self, ensembles: NDArray[np.float64]) -> Json | None:
        """(kd - baseline) / (ensemble - baseline) of the published configurations, paired by seed and teacher set."""
        kd, base = self.published.get("kd"), self.published[BASELINE]
        if len(ensembles) < self.study.confirm_teachers:
            return None  # the seeds of the sets that are not judged yet have no teacher to be compared with
        if kd is None or base is None or kd.seeds != base.seeds:
            return None
        teacher = ensembles[[seed % len(ensembles) for seed in kd.seeds]]
        baseline = base.flat.mean(axis=1)
        share = ratio(kd.flat.mean(axis=1) - baseline, teacher - baseline)
        claims = {a: d.published.value for a, d in self.study.arms.items() if d.published}
        published = None
        if self.study.published_teacher and {"kd", BASELINE} <= claims.keys():
            published = (claims["kd"] - claims[BASELINE]) / (self.study.published_teacher - claims[BASELINE])
        return {
            "published": published,
            "measured": share.value,
            "ci95_seeds": pair((share.low, share.high) if share.low is not None and share.high is not None else None),
            "reason": share.reason,
        }


def _for_seeds(reference: Confirmed, seeds: list[int], sets: int) -> Confirmed | None:
    """What teachers alone say beside each of these seeds, of which r belongs to set r mod `sets`; None if one lacks."""
    place = {seed % sets: i for i, seed in enumerate(reference.seeds)}
    if {seed % sets for seed in seeds} - place.keys():
        return None
    rows = [place[seed % sets] for seed in seeds]
    return Confirmed([reference.runs[i] for i in rows], [reference.flat[rows]], seeds)


def _error(spread: Spread, name: str) -> Json:
    """What the interval was made from, None with one unit."""
    one = spread.n == 1
    return {
        f"standard_error{name}": None if one else math.sqrt(spread.variance),
        f"df{name}": None if one else spread.df,
    }


def _amount(gain: float, metric: str) -> str:
    return f"{gain:.3g} AUC" if metric == "auc" else f"{100 * gain:.3g} points"


def _between(a: Confirmed, b: Confirmed) -> Difference:
    """Arms by their winners' means; with one winner each, by the seeds that both have, pairwise."""
    if len(a.groups) > 1 or len(b.groups) > 1:
        return between_arms(a.groups, b.groups)
    common = sorted(set(a.seeds) & set(b.seeds))
    if len(common) < 2:
        return between_arms(a.groups, b.groups) if len(a.seeds) == len(b.seeds) else paired(a.flat[:1], b.flat[:1])
    return paired(a.flat[[a.seeds.index(s) for s in common]], b.flat[[b.seeds.index(s) for s in common]])
