"""Images as datasets: scikit-learn's digits, CIFAR-10, or a folder of pictures, as uint8 (n, channels, height, width).

Every draw (validation, limits) is stratified and made from `split_seed`: the same spec gives the same rows. An image
that stands byte for byte in two parts stays in the later of train, validation, test only, so that no part leaks.

A folder is decoded once, into `<cache_folder()>/images/<key>/`; the key covers the listing (names, sizes in bytes,
times of change), so a changed folder is decoded anew.
"""

import hashlib
import io
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from PIL import __version__ as pillow_version
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.utils import resample

from trainables.artefacts import cache_folder
from trainables.datasets import Dataset, Rows

logger = logging.getLogger(__name__)
Say = Callable[[str], None]
Indices = NDArray[np.int64]

KINDS = ("digits", "cifar10", "image_folder")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_PER_CLASS = {"train": 5000, "test": 1000}
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif")
LAYOUT = 1  # raise it when what lies in the cache, or how an image is decoded, changes
CACHED = ("train.npy", "test.npy", "train_labels.npy", "test_labels.npy")
BROKEN = -1  # the label in the cache of an image that cannot be decoded
BATCH = 64  # images that a thread decodes at a time
SECONDS_BETWEEN_LINES = 2.0


class BadData(ValueError):
    """The images are not there, or not such that a model can be trained and judged on them."""


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
        labels = {split: _labels(files) for split, files in _list(spec).items()}
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
    return _Form.of(spec, _list(spec)).shape


def class_names(spec: Mapping[str, Any]) -> list[str]:
    """The classes' names in the order of their labels; raises BadData."""
    _refuse_unknown_kind(spec)
    if spec["kind"] == "digits":
        return [str(digit) for digit in range(10)]
    if spec["kind"] == "cifar10":
        return list(CIFAR10)
    return _class_folders(_root(spec))["train"]


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
            f"the {part} part {when} holds {len(left)} images and none of {_shortened([names[i] for i in lost])}: "
            f"each of its {len(np.unique(before))} classes needs at least one"
        )


def _rows(rows: Rows, indices: Indices) -> Rows:
    return Rows(rows.x[indices], rows.y[indices])


def _shortened(names: list[str], at_most: int = 5) -> str:
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more


# Where the images come from


def _rest_and_test(spec: Mapping[str, Any], names: list[str], progress: Say | None) -> tuple[Rows, Rows]:
    """What training and validation are drawn from, and the test split."""
    if spec["kind"] == "digits":
        digits = load_digits()
        rows = Rows((digits.images * 15).astype(np.uint8)[:, None], digits.target.astype(np.int64))
        rest, test = _stratified(spec, "test_fraction", names, rows.y)
        return _rows(rows, rest), _rows(rows, test)
    return _cifar10(spec) if spec["kind"] == "cifar10" else _folder(spec, names, progress)


def _cifar10(spec: Mapping[str, Any]) -> tuple[Rows, Rows]:
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


class _File(NamedTuple):
    """name: relative to the root, with slashes; size: in bytes."""

    name: str
    label: int
    size: int
    mtime_ns: int


Listing = dict[str, list[_File]]  # of `train` and of `test`


class _Form(NamedTuple):
    """What the images become: (channels, height, width); `size` of a side, or None: all have that of the `first`."""

    shape: tuple[int, int, int]
    size: int | None
    first: str

    @staticmethod
    def of(spec: Mapping[str, Any], listing: Listing) -> "_Form":
        channels, size = 1 if spec.get("grayscale") else 3, spec.get("size")
        files = listing["train"] + listing["test"]
        for file in files:
            try:
                with Image.open(_root(spec) / file.name) as image:
                    return _Form((channels, size or image.height, size or image.width), size, file.name)
            except Exception:  # decoders raise whatever they trip over; counted among the broken images later
                continue
        raise BadData(f"none of the {len(files)} images in {_root(spec)} can be decoded")


