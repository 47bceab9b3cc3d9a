"""Sweeps on a Ray cluster of several nodes: what dies and joins meanwhile, and a head that is lost with its disk."""

import json
import os
import shutil
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from search.ledger import FILE, Ledger
from search.records import DRIVER
from search.storage import Storage
from tests.clusters import HEAD, add, cluster, id_of, s3
from tests.test_sweep import TINY, assert_whole, command, write_study, write_trainable

# Trials of a second or more, that say where they run: lines of [node, trial's arm, epoch, time].
SLOW = """
import json
import ray

def train(config, context):
    for result in mlp.train(config, context):
        time.sleep(0.15)
        node = ray.get_runtime_context().get_node_id()
        with open(Path(__file__).with_name("log"), "a") as log:
            log.write(json.dumps([node, config.variant, result.epoch, time.time()]) + "\\n")
        yield result
"""


BUDGET = {**TINY["budget"], "seed_epochs_per_arm": 360}


def rows(out, table):
    """How many rows a table of the ledger has, that another process may be writing."""
    try:
        with sqlite3.connect(f"file:{out / FILE}?mode=ro", uri=True) as db:
            return db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    except sqlite3.Error:
        return 0


def wait_for(condition, process, seconds=300):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, "it does not come"
        time.sleep(0.05)


def start(*words, **environment):
    return subprocess.Popen(
        command(*words), env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def logged(folder):
    """[node, arm, epoch, time] of every epoch so far."""
    log = folder / "log"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def ended(out):
    with Ledger.open(out) as ledger:
        return ledger.ends()


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    """A sweep on four nodes with its storage in a bucket. Two nodes die, one joins, then the driver and its disk go."""
    folder = tmp_path_factory.mktemp("cluster")
    out, uri = folder / "first", "s3://bucket/sweeps"
    study = write_study(folder, trainable=write_trainable(folder, SLOW), budget=BUDGET)
    with s3() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)  # of this process too, which looks into the bucket
        with cluster() as ray:
            caches = [folder / f"cache-{i}" for i in range(5)]  # every node has its own disk
            nodes = [add(ray, env_vars={"DISTUNE_CACHE": str(c)}) for c in caches[:4]]
            dead = [id_of(ray, node) for node in nodes[:2]]
            words = ("--arms", "kd", "--address", ray.address, "--storage", uri, "--out", out)
            driver = start("sweep", study, *words)
            wait_for(lambda: set(dead) & {node for node, *_ in logged(folder)}, driver)
            for node in nodes[:2]:
                ray.remove_node(node, allow_graceful=False)  # SIGKILL of its raylet
            died = time.time()
            wait_for(lambda: rows(out, "ends") >= 12, driver)
            joined, newcomer = time.time(), id_of(ray, add(ray, env_vars={"DISTUNE_CACHE": str(caches[4])}))
            wait_for(lambda: rows(out, "runs") >= 4, driver)  # in the re-evaluation
            driver.kill()
            _, said = driver.communicate()
        before = ended(out)
        shutil.move(out, folder / "gone")
        with cluster(nodes=2) as ray:
            place = f"{uri}/first"
            words = ("resume", place, "--address", ray.address, "--out", folder / "second")
            refused = subprocess.run(command(*words), capture_output=True, text=True, check=False)
            Storage(place).remove(DRIVER)  # as if two minutes had passed
            resumed = subprocess.run(command(*words), capture_output=True, text=True, check=False)
    return {
        "out": folder / "second",
        "before": before,
        "said": said,
        "refused": refused,
        "resumed": resumed,
        "log": logged(folder),
        "died": died,
        "joined": joined,
        "dead": dead,
        "newcomer": newcomer,
        "caches": caches,
    }


def test_a_cluster_is_described_before_the_sweep_begins(lost):
    assert "cluster: 4 nodes with 4 CPU and 0 GPU" in lost["said"]
    assert "storage s3://bucket/sweeps/first, written from every node" in lost["said"]


def test_trials_of_nodes_that_died_go_on_elsewhere_and_a_node_that_joins_takes_some(lost):
    first, arrived = lost["log"][0][3], [at for node, _, _, at in lost["log"] if node == lost["newcomer"]]
    assert first < lost["died"]
    assert {node for node, *_ in lost["log"]} & set(lost["dead"])
    assert not [at for node, _, _, at in lost["log"] if node in lost["dead"] and at > lost["joined"]]
    assert arrived
    assert min(arrived) > lost["joined"]


