"""One small sweep on real Ray with a variant of the user's own and parts that it learns, and all that comes after."""

import pytest
import torch
import yaml

import distune
from search.ledger import Ledger
from spaces import BadInput
from tests.test_sweep import TINY

VARIANT = """import torch
from distune import Outputs, Term, losses


def adapted(student, teacher, labels, hp):
    guess = student.extras["adapter"](student.features["hidden"])
    adapter = losses.hinton_kd(guess, teacher.logits, hp["temperature"])
    return {
        "ce": Term(losses.cross_entropy(student.logits, labels), 1.0),
        "adapted": Term(adapter, hp["adapter_weight"]),
    }


def adapted_extras(student_shapes, teacher_shapes, hp):
    width, classes = student_shapes["features.hidden"][0], teacher_shapes["logits"][0]
    parts = (torch.nn.Linear(width, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, classes))
    return {"adapter": torch.nn.Sequential(*parts)}
"""
ARM = {
    "variant": "mine.py:adapted",
    "about": "what the teacher says, read off the hidden layer",
    "default": {"temperature": 3.0, "adapter_weight": 1.0},
    "space": {"adapter_weight": {"low": 0.05, "high": 20.0, "log": True}},
    "published": {"value": 0.95, "config": {"temperature": 3.0, "adapter_weight": 0.5}},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(VARIANT)
    arms = {"adapted": ARM, **dict.fromkeys(("label_smoothing", "kd", "kd_shuffled"))}
    claims = [{"better": "adapted", "worse": "hard_labels", "gain": 0.01, "source": "nowhere"}]
    study = {**TINY, "name": "own", "arms": arms, "claims": claims}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return distune.sweep(distune.load_study(folder / "study.yaml"), out=folder / "run", quiet=True)


def test_it_is_searched_and_confirmed_like_any_other(run):
    compared = {arm["arm"]: arm for arm in run.compare()["arms"]}
    assert run.compare()["complete"]
    assert compared["adapted"]["tuned"]["n"] == compared["hard_labels"]["tuned"]["n"] == 8
    assert compared["adapted"]["as_published"]["n"] == 8
    assert compared["adapted"]["published"] == 0.95
    assert 0.4 < compared["adapted"]["tuned"]["mean"] <= 1
    (claim,) = run.compare()["published_claims"]
    assert claim["measured"] is not None


def test_its_trials_searched_the_baselines_dimensions_and_its_own(run):
    trials = run.trials()
    own = trials[trials.arm == "adapted"]
    assert own["config.adapter_weight"].nunique() > 1
    assert own["config.learning_rate"].nunique() > 1
    assert set(own["config.temperature"]) == {3.0}


def test_its_terms_are_audited(run):
    own = {trial for trial, arm in zip(run.trials().trial, run.trials().arm, strict=True) if arm == "adapted"}
    with Ledger.open(run.path) as ledger:
        audits = [row for row in ledger.audits() if row["trial"] in own]
    assert {row["term"] for row in audits} == {"ce", "adapted"}


def test_its_student_is_exported_without_what_was_learned_beside_it(run, tmp_path):
    facts = run.export("adapted", tmp_path / "student", formats=("safetensors",))
    student = distune.load_exported(tmp_path / "student")
    assert not any("extras" in name or "adapter" in name for name in student.state_dict())
    assert facts["parameters"] == sum(p.numel() for p in run.student("adapted").parameters())
    assert torch.isfinite(student(torch.zeros(3, 20))).all()


def test_it_is_in_the_report(run):
    page = (run.path / "report.html").read_text()
    assert ARM["about"] in page


def test_the_runs_study_names_it_by_its_absolute_path(run):
    stored = yaml.safe_load((run.path / "study.yaml").read_text())["arms"]["adapted"]
    assert stored["variant"] == f"{run.path.parent / 'mine.py'}:adapted"


def test_it_is_not_gone_on_with_once_the_variant_has_changed(run):
    from search.progress import Progress
    from search.sweep import extend
    from spaces import Extension

    mine = run.path.parent / "mine.py"
    mine.write_text(VARIANT.replace('hp["temperature"]', "2.0"))
    try:
        with pytest.raises(BadInput, match=r"the variant adapted of adapted \(\w+ -> \w+\).*not be comparable"):
            extend(run.path, Extension(confirm_seeds="+8"), Progress(True))
    finally:
        mine.write_text(VARIANT)
