"""A store that keeps what must outlive a machine: a folder, a bucket, and one that answers 503 for a while."""

import dataclasses
import threading

import pytest
import torch

from search import records, storage
from search.cluster import placement
from search.cluster.connection import fitting
from search.ledger import Ledger, TrialRecord
from search.options import Options
from search.records import TrialWritten
from search.scheduler import on_sharing
from search.state import SearchState
from search.storage import Storage
from spaces import BadInput
from tests.clusters import s3
from tests.made_ledgers import new_run, row, small_study
from trainables import by_path


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """The file that says how many requests the bucket's server answers with 503."""
    return tmp_path_factory.mktemp("s3") / "failures"


@pytest.fixture(scope="module")
def bucket(failures):
    with s3(failures) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        storage._opened.cache_clear()
        yield "s3://bucket/some/place"
        storage._opened.cache_clear()


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    return Storage(tmp_path / "place" if request.param == "folder" else request.getfixturevalue("bucket"))


def test_what_is_written_is_there_and_what_is_removed_is_not(place):
    assert place.names("a/b") == []
    assert not place.exists("a/b/1")
    place.remove("a/b/1")
    place.write("a/b/2", b"second")
    place.write("a/b/1", b"first")
    place.write("a/b/1", b"first, again")
    place.write("a/c", b"")
    assert place.names("a/b") == ["1", "2"]
    assert place.names("a") == ["c"]
    assert place.read("a/b/1") == b"first, again"
    assert place.exists("a/b/1")
    place.remove("a/b/1")
    assert place.names("a/b") == ["2"]
    with pytest.raises(FileNotFoundError):
        place.read("a/b/1")


def test_a_store_that_does_not_answer_for_a_while_is_waited_for(bucket, failures):
    place = Storage(bucket)
    failures.write_text("8")
    place.write("patient", b"came through")
    assert failures.read_text() == "0"
    assert place.read("patient") == b"came through"


def test_what_no_patience_mends_is_not_waited_for(bucket, tmp_path):
    with pytest.raises(OSError, match="NO_SUCH_BUCKET"):
        Storage("s3://none/place").write("x", b"y")
    with pytest.raises(BadInput, match="names no store"):
        Storage("ftp://host/place")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(BadInput, match="cannot be written from here"):
        records.new_place(str(tmp_path / "file"), "run")


def test_a_place_that_holds_a_sweep_is_refused(tmp_path):
    place = records.new_place(str(tmp_path), "run")
    place.write("ledger.sqlite", b"taken")
    with pytest.raises(BadInput, match="holds a sweep already: resume it with `distune resume"):
        records.new_place(str(tmp_path), "run")


# Records.

STUDY = small_study()


def asked(name, arm="kd", subsearch=0, **config):
    return TrialRecord(name, arm, subsearch, "sobol", {**STUDY.arms[arm].default, **config}, 1.0)


def written(record, epochs, ended=""):
    return TrialWritten(vars(record), [row(e, 0.5 + e / 100) for e in epochs], ended)


def test_a_ledger_that_is_lost_is_made_of_its_snapshot_and_what_came_after_it(tmp_path):
    place, run = Storage(tmp_path / "place"), tmp_path / "run"
    known, later, unfinished = asked("kd-00000"), asked("kd-00002"), asked("kd-00003")
    with new_run(run, STUDY) as ledger:
        ledger.ask(known)
        ledger.report(known.trial, [row(1, 0.51)])
        with records.snapshots(run, place, print):
            pass
    epochs = range(1, STUDY.budget.max_epochs + 1)
    records.write_trial(place, written(known, epochs, "finished"))
    records.write_trial(place, written(later, epochs[:2], "stopped"))
    records.write_trial(place, written(unfinished, epochs[:1]))
    assert records.fetch(place, tmp_path / "found") == (3, 0)
    with Ledger.open(tmp_path / "found") as ledger:
        assert [t.trial for t in ledger.trials()] == ["kd-00000", "kd-00002", "kd-00003"]
        assert {name: (e.how, e.epoch) for name, e in ledger.ends().items()} == {
            "kd-00000": ("finished", len(epochs)),
            "kd-00002": ("stopped", 2),
        }
        assert [e.epoch for e in ledger.epochs(trial="kd-00000")] == list(epochs)
        assert records.merge(place, ledger) == (0, 0)
        budget = dataclasses.replace(STUDY.budget, seed_epochs_per_arm=100_000)
        state = SearchState(dataclasses.replace(STUDY, budget=budget), ledger, seed=0)
        state.standing["kd"].spent = 0  # so that it is asked soon
        assert [live.record.trial for live in state.waiting] == ["kd-00003"]
        asked_anew = [state.next_trial().record.trial for _ in range(20)]
        assert asked_anew[0] == "kd-00003"
        kd = [name for name in asked_anew[1:] if name.startswith("kd-")]
        assert kd[:2] == ["kd-00001", "kd-00004"]  # of the first nothing was left


