"""What a cache holds of a teacher is what the teacher says of that view, built once; the teacher saw only its rows."""

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch.nn import functional as F

from search import payload
from search.families import vision as family
from search.payload import build_teacher
from tests.made_images import digits, pictures, untrained_teacher
from trainables.artefacts import Artefact
from trainables.cache import cache_folder
from trainables.datasets import Dataset, Leak, Rows
from trainables.learner import Learner, autocast
from trainables.streams import Streams
from trainables.teachers import cached, resnet
from trainables.teachers.cached import CacheTooLarge, DegenerateMasks, Wanted, projection, size_mb, wanted_shapes
from trainables.views import Views

LAYERS = ("layer1", "layer2")
WANTED = Wanted(LAYERS, LAYERS, (("grad_cam", "layer3"), ("layer_cam", "layer1"), ("layer_cam", "layer2")))
SPEC = {"count": 2, "pad": 1, "flip": True, "cache_limit_mb": 100, "alignment_channels": 6}
ONE_VIEW = {**SPEC, "pad": 0, "flip": False, "alignment_channels": 64}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTUNE_CACHE", str(tmp_path))
    return tmp_path


def build(teacher, rows, spec=SPEC, wanted=WANTED):
    return cached.build(teacher, rows, spec, wanted, 10)


def folders(kind):
    """What the cache holds, without locks."""
    root = cache_folder() / kind
    return [path for path in root.iterdir() if path.is_dir()] if root.exists() else []


def forbid(monkeypatch, module, name):
    def called(*given, **more):
        raise AssertionError(f"{name} was called")

    monkeypatch.setattr(module, name, called)


# what is cached


