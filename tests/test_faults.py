"""What may happen to a sweep: it says so in one line, loses nothing that is finished, and is resumed to its end.

Real sweeps on real Ray. Their trainable stands still where a test wants it: some trials and some seeds to confirm run
through, the later ones wait at their second epoch until their phase's gate is opened, for hours if nobody opens it.
"""

import contextlib
import errno
import json
import multiprocessing
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from ray import cloudpickle
from ray._private import serialization
from ray.core.generated.common_pb2 import ErrorType
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

import distune
from search import seeds
from search.ledger import FILE, FORMAT, Ledger
from search.options import Options
from search.runner import CHECKPOINTS, HUNG, Checkpoints
from search.scheduler import ArmScheduler
from search.shortage import NodeOutOfMemory, one_killed_for_memory_is_one_lost
from search.state import SearchState
from search.storage import Storage
from spaces import load_study
from tests.chaos.processes import kill_session, of_session
from tests.made_ledgers import new_run, small_study
from tests.test_sweep import BASELINE_ONLY, assert_whole, command, write_study, write_trainable
from tests.test_sweep import run as run_within

PATIENCE_S = 400  # of a test with a machine that has other work; what is waited for takes seconds
FREE = 6  # trials that run through before the first one waits
TRAINABLE = """
import json
from dataclasses import replace

HERE = Path({folder!r})


def number(what):
    \"\"\"How many of these there were before this one.\"\"\"
    found = 0
    while True:
        try:
            (HERE / f"{{what}}-{{found}}").open("x").close()
            return found
        except FileExistsError:
            found += 1


def phase_of(config, context):
    if not config.audit_at:
        return "other" if context.validation is not None else "confirmation"
    return "search" if config.epochs else "other"
"""
WAITS = """
def train(config, context):
    phase = phase_of(config, context)
    waits = phase != "other" and number(phase) >= {"search": FREE, "confirmation": 2}[phase]
    for result in mlp.train(config, context):
        with (HERE / "log").open("a") as log:
            told = [phase, config.hp, config.replicates, context.resume_epoch, result.epoch]
            log.write(json.dumps(told) + "\\n")
        if waits and result.epoch >= 2 and not (HERE / phase).exists():
            (HERE / f"waiting in {phase}").touch()
            while not (HERE / phase).exists():
                time.sleep(0.02)
            waits = "and is the best of all"
        if waits == "and is the best of all":  # so that no rung is its end
            result = replace(result, metrics={**result.metrics, "val_accuracy": [1.0] * len(config.replicates)})
        yield result
""".replace("FREE", str(FREE))


def waiting_study(folder, **changes):
    """The path of a small study in `folder` whose trials wait at the gates `search` and `confirmation`, files there."""
    body = TRAINABLE.format(folder=str(folder)) + WAITS
    return write_study(folder, trainable=write_trainable(folder, body), **changes)


@contextlib.contextmanager
def begun(folder, *arguments):
    """A command of distune that runs beside the test, with what it says so far as `.said()`; nothing of it is left."""
    log = folder / f"stderr-{time.monotonic_ns()}"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command(*arguments), stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        ) as process,
    ):
        process.said = log.read_text
        try:
            yield process
        finally:
            kill_session(process.pid)


def run(*arguments):
    return run_within(*arguments, timeout=PATIENCE_S)


