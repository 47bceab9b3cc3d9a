"""Causal masks: where in the image the teacher's evidence for the label lies.

A class activation map is taken from the frozen teacher in evaluation mode, on the view that the student sees, for the
label's logit, at the output of a stage's last block.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def grad_cam(features: Tensor, gradient: Tensor) -> Tensor:
    """ReLU(sum_k alpha_k A_k), alpha_k the spatial mean of the logit's gradient on channel k.

    features A, gradient: (..., channels, height, width). Returns (..., height, width), 0 or more.
    Source: Selvaraju et al., "Grad-CAM", arXiv 1610.02391, equations 1 and 2.
    """
    alpha = gradient.mean(dim=(-2, -1), keepdim=True)
    return (alpha * features).sum(dim=-3).relu()


def layer_cam(features: Tensor, gradient: Tensor) -> Tensor:
    """ReLU(sum_k ReLU(gradient_k) A_k): every place weighs its own gradient, so that early layers localise too.

    features A, gradient: (..., channels, height, width). Returns (..., height, width), 0 or more.
    Source: Jiang et al., "LayerCAM", IEEE TIP 30 (2021), equations 5 and 6.
    """
    return (gradient.relu() * features).sum(dim=-3).relu()


ACTIVATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"grad_cam": grad_cam, "layer_cam": layer_cam}


def causal_mask(activation: Tensor, size: tuple[int, int], percentile: float, hard: bool) -> tuple[Tensor, Tensor]:
    """Class activation maps as weights of a loss's map.

    activation: (..., h, w). It is resized to `size` (bilinear to grow, average pooling to shrink), then scaled to
    [0, 1] image by image; what lies below the image's own percentile (0 to 100), or is no evidence at all, is set to 0;
    with `hard` the rest is 1.
    Returns the mask (..., *size), without a gradient, and which images are degenerate (...,), boolean: a map that is
    flat, or zero everywhere, says nothing of where, and its mask is 1 everywhere.
    Raises ValueError for a percentile outside [0, 100).
    """
    if not 0 <= percentile < 100:
        raise ValueError(f"a mask's percentile must be from 0 to below 100, got {percentile}")
    maps = _resized(activation.detach(), size).flatten(-2)
    low, high = maps.amin(dim=-1, keepdim=True), maps.amax(dim=-1, keepdim=True)
    flat = high - low <= 1e-6 * high.clamp_min(torch.finfo(maps.dtype).tiny)
    scaled = (maps - low) / torch.where(flat, torch.ones_like(high), high - low)
    threshold = _percentile(scaled, percentile)
    kept = (maps > 0) & (scaled >= threshold)
    mask = kept.to(scaled.dtype) if hard else scaled * kept
    mask = torch.where(flat, torch.ones_like(mask), mask)
    return mask.reshape(*activation.shape[:-2], *size), flat.squeeze(-1)


def _percentile(values: Tensor, percentile: float) -> Tensor:
    """Each row's value above so many of a hundred of its n, rounded down: at least the largest is always kept."""
    n = values.shape[-1]
    rank = min(int(percentile / 100 * n), n - 1)
    return values.sort(dim=-1).values[..., rank : rank + 1]


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[-2:] == size:
        return maps
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    if size[0] <= maps.shape[-2] and size[1] <= maps.shape[-1]:
        new = F.adaptive_avg_pool2d(flat, size)
    else:
        new = F.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return new.reshape(*maps.shape[:-2], *size)