def pooled(maps, side=16):
    """(batch, ..., h, w) averaged over squares, down to at most 16x16; h and w are 16 times a whole number, or less."""
    factor = max(1, maps.shape[-1] // side)
    return maps.unfold(-2, factor, factor).unfold(-2, factor, factor).mean(dim=(-2, -1))


def direct(teacher, images, labels, deviation):
    """What the teacher says of uint8 images, by array name: one pass, gradients of each label's logit, formulas."""
    shown = ((images / 255 - teacher.normalise.mean) / teacher.normalise.std).requires_grad_()
    side = images.shape[-1]
    with autocast(teacher.precision, "cpu", side * side):
        logits, features = teacher.model(shown, ("layer1", "layer2", "layer3"))
    said = {"logits": logits.detach().float()}
    gradients = torch.autograd.grad(
        logits.float()[torch.arange(len(labels)), labels].sum(), list(features.values()), allow_unused=True
    )
    for (layer, a), gradient in zip(features.items(), gradients, strict=True):
        a, gradient = a.detach().float(), gradient.float()
        maps = pooled((a**2).sum(dim=1))
        said[f"attention.{layer}"] = maps / (maps**2).sum(dim=(1, 2), keepdim=True).sqrt()
        if layer in deviation:
            matrix = projection(layer, a.shape[1], min(6, a.shape[1]))
            said[f"features.{layer}"] = torch.einsum("kc,bchw->bkhw", matrix, pooled(a)) / deviation[layer]
        by_channel = torch.einsum("bc,bchw->bhw", gradient.mean(dim=(2, 3)), a)
        for kind, cam in (("layer_cam", (gradient.clamp(min=0) * a).sum(dim=1)), ("grad_cam", by_channel)):
            cam = pooled(cam.clamp(min=0))
            said[f"{kind}.{layer}"] = cam / cam.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    return said


def read(views, name, view, rows):
    first, *rest = name.split(".")
    reader = {"logits": views.logits, "attention": views.attention, "features": views.features}.get(first)
    return reader(*rest, view, rows) if reader else views.activation(first, *rest, view, rows)


@pytest.mark.parametrize(
    ("n", "side", "channels", "precision", "within"),
    [
        (133, 8, 1, "fp32", 2e-3),  # two batches
        (7, 32, 3, "fp32", 2e-3),  # layer1 is larger than what is kept
        (7, 16, 3, "bf16", 5e-2),
    ],
)
def test_cached_entries_are_what_the_teacher_says_of_the_view(n, side, channels, precision, within):
    rows = pictures(n, side, channels)
    teacher = untrained_teacher(rows, width=8, precision=precision)
    views = build(teacher, rows)
    shown, order = Views(torch.from_numpy(rows.x), SPEC), torch.arange(n).flip(0)
    for view in range(SPEC["count"]):
        said = direct(teacher, shown(order, view), torch.from_numpy(rows.y)[order], views.deviation)
        for name in views.names():
            kept = read(views, name, view, order)
            assert kept.dtype == torch.float32
            torch.testing.assert_close(
                kept, said[name], rtol=within, atol=within, msg=lambda m, name=name: f"{name}: {m}"
            )
            assert views.shape(name) == kept.shape[1:]
            assert name in views
    assert set(views.names()) == {
        "logits",
        *(f"{k}.{n}" for k in ("attention", "features", "layer_cam") for n in LAYERS),
        "grad_cam.layer3",
    }
    assert max(views.shape("attention.layer1")) <= 16
    assert "features.layer3" not in views


def test_views_and_samples_differ_in_the_cache():
    rows = pictures(60, 8)
    views = build(untrained_teacher(rows), rows, wanted=Wanted(LAYERS, LAYERS))
    for name in views.names():
        a, b = (read(views, name, view, torch.arange(60)) for view in (0, 1))
        assert (a != b).flatten(1).any(dim=1).float().mean() > 0.8
        assert (a[1:] != a[:-1]).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_are_in_units_of_their_deviation(precision):
    rows = pictures(300, 16)
    views = build(untrained_teacher(rows, precision=precision), rows, ONE_VIEW, Wanted(features=LAYERS))
    for layer in LAYERS:
        assert views.features(layer, 0, torch.arange(300)).std().item() == pytest.approx(1, abs=5e-3)


def test_projected_features_keep_about_their_size():
    rows = pictures(100, 8)
    views = build(
        untrained_teacher(rows, width=32), rows, {**ONE_VIEW, "alignment_channels": 16}, Wanted(features=LAYERS)
    )
    whole = build(untrained_teacher(rows, width=32), rows, ONE_VIEW, Wanted(features=LAYERS))
    for layer in LAYERS:
        size, full = (v.features(layer, 0, torch.arange(100)).square().mean().item() for v in (views, whole))
        assert views.shape(f"features.{layer}") == (16, *whole.shape(f"features.{layer}")[1:])
        assert 0.5 < size / full < 2


@pytest.mark.parametrize(("channels", "kept"), [(64, 16), (5, 1), (16, 16), (128, 127)])
def test_a_projection_is_orthonormal_and_always_the_same(channels, kept):
    matrix = projection("layer3", channels, kept)
    assert matrix.shape == (kept, channels)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(kept), rtol=0, atol=1e-5)
    torch.manual_seed(1)
    assert torch.equal(matrix, projection("layer3", channels, kept))
    assert torch.equal(matrix, torch.eye(channels)) == (channels == kept)


def test_a_projection_of_another_layer_is_another_and_of_fewer_channels_a_part():
    matrix = projection("layer3", 64, 16)
    assert not torch.allclose(matrix, projection("layer2", 64, 16))
    assert torch.equal(projection("layer3", 64, 4), matrix[:4])
    assert abs(matrix[0, 0].item()) == pytest.approx(0.128708, rel=1e-4)  # caches outlive processes; signs are LAPACK's


# built once, and whole


def test_a_cache_is_built_once(monkeypatch):
    rows = pictures(20, 8)
    teacher = untrained_teacher(rows)
    first = build(teacher, rows)
    forbid(monkeypatch, cached, "_compute")
    second = build(teacher, rows)
    assert second.folder == first.folder
    assert (second.deviation, second.degenerate) == (first.deviation, first.degenerate)
    assert second.teacher == teacher.artefact.key
    assert np.array_equal(second.fitted_on, teacher.fitted_on)


