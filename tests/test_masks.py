"""trainables/masks.py: class activation maps against autograd on small networks, masks against loops in numpy."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from spaces.families import NAMES
from trainables.masks import ACTIVATIONS, causal_mask, grad_cam, layer_cam
from trainables.models.resnet import ResNet


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# class activation maps


def by_hand(kind, features, gradient):
    """Equations 1 and 2 of arXiv 1610.02391, 5 and 6 of LayerCAM, for one image (channels, height, width) in numpy."""
    channels, height, width = features.shape
    cam = np.zeros((height, width))
    for k, i, j in itertools.product(range(channels), range(height), range(width)):
        weight = gradient[k].sum() / (height * width) if kind == "grad_cam" else max(0.0, gradient[k, i, j])
        cam[i, j] += weight * features[k, i, j]
    return np.maximum(cam, 0.0)


def gradient_on_layer(model, image, label, layer):
    """d logit / d A of one image alone, through a zero that a hook adds to the stage's output; (A, gradient)."""
    kept = {}

    def add_zero(module, given, output):
        kept["zero"] = torch.zeros_like(output, requires_grad=True)
        kept["features"] = output.detach().clone()
        return output + kept["zero"]

    handle = getattr(model, layer).register_forward_hook(add_zero)
    logits, _ = model(image.unsqueeze(0))
    handle.remove()
    logits[0, label].backward()
    return kept["features"][0].numpy(), kept["zero"].grad[0].numpy()


@pytest.fixture(scope="module")
def teacher():
    model = ResNet(8, 5, width=4)
    model.initialise(torch.Generator().manual_seed(1))
    for index, module in enumerate(model.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(index))
    return model.double().eval()


IMAGES, LABELS = normal(6, 3, 12, 12, seed=2), torch.tensor([0, 1, 2, 3, 4, 0])


def features_and_gradient(model, layer):
    """As a teacher is asked: one backward pass from the sum of the labels' logits of a batch."""
    logits, features = model(IMAGES, [layer])
    gradient = torch.autograd.grad(logits.gather(1, LABELS.unsqueeze(1)).sum(), features[layer])[0]
    return features[layer].detach(), gradient


@pytest.mark.parametrize("layer", ["layer1", "layer2", "layer3"])
@pytest.mark.parametrize("kind", ["grad_cam", "layer_cam"])
def test_the_maps_of_a_batch_are_those_of_each_image_by_the_equations(teacher, kind, layer):
    cams = ACTIVATIONS[kind](*features_and_gradient(teacher, layer))
    assert (cams > 0).any()
    for image, label, cam in zip(IMAGES, LABELS.tolist(), cams, strict=True):
        expected = by_hand(kind, *gradient_on_layer(teacher, image, label, layer))
        torch.testing.assert_close(cam, torch.from_numpy(expected), rtol=1e-9, atol=1e-12)


def test_before_a_pooled_linear_head_the_maps_are_the_heads_weights(teacher):
    # d logit / d A_k = w_k / (H W) at every place: alpha_k is that number, and LayerCAM keeps the positive weights
    features, gradient = features_and_gradient(teacher, "layer3")
    places = features.shape[-2] * features.shape[-1]
    head = teacher.fc.weight.detach()[LABELS]
    weighed = {"grad_cam": head, "layer_cam": head.clamp_min(0)}
    for kind, weights in weighed.items():
        expected = torch.einsum("bc,bchw->bhw", weights / places, features).clamp_min(0)
        torch.testing.assert_close(ACTIVATIONS[kind](features, gradient), expected)


def test_evidence_against_the_label_is_no_evidence_of_where():
    against = torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]])  # two channels of 1x2
    gradient = torch.tensor([[[-1.0, -3.0]], [[1.0, 1.0]]])
    assert grad_cam(against, gradient).tolist() == [[max(0.0, -2 * 1 + 1 * 3), max(0.0, -2 * 2 + 0)]]
    assert layer_cam(against, gradient).tolist() == [[3.0, 0.0]]  # the channel with a negative gradient says nothing


