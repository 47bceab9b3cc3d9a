"""Images as datasets: scikit-learn's digits, CIFAR-10, or a folder of pictures, as uint8 (n, channels, height, width).

Every draw (validation, limits) is stratified and made from `split_seed`: the same spec gives the same rows. An image
that stands byte for byte in two parts stays in the later of train, validation, test only, so that no part leaks.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.utils import resample

from trainables.cache import cache_folder
from trainables.datasets import BadData, Dataset, Rows, Say, image_folder, shortened

logger = logging.getLogger(__name__)
Indices = NDArray[np.int64]

KINDS = ("digits", "cifar10", "image_folder")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_PER_CLASS = {"train": 5000, "test": 1000}


def load(spec: Mapping[str, Any], progress: Say | None = None) -> Dataset:
    """The images of a spec as train, validation and test; raises BadData.

    spec: `kind`, `split_seed`, `validation_fraction` (of what is not test), `train_limit` and `test_limit` (at most so
    many images, or None); digits: `test_fraction`; cifar10: `root` (or None: the cache); image_folder: `path`, `size`
    (pixels of a side, or None: as they are), `grayscale`, `skip_broken`.
    progress: is told a line about every 2 s while a folder is decoded.
    x: uint8 (n, channels, height, width); a whole test split of a folder is a read-only memory map.
    """
    names = class_names(spec)
    rest, test = _rest_and_test(spec, names, progress)
    train, validation = _set_validation_aside(spec, names, rest.y)
    seen, test_seen = rest.fingerprints(), test.fingerprints()
    validation = _without(validation, seen, test_seen, "validation images that are in the test split too")
    held_out = np.concatenate([test_seen, seen[validation]])
    train = _without(train, seen, held_out, "training images that are in the validation or test part too")
    for part, indices in (("training", train), ("validation", validation)):
        _refuse_lost(part, "without the images that are held out too", names, rest.y, rest.y[indices])
    train = _limited(spec, "train_limit", names, rest.y, train)
    chosen = _limited(spec, "test_limit", names, test.y, np.arange(len(test)))
    if len(chosen) < len(test):
        test = _rows(test, chosen)
    return Dataset(len(names), _rows(rest, train), _rows(rest, validation), test, population=None)


def check(spec: Mapping[str, Any]) -> None:
    """Raise BadData for what can be seen without decoding: the folder's structure, too few images for the parts."""
    names = class_names(spec)
    if spec["kind"] == "digits":
        load(spec)
        return
    if spec["kind"] == "cifar10":
        labels = {split: np.repeat(np.arange(len(names)), n) for split, n in CIFAR10_PER_CLASS.items()}
    else:
        labels = {split: image_folder.labels_of(files) for split, files in image_folder.listed(spec).items()}
    train, _ = _set_validation_aside(spec, names, labels["train"])
    _limited(spec, "train_limit", names, labels["train"], train)
    _limited(spec, "test_limit", names, labels["test"], np.arange(len(labels["test"])))


def image_shape(spec: Mapping[str, Any]) -> tuple[int, int, int]:
    """(channels, height, width), for a folder without a `size` from the first image's header; raises BadData."""
    _refuse_unknown_kind(spec)
    if spec["kind"] == "digits":
        return 1, 8, 8
    if spec["kind"] == "cifar10":
        return 3, 32, 32
    if spec.get("size"):
        return 1 if spec.get("grayscale") else 3, spec["size"], spec["size"]
    return image_folder.Form.of(spec, image_folder.listed(spec)).shape


def class_names(spec: Mapping[str, Any]) -> list[str]:
    """The classes' names in the order of their labels; raises BadData."""
    _refuse_unknown_kind(spec)
    if spec["kind"] == "digits":
        return [str(digit) for digit in range(10)]
    if spec["kind"] == "cifar10":
        return list(CIFAR10)
    return image_folder.class_folders(image_folder.root_of(spec))["train"]


def _refuse_unknown_kind(spec: Mapping[str, Any]) -> None:
    if spec["kind"] not in KINDS:
        raise BadData(f"kind={spec['kind']!r} is no kind of images: expected one of {', '.join(KINDS)}")


# The parts. They are drawn as indices into the labels `y` of the rows before the split.


def _set_validation_aside(spec: Mapping[str, Any], names: list[str], y: Indices) -> tuple[Indices, Indices]:
    train, validation = _stratified(spec, "validation_fraction", names, y)
    for part, indices in (("training", train), ("validation", validation)):
        _refuse_lost(part, f"with validation_fraction={spec['validation_fraction']}", names, y, y[indices])
    return train, validation


