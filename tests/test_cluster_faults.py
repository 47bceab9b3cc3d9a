"""What happens to real clusters: a node that is frozen, a store that does not answer. Minutes each: `make bench`."""

import contextlib
import os
import signal

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
