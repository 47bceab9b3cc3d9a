"""Views: augmented images as pure functions of (sample, view number), so that what a teacher says of one can be kept.

Epoch e shows view e mod `count` in every arm; teacher and student see the same pixels (Beyer et al., "Knowledge
distillation: A good teacher is patient and consistent", arXiv 2106.05237). Images stay uint8 until a batch is shown.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

CHUNK = 2048  # images


class Views:
    """All views of some training images.

    images: (N, channels, height, width) uint8. spec: `count`, `pad` (pixels of padding for a random crop) and `flip`.
    """

    def __init__(self, images: Tensor, spec: Mapping[str, Any]) -> None:
        self._images, self._pad, self._flip = images, spec["pad"], spec["flip"]
        self.count = spec["count"] if self._pad or self._flip else 1
        self._draws: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def number(self, epoch: int) -> int:
        """The view that an epoch shows; epochs count from 1."""
        return int(epoch % self.count)

    def __call__(self, rows: Tensor, number: int) -> Tensor:
        """View `number` of the images in `rows`: (batch, channels, height, width) uint8."""
        images = self._images[rows]
        if not (self._pad or self._flip):
            return images
        down, right, mirrored = (draw[rows] for draw in self._drawn(number))
        if self._pad:
            height, width = images.shape[-2:]
            windows = F.pad(images, [self._pad] * 4).unfold(2, height, 1).unfold(3, width, 1)
            images = windows[torch.arange(len(rows), device=images.device), :, down, right]
        return torch.where(mirrored[:, None, None, None], images.flip(-1), images)

    def _drawn(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Each sample's offsets and whether it is mirrored, (N,) each, drawn once for a view."""
        if number not in self._draws:
            seed = int.from_bytes(hashlib.blake2b(f"view {number}".encode(), digest_size=8).digest(), "big")
            random, n = np.random.default_rng(seed), len(self._images)
            draws = [random.integers(2 * self._pad + 1, size=n), random.integers(2 * self._pad + 1, size=n)]
            mirrored = random.random(n) < (0.5 if self._flip else 0.0)
            down, right, mirror = (torch.from_numpy(a).to(self._images.device) for a in (*draws, mirrored))
            self._draws[number] = (down, right, mirror)
        return self._draws[number]


class Normalise:
    """uint8 images, or floats in [0, 1], to zero mean and unit variance of each channel over some rows."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        """mean, std: (channels,) of the pixels in [0, 1]."""
        self.mean, self.std = mean.reshape(1, -1, 1, 1), std.reshape(1, -1, 1, 1)

    @staticmethod
    def of(images: NDArray[np.uint8]) -> "Normalise":
        """From the images (N, channels, height, width) that are fitted on: exact, by counting the 256 values."""
        value = np.arange(256) / 255
        counts = np.zeros((images.shape[1], 256))
        for start in range(0, len(images), CHUNK):  # counting needs eight bytes a pixel for a moment
            for channel, pixels in enumerate(images[start : start + CHUNK].swapaxes(0, 1)):
                counts[channel] += np.bincount(pixels.ravel(), minlength=256)
        share = counts / counts.sum(axis=1, keepdims=True)
        mean = share @ value
        std = np.sqrt(np.maximum((share * (value - mean[:, None]) ** 2).sum(axis=1), 1e-12))
        return Normalise(torch.from_numpy(mean).float(), torch.from_numpy(std).float())

    def __call__(self, images: Tensor) -> Tensor:
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        normal: Tensor = (pixels - self.mean) / self.std
        return normal

    def to(self, device: str) -> "Normalise":
        return Normalise(self.mean.to(device), self.std.to(device))


def as_tensor(array: NDArray[Any], device: str = "cpu") -> Tensor:
    """An array as a tensor that shares its memory where it can; shared arrays are read-only, and stay so by use."""
    if array.flags.writeable or device != "cpu":
        return torch.from_numpy(np.array(array) if not array.flags.writeable else array).to(device)
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
