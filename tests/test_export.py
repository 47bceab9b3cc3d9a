"""`distune export`: what it writes runs without torch, says what was confirmed, and nothing is written by halves."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

import distune
from search.export import bundle, graphs
from search.export.modules import Table
from search.export.scripts import table as table_script
from search.ledger import Ledger
from search.students import find
from spaces import BadInput
from tests.made_runs import BUDGET, confirmed_run
from tests.test_table_sweep import TINY as tiny_table
from trainables.datasets import Column, load
from trainables.encoding import Encoder

MLP = {
    "extends": "mlp-ensemble",
    "data": {"n_samples": 800, "fresh_rows": 0},
    "student": {"hidden": [8]},
}
IMAGES = {
    "extends": "digits-attention-transfer",
    "student": {"depth": 8, "width": 4, "stem": "cifar", "cbam": True},
    "data": {"train_limit": 100, "test_fraction": 0.15},
    "views": {"count": 1, "pad": 0, "flip": False},
    "budget": {**BUDGET, "max_epochs": 2},
}
MODELS = ["xgboost", "random_forest", "logistic_regression"]
TABLE = {
    "extends": "promo-attention",
    "data": {
        **{"kind": "csv", "path": "table.csv", "target": "bought", "positive": "yes", "drop": ["customer"]},
        **{"test_fraction": 0.3, "categorical": ["store"], "segments": ["channel"]},
    },
    "teacher": {"models": MODELS, "tuned": False, "folds": 2},
    "confirm_teachers": 2,
    "space": {"hidden": {"choices": ["8", "8-4"]}, "batch_size": {"choices": [128, "full"]}},
    "arms": tiny_table["arms"],
}
TRAINED = ["kd_uniform", "attention_blend", "as_printed"]
WITHOUT_TORCH = "import sys; sys.modules.update(dict.fromkeys(('torch', 'distune', 'pandas', 'sklearn', 'xgboost')));"


def a_table(rows=900):
    random = np.random.default_rng(0)
    amount, age = random.exponential(10, rows), random.integers(18, 80, rows).astype(float)
    channel, store = random.choice(["mail", "phone", "web, new"], rows), random.choice([1.0, 2.0, 7.5], rows)
    logit = 0.4 * (amount - 10) * np.where(channel == "mail", 1, 0.2) - 0.05 * (age - 45) + (store == 2)
    bought = random.random(rows) < 1 / (1 + np.exp(-logit))
    age[::13] = np.nan
    channel = np.where(np.arange(rows) % 17 == 0, None, channel)
    columns = {"customer": np.arange(rows), "amount": amount, "age": age, "channel": channel, "store": store}
    member = {"logit": random.random(rows) < 0.5}  # a name that the graph's output has
    return pd.DataFrame(columns | member | {"bought": np.where(bought, "yes", "no")})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    a_table().to_csv(folder / "table.csv", index=False)
    made = {}
    for name, changes, wanted, confirmed in (
        ("mlp", MLP, ["hard_labels", "kd"], ["hard_labels"]),
        ("vision", IMAGES, ["hard_labels"], None),
        ("tabular", TABLE, ["hard_labels", "kd_uniform", "uniform_mix", "attention_blend", "as_printed"], TRAINED),
    ):
        (folder / name).mkdir()
        if name == "tabular":
            shutil.copy(folder / "table.csv", folder / name)
        made[name] = confirmed_run(folder / name, {"name": f"export-{name}", **changes}, wanted, confirmed)
    return made


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
    """{(family, arm): (folder, config.json)}"""
    folder = tmp_path_factory.mktemp("exported")
    wanted = [
        *[("mlp", "hard_labels"), ("vision", "hard_labels")],
        *[("tabular", arm) for arm in TRAINED],
    ]
    found = {}
    for family, arm in wanted:
        to = folder / f"{family}-{arm}"
        needs = family == "tabular" and arm != "kd_uniform"
        found[family, arm] = to, distune.open_run(runs[family]).export(arm, to, with_teachers=needs)
    return found


def test_what_onnxruntime_says_of_the_test_rows_is_what_was_confirmed(runs, exported):
    for (family, arm), (to, facts) in exported.items():
        confirmed = find(runs[family], arm)
        rows = load(vars(confirmed.study.data)).test
        session = onnxruntime.InferenceSession(to / "student.onnx")
        columns = (
            () if family != "tabular" else tuple(Column(c["column"], tuple(c["categories"])) for c in facts["inputs"])
        )
        logits = session.run(None, bundle._inputs(columns, rows.x))[0]
        with Ledger.open(runs[family]) as ledger:
            stored = ledger.predictions([confirmed.record], "test")[0]
        if family == "tabular":
            assert np.abs(logits - stored).max() < 1e-5, arm
            assert roc_auc_score(rows.y, logits) == pytest.approx(confirmed.record.metrics["test_auc"], abs=1e-12)
        else:
            assert np.array_equal(logits.argmax(axis=1), stored)
            assert (logits.argmax(axis=1) == rows.y).mean() == confirmed.record.metrics["test_accuracy"]
        assert facts["check"]["onnxruntime"]["from_torch_logits"] < 1e-5
        metric = confirmed.study.metric
        assert facts["check"]["onnxruntime"][metric] == pytest.approx(
            confirmed.record.metrics[f"test_{metric}"], abs=1e-12
        )


def test_the_student_is_the_one_with_the_median_test_result(runs, exported):
    _, facts = exported["mlp", "hard_labels"]
    with Ledger.open(runs["mlp"]) as ledger:
        own = sorted(r.metrics["test_accuracy"] for r in ledger.runs("tuned") if r.arm == "hard_labels")
    assert facts["confirmed"]["test_accuracy"] == own[(len(own) - 1) // 2]
    assert facts["run"]["median_of_seeds"] == len(own) == 10


@pytest.mark.parametrize(
    ("family", "arm"), [("mlp", "hard_labels"), ("tabular", "attention_blend"), ("vision", "hard_labels")]
)
def test_run_py_checks_itself_where_torch_cannot_be_imported(exported, family, arm, tmp_path):
    to, _ = exported[family, arm]
    moved = shutil.copytree(to, tmp_path / "elsewhere")
    script = f"runpy.run_path({str(moved / 'run.py')!r}, run_name='__main__')"
    code = f"{WITHOUT_TORCH} import runpy; sys.argv = ['run.py']; {script}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"by (\S+) at most", done.stdout)[1]) < 1e-5
    example = dict(np.load(moved / "example.npz"))
    np.savez(moved / "example.npz", **{**example, "expected": example["expected"] + 0.01})
    assert subprocess.run([sys.executable, moved / "run.py"], capture_output=True, timeout=60).returncode == 1


@pytest.mark.parametrize("arm", ["kd_uniform", "attention_blend"])
def test_run_py_reads_a_csv_as_the_sweep_did(runs, exported, arm, tmp_path):
    to, _ = exported["tabular", arm]
    done = subprocess.run(
        [sys.executable, to / "run.py", runs["tabular"].parent / "table.csv"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said = np.array(done.stdout.split(), dtype=float)
    assert len(said) == len(a_table())
    with Ledger.open(runs["tabular"]) as ledger:
        logits = ledger.predictions([find(runs["tabular"], arm).record], "test")[0].astype(float)
    nearest = np.abs(said[:, None] - 1 / (1 + np.exp(-logits))).min(axis=0)  # the test rows are among these
    assert nearest.max() < 2e-6


def test_run_py_takes_arrays_of_images_and_of_numbers(exported, tmp_path):
    for family, name in (("vision", "images.npy"), ("mlp", "rows.csv")):
        to, _ = exported[family, "hard_labels"]
        example = np.load(to / "example.npz")
        if family == "vision":
            np.save(tmp_path / name, example["x"])
        else:
            np.savetxt(tmp_path / name, example["x"], delimiter=",")
        done = subprocess.run(
            [sys.executable, to / "run.py", tmp_path / name], capture_output=True, text=True, timeout=60
        )
        assert done.stdout.split() == [str(c) for c in example["expected"].argmax(axis=1)], done.stderr


def test_the_script_reads_missing_cells_as_pandas_does(tmp_path):
    from pandas._libs.parsers import STR_NA_VALUES

    assert table_script.NA == STR_NA_VALUES
    assert table_script.number("True") == 1
    assert np.isnan(table_script.number("NA"))
    column = {"categories": ["1", "7.5", "web"], "missing_text": ""}
    assert [table_script.text(c, column) for c in ("1", "1.0", "7.50", "web", "n/a", "fax")] == [
        "1",
        "1",
        "7.5",
        "web",
        "",
        "fax",
    ]


@pytest.mark.parametrize("batch", [1, 3, 5000])
def test_any_number_of_rows_gives_the_same_logits(exported, batch):
    for to, _ in exported.values():
        example = dict(np.load(to / "example.npz"))
        expected, session = example.pop("expected"), onnxruntime.InferenceSession(to / "student.onnx")
        rows = np.arange(batch) % len(expected)
        logits = session.run(None, {name: values[rows] for name, values in example.items()})[0]
        assert logits.shape == (batch, *expected.shape[1:])
        assert np.abs(logits - expected[rows]).max() < 1e-5


def test_missing_cells_and_unseen_categories_count_as_in_training(runs, exported):
    for arm in ("kd_uniform", "attention_blend"):
        to, _ = exported["tabular", arm]
        session = onnxruntime.InferenceSession(to / "student.onnx")
        given = {
            "amount": np.array([np.nan, 5.0, 5.0, 1e300, -1e300]),
            "age": np.array([30.0, np.nan, 30.0, 30.0, 30.0]),
            "channel": np.array(["mail", "", "fax", "phone", "web, new"]),
            "store": np.array(["2", "7.5", "99", "", "1"]),
            "column logit": np.array([0.0, 1.0, np.nan, 1.0, 0.0]),
        }
        logits = session.run(None, given)[0]
        assert np.isfinite(logits).all()
        if arm == "kd_uniform":
            frame = pd.DataFrame({k.removeprefix("column "): v for k, v in given.items()}).replace({"": None})
            p = distune.open_run(runs["tabular"]).student(arm).predict_proba(frame)
            assert np.abs(1 / (1 + np.exp(-logits.astype(float))) - p).max() < 1e-6


def test_a_category_that_is_an_empty_text_is_no_missing_one():
    columns = (Column("c", ("", "NaN", "x")), Column("n"))
    x = np.array([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0], [np.nan, np.nan], [0.0, 5.0]])
    encoder = Encoder.fit(columns, x)
    layers = torch.nn.Linear(len(encoder.names), 1)
    module = Table(layers, encoder).eval()
    model = graphs.table_graph(module, columns, torch.from_numpy(x))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    assert graphs.missing_text(columns[0]) == "<missing>"
    given = {"c": np.array(["", "NaN", "x", "<missing>", ""]), "n": x[:, 1]}
    with torch.no_grad():
        assert np.abs(session.run(None, given)[0] - module(torch.from_numpy(x)).numpy()).max() < 1e-6


def test_every_kind_of_teacher_says_in_onnx_what_it_says_itself():
    lightgbm = pytest.importorskip("lightgbm")
    from onnx import TensorProto, helper
    from sklearn.linear_model import LogisticRegression

    from search.export import teachers
    from trainables.teachers.table_models import KINDS, MODELS

    assert lightgbm.__version__
    random = np.random.default_rng(0)
    x = random.integers(-3, 4, (1500, 6)).astype(np.float32) / 2  # many values lie on a threshold
    y = (x[:, 0] * x[:, 1] + x[:, 2] + random.standard_normal(1500) > 0.5).astype(np.int64)
    assert set(teachers._GRAPHS) == set(MODELS)
    for name in MODELS:
        estimator = KINDS[name].untrained(len(x), 0).fit(x, y)
        assert name != "logistic_regression" or isinstance(estimator, LogisticRegression)
        model = KINDS[name].kept(estimator)
        nodes, constants = teachers._GRAPHS[name](model, name)
        wide = helper.make_node("Cast", ["features"], ["wide"], to=TensorProto.DOUBLE)
        source = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 6])
        target = helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["batch", 1])
        graph = graphs.model_of(helper.make_graph([wide, *nodes], "one", [source], [target], constants))
        said = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"features": x})[0][:, 0]
        assert np.abs(said - KINDS[name].logits(model, x)).max() < 1e-5, name


def test_safetensors_and_config_make_the_same_module(exported):
    for family in ("mlp", "vision"):
        to, _ = exported[family, "hard_labels"]
        example = np.load(to / "example.npz")
        with torch.no_grad():
            logits = distune.load_exported(to)(torch.from_numpy(example["x"])).numpy()
        assert np.abs(logits - example["expected"]).max() < 1e-6
    to, facts = exported["tabular", "kd_uniform"]
    student = distune.load_exported(to)
    assert [c.name for c in student.encoder.columns] == [c["column"] for c in facts["inputs"]]
    with pytest.raises(BadInput, match="attention_blend needs its teachers"):
        distune.load_exported(exported["tabular", "attention_blend"][0])
    with pytest.raises(BadInput, match="holds no student"):
        distune.load_exported(to / "teachers")


def test_the_weights_are_the_students_alone(exported):
    names = load_file(exported["vision", "hard_labels"][0] / "student.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {"model", "mean", "std"}
    to, facts = exported["tabular", "attention_blend"]
    there = {p.name for p in (to / "teachers").iterdir()}
    assert there == {"xgboost.ubj", "random_forest.skops", "logistic_regression.skops", "encoder_and_platt.safetensors"}
    assert facts["teachers"] == MODELS


def test_the_card_has_the_figures_of_the_comparison(runs, exported):
    for (family, arm), (to, facts) in exported.items():
        card = (to / "README.md").read_text()
        of_arm = next(a for a in distune.open_run(runs[family]).compare()["arms"] if a["arm"] == arm)
        measured = of_arm["tuned"] or of_arm["fixed"] or of_arm["as_published"]
        low, high = measured["ci95"]
        assert f"{measured['mean']:.4f} [{low:.4f}, {high:.4f}]" in card
        assert f"mean of {measured['n']} seeds" in card
        for text in (f"{facts['parameters']:,}", facts["run"]["fingerprint"], facts["command"], "## Limits"):
            assert text in card


def test_one_format_leaves_the_other_out(runs, tmp_path):
    opened = distune.open_run(runs["mlp"])
    opened.export("hard_labels", tmp_path / "a", ["safetensors"])
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"student.safetensors", "config.json", "README.md"}
    opened.export("hard_labels", tmp_path / "a", ["onnx"])  # in the place of the earlier export
    assert {p.name for p in (tmp_path / "a").iterdir()} == {
        *("student.onnx", "run.py", "example.npz", "config.json", "README.md")
    }
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("family", "arm", "options", "says"),
    [
        ("mlp", "hard_label", {}, ["unknown arm 'hard_label'", "did you mean 'hard_labels'", "the run has"]),
        ("mlp", "kd", {}, ["kd has not been confirmed", "distune resume"]),
        ("mlp", "hard_labels", {"with_teachers": True}, ["runs without its teachers"]),
        ("mlp", "hard_labels", {"formats": ["pickle"]}, ["--format pickle", "safetensors and onnx"]),
        ("tabular", "attention_blend", {}, ["--with-teachers", "runs alone", "kd_uniform"]),
        ("tabular", "uniform_mix", {}, ["uniform_mix is its teachers alone", "kd_uniform"]),
    ],
)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(runs, tmp_path, family, arm, options, says):
    with pytest.raises(BadInput) as error:
        distune.open_run(runs[family]).export(arm, tmp_path / "to", **options)
    assert all(part in str(error.value) for part in says), error.value
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_else_in_it_is_left_alone(runs, exported, tmp_path):
    opened = distune.open_run(runs["mlp"])
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="no earlier export"):
        opened.export("hard_labels", tmp_path)
    with pytest.raises(BadInput, match="is a file"):
        opened.export("hard_labels", tmp_path / "notes.txt")
    earlier = shutil.copytree(exported["mlp", "hard_labels"][0], tmp_path / "earlier")
    (earlier / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"other files in it \(notes.txt\)"):
        opened.export("hard_labels", earlier)
    assert (earlier / "notes.txt").read_text() == (tmp_path / "notes.txt").read_text() == "mine"


def test_an_export_that_fails_half_way_leaves_the_earlier_one(runs, exported, tmp_path, monkeypatch):
    earlier = shutil.copytree(exported["mlp", "hard_labels"][0], tmp_path / "to")
    before = (earlier / "config.json").read_bytes()

    def full(*_):
        raise OSError("no space left on the disk")

    monkeypatch.setattr(bundle, "_latency", full)
    with pytest.raises(OSError, match="no space"):
        distune.open_run(runs["mlp"]).export("hard_labels", earlier)
    assert (earlier / "config.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["to"]


def test_other_data_other_weights_and_missing_ones_are_refused(runs, tmp_path):
    run = shutil.copytree(runs["mlp"], tmp_path / "run")
    text = (run / "study.yaml").read_text()
    (run / "study.yaml").write_text(text.replace("random_state: 42", "random_state: 43"))
    with pytest.raises(BadInput, match="its data have changed"):
        distune.open_run(run).export("hard_labels", tmp_path / "to")
    (run / "study.yaml").write_text(text)
    path = find(run, "hard_labels").path
    state = load_file(path)
    from safetensors.torch import save_file

    save_file({name: tensor * (0.1 if "weights.0" in name else 1) for name, tensor in state.items()}, path)
    with pytest.raises(BadInput, match="but was confirmed with"):
        distune.open_run(run).export("hard_labels", tmp_path / "to")
    shutil.rmtree(run / "models")
    with pytest.raises(BadInput, match="the weights of hard_labels are not in"):
        distune.open_run(run).export("hard_labels", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_missing_library_is_named_with_what_to_install(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(BadInput, match=r"needs onnxscript.*pip install 'distune\[export\]'"):
        distune.open_run(runs["mlp"]).export("hard_labels", tmp_path / "to")
    distune.open_run(runs["mlp"]).export("hard_labels", tmp_path / "to", ["safetensors"])


def test_the_command_says_what_it_checked(runs, tmp_path, monkeypatch, capsys):
    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["distune", "export", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            distune.main()
        return end.value.code, capsys.readouterr()

    code, said = command(runs["mlp"], "--arm", "hard_labels", "--to", tmp_path / "to", "--json")
    assert code == 0
    facts = json.loads(said.out)
    assert facts["command"] == f"distune export {runs['mlp']} --arm hard_labels --to {tmp_path / 'to'}"
    assert facts.pop("folder") == str(tmp_path / "to")
    assert json.loads((tmp_path / "to" / "config.json").read_text()) == facts
    code, said = command(runs["mlp"], "--arm", "kd", "--to", tmp_path / "kd")
    assert code == 2
    assert len(said.err.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_fresh_environment_with_onnxruntime_alone_gives_the_logits(exported, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True, timeout=300)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "numpy", "onnxruntime"], check=True, timeout=600)
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 1
    for to, _ in exported.values():
        done = subprocess.run([python, to / "run.py"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert float(re.search(r"by (\S+) at most", done.stdout)[1]) < 1e-5
