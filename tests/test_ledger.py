"""search/ledger.py: what is written comes back, a repeat is harmless, and a kill leaves only whole reports."""

import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search.ledger import ENSEMBLE, FILE, FORMAT, EndRecord, EpochRecord, Ledger, NotALedger, TrialRecord
from tests.made_ledgers import row

ROOT = Path(__file__).parents[1]


@pytest.fixture
def ledger(tmp_path):
    with Ledger.create(tmp_path, {"study": "s", "seed": 3}) as ledger:
        yield ledger


def reopened(ledger):
    return Ledger.open(ledger.path.parent)


# Rows come back as they were written.


def test_a_trial_comes_back_as_it_was_asked(ledger):
    record = TrialRecord("kd-00000", "kd", 2, "tpe", {"learning_rate": 0.1 + 0.2, "batch_size": 64}, 12.5)
    ledger.ask(record)
    assert reopened(ledger).trials() == [record]


def test_an_identity_is_given_once(ledger):
    record = TrialRecord("kd-00000", "kd", 0, "tpe", {}, 0.0)
    ledger.ask(record)
    with pytest.raises(sqlite3.IntegrityError):
        ledger.ask(record)


def test_an_epoch_comes_back_as_it_was_reported(ledger):
    metrics = {"val_accuracy": [0.1, None], "loss_ce": [1.5, 1e-300]}
    given = {"epoch": 4, "seeds": 2, "seconds": 0.25, "score": 0.1 + 0.2, "se": 1e-9, "nll": 0.5, "metrics": metrics}
    ledger.report("t", [given])
    assert reopened(ledger).epochs() == [EpochRecord(1, "t", 4, 2, 0.25, 0.1 + 0.2, 1e-9, 0.5, metrics)]


@pytest.mark.parametrize("missing", [math.nan, None])
def test_a_score_that_is_no_number_comes_back_as_nan(ledger, missing):
    ledger.report("t", [row(1, missing, se=missing)])
    (epoch,) = reopened(ledger).epochs()
    assert math.isnan(epoch.score)
    assert math.isnan(epoch.se)


def test_an_audit_comes_back_term_by_term(ledger):
    kl = {"epoch": 0, "term": "kl", "weight": 0.7, "norm": 2.0, "share": 0.4, "cosine": None}
    audits = [kl, kl | {"term": "ce"}, kl | {"epoch": 1}]
    ledger.report("t", [row(1) | {"audits": audits}])
    assert reopened(ledger).audits() == [{"trial": "t", **audit} for audit in audits]


def test_a_confirmed_seed_comes_back_with_its_predictions(ledger):
    classes = np.random.default_rng(0).integers(0, 10, (2, 50)).astype(np.uint8)
    for replicate in (0, 1):
        ledger.finish_run(
            "tuned",
            "kd",
            1,
            "train",
            replicate,
            trial="kd-00003",
            config={"lr": 0.1},
            epochs=9,
            seconds=0.5,
            metrics={"test_accuracy": 0.75},
            predictions={"test": classes[replicate]},
        )
    runs = reopened(ledger).runs("tuned")
    assert [(r.arm, r.subsearch, r.replicate, r.trial, r.config, r.metrics) for r in runs] == [
        ("kd", 1, replicate, "kd-00003", {"lr": 0.1}, {"test_accuracy": 0.75}) for replicate in (0, 1)
    ]
    np.testing.assert_array_equal(reopened(ledger).predictions(runs[::-1], "test"), classes[::-1])
    assert reopened(ledger).runs("as_published") == []


SMALL_CLASSES = np.array([0, 1, 255, 7], dtype=np.uint8)
MANY_CLASSES = np.array([0, 256, 999, 65_535], dtype=np.int64)
ONE_TOO_MANY = np.array([0, 256, 1, 255], dtype=np.int64)
LOGITS = np.array([0.1, -3.4e38, np.finfo(np.float32).tiny, 0.0], dtype=np.float32)
KINDS_OF_PREDICTIONS = {"small": SMALL_CLASSES, "one too many": ONE_TOO_MANY, "many": MANY_CLASSES, "logits": LOGITS}