def test_a_record_of_another_life_of_the_trial_is_not_taken(tmp_path):
    place = Storage(tmp_path / "place")
    with new_run(tmp_path / "run", STUDY) as ledger:
        ledger.ask(asked("kd-00000", temperature=2.0))
        records.write_trial(place, written(asked("kd-00000", temperature=3.0), [1], "stopped"))
        assert records.merge(place, ledger) == (0, 0)
        assert ledger.ends() == {}


def test_confirmed_seeds_come_back_with_their_predictions(tmp_path):
    place = Storage(tmp_path / "place")
    key = {"purpose": "tuned", "arm": "kd", "subsearch": 1, "fit": "train", "trial": "kd-00001", "config": {"a": 1.0}}
    done = {"replicate": 7, "epochs": 3, "seconds": 0.5, "metrics": {"test_accuracy": 0.9}}
    predicted = {"test": torch.arange(300).numpy() % 10}
    records.write_run(place, "tuned-kd", key, {**done, "predictions": predicted})
    with new_run(tmp_path / "run", STUDY) as ledger:
        assert records.merge(place, ledger) == (0, 1)
        assert records.merge(place, ledger) == (0, 0)
        (run,) = ledger.runs("tuned")
        assert (run.arm, run.subsearch, run.replicate, run.metrics) == ("kd", 1, 7, {"test_accuracy": 0.9})
        assert (ledger.predictions([run], "test")[0] == predicted["test"]).all()


def test_the_snapshots_of_a_store_that_is_gone_stop_nothing_and_are_spoken_of_once(tmp_path, monkeypatch):
    said, place = [], Storage(tmp_path / "place")
    monkeypatch.setattr(records, "SNAPSHOT_S", 0.05)
    told = threading.Event()
    with new_run(tmp_path / "run", STUDY), records.snapshots(tmp_path / "run", place, said.append):
        monkeypatch.setattr(Storage, "write", lambda *_: told.set() or (_ for _ in ()).throw(OSError("503")))
        assert told.wait(10)
        told.clear()
        assert told.wait(10)
    assert [line for line in said if "the sweep goes on" in line] == said[:1]


# What nodes are given, and how much fits on them.


def test_a_folder_of_one_nodes_cache_comes_to_another_once(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "views" / "k" / "sub").mkdir(parents=True)
    (here / "views" / "k" / "a.npy").write_bytes(b"abc")
    (here / "views" / "k" / "sub" / "b").write_bytes(b"")
    monkeypatch.setenv("DISTUNE_CACHE", str(here))
    files = placement.packed(["views/k"])
    fetched = []
    monkeypatch.setattr(placement.ray, "get", lambda ref: fetched.append(ref) or files)
    monkeypatch.setenv("DISTUNE_CACHE", str(there))
    for _ in range(3):
        placement.place([placement.Parcel(("views/k",), "reference")])
    assert fetched == ["reference"]
    assert (there / "views" / "k" / "a.npy").read_bytes() == b"abc"
    assert (there / "views" / "k" / "sub" / "b").read_bytes() == b""


@pytest.mark.parametrize(
    ("cpus", "gpus", "have", "fit"),
    [
        (1.0, 0.0, {"CPU": 4}, 4),
        (2.0, 0.0, {"CPU": 5}, 2),
        (1.0, 0.25, {"CPU": 16, "GPU": 2}, 8),
        (1.0, 0.3, {"CPU": 16, "GPU": 2}, 6),  # three on each, and not six and a half on both
        (4.0, 0.25, {"CPU": 16, "GPU": 2}, 4),
        (1.0, 2.0, {"CPU": 16, "GPU": 3}, 1),
        (1.0, 0.5, {"CPU": 16}, 0),
    ],
)
def test_trials_that_fit_on_a_node(cpus, gpus, have, fit):
    assert fitting(have, Options(cpus_per_trial=cpus, gpus_per_trial=gpus)) == fit


def test_how_many_trials_share_a_gpu_is_advised_from_what_one_has_taken():
    gib = 2.0**30
    assert on_sharing(3.4 * gib, 80 * gib, 0.25) == (
        "a trial takes 3.4 of a GPU's 80.0 GiB: 19 fit, 4 run at once there; more do with --gpus-per-trial 0.0526"
    )
    assert "--gpus-per-trial 0.5 avoids it" in on_sharing(7.4 * gib, 18 * gib, 0.25)
    assert on_sharing(7.4 * gib, 10 * gib, 1.0).endswith("1 fit, 1 run at once there")


def test_a_users_file_runs_on_a_node_that_does_not_have_it_as_it_is_where_the_sweep_was_begun(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("def kd(student, teacher, labels, hp):\n    return 'the driver\\'s'\n")
    arm = dataclasses.replace(STUDY.arms["kd"], variant=f"{mine}:kd")
    code = placement.Code.of(dataclasses.replace(STUDY, arms={**STUDY.arms, "kd": arm}))
    assert code.files.keys() == {str(mine)}
    try:
        for there in ("def kd(*_):\n    return 'an old copy'\n", None):
            mine.write_text(there) if there else mine.unlink()
            placement.place([code])
            assert by_path.load(f"{mine}:kd")(None, None, None, None) == "the driver's"
    finally:
        by_path._brought.clear()
