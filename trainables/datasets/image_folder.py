"""A folder of pictures: `train/<class>/...` and `test/<class>/...`, decoded once into memory-mapped uint8 arrays.

The cache lies in `<cache_folder()>/images/<key>/`; its key covers the listing (names, sizes in bytes, times of change),
so a changed folder is decoded anew.
"""

import hashlib
import io
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from PIL import __version__ as pillow_version

from trainables.cache import cache_folder
from trainables.datasets import BadData, Rows, Say, shortened

logger = logging.getLogger(__name__)
Indices = NDArray[np.int64]
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif")
LAYOUT = 1  # raise it when what lies in the cache, or how an image is decoded, changes
CACHED = ("train.npy", "test.npy", "train_labels.npy", "test_labels.npy")
BROKEN = -1  # the label in the cache of an image that cannot be decoded
BATCH = 64  # images that a thread decodes at a time
SECONDS_BETWEEN_LINES = 2.0


class File(NamedTuple):
    """name: relative to the root, with slashes; size: in bytes."""

    name: str
    label: int
    size: int
    mtime_ns: int


Listing = dict[str, list[File]]  # of `train` and of `test`


class Form(NamedTuple):
    """What the images become: (channels, height, width); `size` of a side, or None: all have that of the `first`."""

    shape: tuple[int, int, int]
    size: int | None
    first: str

    @staticmethod
    def of(spec: Mapping[str, Any], listing: Listing) -> "Form":
        channels, size = 1 if spec.get("grayscale") else 3, spec.get("size")
        files = listing["train"] + listing["test"]
        for file in files:
            try:
                with Image.open(root_of(spec) / file.name) as image:
                    return Form((channels, size or image.height, size or image.width), size, file.name)
            except Exception:  # decoders raise whatever they trip over; counted among the broken images later
                continue
        raise BadData(f"none of the {len(files)} images in {root_of(spec)} can be decoded")


def root_of(spec: Mapping[str, Any]) -> Path:
    return Path(spec["path"]).expanduser().resolve()


def class_folders(root: Path) -> dict[str, list[str]]:
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
            f"{root / 'test'} has classes that train/ has not ({shortened(unknown)}): expected of {shortened(known)}"
        )
    return classes


def listed(spec: Mapping[str, Any]) -> Listing:
    """The images of both splits, by class and name."""
    root = root_of(spec)
    classes = class_folders(root)
    listing: Listing = {"train": [], "test": []}
    for split, names in classes.items():
        for name in names:
            files = _images(root / split / name, f"{split}/{name}", classes["train"].index(name))
            if not files:
                raise BadData(f"{root / split / name} has no images: expected files that end in {', '.join(SUFFIXES)}")
            listing[split] += files
    return listing


def _images(folder: Path, prefix: str, label: int) -> list[File]:
    files = []
    for entry in os.scandir(folder):
        if Path(entry.name).suffix.lower() in SUFFIXES and entry.name[0] != "." and not entry.is_dir():
            status = entry.stat(follow_symlinks=entry.is_file())  # a link to nothing is listed, and refused when read
            files.append(File(f"{prefix}/{entry.name}", label, status.st_size, status.st_mtime_ns))
    return sorted(files)


def labels_of(files: list[File]) -> Indices:
    return np.array([file.label for file in files], dtype=np.int64)


def decoded_once(spec: Mapping[str, Any], listing: Listing, progress: Say | None) -> dict[str, Rows]:
    """Both splits with a row for each file, broken ones labelled BROKEN: from the cache, or decoded into it."""
    recipe = {"path": str(root_of(spec)), "size": spec.get("size"), "grayscale": bool(spec.get("grayscale"))}
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
    root, form = root_of(spec), Form.of(spec, listing)
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
        y = labels[split] = labels_of(files)
        batches += [(files[i : i + BATCH], x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, len(files), BATCH)]

    def decode_batch(batch: tuple[list[File], NDArray[np.uint8], Indices]) -> int:
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


def _pixels(root: Path, name: str, form: Form) -> NDArray[np.uint8] | None:
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
