"""The image study end to end on real Ray: a folder of PNGs, described and released arms, audit and comparison."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

import distune
from search import maps
from search.ledger import Ledger
from spaces import BadInput
from tests.test_sweep import assert_whole, run
from trainables.datasets import load

FIXED = ["released_baseline", "released_kd", "released_fa", "released_at", "released_fa_at", "stem_only", "loss_only"]
SEARCHED = ["hard_labels", "hard_labels_again", "kd_fa_at"]
TINY = {
    "extends": "cifar10-attention-transfer",
    "name": "tiny-images",
    "data": {"kind": "image_folder", "path": "images", "size": 16, "validation_fraction": 0.25},
    "student": {"depth": 8, "width": 4, "stem": "cifar"},
    "teacher": {
        **{"depth": 8, "width": 8, "stem": "cifar", "pretrained": False, "epochs": 4},
        **{"learning_rate": 0.05, "schedule": "cosine"},
    },
    "views": {"count": 2, "pad": 1, "flip": False},
    "space": {"layers": {"choices": ["layer2", "layer3"]}},
    "budget": {
        **{"seed_epochs_per_arm": 12, "seeds_per_trial": 1, "confirm_seeds": 10, "max_epochs": 2, "subsearches": 2}
    },
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three classes of scikit-learn's digits as PNGs of 8x8, in the folders that a user has."""
    folder = tmp_path_factory.mktemp("data")
    x, y = load_digits(return_X_y=True)
    for label in range(3):
        for number, digit in enumerate(x[y == label][:110]):
            path = folder / "images" / ("train" if number < 80 else "test") / str(label) / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digit.reshape(8, 8) * 15).astype(np.uint8)).save(path)
    (folder / "study.yaml").write_text(yaml.safe_dump(TINY))
    return folder


@pytest.fixture(scope="module")
def finished(images):
    arms = ",".join([*SEARCHED, *FIXED])
    done = run("sweep", images / "study.yaml", "--arms", arms, "--out", images / "run")
    assert done.returncode == 0, done.stderr
    return images / "run", done


def test_a_sweep_of_an_image_folder_confirms_described_and_released_arms(finished):
    out, done = finished
    result = assert_whole(out, searched=SEARCHED, budget=12)
    arms = {arm["arm"]: arm for arm in result["arms"]}
    assert [a for a in arms if arms[a]["kind"] == "searched"] == SEARCHED
    assert all(arms[a]["tuned"]["n"] == 10 for a in SEARCHED)
    assert all(arms[a]["tuned"] is None and arms[a]["fixed"]["n"] == 10 for a in FIXED)
    assert result["budget"].keys() == set(SEARCHED)
    for words in ("released_fa_at", "beside accuracy", "best epoch on the test set", "where a difference"):
        assert words in done.stdout


def test_a_sweep_leaves_its_report_with_the_maps_of_teacher_and_students(finished):
    out, done = finished
    assert f"report: {out / 'report.html'}" in done.stderr
    page = (out / "report.html").read_text()
    assert "test image 3, class 2: attention map of kd_fa_at" in page
    with np.load(out / "maps.npz") as kept:
        assert kept["images"].shape == (3, 3, 16, 16)
        assert kept["classes"].tolist() == [0, 1, 2]
        assert kept["arms"].tolist() == SEARCHED
        assert str(kept["layer"]) == "layer3"  # of 16x16 images the deepest with maps of 4x4
        for drawn in (kept["teacher"], *kept["students"]):
            assert drawn.shape == (3, 4, 4)
            assert np.allclose(drawn.max(axis=(1, 2)), 1, atol=1e-3)
            assert drawn.min() >= 0
        assert ((kept["mask"] >= 0) & (kept["mask"] <= 1)).all()
    with Ledger.open(out) as ledger:
        assert [look["split"] for look in ledger.looks() if look["purpose"] == "maps"] == ["test"]


