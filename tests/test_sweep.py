"""Whole sweeps on real Ray, small enough to take seconds: what a user sees, and what must survive."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import distune
from search.ledger import Ledger
from search.selection import search_spend
from trainables.datasets import load

TINY = {
    "extends": "mlp-ensemble",
    "name": "tiny",
    "data": {"n_samples": 800, "fresh_rows": 500},
    "teacher": {"members": 2, "hidden": [16], "dropout": [0.1], "epochs": 3},
    "student": {"hidden": [8]},
    "confirm_teachers": 2,
    "budget": {
        "seed_epochs_per_arm": 240,
        "seeds_per_trial": 2,
        "confirm_seeds": 8,
        "max_epochs": 6,
        "subsearches": 2,
        "reevaluate_share": 0.2,
    },
}
BASELINE_ONLY = ("--arms", "hard_labels")


def command(*arguments):
    return [sys.executable, "-m", "distune", *map(str, arguments)]


def run(*arguments, timeout=240, cwd=None):
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=timeout, check=False, cwd=cwd)


def write_study(folder, **changes):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return path


def write_trainable(folder, body):
    """A user's trainable that wraps the family's own, as a study file names it."""
    path = folder / "mine.py"
    path.write_text(f"import os, time\nfrom pathlib import Path\nfrom trainables import mlp\n\n{body}")
    return f"{path}:train"


def assert_whole(folder, searched=("hard_labels", "hard_labels_again"), budget=240):
    """Every searched arm spent its budget; every asked trial ended once; no epoch was paid for twice.

    What a table's re-evaluation saves because a seed stops early is not spent on anything else.
    """
    result = distune.open_run(folder).compare()
    study = distune.load_study(folder / "study.yaml")
    assert result["complete"]
    with Ledger.open(folder) as ledger:
        trials, ends, epochs = ledger.trials(), ledger.ends(), ledger.epochs()
        assert set(ends) == {t.trial for t in trials}
        assert len({(e.trial, e.epoch) for e in epochs}) == len(epochs)
        paid = {t.trial: [e.epoch for e in epochs if e.trial == t.trial] for t in trials}
    for name, reported in paid.items():
        assert reported == list(range(1, len(reported) + 1)), name
    spent = search_spend(study, trials, epochs)
    for arm in searched:
        assert spent[arm] >= study.budget.search_seed_epochs
        assert result["budget"][arm]["seed_epochs"] >= budget or study.budget.patience
    return result


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One small sweep of the whole study through the command line."""
    folder = tmp_path_factory.mktemp("finished")
    out = folder / "run"
    done = run("sweep", write_study(folder), "--out", "run", cwd=folder)  # a relative path, as `make sweep` has
    assert done.returncode == 0, done.stderr
    return out, done


def test_nothing_but_distune_speaks_and_it_ends_with_what_to_type_next(finished):
    out, done = finished
    own = ("data and teachers: ", "search: ", "re-evaluation: ", "confirmation: ", "report: ")
    assert [line for line in done.stderr.splitlines() if not line.startswith(own)] == []
    _, _, commands = done.stdout.rpartition("\nnext:\n")
    assert "distune compare run" in commands
    assert f"{out.name}/report.html" in commands


def test_a_sweep_prints_the_table_and_compare_gives_the_contract(finished):
    out, done = finished
    for words in ("hard_labels", "label_smoothing", "kd_shuffled", "(A/A)", "published claim", "compression"):
        assert words in done.stdout
    shown = run("compare", out, "--json")
    assert shown.returncode == 0
    result = json.loads(shown.stdout)
    assert result == json.loads(json.dumps(distune.open_run(out).compare()))
    assert_whole(out, searched=list(result["budget"]))
    assert [a["arm"] for a in result["arms"]] == [
        "hard_labels", "hard_labels_again", "label_smoothing", "kd_shuffled", "kd"
    ]  # fmt: skip
    assert all(a["tuned"]["n"] == 8 for a in result["arms"])
    assert result["teacher"]["student_parameters"] == 20 * 8 + 8 + 8 * 2 + 2
    assert {f.name for f in out.iterdir()} >= {"ledger.sqlite", "study.yaml", "ray", "models"}


