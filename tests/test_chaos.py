"""A sweep survives SIGKILL at any moment (tests/chaos); and the checks that say so find what they look for."""

import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from search import seeds
from tests.chaos import checks
from tests.chaos.checks import Line, Snapshot
from tests.chaos.kill_and_resume import PHASES, ROOT, plan
from tests.chaos.processes import kill_session, of_session
from tests.made_ledgers import add_trial, asked, new_run, row, small_study

STUDY = small_study()
ARM, TRIAL = "kd", "kd-00000"
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in Linux's /proc")


@needs_proc
def test_a_sweep_that_is_killed_in_search_reevaluation_and_confirmation_ends_as_if_it_had_not_been():
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.kill_and_resume", "--kills", "3", "--json"],
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
        cwd=ROOT,
    )
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    assert result["violations"] == []
    assert done.returncode == 0
    assert result["n"] == 3
    assert result["kills"]["search"] >= 1
    assert result["kills"]["confirmation"] >= 1
    for wrong in ("finished_trials_lost", "repeated", "identity_errors", "zombies", "budget_errors"):
        assert result[wrong] == 0, wrong
    assert result["complete"]
    assert result["test_looks"] == {"test": 1, "population": 1}
    assert result["second_driver_refused"]
    assert result["finished_is_left_alone"]
    assert result["restarted"] + result["continued_from_checkpoint"] > 0, "no kill met a running trial"


@pytest.mark.parametrize("kills", [1, 2, 3, 7, 20])
def test_about_half_of_the_kills_are_meant_for_the_search_and_none_for_a_phase_that_is_over(kills):
    phases = plan(kills, random.Random(kills))
    assert len(phases) == kills
    assert abs(phases.count("search") - kills / 2) <= 1
    assert "confirmation" in phases
    again_and_again = PHASES[:2]
    once = [PHASES.index(p) for p in phases if p not in again_and_again]
    assert once == sorted(once)


@needs_proc
def test_a_process_in_a_group_of_its_own_whose_parent_is_gone_is_killed_with_its_session():
    with subprocess.Popen(
        ["bash", "-c", "set -m; (sleep 600 & sleep 600) & sleep 0.2; exec sleep 600"], start_new_session=True
    ) as process:
        while len(of_session(process.pid)) < 4:
            time.sleep(0.05)
        assert kill_session(process.pid) == []
    assert of_session(process.pid) == []


# What a check must find.


@pytest.fixture
def run(tmp_path):
    """A run folder whose one trial has trained to its last epoch and ended."""
    folder = tmp_path / "run"
    with new_run(folder, STUDY) as ledger:
        add_trial(ledger, TRIAL, ARM, {9: 0.9}, how="finished")
    return folder


def unfinished(folder, to):
    """A snapshot of a ledger in which the trial has come to this epoch, and no further."""
    with new_run(folder, STUDY) as ledger:
        add_trial(ledger, TRIAL, ARM, {to: 0.9})
    return Snapshot.of(folder)


def line(what, epoch, life=2, **changes):
    pack = tuple(seeds.of_search(STUDY, ARM, 0))
    about = {"variant": "kd", "fit": "train", "hp": asked(TRIAL, ARM).config, "replicates": pack, **changes}
    return Line(life=life, pid=1, at=0.0, what=what, epoch=epoch, **about)


FIRST_LIFE = [line("trained", epoch, life=1) for epoch in range(1, 10)]


def test_a_row_that_is_gone_and_one_that_is_changed_are_found():
    before = {"ends": Counter([("kd-00000", "finished"), ("kd-00001", "stopped")])}
    assert checks.lost(before, {"ends": before["ends"] + Counter([("kd-00002", "finished")])}).wrong == 0
    assert checks.lost(before, {"ends": Counter([("kd-00000", "finished"), ("kd-00001", "budget")])}).wrong == 1
    assert checks.lost(before, {}).wrong == 2


def test_a_trial_that_is_trained_after_it_had_ended_is_found(run):
    found = checks.training(STUDY, run, [*FIRST_LIFE, line("began", 0)], [Snapshot.of(run)])
    assert found.repeated.wrong == 1


@pytest.mark.parametrize(("epoch", "restarted", "continued"), [(0, 1, 0), (3, 0, 1)])
def test_an_unfinished_trial_may_begin_again_or_go_on_from_its_checkpoint(tmp_path, run, epoch, restarted, continued):
    lines = [*FIRST_LIFE, line("began", epoch), line("trained", epoch + 1)]
    found = checks.training(STUDY, run, lines, [unfinished(tmp_path / "killed", 3)])
    assert (found.repeated.wrong, found.skipped.wrong, found.strangers.wrong) == (0, 0, 0)
    assert (found.restarted, found.continued) == (restarted, continued)
    assert found.again == STUDY.budget.seeds_per_trial


def test_a_trial_that_goes_on_behind_what_the_ledger_knows_is_found(tmp_path, run):
    found = checks.training(STUDY, run, [*FIRST_LIFE, line("began", 4)], [unfinished(tmp_path / "killed", 3)])
    assert found.skipped.wrong == 1


def test_training_of_nothing_in_the_ledger_and_epochs_that_nobody_trained_are_found(run):
    found = checks.training(STUDY, run, [line("trained", 1, life=1, replicates=(77,))], [])
    assert found.strangers.wrong == 1
    assert found.untrained.wrong == 9


def test_epochs_that_are_left_out_and_a_crash_are_found(tmp_path, run):
    assert (checks.gaps(run).wrong, checks.crashed(run).wrong) == (0, 0)
    with new_run(tmp_path / "killed", STUDY) as ledger:
        ledger.ask(asked(TRIAL, ARM))
        ledger.report(TRIAL, [row(epoch, 0.9) for epoch in (1, 2, 4)])
        ledger.end(TRIAL, "crashed", 4)
    assert (checks.gaps(tmp_path / "killed").wrong, checks.crashed(tmp_path / "killed").wrong) == (1, 1)


def test_a_trial_without_an_end_is_a_zombie(tmp_path, run):
    assert checks.zombies(STUDY, run, 0).wrong == 0
    unfinished(tmp_path / "killed", 3)
    assert checks.zombies(STUDY, tmp_path / "killed", 0).wrong > 0


def test_an_arm_that_spent_too_little_is_a_budget_error(run):
    found = checks.budget_errors(STUDY, run, concurrent=2, seed=0)
    assert found.wrong == len(STUDY.searched)
