"""A variant of the user's own: found by path, held against its contract before anything trains, and packed or not."""

import json
import textwrap
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import yaml

from search import families, revisions
from search.local import check_study
from search.payload import examine_own_variants, refuse_unusable
from search.seeds import SEARCH
from spaces import BadInput, load_study, to_yaml
from tests.own_studies import parameters, trained
from trainables.datasets import load

HEAD = "import torch\nfrom distune import Outputs, Term, losses\n\n\ndef mine(student, teacher, labels, hp):\n"
CE = "    ce = losses.cross_entropy(student.logits, labels)\n"
KD = (
    CE
    + '    kd = losses.hinton_kd(student.logits, teacher.logits, 2.0)\n    return {"ce": Term(ce, 1.0), "kd": Term(kd, '
)
GOOD = KD + 'hp["beta"])}\n'
ARM = {"default": {"beta": 2.0}, "space": {"beta": {"low": 0.1, "high": 10.0, "log": True}}, "about": "mine"}
SMALL = {
    "mlp-ensemble": {"data": {"n_samples": 400, "fresh_rows": 0}, "confirm_teachers": 1},
    "promo-attention": {"data": {"rows": 300, "test_rows": 200}, "confirm_teachers": 1},
    "digits-attention-transfer": {"data": {"train_limit": 64}, "student": {"width": 4}, "confirm_teachers": 1},
}


def study_of(folder, body, base="mlp-ensemble", head=HEAD, function="mine", **arm):
    """A study with the arm `mine` beside those that every study has, its variant in a file beside it."""
    (folder / "mine.py").write_text(head + body)
    built_in = load_study(base)
    arms = {name: None for name in built_in.arms if not name.startswith("hard_labels")}
    arms["mine"] = {"variant": f"mine.py:{function}", **ARM, **arm}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"extends": base, "name": "mine", "effects": [], "arms": arms, **SMALL[base]}))
    return load_study(path)


def refusal(study):
    with pytest.raises(BadInput) as refused:
        examine_own_variants(study)
    line = str(refused.value)
    assert "\n" not in line
    assert line.startswith("arms.mine: ")
    return line


# the study


def test_a_variant_by_path_is_resolved_beside_its_file_and_survives_its_yaml(tmp_path):
    study = study_of(tmp_path, GOOD)
    assert study.arms["mine"].variant == f"{tmp_path / 'mine.py'}:mine"
    stored = tmp_path / "elsewhere.yaml"
    stored.write_text(to_yaml(study))
    assert load_study(stored) == study


def test_an_arm_of_ones_own_searches_what_the_baseline_searches_too(tmp_path):
    study = study_of(tmp_path, GOOD)
    mine, baseline = study.arms["mine"], study.arms["hard_labels"]
    assert mine.space == {**baseline.space, "beta": mine.space["beta"]}
    assert mine.default == {**baseline.default, "beta": 2.0}
    assert mine.teacher_rows == "own"


def test_a_fixed_arm_of_ones_own_stays_fixed(tmp_path):
    path = tmp_path / "study.yaml"
    (tmp_path / "mine.py").write_text(HEAD + GOOD)
    arms = {"mine": {"variant": "mine.py:mine", "default": {"beta": 1.0}}}
    path.write_text(yaml.safe_dump({"extends": "mlp-ensemble", "arms": arms}))
    assert load_study(path).arms["mine"].kind == "fixed"