def test_a_cache_is_of_its_teacher_its_rows_its_labels_its_views_and_what_is_wanted():
    rows = pictures(20, 8)
    teacher = untrained_teacher(rows)
    other_labels, other_rows = Rows(rows.x, rows.y[::-1].copy()), pictures(20, 8, seed=1)
    caches = [
        build(teacher, rows),
        build(untrained_teacher(rows, width=8), rows),
        build(teacher, other_labels),
        build(teacher, other_rows),
        build(teacher, rows, {**SPEC, "count": 3}),
        build(teacher, rows, {**SPEC, "pad": 2}),
        build(teacher, rows, {**SPEC, "flip": False}),
        build(teacher, rows, {**SPEC, "alignment_channels": 2}),
        build(teacher, rows, SPEC, Wanted(LAYERS)),
        build(replace(teacher, precision="bf16"), rows, SPEC, Wanted(LAYERS)),
    ]
    assert len({c.folder for c in caches}) == len(caches)
    assert build(teacher, rows, {**SPEC, "cache_limit_mb": 50}).folder == caches[0].folder


def contents(folder):
    return {path.name: np.load(path) for path in Path(folder).glob("*.npy")}


def flip_a_byte(path):
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 0x40
    path.write_bytes(whole)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-2])


def forget_checksums(path):
    about = json.loads(path.read_text())
    del about["sha256"]
    path.write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("name", "damage", "warns"),
    [
        ("logits.npy", flip_a_byte, "does not fit its checksums and is built again"),
        ("attention.layer2.npy", flip_a_byte, "does not fit its checksums and is built again"),
        ("layer_cam.layer1.npy", cut_short, "does not fit its checksums and is built again"),
        ("features.layer1.npy", Path.unlink, "is not whole and is built again"),
        ("about.json", Path.unlink, "is not whole and is built again"),
        ("about.json", cut_short, "does not fit its checksums and is built again"),
        ("about.json", forget_checksums, "does not fit its checksums and is built again"),
    ],
)
def test_a_damaged_cache_is_built_again_with_a_warning(name, damage, warns, caplog):
    rows = pictures(20, 8)
    teacher = untrained_teacher(rows)
    folder = Path(build(teacher, rows).folder)
    before = contents(folder)
    damage(folder / name)
    with caplog.at_level(logging.WARNING):
        again = build(teacher, rows)
    assert again.folder == folder
    assert [warns in message for message in caplog.messages] == [True]
    after = contents(folder)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[array], after[array]) for array in before)
    caplog.clear()
    build(teacher, rows)
    assert caplog.messages == []


def test_a_process_that_has_read_a_cache_reads_what_was_built_again():
    rows, every = pictures(20, 8), torch.arange(20)
    teacher = untrained_teacher(rows)
    views = build(teacher, rows)
    before = views.logits(1, every)
    with (Path(views.folder) / "logits.npy").open("r+b") as file:
        file.seek(-2, 2)
        file.write(b"\x00\x3c")
    again = build(teacher, rows)
    assert torch.equal(again.logits(1, every), before)