def same(found, values):
    """Whether these are the very predictions: classes may be kept in fewer bits, logits are kept bit by bit."""
    if values.dtype.kind == "f":
        return found.dtype == np.float32 and found.tobytes() == values.tobytes()
    return found.dtype.kind == "u" and np.array_equal(found, values)


def finish(ledger, replicate, predictions):
    ledger.finish_run(
        *("tuned", "kd", 0, "train", replicate),
        trial="t",
        config={},
        epochs=1,
        seconds=0.0,
        metrics={},
        predictions=predictions,
    )


def test_classes_of_8_and_16_bits_and_logits_come_back_exactly_beside_each_other(ledger):
    finish(ledger, 0, KINDS_OF_PREDICTIONS)
    finish(ledger, 1, {name: values[::-1] for name, values in KINDS_OF_PREDICTIONS.items()})
    again = reopened(ledger)
    for split, values in KINDS_OF_PREDICTIONS.items():
        first, second = again.predictions(again.runs(), split)
        assert same(first, values)
        assert same(second, values[::-1])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.floats(width=32), max_size=40))
def test_logits_come_back_bit_by_bit_whatever_they_are(ledger, rows):
    values, replicate = np.array(rows, dtype=np.float32), len(ledger.runs())
    finish(ledger, replicate, {"test": values})
    (found,) = ledger.predictions([r for r in ledger.runs() if r.replicate == replicate], "test")
    assert found.tobytes() == values.tobytes()


def test_logits_of_more_digits_are_kept_as_float32(ledger):
    finish(ledger, 0, {"test": np.array([0.1, 1 / 3])})
    assert ledger.predictions(ledger.runs(), "test")[0].tolist() == np.float32([0.1, 1 / 3]).tolist()


def test_what_teachers_say_comes_back_exactly_whatever_it_is(ledger):
    for member, values in enumerate(KINDS_OF_PREDICTIONS.values()):
        ledger.teacher_predicts("train", 0, {(member, "test"): values})
    found = reopened(ledger).teacher_predictions("train", "test")
    assert all(same(found[0, member], values) for member, values in enumerate(KINDS_OF_PREDICTIONS.values()))


def test_a_repeated_seed_changes_nothing(ledger):
    for accuracy, classes in ((0.75, [1, 0]), (0.25, [0, 0])):
        ledger.finish_run(
            "tuned",
            "kd",
            0,
            "train",
            7,
            trial="t",
            config={},
            epochs=1,
            seconds=0.0,
            metrics={"test_accuracy": accuracy},
            predictions={"test": np.array(classes, dtype=np.uint8)},
        )
    (run,) = ledger.runs()
    assert run.metrics == {"test_accuracy": 0.75}
    assert ledger.predictions([run], "test").tolist() == [[1, 0]]


def test_every_look_at_a_split_is_kept_with_its_labels(ledger):
    labels = np.array([0, 1, 1], dtype=np.uint8)
    assert ledger.labels("test") is None
    ledger.look("test", labels, "confirmation")
    ledger.look("test", labels, "again")
    assert [(look["split"], look["rows"], look["purpose"]) for look in ledger.looks()] == [
        ("test", 3, "confirmation"),
        ("test", 3, "again"),
    ]
    np.testing.assert_array_equal(reopened(ledger).labels("test"), labels)


def test_parts_of_a_split_come_back_in_their_order_and_under_their_split(ledger):
    masks = {"region=south": np.array([True, False, True]), "all": np.ones(3, bool), "none": np.zeros(3, bool)}
    labels = np.array([0, 1, 1], dtype=np.uint8)
    assert ledger.segments("test") == {}
    ledger.look("test", labels, "confirmation", masks)
    ledger.look("test", labels, "again", {"all": np.zeros(3, bool)})  # what was opened first stays
    ledger.look("population", labels, "confirmation")
    found = reopened(ledger).segments("test")
    assert list(found) == list(masks)
    for name, mask in masks.items():
        assert found[name].dtype == bool
        assert found[name].tolist() == mask.tolist()
    assert reopened(ledger).segments("population") == {}


