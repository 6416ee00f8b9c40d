"""What a model saw of a photo: the geometry of its preprocessing without the normalisation, to paint codes on.

    resize         shortest  int: the shorter side; [height, width]: as little as covers both
                   longest   as much as fits into [height, width]
                   exact     to [height, width], whatever that does to the shape
    crop           [height, width] from the middle; where the image is smaller it is padded with `fill`

Agrees with timm's and open_clip's evaluation transforms to the pixel (tests/modalities/test_view.py). A crop
by transformers may lie one pixel further up or left, because it rounds the other way.
"""

from collections.abc import Mapping
from typing import Any

import torchvision.transforms.functional as F
from PIL import Image
from torchvision.transforms import InterpolationMode


def view(image: Image.Image, preprocessing: Mapping[str, Any]) -> Image.Image:
    """`image` (RGB) resized and cropped as in the record {"resize", "resize_mode", "interpolation", "crop", "fill"}.

    "resize" and "crop" may be None; "fill" (a value or one a channel, default 0) colours the padding.
    Raises ValueError for a resize mode that is not known.
    """
    resize, crop = preprocessing.get("resize"), preprocessing.get("crop")
    if resize is not None:
        size = _size(image, resize, preprocessing.get("resize_mode", "shortest"))
        image = F.resize(image, size, InterpolationMode(preprocessing.get("interpolation", "bicubic")))
    if crop is not None:
        image = F.center_crop(_pad(image, crop, preprocessing.get("fill", 0)), list(crop))
    return image


def _size(image: Image.Image, resize: int | list[int] | tuple[int, ...], mode: str) -> list[int]:
    """[height, width] after resizing, or [shorter side] in torchvision's own words (which rounds in its own way)."""
    if mode not in ("shortest", "longest", "exact"):
        raise ValueError(f"resize_mode is {mode!r}: choose shortest, longest or exact.")
    if isinstance(resize, int):
        if mode == "shortest":
            return [resize]
        resize = (resize, resize)
    if mode == "exact":
        return list(resize)
    ratios = [side / target for side, target in zip(image.size[::-1], resize, strict=True)]
    ratio = min(ratios) if mode == "shortest" else max(ratios)
    return [round(side / ratio) for side in image.size[::-1]]


def _pad(image: Image.Image, crop: list[int] | tuple[int, ...], fill: Any) -> Image.Image:
    missing = [max(0, target - side) for side, target in zip(image.size, reversed(crop), strict=True)]
    if not any(missing):
        return image
    left, top = (side // 2 for side in missing)
    right, bottom = ((side + 1) // 2 for side in missing)
    return F.pad(image, [left, top, right, bottom], fill=tuple(fill) if isinstance(fill, list) else fill)