def _root(spec: Mapping[str, Any]) -> Path:
    return Path(spec["path"]).expanduser().resolve()


def _class_folders(root: Path) -> dict[str, list[str]]:
    """The names of the classes in train/ and in test/."""
    expected = "expected train/<class>/ and test/<class>/ with images in them"
    classes = {}
    for folder in (root, root / "train", root / "test"):
        if not folder.is_dir():
            raise BadData(f"{folder} is not a folder: {expected}")
    for split in ("train", "test"):
        folders = [entry.name for entry in os.scandir(root / split) if entry.is_dir() and entry.name[0] != "."]
        if not folders:
            raise BadData(f"{root / split} has no subfolders: {expected}")
        classes[split] = sorted(folders)
    known = classes["train"]
    if len(known) == 1:
        raise BadData(f"{root / 'train'} has one class only, {known[0]!r}: expected a subfolder for each of 2 or more")
    if unknown := [name for name in classes["test"] if name not in known]:
        raise BadData(
            f"{root / 'test'} has classes that train/ has not ({_shortened(unknown)}): expected of {_shortened(known)}"
        )
    return classes


def _list(spec: Mapping[str, Any]) -> Listing:
    """The images of both splits, by class and name."""
    root = _root(spec)
    classes = _class_folders(root)
    listing: Listing = {"train": [], "test": []}
    for split, names in classes.items():
        for name in names:
            files = _images(root / split / name, f"{split}/{name}", classes["train"].index(name))
            if not files:
                raise BadData(f"{root / split / name} has no images: expected files that end in {', '.join(SUFFIXES)}")
            listing[split] += files
    return listing


def _images(folder: Path, prefix: str, label: int) -> list[_File]:
    files = []
    for entry in os.scandir(folder):
        if Path(entry.name).suffix.lower() in SUFFIXES and entry.name[0] != "." and not entry.is_dir():
            status = entry.stat(follow_symlinks=entry.is_file())  # a link to nothing is listed, and refused when read
            files.append(_File(f"{prefix}/{entry.name}", label, status.st_size, status.st_mtime_ns))
    return sorted(files)


def _labels(files: list[_File]) -> Indices:
    return np.array([file.label for file in files], dtype=np.int64)


def _folder(spec: Mapping[str, Any], names: list[str], progress: Say | None) -> tuple[Rows, Rows]:
    listing = _list(spec)
    splits = _decoded_once(spec, listing, progress)
    broken = [
        file.name
        for split, rows in splits.items()
        for file, label in zip(listing[split], rows.y, strict=True)
        if label == BROKEN
    ]
    if broken:
        found = f"{len(broken)} of {sum(map(len, splits.values()))} images in {_root(spec)} cannot be decoded"
        if not spec.get("skip_broken"):
            raise BadData(f"{found} ({_shortened(broken)}): replace them, or give skip_broken: true to leave them out")
        logger.warning("%s and are left out: %s", found, _shortened(broken))
        for split, rows in splits.items():
            splits[split] = _rows(rows, np.flatnonzero(rows.y != BROKEN))
            part = "training" if split == "train" else "test"
            _refuse_lost(part, "without the broken images", names, _labels(listing[split]), splits[split].y)
    return splits["train"], splits["test"]


def _decoded_once(spec: Mapping[str, Any], listing: Listing, progress: Say | None) -> dict[str, Rows]:
    """Both splits with a row for each file, broken ones labelled BROKEN: from the cache, or decoded into it."""
    recipe = {"path": str(_root(spec)), "size": spec.get("size"), "grayscale": bool(spec.get("grayscale"))}
    text = json.dumps([LAYOUT, recipe, listing]).encode()
    folder = cache_folder() / "images" / hashlib.sha256(text).hexdigest()[:20]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder) + ".lock"):
        stored = _read(folder)
        if stored is not None:
            return stored
        new = folder.with_name(folder.name + ".new")  # always this name, so that what a killed process left is cleared
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        try:
            start = time.perf_counter()
            _decode_into(new, spec, listing, progress)
            about = {
                "recipe": recipe,
                "images": {split: len(files) for split, files in listing.items()},
                "seconds": time.perf_counter() - start,
                "pillow": pillow_version,
                "sha256": {name: _sha256(new / name) for name in CACHED},
            }
            (new / "about.json").write_text(json.dumps(about, indent=1))
            if folder.exists():
                shutil.rmtree(folder)
            new.rename(folder)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        return _opened(folder)


