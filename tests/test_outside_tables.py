"""A table of one's own with a network of one's own and what another model said of each row."""

import json
import re
from collections import deque
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy.special import expit
from sklearn.metrics import roc_auc_score

import distune
from search.export.modules import blend_of
from search.families import tabular as tables
from search.ledger import Ledger
from search.payload import build_teacher, label, payload_of, refuse_unusable, trial_config
from search.students import find
from spaces import BadInput, adjust, load_study, to_yaml
from spaces.families import OF_PERCEPTRON, READS_HIDDEN
from tests.made_tables import config, context
from tests.test_sweep import assert_whole, run
from tests.test_table_sweep import a_table
from trainables import datasets, tabular
from trainables.datasets.order import in_order
from trainables.variants import GATES

NETS = """
import torch
from torch import nn


def net(classes, features, width=6, drop=0.0):
    middle = [nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(drop)]
    return nn.Sequential(nn.Linear(features, width), *middle, nn.Linear(width, classes))


class Tied(nn.Module):  # its table of constants is not saved, and two of its layers are one
    def __init__(self, classes, features):
        super().__init__()
        self.register_buffer("scale", torch.linspace(1, 2, features), persistent=False)
        self.first = nn.Linear(features, features)
        self.second = self.first
        self.head = nn.Linear(features, classes)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x * self.scale)))))


def tied(classes, features):
    return Tied(classes, features)


def single(classes, features):
    return nn.Linear(features, 1)
"""
ROWS = 600
LEFT_OUT = (3, 7, 11)  # of the file: one repeats its predecessor, its customer too, and two have no target
CUSTOMERS = np.delete(np.arange(ROWS), 3)
STUDENTS = ["hard_labels", "hard_labels_again", "label_smoothing", "kd_shuffled", "kd_uniform"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DISTUNE_CACHE", str(tmp_path_factory.getbasetemp() / "outside-tables"))


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """nets.py, and table.csv of which three rows are left out."""
    folder = tmp_path_factory.mktemp("table")
    frame = a_table(ROWS)
    frame.iloc[3] = frame.iloc[2]
    frame.loc[[7, 11], "bought"] = None
    frame.to_csv(folder / "table.csv", index=False)
    (folder / "nets.py").write_text(NETS)
    return folder


def data_of(folder, **more):
    spec = {"kind": "csv", "path": f"{folder}/table.csv", "target": "bought", "positive": "yes", "drop": ["customer"]}
    return {**spec, "test_fraction": 0.3, "validation_fraction": 0.3, "segments": ["channel"], **more}


def written(folder, tmp_path, **parts):
    """A study file over the table; parts: `student`, `teacher` and others."""
    path = tmp_path / "study.yaml"
    parts = {"extends": "promo-attention", "name": "own-table", "data": data_of(folder), **parts}
    path.write_text(yaml.safe_dump(parts))
    return path


def own(folder, function="net", **options):
    return {"kind": "factory", "function": f"{folder}/nets.py:{function}", "options": options}


def said(path, logits, ids=None, name="customer"):
    """The teacher of this table of logits, written as the suffix says."""
    columns = {f"logit {i}": column for i, column in enumerate(np.atleast_2d(np.asarray(logits).T))}
    if path.suffix == ".npy":
        np.save(path, logits)
    elif path.suffix == ".npz":
        np.savez(path, logits=logits, **({} if ids is None else {name: ids}))
    else:
        frame = pd.DataFrame({**({} if ids is None else {name: ids}), **columns})
        frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path)
    given = {"kind": "logits", "path": str(path), "fitted_on": "train"}
    return given if ids is None else {**given, "id": name}


def refusal(path, *overrides):
    with pytest.raises(BadInput) as refused:
        refuse_unusable(load_study(path, overrides), lambda line: None)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# a network of one's own: the pack


def asked(folder, arm, replicates=(0, 1, 2), epochs=4, drop=0.0, patience=None, **hp):
    of_arm = config(arm, replicates, epochs, **{"batch_size": 64, "learning_rate": 0.01, **hp})
    own_hp = {name: value for name, value in of_arm.hp.items() if name not in OF_PERCEPTRON}
    return replace(of_arm, hp=own_hp, student=own(folder, drop=drop), patience=patience)


def last(results):
    return deque(results, maxlen=1)[0]