def test_an_arm_of_the_extended_study_can_be_left_out(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("extends: mlp-ensemble\narms: {kd_shuffled: null}")
    study = load_study(path)
    assert list(study.arms) == ["hard_labels", "hard_labels_again", "label_smoothing", "kd"]
    assert ("kd", "kd_shuffled") not in [pair[:2] for pair in study.contrasts]


def test_a_variants_file_is_in_the_code_that_a_resume_compares(tmp_path):
    study = study_of(tmp_path, GOOD)
    before = revisions.code_of(study)
    (tmp_path / "mine.py").write_text(HEAD + GOOD.replace("2.0", "3.0"))
    changed = {k for k, v in revisions.code_of(study).items() if before[k] != v}
    assert changed == {"the variant mine of mine"}
    (tmp_path / "mine.py").unlink()
    with pytest.raises(BadInput, match=r"mine\.py, which the study names, is not there"):
        revisions.code_of(study)


# bad variants, each refused before a sweep in one line

BAD = {
    "returns a tensor": (CE + "    return ce", ["must return a dict of Terms", "returned a tensor of shape (8,)"]),
    "returns nothing": ("    pass", ["must return a dict of Terms", "NoneType"]),
    "returns tensors by name": (CE + '    return {"ce": ce}', ["'ce': a tensor of shape (8,)"]),
    "averages by itself": (CE + '    return {"ce": Term(ce.mean(), 1.0)}', ["one number a sample", "shape (8,)", "()"]),
    "weighs by a tensor": (CE + '    return {"ce": Term(ce, ce)}', ["weight of 'ce' must be a finite number"]),
    "raises": ('    x = 1\n    raise RuntimeError("oh\\nno")', ["mine.py:7", "mine raised RuntimeError: oh", "logits"]),
    "wrong shapes": ("    student.logits @ teacher.logits", ["mine.py:6", "RuntimeError", "student.logits (8, 2)"]),
    "is nan": (CE + '    return {"ce": Term(ce * float("nan"), 1.0)}', ["'ce' is nan on a dry batch"]),
    "is nan at an end of its space": (
        CE + '    return {"ce": Term(ce * torch.tensor(hp["beta"] - 0.5).sqrt(), 1.0)}',
        ["'ce' is nan on a dry batch"],
    ),
    "changes its input": (
        "    student.logits.mul_(2)\n" + CE + '    return {"ce": Term(ce, 1.0)}',
        ["changes student.logits in place"],
    ),
    "changes the teacher": (
        "    teacher.logits[0] = 0\n" + GOOD,
        ["changes teacher.logits in place"],
    ),
    "changes the labels": ("    labels += 0 * labels + 1\n    labels %= 2\n" + GOOD, ["changes labels in place"]),
    "changes hp": ('    hp["beta"] = 3.0\n' + GOOD, ["changes its hyperparameters"]),
    "keeps state": (
        "    mine.calls = getattr(mine, 'calls', 0) + 1\n" + CE + '    return {"ce": Term(ce * mine.calls, 1.0)}',
        ["'ce' has other values", "keeps nothing"],
    ),
    "draws numbers": (
        CE + '    return {"ce": Term(ce * torch.rand(()), 1.0)}',
        ["draws no random numbers"],
    ),
    "sends no gradient": (
        CE + '    return {"ce": Term(ce, 1.0), "kd": Term(ce.detach(), 0.5)}',
        ["the term 'kd' has a weight but sends the student no gradient", "dead_terms"],
    ),
    "reads what is not there": (GOOD.replace("beta", "bta"), ["mine.py:8", "hp has no 'bta'", "did you mean 'beta'?"]),
    "a layer that is not there": (
        '    student.features["hiden"]\n' + GOOD,
        ["mine.py:6", "no layer 'hiden'", "did you mean 'hidden'?"],
    ),
    "does not parse": ("    return (", ["mine.py:6", "SyntaxError"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_variant_that_breaks_its_contract_is_refused_in_one_line(tmp_path, case):
    body, says = BAD[case]
    line = refusal(study_of(tmp_path, body))
    assert all(part in line for part in says), line


@pytest.mark.parametrize(
    ("head", "function", "says"),
    [
        ("def mine(student, teacher):\n", "mine", ["takes (student, teacher)", "(student, teacher, labels, hp)"]),
        (HEAD, "mien", ["no function mien", "did you mean 'mine'?"]),
        ("import nowhere_at_all\n" + HEAD, "mine", ["mine.py:1", "No module named 'nowhere_at_all'"]),
    ],
)
def test_a_function_that_cannot_be_called_is_refused(tmp_path, head, function, says):
    line = refusal(study_of(tmp_path, GOOD, head=head, function=function))
    assert all(part in line for part in says), line


def test_a_file_that_is_not_there_is_refused(tmp_path):
    study = study_of(tmp_path, GOOD)
    (tmp_path / "mine.py").unlink()
    assert "no such file" in refusal(study)


def test_a_declared_dead_term_may_be_dead(tmp_path):
    body = CE + '    return {"ce": Term(ce, 1.0), "kd": Term(ce.detach(), 0.5)}'
    assert examine_own_variants(study_of(tmp_path, body, dead_terms=["kd"]))["mine"].terms == ("ce", "kd")


def test_a_last_batch_of_one_row_counts(tmp_path):
    body = CE + '    return {"ce": Term(ce + 0 * student.logits.std(dim=-2).sum(dim=-1, keepdim=True), 1.0)}'
    study = study_of(tmp_path, body)
    rows = len(load(asdict(study.data)).train)
    sizes = {"choices": [rows - 1, rows - 2]}
    space = {arm: {"space": {"batch_size": sizes}, "default": {"batch_size": rows - 1}} for arm in study.arms}
    examine_own_variants(study)
    arms = {n: {**asdict(a), **{k: {**asdict(a)[k], **space[n][k]} for k in space[n]}} for n, a in study.arms.items()}
    raw = {**yaml.safe_load(to_yaml(study)), "arms": yaml.safe_load(yaml.safe_dump(_plain(arms)))}
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump(raw))
    assert "'ce' is nan on a dry batch of 1 made-up" in refusal(load_study(tmp_path / "odd.yaml"))


def _plain(value):
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def test_a_sweep_refuses_it_before_anything_is_written(tmp_path):
    import distune

    with pytest.raises(BadInput, match=r"arms\.mine: .*must return a dict of Terms"):
        distune.sweep(study_of(tmp_path, CE + "    return ce"), out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


# packing

BODIES = {
    "packed": GOOD,
    "vmap": CE + "    d = torch.cdist(student.logits.squeeze(), student.logits.squeeze()).mean(dim=1)\n"
    "    r = student.logits - student.logits.mean(dim=0)\n"
    '    return {"ce": Term(ce, 1.0), "r": Term(r.square().sum(dim=1), hp["beta"])}\n',
    "one by one": CE
    + "    kd = torch.stack([losses.hinton_kd(s, t, float(y.item() + 1)) for s, t, y in zip(student.logits, "
    'teacher.logits, labels)])\n    return {"ce": Term(ce, 1.0), "kd": Term(kd, hp["beta"])}\n',
}


@pytest.mark.parametrize("how", BODIES)
def test_how_a_variant_runs_on_a_pack_is_found_and_packed_equals_solo(tmp_path, how):
    study = study_of(tmp_path, BODIES[how])
    examined = examine_own_variants(study)["mine"]
    assert examined.how == how, examined.why
    assert bool(examined.why) == (how != "packed")
    pack = parameters(trained(study, (SEARCH, SEARCH + 1, SEARCH + 2)))
    for place, replicate in enumerate((SEARCH, SEARCH + 1, SEARCH + 2)):
        solo = parameters(trained(study, (replicate,)))
        for name, value in solo.items():
            torch.testing.assert_close(pack[name][place], value[0], rtol=0, atol=1e-10)


def test_ones_own_kd_is_the_built_in_one(tmp_path):
    body = CE + (
        '    kd = losses.hinton_kd(student.logits, teacher.logits, hp["temperature"])\n'
        '    return {"ce": Term(ce, 1 - hp["beta"]), "kd": Term(kd, hp["beta"])}\n'
    )
    hp = {"default": {"beta": 0.7, "temperature": 3.0}, "space": {"beta": {"low": 0.0, "high": 1.0}}}
    own = study_of(tmp_path, body, **hp)
    built_in = replace(own, arms={**own.arms, "kd": load_study("mlp-ensemble").arms["kd"]})
    a, b = (parameters(trained(s, (0, 1), arm=arm)) for s, arm in ((own, "mine"), (built_in, "kd")))
    assert all(torch.equal(a[k], b[k]) for k in b)


# learned parts

LEARNED = (
    CE
    + '    guess = student.extras["adapter"](student.features["hidden"])\n'
    + "    fit = (guess - teacher.logits).square().sum(dim=-1)\n"
    + "    own = Term(fit.detach() + guess.square().sum(dim=-1), 0.1, trains_extras=True)\n"
    + '    return {"ce": Term(ce, 1.0), "fit": Term(fit, hp["beta"]), "own": own}\n\n\n'
    + "def mine_extras(student_shapes, teacher_shapes, hp):\n"
    + '    (width,), (classes,) = student_shapes["features.hidden"], teacher_shapes["logits"]\n'
    + '    return {"adapter": torch.nn.Linear(width, classes)}\n'
)


@pytest.mark.parametrize("base", ["mlp-ensemble", "promo-attention"])
def test_learned_parts_train_beside_a_pack_as_they_do_alone(tmp_path, base):
    study = study_of(tmp_path, LEARNED, base=base)
    assert examine_own_variants(study)["mine"].how == "packed"
    start = parameters(trained(study, (0, 1), epochs=0))
    pack = trained(study, (0, 1))
    adapter = [k for k in parameters(pack) if k.startswith("extras.adapter.")]
    assert len(adapter) == 2
    assert all(not torch.equal(start[k], parameters(pack)[k]) for k in adapter)
    assert not torch.equal(start[adapter[0]][0], start[adapter[0]][1])
    for place in (0, 1):
        for name, value in parameters(trained(study, (place,))).items():
            torch.testing.assert_close(parameters(pack)[name][place], value[0], rtol=0, atol=1e-10)


def test_learned_parts_stay_out_of_the_audits_norms_and_of_the_student(tmp_path):
    study = study_of(tmp_path, LEARNED)
    last = trained(study, (0,), epochs=0)
    audit = last.audits[0]
    assert audit["fit"].norm > 0
    assert np.isnan(audit["own"].share)
    assert audit["own"].norm > 0
    assert audit["ce"].share + audit["fit"].share == pytest.approx(1.0)
    student = families.of(study).student(study, "mine", last.state(), 0)
    assert sum(p.numel() for p in student.parameters()) == last.parameters


def test_a_batch_norm_beside_a_pack_is_refused(tmp_path):
    body = LEARNED.replace("torch.nn.Linear(width, classes)", "torch.nn.BatchNorm1d(width)")
    assert "has buffers (running_mean" in refusal(study_of(tmp_path, body))


def test_learned_parts_that_are_no_modules_are_refused(tmp_path):
    body = LEARNED.replace('{"adapter": torch.nn.Linear(width, classes)}', "[1]")
    assert "mine_extras must return a dict of torch modules by name, got [1]" in refusal(study_of(tmp_path, body))


# other families


def test_a_variant_for_tables_sees_every_teacher_and_their_mean(tmp_path):
    body = CE + (
        "    mean = torch.logit(torch.sigmoid(teacher.members).mean(dim=-1), eps=1e-7)\n"
        "    off = (teacher.logits.diff(dim=-1).squeeze(-1) - mean).abs().max()\n"
        "    assert teacher.members.shape[-1] == 2 and (off < 1e-4 or hp['batch_size'] == 256)\n"
        "    kd = losses.hinton_kd(student.logits, teacher.logits, 1.0)\n"
        '    return {"ce": Term(ce, 1.0), "kd": Term(kd, hp["beta"])}\n'
    )
    study = study_of(tmp_path, body.replace(" or hp['batch_size'] == 256", ""), base="promo-attention")
    assert "AssertionError" in refusal(study)  # a dry batch makes both up
    study = study_of(tmp_path, body, base="promo-attention")
    last = trained(replace(study, budget=replace(study.budget, patience=None)), (0, 1))
    assert set(last.metrics) >= {"val_auc", "loss_ce", "loss_kd"}


IMAGES = (
    CE
    + "    (layer,) = student.features\n"
    + "    assert teacher.attention[layer].shape[0] == student.features[layer].shape[0]\n"
    + '    ours, theirs = student.extras["regressor"](student.features[layer]), teacher.features[layer]\n'
    + '    hint = (ours - theirs).square().mean(dim=(-3, -2, -1))\n    return {"ce": Term(ce, 1.0), "hint": Term(hint, '
    + 'hp["beta"])}\n\n\ndef mine_extras(student, teacher, hp):\n'
    + "    layer = f\"features.{hp['layers']}\"\n"
    + '    return {"regressor": torch.nn.Conv2d(student[layer][0], teacher[layer][0], 1)}\n'
)


def test_a_variant_for_images_compares_layers_and_learns_beside_them(tmp_path):
    where = {"default": {"beta": 1.0, "layers": "layer2"}, "space": {"layers": {"choices": ["layer1", "layer2"]}}}
    study = study_of(tmp_path, IMAGES, base="digits-attention-transfer", **where)
    refuse_unusable(study, lambda line: None)
    examined = examine_own_variants(study)["mine"]
    assert examined.how == "one by one"
    assert "beta" in examined.reads
    found = check_study(study, 1, lambda line: None)
    shares = {row["term"]: row["share"] for row in found["arms"]["mine"]["terms"]}
    assert shares.keys() == {"ce", "hint"}
    assert min(shares.values()) > 0


def test_a_layer_of_images_that_does_not_exist_is_refused(tmp_path):
    where = {"default": {"beta": 1.0, "layers": "layr2"}, "space": {"beta": {"low": 0.1, "high": 1.0}}}
    study = study_of(tmp_path, IMAGES, base="digits-attention-transfer", **where)
    with pytest.raises(BadInput, match=r"the student has no layer 'layr2'; it has .*did you mean 'layer2'"):
        refuse_unusable(study, lambda line: None)


# a trainable of one's own


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("def train(config, context):\n    yield 1 / 0", ["mine.py:2", "ZeroDivisionError"]),
        ("def trian(config, context):\n    yield", ["no function train", "did you mean 'trian'?"]),
        ("import nowhere_at_all", ["mine.py:1", "No module named"]),
    ],
)
def test_a_trainable_that_cannot_run_is_refused_by_a_check(tmp_path, body, says):
    (tmp_path / "mine.py").write_text(body)
    study = replace(load_study("mlp-ensemble"), trainable=f"{tmp_path / 'mine.py'}:train")
    with pytest.raises(BadInput) as refused:
        check_study(study, 1, lambda line: None)
    assert all(part in str(refused.value) for part in says), refused.value


# distune check


def test_check_says_how_every_arm_runs_and_what_it_costs(tmp_path):
    study = study_of(
        tmp_path,
        BODIES["vmap"],
        space={**ARM["space"], "idle": {"low": 0.0, "high": 1.0}},
        default={"beta": 2.0, "idle": 0.5},
    )
    found = check_study(study, 1, lambda line: None)
    json.dumps(found, allow_nan=False)
    mine, baseline = found["arms"]["mine"], found["arms"]["hard_labels"]
    assert (mine["runs"], baseline["runs"]) == ("vmap", "packed")
    assert "does not broadcast" in mine["why"]
    assert all(arm["seconds_per_seed_epoch"] > 0 for arm in found["arms"].values())
    assert [t["status"] for t in mine["terms"]] == ["alive", "alive"]
    assert found["estimate"]["seconds"] > 0
    assert 50 < found["memory_mb"] < 1e5
    assert found["notes"] == ["mine searches idle, which its variant does not read"]


def test_check_refuses_a_term_that_a_made_up_teacher_shows_to_be_dead(tmp_path):
    body = CE + '    return {"ce": Term(ce, 1.0), "zero": Term(student.logits.sum(dim=-1) * 0, 0.5)}'
    with pytest.raises(BadInput, match=r"arms\.mine: the loss term zero .* no gradient"):
        check_study(study_of(tmp_path, body), 1, lambda line: None)


def test_check_notes_batches_that_are_all_rows(tmp_path):
    study = study_of(tmp_path, GOOD)
    few = replace(study, data=replace(study.data, n_samples=200))
    (note,) = check_study(few, 1, lambda line: None)["notes"]
    assert note.startswith("batch sizes 128, 256 are one and the same: there are 128 rows")


# the public names


def test_the_public_names_of_a_variant_import_no_ray():
    import subprocess
    import sys

    code = "import sys\nfrom distune import Outputs, Term, losses\nassert 'ray' not in sys.modules\nlosses.hinton_kd"
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