def wait_until(holds, process=None):
    """process: one that must not end in the meantime."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert process is None or process.poll() is None, process.said()
        assert time.monotonic() < deadline, process.said() if process else "it did not come so far"
        time.sleep(0.1)


def wait_for_gate(phase, folder, out, process):
    """Until trials wait at the gate of the phase, and all that went through before them is in the ledger."""
    wait_until((folder / f"waiting in {phase}").exists, process)
    wait_until(lambda: len(ends_of(out)) >= FREE if phase == "search" else confirmed_in(out), process)


def ends_of(out):
    with Ledger.open(out) as ledger:
        return ledger.ends()


def confirmed_in(out):
    """Seeds that have been confirmed, as the ledger has them."""
    with Ledger.open(out) as ledger:
        return [r for r in ledger.runs() if r.purpose != "reevaluation"]


def assert_kept(before, after):
    assert before
    assert [after[name] for name in before] == list(before.values())


def assert_says(stderr, *words):
    """One line for the person who reads it, with all of these words, and nothing that only a programmer reads."""
    said = [line for line in stderr.splitlines() if line.startswith("distune: ")]
    assert len(said) == 1, stderr
    assert "Traceback" not in stderr, stderr
    assert "Error" not in stderr, stderr
    for word in words:
        assert word in said[0], stderr


def assert_resumable(code, stderr, out, status, *words):
    assert code == status, stderr
    assert_says(stderr, *words)
    assert stderr.splitlines()[-1] == f"resume with: distune resume {out}"


@pytest.fixture
def refused(monkeypatch, capsys):
    """Give distune a command that it must refuse; returns the one line that it says."""

    def refuses(*arguments):
        monkeypatch.setattr(sys, "argv", ["distune", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            distune.main()
        said = capsys.readouterr()
        assert left.value.code == 2, said.err
        assert said.out == ""
        assert len(said.err.splitlines()) == 1, said.err
        assert_says(said.err)
        return said.err

    return refuses


# Stopped by SIGTERM while trials train.


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A sweep that SIGTERM stopped while two trials trained, and what the commands of a second person said before."""
    folder = tmp_path_factory.mktemp("interrupted")
    out = folder / "run"
    study = waiting_study(folder)
    with begun(folder, "sweep", study, *BASELINE_ONLY, "--out", out, "--max-concurrent", 2) as sweep:
        wait_for_gate("search", folder, out, sweep)
        second = {
            words[0]: run(*words)
            for words in (("resume", out), ("extend", out, "--confirm-seeds", "+8"), ("clean", out))
        }
        time.sleep(1.5)  # of training that nobody has stored
        sweep.terminate()
        wait_until(lambda: "stopping at the next report" in sweep.said(), sweep)
        (folder / "search").touch()
        sweep.wait(PATIENCE_S)
        said = sweep.said()
        wait_until(lambda: not of_session(sweep.pid))
    (folder / "confirmation").touch()
    kept = out.rename(folder / "kept")  # each test takes a copy, and nothing may want the old place
    return SimpleNamespace(kept=kept, out=out, code=sweep.returncode, said=said, driver=sweep.pid, second=second)


def continued_in(out):
    """{name: (the epoch of its checkpoint, what is told of it in the log)} of unfinished trials that have one."""
    study, found = load_study(out / "study.yaml"), {}
    with Ledger.open(out) as ledger:
        trials, ends = ledger.trials(), ledger.ends()
    for t in trials:
        stored = Checkpoints(Storage(out / "ray"), t.trial).newest()[0]
        if t.trial not in ends and stored:
            found[t.trial] = stored, [t.config, list(seeds.of_search(study, t.arm, t.subsearch))]
    return found


def copy_of(interrupted, folder):
    return Path(shutil.copytree(interrupted.kept, folder / "run"))


def log_of(out):
    """Every epoch that was trained for this run, as [phase, hyperparameters, replicates, resumed after, epoch]."""
    trainable = Path(yaml.safe_load((out / "study.yaml").read_text())["trainable"].rpartition(":")[0])
    return [json.loads(line) for line in (trainable.parent / "log").read_text().splitlines()]


@pytest.mark.parametrize("name", ["resume", "extend", "clean"])
def test_a_run_that_a_process_works_on_is_left_to_it(interrupted, name):
    done = interrupted.second[name]
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert_says(done.stderr, str(interrupted.out), f"process {interrupted.driver} on ", "Ctrl-C")


def test_sigterm_stops_a_sweep_as_ctrl_c_does_and_keeps_what_its_trials_have_trained(interrupted):
    assert_resumable(interrupted.code, interrupted.said, interrupted.out, 130, "stopped")
    out = interrupted.kept
    assert len(ends_of(out)) >= FREE
    continued = continued_in(out)
    assert continued
    with Ledger.open(out) as ledger:
        reached = {row.trial: row.epoch for row in ledger.epochs()}
    assert {name: reached[name] for name in continued} == {name: stored for name, (stored, _) in continued.items()}


def test_a_run_that_was_moved_goes_on_from_its_checkpoints_and_never_from_a_broken_one(interrupted, tmp_path):
    out = copy_of(interrupted, tmp_path)
    ended, continued, trained = ends_of(out), continued_in(out), len(log_of(out))
    for name, (stored, _) in continued.items():
        intact = out / "ray" / CHECKPOINTS / name / f"{stored:06d}.safetensors"
        intact.with_name("000005.safetensors").write_bytes(intact.read_bytes()[:-100])
    resumed = run("resume", out)
    assert resumed.returncode == 0, resumed.stderr
    assert_whole(out)
    assert_kept(ended, ends_of(out))
    assert not interrupted.out.exists()
    for stored, about in continued.values():
        told = [line[3:] for line in log_of(out)[trained:] if line[1:3] == about]
        assert told
        assert told == [[stored, stored + 1 + i] for i in range(len(told))]


