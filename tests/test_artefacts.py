"""Artefacts are built once, addressed by all that they depend on, checked when read; a teacher that saw too much is
refused."""

import json
import multiprocessing
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from search.payload import build_teacher, trial_config
from spaces import load_study
from trainables import artefacts, datasets, mlp
from trainables.artefacts import build_once, is_stored
from trainables.cache import cache_folder
from trainables.context import Context, TeacherOutputs
from trainables.datasets import Leak, Rows
from trainables.streams import Streams
from trainables.teachers import ensemble

ROWS = np.array([11, -3, 2**62], dtype=np.int64)
TENSORS = {
    "weights": torch.tensor([[0.1, -0.0, float("nan")], [float("inf"), 1e-45, 3.0]]),
    "halves": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "counts": torch.tensor([2**40, -1]),
}


class Builder:
    """What to build, and how often it was asked to."""

    def __init__(self, tensors=TENSORS):
        self.tensors, self.calls = tensors, 0

    def __call__(self):
        self.calls += 1
        return dict(self.tensors), {"rows": 3}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTUNE_CACHE", str(tmp_path))
    return tmp_path


def same_bits(a, b):
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


# built once


def test_the_same_recipe_and_rows_are_built_once():
    build = Builder()
    first, second = (build_once("things", {"width": 3, "of": [1, 2]}, ROWS, build) for _ in range(2))
    assert build.calls == 1
    assert first.key == second.key
    assert first.about["recipe"] == second.about["recipe"] == {"width": 3, "of": [1, 2]}
    assert second.about["rows"] == 3
    assert second.about["seconds"] == first.about["seconds"]


def test_tensors_and_the_rows_they_were_fitted_on_come_back_bit_for_bit():
    build_once("things", {}, ROWS, Builder())
    stored = build_once("things", {}, ROWS, Builder({}))
    assert stored.tensors.keys() == TENSORS.keys()
    assert all(same_bits(stored.tensors[name], TENSORS[name]) for name in TENSORS)
    assert stored.fitted_on.dtype == np.int64
    assert np.array_equal(stored.fitted_on, ROWS)


@pytest.mark.parametrize(
    ("kind", "recipe", "rows"),
    [
        ("things", {"width": 4}, ROWS),
        ("things", {"width": 3, "depth": 1}, ROWS),
        ("things", {"width": 3}, ROWS[:2]),
        ("things", {"width": 3}, ROWS + 1),
        ("others", {"width": 3}, ROWS),
    ],
)
def test_another_recipe_other_rows_or_another_kind_are_built_for_themselves(kind, recipe, rows):
    build_once("things", {"width": 3}, ROWS, Builder())
    assert not is_stored(kind, recipe, rows)
    build = Builder({"one": torch.ones(1)})
    assert build_once(kind, recipe, rows, build).tensors["one"].item() == 1
    assert build.calls == 1
    assert is_stored(kind, recipe, rows)
    assert is_stored("things", {"width": 3}, ROWS)


def test_the_order_of_a_recipes_keys_does_not_matter():
    a = build_once("things", {"width": 3, "depth": 1}, ROWS, Builder())
    assert build_once("things", {"depth": 1, "width": 3}, ROWS, Builder()).key == a.key


def build_slowly(folder, barrier):
    """What each of two processes does: note the build, and take long enough to be met by the other."""

    def build():
        with (folder / "built").open("a") as log:
            log.write("built\n")
        time.sleep(0.3)
        return {"one": torch.ones(1)}, {}

    barrier.wait(60)
    return build_once("things", {}, ROWS, build)


def send_slowly_built(folder, barrier, pipe):
    artefact = build_slowly(folder, barrier)
    pipe.send((artefact.key, artefact.tensors["one"].item()))


def test_two_processes_that_ask_at_once_build_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, (here, there) = context.Barrier(2), context.Pipe()
    other = context.Process(target=send_slowly_built, args=(tmp_path, barrier, there))
    other.start()
    ours = build_slowly(tmp_path, barrier)
    assert here.poll(60)
    assert here.recv() == (ours.key, 1.0)
    other.join(60)
    assert (tmp_path / "built").read_text() == "built\n"