def test_the_test_split_is_opened_once_and_only_by_the_confirmation(finished):
    out, _ = finished
    with Ledger.open(out) as ledger:
        looks, phases = ledger.looks(), {(p, e): at for p, e, at in ledger.phases()}
        reevaluated = ledger.runs("reevaluation")
    assert sorted(look["split"] for look in looks) == ["population", "test"]
    assert all(look["at"] >= phases["confirmation", "begin"] >= phases["re-evaluation", "end"] for look in looks)
    assert reevaluated
    assert not any(name.startswith(("test", "population")) for r in reevaluated for name in r.metrics)


def test_search_reevaluation_and_confirmation_share_no_seed(finished):
    out, _ = finished
    with Ledger.open(out) as ledger:
        fresh, confirmed = ledger.runs("reevaluation"), [r for r in ledger.runs() if r.purpose != "reevaluation"]
    assert not {r.replicate for r in fresh} & {r.replicate for r in confirmed}
    by_arm = {
        arm: {(r.subsearch, r.replicate) for r in confirmed if r.arm == arm and r.purpose == "tuned"}
        for arm in ("hard_labels", "hard_labels_again", "kd", "label_smoothing")
    }
    assert by_arm["hard_labels"] == by_arm["kd"] == by_arm["label_smoothing"]
    assert not by_arm["hard_labels"] & by_arm["hard_labels_again"]


def test_the_deployed_student_predicts_what_was_measured(finished):
    out, _ = finished
    opened = distune.open_run(out)
    student = opened.student("kd")
    spec = yaml.safe_load((out / "study.yaml").read_text())["data"]
    rows = load(spec).test
    with torch.no_grad():
        predicted = student(torch.from_numpy(rows.x).float()).argmax(dim=-1).numpy()
    with Ledger.open(out) as ledger:
        trial = opened.compare()["arms"][-1]["tuned"]["trial"]
        own = [r for r in ledger.runs("tuned") if r.trial == trial and r.fit == "train+validation"]
        stored = ledger.predictions(own, "test")
    assert any(np.array_equal(predicted, s) for s in stored)


def test_tables_of_a_run_hold_every_trial_epoch_and_seed(finished):
    opened = distune.open_run(finished[0])
    trials, epochs, confirmed = opened.trials(), opened.epochs(), opened.confirmed()
    assert set(epochs["trial"]) == set(trials["trial"])
    assert {"config.learning_rate", "config.temperature"} <= set(trials.columns)
    assert confirmed.loc[confirmed["purpose"] == "tuned", "test_accuracy"].between(0, 1).all()


def test_resuming_a_finished_sweep_changes_nothing(finished):
    out, _ = finished
    before = (out / "ledger.sqlite").stat().st_size, distune.open_run(out).compare()
    again = run("resume", out)
    assert again.returncode == 0
    assert "nothing to resume" in again.stderr
    assert ((out / "ledger.sqlite").stat().st_size, distune.open_run(out).compare()) == before


