"""What a teacher says of every view of the training images, computed once and shared by all trials as memory maps.

Per view and sample: logits; for the layers that a study's arms use, attention maps, class activation maps and features
(projected, where the teacher has many channels). All in half precision and not larger than 16x16.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from trainables.artefacts import write_atomically
from trainables.cache import cache_folder
from trainables.datasets import Rows
from trainables.losses import attention_map
from trainables.masks import ACTIVATIONS
from trainables.models.networks import map_shapes
from trainables.teachers.outside import LogitsTable
from trainables.teachers.resnet import ResNetTeacher
from trainables.views import Views, as_tensor

logger = logging.getLogger(__name__)
KIND = "views"
VERSION = 1
LARGEST = 16  # maps are average-pooled to at most 16x16 before they are kept
BATCH = 128
MAX_DEGENERATE = 0.2  # of a layer's class activation maps: above, they say nothing of where


class CacheTooLarge(ValueError):
    """The cache of teacher views would be larger than the study allows."""


class DegenerateMasks(ValueError):
    """Too many class activation maps are flat or zero."""


@dataclass(frozen=True)
class Wanted:
    """What a study's arms read of their teacher, by the teacher's layer names; activations: (kind, layer)."""

    attention: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    activations: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class TeacherViews:
    """A built cache: its folder's path in the cache, and which rows its teacher was fitted on. It travels by that path.

    deviation: of the teacher's features by layer, over the first view. degenerate: share of flat or zero maps, by name.
    teacher: the artefact, for what runs live.
    """

    name: str
    fitted_on: NDArray[np.int64]
    deviation: Mapping[str, float]
    degenerate: Mapping[str, float]
    teacher: str

    @property
    def folder(self) -> Path:
        return cache_folder() / self.name

    def logits(self, view: int, rows: Tensor) -> Tensor:
        """(batch, classes) float32."""
        return self._read("logits", view, rows)

    def attention(self, layer: str, view: int, rows: Tensor) -> Tensor:
        """(batch, height, width): L2-normalised attention maps."""
        return self._read(f"attention.{layer}", view, rows)

    def features(self, layer: str, view: int, rows: Tensor) -> Tensor:
        """(batch, channels, height, width), divided by their standard deviation."""
        return self._read(f"features.{layer}", view, rows)

    def activation(self, kind: str, layer: str, view: int, rows: Tensor) -> Tensor:
        """(batch, height, width): class activation maps of the label, scaled so that the largest value is 1."""
        return self._read(f"{kind}.{layer}", view, rows)

    def __contains__(self, name: str) -> bool:
        return name in _opened(self.folder)

    def names(self) -> tuple[str, ...]:
        return tuple(_opened(self.folder))

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one sample's entry, such as (channels, height, width) of `features.layer3`."""
        return tuple(_opened(self.folder)[name].shape[2:])

    def _read(self, name: str, view: int, rows: Tensor) -> Tensor:
        array = _opened(self.folder)[name]
        read: Tensor = torch.from_numpy(array[view, rows.cpu().numpy()].astype(np.float32)).to(rows.device)
        return read


def wanted_shapes(
    wanted: Wanted, classes: int, shapes: Mapping[str, tuple[int, int, int]], channels: int | str
) -> dict[str, tuple[int, ...]]:
    """{array name: shape of one sample's entry}; shapes: (C, H, W) of the teacher's layers."""
    small = {layer: (min(h, LARGEST), min(w, LARGEST)) for layer, (_, h, w) in shapes.items()}
    arrays: dict[str, tuple[int, ...]] = {"logits": (classes,)}
    arrays |= {f"attention.{layer}": small[layer] for layer in wanted.attention}
    if channels != "live":
        arrays |= {f"features.{n}": (min(int(channels), shapes[n][0]), *small[n]) for n in wanted.features}
    return arrays | {f"{kind}.{layer}": small[layer] for kind, layer in wanted.activations}


def size_mb(arrays: Mapping[str, tuple[int, ...]], views: int, rows: int) -> float:
    """Megabytes of a cache in half precision."""
    return sum(int(np.prod(shape)) for shape in arrays.values()) * 2 * views * rows / 1e6


def refuse_too_large(arrays: Mapping[str, tuple[int, ...]], views: int, rows: int, limit_mb: float) -> None:
    """Raise CacheTooLarge, with the largest parts, before anything is built."""
    total = size_mb(arrays, views, rows)
    if total > limit_mb:
        parts = sorted(((size_mb({n: s}, views, rows), n) for n, s in arrays.items()), reverse=True)[:3]
        raise CacheTooLarge(
            f"the cache of teacher views would take {total:.0f} MB ({views} views of {rows} images; "
            + ", ".join(f"{name} {mb:.0f} MB" for mb, name in parts)
            + f") and views.cache_limit_mb is {limit_mb:g}: lower views.count, views.alignment_channels or the number "
            "of layers, or raise the limit"
        )


