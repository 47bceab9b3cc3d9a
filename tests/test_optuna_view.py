"""Optuna's view of a sweep: what the ledger says, whatever happens to the journal, and live in optuna-dashboard."""

import contextlib
import json
import math
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from datetime import datetime
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from analysis import dashboard
from analysis.optuna_journal import BatchedJournal
from analysis.optuna_view import JOURNAL, Projection
from search.distributions import distributions
from search.ledger import FILE, Ledger, TrialRecord
from spaces import BadInput, to_yaml
from tests.made_ledgers import add_trial, asked, new_run, row, small_study
from tests.test_cli import distune

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

ARMS = ("kd",)  # beside the baseline and its control
PATIENT_S = 60.0  # for a server to start on a machine that is busy


def storage_of(run):
    return JournalStorage(JournalFileBackend(str(run / JOURNAL)))


def study_of(run, arm, subsearch=0):
    return optuna.load_study(study_name=f"mlp-ensemble/{run.name}/{arm}/{subsearch}", storage=storage_of(run))


def view(run):
    """Everything that Optuna knows, read from the file alone."""
    storage = storage_of(run)
    facts = ("number", "state", "values", "params", "distributions", "datetime_start", "datetime_complete")
    facts += ("intermediate_values", "user_attrs", "system_attrs")
    return {
        study.study_name: (
            study.user_attrs,
            study.metric_names,
            study.direction,
            [{fact: getattr(t, fact) for fact in facts} for t in study.trials],
        )
        for study in (optuna.load_study(study_name=name, storage=storage) for name in names(storage))
    }


def names(storage):
    return optuna.get_all_study_names(storage)


def updated(run):
    with Projection(run) as projection:
        assert projection.update()
    return view(run)


def rebuilt(run, tmp_path):
    """What a projection from nothing gives, made beside the run."""
    beside = tmp_path / "beside" / run.name
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(run, beside)
    (beside / JOURNAL).unlink()
    return updated(beside)


@pytest.fixture
def run(tmp_path):
    return tmp_path / "mine"


@pytest.fixture
def ledger(run):
    with new_run(run, small_study(ARMS)) as ledger:
        yield ledger


def every_kind(ledger):
    add_trial(ledger, "kd-0", "kd", {1: 0.5, 3: 0.6, 9: 0.7}, se=0.01, how="finished")
    add_trial(ledger, "kd-1", "kd", {1: 0.5, 3: 0.4}, how="stopped")
    add_trial(ledger, "kd-2", "kd", {1: 0.55}, how="budget")
    add_trial(ledger, "kd-3", "kd", {1: 0.6, 2: math.nan}, how="diverged")
    add_trial(ledger, "kd-4", "kd", {1: 0.3})
    ledger.end("kd-4", "crashed", 2, "out of memory")
    add_trial(ledger, "kd-5", "kd", {1: 0.2})
    ledger.ask(asked("kd-6", "kd"))


def test_states_values_and_scores_at_rungs(run, ledger):
    every_kind(ledger)
    updated(run)
    found = [(t.state.name, t.value, t.intermediate_values) for t in study_of(run, "kd").trials]
    assert found == [
        ("COMPLETE", 0.7, {1: 0.5, 3: 0.6, 9: 0.7}),
        ("PRUNED", 0.4, {1: 0.5, 3: 0.4}),
        ("PRUNED", 0.55, {1: 0.55}),
        ("PRUNED", None, {1: 0.6}),
        ("FAIL", None, {1: 0.3}),
        ("RUNNING", None, {1: 0.2}),
        ("RUNNING", None, {}),
    ]
    assert study_of(run, "kd").best_trial.user_attrs["trial"] == "kd-0"


def test_what_a_trial_says_of_itself(run, ledger):
    every_kind(ledger)
    ledger.ask(asked("kd-7", "kd"))
    ledger.report("kd-7", [{**row(1, 0.5, se=None), "metrics": {"best_epoch": [4.0, 4.0]}}])
    ledger.end("kd-7", "stopped", 1)
    updated(run)
    about = {t.user_attrs["trial"]: t.user_attrs for t in study_of(run, "kd").trials}
    assert about["kd-0"] == {
        "trial": "kd-0", "origin": "sobol", "seeds": 2, "ended": "finished", "standard_error": 0.01
    }  # fmt: skip
    assert about["kd-4"]["message"] == "out of memory"
    assert about["kd-6"] == {"trial": "kd-6", "origin": "sobol", "seeds": 2}
    assert about["kd-7"]["best_epoch"] == 4
    assert "standard_error" not in about["kd-7"]