def test_a_resolved_study_can_be_swept_again(finished):
    out, _ = finished
    planned = run("sweep", out / "study.yaml", "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["seed_epochs_per_arm"] == 240


SLOW_TO_LEAVE = """
def train(config, context):
    try:
        yield from mlp.train(config, context)
    except GeneratorExit:
        time.sleep(3)
        raise
"""

SWALLOWS = """
def train(config, context):
    results = mlp.train(config, context)
    while True:
        try:
            for result in results:
                yield result
            return
        except BaseException:
            continue
"""


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(SLOW_TO_LEAVE, id="takes 3 s to leave", marks=pytest.mark.slow),
        pytest.param(SWALLOWS, id="swallows the exit"),
    ],
)
def test_a_trainable_that_will_not_leave_finishes_its_sweep(tmp_path, body):
    budget = {**TINY["budget"], "seed_epochs_per_arm": 80, "reevaluate_share": 0.0}
    study = write_study(tmp_path, trainable=write_trainable(tmp_path, body), budget=budget)
    done = run("sweep", study, *BASELINE_ONLY, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    result = assert_whole(tmp_path / "run", budget=80)
    ended = result["budget"]["hard_labels"]["ended"]
    assert ended.get("stopped", 0) + ended.get("budget", 0) > 0, "no trial was stopped, so nothing was tested"
    assert "crashed" not in ended


def test_a_diverging_trial_is_recorded_and_never_wins(tmp_path):
    study = write_study(tmp_path, space={"learning_rate": {"low": 1e-3, "high": 9.0}})
    out = tmp_path / "run"
    body = """
from dataclasses import replace

def train(config, context):
    for result in mlp.train(config, context):
        lost = config.hp["learning_rate"] > 0.05 and result.epoch == 2
        yield replace(result, diverged=True, metrics={}) if lost else result
        if lost:
            return
"""
    trainable = write_trainable(tmp_path, body)
    done = run("sweep", study, *BASELINE_ONLY, "--out", out, "--set", f"trainable={trainable}")
    assert done.returncode == 0, done.stderr
    result = assert_whole(out)
    assert result["budget"]["hard_labels"]["ended"]["diverged"] > 0
    with Ledger.open(out) as ledger:
        diverged = {name for name, end in ledger.ends().items() if end.how == "diverged"}
    chosen = {w["trial"] for arm in result["arms"] for w in arm["tuned"]["winners"]}
    assert chosen
    assert not chosen & diverged


def test_a_worker_that_dies_is_replaced_and_its_trial_tried_again(tmp_path):
    body = f"""
def train(config, context):
    for result in mlp.train(config, context):
        yield result
        marker = Path({str(tmp_path)!r}) / "died"
        if result.epoch == 4 and not marker.exists():
            marker.touch()
            os._exit(1)
"""
    study = write_study(tmp_path, trainable=write_trainable(tmp_path, body))
    done = run("sweep", study, *BASELINE_ONLY, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died").exists()
    result = assert_whole(tmp_path / "run")
    assert "crashed" not in result["budget"]["hard_labels"]["ended"]


def test_a_trainable_that_always_raises_fails_the_sweep_with_its_reason(tmp_path):
    body = """
def train(config, context):
    if context.validation is not None and config.epochs == 6 and len(config.replicates) == 2:
        raise RuntimeError("the moon is in the wrong phase")
    yield from mlp.train(config, context)
"""
    study = write_study(tmp_path, trainable=write_trainable(tmp_path, body))
    done = run("sweep", study, *BASELINE_ONLY, "--out", tmp_path / "run")
    assert done.returncode == 1
    assert "the moon is in the wrong phase" in done.stderr
    assert f"resume with: distune resume {tmp_path / 'run'}" in done.stderr


SLOW_EPOCHS = """
def train(config, context):
    for result in mlp.train(config, context):
        time.sleep(0.05)
        yield result
"""


def test_a_sweep_that_is_stopped_resumes_and_finishes(tmp_path):
    study = write_study(tmp_path, trainable=write_trainable(tmp_path, SLOW_EPOCHS))
    out = tmp_path / "run"
    with subprocess.Popen(
        command("sweep", study, *BASELINE_ONLY, "--out", out),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as sweep:
        wait_for_trials(out, sweep)
        sweep.send_signal(signal.SIGINT)  # SIGKILL: tests/chaos
        _, errors = sweep.communicate(timeout=120)
    with Ledger.open(out) as ledger:
        ended_before, looks = ledger.ends(), ledger.looks()
    assert looks == []
    partial = distune.open_run(out).compare()
    assert not partial["complete"]
    assert any("not complete" in note for note in partial["notes"])
    assert sweep.returncode == 130
    assert f"resume with: distune resume {out}" in errors
    resumed = run("resume", out)
    assert resumed.returncode == 0, resumed.stderr
    assert_whole(out)
    with Ledger.open(out) as ledger:
        after = ledger.ends()
    assert {name: after[name] for name in ended_before} == ended_before


def wait_for_trials(out: Path, process, trials=3, seconds=120):
    """Until the ledger holds some ended trials and a running one."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        if (out / "ledger.sqlite").exists():
            with Ledger.open(out) as ledger:
                if len(ledger.ends()) >= trials:
                    return
        time.sleep(0.2)
    raise AssertionError("the sweep did not come so far")
