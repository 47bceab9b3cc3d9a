"""What a sweep is may change only where somebody says so, and what changed is said."""

import dataclasses
import sqlite3

import pytest

from search import revisions, seeds
from search.ledger import FILE, Ledger, NotALedger, Revision
from search.lock import driving
from spaces import A_A_CONTROL, BASELINE, BadInput, Extension, adjust, extended, load_study, to_yaml
from tests.made_ledgers import new_run, small_study

STUDY = small_study(("kd",))


@pytest.fixture
def begun(tmp_path):
    """(run folder, ledger) of a sweep that has just begun."""
    with new_run(tmp_path / "run", STUDY) as ledger:
        revisions.begin(ledger, STUDY)
        yield tmp_path / "run", ledger


def test_a_sweep_whose_code_and_study_are_as_they_were_goes_on(begun):
    run, ledger = begun
    assert revisions.current(ledger, run, force=False) == STUDY
    assert [r.why for r in ledger.revisions()] == ["begun"]


def test_the_trainables_and_what_they_stand_on_are_fingerprinted():
    code = revisions.code_of(STUDY)
    assert {"trainables/losses.py", "trainables/models/mlp.py", "torch", "python"} <= set(code)
    assert code == revisions.code_of(STUDY)


def test_a_users_trainable_that_changed_is_said_and_refused(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("def train(config, context): ...\n")
    study = dataclasses.replace(STUDY, trainable=f"{mine}:train")
    run = tmp_path / "run"
    with new_run(run, study) as ledger:
        revisions.begin(ledger, study)
        mine.write_text("def train(config, context): return []\n")
        with pytest.raises(BadInput, match=r"the study's trainable \(\w+ -> \w+\).*--force"):
            revisions.current(ledger, run, force=False)
        assert len(ledger.revisions()) == 1
        revisions.current(ledger, run, force=True)
        assert "the study's trainable" in ledger.notes()[0]
        revisions.current(ledger, run, force=False)  # it was accepted once and is known from then on
        assert len(ledger.revisions()) == 2


def test_another_version_of_a_package_is_said_with_both_versions(begun):
    run, ledger = begun
    first = ledger.revisions()[0]
    ledger.revise(Revision(first.study, {**first.code, "torch": "1.0", "old/file.py": "abc"}, "begun", 0))
    with pytest.raises(BadInput, match=r"torch \(1\.0 -> .*old/file\.py \(abc -> nothing\)"):
        revisions.current(ledger, run, force=False)


def test_an_edited_study_is_refused_with_the_key_that_was_edited(begun):
    run, ledger = begun
    path = run / "study.yaml"
    path.write_text(path.read_text().replace("confirm_seeds: 16", "confirm_seeds: 32", 1))
    with pytest.raises(BadInput, match=r"budget\.confirm_seeds \(16 -> 32\).*distune extend"):
        revisions.current(ledger, run, force=False)
    assert revisions.current(ledger, run, force=True) == STUDY
    assert path.read_text() == to_yaml(STUDY)


def test_a_trainable_that_was_moved_with_its_content_goes_on(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("def train(config, context): ...\n")
    study, run = dataclasses.replace(STUDY, trainable=f"{mine}:train"), tmp_path / "run"
    with new_run(run, study) as ledger:
        revisions.begin(ledger, study)
        moved = mine.rename(tmp_path / "elsewhere.py")
        path = run / "study.yaml"
        path.write_text(path.read_text().replace(str(mine), str(moved)))
        assert revisions.current(ledger, run, force=False).trainable == f"{moved}:train"


@pytest.mark.parametrize("left", ["before", "nothing"])
def test_an_extension_that_was_interrupted_before_study_yaml_is_carried_on(begun, left):
    run, ledger = begun
    study, why = extended(STUDY, Extension(confirm_seeds="+16"))
    ledger.revise(Revision(to_yaml(study), revisions.code_of(study), why, 0))
    if left == "nothing":
        (run / "study.yaml").unlink()
    assert revisions.current(ledger, run, force=False) == study
    assert (run / "study.yaml").read_text() == to_yaml(study)


def test_a_ledger_of_an_earlier_version_is_taken_over(tmp_path):
    with new_run(tmp_path, STUDY) as ledger:
        assert revisions.current(ledger, tmp_path, force=False) == STUDY
        assert [r.why for r in ledger.revisions()] == ["taken over from an earlier version"]


def test_a_finished_sweep_that_is_extended_is_unfinished(begun):
    _, ledger = begun
    ledger.clock("confirmation", "begin")
    assert not ledger.finished
    ledger.clock("confirmation", "end")
    assert ledger.finished
    ledger.revise(Revision("", {}, "extended", 1))
    assert (ledger.finished, ledger.round) == (False, 1)
    ledger.clock("confirmation", "end")
    assert ledger.finished


# Extensions.


def test_an_addition_and_a_total_mean_what_they_say():
    study, why = extended(STUDY, Extension(confirm_seeds="+16", seed_epochs="100"))
    assert (study.budget.confirm_seeds, study.budget.seed_epochs_per_arm) == (32, 100)
    assert why == "extended by confirm_seeds 16 -> 32, seed_epochs_per_arm 72 -> 100"


def test_an_added_arm_brings_what_the_study_asks_of_it():
    study, _ = extended(STUDY, Extension(arms=("label_smoothing",)))
    assert list(study.arms) == [BASELINE, A_A_CONTROL, "label_smoothing", "kd"]
    assert ("kd", "label_smoothing", "is a teacher needed") in study.contrasts
    assert set(STUDY.contrasts) < set(study.contrasts)
    assert study.budget == STUDY.budget


@pytest.mark.parametrize(
    ("extension", "says"),
    [
        (Extension(), "give what to add"),
        (Extension(confirm_seeds="16"), "is not more than the 16"),
        (Extension(confirm_seeds="8"), "nothing is ever taken away"),
        (Extension(confirm_seeds="-8"), "is not more than"),
        (Extension(confirm_seeds="many"), "such as 60 or an addition such as \\+40"),
        (Extension(confirm_seeds="+2"), "multiple of subsearches"),
        (Extension(seed_epochs="+0"), "is not more than the 72"),
        (Extension(arms=("kd",)), "has the arm 'kd' already"),
        (Extension(arms=("kd_shufled",)), "did you mean 'kd_shuffled'"),
        (Extension(arms=("kd_shuffled",), source="nowhere"), "--from"),
    ],
)
def test_an_extension_that_adds_nothing_or_cannot_be_is_refused(extension, says):
    with pytest.raises(BadInput, match=says):
        extended(STUDY, extension)


def test_an_arm_with_other_ranges_than_the_sweep_has_is_refused():
    narrow = load_study("mlp-ensemble", ["space.learning_rate.high=0.01"])
    with pytest.raises(BadInput, match="a shared hyperparameter has one range"):
        extended(adjust(narrow, arms=("label_smoothing",)), Extension(arms=("kd",)))


def test_rounds_sub_searches_and_uses_share_no_seed():
    study = dataclasses.replace(STUDY, budget=dataclasses.replace(STUDY.budget, reevaluate_share=0.4))
    uses = [
        part
        for arm in (BASELINE, A_A_CONTROL)
        for g in range(study.budget.subsearches)
        for part in (
            seeds.of_search(study, arm, g),
            seeds.of_reevaluation(study, arm, g),
            *(seeds.of_confirmation(study, arm, g, number) for number in range(3)),
        )
    ]
    everything = [replicate for part in uses for replicate in part]
    assert len(set(everything)) == len(everything)
    assert seeds.of_confirmation(study, "kd", 1, 1) == seeds.of_confirmation(study, BASELINE, 1, 1)


# The ledger and its lock.


def test_a_second_driver_is_refused_with_the_first_ones_process(tmp_path):
    refused = pytest.raises(BadInput, match=r"is being worked on by process \d+ on .* since")
    with driving(tmp_path), refused, driving(tmp_path):
        pass
    with driving(tmp_path):
        pass


def test_a_damaged_ledger_is_refused_before_anything_is_built_on_it(begun):
    run, ledger = begun
    for number in range(400):
        ledger.note(f"{number} " * 50)
    ledger.close()
    with sqlite3.connect(run / FILE) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    path = run / FILE
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NotALedger, match=r"damaged|not a ledger"):
        Ledger.open(run, check=True)


def test_a_locked_ledger_says_so(begun, monkeypatch):
    run, ledger = begun
    monkeypatch.setattr("search.ledger.LOCKED_S", 0.1)
    with sqlite3.connect(run / FILE, isolation_level=None) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        ledger.close()
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(NotALedger, match="locked by another program"):
            Ledger.open(run)
    other.close()


def test_time_never_runs_backwards_in_a_ledger(begun, monkeypatch):
    run, ledger = begun
    ledger.clock("search", "begin")
    before = ledger.phases()[-1][2]
    monkeypatch.setattr("time.time", lambda: before - 86_400.0)
    ledger.clock("search", "end")
    with Ledger.open(run) as again:
        again.clock("confirmation", "begin")
        moments = [at for _, _, at in again.phases()]
    assert moments == sorted(moments)
    assert moments[-1] < before + 60