def test_a_building_that_fails_leaves_nothing_behind(monkeypatch):
    rows = pictures(20, 8)

    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(cached, "write_atomically", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(untrained_teacher(rows), rows)
    assert folders(cached.KIND) == []


# its size


def estimate(rows, spec, wanted, width):
    shapes = {f"layer{i + 1}": (width * 2**i, rows.x.shape[-1] // 2**i, rows.x.shape[-1] // 2**i) for i in range(3)}
    return wanted_shapes(wanted, 10, shapes, spec["alignment_channels"])


@pytest.mark.parametrize(("n", "side", "spec"), [(200, 8, SPEC), (40, 32, SPEC), (200, 8, ONE_VIEW)])
def test_the_estimated_size_is_that_of_the_files(n, side, spec):
    rows = pictures(n, side)
    folder = Path(build(untrained_teacher(rows), rows, spec).folder)
    on_disk = sum(path.stat().st_size for path in folder.glob("*.npy"))
    views = spec["count"] if spec["pad"] else 1
    estimated = 1e6 * size_mb(estimate(rows, spec, WANTED, 4), views, n)
    assert on_disk == pytest.approx(estimated, rel=0.01)


def test_a_cache_above_the_limit_is_refused_with_the_numbers_before_anything_is_built(monkeypatch):
    rows = pictures(3000, 8)
    teacher = untrained_teacher(rows, width=16)
    forbid(monkeypatch, cached, "_compute")
    spec = {**SPEC, "count": 4, "alignment_channels": 16, "cache_limit_mb": 30}
    # 2 bytes x 4 views x 3000 images x (10 logits + 8x8 and 4x4 maps, twice + 16 features of each)
    says = (
        r"would take 35 MB \(4 views of 3000 images; features.layer1 25 MB, features.layer2 6 MB, "
        r"layer_cam.layer1 2 MB\) and views.cache_limit_mb is 30: lower views.count, views.alignment_channels or"
    )
    with pytest.raises(CacheTooLarge, match=says):
        build(teacher, rows, spec, Wanted(LAYERS, LAYERS, (("layer_cam", "layer1"), ("layer_cam", "layer2"))))
    assert folders(cached.KIND) == []


def test_features_take_no_room_where_the_teacher_runs_live():
    rows = pictures(20, 8)
    views = build(untrained_teacher(rows), rows, {**SPEC, "alignment_channels": "live"})
    assert not any(name.startswith("features") for name in views.names())
    assert set(views.deviation) == set(LAYERS)


# degenerate masks


def teacher_blind_to(classes, rows):
    """Of these classes the logit is 0 whatever the image."""
    teacher = untrained_teacher(rows)
    teacher.model.fc.weight.data[classes] = 0
    return teacher


@pytest.mark.parametrize(("classes", "share"), [([3], "10%"), ([3, 4], "20%")])
def test_a_few_flat_masks_are_counted(classes, share):
    rows = pictures(100, 8)
    views = build(teacher_blind_to(classes, rows), rows, wanted=Wanted(activations=(("layer_cam", "layer2"),)))
    assert [f"{counted:.0%}" for counted in views.degenerate.values()] == [share]
    blind = views.activation("layer_cam", "layer2", 0, torch.from_numpy(np.flatnonzero(np.isin(rows.y, classes))))
    assert (blind == 0).all()


@pytest.mark.parametrize(("classes", "share"), [([3, 4, 5], "30%"), (list(range(10)), "100%")])
def test_too_many_flat_masks_are_refused(classes, share):
    rows = pictures(100, 8)
    says = f"{share} of the teacher's layer_cam.layer2 maps are flat or zero.*allowed: 20%.*mask: none"
    with pytest.raises(DegenerateMasks, match=says):
        build(teacher_blind_to(classes, rows), rows, wanted=Wanted(activations=(("layer_cam", "layer2"),)))
    assert folders(cached.KIND) == []


# the teacher

QUICK = ("teacher.depth=8", "teacher.width=4")


def made_teacher(study, rows, teacher_set=0):
    return family.build_teacher(study, 0, rows, Dataset(10, rows, rows, None, None), teacher_set, "cpu")


def test_a_teacher_depends_on_no_row_but_those_it_is_fitted_on(tmp_path, monkeypatch):
    monkeypatch.setattr(payload, "device", lambda: "cpu")
    study, data = digits(*QUICK)
    teacher = build_teacher(study, 0, data, "train", 0)
    assert np.array_equal(teacher.fitted_on, data.train.fingerprints())
    assert not np.isin(data.validation.fingerprints(), teacher.fitted_on).any()
    monkeypatch.setenv("DISTUNE_CACHE", str(tmp_path / "another"))
    elsewhere = replace(data, validation=pictures(50, 8), test=pictures(50, 8, seed=1))
    again = build_teacher(study, 0, elsewhere, "train", 0)
    assert again.artefact.key == teacher.artefact.key
    assert same_weights(teacher, again)
    with pytest.raises(Leak, match="the teacher was fitted on 5 of the 5 validation rows"):
        build_teacher(study, 0, replace(data, validation=Rows(data.train.x[:5], data.train.y[:5])), "train", 0)
    with pytest.raises(Leak, match="the teacher was fitted on 5 of the 5 test rows"):
        build_teacher(study, 0, replace(data, test=Rows(data.train.x[:5], data.train.y[:5])), "train", 0)


def same_weights(a, b):
    one, two = a.model.state_dict(), b.model.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture
def epochs(monkeypatch):
    """Of every epoch that a teacher trains: its weights, the images and the logits that it is stopped by."""
    seen = []
    train, predict = Learner.train_epoch, Learner.logits

    def watched(learner, epoch, loss):
        values = train(learner, epoch, loss)
        weights = {k: v.clone() for k, v in learner.model.state_dict().items()}
        seen.append({"epoch": epoch, "weights": weights, "shown": learner.views(torch.arange(len(learner.labels)), 0)})
        return values

    def judged(learner, images):
        logits = predict(learner, images)
        seen[-1] |= {"stop": images, "logits": logits}
        return logits

    monkeypatch.setattr(Learner, "train_epoch", watched)
    monkeypatch.setattr(Learner, "logits", judged)
    return seen


def test_early_stopping_keeps_the_best_epoch_by_a_share_of_its_own_rows(epochs):
    study, data = digits(
        *QUICK,
        "teacher.epochs=30",
        "teacher.patience=3",
        "teacher.stop_fraction=0.2",
        "teacher.learning_rate=0.5",
        "teacher.schedule=constant",
        "views.pad=0",
    )
    teacher = made_teacher(study, data.train)
    images = {row.tobytes(): label for row, label in zip(data.train.x, data.train.y, strict=True)}
    shown, stop = ([row.numpy().tobytes() for row in epochs[0][which]] for which in ("shown", "stop"))
    assert (len(shown), len(stop)) == (160, 40)
    assert sorted([*shown, *stop]) == sorted(images)
    labels = torch.tensor([images[row] for row in stop])
    losses = [F.cross_entropy(e["logits"], labels).item() for e in epochs]
    best = int(np.argmin(losses))
    assert 0 < best < len(losses) - 1 == best + 3 < 29
    assert teacher.artefact.about["epoch"] == best + 1
    assert teacher.artefact.about["stop_loss"] == pytest.approx(losses[best], rel=1e-5)
    kept = teacher.model.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in epochs[best]["weights"].items())
    assert not torch.equal(kept["fc.weight"], epochs[-1]["weights"]["fc.weight"])


def test_a_teacher_is_built_once_frozen_and_the_same_when_it_is_opened_again(monkeypatch):
    study, data = digits(*QUICK)
    assert not family.is_built(study, 0, data.train, data, 0)
    teacher = made_teacher(study, data.train)
    assert family.is_built(study, 0, data.train, data, 0)
    assert teacher.parameters == sum(p.numel() for p in teacher.model.parameters())
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())
    forbid(monkeypatch, resnet, "_train")
    opened = resnet.reopen(teacher.artefact.key, asdict(study.compute), "cpu")
    x, floats = data.validation.x, data.validation.x.astype(np.float32) / np.float32(255)
    for again in (made_teacher(study, data.train), opened):
        assert torch.equal(again.member_logits(x), teacher.member_logits(x))
        assert np.array_equal(again.fitted_on, teacher.fitted_on)
    torch.testing.assert_close(opened.member_logits(floats), teacher.member_logits(x))
    assert teacher.member_logits(x).shape == (1, len(x), 10)
    with pytest.raises(FileNotFoundError, match="holds no intact artefact"):
        resnet.reopen("0" * 20, asdict(study.compute), "cpu")


@pytest.mark.parametrize("change", ["set", "labels", "recipe", "seed", "views"])
def test_another_set_label_recipe_seed_or_view_is_another_teacher(change):
    study, data = digits(*QUICK, "teacher.epochs=1")
    first = made_teacher(study, data.train)
    rows, spec, views = data.train, asdict(study.teacher), asdict(study.views)
    other = resnet.build(
        {**spec, "weight_decay": 0.1} if change == "recipe" else spec,
        {**views, "pad": 2} if change == "views" else views,
        asdict(study.compute),
        Rows(rows.x, (rows.y + 1) % 10) if change == "labels" else rows,
        10,
        int(change == "set"),
        Streams(study.name, int(change == "seed")),
        "cpu",
    )
    assert other.artefact.key != first.artefact.key
    assert not same_weights(first, other)


def test_a_teacher_that_diverges_says_which_learning_rate_was_too_high():
    study, data = digits(*QUICK, "teacher.learning_rate=1e+20")
    with pytest.raises(FloatingPointError, match=r"the teacher diverged: learning_rate=1e\+20 is too high"):
        made_teacher(study, data.train)
    assert folders(resnet.KIND) == []


def test_a_teacher_whose_loss_is_never_finite_has_diverged_even_if_its_weights_are_finite(monkeypatch):
    monkeypatch.setattr(Learner, "logits", lambda learner, images: torch.full((len(images), 10), torch.nan))
    study, data = digits(*QUICK)
    with pytest.raises(FloatingPointError, match="the teacher diverged"):
        made_teacher(study, data.train)
    assert folders(resnet.KIND) == []


# pretrained weights

PRETRAINED = {"depth": 18, "stem": "torchvision", "cbam": False, "epochs": 1, "batch_size": 16, "learning_rate": 1e-9}


@pytest.fixture
def imagenet(monkeypatch):
    """What torchvision answers when it is asked for weights: an error, or the state dict that a test puts here.

    Teachers are not written: 45 MB each.
    """
    answer = {}

    def unwritten(kind, recipe, fitted_on, train):
        tensors, about = train()
        return Artefact(json.dumps(recipe), tensors, fitted_on, {"recipe": recipe, **about})

    def get_state_dict(weights, *given, **more):
        if "state" not in answer:
            raise OSError("no network")
        return answer["state"]

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", get_state_dict)
    monkeypatch.setattr(resnet, "build_once", unwritten)
    resnet._imagenet.cache_clear()
    yield answer
    resnet._imagenet.cache_clear()


def of_pictures(pretrained, channels=3):
    study, _ = digits()
    spec = {**asdict(study.teacher), **PRETRAINED, "width": None, "pretrained": pretrained}
    views, compute = asdict(study.views), asdict(study.compute)
    return resnet.build(spec, views, compute, pictures(24, 8, channels), 10, 0, Streams("s"), "cpu")


def test_without_a_network_a_pretrained_teacher_trains_from_scratch_and_warns_once(imagenet, caplog):
    with caplog.at_level(logging.WARNING):
        teacher = of_pictures(pretrained=True)
    (warning,) = caplog.messages
    assert "ImageNet weights cannot be downloaded (no network): the teacher trains from scratch" in warning
    assert teacher.artefact.about["pretrained"] is False
    assert of_pictures(pretrained=False).artefact.key == teacher.artefact.key


def test_pretrained_weights_are_where_a_teacher_of_colour_images_starts(imagenet):
    model = torchvision.models.resnet18()
    imagenet["state"] = model.state_dict()
    teacher = of_pictures(pretrained=True)
    assert teacher.artefact.about["pretrained"] is True
    torch.testing.assert_close(teacher.model.conv1.weight, model.conv1.weight.detach(), rtol=0, atol=1e-6)
    assert teacher.model.fc.weight.shape == (10, 512)
    grey = of_pictures(pretrained=True, channels=1)
    assert grey.artefact.about["pretrained"] is False