@pytest.fixture(scope="module")
def forced(interrupted, tmp_path_factory):
    """The run, resumed with other code on a machine whose clock was set back by a day; what it said without --force."""
    folder = tmp_path_factory.mktemp("forced")
    out = copy_of(interrupted, folder)
    study = out / "study.yaml"
    before = Path(yaml.safe_load(study.read_text())["trainable"].rpartition(":")[0])
    changed = folder / "mine.py"
    changed.write_text(before.read_text() + "\n# another line\n")
    study.write_text(study.read_text().replace(str(before), str(changed)))
    with contextlib.closing(sqlite3.connect(out / FILE)) as db, db:
        for column in ("clock.at", "revisions.at", "looks.at", "ends.ended", "trials.asked", "attempts.started"):
            table, name = column.split(".")
            db.execute(f"UPDATE {table} SET {name} = {name} + 86400")
    ended = ends_of(out)
    refusal = run("resume", out)
    left_alone = ends_of(out) == ended
    resumed = run("resume", out, "--force", "--json")
    return SimpleNamespace(out=out, ended=ended, refusal=refusal, left_alone=left_alone, resumed=resumed)


def test_a_trainable_that_changed_is_refused_and_with_force_the_comparison_says_so(forced):
    changed = r"the study's trainable \(\w+ -> \w+\)"
    assert forced.refusal.returncode == 2
    assert_says(forced.refusal.stderr, str(forced.out), "--force")
    assert re.search(changed, forced.refusal.stderr)
    assert forced.left_alone
    assert forced.resumed.returncode == 0, forced.resumed.stderr
    notes = json.loads(forced.resumed.stdout)["notes"]
    assert any(re.search(f"resumed with other code than it began with: {changed}", note) for note in notes)


def test_a_clock_that_was_set_back_by_a_day_makes_no_phase_end_before_it_began(forced):
    assert forced.resumed.returncode == 0, forced.resumed.stderr
    result = assert_whole(forced.out)
    assert_kept(forced.ended, ends_of(forced.out))
    assert {"search", "re-evaluation", "confirmation"} <= set(result["seconds"])
    assert all(0 <= seconds < 3600 for seconds in result["seconds"].values()), result["seconds"]
    with Ledger.open(forced.out) as ledger:
        moments = [at for _, _, at in ledger.phases()]
    assert moments == sorted(moments)


# Ledgers that cannot be used.