def test_only_finite_scores_at_rungs(run, ledger):
    add_trial(ledger, "kd-0", "kd", {1: math.nan, 2: 0.5, 3: math.inf, 4: 0.6})
    updated(run)
    assert study_of(run, "kd").trials[0].intermediate_values == {}


def test_a_study_for_each_subsearch_of_each_arm_under_a_name_of_its_own(run, ledger):
    for arm in ("hard_labels", "kd"):
        for g in range(3):
            add_trial(ledger, f"{arm}-{g}", arm, {1: 0.5}, subsearch=g)
    studies = updated(run)
    assert list(studies) == [f"mlp-ensemble/mine/{arm}/{g}" for arm in ("hard_labels", "kd") for g in range(3)]
    attrs, metric_names, direction, trials = studies["mlp-ensemble/mine/kd/2"]
    assert {k: attrs[k] for k in ("study", "run", "arm", "subsearch")} == {
        "study": "mlp-ensemble", "run": "mine", "arm": "kd", "subsearch": 2
    }  # fmt: skip
    assert (metric_names, direction.name) == (["val_accuracy"], "MAXIMIZE")
    space = small_study(ARMS).arms["kd"].space
    assert trials[0]["distributions"] == distributions(space)
    assert set(trials[0]["params"]) == set(space)


def test_times_are_the_ledgers_also_of_a_trial_that_was_seen_running(run, ledger):
    ledger.ask(TrialRecord("kd-0", "kd", 0, "sobol", asked("kd-0", "kd").config, 1.7e9 + 0.123456))
    updated(run)
    time.sleep(0.05)
    ledger.end("kd-0", "crashed", 0)
    ended = datetime.fromtimestamp(ledger.ends()["kd-0"].at)
    time.sleep(0.05)
    updated(run)
    trial = study_of(run, "kd").trials[0]
    assert trial.datetime_start == datetime.fromtimestamp(1.7e9 + 0.123456)
    assert trial.datetime_complete == ended


def events(rng, trials):
    """Calls that make a ledger, trials interleaved as in a sweep."""
    lives = []
    for i in range(trials):
        name, arm = f"t-{i}", rng.choice(["hard_labels", "kd"])
        how = rng.choice(["finished", "stopped", "budget", "diverged", "crashed", ""])
        last = 9 if how == "finished" else rng.choice([1, 3])
        record = asked(name, arm, rng.randrange(2))
        life = [lambda ledger, record=record: ledger.ask(record)]
        for e in range(1, last + 1):
            score = math.nan if rng.random() < 0.1 and e < last else rng.random()
            rows = [row(e, score, se=rng.random())]
            life.append(lambda ledger, name=name, rows=rows: ledger.report(name, rows))
        if how:
            end = (name, how, last, "why" if how == "crashed" else "")
            life.append(lambda ledger, end=end: ledger.end(*end))
        lives.append(life)
    while lives:
        life = rng.choice(lives[:4])
        yield life.pop(0)
        if not life:
            lives.remove(life)


@pytest.mark.parametrize("seed", range(4))
def test_updates_and_restarts_come_to_the_same_as_a_rebuild(run, ledger, tmp_path, seed):
    rng = random.Random(seed)
    projection = Projection(run)
    for event in events(rng, 25):
        event(ledger)
        chance = rng.random()
        if chance < 0.15:
            projection.update()
        elif chance < 0.2:
            projection.__exit__()
            projection = Projection(run)
    projection.update()
    head = (run / JOURNAL).read_bytes()[:100]
    projection.__exit__()
    incremental = updated(run)
    assert (run / JOURNAL).read_bytes()[:100] == head, "it was rebuilt, not continued"
    assert incremental == rebuilt(run, tmp_path)
    assert sum(len(trials) for *_, trials in incremental.values()) == 25


