"""One tiny sweep of a user's own network under a teacher from outside: confirmed, exported, and its doubt shown."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from ray.exceptions import RayTaskError
from safetensors.torch import save_file

import distune
from search.families import vision
from search.ledger import Ledger
from search.sweep import SweepFailed, _says_why
from spaces import load_study
from tests.test_networks import SOURCE
from tests.test_sweep import assert_whole, run
from trainables.datasets import load
from trainables.models.networks import Unusable, network

SEARCHED = ["hard_labels", "hard_labels_again", "kd_at"]
TINY = {
    "extends": "digits-attention-transfer",
    "name": "own-networks",
    "data": {"train_limit": 120, "test_fraction": 0.2},
    "student": {"kind": "factory", "function": "nets.py:picture", "options": {"width": 3}},
    "teacher": {
        "kind": "factory",
        "function": "nets.py:picture",
        "checkpoint": "teacher.safetensors",
        "fitted_on": "train+validation",
    },
    "accept_contaminated_validation": True,
    "confirm_on": "train+validation",
    "views": {"count": 2},
    "space": {"layers": {"choices": ["stage:norm", "norm:norm"]}},
    "budget": {
        **{"seed_epochs_per_arm": 12, "seeds_per_trial": 1, "confirm_seeds": 8, "max_epochs": 2, "subsearches": 2}
    },
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "nets.py").write_text(SOURCE)
    (folder / "study.yaml").write_text(yaml.safe_dump(TINY))
    torch.manual_seed(1)
    spec = {"kind": "factory", "function": f"{folder}/nets.py:picture", "options": {}}
    save_file(network(spec, 1, 10).module.state_dict(), folder / "teacher.safetensors")
    return folder


@pytest.fixture(scope="module")
def finished(files):
    done = run("sweep", files / "study.yaml", "--arms", ",".join(SEARCHED), "--out", files / "run", timeout=560)
    assert done.returncode == 0, done.stderr
    return files / "run", done


def test_it_is_searched_and_confirmed_with_one_teacher_for_every_fit(finished):
    out, _ = finished
    result = assert_whole(out, searched=SEARCHED, budget=12)
    assert all(arm["tuned"]["n"] == 8 for arm in result["arms"])
    with Ledger.open(out) as ledger:
        built = {(t["fit"], t["artefact"]) for t in ledger.teachers()}
    assert {fit for fit, _ in built} == {"train", "train+validation"}
    assert len({artefact for _, artefact in built}) == 1
    assert result["teacher"]["ensemble"]["mean"] is not None


def test_every_tuned_value_says_that_its_validation_was_contaminated(finished):
    out, done = finished
    result = json.loads(run("compare", out, "--json").stdout)
    assert all(arm["tuned"]["contaminated"] for arm in result["arms"])
    (note,) = [note for note in result["notes"] if "contaminated" in note]
    assert "train+validation" in note
    rows = [line for line in done.stdout.splitlines() if line.strip().startswith(tuple(SEARCHED)) and "[" in line]
    assert len([line for line in rows if " † " in line]) == len(SEARCHED)
    assert "†: selected on contaminated validation rows" in " ".join(done.stdout.split())
    page = (out / "report.html").read_text()
    assert "contaminated validation" in page
    assert page.count("†") > len(SEARCHED)


def test_a_students_own_network_is_exported_and_runs_without_the_run(finished, tmp_path):
    out, _ = finished
    copy = shutil.copytree(out, tmp_path / "run")
    done = run("export", copy, "--arm", "kd_at", "--to", tmp_path / "student")
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "student" / "config.json").read_text())
    assert facts["architecture"]["network"] == "nets.py:picture"
    assert facts["check"]["onnxruntime"]["confirmed"] == pytest.approx(facts["check"]["onnxruntime"]["accuracy"])
    assert (tmp_path / "student" / "network.py").read_text() == SOURCE
    assert "network (nets.py:picture)" in (tmp_path / "student" / "README.md").read_text()
    shutil.rmtree(copy)
    module = distune.load_exported(tmp_path / "student")
    with np.load(tmp_path / "student" / "example.npz") as example, torch.no_grad():
        said = module(torch.from_numpy(example["x"])).numpy()
        assert np.allclose(said, example["expected"], atol=1e-4)
    assert module.model.module.stem.out_channels == 3


def test_an_exported_student_teaches_another_study(finished, tmp_path):
    out, _ = finished
    done = run("export", out, "--arm", "hard_labels", "--to", tmp_path / "student", "--format", "onnx")
    assert done.returncode == 0, done.stderr
    graph = tmp_path / "student" / "student.onnx"
    teacher = f"teacher={{kind: onnx, path: {graph}, fitted_on: unknown}}"
    study = load_study("digits-attention-transfer", [teacher, "accept_contaminated_validation=true"])
    data = load({"kind": "digits", "split_seed": 0, "test_fraction": 0.2, "validation_fraction": 0.25})
    said = vision.build_teacher(study, 0, data.train, data, 0, "cpu").member_logits(data.test.x)[0]
    with torch.no_grad():
        own = distune.open_run(out).student("hard_labels").eval()(torch.from_numpy(data.test.x).float() / 255)
    assert torch.allclose(said, own, atol=1e-4)


@pytest.mark.parametrize(
    ("what", "expected"),
    [("teacher.safetensors", "is not the one that the study began with"), ("nets.py", "the student's function")],
)
def test_a_sweep_does_not_go_on_with_another_file(finished, files, what, expected):
    before = (files / what).read_bytes()
    try:
        (files / what).write_bytes(before + b"\n")
        done = run("extend", finished[0], "--confirm-seeds", "+4")
    finally:
        (files / what).write_bytes(before)
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_report_shows_maps_of_a_layer_that_all_networks_have(finished):
    with np.load(finished[0] / "maps.npz") as kept:
        assert str(kept["layer"]) == "stage"
        assert kept["arms"].tolist() == SEARCHED


def test_a_file_that_changes_while_the_sweep_runs_ends_it_with_one_line(tmp_path):
    of_worker = RayTaskError("judge_teacher", "Traceback ...", Unusable("the teacher's file is another"))
    with pytest.raises(SweepFailed) as failed, _says_why(tmp_path):
        raise of_worker.as_instanceof_cause()
    assert str(failed.value) == "the teacher's file is another"
