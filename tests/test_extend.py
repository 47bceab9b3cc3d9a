"""`distune extend` and `distune clean`: nothing that is finished is done again, lost or judged as if seen once.

First on ledgers made by hand, where the answer is known and no Ray is needed; then on real Ray, by the command line.
"""

import dataclasses
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from scipy import stats

import distune
from analysis.comparison import compare
from analysis.looks import false_alarm, false_alarm_at_most, level_at_last_look
from search import confirm, revisions, sweep
from search.clean import clean
from search.ledger import Ledger
from search.progress import Progress
from search.selection import search_spend
from search.students import load_student
from search.weights import pack_name
from spaces import A_A_CONTROL, BASELINE, BadInput, Extension, adjust, extended, load_study
from tests.chaos.checks import lost, tables_of
from tests.made_ledgers import add_trial, small_study
from tests.test_comparison import arm, text
from tests.test_sweep import TINY, command, write_trainable
from tests.test_sweep import run as distune_run

STUDY = small_study(("kd",))  # 16 confirmation seeds for the winners of 4 sub-searches
ROWS = 200
LABELS = np.zeros(ROWS, dtype=np.uint8)
ROUND_1 = 2_020_000  # the first seed of the second round


# Sweeps without training.


def rights(**of_arms):
    """Students who are right on the first half of the rows, but for the arms named here: on so many."""
    return lambda job, replicate: np.arange(ROWS) < of_arms.get(job.arm, ROWS // 2)


class Made:
    """A sweep that trains nothing: the path of `distune sweep`, `extend` and `resume`, but for Ray.

    correct(job, replicate): (rows,) bool, which rows are right. scores: of each further trial of an arm at the last
    rung. dies: `search` before it, `confirmation` after the look, `seeds` with half of them, `end` with all of them.
    """

    def __init__(self, run, monkeypatch, study=STUDY):
        self.run, self.study = run, study
        self.correct, self.scores, self.dies = rights(), iter(()), None
        monkeypatch.setattr(sweep, "connected", lambda options, say: nullcontext(lambda: 2))
        monkeypatch.setattr(sweep, "_phases", self._phases)

    def sweep(self, correct=None):
        self.correct = correct or self.correct
        sweep.start(self.study, self.run, 0, sweep.Options(), Progress(quiet=True))
        return self.compare()

    def extend(self, correct=None, dies=None, force=False, scores=(), **more):
        self.correct, self.dies, self.scores = correct or self.correct, dies, iter(scores)
        if dies is None:
            sweep.extend(self.run, Extension(**more), Progress(quiet=True), force)
        else:
            with pytest.raises(sweep.Interrupted):
                sweep.extend(self.run, Extension(**more), Progress(quiet=True), force)
        return self.compare()

    def resume(self):
        self.dies = None
        sweep.resume(self.run, Progress(quiet=True))
        return self.compare()

    def compare(self):
        return compare(self.run)

    def ledger(self):
        return Ledger.open(self.run)

    def _phases(self, study, run, ledger, *rest):
        self._die("search")
        self._search(study, ledger)
        confirm.open_splits(study, ledger, {"test": (LABELS, {})})
        self._die("confirmation")
        jobs = confirm._unfinished(confirm.confirmation_jobs(study, ledger), ledger)
        for done, job in enumerate(jobs):
            if done >= len(jobs) // 2:
                self._die("seeds")
            self._judge(job, ledger)
        self._die("end")
        ledger.clock("confirmation", "end")

    def _die(self, where):
        if self.dies == where:
            raise sweep.Interrupted

    def _search(self, study, ledger):
        """Trials to the last rung, in turn for each sub-search, until every arm has spent its budget."""
        scores = list(self.scores)
        for name in study.searched:
            better = iter(scores)
            while search_spend(study, ledger.trials(), ledger.epochs())[name] < study.budget.search_seed_epochs:
                asked = sum(t.arm == name for t in ledger.trials())
                score = next(better, 0.7)
                g = asked % study.budget.subsearches
                add_trial(ledger, f"{name}-{asked}", name, {9: score}, subsearch=g, how="finished")

    def _judge(self, job, ledger):
        (self.run / "models").mkdir(exist_ok=True)
        weights = {
            "model.weights.0": torch.zeros(len(job.replicates), 3, 2),
            "model.biases.0": torch.tensor([[[float(r), 0.0]] for r in job.replicates]),  # so that it is known again
            "scaling.mean": torch.zeros(3),
            "scaling.scale": torch.ones(3),
        }
        save_file(weights, self.run / "models" / f"{pack_name(job, job.replicates[0])}.safetensors")
        for replicate in job.replicates:
            right = self.correct(job, replicate)
            ledger.finish_run(
                *(job.purpose, job.arm, job.subsearch, job.fit, replicate),
                trial=job.trial,
                config=job.config,
                epochs=9,
                seconds=0.1,
                metrics={"test_accuracy": float(right.mean()), "parameters": 3490.0},
                predictions={"test": np.where(right, LABELS, 1 - LABELS).astype(np.uint8)},
            )


@pytest.fixture
def made(tmp_path, monkeypatch):
    return Made(tmp_path / "run", monkeypatch)


def replicates_of(run, purpose, name, fit="train+validation"):
    """{(sub-search, trial): replicates}."""
    found = {}
    with Ledger.open(run) as ledger:
        for r in ledger.runs(purpose):
            if (r.arm, r.fit) == (name, fit):
                found.setdefault((r.subsearch, r.trial), []).append(r.replicate)
    return found


def looks_of(run):
    """Confirmation seeds at each look at the test split."""
    with Ledger.open(run) as ledger:
        return [k["seeds"] for k in ledger.looks() if k["split"] == "test" and k["purpose"] == confirm.LOOK]


def looks_noted(result):
    return [note for note in result["notes"] if note.startswith("This is look")]


# Which seeds count.


def test_more_seeds_in_the_same_round_are_used_together_with_the_first(made):
    made.sweep(rights(kd=120))
    result = made.extend(rights(kd=160), confirm_seeds="+16")
    kd = arm(result, "kd")
    for part in ("tuned", "as_published"):
        assert (kd[part]["n"], kd[part]["mean"]) == (32, pytest.approx(0.7))
    assert kd["delta_vs_baseline"]["mean"] == pytest.approx(0.2)
    assert result["published_claims"][0]["measured"] == pytest.approx(0.2)
    of_seeds = replicates_of(made.run, "tuned", "kd").values()
    assert sorted(r for own in of_seeds for r in own) == [2_000_000 + 1000 * g + r for g in range(4) for r in range(8)]
    assert looks_of(made.run) == [16, 32]


@pytest.mark.parametrize(("scores", "winners"), [((0.9,) * 4, range(4, 8)), ((0.1,) * 4, range(4))])
def test_after_more_budget_tuned_arms_are_judged_by_new_seeds_alone(made, scores, winners):
    """Whether or not the winners are others: those seeds have been seen by whoever asked for more."""
    made.sweep(rights(kd=120))
    result = made.extend(rights(kd=160, hard_labels=110), scores=scores, seed_epochs="+72")
    kd = arm(result, "kd")
    assert (kd["tuned"]["n"], kd["tuned"]["mean"]) == (16, pytest.approx(0.8))
    assert [w["trial"] for w in kd["tuned"]["winners"]] == [f"kd-{w}" for w in winners]
    assert kd["delta_vs_baseline"]["mean"] == pytest.approx(0.25)
    new = {
        k: own[-4:] for k, own in replicates_of(made.run, "tuned", "kd").items() if k[1] in {f"kd-{w}" for w in winners}
    }
    assert new == {(g, f"kd-{w}"): [ROUND_1 + 1000 * g + r for r in range(4)] for g, w in enumerate(winners)}
    assert looks_of(made.run) == [16, 32]
    assert any("tuned arms are judged by fresh seeds alone" in note for note in result["notes"])
    assert looks_noted(result)[0].endswith("is at most 9.7 %.")


def test_after_more_budget_published_and_fixed_configurations_keep_their_seeds(tmp_path, monkeypatch):
    fixed = dataclasses.replace(small_study(("kd", "kd_shuffled")).arms["kd_shuffled"], space={})
    study = small_study(("kd", "kd_shuffled"))
    made = Made(tmp_path / "run", monkeypatch, dataclasses.replace(study, arms={**study.arms, "kd_shuffled": fixed}))
    made.sweep(rights(kd=120, kd_shuffled=130))
    before = replicates_of(made.run, "as_published", "kd"), replicates_of(made.run, "fixed", "kd_shuffled")
    result = made.extend(rights(kd=160, kd_shuffled=10), seed_epochs="+72")
    assert (replicates_of(made.run, "as_published", "kd"), replicates_of(made.run, "fixed", "kd_shuffled")) == before
    given = arm(result, "kd")["as_published"], arm(result, "kd_shuffled")["fixed"]
    assert [(part["n"], part["mean"]) for part in given] == [(16, pytest.approx(0.6)), (16, pytest.approx(0.65))]
    assert arm(result, "kd_shuffled")["delta_vs_baseline"]["mean"] == pytest.approx(0.15)
    assert result["published_claims"][0]["measured"] == pytest.approx(0.1)
    again = made.extend(rights(kd=200, kd_shuffled=170), confirm_seeds="+16")  # in the second round
    given = arm(again, "kd")["as_published"], arm(again, "kd_shuffled")["fixed"], arm(again, "kd")["tuned"]
    assert [part["n"] for part in given] == [32, 32, 32]
    assert [part["mean"] for part in given] == pytest.approx([0.8, 0.75, 0.9])
    assert looks_of(made.run) == [16, 32, 48]


def test_a_budget_that_only_lets_more_be_re_evaluated_is_confirmed_under_new_seeds_too(tmp_path, monkeypatch):
    """From 360 seed-epochs on there is a re-evaluation, which may choose other winners, and the search gets less."""
    made = Made(tmp_path / "run", monkeypatch, small_study(("kd",), seed_epochs_per_arm=359, reevaluate_share=0.4))
    after = extended(made.study, Extension(seed_epochs="360"))[0].budget
    assert after.search_seed_epochs < made.study.budget.search_seed_epochs
    made.sweep()
    made.extend(seed_epochs="360")
    with made.ledger() as ledger:
        assert ledger.round == 1


def test_a_sweep_that_has_not_looked_yet_keeps_its_first_seeds(made, monkeypatch):
    made.dies = "search"
    with pytest.raises(sweep.Interrupted):
        made.sweep()
    result = made.extend(seed_epochs="+72", confirm_seeds="32")
    assert result["complete"]
    assert result["alpha"] == 0.05
    with made.ledger() as ledger:
        assert ledger.round == 0
    assert looks_of(made.run) == [32]


# Until an extension is done.


@pytest.mark.parametrize("dies", ["search", "confirmation", "seeds", "end"])
@pytest.mark.parametrize(
    "more",
    [{"confirm_seeds": "+16"}, {"seed_epochs": "+72"}, {"arms": ("label_smoothing",)}],
    ids=["seeds", "budget", "an arm"],
)
def test_an_extension_that_was_interrupted_is_not_complete_until_it_is_resumed(made, more, dies):
    before = made.sweep(rights(kd=120))
    assert before["complete"]
    assert arm(before, "kd")["verdict"] == "better"
    partial = made.extend(dies=dies, **more)
    assert not partial["complete"]
    assert any("the confirmation has not finished" in note for note in partial["notes"])
    if dies in ("confirmation", "seeds") and "arms" not in more:  # not every winner has its new seeds
        assert arm(partial, "kd")["delta_vs_baseline"] is None
        assert arm(partial, "kd")["verdict"] is None
        assert [c["answer"] for c in partial["contrasts"]] == [None]
    looks = looks_of(made.run)
    result = made.resume()
    assert result["complete"]
    assert arm(result, "kd")["verdict"] == "better"
    assert {a["tuned"]["n"] for a in result["arms"]} == {32 if "confirm_seeds" in more else 16}
    assert looks_of(made.run) == (looks if dies != "search" else [16, 16 if "arms" in more else 32])
    assert made.resume() == result  # nothing is left to do


def test_a_finished_sweep_with_a_winner_that_lacks_seeds_is_not_complete(made):
    """As where another version of distune chooses another winner than the one that was confirmed."""
    made.sweep()
    with made.ledger() as ledger:
        ledger._db.execute("DELETE FROM runs WHERE purpose = 'tuned' AND arm = 'kd' AND subsearch = 2")
    result = made.compare()
    assert not result["complete"]
    assert any("1 of 12 winners lack confirmation seeds" in note for note in result["notes"])
    assert made.extend(confirm_seeds="+16")["complete"]


def test_an_arm_that_is_being_added_takes_no_trial_from_the_others_and_brings_its_contrast(made):
    before = made.sweep(rights(kd=120))
    result = made.extend(rights(label_smoothing=110), arms=("label_smoothing",))
    assert [c["contrast"] for c in before["contrasts"]] == ["kd - hard_labels"]
    assert [c["contrast"] for c in result["contrasts"]] == ["kd - hard_labels", "kd - label_smoothing"]
    assert result["contrasts"][1]["mean"] == pytest.approx(0.05)
    for name in (BASELINE, A_A_CONTROL, "kd"):
        assert arm(result, name)["tuned"] == arm(before, name)["tuned"]
        assert result["budget"][name] == before["budget"][name]
    assert result["fair_budget"]["limit"] == STUDY.budget.search_seed_epochs
    paired = {g: own for (g, _), own in replicates_of(made.run, "tuned", BASELINE).items()}
    assert {g: own for (g, _), own in replicates_of(made.run, "tuned", "label_smoothing").items()} == paired


# What the second look costs.


LUCK = {"tuned": 40, "as_published": 55}  # seeds whose p lies between the levels of one look and of five


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    """The same 80 seeds of every arm, looked at once and five times: (once, often), p between the two levels."""
    claim = dataclasses.replace(STUDY.claims[0], gain=0.2)

    def correct(job, replicate):
        rng = np.random.default_rng([LUCK[job.purpose], replicate, job.arm == "kd"])
        easy = np.linspace(0, 1, ROWS) + 0.1 * rng.normal(size=ROWS)
        return easy < 0.5 + 0.015 * (job.arm == "kd") + 0.03 * rng.normal()

    results = []
    for first in (80, 16):
        study = dataclasses.replace(
            STUDY, claims=(claim,), budget=dataclasses.replace(STUDY.budget, confirm_seeds=first)
        )
        with pytest.MonkeyPatch.context() as patch:
            made = Made(tmp_path_factory.mktemp("looked") / "run", patch, study)
            made.sweep(correct)
            for total in range(first + 16, 81, 16):
                made.extend(confirm_seeds=str(total))
            results.append(made.compare())
        assert looks_of(made.run) == list(range(first, 81, 16))
    return results


def test_a_difference_that_one_look_would_call_is_not_called_after_five(looked):
    once, often = looked
    level = level_at_last_look([16, 32, 48, 64, 80])
    assert (once["alpha"], often["alpha"]) == (0.05, level)
    kd, kd_often = arm(once, "kd"), arm(often, "kd")
    assert level < kd["delta_vs_baseline"]["p_adjusted"] == kd_often["delta_vs_baseline"]["p_adjusted"] < 0.05
    assert (kd["verdict"], kd_often["verdict"]) == ("better", "indistinguishable")
    assert [c["answer"] for r in looked for c in r["contrasts"]] == ["better", "indistinguishable"]
    (claim,), (claim_often,) = once["published_claims"], often["published_claims"]
    assert level < claim["p_adjusted"] == claim_often["p_adjusted"] < 0.05
    assert (claim["verdict"], claim_often["verdict"]) == ("smaller", "not distinguishable from noise")


def test_the_intervals_that_verdicts_are_read_off_widen_with_the_looks(looked):
    once, often = looked
    for name in (A_A_CONTROL, "kd"):
        a, b = arm(once, name)["delta_vs_baseline"], arm(often, name)["delta_vs_baseline"]
        assert a["ci95_family"] == pytest.approx(a["ci95"])  # a family of one, and a control in none
        assert b["ci95_family"][0] < a["ci95_family"][0] < a["ci95_family"][1] < b["ci95_family"][1]
        assert [a[k] for k in ("mean", "ci95", "ci95_seeds", "p_value")] == [
            b[k] for k in ("mean", "ci95", "ci95_seeds", "p_value")
        ]
        assert arm(once, name)["tuned"]["ci95"] == arm(often, name)["tuned"]["ci95"]
    for part, interval in (("contrasts", "ci95_family"), ("published_claims", "ci95")):
        (a,), (b,) = once[part], often[part]
        assert b[interval][0] < a[interval][0] < a[interval][1] < b[interval][1]
    for result in looked:
        judged = [(a["delta_vs_baseline"], "ci95_family") for a in result["arms"] if a["arm"] == "kd"]
        judged += [(result["contrasts"][0], "ci95_family"), (result["published_claims"][0], "ci95")]
        for part, interval in judged:
            low, high = part[interval]
            assert (part["p_adjusted"] < result["alpha"]) == (not low <= 0 <= high)


def test_a_note_and_the_tables_state_the_level_from_the_second_look_on(looked):
    once, often = looked
    assert looks_noted(once) == []
    (note,) = looks_noted(often)
    assert "look 5 at the test split (16, then 32, then 48, then 64, then 80 confirmation seeds)" in note
    percent = f"{100 * often['alpha']:.2f} % in place of 5 %"
    assert f"judged at {percent}" in note
    assert text(often).count(percent) == 3  # the note, the differences of arms, the contrasts
    assert "in place of" not in text(once)
    assert often["arms"][-1]["seeds_to_settle"] > 80


def test_an_arm_that_is_added_between_two_looks_at_as_many_seeds_costs_no_level(made):
    before = made.sweep()
    result = made.extend(arms=("label_smoothing",))
    assert looks_of(made.run) == [16, 16]
    assert result["alpha"] == before["alpha"] == 0.05
    assert looks_noted(result) == []
    both = made.extend(confirm_seeds="+16", arms=("kd_shuffled",))
    assert both["alpha"] == level_at_last_look([16, 32]) < 0.05
    assert [note.rpartition(" is ")[2] for note in looks_noted(both)] == ["8.2 %."]


def test_looks_at_other_seeds_raise_at_most_as_many_false_alarms_as_independent_ones():
    for at in ([20], [20, 40], [5, 45, 85, 90]):
        assert false_alarm(at) <= false_alarm_at_most(at) + 1e-9
    z = np.abs(np.random.default_rng(0).standard_normal((400_000, 2)))
    levels = np.array([0.05, level_at_last_look([20, 40])])
    raised = (z > stats.norm.isf(levels / 2)).any(axis=1).mean()
    assert false_alarm_at_most([20, 40]) == pytest.approx(raised, abs=0.0015)  # 3 standard errors


def test_looks_of_other_purposes_and_splits_cost_no_level(made):
    before = made.sweep()
    with made.ledger() as ledger:
        ledger.look("test", LABELS, confirm.PEEKS)
        ledger.look("elsewhere", LABELS, confirm.LOOK, seeds=100, about={})
    after = made.compare()
    assert len(after["looks_at_test"]) == len(before["looks_at_test"]) + 2
    assert (after["alpha"], looks_noted(after)) == (0.05, [])


def test_a_look_that_an_earlier_version_recorded_without_its_seeds_is_gone_on_from(made):
    made.dies = "seeds"
    with pytest.raises(sweep.Interrupted):
        made.sweep()
    with made.ledger() as ledger:
        ledger._db.execute("UPDATE looks SET seeds = NULL, about = NULL")
        ledger._db.execute("DELETE FROM revisions")
    assert made.resume()["alpha"] == 0.05
    assert made.extend(confirm_seeds="+16")["alpha"] == level_at_last_look([16, 32])


# The student to deploy.


def seed_of(student):
    """What `Made` has marked a student with."""
    return student(torch.zeros(1, 3))[0, 0].item()


def test_the_student_is_of_the_round_that_counts(made):
    made.sweep(lambda job, replicate: np.arange(ROWS) < replicate % 10 * 10)
    assert seed_of(load_student(made.run, "kd")) == 2_000_001  # the lower median of the first winner's four
    made.extend(confirm_seeds="+16")
    assert seed_of(load_student(made.run, "kd")) == 2_000_003  # of eight, in a pack of their own
    made.extend(seed_epochs="+72", dies="confirmation", scores=(0.9, 0.8, 0.8, 0.8))
    with pytest.raises(BadInput, match="has not been confirmed again"):
        load_student(made.run, "kd")
    made.resume()
    assert seed_of(load_student(made.run, "kd")) == ROUND_1 + 3


def test_while_an_arm_is_added_that_has_spent_nothing_no_student_is_chosen_and_it_says_so(made):
    made.sweep()
    made.extend(dies="search", arms=("label_smoothing",))
    for name in ("kd", "label_smoothing"):
        with pytest.raises(BadInput, match="has not been confirmed"):
            load_student(made.run, name)
    made.resume()
    assert seed_of(load_student(made.run, "label_smoothing")) == seed_of(load_student(made.run, "kd"))


# What is refused, and what an extension brings with it.


@pytest.mark.parametrize("force", [False, True])
def test_what_is_refused_changes_nothing(made, monkeypatch, force):
    made.sweep()
    if force:  # and the code has changed, which would be written down
        monkeypatch.setattr(revisions, "code_of", lambda study: {"trainables/losses.py": "other"})
    tables, study = tables_of(made.run), (made.run / "study.yaml").read_bytes()
    for more in ({}, {"confirm_seeds": "8"}, {"arms": ("kd_shufled",)}, {"seed_epochs": "+0"}):
        with pytest.raises(BadInput):
            sweep.extend(made.run, Extension(**more), Progress(quiet=True), force)
    assert tables_of(made.run) == tables
    assert (made.run / "study.yaml").read_bytes() == study


def test_an_extension_for_which_there_is_no_ray_changes_nothing(made, monkeypatch):
    def none(options, say):
        raise BadInput("no Ray cluster answers there")

    made.sweep()
    tables, study = tables_of(made.run), (made.run / "study.yaml").read_bytes()
    monkeypatch.setattr(sweep, "connected", none)
    with pytest.raises(BadInput, match="no Ray cluster"):
        sweep.extend(made.run, Extension(confirm_seeds="+16"), Progress(quiet=True))
    assert tables_of(made.run) == tables
    assert (made.run / "study.yaml").read_bytes() == study


def test_a_contrast_or_claim_that_the_study_left_out_does_not_come_back_with_an_arm():
    study = dataclasses.replace(STUDY, contrasts=(), claims=())
    more, _ = extended(study, Extension(arms=("label_smoothing",)))
    assert more.contrasts == (("kd", "label_smoothing", "is a teacher needed"),)
    assert more.claims == ()


def test_an_added_fixed_arm_brings_its_effects():
    whole = load_study("cifar10-attention-transfer")
    name = next(iter(whole.effects[0].arms))
    kept = [other for other in whole.arms if other != name]
    without = adjust(whole, arms=kept)
    assert len(without.effects) < len(whole.effects)
    assert extended(without, Extension(arms=(name,)))[0].effects == whole.effects


def test_an_arm_that_is_added_to_a_table_of_ones_own_brings_no_number_that_was_published_of_another(tmp_path):
    (tmp_path / "table.csv").write_text("a,y\n")
    own = {"kind": "csv", "path": str(tmp_path / "table.csv"), "target": "y", "positive": "yes"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"extends": "promo-attention", "data": own}))
    study = load_study(tmp_path / "own.yaml")
    published = [a for a, definition in load_study("promo-attention").arms.items() if definition.published]
    gone = next(a for a in published if study.arms[a].kind == "fixed")
    less = adjust(study, arms=[a for a in study.arms if a != gone])
    more, _ = extended(less, Extension(arms=(gone,)))
    assert set(more.arms) == set(study.arms)
    assert [a for a, definition in more.arms.items() if definition.published] == []
    assert more.claims == ()