@pytest.mark.parametrize("drop", [0.0, 0.3])
@pytest.mark.parametrize("arm", ["hard_labels", "kd_shuffled", "attention_student", "global_gate_blend"])
def test_packed_seeds_are_those_of_each_alone(float64, folder, arm, drop):
    given = context(sets=2)
    pack = last(tabular.train(asked(folder, arm, drop=drop), given))
    for place in range(3):
        alone = last(tabular.train(asked(folder, arm, (place,), drop=drop), given))
        for name, value in alone.state().items():
            if name.split(".")[0] in ("model", "gate"):
                assert torch.allclose(value[0].double(), pack.state()[name][place].double(), atol=1e-10), name
        assert alone.metrics["val_auc"][0] == pytest.approx(pack.metrics["val_auc"][place], abs=1e-12)
    assert "model.kept.1/running_var" in pack.state()


@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_a_stopped_seed_keeps_its_best_weights_and_statistics(float64, folder, drop):
    given, patient = context(), asked(folder, "hard_labels", (0, 1, 2, 3), 40, drop=drop, patience=3)
    x, y = given.validation.x, given.validation.y
    results = list(tabular.train(patient, given))
    assert any(0 < r.trained < 4 for r in results)  # one by one
    for place, replicate in enumerate(patient.replicates):
        curve, logits = [], []
        for result in tabular.train(replace(patient, replicates=(replicate,), patience=None), given):
            logits.append(result.logits(x)[0])
            curve.append(roc_auc_score(y, logits[-1][:, 1]))
            if len(curve) - 1 - int(np.argmax(curve)) >= 3:
                break
        assert torch.allclose(results[-1].logits(x)[place], logits[int(np.argmax(curve))], atol=1e-8)


@pytest.mark.parametrize("stop_after", [3, 12])
@pytest.mark.parametrize("arm", ["hard_labels", "attention_student"])
def test_a_resumed_trial_is_the_uninterrupted_one(folder, arm, stop_after):
    patient = asked(folder, arm, (0, 1, 2, 3), 25, drop=0.3, patience=2)
    results = list(tabular.train(patient, context(sets=2)))
    state = next(r.state() for r in tabular.train(patient, context(sets=2)) if r.epoch == stop_after)
    again = list(tabular.train(patient, context(sets=2, resume=state, resume_epoch=stop_after)))
    assert [r.trained for r in again] == [r.trained for r in results[stop_after:]]
    assert again[-1].metrics == results[-1].metrics
    assert all(torch.equal(v, results[-1].state()[k]) for k, v in again[-1].state().items())


@pytest.mark.parametrize("size", [299, "full"])
def test_a_last_row_by_itself_is_not_trained_on_and_all_rows_may_be_one_batch(folder, size):
    end = last(tabular.train(asked(folder, "hard_labels", batch_size=size), context(n=300)))
    assert not end.diverged
    assert end.parameters == 6 * 5 + 6 + 12 + 2 * 6 + 2
    layers = tabular.layers_of(end.state(), 1, 5, own(folder)).eval()
    x = context().validation.x
    with torch.no_grad():
        assert torch.allclose(layers(torch.from_numpy(x))[:, 0], end.logits(x)[1, :, 1], atol=1e-6)


def test_constants_and_tied_weights_are_handed_over_too(folder):
    of_net = replace(asked(folder, "hard_labels"), student=own(folder, "tied"))
    end, x = last(tabular.train(of_net, context())), context().validation.x
    layers = tabular.layers_of(end.state(), 2, 5, own(folder, "tied"))
    with torch.no_grad():
        assert torch.allclose(layers(torch.from_numpy(x))[:, 0], end.logits(x)[2, :, 1], atol=1e-6)


# a network of one's own: the study


def test_a_perceptrons_hyperparameters_and_gates_leave_a_study_with_another_student(folder, tmp_path):
    assert set(READS_HIDDEN) == {variant for variant, kind in GATES.items() if kind == "shared"}
    study = load_study(written(folder, tmp_path, student=own(folder)))
    before = load_study("promo-attention").arms
    assert set(before) - set(study.arms) == set(READS_HIDDEN)
    for name, arm in study.arms.items():
        assert set(arm.space) == set(before[name].space) - set(OF_PERCEPTRON)
        assert set(arm.default) == set(before[name].default) - set(OF_PERCEPTRON)
    (tmp_path / "again.yaml").write_text(to_yaml(study))
    assert load_study(tmp_path / "again.yaml") == study
    said = []
    refuse_unusable(study, said.append)
    assert "the student nets.py:net: seeds train together in one program" in said