def _stratified(spec: Mapping[str, Any], key: str, names: list[str], y: Indices) -> tuple[Indices, Indices]:
    """The indices of y that stay and those that are drawn."""
    try:
        stay, drawn = train_test_split(
            np.arange(len(y)), test_size=spec[key], random_state=spec["split_seed"], stratify=y
        )
    except ValueError as error:
        counts = np.bincount(y, minlength=len(names))
        raise BadData(
            f"{key}={spec[key]} cannot be drawn from {len(y)} images of {len(names)} classes (the smallest, "
            f"{names[counts.argmin()]!r}, has {counts.min()}) so that an image of each class is on both sides"
        ) from error
    return stay, drawn


def _limited(spec: Mapping[str, Any], key: str, names: list[str], y: Indices, part: Indices) -> Indices:
    """At most spec[key] indices of the part, with its class balance."""
    limit = spec.get(key)
    if limit is None or limit >= len(part):
        return part
    drawn: Indices = resample(part, replace=False, n_samples=limit, random_state=spec["split_seed"], stratify=y[part])
    _refuse_lost("training" if key == "train_limit" else "test", f"with {key}={limit}", names, y[part], y[drawn])
    return drawn


def _without(part: Indices, seen: Indices, held_out: Indices, what: str) -> Indices:
    """The indices of the part whose fingerprint is not held out."""
    doubled = np.isin(seen[part], held_out)
    if doubled.any():
        logger.warning("%d %s, byte for byte, are left out", doubled.sum(), what)
    return part[~doubled]


def _refuse_lost(part: str, when: str, names: list[str], before: Indices, left: Indices) -> None:
    """Raise BadData if a class among the labels `before` is not among those that are left."""
    lost = np.setdiff1d(before, left)
    if len(lost):
        raise BadData(
            f"the {part} part {when} holds {len(left)} images and none of {shortened([names[i] for i in lost])}: "
            f"each of its {len(np.unique(before))} classes needs at least one"
        )


def _rows(rows: Rows, indices: Indices) -> Rows:
    return Rows(rows.x[indices], rows.y[indices])


# Where the images come from


def _rest_and_test(spec: Mapping[str, Any], names: list[str], progress: Say | None) -> tuple[Rows, Rows]:
    """What training and validation are drawn from, and the test split."""
    if spec["kind"] == "digits":
        rows = digits()
        rest, test = _stratified(spec, "test_fraction", names, rows.y)
        return _rows(rows, rest), _rows(rows, test)
    return cifar10(spec) if spec["kind"] == "cifar10" else _folder(spec, names, progress)


def digits() -> Rows:
    """scikit-learn's digits in its order."""
    found = load_digits()
    return Rows((found.images * 15).astype(np.uint8)[:, None], found.target.astype(np.int64))


def cifar10(spec: Mapping[str, Any]) -> tuple[Rows, Rows]:
    """CIFAR-10's training images and its test images; raises BadData."""
    from torchvision import datasets

    downloads = cache_folder() / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    root = Path(spec["root"]).expanduser().resolve() if spec.get("root") else downloads
    try:
        with FileLock(downloads / "cifar10.lock"):
            splits = [datasets.CIFAR10(root, train=train, download=True) for train in (True, False)]
    except Exception as error:  # whatever the network, the archive or the disk raises
        raise BadData(
            f"CIFAR-10 could not be fetched ({type(error).__name__}: {error}): put cifar-10-python.tar.gz, from "
            f"www.cs.toronto.edu/~kriz/cifar.html, into {root} by hand"
        ) from error
    rest, test = (
        Rows(np.ascontiguousarray(split.data.transpose(0, 3, 1, 2)), np.array(split.targets, dtype=np.int64))
        for split in splits
    )
    return rest, test


def _folder(spec: Mapping[str, Any], names: list[str], progress: Say | None) -> tuple[Rows, Rows]:
    listing = image_folder.listed(spec)
    splits = image_folder.decoded_once(spec, listing, progress)
    broken = [
        file.name
        for split, rows in splits.items()
        for file, label in zip(listing[split], rows.y, strict=True)
        if label == image_folder.BROKEN
    ]
    if broken:
        where, total = image_folder.root_of(spec), sum(map(len, splits.values()))
        found = f"{len(broken)} of {total} images in {where} cannot be decoded"
        if not spec.get("skip_broken"):
            raise BadData(f"{found} ({shortened(broken)}): replace them, or give skip_broken: true to leave them out")
        logger.warning("%s and are left out: %s", found, shortened(broken))
        for split, rows in splits.items():
            splits[split] = _rows(rows, np.flatnonzero(rows.y != image_folder.BROKEN))
            part = "training" if split == "train" else "test"
            _refuse_lost(
                part, "without the broken images", names, image_folder.labels_of(listing[split]), splits[split].y
            )
    return splits["train"], splits["test"]