def test_a_study_with_a_name_of_its_own_says_where_else_arms_may_come_from():
    with pytest.raises(BadInput, match="--from with a built-in study"):
        extended(dataclasses.replace(STUDY, name="mine"), Extension(arms=("label_smoothing",)))
    more, _ = extended(
        dataclasses.replace(STUDY, name="mine"), Extension(arms=("label_smoothing",), source="mlp-ensemble")
    )
    assert (more.name, "label_smoothing" in more.arms) == ("mine", True)


# What can be freed.


@pytest.mark.parametrize("finished", [True, False])
def test_checkpoints_of_trials_that_have_not_ended_stay_until_the_sweep_is_finished(made, finished):
    made.sweep()
    if not finished:
        made.extend(dies="search", seed_epochs="+72")
    with made.ledger() as ledger:
        ended = list(ledger.ends())
    checkpoints = made.run / "ray" / "checkpoints"
    for trial in (*ended, "kd-4"):
        (checkpoints / trial).mkdir(parents=True)
        (checkpoints / trial / "000003.safetensors").write_bytes(bytes(10_000))
    (made.run / "ray" / "search" / "trial").mkdir(parents=True)
    (made.run / "optuna.journal").write_text("a view")
    kept = {p: p.read_bytes() for p in (made.run / "models").iterdir()}
    before = made.compare()
    would = clean(made.run, dry_run=True)
    assert {p.name for p in checkpoints.iterdir()} == {*ended, "kd-4"}
    assert clean(made.run) == would
    assert sum(part.size for part in would) >= 10_000 * (len(ended) + finished)
    assert [p.name for p in checkpoints.glob("*")] == ([] if finished else ["kd-4"])
    assert not (made.run / "ray" / "search").exists()
    assert not (made.run / "optuna.journal").exists()
    assert {p: p.read_bytes() for p in (made.run / "models").iterdir()} == kept
    assert made.compare() == before
    assert clean(made.run) == []
    assert made.resume()["complete"]