# what is damaged is built again


def overwrite(text):
    return lambda path: path.write_bytes(text)


def flip_a_bit(path):
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(bytes(blob))


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def forget_the_checksum(path):
    about = json.loads(path.read_text())
    del about["sha256"]
    path.write_text(json.dumps(about))


def remove(path):
    path.unlink()


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("tensors.safetensors", flip_a_bit),
        ("tensors.safetensors", cut),
        ("tensors.safetensors", overwrite(b"")),
        ("tensors.safetensors", remove),
        ("about.json", cut),
        ("about.json", overwrite(b"")),
        ("about.json", overwrite(b"\xff\xfe nonsense")),
        ("about.json", overwrite(b"{}")),
        ("about.json", overwrite(b"[]")),
        ("about.json", forget_the_checksum),
        ("about.json", remove),
    ],
)
def test_a_damaged_artefact_is_built_again(tmp_path, file, damage):
    key = build_once("things", {}, ROWS, Builder()).key
    damage(tmp_path / "things" / key / file)
    build = Builder({"weights": torch.tensor([7.0])})
    assert build_once("things", {}, ROWS, build).tensors["weights"].item() == 7
    assert build_once("things", {}, ROWS, build).tensors["weights"].item() == 7
    assert build.calls == 1


def folders(cache):
    return [path.name for path in (cache / "things").iterdir() if path.is_dir()]


def test_a_build_that_fails_leaves_no_folder_and_the_next_one_succeeds(tmp_path):
    def fail():
        raise FloatingPointError("diverged")

    with pytest.raises(FloatingPointError):
        build_once("things", {}, ROWS, fail)
    assert folders(tmp_path) == []
    assert not is_stored("things", {}, ROWS)
    build = Builder()
    build_once("things", {}, ROWS, build)
    assert build.calls == 1


def test_nothing_is_seen_at_the_address_while_it_is_being_built(tmp_path):
    def build():
        assert folders(tmp_path) == []
        return {"one": torch.ones(1)}, {}

    key = build_once("things", {}, ROWS, build).key
    assert folders(tmp_path) == [key]
    assert sorted(p.name for p in (tmp_path / "things" / key).iterdir()) == ["about.json", "tensors.safetensors"]


def test_a_disk_that_fills_up_while_writing_leaves_the_address_free(tmp_path, monkeypatch):
    def full(path, blob):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(artefacts, "write_atomically", full)
        with pytest.raises(OSError, match="No space"):
            build_once("things", {}, ROWS, Builder())
    assert not is_stored("things", {}, ROWS)
    assert build_once("things", {}, ROWS, Builder({"one": torch.ones(1)})).tensors["one"].item() == 1


def test_the_cache_lies_where_the_environment_says(tmp_path, monkeypatch):
    assert cache_folder() == tmp_path
    monkeypatch.delenv("DISTUNE_CACHE")
    assert cache_folder().name == "distune"


# teachers

STUDY = load_study(
    "mlp-ensemble",
    [
        "data.n_samples=600",
        "data.fresh_rows=0",
        "teacher={members: 2, hidden: [4], dropout: [0.1], epochs: 1, learning_rate: 0.001, batch_size: 64}",
    ],
)
DATA = datasets.load(asdict(STUDY.data))
STREAMS = Streams(STUDY.name)


def teacher_of(rows, study=STUDY, teacher_set=0, streams=STREAMS):
    return ensemble.build(asdict(study.teacher), rows, DATA.classes, teacher_set, streams)


def flipped(rows, number):
    y = rows.y.copy()
    y[:number] = 1 - y[:number]
    return Rows(rows.x, y)


def test_a_teacher_is_trained_once_and_comes_back_the_same():
    first = teacher_of(DATA.train)
    assert ensemble.is_built(asdict(STUDY.teacher), DATA.train, 0, STREAMS)
    written = (cache_folder() / "teachers" / first.artefact.key / "about.json").stat().st_mtime_ns
    again = teacher_of(DATA.train)
    assert (cache_folder() / "teachers" / first.artefact.key / "about.json").stat().st_mtime_ns == written
    assert torch.equal(first.member_logits(DATA.test.x), again.member_logits(DATA.test.x))
    assert np.array_equal(again.fitted_on, DATA.train.fingerprints())