def build(
    teacher: ResNetTeacher | LogitsTable, fit: Rows, spec: Mapping[str, Any], wanted: Wanted, classes: int
) -> TeacherViews:
    """The cache of this teacher on every view of these rows, from disk if it is there and intact, else computed now.

    A table of logits says the same of every view. spec: the study's `views`. Raises CacheTooLarge, DegenerateMasks.
    """
    shapes = {} if isinstance(teacher, LogitsTable) else map_shapes(teacher.model, *fit.x.shape[1:])
    arrays = wanted_shapes(wanted, classes, shapes, spec["alignment_channels"])
    views = Views(as_tensor(fit.x), spec)
    refuse_too_large(arrays, views.count, len(fit), spec["cache_limit_mb"])
    recipe = {
        "version": VERSION,
        "teacher": teacher.artefact.key,
        "spec": {k: spec[k] for k in ("count", "pad", "flip", "alignment_channels")},
        "wanted": asdict(wanted),
        "rows": hashlib.sha256(np.stack([fit.fingerprints(), fit.y]).tobytes()).hexdigest(),
        "precision": teacher.precision,
    }
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:20]
    folder = cache_folder() / KIND / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder) + ".lock"):
        about = _intact(folder)
        if about is None:
            about = _compute(folder, teacher, fit, views, arrays, wanted, recipe)
    return TeacherViews(
        f"{KIND}/{key}", teacher.fitted_on, about["deviation"], about["degenerate"], teacher.artefact.key
    )


def made_up(folder: Path, arrays: Mapping[str, tuple[int, ...]], views: int, rows: int) -> TeacherViews:
    """Views of a teacher that there is not, drawn at random into the folder: to look at a loss without a teacher.

    arrays: of `wanted_shapes`.
    """
    random = np.random.default_rng(0)
    for name, shape in arrays.items():
        values = random.normal(size=(views, rows, *shape))
        np.save(folder / f"{name}.npy", (values if name == "logits" else np.abs(values)).astype(np.float16))
    layers = {name.split(".", 1)[1] for name in arrays if "." in name}
    return TeacherViews(str(folder), np.zeros(0, dtype=np.int64), dict.fromkeys(layers, 1.0), {}, "")