@pytest.mark.parametrize("table", ["trials", "epochs", "ends"])
def test_what_is_written_while_the_ledger_is_read_is_told_whole(run, ledger, tmp_path, monkeypatch, table):
    add_trial(ledger, "kd-0", "kd", {1: 0.5, 3: 0.6})
    read = getattr(Ledger, table)

    def then_the_trial_ends(self, *args):
        found = read(self, *args)
        monkeypatch.undo()
        ledger.report("kd-0", [row(e, 0.7) for e in range(4, 10)])
        ledger.end("kd-0", "finished", 9)
        add_trial(ledger, "kd-1", "kd", {1: 0.4}, how="stopped")
        return found

    with Projection(run) as projection:
        projection.update()
        monkeypatch.setattr(Ledger, table, then_the_trial_ends)
        projection.update()
        projection.update()
    assert view(run) == rebuilt(run, tmp_path)
    assert study_of(run, "kd").trials[0].value == 0.7


def test_where_nothing_is_new_nothing_is_written(run, ledger):
    every_kind(ledger)
    with Projection(run) as projection:
        projection.update()
        before = (run / JOURNAL).read_bytes()
        projection.update()
    updated(run)
    assert (run / JOURNAL).read_bytes() == before


def cut(share):
    def damage(path):
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return damage


def cut_between_lines(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: len(lines) // 2]))


def cut_within_a_study(path):
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])


def scribble(path):
    path.write_bytes(path.read_bytes().replace(b'"op_code":4', b'"op_code":44'))


def twice(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, *(line for line in lines if b'"op_code":4,' in line)]))


def other_score(path):
    assert b"0.55" in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b"0.55", b"0.56"))


def delete_a_study(path):
    storage = JournalStorage(JournalFileBackend(str(path)))
    storage.delete_study(0)


