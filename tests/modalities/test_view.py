"""`view` against the transforms of timm and open_clip themselves, to the pixel."""

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from modalities.data.view import view
from modalities.preprocessing import of_transform

SIZES = [(640, 480), (333, 500), (97, 64), (224, 224), (30, 211)]  # width, height


@pytest.fixture(scope="module")
def photos():
    """Smooth noise: any shift or other filter changes many pixels."""
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (h // 4, w // 4, 3), dtype=np.uint8)) for w, h in SIZES]
    return [image.resize(size, Image.Resampling.BICUBIC) for image, size in zip(noise, SIZES, strict=True)]


def seen(transform, image):
    """What the model got, as 8-bit pixels again."""
    mean, std = of_transform(transform)["mean"], of_transform(transform)["std"]
    pixels = transform(image) * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    return (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize(
    ("size", "share"), [((224, 224), 0.875), ((224, 224), 1.0), ((96, 160), 0.9), ((63, 40), 0.95)]
)
def test_agrees_with_timm(photos, interpolation, mode, size, share):
    transform = create_transform((3, *size), interpolation=interpolation, crop_pct=share, crop_mode=mode)
    for photo in photos:
        np.testing.assert_array_equal(np.asarray(view(photo, of_transform(transform))), seen(transform, photo))


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [224, (96, 160), (63, 40)])
def test_agrees_with_open_clip(photos, mode, size):
    transform = open_clip.image_transform(size, is_train=False, resize_mode=mode, fill_color=7)
    for photo in photos:
        np.testing.assert_array_equal(np.asarray(view(photo, of_transform(transform))), seen(transform, photo))


def test_a_crop_without_resize_pads_what_is_missing():
    image = view(Image.new("RGB", (2, 5), "white"), {"resize": None, "crop": [3, 4], "fill": [255, 0, 0]})
    red, white = [255, 0, 0], [255, 255, 255]
    assert np.asarray(image).tolist() == [[red, white, white, red]] * 3


def test_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match="resize_mode is 'squash': choose shortest, longest or exact"):
        view(Image.new("RGB", (8, 8)), {"resize": 4, "resize_mode": "squash"})
