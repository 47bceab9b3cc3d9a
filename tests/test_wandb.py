"""The export to W&B, with wandb's own client and wandb-core: every row of the ledger once, whatever dies meanwhile."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.reports.v2.internal as report_models
import wandb_workspaces.workspaces as ws
import wandb_workspaces.workspaces.internal as workspace_models

from analysis import tracking
from analysis.tracking import exporter
from analysis.tracking.folders import Folders
from search.ledger import Ledger
from spaces import BadInput
from tests.chaos.kill_the_export import CORE, EXPORTER, exporters, kill
from tests.test_sweep import command, run, write_study
from tests.wandb_files import differences, read
from tests.wandb_recorder import KEY, Recorder

OFFLINE = os.environ | {"WANDB_MODE": "offline"}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A whole sweep with the export as it comes by default, and a key in the environment."""
    folder = tmp_path_factory.mktemp("wandb")
    environment = os.environ | {"WANDB_API_KEY": KEY}
    environment.pop("WANDB_MODE")
    sweep = command("sweep", write_study(folder), "--arms", "kd", "--out", folder / "run")
    done = subprocess.run(sweep, capture_output=True, text=True, timeout=900, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return folder / "run", done


@pytest.fixture
def small(swept, tmp_path):
    """A copy of the run with a part of its ledger, that has not been exported."""
    shutil.copytree(swept[0], tmp_path / "run", ignore=shutil.ignore_patterns("wandb", "ray"))
    with sqlite3.connect(tmp_path / "run" / "ledger.sqlite") as db:
        db.execute("DELETE FROM trials WHERE rowid > 12")
        for table in ("epochs", "ends", "audits"):
            db.execute(f"DELETE FROM {table} WHERE trial NOT IN (SELECT trial FROM trials)")
        db.execute("DELETE FROM runs WHERE purpose = 'reevaluation' OR rowid % 8 > 0")
    return tmp_path / "run"


def export(folder, *arguments, **environment):
    told = command("wandb", folder, *arguments)
    done = subprocess.run(told, capture_output=True, text=True, timeout=600, env=OFFLINE | environment, check=False)
    return done.returncode, done.stderr.strip().splitlines()


def wait_for_runs(folder, count, seconds=60):
    until = time.monotonic() + seconds
    while len(list((folder / "wandb").glob("offline-run-*"))) < count:
        assert time.monotonic() < until, "the export does not get on"
        time.sleep(0.01)


def test_a_sweep_leaves_one_run_for_every_trial_seed_and_published_number_cell_by_cell(swept):
    folder, done = swept
    assert differences(folder) == []
    assert "runs in" in done.stderr
    assert "--online" in done.stderr
    kinds = [found.job_type for found in read(folder).values()]
    with Ledger.open(folder) as ledger:
        assert kinds.count("search") == len(ledger.trials())
        assert kinds.count("confirm") == len([r for r in ledger.runs() if r.purpose != "reevaluation"])
    assert kinds.count("published") == 2 + 1  # hard_labels, kd and the teacher
    assert kinds.count("study") == 1


def test_the_run_of_the_sweep_holds_the_comparison(swept):
    folder, _ = swept
    (told,) = [f for f in read(folder).values() if f.job_type == "study"]
    result = json.loads(run("compare", folder, "--json").stdout)
    table = next(told.files[0].parent.glob("files/media/table/ablation_*.json"))
    content = json.loads(table.read_text())
    rows = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    assert [(r["arm"], r["verdict"]) for r in rows] == [(a["arm"], a["verdict"]) for a in result["arms"]]
    assert [r["tuned"] for r in rows] == pytest.approx([a["tuned"]["mean"] for a in result["arms"]])
    assert told.config["packages"]["torch"]
    assert told.tags == ("study", "tiny", "full")
    (kept,) = [artifact for artifact in told.artifacts if artifact.type == "study"]
    assert "study.yaml" in [entry.path for entry in kept.manifest.contents]
    models = [a for a in told.artifacts if a.type == "model"]
    students = [(a.name.split("-")[-1], *sorted(set(a.aliases) - {"latest"})) for a in models]
    published = [("hard_labels", "as-published"), ("kd", "as-published")]
    assert sorted(students) == sorted([(arm["arm"], "best") for arm in result["arms"]] + published)
    assert {Path(e.local_path).is_relative_to(folder) for a in models for e in a.manifest.contents} == {True}


def test_wandbs_own_reader_takes_the_files(swept):
    folder, _ = swept
    (trial,) = [f for f in read(folder).values() if f.name == "kd-00000"]
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(trial.files[0])]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (told["name"], told["state"], told["exit_code"]) == ("kd-00000", "finished", 0)
    assert told["config"] == {k: v for k, v in trial.config.items() if k != "_wandb"}
    assert told["step"] == trial.rows[-1][0]