def _read(folder: Path) -> dict[str, Rows] | None:
    if not folder.exists():
        return None
    try:
        stored = json.loads((folder / "about.json").read_text())["sha256"]
        intact = stored == {name: _sha256(folder / name) for name in CACHED}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        logger.warning("decoded images %s do not fit their checksums and are decoded again", folder)
        return None
    return _opened(folder)


def _opened(folder: Path) -> dict[str, Rows]:
    return {
        split: Rows(np.load(folder / f"{split}.npy", mmap_mode="r"), np.load(folder / f"{split}_labels.npy"))
        for split in ("train", "test")
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _decode_into(folder: Path, spec: Mapping[str, Any], listing: Listing, progress: Say | None) -> None:
    """Write the files CACHED; images are decoded by threads, straight into the memory maps."""
    root, form = _root(spec), _Form.of(spec, listing)
    total = sum(map(len, listing.values()))
    needed, free = total * math.prod(form.shape), shutil.disk_usage(folder).free
    if needed > free:  # a full disk under a memory map would kill the process without a word
        raise BadData(
            f"{total:,} images of {'x'.join(map(str, form.shape))} need {needed / 1e9:.1f} GB in {folder.parent}, "
            f"{free / 1e9:.1f} GB are free: make room, set $DISTUNE_CACHE to another disk, or give a smaller size"
        )
    batches, labels = [], {}
    for split, files in listing.items():
        whole = (len(files), *form.shape)
        x = np.lib.format.open_memmap(folder / f"{split}.npy", mode="w+", dtype=np.uint8, shape=whole)
        y = labels[split] = _labels(files)
        batches += [(files[i : i + BATCH], x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, len(files), BATCH)]

    def decode_batch(batch: tuple[list[_File], NDArray[np.uint8], Indices]) -> int:
        files, x, y = batch
        for i, file in enumerate(files):
            pixels = _pixels(root, file.name, form)
            if pixels is None:
                y[i] = BROKEN
            else:
                x[i] = pixels
        return len(files)

    done, last_line = 0, time.monotonic()
    with ThreadPoolExecutor(thread_name_prefix="decode") as pool:
        for decoded in pool.map(decode_batch, batches):
            done += decoded
            if progress and time.monotonic() - last_line >= SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                progress(f"decoding images: {done:,} of {total:,}")
    for split, y in labels.items():
        np.save(folder / f"{split}_labels.npy", y)


def _pixels(root: Path, name: str, form: _Form) -> NDArray[np.uint8] | None:
    """(channels, height, width) of one image, None if it is broken."""
    try:
        blob = (root / name).read_bytes()
    except OSError as error:
        raise BadData(f"{root / name} cannot be read ({error.strerror}): make it readable, or delete it") from error
    channels, height, width = form.shape
    try:
        image = _decode(blob, "L" if channels == 1 else "RGB")
    except Exception:  # decoders raise whatever they trip over
        return None
    if form.size:
        image = image.resize((form.size, form.size), Image.Resampling.BILINEAR)
    elif image.size != (width, height):
        raise BadData(
            f"images of different sizes in {root}: {form.first} is {width}x{height}, {name} is "
            f"{image.width}x{image.height}; give size, in pixels, to resize them all"
        )
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _decode(blob: bytes, mode: str) -> Image.Image:
    with Image.open(io.BytesIO(blob)) as image:
        if image.mode.startswith("I"):  # 16 bits: Pillow would clip them to 255, which makes nearly all of it white
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert(mode)
        return image.convert(mode)