def test_maps_that_cannot_be_drawn_say_why(finished, tmp_path, monkeypatch, capsys):
    out, _ = finished
    copy = shutil.copytree(out, tmp_path / "run")
    (copy / "maps.npz").unlink()
    monkeypatch.setenv("DISTUNE_CACHE", str(tmp_path / "empty"))
    with pytest.raises(BadInput, match="its teacher is not in the cache any more"):
        maps.write(copy)
    distune._draw_maps(copy, again=False)
    assert "the report has no maps: " in capsys.readouterr().err
    assert not (copy / "maps.npz").exists()
    assert "Where they look" not in distune.open_run(copy).report().read_text()


def test_everything_beside_accuracy_is_measured(finished):
    out, _ = finished
    arms = {arm["arm"]: arm for arm in distune.open_run(out).compare()["arms"]}
    for arm in arms.values():
        beside = {name: value["mean"] for name, value in arm["evaluation"].items()}
        assert 0 <= beside["calibration_error"] <= 1
        assert beside["nll"] > 0
        assert beside["ms_per_sample_batch_1"] > beside["ms_per_sample_batch_128"] > 0
        assert 0 <= beside["teacher_agreement"] <= 1
        assert all(0 <= v <= 1 for name, v in beside.items() if name.startswith("accuracy"))
    assert (
        arms["released_kd"]["evaluation"]["parameters"]["mean"]
        > arms["hard_labels"]["evaluation"]["parameters"]["mean"]
    )


def test_the_released_arms_are_one_arm_to_the_last_prediction(finished):
    out, _ = finished
    effects = {e["effect"]: e for e in distune.open_run(out).compare()["effects"]}
    dead = [e for name, e in effects.items() if "(dead)" in name]
    assert len(dead) == 3
    assert all(e["mean"] == 0 and e["ci95"] == [0, 0] for e in dead)
    assert len(effects) == 5
    with Ledger.open(out) as ledger:
        predicted = {}
        for arm in FIXED[1:5]:
            runs = sorted((r for r in ledger.runs("fixed") if r.arm == arm), key=lambda r: r.replicate)
            predicted[arm] = ledger.predictions(runs, "test")
    assert all(np.array_equal(p, predicted["released_kd"]) for p in predicted.values())


def test_the_main_effects_of_stem_and_loss_are_those_of_the_four_cells(finished):
    out, _ = finished
    result = distune.open_run(out).compare()
    mean = {arm["arm"]: arm["fixed"]["mean"] for arm in result["arms"] if arm["kind"] == "fixed"}
    stem = (mean["stem_only"] - mean["released_baseline"] + mean["released_kd"] - mean["loss_only"]) / 2
    loss = (mean["loss_only"] - mean["released_baseline"] + mean["released_kd"] - mean["stem_only"]) / 2
    measured = {e["effect"].split(":")[0]: e["mean"] for e in result["effects"]}
    assert measured["stem"] == pytest.approx(stem)
    assert measured["loss and head"] == pytest.approx(loss)


def test_the_best_of_epochs_is_a_recorded_look_and_no_worse_than_the_last_epoch(finished):
    out, _ = finished
    with Ledger.open(out) as ledger:
        assert [look["purpose"] for look in ledger.looks()] == ["confirmation", "peeks", "maps"]
        peeked = [r for r in ledger.runs() if "test_accuracy_best_epoch" in r.metrics]
        assert {r.purpose for r in peeked} == {"as_published", "fixed"}
        assert all(r.metrics["test_accuracy_best_epoch"] >= r.metrics["test_accuracy"] for r in peeked)
    arms = {arm["arm"]: arm for arm in distune.open_run(out).compare()["arms"]}
    assert arms["released_baseline"]["best_of_epochs"]["published"] == 0.8056
    assert arms["released_baseline"]["as_published"] == arms["released_baseline"]["fixed"]
    assert "best_of_epochs" not in arms["stem_only"]


def test_audits_of_a_sweep_are_in_its_ledger_with_a_positive_norm_for_every_described_term(finished):
    out, _ = finished
    with Ledger.open(out) as ledger:
        audits, arm_of = ledger.audits(), {t.trial: t.arm for t in ledger.trials()}
    assert {arm_of[a["trial"]] for a in audits} == set(SEARCHED)
    assert {a["term"] for a in audits if arm_of[a["trial"]] == "kd_fa_at"} == {"ce", "kd", "fa", "at"}
    assert all(a["norm"] > 0 for a in audits)


