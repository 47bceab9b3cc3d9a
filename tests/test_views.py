"""trainables/views.py: a view is a function of the image and the view's number alone, and is what a slow loop makes."""

import warnings

import numpy as np
import pytest
import torch

from trainables.views import Normalise, Views, as_tensor

N, CHANNELS, HEIGHT, WIDTH = 300, 2, 5, 7
IMAGES = np.random.default_rng(0).integers(1, 256, size=(N, CHANNELS, HEIGHT, WIDTH), dtype=np.uint8)  # padding is 0
PLAIN = {"count": 8, "pad": 0, "flip": False}
AUGMENTED = [{"count": 3, "pad": 2, "flip": True}, {"count": 3, "pad": 2, "flip": False}, {**PLAIN, "flip": True}]
ALL = torch.arange(N)


def made(spec):
    return Views(torch.from_numpy(IMAGES), spec)


def recognised(image, view, pad):
    """Every (down, right, mirrored) that makes the image (channels, height, width) into the view."""
    padded = np.zeros((CHANNELS, HEIGHT + 2 * pad, WIDTH + 2 * pad), dtype=np.uint8)
    padded[:, pad : pad + HEIGHT, pad : pad + WIDTH] = image
    found = []
    for down in range(2 * pad + 1):
        for right in range(2 * pad + 1):
            crop = padded[:, down : down + HEIGHT, right : right + WIDTH]
            found += [(down, right, mirrored) for mirrored in (0, 1) if (crop[:, :, :: 1 - 2 * mirrored] == view).all()]
    return found


@pytest.mark.parametrize("spec", AUGMENTED, ids=str)
def test_a_view_is_a_crop_of_the_padded_image_mirrored_or_not_and_all_of_them_occur(spec):
    shown, pad = made(spec)(ALL, 1).numpy(), spec["pad"]
    assert shown.dtype == np.uint8
    found = [recognised(image, view, pad) for image, view in zip(IMAGES, shown, strict=True)]
    assert {len(one) for one in found} == {1}
    draws = np.array([one[0] for one in found])
    for offsets in draws.T[:2]:
        assert set(offsets) == set(range(2 * pad + 1))
        assert np.bincount(offsets).min() > 0.6 * N / (2 * pad + 1)
    assert 0.4 < draws[:, 2].mean() < 0.6 if spec["flip"] else not draws[:, 2].any()
    varied = draws[:, draws.std(axis=0) > 0]
    assert np.abs(np.corrcoef(varied.T) - np.eye(varied.shape[1])).max() < 0.2 or varied.shape[1] == 1


@pytest.mark.parametrize("spec", [*AUGMENTED, PLAIN], ids=str)
def test_a_view_depends_on_neither_its_batch_nor_the_order_nor_what_was_asked_before(spec):
    expected = made(spec)(ALL, 2)
    views = made(spec)
    views(ALL, 1)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    assert torch.equal(views(order, 2), expected[order])
    assert torch.equal(torch.cat([views(rows, 2) for rows in ALL.split(7)]), expected)
    assert torch.equal(views(torch.tensor([5, 5, 2]), 2), expected[[5, 5, 2]])
    assert torch.equal(views(ALL, 2), expected)


@pytest.mark.parametrize("spec", AUGMENTED, ids=str)
def test_views_of_different_numbers_are_alike_only_by_chance(spec):
    views, chance = made(spec), 1 / ((2 * spec["pad"] + 1) ** 2 * (1 + spec["flip"]))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        same = (views(ALL, one) == views(ALL, other)).flatten(1).all(dim=1).float().mean().item()
        assert same == pytest.approx(chance, abs=0.09)


@pytest.mark.parametrize("spec", AUGMENTED, ids=str)
def test_epochs_show_the_views_in_turn(spec):
    views = made(spec)
    assert views.count == spec["count"]
    assert [views.number(epoch) for epoch in range(1, 9)] == [epoch % spec["count"] for epoch in range(1, 9)]


def test_without_augmentation_there_is_one_view_the_image():
    views = made(PLAIN)
    assert views.count == 1
    assert {views.number(epoch) for epoch in range(1, 9)} == {0}
    assert np.array_equal(views(ALL, 0).numpy(), IMAGES)


@pytest.mark.parametrize("spec", [*AUGMENTED, PLAIN], ids=str)
def test_changing_a_view_leaves_the_images_as_they_are(spec):
    images = torch.from_numpy(IMAGES.copy())
    Views(images, spec)(ALL, 0).zero_()
    assert np.array_equal(images.numpy(), IMAGES)


# normalisation


def test_normalisation_is_by_each_channels_mean_and_deviation():
    normalise, pixels = Normalise.of(IMAGES), IMAGES / 255
    np.testing.assert_allclose(normalise.mean.flatten(), pixels.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(normalise.std.flatten(), pixels.std(axis=(0, 2, 3)), rtol=1e-6)
    shown = normalise(torch.from_numpy(IMAGES)).double()
    for channel in shown.unbind(1):
        assert channel.mean().item() == pytest.approx(0, abs=1e-5)
        assert channel.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_bytes_and_floats_from_0_to_1_are_shown_alike():
    normalise = Normalise.of(IMAGES)
    floats = torch.from_numpy(IMAGES).float() / 255
    assert torch.equal(normalise(torch.from_numpy(IMAGES)), normalise(floats))


def test_a_channel_of_one_colour_is_shown_as_zeros():
    images = IMAGES.copy()
    images[:, 1] = 77
    shown = Normalise.of(images)(torch.from_numpy(images))
    assert shown.isfinite().all()
    assert shown[:, 1].abs().max() < 0.1
    assert shown[:, 0].abs().max() > 1


def test_a_read_only_array_is_shared_as_it_is_and_without_a_warning():
    array = IMAGES.copy()
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = as_tensor(array)
    assert tensor.data_ptr() == array.ctypes.data
    assert np.array_equal(tensor.numpy(), IMAGES)