def test_a_sweep_whose_driver_and_disk_are_lost_is_finished_from_its_storage(lost):
    assert lost["resumed"].returncode == 0, lost["resumed"].stderr
    result = assert_whole(lost["out"], ("hard_labels", "hard_labels_again", "kd"), budget=360)
    assert [arm["tuned"]["n"] for arm in result["arms"]] == [8, 8, 8]
    after = ended(lost["out"])
    assert lost["before"].keys() <= after.keys()
    for name, end in lost["before"].items():
        assert after[name].epoch == end.epoch
        assert after[name].how == end.how or end.how == "budget"  # of which a worker does not know
    assert "crashed" not in {end.how for end in after.values()}
    assert len(list((lost["out"] / "models").iterdir())) > 0


def test_nobody_takes_over_a_sweep_whose_driver_may_be_alive(lost):
    assert lost["refused"].returncode == 2
    assert "stop it first, or wait" in lost["refused"].stderr


# A store that is asked for a while in vain, and GPUs that Ray only counts.

OOM = """
import ray
import torch

def train(config, context):
    alone = ray.get_runtime_context().get_assigned_resources().get("GPU") == 1
    failed = Path(__file__).with_name("oom")
    if config.hp["batch_size"] == 256 and not alone and not failed.exists():
        failed.write_text(str(config.hp))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if not config.audit_at:  # what is told of an epoch is not for the search
        with open(Path(__file__).with_name("processes"), "a") as log:
            log.write(f"{os.getpid()}\\n")
    yield from mlp.train(config, context)
"""


def test_a_trial_that_runs_out_of_memory_beside_others_is_tried_alone_before_it_has_crashed(tmp_path):
    budget = {**TINY["budget"], "reevaluate_share": 0.0}  # every run with a GPU is a process of its own
    study = write_study(tmp_path, trainable=write_trainable(tmp_path, OOM), budget=budget)
    with cluster(head={**HEAD, "num_cpus": 2, "num_gpus": 1}) as ray:
        words = (
            "--arms",
            "hard_labels",
            "--address",
            ray.address,
            "--gpus-per-trial",
            "0.5",
            "--out",
            tmp_path / "run",
        )
        price = ("--cost-per-gpu-hour", "3.5")
        done = subprocess.run(command("sweep", study, *words, *price), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "oom").exists()
    result = assert_whole(tmp_path / "run")
    assert {how for b in result["budget"].values() for how in b["ended"]} <= {"finished", "stopped", "budget"}
    processes = (tmp_path / "processes").read_text().split()
    assert len(processes) == len(set(processes)) > 0  # CUDA stays on the GPU on which a process first used it
    assert any("GPU hours, " in note and "at 3.5 an hour" in note for note in result["notes"])


def test_what_a_cluster_cannot_do_is_refused_before_anything_is_written(tmp_path):
    study, out = write_study(tmp_path), tmp_path / "run"
    other = tmp_path / "packages" / "optuna-1.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Name: optuna\nVersion: 1.0\n")
    shared = tmp_path / "shared"

    def refused(*words, status=2):
        done = subprocess.run(
            command("sweep", study, "--out", out, "--address", ray.address, *map(str, words)),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        assert not out.exists()
        return done.stderr.splitlines()[-1]

    with cluster(nodes=2) as ray:
        assert "asks for 1 GPU, and no node has more than 0" in refused("--gpus-per-trial", 1)
        assert "asks for 2 CPU, and no node has more than 1" in refused("--cpus-per-trial", 2)
        assert "give --storage, a folder that all of them see or a bucket" in refused()
        assert "names no store" in refused("--storage", "ftp://host/folder")
        different = add(ray, env_vars={"PYTHONPATH": str(other.parent)})
        said = refused("--storage", shared)
        assert "has optuna 1.0 (here " in said
        assert "install the same on every node" in said
        ray.remove_node(different)


def test_a_sweep_with_little_time_is_judged_on_what_it_had(tmp_path):
    study = write_study(
        tmp_path, trainable=write_trainable(tmp_path, SLOW), budget={**TINY["budget"], "seed_epochs_per_arm": 4000}
    )
    words = ("sweep", study, "--arms", "hard_labels", "--time-budget", "15s", "--out", tmp_path / "run")
    done = subprocess.run(command(*words, "--json"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert not result["complete"]
    assert any("ended by the time budget of 15 s" in note for note in result["notes"])
    assert all(arm["tuned"]["n"] >= 4 for arm in result["arms"])
    again = subprocess.run(command("resume", tmp_path / "run"), capture_output=True, text=True, check=False)
    assert "is finished" in again.stderr


@pytest.mark.parametrize(("given", "says"), [("soon", "got soon"), ("0", "got 0"), ("-3h", "got -3h")])
def test_a_time_budget_that_is_none_is_refused(given, says, tmp_path):
    done = subprocess.run(
        command("sweep", "mlp-ensemble", f"--time-budget={given}", "--out", tmp_path / "run"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert not Path(tmp_path / "run").exists()
