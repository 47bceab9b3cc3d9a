"""Teachers from outside say what they said elsewhere, are the same for every fit, and do not fit unless they do."""

import copy
import json
import pickle
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits, make_classification
from torch import nn

from search import revisions
from search.families import mlp as tables
from search.families import vision as images
from search.payload import build_teacher, label, payload_of, refuse_unusable, teacher_sets, trial_config
from spaces import BadInput, adjust, load_study, to_yaml
from tests.made_images import SMALL
from tests.test_networks import SOURCE
from tests.test_table_sweep import a_table
from trainables import datasets, vision
from trainables.artefacts import reopen
from trainables.datasets.order import in_order
from trainables.models.networks import Unusable, network
from trainables.teachers import outside
from trainables.views import as_tensor

pytest.importorskip("onnxruntime")

FEW = [*SMALL[:1], SMALL[3], "views.count=2"]
RESNET = {"kind": "torchvision", "model": "resnet18", "options": {}}
LAYERS = 'space.layers.choices=["layer2:conv1", "layer1:bn1"]'
LOGITS_ARMS = ["hard_labels", "hard_labels_again", "label_smoothing", "kd_shuffled", "kd"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DISTUNE_CACHE", str(tmp_path_factory.getbasetemp() / "outside"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """One small network in every form that it may come in: of digits, and of a table."""
    folder = tmp_path_factory.mktemp("teachers")
    (folder / "nets.py").write_text(SOURCE)
    torch.manual_seed(0)
    model = network({"kind": "factory", "function": f"{folder}/nets.py:picture", "options": {}}, 1, 10).module.eval()
    model.norm.running_mean.uniform_(-0.1, 0.1)
    save_file(model.state_dict(), folder / "w.safetensors")
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, folder / "w.pt")
    torch.save(model, folder / "whole.pt")
    with torch.no_grad():
        torch.jit.trace(model, torch.rand(2, 1, 8, 8)).save(folder / "script.pt")
    batch = torch.export.Dim("batch")
    graph = torch.onnx.export(
        model, (torch.rand(2, 1, 8, 8),), dynamo=True, dynamic_shapes=({0: batch},), verbose=False
    )
    graph.save(folder / "net.onnx")
    graph.save(folder / "split.onnx", external_data=True)
    table = nn.Sequential(nn.Linear(20, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.0), nn.Linear(16, 2)).eval()
    save_file(table.state_dict(), folder / "table.safetensors")
    torch.jit.script(table).save(folder / "table.pt")
    return folder, model, table


def study_of(*overrides, base="digits-attention-transfer"):
    few = FEW if base.startswith("digits") else ["data.n_samples=400", "data.fresh_rows=30"]
    study = load_study(base, [*few, *overrides])
    return study, datasets.load(asdict(study.data))


def own(kept, checkpoint, *more, fitted_on="train"):
    folder = kept[0]
    teacher = f"kind: factory, function: {folder}/nets.py:picture, checkpoint: {folder / checkpoint}"
    return study_of(
        f"teacher={{{teacher}, fitted_on: {fitted_on}}}", 'space.layers.choices=["layer2:stage", "layer1:norm"]', *more
    )


def without_features(study):
    return adjust(study, arms=LOGITS_ARMS)


def refusal(study):
    with pytest.raises(BadInput) as refused:
        refuse_unusable(study, lambda line: None)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@torch.no_grad()
def logits(model, x):
    return model(torch.from_numpy(x).float() / 255)


# what they say


@pytest.mark.parametrize("file", ["w.safetensors", "w.pt"])
def test_a_checkpoint_says_what_the_network_says_and_shows_its_layers(kept, file):
    study, data = own(kept, file, "views.pad=0", "views.flip=false")
    refuse_unusable(study, lambda line: None)
    teacher = build_teacher(study, 0, data, "train", 0)
    x = data.train.x
    assert torch.allclose(teacher.member_logits(x)[0], logits(kept[1], x), atol=1e-5)
    assert teacher.parameters == sum(p.numel() for p in kept[1].parameters())
    outputs = label(study, teacher, data, "train")
    assert outputs.names() != ("logits",)
    shown = as_tensor(x[:5]).float() / 255
    with torch.no_grad():
        stage = kept[1].stage(torch.relu(kept[1].norm(kept[1].stem(shown))))
    attention = stage.pow(2).mean(dim=1).flatten(1)
    said = outputs.attention("stage", 0, torch.arange(5)).flatten(1)
    assert outputs.attention("stage", 0, torch.arange(5)).shape == (5, 4, 4)
    assert torch.allclose(said, nn.functional.normalize(attention, dim=1), atol=2e-3)
    for arm in ("kd_at", "kd_fa", "kd_fa_at"):
        config = trial_config(study, arm, study.arms[arm].default, (0,), 1)
        context = payload_of(study, 0, data, "train", [outputs]).context()
        (result,) = vision.train(config, context)
        assert not result.diverged


def test_feature_alignment_runs_a_module_from_outside_live(kept):
    study, data = own(kept, "w.pt", "views.alignment_channels=live")
    outputs = label(study, build_teacher(study, 0, data, "train", 0), data, "train")
    config = trial_config(study, "kd_fa", study.arms["kd_fa"].default, (0,), 1)
    (result,) = vision.train(config, payload_of(study, 0, data, "train", [outputs]).context())
    assert result.audits[0]["fa"].norm > 0


@pytest.mark.parametrize(("kind", "file"), [("torchscript", "script.pt"), ("onnx", "net.onnx")])
def test_a_whole_model_says_what_the_network_says(kept, kind, file):
    spec = f"kind: {kind}, path: {kept[0] / file}, fitted_on: train, mean: [0.25], std: [0.5]"
    study, data = study_of(f"teacher={{{spec}}}")
    study = without_features(study)
    refuse_unusable(study, lambda line: None)
    teacher = build_teacher(study, 0, data, "train", 0)
    with torch.no_grad():
        expected = kept[1]((torch.from_numpy(data.train.x).float() / 255 - 0.25) / 0.5)
    assert torch.allclose(teacher.member_logits(data.train.x)[0], expected, atol=1e-4)
    outputs = label(study, teacher, data, "train")
    rows = torch.arange(len(data.train))
    assert outputs.logits(0, rows).shape == (200, 10)
    assert outputs.names() == ("logits",)
    assert teacher.parameters > 0


def test_a_network_of_torchvision_is_trained_as_teacher_and_shows_its_layers(kept):
    assert "cannot take inputs of 1x8x8" in refusal(study_of("teacher={kind: torchvision, model: squeezenet1_1}")[0])
    study, data = study_of("teacher={kind: torchvision, model: resnet18, epochs: 1}", LAYERS, "confirm_teachers=1")
    teacher = images.build_teacher(study, 0, data.train, data, 0, "cpu")
    outputs = images.label(study, teacher, data.train, data)
    assert outputs.attention("conv1", 1, torch.arange(3)).shape == (3, 4, 4)
    assert not images.notes(study, teacher, outputs, data.train)
    assert images.is_built(study, 0, data.train, data, 0)


@pytest.mark.parametrize(("kind", "file"), [("factory", "table.safetensors"), ("torchscript", "table.pt")])
def test_a_tables_teacher_is_given_its_features_as_they_come(kept, kind, file):
    place = "checkpoint" if kind == "factory" else "path"
    function = f"function: {kept[0]}/nets.py:table, options: {{norm: true}}, " if kind == "factory" else ""
    study, data = study_of(
        f"teacher={{kind: {kind}, {function}{place}: {kept[0] / file}, fitted_on: train}}", base="mlp-ensemble"
    )
    refuse_unusable(study, lambda line: None)
    teacher = build_teacher(study, 0, data, "train", 0)
    with torch.no_grad():
        expected = kept[2](torch.from_numpy(data.train.x).float())
    assert np.allclose(label(study, teacher, data, "train").logits, expected.numpy(), atol=1e-5)
    predicted, _ = tables.judge_teacher(study, teacher, data.test, "test")
    with torch.no_grad():
        assert np.array_equal(predicted[-1], kept[2](torch.from_numpy(data.test.x).float()).argmax(1).numpy())


# tables of logits


def table_of(path, ids=None, rows=1797, classes=10, of=lambda n, c: 5 * np.eye(c)[n % c]):
    """Logits that tell whose row it is, written as the suffix says."""
    said = of(np.arange(rows), classes) + np.arange(rows)[:, None] / 1000
    columns = {f"class {c}": said[:, c] for c in range(classes)}
    if path.suffix == ".npy":
        np.save(path, said)
    elif path.suffix == ".npz":
        np.savez(path, logits=said, **({} if ids is None else {"row": ids}))
    elif path.suffix == ".csv":
        pd.DataFrame({**({} if ids is None else {"row": ids}), **columns}).to_csv(path, index=False)
    else:
        pd.DataFrame({**({} if ids is None else {"row": ids}), **columns}).to_parquet(path)
    return said


def of_table(path, *more, id_name=None, **how):
    how = {"fitted_on": "train", **how}
    rest = "".join(f", {k}: {v}" for k, v in how.items())
    name = f", id: {id_name}" if id_name else ""
    study, data = study_of(f"teacher={{kind: logits, path: {path}{name}{rest}}}", *more)
    return without_features(study), data


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".parquet"])
def test_a_table_of_logits_speaks_of_the_rows_in_the_order_of_the_data(tmp_path, suffix):
    path = tmp_path / f"said{suffix}"
    said = table_of(path)
    study, data = of_table(path)
    refuse_unusable(study, lambda line: None)
    teacher = build_teacher(study, 0, data, "train", 0)
    every = (load_digits().images * 15).astype(np.uint8)[:, None]
    for rows in (data.train, data.test):
        found = teacher.logits(rows.x).numpy()
        for i in range(0, len(rows), 37):
            where = np.flatnonzero((every == rows.x[i]).all(axis=(1, 2, 3)))
            assert any(np.allclose(found[i], said[w], atol=1e-4) for w in where)
    outputs = label(study, teacher, data, "train")
    everyone = torch.arange(len(data.train))
    assert torch.allclose(
        outputs.logits(1, everyone), torch.from_numpy(teacher.logits(data.train.x).numpy()), atol=0.01
    )
    (note, views) = images.notes(study, teacher, outputs, data.train)
    assert "fitted_on: train" in note
    assert "as they are" in views
    predicted, _ = images.judge_teacher(study, teacher, data.test, "test")
    assert predicted[-1].shape == (len(data.test),)


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet"])
def test_ids_say_which_row_each_is_of_and_rows_that_nobody_learns_from_may_lack(tmp_path, suffix):
    order = in_order({"kind": "digits"})
    study, data = study_of()
    wanted = np.flatnonzero(np.isin(order.fingerprints, data.train.fingerprints()))[::-1]
    path = tmp_path / f"said{suffix}"
    said = table_of(path, ids=wanted, rows=len(wanted))
    study, data = of_table(path, id_name="row")
    teacher = build_teacher(study, 0, data, "train", 0)
    places = {fingerprint: i for i, fingerprint in enumerate(order.fingerprints[wanted])}
    expected = said[[places[f] for f in data.train.fingerprints()]]
    assert np.allclose(teacher.logits(data.train.x).numpy(), expected, atol=1e-4)
    assert images.judge_teacher(study, teacher, data.test, "test") == ({}, {})
    assert "has no row for" in refusal(replace(study, confirm_on="train+validation"))


def test_a_folders_rows_go_by_their_files_names(tmp_path):
    x, y = load_digits(return_X_y=True)
    for label_ in range(3):
        for number, digit in enumerate(x[y == label_][:60]):
            path = tmp_path / "images" / ("train" if number < 40 else "test") / f"c{label_}" / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digit.reshape(8, 8) * 15).astype(np.uint8)).save(path)
    spec = {"kind": "image_folder", "path": str(tmp_path / "images"), "grayscale": True, "split_seed": 0}
    order = in_order(spec)
    assert order.ids[0] == "train/c0/000.png"
    assert order.ids[-1] == "test/c2/059.png"
    assert len(order.ids) == 180
    names = [n for n in order.ids if n.startswith("train")][::-1]
    said = table_of(tmp_path / "said.csv", ids=names, rows=len(names), classes=3)
    data = f"data={{kind: image_folder, path: {tmp_path / 'images'}, grayscale: true, validation_fraction: 0.25}}"
    teacher = f"teacher={{kind: logits, path: {tmp_path / 'said.csv'}, id: row, fitted_on: unknown}}"
    (tmp_path / "unseen.txt").write_text("\n".join(n for n in names if n.endswith("5.png")))
    study = load_study("digits-attention-transfer", [data, teacher, f"data.validation_rows={tmp_path / 'unseen.txt'}"])
    rows = datasets.load(asdict(study.data))
    assert len(rows.validation) == 12
    assert len(rows.train) == 108
    found = build_teacher(without_features(study), 0, rows, "train", 0).logits(rows.validation.x).numpy()
    fingerprints = dict(zip(order.fingerprints, order.ids, strict=True))
    for row, fingerprint in zip(found, rows.validation.fingerprints(), strict=True):
        name = fingerprints[fingerprint]
        assert name.endswith("5.png")
        assert np.allclose(row, said[names.index(name)], atol=1e-4)


def test_generated_rows_go_by_their_numbers(tmp_path):
    path = tmp_path / "said.npy"
    said = table_of(path, rows=400, classes=2)
    study, data = study_of(f"teacher={{kind: logits, path: {path}, fitted_on: train}}", base="mlp-ensemble")
    spec = asdict(study.data)
    x, _ = make_classification(
        **{k: spec[k] for k in ("n_samples", "n_features", "n_informative", "n_redundant", "random_state")}
    )
    found = build_teacher(study, 0, data, "train", 0).logits(data.train.x).numpy()
    for i in range(0, len(data.train), 41):
        (where,) = np.flatnonzero((x == data.train.x[i]).all(axis=1))
        assert np.allclose(found[i], said[where], atol=1e-4)
    teacher = build_teacher(study, 0, data, "train", 0)
    assert tables.judge_teacher(study, teacher, data.population, "population") == ({}, {})


# what does not fit


def with_nan(n, c):
    said = 5 * np.eye(c)[n % c]
    said[3, 1] = np.nan
    return said


@pytest.mark.parametrize(
    ("how", "id_name", "expected"),
    [
        ({"rows": 1000}, None, "has 1000 rows, and the data have 1797"),
        ({"rows": 0}, None, "has no rows"),
        ({"classes": 9}, None, "of shape (1797, 9), expected (rows, 10)"),
        ({"of": with_nan}, None, "has 1 logits that are NaN or infinite"),
        ({"of": lambda n, c: 1e7 * np.eye(c)[n % c]}, None, "has a logit of 1e+07"),
        ({"of": lambda n, c: np.full((len(n), c), 0.1) - np.arange(len(n))[:, None] / 1000}, None, "probabilities"),
        ({"ids": np.arange(1797) + 5}, "row", "has 5 ids that the data have not (1797, 1798, 1799 and 2 more)"),
        ({"ids": np.zeros(1797, int)}, "row", "has 1796 ids more than once"),
        ({"ids": np.arange(1797)}, "rwo", "has no column 'rwo' of ids: it has row, class 0"),
    ],
)
def test_a_table_of_logits_that_does_not_fit_is_refused_in_one_line(tmp_path, how, id_name, expected):
    path = tmp_path / "said.csv"
    table_of(path, **how)
    assert expected in refusal(of_table(path, id_name=id_name)[0])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("said.npy", pickle.dumps({"a": 1}), "cannot be read as a table of logits"),
        ("said.txt", b"1 2 3", "expected a table of logits as .npy, .npz, .csv or .parquet"),
        ("said.csv", b"a,b\nx,y\n", "cannot be read as a table of logits"),
    ],
)
def test_a_file_that_is_no_table_is_refused_in_one_line(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert expected in refusal(of_table(tmp_path / name)[0])


class Evil:
    def __reduce__(self):
        return (print, ("this code ran",))


def test_a_checkpoint_that_could_run_code_is_refused_unread(kept, tmp_path, capsys):
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"w": Evil()}))
    torch.save({"w": Evil()}, tmp_path / "zipped.pt")
    for path in (tmp_path / "evil.pt", tmp_path / "zipped.pt", kept[0] / "whole.pt"):
        assert "pickled objects, which could run code when they are read, and is refused" in refusal(own(kept, path)[0])
    assert "this code ran" not in capsys.readouterr().out


def test_a_checkpoint_that_does_not_fit_is_refused_with_its_keys_and_shapes(kept, tmp_path):
    state = kept[1].state_dict()
    first = next(iter(state))
    cases = {
        "missing": ({k: v for k, v in state.items() if k != first}, f"missing {first}"),
        "unexpected": ({**state, "head.weight": torch.ones(1)}, "unexpected head.weight"),
        "shape": ({**state, "fc.bias": torch.ones(7)}, "of another shape fc.bias (7,), expected (10,)"),
    }
    for name, (wrong, expected) in cases.items():
        save_file(wrong, tmp_path / f"{name}.safetensors")
        said = refusal(own(kept, tmp_path / f"{name}.safetensors")[0])
        assert "do not fit" in said
        assert expected in said
    save_file({}, tmp_path / "empty.safetensors")
    assert "missing stem.weight, stem.bias, norm.weight and 8 more" in refusal(
        own(kept, tmp_path / "empty.safetensors")[0]
    )
    (tmp_path / "no.safetensors").write_bytes(b"not safetensors")
    assert "cannot be read as safetensors" in refusal(own(kept, tmp_path / "no.safetensors")[0])
    (tmp_path / "no.pt").write_bytes(b"")
    assert "no state dict" in refusal(own(kept, tmp_path / "no.pt")[0])
    assert "give it as kind: torchscript" in refusal(own(kept, "script.pt")[0])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("kind: torchscript, path: {0}/w.pt", "w.pt is no torchscript file"),
        ("kind: onnx, path: {0}/w.pt", "w.pt is no onnx file"),
        ("kind: onnx, path: {0}/split.onnx", "keeps its weights in another file: export it as one file"),
        ("kind: torchscript, path: {0}/table.pt", "cannot take inputs of 1x8x8"),
        ("kind: onnx, path: {0}/net.onnx, mean: [0, 0, 0], std: [1, 1, 1]", "teacher.mean has 3 numbers"),
    ],
)
def test_a_whole_model_that_does_not_fit_is_refused_in_one_line(kept, spec, expected):
    study, _ = study_of(f"teacher={{{spec.format(kept[0])}, fitted_on: train}}")
    assert expected in refusal(without_features(study))


def test_a_teacher_of_other_classes_is_refused(kept, tmp_path):
    with torch.no_grad():
        torch.jit.trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), torch.rand(2, 1, 8, 8)).save(
            tmp_path / "seven.pt"
        )
    study, _ = study_of(f"teacher={{kind: torchscript, path: {tmp_path}/seven.pt, fitted_on: train}}")
    assert "returns a tensor of shape (2, 7) for 2 rows, expected logits (2, 10)" in refusal(without_features(study))


def test_arms_that_compare_layers_are_refused_by_name_where_a_teacher_has_none(kept):
    study, _ = study_of(f"teacher={{kind: onnx, path: {kept[0]}/net.onnx, fitted_on: train}}")
    said = refusal(study)
    assert said.startswith("kd_fa, kd_at, kd_fa_at compare layers")
    assert "--arms hard_labels,hard_labels_again,label_smoothing,kd_shuffled,kd," in said


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("kind: onnx, path: {0}/net.onnx", "fitted_on is missing"),
        ("kind: logits, path: {0}/net.onnx", "fitted_on is missing"),
        ("kind: factory, function: '{0}/nets.py:picture', checkpoint: {0}/w.pt", "fitted_on is missing"),
        ("kind: torchvision, model: resnet18, fitted_on: train", "are for a teacher with a checkpoint"),
        ("kind: onnx, path: {0}/none.onnx, fitted_on: train", "No such file"),
        ("kind: onnx, path: {0}/net.onnx, fitted_on: train, mean: [0]", "mean and std go together"),
        ("kind: onnx, path: {0}/net.onnx, fitted_on: unknown", "name rows that it never saw in data.validation_rows"),
        ("kind: onnx, path: {0}/net.onnx, fitted_on: train+validation", "accept_contaminated_validation: true"),
        ("kind: torchvision, model: resnt18", "did you mean 'resnet18'"),
    ],
)
def test_a_teacher_that_says_too_little_is_refused_before_anything_runs(kept, spec, expected):
    with pytest.raises(BadInput) as refused:
        refuse_unusable(study_of(f"teacher={{{spec.format(kept[0])}}}")[0], lambda line: None)
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


def test_one_teacher_serves_all_seeds(kept):
    with pytest.raises(BadInput, match="confirm_teachers=2, but a teacher from outside is one and the same"):
        own(kept, "w.pt", "confirm_teachers=2")
    with pytest.raises(BadInput, match="accept_contaminated_validation is for a teacher from outside"):
        study_of("accept_contaminated_validation=true")


# promise 1


def test_contaminated_validation_is_used_only_where_it_is_accepted_and_said(kept):
    study, data = own(kept, "w.pt", "accept_contaminated_validation=true", fitted_on="unknown")
    teacher = build_teacher(study, 0, data, "train", 0)
    assert np.isin(data.validation.fingerprints(), teacher.fitted_on).all()
    outputs = label(study, teacher, data, "train")
    context = payload_of(study, 0, data, "train", [outputs]).context()
    next(iter(vision.train(trial_config(study, "kd", study.arms["kd"].default, (0,), 1), context)))
    notes = images.notes(study, teacher, outputs, data.train)
    assert any("contaminated validation" in note for note in notes)
    assert any("may have seen the test rows" in note for note in notes)
    with pytest.raises(datasets.Leak):
        build_teacher(accepting_no_more(study), 0, data, "train", 0)


def accepting_no_more(study):
    """As if the acceptance had been lost on the way: the rows themselves must not let it through."""
    other = copy.copy(study)
    object.__setattr__(other, "accept_contaminated_validation", False)
    return other


def test_named_validation_rows_are_those_and_no_others(tmp_path, kept):
    order = in_order({"kind": "digits"})
    plain, data = study_of()
    pool = np.concatenate([data.train.fingerprints(), data.validation.fingerprints()])
    there = np.flatnonzero(np.isin(order.fingerprints, pool))[::3]
    np.save(tmp_path / "unseen.npy", there)
    study, named = own(kept, "w.pt", f"data.validation_rows={tmp_path / 'unseen.npy'}", fitted_on="train+validation")
    assert sorted(named.validation.fingerprints()) == sorted(order.fingerprints[there])
    assert not np.isin(named.train.fingerprints(), named.validation.fingerprints()).any()
    assert np.array_equal(named.test.x, data.test.x)
    assert study.contaminated is None
    assert build_teacher(study, 0, named, "train", 0) is not None
    assert plain.data.validation_rows is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("12\n99999\n", "names 1 rows that the data have not (99999)"),
        ("", "none is named"),
        ("test", "names 1 rows, of which 1 are not there to train or validate on"),
        ("train", "leaves 1 rows of 1 classes to validate on"),
    ],
)
def test_validation_rows_that_cannot_be_are_refused(tmp_path, content, expected):
    _, data = study_of()
    if content in ("test", "train"):
        order, part = in_order({"kind": "digits"}), getattr(data, content)
        content = str(np.flatnonzero(order.fingerprints == part.fingerprints()[0])[0])
    (tmp_path / "unseen.txt").write_text(content)
    with pytest.raises(datasets.BadData) as refused:
        study_of(f"data.validation_rows={tmp_path / 'unseen.txt'}")
    assert expected in str(refused.value)


# one and the same teacher


@pytest.mark.parametrize("confirm_on", ["train", "train+validation"])
def test_it_is_the_same_artefact_whatever_it_labels(kept, confirm_on):
    study, data = own(kept, "w.pt", f"confirm_on={confirm_on}")
    built = [build_teacher(study, 0, data, fit, number).artefact.key for fit, number in teacher_sets(study)]
    assert len(set(built)) == 1
    assert reopen(outside.KIND, built[0]).about["recipe"]["what"] == "from outside"


def test_a_file_that_changes_is_refused_and_one_that_moves_is_not(kept, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes((kept[0] / "w.safetensors").read_bytes())
    study, data = own(kept, path)
    (tmp_path / "study.yaml").write_text(to_yaml(study))
    before = build_teacher(study, 0, data, "train", 0).artefact.key
    save_file({**kept[1].state_dict(), "fc.bias": torch.ones(10)}, path)
    for changed in (study, load_study(tmp_path / "study.yaml")):
        with pytest.raises(Unusable, match=r"is not the one that the study began with \(sha256"):
            build_teacher(changed, 0, data, "train", 0)
        assert "not the one that the study began with" in refusal(changed)
    moved, _ = own(kept, "w.safetensors")
    assert moved.teacher.sha256 == study.teacher.sha256
    assert build_teacher(moved, 0, data, "train", 0).artefact.key == before


def test_the_users_code_is_part_of_what_a_sweep_is(kept, tmp_path):
    (tmp_path / "nets.py").write_text(SOURCE)
    study, _ = study_of(f"student={{kind: factory, function: {tmp_path}/nets.py:picture}}")
    before = revisions.code_of(study)["the student's function"]
    (tmp_path / "nets.py").write_text(SOURCE + "\n# changed\n")
    assert revisions.code_of(study)["the student's function"] != before
    (tmp_path / "nets.py").unlink()
    with pytest.raises(BadInput, match=r"nets\.py, which the study names, is not there"):
        revisions.code_of(study)
    assert "the teacher's function" in revisions.code_of(own(kept, "w.pt")[0])


def test_a_study_of_outside_networks_is_written_and_read_back(kept, tmp_path):
    study, _ = own(
        kept,
        "w.pt",
        f"student={{kind: factory, function: {kept[0]}/nets.py:picture, options: {{width: 3}}}}",
        'space.layers.choices=["stage:stage", "norm:norm"]',
    )
    (tmp_path / "study.yaml").write_text(to_yaml(study))
    assert load_study(tmp_path / "study.yaml") == study
    assert json.loads(json.dumps(asdict(study.teacher)))["fitted_on"] == "train"


def test_paths_in_a_file_are_relative_to_it(kept, tmp_path):
    for name in ("nets.py", "w.pt"):
        (tmp_path / name).write_bytes((kept[0] / name).read_bytes())
    (tmp_path / "study.yaml").write_text(
        "extends: digits-attention-transfer\n"
        "student: {kind: factory, function: 'nets.py:picture'}\n"
        "teacher: {kind: factory, function: 'nets.py:picture', checkpoint: w.pt, fitted_on: train}\n"
    )
    study = load_study(tmp_path / "study.yaml")
    assert study.student.function == f"{tmp_path}/nets.py:picture"
    assert study.teacher.checkpoint == f"{tmp_path}/w.pt"


def test_every_study_of_the_page_on_models_is_one_that_can_run(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "models.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    (tmp_path / "nets.py").write_text(code)
    spec = {"kind": "factory", "function": f"{tmp_path}/nets.py:small", "options": {}}
    save_file(network(spec, 1, 10).module.state_dict(), tmp_path / "teacher.safetensors")
    table_of(tmp_path / "said.csv", ids=np.arange(1797))
    _, data = study_of("data.train_limit=null")
    order = in_order({"kind": "digits"})
    seen = np.isin(order.fingerprints, data.validation.fingerprints())
    (tmp_path / "unseen.txt").write_text("\n".join(map(str, np.flatnonzero(seen))))
    a_table().rename(columns={"customer": "customerID", "bought": "Churn"}).replace({"yes": "Yes"}).to_csv(
        tmp_path / "churn.csv", index=False
    )
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.S)
    assert len(blocks) == 5
    for block in blocks:
        (tmp_path / "study.yaml").write_text(block)
        study = load_study(tmp_path / "study.yaml")
        refuse_unusable(without_features(study) if study.teacher.kind == "logits" else study, lambda line: None)