def test_sizes_of_a_module_are_its_options(folder, tmp_path):
    parts = {"student": own(folder), "objective": ["val_auc", "params"]}
    path = written(folder, tmp_path, **parts, sizes={"small": {"options": {"width": 3}}})
    study = load_study(path)
    assert study.student_of("kd_uniform-small")["options"] == {"width": 3}
    refuse_unusable(study, lambda line: None)
    path = written(folder, tmp_path, **parts, sizes={"small": {"hidden": "8"}})
    assert "sizes.small: unknown key hidden" in refusal(path)


@pytest.mark.parametrize(
    ("parts", "overrides", "expected"),
    [
        ({"space": {"hidden": {"choices": ["8"]}}}, [], "space.hidden: no arm searches it"),
        (
            {"arms": {"kd_uniform": {"default": {"dropout": 0.1}}}},
            [],
            "arms.kd_uniform.default must give batch_size, kl_weight",
        ),
        (
            {},
            ["arms.mine={variant: attention_blend, default: {}, teacher_rows: own}"],
            "arms.mine: the gate of attention_blend reads the student's last hidden layer",
        ),
        ({}, ["student.function=nets.py"], "function must be path/to/file.py:function"),
    ],
)
def test_what_a_module_has_not_is_refused(folder, tmp_path, parts, overrides, expected):
    assert expected in refusal(written(folder, tmp_path, student=own(folder), **parts), *overrides)


def test_a_module_that_cannot_be_trained_is_refused_in_one_line(folder, tmp_path):
    wrong = refusal(written(folder, tmp_path, student=own(folder, "single")))
    assert "returns a tensor of shape (8, 1) for 8 rows, expected logits (8, 2)" in wrong
    assert "takes no option witdh" in refusal(written(folder, tmp_path, student=own(folder, witdh=3)))


def test_a_variant_that_reads_a_layer_is_told_that_there_is_none(folder, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from trainables.variants import Term\n\n"
        "def norm(student, teacher, labels, hp):\n"
        '    return {"norm": Term(student.features["hidden"].square().sum(dim=-1), 1.0)}\n'
    )
    arms = {"mine": {"variant": f"{tmp_path}/mine.py:norm", "space": {}}}
    assert "no layer 'hidden'" in refusal(written(folder, tmp_path, student=own(folder), arms=arms))


@pytest.mark.parametrize("arm", ["uniform_blend", "global_gate_blend"])
def test_a_blend_of_a_module_is_handed_over_as_it_was_measured(folder, tmp_path, arm):
    teacher = {"models": ["logistic_regression", "random_forest"]}
    study = load_study(written(folder, tmp_path, student=own(folder, drop=0.2), teacher=teacher))
    data = datasets.load(asdict(study.data))
    fitted = build_teacher(study, 0, data, "train", 0)
    payload = payload_of(study, 0, data, "train", [label(study, fitted, data, "train")])
    end = last(tabular.train(trial_config(study, arm, study.arms[arm].default, (0, 1), 3), payload.context()))
    found = SimpleNamespace(
        study=study, arm=arm, state=end.state(), place=1, record=SimpleNamespace(config=study.arms[arm].default)
    )
    blend, about = blend_of(found, torch.from_numpy(fitted.platt))
    assert about["network"] == "nets.py:net"
    slope, intercept = fitted.platt.T
    raw = (fitted.logits(data.validation.x) - intercept) / slope
    with torch.no_grad():
        handed = blend(torch.from_numpy(data.validation.x), torch.from_numpy(raw))
    assert torch.allclose(handed, end.logits(payload.validation.x, payload.validation.teachers)[1, :, 1], atol=1e-4)


# what another model said


