"""What a student is judged by, beside accuracy: calibration, robustness and speed."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.datasets import Rows
from trainables.losses import cross_entropy

NOISE = (0.05, 0.1, 0.2)  # standard deviations, of pixels in [0, 1]
OCCLUSION = (0.25, 0.5)  # sides of a grey square, as shares of the image's
CALIBRATION_BINS = 15
PERTURBED_ROWS = 2000  # so many test rows, evenly spread, are disturbed: accuracy there to within about a point
Logits = Callable[[NDArray[np.float32]], Tensor]


def validation_metrics(logits: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """logits (S, n, classes), labels (n,) -> `val_accuracy` and `val_nll`, one value per seed."""
    expected = labels.expand(logits.shape[:-1])
    return {
        "val_accuracy": (logits.argmax(dim=-1) == expected).double().mean(dim=-1).tolist(),
        "val_nll": cross_entropy(logits, expected).mean(dim=-1).tolist(),
    }


def test_metrics(logits: Tensor, labels: Tensor, split: str) -> dict[str, list[float]]:
    """logits (S, n, classes), labels (n,) -> accuracy, NLL and calibration error of a split, one value per seed."""
    expected = labels.expand(logits.shape[:-1])
    return {
        f"{split}_accuracy": (logits.argmax(dim=-1) == expected).double().mean(dim=-1).tolist(),
        f"{split}_nll": cross_entropy(logits, expected).mean(dim=-1).tolist(),
        f"{split}_ece": calibration_error(logits, expected).tolist(),
    }


def calibration_error(logits: Tensor, labels: Tensor, bins: int = CALIBRATION_BINS) -> Tensor:
    """Expected calibration error: the mean gap between confidence and accuracy over bins of equal width, in [0, 1].

    logits: (S, n, classes); labels: (S, n). Returns (S,).
    Source: Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599, equation 3.
    """
    confidence, predicted = logits.double().softmax(dim=-1).max(dim=-1)
    gap = (predicted == labels).double() - confidence
    bin_of = (confidence * bins).ceil().clamp(1, bins).long() - 1
    sums = torch.zeros(*gap.shape[:-1], bins, dtype=torch.float64, device=gap.device).scatter_add_(-1, bin_of, gap)
    return sums.abs().sum(dim=-1) / gap.shape[-1]


def robustness(logits: Logits, rows: Rows) -> dict[str, list[float]]:
    """Accuracy under noise and under occlusion on rows spread evenly, since a folder's are sorted by class.

    One value per seed; the same rows and the same pixels for everybody.
    """
    spread = np.linspace(0, len(rows) - 1, min(len(rows), PERTURBED_ROWS)).round().astype(int)
    images: NDArray[np.float32] = rows.x[spread].astype(np.float32) / np.float32(255)
    labels = torch.from_numpy(rows.y[spread])
    disturbed = {f"noise_{s:g}": noisy(images, s) for s in NOISE}
    disturbed |= {f"occlusion_{s:g}": occluded(images, s) for s in OCCLUSION}
    return {
        f"test_accuracy_{name}": (logits(x).argmax(dim=-1).cpu() == labels).double().mean(dim=-1).tolist()
        for name, x in disturbed.items()
    }


def noisy(images: NDArray[np.float32], deviation: float) -> NDArray[np.float32]:
    """Images (n, channels, height, width) in [0, 1] with Gaussian noise, clipped; a function of its arguments alone."""
    noise = np.random.default_rng(0).standard_normal(images.shape, dtype=np.float32)
    return np.clip(images + np.float32(deviation) * noise, 0.0, 1.0)


def occluded(images: NDArray[np.float32], side: float) -> NDArray[np.float32]:
    """Images with one grey square each, `side` of the image's sides, anywhere inside; a function of its arguments."""
    n, _, height, width = images.shape
    tall, wide = max(1, round(side * height)), max(1, round(side * width))
    random = np.random.default_rng(0)
    top, left = random.integers(height - tall + 1, size=n), random.integers(width - wide + 1, size=n)
    down, across = np.arange(height)[None, :], np.arange(width)[None, :]
    inside_rows = (down >= top[:, None]) & (down < top[:, None] + tall)
    inside_columns = (across >= left[:, None]) & (across < left[:, None] + wide)
    inside = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
    return np.where(inside, np.float32(0.5), images)


def latency(logits: Callable[[NDArray[Any]], Tensor], rows: Rows, repeats: int = 9) -> dict[str, float]:
    """Milliseconds per sample in batches of 1 and of 128: medians of `repeats` calls after one to warm up."""
    found = {}
    for batch in (1, 128):
        x = np.ascontiguousarray(np.resize(rows.x, (batch, *rows.x.shape[1:])))
        times = []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            logits(x).cpu()
            times.append(time.perf_counter() - began)
        found[f"ms_per_sample_batch_{batch}"] = 1000 * statistics.median(times[1:]) / batch
    return found