# On real Ray, by the command line.

SLOW = """
HERE = Path({folder!r})

def train(config, context):
    for result in mlp.train(config, context):
        if config.audit_at and (HERE / "slow").exists():  # only trials of the search are audited
            time.sleep(0.3)
        yield result
"""
NEW = 8  # seeds added, as many as there were
PATIENCE_S = 480  # with a machine that has other work; what is waited for takes seconds
ARMS = (BASELINE, A_A_CONTROL, "kd")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One small finished sweep; its search takes its time while there is a file `slow` beside the run folder."""
    folder = tmp_path_factory.mktemp("extend")
    trainable = write_trainable(folder, SLOW.format(folder=str(folder)))
    study = {key: value for key, value in TINY.items() if key != "name"} | {"trainable": trainable}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    done = distune_run(
        "sweep", folder / "study.yaml", "--arms", "hard_labels,kd", "--out", folder / "run", timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def on_ray(*arguments):
    """What the comparison says once this has been done, and what was printed, with single spaces."""
    done = distune_run(*arguments, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return distune.open_run(arguments[1]).compare(), " ".join(done.stdout.split())


def in_process(monkeypatch, capsys, *arguments):
    """(exit status, stdout, stderr) of the same command line, for what needs no Ray and so no process of its own."""
    monkeypatch.setattr(sys, "argv", ["distune", *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        distune.main()
    return left.value.code, *capsys.readouterr()


def kill_when(reached, run, *arguments):
    """Begin a command and SIGKILL its process group once `reached(ledger)`."""
    with subprocess.Popen(
        command(*arguments), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    ) as process:
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not (run / "ledger.sqlite").exists() or not _reached(reached, run):
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline, "the sweep did not come so far"
                time.sleep(0.2)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=120)


def _reached(reached, run):
    with Ledger.open(run) as ledger:
        return reached(ledger)


def counts(run):
    """Seeds in the ledger by (purpose, arm)."""
    found = {}
    with Ledger.open(run) as ledger:
        for r in ledger.runs():
            found[r.purpose, r.arm] = found.get((r.purpose, r.arm), 0) + 1
    return found


def more_runs(before, after):
    """Seeds that have been added by (purpose, arm), and that every row there was is still there as it was."""
    assert lost(tables_of(before), tables_of(after)).words == []
    then = counts(before)
    return {key: n - then.get(key, 0) for key, n in counts(after).items() if n != then.get(key, 0)}


def assert_whole(result, run):
    """The arms have the budget, the trials have ended, once, and no epoch was paid for twice."""
    assert result["complete"]
    with Ledger.open(run) as ledger:
        trials, ends, epochs, study = ledger.trials(), ledger.ends(), ledger.epochs(), load_study(run / "study.yaml")
    assert result["fair_budget"]["limit"] == result["fair_budget"]["per_arm"] == study.budget.search_seed_epochs
    assert set(ends) == {t.trial for t in trials}
    for trial in trials:
        reported = [e.epoch for e in epochs if e.trial == trial.trial]
        assert reported == list(range(1, len(reported) + 1)), trial


def test_more_seeds_train_only_the_new_ones_and_look_a_second_time(finished, copied):
    result, shown = on_ray("extend", copied, "--confirm-seeds", f"+{NEW}")
    both_fits = {("tuned", name): 2 * NEW for name in ARMS}
    given = {("as_published", name): NEW for name in (BASELINE, "kd")}
    assert more_runs(finished, copied) == both_fits | given
    before, after = tables_of(finished), tables_of(copied)
    for table in ("trials", "attempts", "epochs", "ends", "teachers", "teacher_predictions"):
        assert after[table] == before[table]
    assert_whole(result, copied)
    assert {a["tuned"]["n"] for a in result["arms"]} == {8 + NEW}
    assert {a["as_published"]["n"] for a in result["arms"] if a["as_published"]} == {8 + NEW}
    assert looks_of(copied) == [8, 16]
    assert result["alpha"] == level_at_last_look([8, 16])
    assert len(looks_noted(result)) == 1
    assert "note: This is look 2 at the test split (8, then 16 confirmation seeds)" in shown
    assert f"{100 * result['alpha']:.2f} % in place of 5 %" in shown


def test_more_budget_asks_new_trials_and_confirms_under_fresh_seeds(finished, copied):
    before = distune.open_run(finished).compare()
    result, _ = on_ray("extend", copied, "--seed-epochs", "+240")
    added = more_runs(finished, copied)
    assert {a: added.pop(("tuned", a)) for a in ARMS} == dict.fromkeys(ARMS, 16)
    assert {purpose for purpose, _ in added} <= {"reevaluation"}  # no published configuration once more
    new = {table: tables_of(copied)[table] - tables_of(finished)[table] for table in ("trials", "attempts")}
    asked, started = sorted(row[0] for row in new["trials"]), sorted(row[1] for row in new["attempts"])
    assert started == asked  # each once, and none of those before
    assert {name.rpartition("-")[0] for name in asked} == set(ARMS)
    assert_whole(result, copied)
    for name in ARMS:
        assert arm(result, name)["tuned"]["n"] == 8
        assert arm(result, name)["as_published"] == arm(before, name)["as_published"]
        own = replicates_of(copied, "tuned", name).items()
        first = ROUND_1 + 500_000 * (name == A_A_CONTROL)
        of_round = sorted(r for _, replicates in own for r in replicates if r >= first)
        assert of_round == [first + 1000 * g + r for g in range(2) for r in range(4)]
    assert looks_of(copied) == [8, 16]
    assert distune.open_run(copied).student("kd") is not None


def test_an_added_arm_gets_the_whole_budget_and_the_others_not_one_trial(finished, copied):
    before = distune.open_run(finished).compare()
    result, _ = on_ray("extend", copied, "--arms", "label_smoothing")
    added = more_runs(finished, copied)
    assert added.pop(("tuned", "label_smoothing")) == 16
    assert set(added) == {("reevaluation", "label_smoothing")}
    for table in ("trials", "attempts", "ends"):
        new = tables_of(copied)[table] - tables_of(finished)[table]
        named = {row[1] if table == "attempts" else row[0] for row in new}
        assert {name.rpartition("-")[0] for name in named} == {"label_smoothing"}
    assert_whole(result, copied)
    for name in ARMS:
        assert arm(result, name)["tuned"] == arm(before, name)["tuned"]
    for fit in ("train", "train+validation"):
        own = [
            sorted((g, replicates) for (g, _), replicates in replicates_of(copied, "tuned", name, fit).items())
            for name in (BASELINE, "label_smoothing", "kd")
        ]
        assert own[0] == own[1] == own[2]
    assert [c["contrast"] for c in result["contrasts"]] == ["kd - hard_labels", "kd - label_smoothing"]
    assert all(c["mean"] is not None for c in result["contrasts"])
    assert looks_of(copied) == [8, 8]
    assert (result["alpha"], looks_noted(result)) == (0.05, [])


@pytest.mark.slow
def test_an_extension_that_was_killed_can_be_cleaned_and_resumed_to_its_end(finished, copied, monkeypatch, capsys):
    with Ledger.open(copied) as ledger:
        ended = len(ledger.ends())
    slow = finished.parent / "slow"
    slow.touch()
    try:
        added = ("--seed-epochs", "+120", "--confirm-seeds", "+8")
        kill_when(lambda ledger: len(ledger.ends()) >= ended + 2, copied, "extend", copied, *added)
    finally:
        slow.unlink()
    at_kill = distune.open_run(copied).compare()
    assert not at_kill["complete"]
    code, freed, _ = in_process(monkeypatch, capsys, "clean", copied, "--json")
    assert (code, json.loads(freed)["bytes"] > 0) == (0, True)
    assert distune.open_run(copied).compare() == at_kill
    left = shutil.copytree(copied, copied.with_name("left"))
    result, _ = on_ray("resume", copied)
    assert_whole(result, copied)
    assert lost(tables_of(left), tables_of(copied)).words == []
    new = more_runs(finished, copied)
    assert {a: new["tuned", a] for a in ARMS} == dict.fromkeys(ARMS, 32)
    assert {a: new["as_published", a] for a in (BASELINE, "kd")} == {BASELINE: 8, "kd": 8}
    assert {a["tuned"]["n"] for a in result["arms"]} == {16}
    assert looks_of(copied) == [8, 24]


@pytest.mark.slow
def test_an_unfinished_sweep_can_be_extended_and_has_looked_once(copied):
    with sqlite3.connect(copied / "ledger.sqlite") as db:  # as it was while its tenth trial ran
        db.execute("DELETE FROM trials WHERE rowid > 10")
        for table in ("attempts", "epochs", "audits"):
            db.execute(f"DELETE FROM {table} WHERE trial NOT IN (SELECT trial FROM trials)")
        db.execute("DELETE FROM ends WHERE trial NOT IN (SELECT trial FROM trials WHERE rowid < 10)")
        for table in ("runs", "predictions", "looks", "labels", "teacher_predictions"):
            db.execute(f"DELETE FROM {table}")
        db.execute("DELETE FROM clock WHERE phase IN ('re-evaluation', 'confirmation')")
    db.close()
    left = shutil.copytree(copied, copied.with_name("left"))
    result, _ = on_ray("extend", copied, "--confirm-seeds", "16", "--seed-epochs", "+40")
    assert_whole(result, copied)
    assert lost(tables_of(left), tables_of(copied)).words == []
    assert {a["tuned"]["n"] for a in result["arms"]} == {16}
    assert (looks_of(copied), result["alpha"], looks_noted(result)) == ([16], 0.05, [])
    with Ledger.open(copied) as ledger:
        assert ledger.round == 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ((), "give what to add"),
        (("--confirm-seeds", "4"), "4 is not more than the 8 that the sweep has"),
        (("--arms", "label_smoothin"), "unknown arm 'label_smoothin' (did you mean 'label_smoothing'?)"),
        (("--arms", "kd"), "the sweep has the arm 'kd' already"),
        (("--confirm-seeds", "+3"), "confirm_seeds=11 must be a multiple of subsearches=2"),
        (("--arms", "label_smoothing", "--from", "nowhere"), "--from with a built-in study"),
        (("--seed-epochs", "more"), "such as 60 or an addition such as +40, got 'more'"),
    ],
)
def test_bad_input_is_one_line_exit_2_and_nothing_changed(finished, monkeypatch, capsys, more, says):
    tables, study = tables_of(finished), (finished / "study.yaml").read_bytes()
    code, printed, errors = in_process(monkeypatch, capsys, "extend", finished, *more)
    assert (code, printed, len(errors.splitlines())) == (2, "", 1), errors
    assert errors.startswith("distune: ")
    assert says in errors
    assert tables_of(finished) == tables
    assert (finished / "study.yaml").read_bytes() == study


def test_cleaning_a_finished_run_frees_space_and_loses_nothing(copied, monkeypatch, capsys):
    before, files = distune.open_run(copied).compare(), sorted(copied.rglob("*"))
    code, dry, _ = in_process(monkeypatch, capsys, "clean", copied, "--dry-run", "--json")
    said = json.loads(dry)
    assert (code, said["run"], said["dry_run"]) == (0, str(copied), True)
    assert said["bytes"] == sum(said["parts"].values()) > 0
    assert sorted(copied.rglob("*")) == files
    code, freed, _ = in_process(monkeypatch, capsys, "clean", copied)
    assert code == 0
    assert f"freed in {copied}" in " ".join(freed.split())
    assert {p.name for p in (copied / "ray").iterdir()} == set()
    assert distune.open_run(copied).compare() == before
    assert distune.open_run(copied).student("kd") is not None
    code, _, errors = in_process(monkeypatch, capsys, "resume", copied)
    assert (code, "nothing to resume" in errors) == (0, True)
    code, again, _ = in_process(monkeypatch, capsys, "clean", copied, "--json")
    assert (code, json.loads(again)["bytes"], json.loads(again)["parts"]) == (0, 0, {})


def test_a_folder_that_is_no_run_is_not_cleaned(tmp_path, monkeypatch, capsys):
    (tmp_path / "ray").mkdir()
    code, printed, errors = in_process(monkeypatch, capsys, "clean", tmp_path)
    assert (code, printed, len(errors.splitlines())) == (2, "", 1)
    assert [p.name for p in tmp_path.iterdir()] == ["ray"]