def test_the_audit_command_tells_living_terms_from_dead_ones(images):
    done = run("audit", images / "study.yaml", "--json")
    assert done.returncode == 0, done.stderr
    terms = json.loads(done.stdout)["terms"]
    described = [t for t in terms if not t["arm"].startswith("released")]
    assert {t["term"] for t in described} == {"ce", "ce_smoothed", "kd", "fa", "at"}
    assert all(t["norm"] > 0 and t["status"] == "alive" for t in described)
    dead = {(t["arm"], t["term"]) for t in terms if t["status"] == "dead, declared"}
    of_both = {("released_fa_at", "fa"), ("released_fa_at", "at")}
    assert dead == {("released_kd", "kd"), ("released_fa", "fa"), ("released_at", "at"), *of_both}
    assert all(t["norm"] == 0 and t["declared_dead"] for t in terms if (t["arm"], t["term"]) in dead)
    assert {t["epoch"] for t in terms} == {0, 1}


def test_a_student_read_back_gives_the_accuracy_that_was_recorded(finished):
    out, _ = finished
    opened = distune.open_run(out)
    data = load(yaml.safe_load((out / "study.yaml").read_text())["data"])
    student = opened.student("kd_fa_at")
    accuracy = (student(torch.from_numpy(np.array(data.test.x)) / 255).argmax(1).numpy() == data.test.y).mean()
    confirmed = opened.confirmed()
    own = confirmed[
        (confirmed.purpose == "tuned") & (confirmed.arm == "kd_fa_at") & (confirmed.fit == "train+validation")
    ]
    assert np.isclose(own.test_accuracy, accuracy).any()


def test_a_kept_student_has_neither_its_optimiser_nor_its_regressors(finished):
    out, _ = finished
    files = list((out / "models").glob("tuned-kd_fa_at-*.safetensors"))
    assert len(files) == 20  # ten seeds on each of the two parts that are fitted on
    for file in files:
        names = load_file(file).keys()
        assert {name.split(".")[1] for name in names if name[0].isdigit()} == {"model"}


def test_a_resumed_finished_sweep_changes_nothing(finished):
    out, _ = finished
    before = distune.open_run(out).compare()
    assert run("resume", out).returncode == 0
    assert json.dumps(distune.open_run(out).compare()) == json.dumps(before)


def test_a_sweep_whose_released_arm_does_not_declare_its_dead_terms_is_refused(images, tmp_path):
    out = tmp_path / "run"
    arms = ["--arms", "released_at", "--set", "arms.released_at.dead_terms=[]"]
    done = run("sweep", images / "study.yaml", *arms, "--out", out)
    assert done.returncode == 1
    assert "the loss term at has a weight but sends the student no gradient" in done.stderr
    with Ledger.open(out) as ledger:
        assert ledger.trials() == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("arms.kd_at.default.layers=layer7", ["layer7"]),
        ("space.layers.choices=[layer2, layer3, layer9]", ["no layer 'layer9'", "layer1, layer2, layer3"]),
        ("student.stem=torchvision", ["layer2 is 2x2", "4x4"]),
        ("views.cache_limit_mb=1", ["MB", "cache_limit_mb is 1"]),
        ("views.count=99999", ["MB", "cache_limit_mb"]),
        ("data.path=nowhere", ["nowhere is not a folder"]),
        ("data.train_limit=2", ["train_limit"]),
        ("student.depth=9", ["student.depth", "9"]),
        ("teacher.pretrained=true", ["pretrained weights exist for 18, 34 and 50 layers"]),
    ],
)
def test_bad_input_is_refused_in_one_line_before_any_work(images, tmp_path, change, says):
    out = tmp_path / "run"
    done = run("sweep", images / "study.yaml", "--set", change, "--out", out)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("distune: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert all(part in done.stderr for part in says), done.stderr
    assert not out.exists()