def projection(layer: str, channels: int, kept: int) -> Tensor:
    """(kept, channels): a fixed seeded projection with orthonormal rows; the identity where all channels are kept.

    Random projections keep distances in the mean (Johnson, Lindenstrauss 1984), so that aligning `kept` combinations
    of a wide layer stands in for aligning all of it.
    """
    if kept == channels:
        return torch.eye(channels)
    seed = int.from_bytes(hashlib.blake2b(f"{layer} {channels}".encode(), digest_size=8).digest(), "big") >> 1
    normal = torch.randn(channels, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows: Tensor = torch.linalg.qr(normal).Q[:kept].float()
    return rows


def _compute(
    folder: Path,
    teacher: ResNetTeacher | LogitsTable,
    fit: Rows,
    views: Views,
    arrays: Mapping[str, tuple[int, ...]],
    wanted: Wanted,
    recipe: Mapping[str, Any],
) -> dict[str, Any]:
    """Fill the memory maps in a folder of their own, and move it where it belongs when it is whole."""
    began, n = time.perf_counter(), len(fit)
    new = Path(tempfile.mkdtemp(prefix=folder.name, dir=folder.parent))
    try:
        maps = {
            name: np.lib.format.open_memmap(new / f"{name}.npy", "w+", dtype=np.float16, shape=(views.count, n, *shape))
            for name, shape in arrays.items()
        }
        labels, deviation = as_tensor(fit.y, teacher.device), _deviation(teacher, views, n, wanted)
        flat = dict.fromkeys((f"{kind}.{layer}" for kind, layer in wanted.activations), 0)
        for view in range(views.count):
            for rows in torch.arange(n).split(BATCH):
                if isinstance(teacher, LogitsTable):
                    maps["logits"][view, rows.numpy()] = teacher.logits(fit.x[rows.numpy()]).numpy()
                    continue
                for name, values in _say(teacher, views(rows, view), labels[rows], wanted, deviation, arrays):
                    maps[name][view, rows.numpy()] = values.cpu().numpy().astype(np.float16)
                    if name in flat:
                        flat[name] += int((values.amax(dim=(-2, -1)) - values.amin(dim=(-2, -1)) <= 1e-6).sum())
        degenerate = {name: count / (views.count * n) for name, count in flat.items()}
        for name, share in degenerate.items():
            if share > MAX_DEGENERATE:
                raise DegenerateMasks(
                    f"{share:.0%} of the teacher's {name} maps are flat or zero, so that they say nothing of where "
                    f"its evidence lies (allowed: {MAX_DEGENERATE:.0%}): use another layer or mask: none"
                )
        for array in maps.values():
            array.flush()
        about = {
            "recipe": recipe,
            "seconds": time.perf_counter() - began,
            "deviation": deviation,
            "degenerate": degenerate,
            "sha256": {name: _digest(new / f"{name}.npy") for name in arrays},
        }
        write_atomically(new / "about.json", json.dumps(about, indent=1).encode())
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(new, folder)
        _opened.cache_clear()  # this process may have read a damaged one
        return about
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _say(
    teacher: ResNetTeacher,
    images: Tensor,
    labels: Tensor,
    wanted: Wanted,
    deviation: Mapping[str, float],
    arrays: Mapping[str, tuple[int, ...]],
) -> Iterator[tuple[str, Tensor]]:
    """Everything that is kept of one batch (batch, channels, height, width) uint8, by array name."""
    layers = {*wanted.attention, *wanted.features, *(layer for _, layer in wanted.activations)}
    shown = teacher.normalise(images.to(teacher.device)).contiguous(memory_format=torch.channels_last)
    needs_gradient = bool(wanted.activations)
    with torch.set_grad_enabled(needs_gradient), teacher.autocast(shown):
        logits, outputs = teacher.model(shown.requires_grad_(needs_gradient), sorted(layers))
    features = {n: f.detach().float() for n, f in outputs.items()}
    yield "logits", logits.detach().float()
    with torch.no_grad():
        for layer in wanted.attention:
            maps = _small(attention_map(features[layer]).unsqueeze(1), arrays[f"attention.{layer}"]).squeeze(1)
            yield f"attention.{layer}", F.normalize(maps.flatten(1), dim=1).reshape(maps.shape)
        for layer in wanted.features:
            if f"features.{layer}" in arrays:
                small = _small(features[layer], arrays[f"features.{layer}"])
                matrix = projection(layer, small.shape[1], arrays[f"features.{layer}"][0]).to(small.device)
                yield f"features.{layer}", torch.einsum("kc,bchw->bkhw", matrix, small) / deviation[layer]
    if needs_gradient:
        activated = sorted({layer for _, layer in wanted.activations})
        evidence = logits.float().gather(1, labels.unsqueeze(1)).sum()
        gradients = torch.autograd.grad(evidence, [outputs[layer] for layer in activated])
        for kind, layer in wanted.activations:
            gradient = gradients[activated.index(layer)].float()
            cam = ACTIVATIONS[kind](features[layer], gradient).unsqueeze(1)
            maps = _small(cam, arrays[f"{kind}.{layer}"])
            yield f"{kind}.{layer}", (maps / maps.amax(dim=(2, 3), keepdim=True).clamp_min(1e-12)).squeeze(1)


@torch.no_grad()
def _deviation(teacher: ResNetTeacher | LogitsTable, views: Views, n: int, wanted: Wanted) -> dict[str, float]:
    """The standard deviation of each wanted layer's features, over up to a thousand images of the first view.

    An orthonormal projection keeps the mean square per channel, so the same number serves projected features.
    """
    if isinstance(teacher, LogitsTable) or not wanted.features:
        return {}
    rows = torch.arange(n)[:: max(1, n // 1000)][:1000]
    total: dict[str, list[Tensor]] = {layer: [] for layer in wanted.features}
    for part in rows.split(BATCH):
        shown = teacher.normalise(views(part, 0).to(teacher.device)).contiguous(memory_format=torch.channels_last)
        with teacher.autocast(shown):
            _, features = teacher.model(shown, wanted.features)
        for layer, f in features.items():
            total[layer].append(f.float().flatten(1))
    return {layer: max(1e-12, float(torch.cat(parts).double().std())) for layer, parts in total.items()}


def _small(maps: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(batch, C, H, W) average-pooled to the last two numbers of `shape`."""
    return maps if maps.shape[-2:] == shape[-2:] else F.adaptive_avg_pool2d(maps, (shape[-2], shape[-1]))


def _intact(folder: Path) -> dict[str, Any] | None:
    """What the cache says of itself, if its files are what they were when it was built."""
    try:
        about: dict[str, Any] = json.loads((folder / "about.json").read_text())
        whole = all(_digest(folder / f"{name}.npy") == digest for name, digest in about["sha256"].items())
    except FileNotFoundError:
        if folder.exists():
            logger.warning("the cache of teacher views %s is not whole and is built again", folder)
        return None
    except (ValueError, KeyError, AttributeError):
        whole = False
    if not whole:
        logger.warning("the cache of teacher views %s does not fit its checksums and is built again", folder)
        return None
    return about


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=16)
def _opened(folder: Path) -> dict[str, NDArray[np.float16]]:
    """The memory maps of a cache, opened once a process."""
    return {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
