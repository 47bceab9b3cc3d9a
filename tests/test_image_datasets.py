"""Images as datasets: the parts are disjoint and balanced, a folder is decoded once, and what is wrong says so."""

import json
import logging
import os
import types

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets as torchvision_datasets

from trainables.cache import cache_folder
from trainables.datasets import BadData, image_folder, images

DIGITS = {"kind": "digits", "split_seed": 0, "test_fraction": 0.3, "validation_fraction": 0.25}
CLASSES = ("cat", "dog", "owl")


def picture(seed, width=6, height=5):
    """A picture that compresses little and is unlike any other's."""
    return Image.fromarray(np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8))


def fill(root, train=12, test=4, width=6, height=5):
    """A folder of PNGs, `train` and `test` for each of the CLASSES; the seed of each picture is its number."""
    number = 0
    for split, count in (("train", train), ("test", test)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                picture(number, width, height).save(root / split / name / f"{i:03}.png")
                number += 1
    return {"kind": "image_folder", "path": str(root), "split_seed": 0, "validation_fraction": 0.25}


@pytest.fixture
def spec(tmp_path):
    return fill(tmp_path / "pictures")


@pytest.fixture
def root(spec, tmp_path):
    return tmp_path / "pictures"


@pytest.fixture
def decodings(monkeypatch):
    """The number of images decoded so far, as a list that grows."""
    decode, calls = image_folder._decode, []
    monkeypatch.setattr(image_folder, "_decode", lambda blob, mode: (calls.append(mode), decode(blob, mode))[1])
    return calls


def parts(data):
    return data.train, data.validation, data.test


def counts(rows):
    return np.bincount(rows.y).tolist()


def same(a, b):
    return all(np.array_equal(r.x, s.x) and np.array_equal(r.y, s.y) for r, s in zip(parts(a), parts(b), strict=True))


def assert_disjoint(data):
    seen = [set(rows.fingerprints().tolist()) for rows in parts(data)]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# digits


def test_digits_are_bytes_in_three_disjoint_balanced_parts():
    data = images.load(DIGITS)
    assert [len(rows) for rows in parts(data)] == [942, 315, 540]
    assert_disjoint(data)
    whole = np.bincount(load_digits().target) / 1797
    for rows in parts(data):
        assert rows.x.dtype == np.uint8
        assert rows.x.shape[1:] == images.image_shape(DIGITS) == (1, 8, 8)
        assert rows.y.dtype == np.int64
        assert np.bincount(rows.y) / len(rows) == pytest.approx(whole, abs=0.005)
    assert max(rows.x.max() for rows in parts(data)) == 240
    assert data.classes == len(images.class_names(DIGITS)) == 10


def test_a_spec_gives_the_same_rows_always_and_another_seed_others():
    assert same(images.load(DIGITS), images.load(DIGITS))
    assert not same(images.load(DIGITS), images.load({**DIGITS, "split_seed": 1}))


def test_limits_keep_a_balanced_subset_and_leave_the_other_parts_alone():
    whole, limited = images.load(DIGITS), images.load({**DIGITS, "train_limit": 100, "test_limit": 50})
    assert [len(rows) for rows in parts(limited)] == [100, 315, 50]
    assert min(counts(limited.train)) >= 9
    assert min(counts(limited.test)) >= 4
    assert np.isin(limited.train.fingerprints(), whole.train.fingerprints()).all()
    assert np.isin(limited.test.fingerprints(), whole.test.fingerprints()).all()
    assert np.array_equal(limited.validation.x, whole.validation.x)
    assert same(whole, images.load({**DIGITS, "train_limit": 942, "test_limit": 100_000}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_limit": 7}, r"the training part with train_limit=7 holds 7 images and none of .*10 classes"),
        ({"test_limit": 5}, r"the test part with test_limit=5 holds 5 images and none of"),
        ({"validation_fraction": 0.004}, r"validation_fraction=0.004 cannot be drawn from 1257 images of 10 classes"),
        ({"test_fraction": 0.999}, r"test_fraction=0.999 cannot be drawn from 1797 images of 10 classes"),
        ({"kind": "mnist"}, r"kind='mnist' .*digits, cifar10, image_folder"),
    ],
)
def test_a_part_without_a_class_is_refused_with_the_numbers(changes, message):
    for refuses in (images.check, images.load):
        with pytest.raises(BadData, match=message):
            refuses({**DIGITS, **changes})


# CIFAR-10


CIFAR10 = {"kind": "cifar10", "split_seed": 0, "validation_fraction": 0.1}


def test_cifar10_is_turned_to_channels_first_and_split_stratified(monkeypatch):
    random = np.random.default_rng(0)

    def fake(root, train, download):
        n = 200 if train else 50
        return types.SimpleNamespace(
            data=random.integers(256, size=(n, 32, 32, 3), dtype=np.uint8), targets=[i % 10 for i in range(n)]
        )

    monkeypatch.setattr(torchvision_datasets, "CIFAR10", fake)
    data = images.load(CIFAR10)
    assert [counts(rows) for rows in parts(data)] == [[18] * 10, [2] * 10, [5] * 10]
    assert data.train.x.shape[1:] == images.image_shape(CIFAR10) == (3, 32, 32)
    random = np.random.default_rng(0)
    drawn = random.integers(256, size=(200, 32, 32, 3), dtype=np.uint8)
    first = drawn[0].transpose(2, 0, 1)
    assert any(np.array_equal(x, first) for x in np.concatenate([data.train.x, data.validation.x]))


def test_cifar10_that_cannot_be_fetched_says_where_to_put_it(monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(torchvision_datasets, "CIFAR10", offline)
    with pytest.raises(BadData, match=r"Network is unreachable.*cifar-10-python\.tar\.gz") as raised:
        images.load({**CIFAR10, "root": str(tmp_path / "by_hand")})
    assert str(tmp_path / "by_hand") in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(BadData) as raised:
        images.load(CIFAR10)
    assert str(cache_folder() / "downloads") in str(raised.value)


def test_cifar10_limits_are_checked_without_a_download():
    images.check({**CIFAR10, "train_limit": 100})
    with pytest.raises(BadData, match="train_limit=3 holds 3 images"):
        images.check({**CIFAR10, "train_limit": 3})


@pytest.mark.slow
def test_cifar10_is_downloaded_and_disjoint():
    try:
        data = images.load(CIFAR10)
    except BadData as error:
        pytest.skip(f"no download here: {error}")
    assert len(data.test) == 10_000
    assert sum(map(len, parts(data))) == pytest.approx(60_000, abs=60)
    assert_disjoint(data)


# a folder


def test_a_folder_is_read_with_its_classes_in_order_of_name(spec):
    images.check(spec)
    assert images.class_names(spec) == list(CLASSES)
    assert images.image_shape(spec) == (3, 5, 6)
    data = images.load(spec)
    assert [counts(rows) for rows in parts(data)] == [[9] * 3, [3] * 3, [4] * 3]
    assert_disjoint(data)
    # the pictures' numbers are 0..35 in train, 36..47 in test, in order of class and name
    for rows, numbers in ((data.test, range(36, 48)), (data.fit_rows("train+validation"), range(36))):
        found = {x.tobytes(): y for x, y in zip(rows.x, rows.y, strict=True)}
        for number in numbers:
            pixels = np.asarray(picture(number)).transpose(2, 0, 1)
            assert found[pixels.tobytes()] == (number // 12 if number < 36 else (number - 36) // 4)


def test_every_format_is_read_and_other_files_are_passed_over(spec, root):
    for i, suffix in enumerate(("jpg", "JPEG", "bmp", "WebP", "gif", "PNG")):
        picture(100 + i).save(root / "test" / "dog" / f"more.{suffix}")
    (root / "test" / "dog" / "notes.txt").write_text("no image")
    (root / "test" / "dog" / "._more.jpg").write_text("no image")
    (root / "test" / ".thumbnails").mkdir()
    assert counts(images.load(spec).test) == [4, 10, 4]


def test_parts_are_ordinary_arrays_and_the_whole_test_split_cannot_be_written(spec):
    data = images.load(spec)
    data.train.x[0] = 0
    data.validation.x[0] = 0
    assert not isinstance(data.train.x, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        data.test.x[0] = 0


def test_size_and_grayscale_make_every_image_alike(spec, root):
    picture(100, width=30, height=20).save(root / "train" / "cat" / "large.jpg")
    resized = {**spec, "size": 8, "grayscale": True}
    assert images.image_shape(resized) == (1, 8, 8)
    data = images.load(resized)
    assert data.train.x.shape[1:] == (1, 8, 8)
    expected = picture(36).convert("L").resize((8, 8), Image.Resampling.BILINEAR)
    assert np.array_equal(data.test.x[0, 0], np.asarray(expected))


def test_mixed_sizes_without_a_size_name_two_files(spec, root):
    picture(100, width=30, height=20).save(root / "test" / "owl" / "large.png")
    with pytest.raises(BadData, match=r"train/cat/000\.png is 6x5, test/owl/large\.png is 30x20; give size"):
        images.load(spec)


def test_sixteen_bits_a_pixel_are_scaled_and_not_clipped(spec, root):
    for split in ("train", "test"):
        for path in (root / split).glob("*/*.png"):
            grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16)
            Image.fromarray(grey << 8).save(path)
    x = images.load({**spec, "grayscale": True}).test.x
    assert np.array_equal(x[0, 0], np.asarray(picture(36).convert("L")))


@pytest.mark.parametrize("image_size", [5, None])
def test_a_grey_picture_among_coloured_ones_gets_three_equal_channels(spec, root, image_size):
    picture(36).convert("L").save(root / "test" / "cat" / "000.png")
    first = images.load({**spec, "size": image_size}).test.x[0]
    assert np.array_equal(first[0], first[2])


# decoded once


def test_a_folder_is_decoded_once(spec, decodings, caplog):
    first = images.load(spec)
    assert len(decodings) == 48
    assert same(first, images.load(spec))
    assert same(first, images.load({**spec, "train_limit": None, "skip_broken": True}))
    assert len(decodings) == 48
    assert not caplog.records


@pytest.mark.parametrize("change", ["touched", "added", "removed", "renamed", "resized", "grey"])
def test_a_changed_folder_or_option_is_decoded_anew(spec, root, decodings, change):
    images.load(spec)
    path = root / "train" / "dog" / "003.png"
    if change == "touched":
        os.utime(path, ns=(1, 1))
    elif change == "added":
        picture(100).save(root / "train" / "dog" / "new.png")
    elif change == "removed":
        path.unlink()
    elif change == "renamed":
        path.rename(path.with_name("other.png"))
    else:
        spec = {**spec, **{"resized": {"size": 4}, "grey": {"grayscale": True}}[change]}
    images.load(spec)
    assert len(decodings) == 96 + {"added": 1, "removed": -1}.get(change, 0)


@pytest.fixture
def stored(spec):
    """The spec's folder in the cache."""
    before = set((cache_folder() / "images").glob("*/about.json"))
    images.load(spec)
    (about,) = set((cache_folder() / "images").glob("*/about.json")) - before
    return about.parent


@pytest.mark.parametrize("name", ["train.npy", "test_labels.npy", "about.json"])
def test_a_damaged_cache_is_decoded_again_with_a_warning(spec, stored, decodings, caplog, name):
    first = images.load(spec)
    first = images.Dataset(3, *(images.Rows(np.array(r.x), r.y) for r in parts(first)), None)
    blob = bytearray((stored / name).read_bytes())
    blob[len(blob) // 2] ^= 1
    (stored / name).write_bytes(blob if name != "about.json" else b"{")
    assert same(first, images.load(spec))
    assert len(decodings) == 48
    assert "do not fit their checksums" in caplog.text
    images.load(spec)
    assert len(decodings) == 48


def test_the_cache_says_what_it_is(spec, stored):
    about = json.loads((stored / "about.json").read_text())
    assert about["recipe"] == {"path": spec["path"], "size": None, "grayscale": False}
    assert about["images"] == {"train": 36, "test": 12}
    assert sorted(path.name for path in stored.iterdir()) == sorted([*image_folder.CACHED, "about.json"])


def test_a_decoding_that_was_interrupted_leaves_nothing_and_is_taken_up(spec, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    before = sorted((cache_folder() / "images").glob("*/"))
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "_pixels", interrupted)
        with pytest.raises(KeyboardInterrupt):
            images.load(spec)
    assert sorted((cache_folder() / "images").glob("*/")) == before
    assert len(images.load(spec).test) == 12


def test_progress_says_how_many_of_how_many(spec, monkeypatch):
    monkeypatch.setattr(image_folder, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(image_folder, "BATCH", 12)
    lines = []
    images.load(spec, progress=lines.append)
    assert lines == [f"decoding images: {n} of 48" for n in (12, 24, 36, 48)]


def test_a_cache_without_room_is_refused_before_anything_is_decoded(spec, monkeypatch):
    monkeypatch.setattr(image_folder.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=100))
    with pytest.raises(BadData, match=r"48 images of 3x5x6 need .* GB .*\$DISTUNE_CACHE"):
        images.load(spec)


# broken images


def break_some(root):
    """Seven of 49 broken: a truncated JPEG, and six files that hold no image."""
    jpeg = root / "train" / "dog" / "half.jpg"
    picture(100, width=6, height=5).save(jpeg)
    truncate(jpeg)
    for name in ("train/cat/000", "train/cat/001", "train/owl/002", "test/cat/001", "test/dog/000", "test/owl/003"):
        (root / f"{name}.png").write_text("no image")


def test_broken_images_are_named_and_refused(spec, root, decodings):
    break_some(root)
    images.check(spec)
    named = "train/cat/000.png, train/cat/001.png, train/dog/half.jpg, train/owl/002.png, test/cat/001.png and 2 more"
    for _ in range(2):
        with pytest.raises(BadData, match=rf"7 of 49 images .* cannot be decoded \({named}\).*skip_broken: true"):
            images.load(spec)
    assert len(decodings) == 49


def test_broken_images_are_left_out_where_that_is_asked_for(spec, root, caplog):
    break_some(root)
    data = images.load({**spec, "skip_broken": True})
    assert counts(data.test) == [3, 3, 3]
    assert counts(data.fit_rows("train+validation")) == [10, 12, 11]
    assert "7 of 49 images" in caplog.text
    assert all(rows.x.any(axis=(1, 2, 3)).all() for rows in parts(data))
    assert images.image_shape(spec) == (3, 5, 6)


def test_a_class_of_broken_images_only_is_refused(spec, root):
    for path in (root / "test" / "dog").iterdir():
        path.write_text("no image")
    with pytest.raises(BadData, match="the test part without the broken images holds 8 images and none of dog"):
        images.load({**spec, "skip_broken": True})


def test_nothing_but_broken_images_is_refused(spec, root):
    for path in root.glob("*/*/*"):
        path.write_text("no image")
    for refuses in (images.load, images.image_shape):
        with pytest.raises(BadData, match=r"none of the 48 images in .* can be decoded"):
            refuses(spec)


def test_a_link_to_nothing_is_refused_and_not_passed_over(spec, root):
    (root / "train" / "cat" / "gone.png").symlink_to(root / "nowhere.png")
    with pytest.raises(BadData, match=r"gone\.png cannot be read \(No such file"):
        images.load({**spec, "skip_broken": True})


# duplicates


def test_duplicates_stay_in_the_part_that_judges(spec, root, caplog):
    caplog.set_level(logging.INFO)
    clean = images.load(spec)
    numbers = {np.asarray(picture(n)).transpose(2, 0, 1).tobytes(): n for n in range(36)}
    in_train, in_validation = (numbers[rows.x[0].tobytes()] for rows in (clean.train, clean.validation))
    assert not caplog.records

    # One image of each part is put into the test split too, under whatever label.
    picture(in_train).save(root / "test" / "owl" / "of_train.png")
    picture(in_validation).save(root / "test" / "owl" / "of_validation.png")
    data = images.load(spec)
    assert_disjoint(data)
    assert [len(rows) for rows in parts(data)] == [26, 8, 14]
    assert "1 validation images that are in the test split too" in caplog.text
    assert "1 training images that are in the validation or test part too" in caplog.text


def test_the_same_image_many_times_in_train_never_reaches_validation_as_well(spec, root, caplog):
    for i in range(11):
        picture(0).save(root / "train" / "cat" / f"again_{i}.png")
    data = images.load(spec)
    assert_disjoint(data)
    assert sum(map(len, parts(data))) < 59
    assert "training images that are in the validation or test part too" in caplog.text


def test_a_class_that_only_doubles_held_out_images_is_refused(spec, root):
    for i in range(12):
        picture(36).save(root / "train" / "dog" / f"{i:03}.png")
    with pytest.raises(BadData, match=r"the training part without the images that are held out too .* none of dog"):
        images.load(spec)


# a folder that is none


def rename(root, old, new):
    (root / old).rename(root / new)


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda root: rename(root, ".", "../elsewhere"), r"pictures is not a folder: expected train/<class>/"),
        (lambda root: rename(root, "train", "training"), r"pictures/train is not a folder: expected train/<class>/"),
        (lambda root: rename(root, "test", "val"), r"pictures/test is not a folder: expected train/<class>/"),
        (lambda root: [rename(root, f"train/{c}", c) for c in CLASSES], r"pictures/train has no subfolders: expected"),
        (lambda root: [rename(root, f"test/{c}", c) for c in CLASSES], r"pictures/test has no subfolders: expected"),
        (lambda root: [rename(root, f"train/{c}", c) for c in ("cat", "dog")], r"one class only, 'owl': .* 2 or more"),
        (lambda root: empty(root / "train" / "dog"), r"train/dog has no images: expected files that end in \.jpg"),
        (lambda root: empty(root / "test" / "dog"), r"test/dog has no images"),
        (lambda root: rename(root, "test/dog", "test/wolf"), r"not \(wolf\): expected of cat, dog, owl"),
    ],
)
def test_a_folder_of_another_structure_is_refused_in_one_line(spec, root, harm, message):
    harm(root)
    for refuses in (images.check, images.load):
        with pytest.raises(BadData, match=message) as raised:
            refuses(spec)
        assert "\n" not in str(raised.value)


def test_a_test_split_may_lack_a_class(spec, root):
    empty(root / "test" / "dog")
    (root / "test" / "dog").rmdir()
    images.check(spec)
    assert counts(images.load(spec).test) == [4, 0, 4]


def test_a_class_with_one_image_cannot_be_in_two_parts(spec, root):
    for path in list((root / "train" / "dog").iterdir())[1:]:
        path.unlink()
    for refuses in (images.check, images.load):
        with pytest.raises(BadData, match=r"from 25 images of 3 classes \(the smallest, 'dog', has 1\)"):
            refuses(spec)