def test_layer_cam_weighs_every_place_where_grad_cam_weighs_the_channel():
    features, gradient = torch.ones(1, 2, 2), torch.tensor([[[4.0, 0.0], [0.0, 0.0]]])
    assert grad_cam(features, gradient).tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert layer_cam(features, gradient).tolist() == [[4.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_maps_broadcast_over_leading_dimensions_and_scale_with_the_logit(kind):
    features, gradient = normal(2, 3, 4, 5, 6), normal(2, 3, 4, 5, 6, seed=1)
    stacked = ACTIVATIONS[kind](features, gradient)
    assert stacked.shape == (2, 3, 5, 6)
    torch.testing.assert_close(stacked[1, 2], ACTIVATIONS[kind](features[1, 2], gradient[1, 2]))
    torch.testing.assert_close(ACTIVATIONS[kind](features, 10 * gradient), 10 * stacked)


def test_a_study_may_ask_for_every_kind_of_map():
    assert set(NAMES["mask"]) - {"none", "random_mask"} == set(ACTIVATIONS)


# causal masks

MAPS = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)  # 20 distinct values each


def masked_by_hand(cam, percentile, hard):
    """One (height, width) map: the largest (100 - percentile) % of its places, rounded up, scaled to [0, 1]."""
    kept = cam.size - percentile * cam.size // 100
    scaled = (cam - cam.min()) / (cam.max() - cam.min())
    mask = np.zeros(cam.size)
    for place in sorted(range(cam.size), key=lambda p: -cam.flat[p])[:kept]:
        mask[place] = 1.0 if hard else scaled.flat[place]
    return mask.reshape(cam.shape)


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("percentile", [0, 1, 5, 33, 50, 90, 99])
def test_the_mask_keeps_the_upper_part_of_each_image(percentile, hard):
    mask, degenerate = causal_mask(MAPS, (4, 5), percentile, hard)
    expected = [masked_by_hand(cam, percentile, hard) for cam in MAPS.numpy()]
    torch.testing.assert_close(mask, torch.from_numpy(np.array(expected)))
    assert degenerate.tolist() == [False] * 3


def test_percentiles_of_a_map_that_can_be_checked_by_eye():
    cam = torch.tensor([[10.0, 20.0], [40.0, 50.0]])
    for percentile, soft, hard in [
        (0, [[0.0, 0.25], [0.75, 1.0]], [[1.0, 1.0], [1.0, 1.0]]),
        (25, [[0.0, 0.25], [0.75, 1.0]], [[0.0, 1.0], [1.0, 1.0]]),
        (50, [[0.0, 0.0], [0.75, 1.0]], [[0.0, 0.0], [1.0, 1.0]]),
        (90, [[0.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]]),
    ]:
        assert causal_mask(cam, (2, 2), percentile, hard=False)[0].tolist() == soft
        assert causal_mask(cam, (2, 2), percentile, hard=True)[0].tolist() == hard


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_each_image_has_its_own_scale_and_percentile(lead):
    maps = torch.rand(*lead, 4, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    factor = 10.0 ** torch.arange(math.prod(lead), dtype=torch.float64).reshape(*lead, 1, 1)
    mask, degenerate = causal_mask(maps, (4, 4), 40, hard=False)
    assert mask.shape == (*lead, 4, 4)
    assert degenerate.shape == lead
    torch.testing.assert_close(causal_mask(maps * factor, (4, 4), 40, hard=False)[0], mask)
    for place in itertools.product(*map(range, lead)):
        torch.testing.assert_close(causal_mask(maps[place], (4, 4), 40, hard=False)[0], mask[place])


# sizes


def test_a_larger_map_is_averaged_before_it_is_scaled():
    cam = torch.tensor([[8.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])  # means of 2x2: 2 and 1
    assert causal_mask(cam, (1, 2), 0, hard=False)[0].tolist() == [[1.0, 0.0]]
    large = torch.rand(3, 12, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for height, width in [(3, 2), (12, 2), (3, 6)]:  # 4 and 3 times smaller: interpolation would leave places out
        means = large.unflatten(1, (height, -1)).unflatten(3, (width, -1)).mean(dim=(2, 4))
        low, high = means.amin(dim=(1, 2), keepdim=True), means.amax(dim=(1, 2), keepdim=True)
        torch.testing.assert_close(causal_mask(large, (height, width), 0, hard=False)[0], (means - low) / (high - low))


def test_a_smaller_map_is_interpolated_between_its_places():
    # places 0 and 1 sit at 1/4 and 3/4 of the side; new ones at 1/8, 3/8, 5/8, 7/8, those outside take the border
    cam = torch.tensor([[0.0, 4.0]])
    assert causal_mask(cam, (1, 4), 0, hard=False)[0].tolist() == [[0.0, 0.25, 0.75, 1.0]]
    grown = F.interpolate(MAPS.unsqueeze(1), (8, 10), mode="bilinear").squeeze(1)
    torch.testing.assert_close(
        causal_mask(MAPS, (8, 10), 60, hard=False)[0], causal_mask(grown, (8, 10), 60, hard=False)[0]
    )


@pytest.mark.parametrize("size", [(4, 5), (2, 2), (8, 8), (2, 9), (9, 2), (1, 1), (3, 4)])
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_a_mask_has_the_size_asked_for_and_lies_between_0_and_1(size, hard):
    mask, degenerate = causal_mask(MAPS, size, 50, hard)
    assert mask.shape == (3, *size)
    assert mask.amax(dim=(1, 2)).tolist() == [1.0] * 3
    assert mask.min() >= 0
    assert degenerate.tolist() == [size == (1, 1)] * 3  # one place says nothing of where


# degenerate maps


@pytest.mark.parametrize("value", [0.0, 1e-30, 0.7, 1e30])
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(4, 4), (2, 2), (7, 7)])
def test_a_flat_map_masks_nothing_and_is_reported(value, hard, dtype, size):
    maps = torch.stack([torch.full((4, 4), value, dtype=dtype), torch.arange(16.0, dtype=dtype).reshape(4, 4)])
    mask, degenerate = causal_mask(maps, size, 90, hard)
    assert degenerate.tolist() == [True, False]
    assert torch.equal(mask[0], torch.ones(size, dtype=dtype))
    assert (mask[1] == 0).any()
    assert mask.dtype == dtype


def test_a_map_becomes_flat_by_the_resize_that_evens_it_out():
    board = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(2, 2)
    assert not causal_mask(board, (4, 4), 0, hard=False)[1]
    mask, degenerate = causal_mask(board, (2, 2), 0, hard=False)
    assert degenerate
    assert torch.equal(mask, torch.ones(2, 2))


def test_a_map_with_one_place_of_evidence_is_not_degenerate():
    cam = torch.zeros(4, 4)
    cam[1, 2] = 1e-20
    for hard in (False, True):
        mask, degenerate = causal_mask(cam, (4, 4), 95, hard)
        assert not degenerate
        assert mask.nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("percentile", [0, 25, 50, 75])
def test_a_hard_mask_keeps_no_place_without_evidence(percentile):
    # a ReLU leaves many places at exactly 0: their percentile is 0 too, and `not below 0` would keep them all
    cam = torch.zeros(4, 4)
    cam[0, 0], cam[3, 2] = 1.0, 0.5
    mask, degenerate = causal_mask(cam, (4, 4), percentile, hard=True)
    assert not degenerate
    assert mask.nonzero().tolist() == [[0, 0], [3, 2]]


# gradients and refusals


@pytest.mark.parametrize("size", [(4, 5), (2, 2), (8, 8)])
def test_no_gradient_passes_through_a_mask(size):
    mask, _ = causal_mask(MAPS.clone().requires_grad_(), size, 50, hard=False)
    assert not mask.requires_grad


@pytest.mark.parametrize("percentile", [-1e-9, 100, 101, math.nan, math.inf])
def test_a_percentile_outside_0_to_100_is_refused(percentile):
    with pytest.raises(ValueError, match=rf"from 0 to below 100, got {percentile}"):
        causal_mask(MAPS, (4, 5), percentile, hard=False)


# properties

values = st.floats(0, 1000, width=32, allow_subnormal=False).map(lambda v: 0.0 if v < 1e-6 else v)
activations = st.tuples(st.integers(1, 5), st.integers(1, 5)).flatmap(
    lambda side: st.lists(values, min_size=side[0] * side[1], max_size=side[0] * side[1]).map(
        lambda flat: torch.tensor(flat, dtype=torch.float64).reshape(side)
    )
)
sides = st.tuples(st.integers(1, 7), st.integers(1, 7))
percentiles = st.floats(0, 100, exclude_max=True)


@given(activations, sides, percentiles)
def test_soft_masks_lie_in_0_to_1_and_hard_ones_are_0_or_1(cam, size, percentile):
    (soft, flat), (hard, flat_too) = (causal_mask(cam, size, percentile, h) for h in (False, True))
    assert flat == flat_too
    assert ((soft >= 0) & (soft <= 1)).all()
    assert ((hard == 0) | (hard == 1)).all()
    assert soft.max() == hard.max() == 1
    assert (hard[soft > 0] == 1).all()


@given(activations, percentiles, percentiles)
def test_a_higher_percentile_keeps_a_part_of_what_a_lower_one_keeps(cam, one, other):
    size = tuple(cam.shape)
    low, high = (causal_mask(cam, size, p, hard=True)[0] for p in sorted((one, other)))
    assert (high <= low).all()


@given(activations, percentiles, st.integers(-20, 20))
def test_a_maps_unit_does_not_matter(cam, percentile, power):
    size = tuple(cam.shape)
    scaled, plain = (causal_mask(c, size, percentile, hard=False)[0] for c in (cam * 2.0**power, cam))
    assert torch.equal(scaled, plain)


@given(activations, percentiles)
def test_where_all_is_evidence_at_most_the_percentiles_share_of_the_places_is_masked(cam, percentile):
    mask, _ = causal_mask(cam + 1, tuple(cam.shape), percentile, hard=True)
    assert (mask == 0).sum() <= percentile / 100 * cam.numel() + 1e-9