NUMBERS = np.arange(ROWS) / 100 - 2  # tell whose row each is


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".parquet"])
@pytest.mark.parametrize("form", ["one column", "two columns", "flat"])
def test_a_table_of_logits_speaks_of_the_rows_in_the_order_of_the_file(folder, tmp_path, suffix, form):
    forms = {
        "flat": NUMBERS,
        "one column": NUMBERS[:, None],
        "two columns": np.stack([1 - NUMBERS, 1 + 0 * NUMBERS], 1),
    }
    study = load_study(written(folder, tmp_path, teacher=said(tmp_path / f"said{suffix}", forms[form])))
    refuse_unusable(study, lambda line: None)
    data = datasets.load(asdict(study.data))
    teacher = build_teacher(study, 0, data, "train", 0)
    outputs = label(study, teacher, data, "train")
    frame = pd.read_csv(folder / "table.csv")
    for rows, found in ((data.train, outputs.fit), (data.validation, outputs.validation)):
        amount = [column.name for column in data.columns].index("amount")
        places = [int(np.flatnonzero(np.isclose(frame["amount"], a, rtol=1e-12))[0]) for a in rows.x[:, amount]]
        assert not set(places) & set(LEFT_OUT)
        assert np.allclose(found[:, 0], NUMBERS[places], atol=1e-5)
    assert outputs.names == study.teachers == ("teacher",)
    (quality, as_given) = tables.notes(study, teacher, outputs, data.train)
    assert re.fullmatch(r"the teacher from outside \(fitted_on: train\) has an AUC of 0\.\d+ on \d+ rows", quality)
    assert "in sample" in as_given


@pytest.mark.parametrize(("name", "ids"), [("customer", CUSTOMERS), ("row", np.arange(ROWS))])
def test_ids_are_what_a_column_of_the_data_says_or_the_rows_numbers(folder, tmp_path, name, ids):
    data = datasets.load(data_of_study(folder))
    order = in_order(data_of_study(folder), name)
    mixed = np.random.default_rng(0).permutation(ids)
    study = load_study(written(folder, tmp_path, teacher=said(tmp_path / "said.csv", NUMBERS[mixed], mixed, name)))
    found = label(study, build_teacher(study, 0, data, "train", 0), data, "train").fit[:, 0]
    number = dict(zip(order.fingerprints, map(int, order.ids), strict=True))
    assert np.allclose(found, NUMBERS[[number[f] for f in data.train.fingerprints()]], atol=1e-5)


def data_of_study(folder):
    return asdict(load_study("promo-attention", [f"data={json.dumps(data_of(folder))}"]).data)


def test_contaminated_validation_rows_are_learned_beside_only_where_that_is_accepted(folder, tmp_path):
    teacher = said(tmp_path / "said.npy", NUMBERS) | {"fitted_on": "unknown"}
    path = written(folder, tmp_path, teacher=teacher)
    assert "accept_contaminated_validation: true" in refusal(path)
    study = load_study(path, ["accept_contaminated_validation=true"])
    data = datasets.load(asdict(study.data))
    teacher = build_teacher(study, 0, data, "train", 0)
    assert np.isin(data.validation.fingerprints(), teacher.fitted_on).all()
    outputs = label(study, teacher, data, "train")
    payload = payload_of(study, 0, data, "train", [outputs])
    next(tabular.train(trial_config(study, "kd_uniform", study.arms["kd_uniform"].default, (0,), 1), payload.context()))
    assert any("contaminated validation" in note for note in tables.notes(study, teacher, outputs, data.train))


def test_arms_that_weigh_teachers_and_those_of_other_teachers_leave_the_study(folder, tmp_path):
    study = load_study(written(folder, tmp_path, teacher=said(tmp_path / "said.npy", NUMBERS)))
    assert list(study.arms) == [*STUDENTS, "uniform_blend", "teacher"]
    assert study.confirm_teachers == 1
    assert study.arms["teacher"].role == "reference"
    with_both = load_study(tmp_path / "study.yaml", [f"student={json.dumps(own(folder))}"])
    assert list(with_both.arms) == list(study.arms)
    assert "hidden" not in with_both.arms["kd_uniform"].default


NOISE = np.random.default_rng(0).normal(size=ROWS)