def test_facts_of_teachers_come_back_by_set_and_member_and_stay_as_they_were_first_told(ledger):
    facts = {ENSEMBLE: {"name": "plain average", "test_auc": 0.1 + 0.2}, 0: {"name": "xgboost", "bytes": 12}}
    said = {(member, "test"): LOGITS for member in facts}
    ledger.teacher_predicts("train", 1, said, facts)
    ledger.teacher_predicts("train", 1, said, {0: {"name": "another"}})
    ledger.teacher_predicts("train", 0, said)  # a teacher of which nothing else is known
    again = reopened(ledger)
    assert again.teacher_facts("train") == {(1, member): about for member, about in facts.items()}
    assert again.teacher_facts("train+validation") == {}
    assert set(again.teacher_predictions("train", "test")) == {(k, m) for k in (0, 1) for m in facts}


def test_facts_that_cannot_be_kept_leave_no_predictions_behind(ledger):
    with pytest.raises(TypeError):
        ledger.teacher_predicts("train", 0, {(0, "test"): LOGITS}, {0: {"name": object()}})
    assert ledger.teacher_predictions("train", "test") == {}


def test_teachers_come_back_with_what_they_predicted(ledger):
    ledger.teacher("train", 1, "abc", 2.5, 99)
    for member in (0, ENSEMBLE):
        ledger.teacher_predicts("train", 1, {(member, "test"): np.array([member % 2, 1], dtype=np.uint8)})
    assert reopened(ledger).teachers() == [
        {"fit": "train", "teacher_set": 1, "artefact": "abc", "seconds": 2.5, "parameters": 99}
    ]
    assert {k: v.tolist() for k, v in reopened(ledger).teacher_predictions("train", "test").items()} == {
        (1, 0): [0, 1],
        (1, ENSEMBLE): [1, 1],
    }


def test_the_meta_values_come_back(ledger):
    meta = reopened(ledger).meta
    assert (meta["study"], meta["seed"], meta["format"]) == ("s", 3, FORMAT)


# A repeat is harmless.


def test_a_repeated_report_overwrites_nothing_and_costs_nothing(ledger):
    assert ledger.report("t", [row(1, 0.5, seeds=8), row(2, 0.6, seeds=8)]) == 16
    before = ledger.epochs()
    assert ledger.report("t", [row(1, 0.9, seeds=8), row(2, 0.9, seeds=8)]) == 0
    assert ledger.epochs() == before


def test_the_same_epoch_of_another_trial_is_no_repeat(ledger):
    assert ledger.report("t", [row(1)]) == ledger.report("u", [row(1)]) == 2


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(reports=st.lists(st.tuples(st.sampled_from("tu"), st.lists(st.integers(1, 9), max_size=5)), max_size=6))
def test_only_new_epochs_cost_and_they_keep_the_order_of_their_reports(ledger, reports):
    before = len(ledger.epochs())
    seen = []
    for trial, epochs in reports:
        trial += f"-{before}"  # each example meets its own trials
        new = [(trial, e) for e in dict.fromkeys(epochs) if (trial, e) not in seen]
        assert ledger.report(trial, [row(e, seeds=3) for e in epochs]) == 3 * len(new)
        seen += new
    assert [(r.trial, r.epoch) for r in ledger.epochs()[before:]] == seen


def test_a_trial_ends_once(ledger):
    assert ledger.end("t", "stopped", 6, "first") is True
    assert ledger.end("t", "finished", 50, "second") is False
    assert ledger.ends() == {"t": EndRecord("t", "stopped", 6, "first", ledger.ends()["t"].at)}


