"""What happens to real clusters: a node that is frozen, one that is cut off for a minute, a store that does not answer.

Minutes each, so run by `make bench`. The node that is cut off lies in a network namespace of its own.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.clusters import add, cluster, id_of, s3
from tests.test_cluster import SLOW, logged, rows, start, wait_for
from tests.test_sweep import TINY, assert_whole, write_study, write_trainable

pytestmark = pytest.mark.slow
BUDGET = {**TINY["budget"], "seed_epochs_per_arm": 480}


def begun(folder, address, storage):
    study = write_study(folder, trainable=write_trainable(folder, SLOW), budget=BUDGET)
    words = ("--arms", "hard_labels", "--address", address, "--storage", storage, "--out", folder / "run")
    return start("sweep", study, *words)


def finished(folder, driver):
    _, said = driver.communicate(timeout=500)
    assert driver.returncode == 0, said
    result = assert_whole(folder / "run", budget=480)
    assert not [b for b in result["budget"].values() if "crashed" in b["ended"]]


def test_a_node_that_is_frozen_costs_its_trials_nothing_but_time(tmp_path):
    with cluster() as ray:
        frozen, _ = add(ray), add(ray)
        number = id_of(ray, frozen)
        (raylet,) = (info.process.pid for info in frozen.all_processes["raylet"])
        driver = begun(tmp_path, ray.address, tmp_path / "storage")
        wait_for(lambda: number in {node for node, *_ in logged(tmp_path)}, driver)
        os.kill(raylet, signal.SIGSTOP)
        try:
            finished(tmp_path, driver)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(raylet, signal.SIGCONT)


def test_a_store_that_answers_503_for_a_while_costs_no_trial(tmp_path, monkeypatch):
    failures = tmp_path / "failures"
    with s3(failures) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with cluster(nodes=2) as ray:
            driver = begun(tmp_path, ray.address, "s3://bucket/sweeps")
            wait_for(lambda: rows(tmp_path / "run", "ends") >= 4, driver)
            failures.write_text("150")
            finished(tmp_path, driver)
    assert failures.read_text() == "0"


def run(*words):
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def apart(address):
    """A node with two processors in a network of its own, joined by a cable that can be pulled: yields its name."""
    host, port = address.split(":")
    space, ours, theirs = f"distune{os.getpid()}", f"dta{os.getpid()}"[:15], f"dtb{os.getpid()}"[:15]
    try:
        run("ip", "netns", "add", space)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespace can be made here: {error}")
    process = None
    try:
        run("ip", "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", space)
        run("ip", "addr", "add", "10.213.7.1/30", "dev", ours)
        run("ip", "link", "set", ours, "up")
        inside = ("ip", "netns", "exec", space)
        run(*inside, "ip", "addr", "add", "10.213.7.2/30", "dev", theirs)
        run(*inside, "ip", "link", "set", theirs, "up")
        run(*inside, "ip", "link", "set", "lo", "up")
        run(*inside, "ip", "route", "add", "default", "via", "10.213.7.1")
        ray = str(Path(sys.executable).with_name("ray"))
        words = (ray, "start", f"--address={host}:{port}", "--num-cpus=2", "--node-ip-address=10.213.7.2", "--block")
        process = subprocess.Popen([*inside, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        yield ours
    finally:
        if process is not None:
            process.terminate()
            process.wait(30)
        run("ip", "netns", "del", space)


def test_a_node_that_is_cut_off_for_a_minute_and_comes_back_does_nothing_twice(tmp_path):
    with cluster(nodes=1) as ray, apart(ray.address) as cable:
        until = time.monotonic() + 60
        while len([n for n in ray.global_state.node_table() if n["Alive"]]) < 3:
            assert time.monotonic() < until, "the node apart does not join"
            time.sleep(0.5)
        far = next(n["NodeID"] for n in ray.global_state.node_table() if n["NodeManagerAddress"] == "10.213.7.2")
        driver = begun(tmp_path, ray.address, tmp_path / "storage")
        wait_for(lambda: far in {node for node, *_ in logged(tmp_path)}, driver)
        run("ip", "link", "set", cable, "down")
        time.sleep(60)
        run("ip", "link", "set", cable, "up")
        finished(tmp_path, driver)