@pytest.mark.parametrize(
    ("logits", "ids", "name", "expected"),
    [
        (NOISE[:-1], None, "", "has 599 rows, and the data have 600: give one for each row in its order, or an id"),
        (NOISE[1:], CUSTOMERS + 600, "customer", "has 599 ids that the data have not (600, 601, 602 and 596 more)"),
        (NOISE[1:], CUSTOMERS % 598, "customer", "has 2 ids more than once"),
        (NOISE, np.arange(ROWS), "channel", "column 'channel' cannot tell rows apart"),
        (expit(NOISE), None, "", "holds probabilities: give logits, log(p / (1 - p)) of these"),
        (np.stack([1 - expit(NOISE), expit(NOISE)], 1), None, "", "holds probabilities: give logits"),
        (np.where(NOISE > 2, np.nan, NOISE), None, "", "logits that are NaN or infinite"),
        (
            np.stack([NOISE] * 3, 1),
            None,
            "",
            "expected (rows, 2), a column for each class of the data, or one, the logit",
        ),
        (np.zeros(0), None, "", "has no rows"),
    ],
)
def test_a_table_of_logits_that_does_not_fit_is_refused_in_one_line(folder, tmp_path, logits, ids, name, expected):
    assert expected in refusal(written(folder, tmp_path, teacher=said(tmp_path / "said.csv", logits, ids, name)))


def test_arms_that_predict_with_the_teacher_need_its_word_on_every_row(folder, tmp_path):
    data = datasets.load(data_of_study(folder))
    order = in_order(data_of_study(folder))
    learned = np.flatnonzero(np.isin(order.fingerprints, data.train.fingerprints()))
    path = written(folder, tmp_path, teacher=said(tmp_path / "said.csv", NOISE[learned], learned, "row"))
    message = refusal(path)
    assert "uniform_blend, teacher predict with the teacher, and its table lacks validation rows" in message
    assert f"--arms {','.join(STUDENTS)}" in message
    study = adjust(load_study(path), arms=STUDENTS)
    refuse_unusable(study, lambda line: None)
    teacher = build_teacher(study, 0, data, "train", 0)
    assert tables.judge_teacher(study, teacher, data.test, "test") == ({}, {})
    assert tables.judged(study, 0, data, "train")["test"].teachers is None
    payload = payload_of(study, 0, data, "train", [label(study, teacher, data, "train")])
    trial = trial_config(study, "kd_uniform", study.arms["kd_uniform"].default, (0,), 2)
    assert not last(tabular.train(trial, payload.context())).diverged


@pytest.mark.parametrize("kind", ["factory", "torchscript", "onnx"])
def test_a_model_that_would_need_its_own_encoding_is_refused(folder, tmp_path, kind):
    file = {"function": "nets.py:net", "checkpoint": "w.pt"} if kind == "factory" else {"path": "w.pt"}
    (tmp_path / "w.pt").write_bytes(b"")
    message = refusal(written(folder, tmp_path, teacher={"kind": kind, **file, "fitted_on": "train"}))
    assert message.endswith("give what it said of every row, as kind: logits")


def test_the_generated_table_has_no_rows_that_a_file_could_speak_of(tmp_path):
    teacher = said(tmp_path / "said.npy", NOISE)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"extends": "promo-attention", "teacher": teacher}))
    assert "the rows of promotions have no order" in refusal(tmp_path / "study.yaml")


def test_named_rows_of_a_table_are_validated_on_and_what_is_known_of_it_stays(folder, tmp_path):
    plain = datasets.load(data_of_study(folder))
    order = in_order(data_of_study(folder))
    there = [n for n, f in enumerate(order.fingerprints) if f in plain.train.fingerprints()][::2]
    (tmp_path / "unseen.txt").write_text("\n".join(map(str, there)))
    spec = data_of_study(folder) | {"validation_rows": str(tmp_path / "unseen.txt")}
    named = datasets.load(spec)
    assert sorted(named.validation.fingerprints()) == sorted(order.fingerprints[there])
    assert not np.isin(named.train.fingerprints(), named.validation.fingerprints()).any()
    assert np.array_equal(named.test.fingerprints(), plain.test.fingerprints())
    assert (named.columns, named.segments, named.notes) == (plain.columns, ("channel",), plain.notes)
    (tmp_path / "unseen.txt").write_text("3")
    with pytest.raises(datasets.BadData, match="copies of other rows cannot be validated on"):
        datasets.load(spec)


def test_the_study_of_the_page_on_ones_own_data_can_run(tmp_path):
    page = (Path(__file__).parents[1] / "docs/how-to/own-data.md").read_text()
    (block,) = [b for b in re.findall(r"```yaml\n(.*?)```", page, re.S) if "logits" in b]
    (tmp_path / "study.yaml").write_text(block)
    frame = a_table(1200).rename(columns={"customer": "customerID", "bought": "Churn"}).replace({"yes": "Yes"})
    frame.assign(part=np.where(np.arange(1200) % 2, "test", "fit")).to_csv(tmp_path / "churn.csv", index=False)
    said(tmp_path / "said.csv", frame["amount"] - 7, frame["customerID"], "customerID")
    study = load_study(tmp_path / "study.yaml")
    refuse_unusable(study, lambda line: None)
    assert "part" not in [column.name for column in datasets.load(asdict(study.data)).columns]