# What is no ledger says so.


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (lambda run: None, "does not exist"),
        (lambda run: run.mkdir(), "has no ledger.sqlite"),
        (lambda run: (run.mkdir(), (run / FILE).write_text("not SQLite " * 100)), "is not a ledger of distune"),
        (lambda run: (run.mkdir(), sqlite3.connect(run / FILE).close()), "is not a ledger of distune"),
    ],
    ids=["nothing", "empty folder", "text", "empty database"],
)
def test_what_is_no_ledger_is_named_and_refused(tmp_path, there, said):
    there(tmp_path / "run")
    with pytest.raises(NotALedger, match=said) as error:
        Ledger.open(tmp_path / "run")
    assert str(tmp_path / "run") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_ledger_says_where_to_look(tmp_path):
    with pytest.raises(NotALedger, match="`distune runs` lists run folders"):
        Ledger.open(tmp_path)


def test_a_ledger_of_a_newer_format_is_refused(ledger):
    with sqlite3.connect(ledger.path) as db:
        db.execute("UPDATE meta SET value = ? WHERE key = 'format'", (str(FORMAT + 1),))
    with pytest.raises(NotALedger, match=rf"newer distune \(format {FORMAT + 1}, this one reads up to {FORMAT}\)"):
        reopened(ledger)


def test_a_ledger_of_an_earlier_version_opens_and_takes_what_is_new(ledger):
    ledger.look("test", SMALL_CLASSES, "confirmation")
    finish(ledger, 0, {"test": SMALL_CLASSES})
    ledger.close()
    with sqlite3.connect(ledger.path) as db:
        for table in ("segments", "teacher_facts", "notes"):
            db.execute(f"DROP TABLE {table}")
    with reopened(ledger) as older:
        assert (older.segments("test"), older.teacher_facts("train"), older.notes()) == ({}, {}, [])
        assert same(older.predictions(older.runs(), "test")[0], SMALL_CLASSES)
        older.look("test", SMALL_CLASSES, "again", {"all": np.ones(4, bool)})
        older.teacher_predicts("train", 0, {(0, "test"): LOGITS}, {0: {"name": "xgboost"}})
        assert list(older.segments("test")) == ["all"]
        assert older.teacher_facts("train") == {(0, 0): {"name": "xgboost"}}


def test_a_ledger_is_never_written_over(ledger):
    with pytest.raises(FileExistsError, match=FILE):
        Ledger.create(ledger.path.parent, {})


# A kill leaves whole reports.

ROWS = 40
WRITER = f"""
import sys
from pathlib import Path
from search.ledger import Ledger
from tests.made_ledgers import row
with Ledger.open(Path(sys.argv[1])) as ledger:
    for report in range(int(sys.argv[2]), 10**9):
        audit = {{"term": "ce", "weight": 1.0, "norm": 1.0, "share": 1.0, "cosine": 1.0}}
        ledger.report(f"t{{report}}", [row(e, 0.5) | {{"audits": [audit | {{"epoch": e}}]}} for e in range({ROWS})])
        print(report, flush=True)
"""


def test_a_writer_killed_in_the_middle_of_reporting_leaves_only_whole_reports(tmp_path):
    Ledger.create(tmp_path, {}).close()
    delay, reported = random.Random(1), 0
    for _ in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(reported)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(delay.uniform(0.02, 0.06))
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged = [int(line) for line in writer.stdout if line.endswith("\n")]
        assert writer.wait() == -signal.SIGKILL
        with Ledger.open(tmp_path) as ledger:
            epochs, audits = ledger.epochs(), ledger.audits()
        trials = {r.trial for r in epochs}
        assert len(epochs) == len(audits) == ROWS * len(trials)
        assert trials >= {f"t{n}" for n in acknowledged}
        reported = len(trials)


def test_the_ledger_the_selection_and_the_comparison_open_without_ray_and_torch():
    code = (
        "import sys, search.ledger, search.selection, analysis.comparison, analysis.tables\n"
        "print(sorted({'ray', 'torch', 'optuna'} & sys.modules.keys()))"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
