"""What happens to real clusters: a node that is frozen, told to leave, cut off or full; a store that does not answer.

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

from tests.clusters import HEAD, add, cluster, id_of, s3
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
    return said


@pytest.mark.parametrize("sent", [signal.SIGSTOP, signal.SIGTERM])
def test_a_node_that_is_frozen_or_told_to_leave_costs_its_trials_nothing_but_time(tmp_path, sent):
    """SIGTERM is what a spot node is sent before it is taken away."""
    with cluster() as ray:
        frozen, _ = add(ray), add(ray)
        number = id_of(ray, frozen)
        (raylet,) = (info.process.pid for info in frozen.all_processes["raylet"])
        driver = begun(tmp_path, ray.address, tmp_path / "storage")
        wait_for(lambda: number in {node for node, *_ in logged(tmp_path)}, driver)
        os.kill(raylet, sent)
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


def test_a_node_whose_disk_is_full_costs_its_trials_nothing_but_time(tmp_path):
    full, filler = tmp_path / "full", tmp_path / "full" / "filler"
    full.mkdir()
    try:
        run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", full)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk of its own can be mounted here: {error}")
    try:
        with contextlib.suppress(OSError):
            filler.write_bytes(bytes(2**17))
        with cluster() as ray:
            add(ray, env_vars={"DISTUNE_CACHE": str(tmp_path / "roomy")})
            number = id_of(ray, add(ray, env_vars={"DISTUNE_CACHE": str(full)}))
            driver = begun(tmp_path, ray.address, tmp_path / "storage")
            said = finished(tmp_path, driver)
        assert "warning: a node's disk is full" in said
        assert number not in {node for node, *_ in logged(tmp_path)}
    finally:
        run("umount", full)


def run(*words):
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


HERE, THERE = "10.213.7.1", "10.213.7.2"


@contextlib.contextmanager
def cable():
    """A network of its own at THERE, joined to HERE by a cable: yields the network's name and the cable's."""
    space, ours, theirs = f"distune{os.getpid()}", f"dta{os.getpid()}"[:15], f"dtb{os.getpid()}"[:15]
    try:
        run("ip", "netns", "add", space)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespace can be made here: {error}")
    try:
        run("ip", "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", space)
        run("ip", "addr", "add", f"{HERE}/30", "dev", ours)
        run("ip", "link", "set", ours, "up")
        inside = ("ip", "netns", "exec", space)
        run(*inside, "ip", "addr", "add", f"{THERE}/30", "dev", theirs)
        run(*inside, "ip", "link", "set", theirs, "up")
        run(*inside, "ip", "link", "set", "lo", "up")
        yield space, ours
    finally:
        run("ip", "netns", "del", space)


@contextlib.contextmanager
def node_in(space, address):
    """A node with two processors in that network; `ray start` again where it has left, as a service manager would."""
    ray = str(Path(sys.executable).with_name("ray"))
    words = (ray, "start", f"--address={address}", "--num-cpus=2", f"--node-ip-address={THERE}", "--block")
    again = f"while true; do {' '.join(words)}; sleep 1; done"
    process = subprocess.Popen(
        ("ip", "netns", "exec", space, "sh", "-c", again),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        for number in run("ip", "netns", "pids", space).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGKILL)
        process.wait(30)


def test_a_node_that_is_cut_off_for_a_minute_and_comes_back_does_nothing_twice(tmp_path):
    with cable() as (space, end), cluster(nodes=1, head={**HEAD, "node_ip_address": HERE}, node_ip_address=HERE) as ray:

        def far():
            table = ray.global_state.node_table()
            return {n["NodeID"] for n in table if n["Alive"] and n["NodeManagerAddress"] == THERE}

        def working():
            return far() & {node for node, *_ in logged(tmp_path)}

        with node_in(space, ray.address):
            until = time.monotonic() + 90
            while not far():
                assert time.monotonic() < until, "the node apart does not join"
                time.sleep(0.5)
            driver = begun(tmp_path, ray.address, tmp_path / "storage")
            wait_for(working, driver)
            run("ip", "link", "set", end, "down")
            time.sleep(60)  # Ray may or may not have given the node up by then
            run("ip", "link", "set", end, "up")
            finished(tmp_path, driver)