DAMAGES = [
    *(Path.unlink, cut(0.5), cut(0.999), cut(0), cut_between_lines, cut_within_a_study, scribble, twice),
    *(other_score, delete_a_study, lambda path: path.write_bytes(b"\x00\xff" * 500), lambda p: p.write_bytes(b"[]\n")),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_journal_that_is_damaged_is_rebuilt(run, ledger, damage):
    every_kind(ledger)
    whole = updated(run)
    damage(run / JOURNAL)
    assert updated(run) == whole


@pytest.mark.parametrize("damage", [d for d in DAMAGES if d not in (scribble, other_score)])
def test_also_while_it_is_followed(run, ledger, tmp_path, damage):
    every_kind(ledger)
    with Projection(run) as projection:
        projection.update()
        damage(run / JOURNAL)
        add_trial(ledger, "kd-8", "kd", {1: 0.4}, how="stopped")
        projection.update()
        ledger.end("kd-6", "crashed", 0)
        projection.update()
    assert view(run) == updated(run) == rebuilt(run, tmp_path)


def test_the_journal_of_another_ledger_is_rebuilt(run, ledger, tmp_path):
    every_kind(ledger)
    whole = updated(run)
    other = tmp_path / "other" / "mine"
    with new_run(other, small_study(ARMS)) as second:
        every_kind(second)
        add_trial(second, "kd-7", "kd", {1: 0.9}, how="stopped")
        updated(other)
    shutil.copy(other / JOURNAL, run / JOURNAL)
    assert updated(run) == whole


def test_a_run_folder_that_was_copied_has_studies_of_its_own_name(run, ledger, tmp_path):
    every_kind(ledger)
    updated(run)
    shutil.copytree(run, tmp_path / "copy")
    assert list(updated(tmp_path / "copy")) == ["mlp-ensemble/copy/kd/0"]


def test_a_ledger_that_went_back_takes_the_journal_with_it(run, ledger, tmp_path):
    add_trial(ledger, "kd-0", "kd", {1: 0.5})
    ledger.close()
    shutil.copy(run / FILE, tmp_path / "earlier")
    with Ledger.open(run) as later:
        later.end("kd-0", "stopped", 1)
        add_trial(later, "kd-1", "kd", {1: 0.5})
        updated(run)
    shutil.copy(tmp_path / "earlier", run / FILE)
    updated(run)
    assert [t.state.name for t in study_of(run, "kd").trials] == ["RUNNING"]


def test_an_arm_that_an_extension_added_while_it_is_followed(run, ledger):
    add_trial(ledger, "kd-0", "kd", {1: 0.5})
    with Projection(run) as projection:
        projection.update()
        (run / "study.yaml").write_text(to_yaml(small_study((*ARMS, "label_smoothing"))), encoding="utf-8")
        add_trial(ledger, "label_smoothing-0", "label_smoothing", {1: 0.5})
        projection.update()
    assert len(study_of(run, "label_smoothing").trials) == 1


def test_an_arm_that_no_study_file_names_is_said(run, ledger):
    add_trial(ledger, "label_smoothing-0", "label_smoothing", {1: 0.5})
    with Projection(run) as projection, pytest.raises(BadInput, match="no arm label_smoothing"):
        projection.update()


def test_one_writes_and_the_next_takes_over(run, ledger, tmp_path):
    every_kind(ledger)
    with Projection(run) as second:
        with Projection(run) as first:
            assert first.update()
            assert not second.update()
            add_trial(ledger, "kd-8", "kd", {1: 0.4}, how="stopped")
            assert not second.update()
            assert first.update()
        ledger.end("kd-5", "budget", 1)
        assert second.update()
    assert view(run) == rebuilt(run, tmp_path)


def test_processes_at_once_double_nothing(run, ledger, tmp_path):
    every_kind(ledger)
    command = [sys.executable, "-m", "distune", "dashboard", str(run), "--once"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=PATIENT_S)
        assert process.returncode == 0, err
    assert view(run) == rebuilt(run, tmp_path)


def test_what_others_write_between_updates_stays(run, ledger, tmp_path):
    """Notes that are taken in the dashboard, through a storage of its own."""
    add_trial(ledger, "kd-0", "kd", {1: 0.5})
    with Projection(run) as projection:
        projection.update()
        for i in range(3):
            storage_of(run).set_study_system_attr(0, "dashboard:note_str:0", f"interesting {i}")
            add_trial(ledger, f"kd-{i + 1}", "kd", {1: 0.4}, how="stopped")
            projection.update()
    assert updated(run) == rebuilt(run, tmp_path)
    assert storage_of(run).get_study_system_attrs(0)["dashboard:note_str:0"] == "interesting 2"


def test_a_batch_that_fails_writes_nothing(tmp_path):
    path = tmp_path / "journal"
    path.touch()
    journal = BatchedJournal(path)

    def fail():
        with journal.batch():
            optuna.create_study(storage=JournalStorage(journal))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_bytes() == b""


def many(ledger, trials):
    """Trials whose score is their learning rate's place in its range."""
    rng, space = random.Random(0), small_study(ARMS).arms["kd"].space
    for i in range(trials):
        config = {name: dimension.at(rng.random()) for name, dimension in space.items()}
        score = space["learning_rate"].fraction(config["learning_rate"])
        ledger.ask(TrialRecord(f"kd-{i}", "kd", 0, "tpe", {**asked("", "kd").config, **config}, 1.7e9 + i))
        last = 9 if i % 2 else 1
        ledger.report(f"kd-{i}", [row(e, score) for e in range(1, last + 1)])
        ledger.end(f"kd-{i}", "finished" if i % 2 else "stopped", last)


def test_importances_find_what_matters(run, ledger):
    many(ledger, 60)
    updated(run)
    importances = optuna.importance.get_param_importances(study_of(run, "kd"))
    assert max(importances, key=importances.get) == "learning_rate"


# The command and the server.


def test_once_says_how_to_open_a_study(run, ledger, tmp_path):
    every_kind(ledger)
    add_trial(ledger, "hard_labels-0", "hard_labels", {1: 0.5})
    done = distune("dashboard", "mine", "--once", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert first == f"{Path('mine') / JOURNAL}: 2 studies, 8 trials"
    opened = {}
    with contextlib.chdir(tmp_path):
        exec("\n".join(rest[rest.index("") :]), opened)
    assert len(opened["study"].trials) == 7


def test_a_ledger_without_trials_has_an_empty_journal(run, ledger):
    assert dashboard.bring_up_to_date(run) == [f"{run / JOURNAL}: 0 studies, 0 trials"]
    assert updated(run) == {}


def test_help_shows_an_example():
    done = distune("dashboard", "--help")
    assert "distune dashboard runs/first --port 8081" in done.stdout


def test_a_port_in_use_and_no_run_folder_are_one_line(run, ledger, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=f"port {port} .* in use.*--port"):
            dashboard.serve(run, "127.0.0.1", port, print)
    with pytest.raises(BadInput, match=r"--host nowhere\.invalid"):
        dashboard.serve(run, "nowhere.invalid", 0, print)
    done = distune("dashboard", tmp_path / "nowhere")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "is not a run folder" in done.stderr


def get(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
        return json.load(answer)


def served(port):
    """{study: [(trial, state, intermediate values)]} as the browser gets it."""
    found = {}
    for study in get(port, "/api/studies")["study_summaries"]:
        trials = get(port, f"/api/studies/{study['study_id']}?after=0")["trials"]
        found[study["study_name"]] = [
            (
                next(a["value"] for a in t["user_attrs"] if a["key"] == "trial"),
                t["state"].upper(),
                {v["step"]: v["value"] for v in t["intermediate_values"]},
            )
            for t in trials
        ]
    return found


def expected(run):
    states = {"finished": "COMPLETE", "crashed": "FAIL", "": "RUNNING"}
    found = {}
    with Ledger.open(run) as ledger:
        ends, rows = ledger.ends(), ledger.epochs()
        for t in ledger.trials():
            how = ends[t.trial].how if t.trial in ends else ""
            scores = {
                r.epoch: r.score for r in rows if r.trial == t.trial and r.epoch in (1, 3, 9) and math.isfinite(r.score)
            }
            name = f"mlp-ensemble/{run.name}/{t.arm}/{t.subsearch}"
            found.setdefault(name, []).append((t.trial, states.get(how, "PRUNED"), scores))
    return found


def wait_for(condition, seconds=20.0):
    """The condition's value once it is true; the dashboard itself keeps trials for 2 s."""
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if value := condition():
                return value
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.2)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_dashboard_follows_a_running_sweep_and_ends_on_a_signal(run, ledger, number):
    every_kind(ledger)
    add_trial(ledger, "hard_labels-0", "hard_labels", {1: 0.5, 3: 0.6}, subsearch=1)
    port = free_port()
    command = [sys.executable, "-m", "distune", "dashboard", str(run), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert wait_for(lambda: served(port), PATIENT_S) == expected(run)
        ledger.end("hard_labels-0", "stopped", 3)
        ledger.report("kd-6", [row(1, 0.5), row(2, 0.6), row(3, 0.7)])
        add_trial(ledger, "kd-7", "kd", {1: 0.4}, how="stopped", subsearch=3)
        wait_for(lambda: served(port) == expected(run))
        (run / JOURNAL).unlink()
        ledger.end("kd-6", "crashed", 3)
        wait_for(lambda: served(port) == expected(run))
        assert b"<html" in urllib.request.urlopen(f"http://127.0.0.1:{port}/dashboard", timeout=20).read().lower()
        server.send_signal(number)
        _, err = server.communicate(timeout=60)
    finally:
        server.kill()
    assert server.returncode == 0
    assert f"http://127.0.0.1:{port}/" in err
    assert err.splitlines()[0].startswith("optuna-dashboard: ")


@contextlib.contextmanager
def serving(run):
    """A dashboard in this process; yields its port."""
    stop, said = threading.Event(), []
    thread = threading.Thread(target=dashboard.serve, args=(run, "127.0.0.1", 0, said.append, stop))
    thread.start()
    try:
        yield int(wait_for(lambda: said)[0].split(":")[3].split("/")[0])
    finally:
        stop.set()
        thread.join(timeout=20)
    assert not thread.is_alive()


def test_two_viewers_at_once_and_the_second_goes_on_alone(run, ledger):
    every_kind(ledger)
    with contextlib.ExitStack() as first:
        one = first.enter_context(serving(run))
        with serving(run) as two:
            assert served(one) == served(two) == expected(run)
            ledger.end("kd-5", "stopped", 1)
            wait_for(lambda: served(one) == served(two) == expected(run))
            first.close()
            ledger.end("kd-6", "crashed", 0)
            wait_for(lambda: served(two) == expected(run))


def test_the_dashboard_computes_importances(run, ledger):
    many(ledger, 60)
    with serving(run) as port:
        found = get(port, "/api/studies/0/param_importances")["param_importances"][0]
        detail = get(port, "/api/studies/0?after=0")
    assert max(found, key=lambda p: p["importance"])["name"] == "learning_rate"
    assert detail["objective_names"] == ["val_accuracy"]
    assert detail["has_intermediate_values"]
    assert {d["name"] for d in detail["union_search_space"]} == set(small_study(ARMS).arms["kd"].space)
    assert sum(t["state"] == "Pruned" and t.get("values") is not None for t in detail["trials"]) == 30