@pytest.mark.parametrize(
    "other",
    [
        {"rows": flipped(DATA.train, 1)},
        {"rows": flipped(DATA.train, len(DATA.train))},
        {"rows": DATA.train.joined(DATA.validation)},
        {"study": load_study("mlp-ensemble", ["teacher.epochs=2"])},
        {"teacher_set": 1},
        {"streams": Streams(STUDY.name, seed=1)},
    ],
    ids=["one label", "all labels", "more rows", "other recipe", "other set", "other sweep seed"],
)
def test_a_teacher_with_other_labels_rows_or_recipe_is_another_one(other):
    teacher_of(DATA.train)
    wanted = {"rows": DATA.train, "study": STUDY, "teacher_set": 0, "streams": STREAMS, **other}
    spec = asdict(wanted["study"].teacher)
    assert not ensemble.is_built(spec, wanted["rows"], wanted["teacher_set"], wanted["streams"])


def test_members_differ_and_the_teacher_is_their_mean():
    teacher = teacher_of(DATA.train)
    a, b = teacher.member_logits(DATA.test.x)
    assert not torch.allclose(a, b)
    torch.testing.assert_close(teacher.logits(DATA.test.x), (a + b) / 2)
    assert teacher.parameters == 2 * (20 * 4 + 4 + 4 * 2 + 2)


# planted leaks


def search_context(*teachers):
    return Context(
        fit=DATA.train,
        validation=DATA.validation,
        classes=DATA.classes,
        teachers=teachers,
        streams=STREAMS,
    )


def outputs_of(teacher):
    return TeacherOutputs(teacher.logits(DATA.train.x).numpy(), teacher.fitted_on)


def first_epoch(arm, context):
    return next(mlp.train(trial_config(STUDY, arm, STUDY.arms[arm].default, (0, 1), epochs=1), context))


@pytest.mark.parametrize("arm", ["kd", "kd_shuffled"])
@pytest.mark.parametrize("seen", [1, 7, 96])
def test_a_teacher_fitted_on_validation_rows_is_refused_by_a_trial(arm, seen):
    clean = outputs_of(teacher_of(DATA.train))
    some = Rows(DATA.validation.x[:seen], DATA.validation.y[:seen])
    leaky = outputs_of(teacher_of(DATA.train.joined(some)))
    assert first_epoch(arm, search_context(clean)).epoch == 1
    with pytest.raises(Leak, match=f"fitted on {seen} of the 96 validation rows"):
        first_epoch(arm, search_context(leaky))
    with pytest.raises(Leak, match=f"fitted on {seen} of the 96 validation rows"):
        first_epoch(arm, search_context(clean, leaky))


def test_a_teacher_of_all_rows_is_welcome_where_nothing_is_selected():
    both = DATA.train.joined(DATA.validation)
    teacher = teacher_of(both)
    outputs = TeacherOutputs(teacher.logits(both.x).numpy(), teacher.fitted_on)
    result = first_epoch("kd", replace(search_context(outputs), fit=both, validation=None))
    assert not any(name.startswith("val_") for name in result.metrics)


def with_some_of(rows, other, number):
    return rows.joined(Rows(other.x[:number], other.y[:number]))


def test_a_split_whose_training_rows_hold_validation_rows_builds_no_teacher_for_the_search():
    leaky = replace(DATA, train=with_some_of(DATA.train, DATA.validation, 7)).without_test()
    with pytest.raises(Leak, match="fitted on 7 of the 96 validation rows"):
        build_teacher(STUDY, 0, leaky, "train", 0)


@pytest.mark.parametrize("fit", ["train", "train+validation"])
def test_a_split_whose_training_rows_hold_test_rows_builds_no_teacher_at_all(fit):
    assert build_teacher(STUDY, 0, DATA, fit, 0).parameters > 0
    with pytest.raises(Leak, match="fitted on 5 of the 120 test rows"):
        build_teacher(STUDY, 0, replace(DATA, train=with_some_of(DATA.train, DATA.test, 5)), fit, 0)