DAMAGED = {
    "empty": lambda whole: b"",
    "cut off behind its header": lambda whole: whole[:100],
    "cut in half": lambda whole: whole[: len(whole) // 2],
    "a little short": lambda whole: whole[:-5000],
    "with a hole": lambda whole: whole[: len(whole) // 2] + bytes(8192) + whole[len(whole) // 2 + 8192 :],
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_ledger_is_refused_by_every_command_and_left_as_it_is(interrupted, tmp_path, refused, damage):
    out = copy_of(interrupted, tmp_path)
    path = out / FILE
    broken = damage(path.read_bytes())
    path.write_bytes(broken)
    for words in (("resume", out), ("compare", out), ("extend", out, "--confirm-seeds", "+8")):
        said = refused(*words)
        assert f"{path} is damaged" in said or f"{path} is not a ledger of distune" in said
    assert path.read_bytes() == broken


def test_a_ledger_of_a_newer_format_is_refused_by_every_command(interrupted, tmp_path, refused):
    out = copy_of(interrupted, tmp_path)
    with contextlib.closing(sqlite3.connect(out / FILE)) as db, db:
        db.execute("UPDATE meta SET value = ? WHERE key = 'format'", (str(FORMAT + 1),))
    for words in (("resume", out), ("compare", out), ("extend", out, "--confirm-seeds", "+8")):
        said = refused(*words)
        assert f"format {FORMAT + 1}, this one reads up to {FORMAT}" in said
        assert "update distune" in said


# A worker that dies in the middle of writing.


TRIAL = "kd-00000"


def checkpoints_in(folder):
    return Checkpoints(Storage(folder), TRIAL)


def test_a_checkpoint_whose_writer_died_half_way_is_none_and_the_one_before_counts(tmp_path):
    def save(epoch, state):
        checkpoints_in(tmp_path).save(SimpleNamespace(epoch=epoch, state=state))

    def dies_after_a_megabyte():
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which Python would make an exception of
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        return {"weights": torch.ones(2**20)}

    save(3, lambda: {"weights": torch.zeros(2**20)})
    writer = multiprocessing.get_context("fork").Process(target=save, args=(6, dies_after_a_megabyte))
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGXFSZ
    assert 2**20 in [path.stat().st_size for path in (tmp_path / CHECKPOINTS / TRIAL).iterdir()], (
        "it did not die half way"
    )
    epoch, state = checkpoints_in(tmp_path).newest()
    assert epoch == 3
    assert not state["weights"].any()


def test_a_checkpoint_of_an_epoch_that_was_never_reported_waits_for_its_report(tmp_path):
    """A kill may come between the two; a trial that went on behind it would leave epochs out."""

    def stored():
        return sorted(int(path.stem) for path in (tmp_path / CHECKPOINTS / TRIAL).iterdir())

    for epoch in (2, 4, 7):
        checkpoints_in(tmp_path).save(SimpleNamespace(epoch=epoch, state=lambda e=epoch: {"epoch": torch.tensor(e)}))
    assert stored() == [4, 7]
    assert checkpoints_in(tmp_path).newest(reported=6) == (4, {"epoch": torch.tensor(4)})
    assert checkpoints_in(tmp_path).newest(reported=7)[0] == 7
    assert checkpoints_in(tmp_path).newest(reported=0) == (0, None)
    checkpoints_in(tmp_path).save(SimpleNamespace(epoch=6, state=lambda: {"epoch": torch.tensor(6)}))
    assert stored() == [4, 6], "what an attempt left that was not the last one"


def test_a_checkpoint_that_lost_its_end_is_passed_over(tmp_path):
    checkpoints_in(tmp_path).save(SimpleNamespace(epoch=3, state=lambda: {"weights": torch.zeros(1000)}))
    whole = (tmp_path / CHECKPOINTS / TRIAL / "000003.safetensors").read_bytes()
    for epoch, left in ((4, 1000), (5, 10), (6, 0)):
        (tmp_path / CHECKPOINTS / TRIAL / f"{epoch:06d}.safetensors").write_bytes(whole[:left])
    assert checkpoints_in(tmp_path).newest()[0] == 3


# Epochs that do not end.

HANGS = """
def sleeps_for_ever():
    time.sleep(10**6)


def train(config, context):
    phase = phase_of(config, context)
    for result in mlp.train(config, context):
        if result.epoch == 2 and (phase == "search" and hangs(config) or phase == "confirmation" and not number(phase)):
            sleeps_for_ever()
        yield result


def hangs(config):
    \"\"\"The first trial that comes here always, the second once.\"\"\"
    always, name = HERE / "always", json.dumps([config.hp, config.replicates])
    if always.exists() and always.read_text() == name:
        return True
    before = number("came")
    if before == 0:
        always.write_text(name)
    return before < 2
"""


@pytest.fixture(scope="module")
def hanging(tmp_path_factory):
    """A finished sweep of which one trial hangs always, another one once, and a task of the confirmation once."""
    folder = tmp_path_factory.mktemp("hanging")
    study = write_study(folder, trainable=write_trainable(folder, TRAINABLE.format(folder=str(folder)) + HANGS))
    done = run("sweep", study, *BASELINE_ONLY, "--out", folder / "run", "--epoch-timeout", 6)
    assert done.returncode == 0, done.stderr
    return folder


def test_an_epoch_that_hangs_once_costs_its_worker_and_not_its_trial(hanging):
    out = hanging / "run"
    assert (hanging / "came-1").exists()
    result = assert_whole(out)
    crashed = [b["ended"].get("crashed", 0) for b in result["budget"].values()]
    assert sum(crashed) == 1  # the trial that always hangs
    with contextlib.closing(sqlite3.connect(out / FILE)) as db:
        attempts = dict(db.execute("SELECT trial, count(*) FROM attempts GROUP BY trial"))
    assert sorted(attempts.values())[-2:] == [2, 3]


def test_a_trial_that_always_hangs_ends_as_crashed_and_says_where_it_stood(hanging):
    out = hanging / "run"
    ((name, end),) = [(name, end) for name, end in ends_of(out).items() if end.how == "crashed"]
    assert "--epoch-timeout" in end.message
    stood = out / "ray" / CHECKPOINTS / name / HUNG
    assert str(stood) in end.message
    assert "in sleeps_for_ever" in stood.read_text()


def test_a_confirmation_that_hangs_once_is_done_again(hanging):
    assert (hanging / "confirmation-0").exists()
    assert_whole(hanging / "run")


# Ctrl-C twice.


def test_the_second_ctrl_c_leaves_at_once_and_nothing_that_was_finished_is_lost(tmp_path):
    out = tmp_path / "run"
    with begun(tmp_path, "sweep", waiting_study(tmp_path), *BASELINE_ONLY, "--out", out) as sweep:
        wait_for_gate("search", tmp_path, out, sweep)
        ended = ends_of(out)
        sweep.send_signal(signal.SIGINT)
        wait_until(lambda: "press Ctrl-C again" in sweep.said(), sweep)
        sweep.send_signal(signal.SIGINT)
        sweep.wait(60)  # its trials would train for hours
        assert_resumable(sweep.returncode, sweep.said(), out, 130, "stopped")
        wait_until(lambda: not of_session(sweep.pid))
    assert_kept(ended, ends_of(out))


# A disk that fills up.


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 24 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk):
    """Leave no room on a disk; returns the file that takes it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return filler


@pytest.mark.slow
def test_a_full_disk_stops_search_and_confirmation_and_nothing_that_was_finished_is_lost(small_disk, tmp_path):
    out = small_disk / "run"
    ended, confirmed = {}, []
    for phase, words in (("search", ("sweep", waiting_study(tmp_path), *BASELINE_ONLY, "--out", out)),
                         ("confirmation", ("resume", out))):  # fmt: skip
        with begun(tmp_path, *words) as sweep:
            wait_for_gate(phase, tmp_path, out, sweep)
            ended, confirmed = ended | ends_of(out), confirmed_in(out)
            filler = fill(small_disk)
            (tmp_path / phase).touch()
            sweep.wait(PATIENCE_S)
            assert_resumable(sweep.returncode, sweep.said(), out, 1, str(out), "free some space")
        still_full = run("resume", out)
        assert still_full.returncode in (1, 2), still_full.stderr
        assert_says(still_full.stderr, str(out), "free some space")
        filler.unlink()
        assert_kept(ended, ends_of(out))
    assert confirmed
    resumed = run("resume", out)
    assert resumed.returncode == 0, resumed.stderr
    assert_whole(out)
    assert_kept(ended, ends_of(out))
    assert confirmed_in(out)[: len(confirmed)] == confirmed


def test_on_a_cluster_a_trial_that_met_a_full_disk_goes_elsewhere_until_no_node_has_room(tmp_path):
    cause = OSError(errno.ENOSPC, "No space left on device", "/on/that/node")
    error = tmp_path / "error.pkl"
    error.write_bytes(cloudpickle.dumps(RayTaskError("run_trial", "a long traceback", cause)))
    study, said = small_study(), []
    with new_run(tmp_path, study) as ledger:
        state, options = SearchState(study, ledger, seed=0, attempts=3), Options(address="auto")
        scheduler = ArmScheduler(state, tmp_path, Storage(tmp_path), options, lambda: 2, said.append)
        for attempt in (1, 2, 3):
            live = state.next_trial()
            assert (live.record.trial, live.attempts) == ("hard_labels-00000", attempt)
            failed = SimpleNamespace(config={"trial": live.record.trial}, pickled_error_file=str(error))
            scheduler.on_trial_error(None, failed)
            assert state.stopping is (attempt == 3)
        assert "/on/that/node cannot be written" in state.failure
        assert ledger.ends() == {}
    assert len(said) == 1
    assert "a node's disk is full: /on/that/node" in said[0]


def test_a_trial_that_met_a_full_disk_has_not_crashed_and_is_taken_up_again(tmp_path):
    cause = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / HUNG))
    error = tmp_path / "error.pkl"
    error.write_bytes(cloudpickle.dumps(RayTaskError("run_trial", "a long traceback", cause)))
    study = small_study()
    with new_run(tmp_path, study) as ledger:
        state = SearchState(study, ledger, seed=0)
        name = state.next_trial().record.trial
        failed = SimpleNamespace(config={"trial": name}, pickled_error_file=str(error))
        ArmScheduler(state, tmp_path, Storage(tmp_path), Options(), lambda: 2, print).on_trial_error(None, failed)
        assert state.stopping
        assert state.failure.startswith(f"{tmp_path / HUNG} cannot be written (No space left on device): free some")
        assert ledger.ends() == {}
        assert [live.record.trial for live in SearchState(study, ledger, seed=0).waiting] == [name]


# Memory that runs out.


def test_of_trials_that_are_killed_for_memory_fewer_run_at_once_and_none_crashes_beside_others(tmp_path):
    error = tmp_path / "error.pkl"
    error.write_bytes(cloudpickle.dumps(NodeOutOfMemory("2 workers were killed")))
    study, said = small_study(), []
    with new_run(tmp_path, study) as ledger:
        state = SearchState(study, ledger, seed=0, attempts=3)
        at_once = state.limited(lambda: 3)
        scheduler = ArmScheduler(state, tmp_path, Storage(tmp_path), Options(), at_once, said.append)

        def killed(live):
            failed = SimpleNamespace(config={"trial": live.record.trial}, pickled_error_file=str(error))
            scheduler.on_trial_error(None, failed)
            return at_once()

        first, second, third = (state.next_trial() for _ in range(3))
        assert (killed(first), killed(second)) == (2, 2)  # at one time, and so for one reason
        assert killed(state.next_trial()) == 1
        assert killed(third) == 1
        assert ledger.ends() == {}
        assert {live.record.trial: live.attempts for live in state.waiting} == dict.fromkeys(
            (live.record.trial for live in (first, second, third)), 0
        )
        alone = state.next_trial()
        for attempt in (1, 2, 3):  # alone it is a worker lost like others
            assert (alone.attempts, len(ledger.ends())) == (attempt, 0)
            assert killed(alone) == 1
            state.waiting.sort(key=lambda live: live is not alone)
            alone = alone if attempt == 3 else state.next_trial()
        assert {end.how for end in ledger.ends().values()} == {"crashed"}
    assert said[0] == "warning: 2 workers were killed; trials at once from now on: 2"


def test_what_ray_says_of_an_actor_killed_for_memory_is_that_it_is_lost():
    """Ray Tune ends everything otherwise: once Ray says so itself, `one_killed_for_memory_is_one_lost` is to go."""
    info = SimpleNamespace(error_message="1 worker(s) were killed\nand why")
    ray = SimpleNamespace(_deserialize_error_info=lambda *data: info)
    kind = str(ErrorType.Value("OUT_OF_MEMORY")).encode()

    def said():
        return serialization.SerializationContext._deserialize_object(ray, b"", kind, None, None)

    assert type(said()) is OutOfMemoryError
    assert not isinstance(said(), RayActorError)
    with one_killed_for_memory_is_one_lost():
        error = cloudpickle.loads(cloudpickle.dumps(said()))
    assert type(said()) is OutOfMemoryError
    assert isinstance(error, NodeOutOfMemory)
    assert isinstance(error, RayActorError)
    assert str(error) == "1 worker(s) were killed"
    assert not error.preempted


EATS = """
import ray

def train(config, context):
    if ray.get_runtime_context().get_actor_id() is None:  # no trial
        yield from mlp.train(config, context)
        return
    try:
        Path(__file__).with_name("ate").touch(exist_ok=False)
    except FileExistsError:
        yield from mlp.train(config, context)
        return
    eaten = []
    for _ in range(60):  # a gibibyte at a time, of pages that are really there
        eaten.append(b"x" * 2**30)
        time.sleep(1)
    raise AssertionError("nobody minded")
"""


@pytest.mark.slow
def test_a_trial_that_ray_kills_for_memory_is_tried_again_with_fewer_at_once(tmp_path, monkeypatch):
    memory = Path("/proc/meminfo")
    kib = dict(re.findall(r"(\w+):\s+(\d+) kB", memory.read_text())) if memory.exists() else {"MemAvailable": 0}
    free, eats = int(kib["MemAvailable"]), 6 * 2**20
    if free < 2 * eats:
        pytest.skip("less than 12 GiB of memory are free here, or nothing says how much")
    study = write_study(tmp_path, trainable=write_trainable(tmp_path, EATS))
    monkeypatch.setenv("RAY_memory_usage_threshold", str(1 - (free - eats) / int(kib["MemTotal"])))
    done = run("sweep", study, *BASELINE_ONLY, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "running low on memory" in done.stderr
    assert "trials at once from now on: 1" in done.stderr
    assert "Traceback" not in done.stderr
    assert_whole(tmp_path / "run")