def test_the_key_is_nowhere_in_the_run_folder(swept):
    files = [p for p in swept[0].rglob("*") if p.is_file()]
    assert files
    assert not [p for p in files if KEY.encode() in p.read_bytes()]


def test_an_export_that_is_complete_is_left_as_it_is(swept):
    folder, _ = swept
    before = {p: p.stat().st_mtime_ns for p in (folder / "wandb").glob("offline-run-*/*")}
    assert export(folder)[0] == 0
    assert {p: p.stat().st_mtime_ns for p in (folder / "wandb").glob("offline-run-*/*")} == before


def test_an_export_that_is_half_deleted_or_damaged_is_rebuilt(swept, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(swept[0], folder, ignore=shutil.ignore_patterns("ray"))
    runs = sorted((folder / "wandb").glob("offline-run-*"))
    for number, place in enumerate(runs):
        file = next(place.glob("*.wandb"))
        if number % 3 == 0:
            shutil.rmtree(place)
        elif number % 3 == 1:
            os.truncate(file, file.stat().st_size // 2)
    assert export(folder)[0] == 0
    assert differences(folder) == []


def test_an_exporter_that_is_killed_at_any_moment_leaves_nothing_missing_or_doubled(small):
    rng = random.Random(1)
    for number in range(6):
        told = subprocess.Popen(command("wandb", small), env=OFFLINE, stderr=subprocess.DEVNULL)
        wait_for_runs(small, 2 * number)
        time.sleep(rng.uniform(0.0, 0.2))
        kill(small, *rng.choice([(EXPORTER,), (EXPORTER, CORE)]))
        told.kill()
        told.wait()
    assert export(small)[0] == 0
    assert differences(small) == []


@pytest.mark.parametrize(("dies", "warning"), [(CORE, "is tried again"), (EXPORTER, "another goes on")])
def test_where_a_process_of_the_export_dies_it_goes_on_after_one_warning(small, dies, warning):
    told = subprocess.Popen(command("wandb", small), env=OFFLINE, stderr=subprocess.PIPE, text=True)
    wait_for_runs(small, 3)
    assert kill(small, dies)
    _, said = told.communicate(timeout=600)
    assert told.returncode == 0, said
    assert len([line for line in said.splitlines() if warning in line]) == 1, said
    assert len(said.splitlines()) == 2, said
    assert differences(small) == []


def test_a_full_disk_is_said_once_and_the_export_goes_on_when_there_is_room(small, tmp_path):
    mounted = small / "wandb"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(mounted)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        code, said = export(small)
        assert code == 1
        assert len([line for line in said if "is tried again" in line]) == 1, said
        subprocess.run(["mount", "-o", "remount,size=64m", str(mounted)], check=True)
        assert export(small)[0] == 0
        assert differences(small) == []
    finally:
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)


def test_a_trial_that_runs_is_shown_so_far_and_whole_in_the_end(small):
    with sqlite3.connect(small / "ledger.sqlite") as db:
        (trial,) = db.execute("SELECT trial FROM ends WHERE how = 'finished' LIMIT 1").fetchone()
        ended = db.execute("SELECT * FROM ends WHERE trial = ?", (trial,)).fetchone()
        last = db.execute("SELECT * FROM epochs WHERE trial = ? AND epoch > 3", (trial,)).fetchall()
        db.execute("DELETE FROM ends WHERE trial = ?", (trial,))
        db.execute("DELETE FROM epochs WHERE trial = ? AND epoch > 3", (trial,))
    assert export(small)[0] == 0
    (told,) = [f for f in read(small).values() if f.name == trial]
    assert ([step for step, _ in told.rows], told.summary["ended"]) == ([1, 2, 3], "running")
    with Recorder() as server:
        assert export(small, "--online", **server.environment)[0] == 0
        with sqlite3.connect(small / "ledger.sqlite") as db:
            db.executemany(f"INSERT INTO epochs VALUES ({', '.join('?' * 9)})", last)
            db.execute("INSERT INTO ends VALUES (?, ?, ?, ?, ?)", ended)
        assert export(small, "--online", **server.environment)[0] == 0
        uploaded = server.runs[told.files[0].stem.removeprefix("run-")]
    assert [row["epoch"] for row in uploaded.history] == [1, 2, 3, *(row[2] for row in last)]
    assert [row["_step"] for row in uploaded.history] == [row["epoch"] for row in uploaded.history]
    assert uploaded.summary["ended"] == "finished"


def test_two_sessions_of_uploading_send_every_row_once(small):
    with Recorder() as server:
        with sqlite3.connect(small / "ledger.sqlite") as db:  # the first session is before the confirmation
            runs = db.execute("SELECT rowid, * FROM runs").fetchall()
            db.execute("DELETE FROM runs")
        for later in (False, True):
            if later:
                with sqlite3.connect(small / "ledger.sqlite") as db:
                    db.executemany(
                        "INSERT INTO runs (rowid, purpose, arm, subsearch, fit, replicate, trial, config, epochs, "
                        f"seconds, metrics, finished) VALUES ({', '.join('?' * 12)})",
                        runs,
                    )
            code, said = export(small, "--online", **server.environment)
            assert code == 0, said
            assert "all uploaded" in said[-1]
    found = read(small)
    for id, told in found.items():
        sent = server.runs[id]
        assert all(len(lines) == 1 for lines in sent.rows.values()), id
        if told.job_type != "study":
            assert [(r["_step"], r["epoch"]) for r in sent.history] == [(s, row["epoch"]) for s, row in told.rows]
        assert sent.exit_code == told.exit_code
        assert sent.about["groupName"] == told.group
    assert set(server.runs) == set(found)
    assert {name.split("/", 1)[0] for name in server.stored if "media/table" in name}


def test_an_upload_that_is_killed_in_the_middle_sends_no_row_twice(small):
    assert export(small)[0] == 0
    with Recorder() as server:
        sync = [sys.executable, "-m", "wandb", "sync", "--yes", *map(str, (small / "wandb").glob("offline-run-*"))]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": small}
        uploading = subprocess.Popen(sync, env=os.environ | server.environment, **quiet)
        while sum(len(r.rows) for r in list(server.runs.values())) <= 12:
            assert uploading.poll() is None
            time.sleep(0.002)
        for process in _tree(uploading.pid):
            os.kill(process, signal.SIGKILL)
        uploading.wait()
        code, said = export(small, "--online", **server.environment)
        assert code == 0, said
        sent = dict(server.runs)
    with Ledger.open(small) as ledger:
        for trial in ledger.trials():
            (uploaded,) = [r for r in sent.values() if r.about.get("displayName") == trial.trial]
            assert [r["epoch"] for r in uploaded.history] == [e.epoch for e in ledger.epochs(trial=trial.trial)], trial
            assert uploaded.exit_code is not None


@pytest.mark.slow
def test_rows_that_a_server_took_and_has_not_are_sent_again(small):
    with Recorder() as server:
        server.loses = 3
        code, said = export(small, "--online", **server.environment)
        assert code == 0, said
        assert "all uploaded" in said[-1]
        assert "have not arrived whole" in said[0]
    assert all(len(lines) == 1 for run in server.runs.values() for lines in run.rows.values())
    with Ledger.open(small) as ledger:
        for trial in ledger.trials():
            (uploaded,) = [r for r in server.runs.values() if r.about.get("displayName") == trial.trial]
            assert [r["epoch"] for r in uploaded.history] == [e.epoch for e in ledger.epochs(trial=trial.trial)], trial


def _tree(pid):
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [p for child in children.stdout.split() for p in _tree(int(child))] + [pid]


@pytest.mark.parametrize("trouble", ["no key", "no network", "a key that is refused"])
def test_online_where_nothing_can_be_uploaded_says_so_at_once_and_goes_on_offline(small, trouble):
    with Recorder() as server:
        server.refuses = trouble == "a key that is refused"
        environment = dict(server.environment)
        if trouble == "no key":
            del environment["WANDB_API_KEY"]
            environment |= {"NETRC": str(small / "no-netrc"), "HOME": str(small)}
        elif trouble == "no network":
            environment["WANDB_BASE_URL"] = "http://127.0.0.1:9"
        code, said = export(small, "--online", **environment)
    words = {"no key": "no API key", "no network": "cannot be reached", "a key that is refused": "refuses the API key"}
    assert code == 0
    assert words[trouble] in said[0]
    assert "this export is offline" in said[0]
    assert len(said) == 2, said
    assert differences(small) == []
    assert not server.runs


@pytest.mark.slow
def test_a_server_that_goes_away_leaves_the_rest_for_the_next_time(small):
    assert export(small)[0] == 0
    with Recorder() as server:
        environment = server.environment | {"WANDB_HTTP_TIMEOUT": "2"}
        assert export(small, "--online", **environment)[0] == 0
        first = {id: len(r.rows) for id, r in server.runs.items()}
    code, said = export(small, "--online", **environment)
    assert code == 0
    assert "cannot be reached" in said[0]
    assert first


@pytest.mark.parametrize("name", ["a/b", "what?", "x" * 129])
def test_a_project_that_wandb_refuses_is_refused_before_anything_starts(tmp_path, name):
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_PROJECT": name}
    sweep = command("sweep", write_study(tmp_path), "--arms", "hard_labels", "--out", tmp_path / "run")
    done = subprocess.run(sweep, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "WANDB_PROJECT" in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_mode_is_what_is_asked_else_what_the_environment_says_else_offline(monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    assert tracking.chosen_mode(None) == "offline"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert tracking.chosen_mode(None) == "online"
    assert tracking.chosen_mode("off") == "off"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert tracking.chosen_mode(None) == "off"
    with pytest.raises(BadInput, match="--wandb must be one of offline, online, off, got on"):
        tracking.chosen_mode("on")


def test_off_writes_nothing(tmp_path):
    with tracking.following(tmp_path, "off", print):
        pass
    assert not list(tmp_path.iterdir())


def test_the_variables_of_a_single_run_do_not_reach_the_runs_of_a_sweep(small):
    own = {"WANDB_RUN_ID": "mine", "WANDB_NAME": "mine", "WANDB_RUN_GROUP": "mine", "WANDB_DIR": str(small / "else")}
    assert export(small, **own)[0] == 0
    assert differences(small) == []


def test_the_workspace_and_the_report_are_what_wandb_workspaces_reads(swept):
    folder, _ = swept
    text = (folder / "wandb" / "report.json").read_text()
    model = report_models.ReportViewspec.model_validate_json(text)
    report = wr.Report._from_model(model)
    again, before = (m.model_dump(by_alias=True, exclude_none=True)["spec"] for m in (report._to_model(), model))
    assert without_ids(again) == without_ids(before)
    panels = [p for block in report.blocks if isinstance(block, wr.PanelGrid) for p in block.panels]
    assert len([p for p in panels if isinstance(p, wr.ParallelCoordinatesPlot)]) == 3  # one for each searched arm
    assert len([p for p in panels if isinstance(p, wr.ParameterImportancePlot)]) == 3
    assert "| kd | 97.20 |" in text
    view = workspace_models.View.model_validate_json((folder / "wandb" / "workspace.json").read_text())
    workspace = ws.Workspace._from_model(view)
    assert [s.name for s in workspace.sections][:2] == ["Ablation", "Learning curves"]
    shown = {type(p).__name__ for s in workspace.sections for p in s.panels}
    assert shown == {"BarPlot", "LinePlot", "ParallelCoordinatesPlot"}


def without_ids(value):
    """JSON-like data without the identities that are drawn anew and the places for comments."""
    if isinstance(value, dict):
        return {k: without_ids(v) for k, v in value.items() if k not in ("id", "__id__", "inlineComments")}
    return [without_ids(v) for v in value] if isinstance(value, list) else value


def test_the_exporter_leaves_with_its_parent(swept, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(swept[0], folder, ignore=shutil.ignore_patterns("ray", "wandb"))
    parent = subprocess.Popen(
        [sys.executable, "-c", FOLLOW, str(folder)], env=OFFLINE, cwd=Path(__file__).parents[1], text=True
    )
    wait_for_runs(folder, 5)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 20
    while exporters(folder) and time.monotonic() < until:
        time.sleep(0.05)
    assert not exporters(folder)
    assert not Folders(folder).partial.exists()
    assert len(list((folder / "wandb").glob("offline-run-*"))) < 145


FOLLOW = """
import sys, time
from pathlib import Path
from analysis import tracking
with tracking.following(Path(sys.argv[1]), "offline", print):
    time.sleep(100)
"""


def test_no_module_that_trains_or_searches_knows_wandb():
    code = "import sys; import search.runner, search.sweep, trainables.mlp; print('wandb' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_what_the_exporter_imports_stays_small():
    heavy = "{'torch', 'scipy', 'ray', 'pandas'} & set(sys.modules)"
    code = f"import sys; import {exporter.__name__}, analysis.tracking.writer; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_nothing_but_the_run_of_the_sweep_needs_pandas(small):
    code = (
        "import sys; from pathlib import Path; from analysis.tracking.exporter import Exporter; "
        "exporter = Exporter(Path(sys.argv[1]), 'offline'); runs = len(list(exporter.update(last=False))); "
        "print(runs, 'pandas' in sys.modules)"
    )
    (small / "wandb").mkdir()
    done = subprocess.run([sys.executable, "-c", code, str(small)], capture_output=True, text=True, check=True)
    runs, needed = done.stdout.split()
    assert int(runs) > 12
    assert needed == "False"