# both together, from the file to the deployed student


@pytest.fixture(scope="module")
def finished(folder):
    data = datasets.load(data_of_study(folder))
    order = in_order(data_of_study(folder))
    (folder / "unseen.txt").write_text(
        "\n".join(n for n, f in zip(order.ids, order.fingerprints, strict=True) if f in data.validation.fingerprints())
    )
    frame = a_table(ROWS)
    known = 0.25 * (frame["amount"] - 10) * np.where(frame["channel"] == "web", 1, 0.2)
    known -= 0.05 * (frame["age"].fillna(45) - 45)
    teacher = said(folder / "said.csv", known[CUSTOMERS], CUSTOMERS)
    path = written(
        folder,
        folder,
        data=data_of(folder, validation_rows=f"{folder}/unseen.txt"),
        student=own(folder, width=4, drop=0.1),
        teacher={**teacher, "fitted_on": "train+validation"},
        space={"batch_size": {"choices": [128, 256]}},
        budget={
            **{"seed_epochs_per_arm": 60, "seeds_per_trial": 2, "confirm_seeds": 8, "max_epochs": 4, "patience": 2},
            **{"subsearches": 2, "reevaluate_share": 0.3},
        },
    )
    arms = ["kd_uniform", "uniform_blend", "teacher"]
    done = run("sweep", path, "--arms", ",".join(arms), "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run", done


def test_a_sweep_confirms_ones_own_student_under_ones_own_teacher(finished):
    out, done = finished
    result = assert_whole(out, searched=["hard_labels", "hard_labels_again", "kd_uniform", "uniform_blend"], budget=60)
    arms = {arm["arm"]: arm for arm in result["arms"]}
    assert arms["kd_uniform"]["tuned"]["n"] == 8
    assert arms["teacher"]["fixed"]["n"] == 1
    assert not any(arm["tuned"]["contaminated"] for arm in result["arms"] if arm["tuned"])
    assert "ms_per_sample_batch_1" not in arms["uniform_blend"]["evaluation"]
    assert "ms_per_sample_batch_1" in arms["kd_uniform"]["evaluation"]
    assert {m["name"] for m in result["teacher"]["models"]} == {"plain average", "teacher"}
    assert "as its logits were given" in done.stdout
    assert any("in sample" in note for note in result["notes"])
    with Ledger.open(out) as ledger:
        stored = ledger.teacher_predictions("train", "test")[0, 0]
        assert roc_auc_score(ledger.labels("test"), stored) == pytest.approx(arms["teacher"]["fixed"]["mean"])


def test_the_deployed_student_says_what_was_measured_inside_and_outside_distune(finished, folder, tmp_path):
    out, _ = finished
    found = find(out, "kd_uniform")
    data = datasets.load(asdict(found.study.data))
    with Ledger.open(out) as ledger:
        stored = ledger.predictions([found.record], "test")[0]
    order = in_order(asdict(found.study.data))
    number = dict(zip(order.fingerprints, map(int, order.ids), strict=True))
    frame = pd.read_csv(folder / "table.csv").iloc[[number[f] for f in data.test.fingerprints()]]
    student = distune.open_run(out).student("kd_uniform")
    assert np.allclose(student.predict_proba(frame), expit(stored), atol=1e-6)
    done = run("export", out, "--arm", "kd_uniform", "--to", tmp_path / "student", "--format", "safetensors")
    assert done.returncode == 0, done.stderr
    module = distune.load_exported(tmp_path / "student")
    with torch.no_grad():
        assert np.allclose(module(torch.from_numpy(data.test.x)).numpy(), stored, atol=1e-5)
    facts = json.loads((tmp_path / "student" / "config.json").read_text())
    assert facts["architecture"]["network"] == "nets.py:net"


def test_a_blend_with_a_table_of_logits_is_not_exported(finished, tmp_path):
    done = run("export", finished[0], "--arm", "uniform_blend", "--with-teachers", "--to", tmp_path / "student")
    assert done.returncode == 2
    assert "a table of what it said of known rows: take one that runs alone" in done.stderr
