"""What image models share: their preprocessing as a record, and their tensors as tokens with kinds and a grid.

[batch, tokens, d]             prefix tokens (class token, registers), then the patches, row by row
[batch, d, rows, columns]      a feature map of a CNN; each position is a patch token
[batch, rows, columns, d]      the same, channels last (Swin, parts of ConvNeXt)
[batch, d]                     pooled: one token, kind `cls`
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from modalities.base import KINDS, NotTokens, Tokens
from modalities.sites import Site

PREFIXES = {
    "cls": ("cls_token", "class_token", "class_embedding"),
    "special": ("dist_token", "distillation_token"),
    "register": ("reg_token", "register_tokens"),
}
"""Token kind -> what libraries call its parameter, in the order of the tokens. A distillation token is no class token: `special`."""

Size = tuple[int, int]


def image_of(sample: Any) -> Any:
    """The PIL image of a sample (or the image itself). Raises ValueError for a sample without one."""
    image = getattr(sample, "image", sample)
    if image is None:
        raise ValueError(f"sample {sample.key!r} has no image: this model needs one.")
    return image.convert("RGB")


def prefix_kinds(tower: nn.Module) -> tuple[str, ...]:
    """Kinds of the tokens before the patches, from the parameters that hold them and, in timm, their stated number."""
    kinds: list[str] = []
    for kind, names in PREFIXES.items():
        found = next((p for name, p in tower.named_parameters() if name.rpartition(".")[2] in names), None)
        if found is not None:
            kinds += [kind] * (found.shape[-2] if found.ndim == 3 else 1)
    stated = getattr(tower, "num_prefix_tokens", len(kinds))
    return tuple((kinds + ["special"] * stated)[:stated])


def patch_size(tower: nn.Module) -> Size | None:
    """(height, width) of a patch, from timm, transformers or open_clip; None for a model without patches."""
    for holder in (getattr(tower, "patch_embed", None), getattr(tower, "config", None), tower):
        size = getattr(holder, "patch_size", None)
        if isinstance(size, int):
            return size, size
        if isinstance(size, Sequence) and len(size) == 2:
            return int(size[0]), int(size[1])
    return None


class ImageTokens:
    """How the tensors of one image tower become tokens."""

    def __init__(self, tower: nn.Module) -> None:
        self.prefix = prefix_kinds(tower)
        self.patch = patch_size(tower)
        self.channels_last = getattr(tower, "output_fmt", "NCHW") == "NHWC"
        # Hiera keeps its patches in the order of its windows.
        self.in_rows = not hasattr(tower, "unroll")

    def __call__(
        self, site: Site, hidden: Tensor, image: Shaped[Tensor, "batch 3 height width"], place: nn.Module
    ) -> Tokens:
        batch, size = len(image), (image.shape[2], image.shape[3])
        if hidden.ndim < 2 or len(hidden) != batch:
            raise NotTokens(
                f"site '{site}' passes {list(hidden.shape)} for {batch} images: no row of tokens for each of them."
            )
        if hidden.ndim == 2:
            return pooled(hidden)
        if hidden.ndim == 3:
            return self._rows(site, hidden, size)
        if hidden.ndim == 4:
            return self._map(site, hidden, size, place)
        raise NotTokens(f"site '{site}' passes a tensor of {hidden.ndim} axes: choose a module around or before it.")

    def _rows(self, site: Site, hidden: Tensor, size: Size) -> Tokens:
        count = hidden.shape[1]
        if count == 1:
            return Tokens(hidden, filled("cls", hidden), None, lambda new: new)
        layout = self._layout(count, size)
        if layout is None:
            raise NotTokens(
                f"site '{site}' passes {count} tokens, which are not the patches of {size[0]} x {size[1]} pixels."
            )
        prefix, grid = layout
        kinds = filled("patch", hidden)
        for position, kind in enumerate(prefix):
            kinds[:, position] = KINDS.index(kind)
        return Tokens(hidden, kinds, grid if self.in_rows else None, lambda new: new)

    def _layout(self, count: int, size: Size) -> tuple[tuple[str, ...], Size] | None:
        for prefix in (self.prefix, ()):
            if self.patch is not None:
                grid = (size[0] // self.patch[0], size[1] // self.patch[1])
                if len(prefix) + grid[0] * grid[1] == count:
                    return prefix, grid
        for prefix in (self.prefix, ()):
            if found := grid_of(count - len(prefix), size):
                return prefix, found
        return None

    def _map(self, site: Site, hidden: Tensor, size: Size, place: nn.Module) -> Tokens:
        first, last = is_grid(hidden.shape[2:], size), is_grid(hidden.shape[1:3], size)
        told = channels_last(place)
        at_end = told if told is not None else (last and not first) or (last and self._leans_last(place))
        if not (last if at_end else first):
            raise NotTokens(
                f"site '{site}' passes {list(hidden.shape)}, which is no feature map of {size[0]} x {size[1]} pixels."
            )
        values = hidden if at_end else hidden.movedim(1, -1)
        shape, grid = values.shape, (values.shape[1], values.shape[2])
        values = values.flatten(1, 2)
        if grid == (1, 1):
            return Tokens(values, filled("cls", values), None, lambda new: restored(new, shape, at_end))
        return Tokens(values, filled("patch", values), grid, lambda new: restored(new, shape, at_end))

    def _leans_last(self, place: nn.Module) -> bool:
        """Both readings fit (as many channels as rows): linear layers alone work on the last axis."""
        convolves = any(isinstance(part, nn.Conv2d) for part in place.modules())
        return self.channels_last or (not convolves and any(isinstance(part, nn.Linear) for part in place.modules()))


def channels_last(place: nn.Module) -> bool | None:
    """The side on which a leaf module has its channels; None for one that does not tell."""
    if isinstance(place, nn.Conv2d | nn.BatchNorm2d | nn.GroupNorm):
        return False
    if isinstance(place, nn.LayerNorm):
        return not ("2d" in type(place).__name__ or getattr(place, "data_format", "") == "channels_first")
    return True if isinstance(place, nn.Linear) else None


def restored(new: Tensor, shape: torch.Size, at_end: bool) -> Tensor:
    new = new.reshape(shape)
    return new if at_end else new.movedim(-1, 1)


def pooled(hidden: Shaped[Tensor, "batch d_model"]) -> Tokens:
    """One vector a sample, as one token."""
    values = hidden.unsqueeze(1)
    return Tokens(values, filled("cls", values), None, lambda new: new.squeeze(1))


def filled(kind: str, values: Shaped[Tensor, "batch tokens d_model"]) -> Tensor:
    """[batch, tokens] of one kind."""
    return torch.full(values.shape[:2], KINDS.index(kind), dtype=torch.uint8, device=values.device)


@lru_cache
def grid_of(count: int, size: Size) -> Size | None:
    """The (rows, columns) into which some stride cuts the image so that there are `count` patches."""
    for stride in range(1, max(size) + 1):
        for rows, columns in cuts(size, stride):
            if rows * columns == count:
                return rows, columns
    return None


def is_grid(shape: Sequence[int], size: Size) -> bool:
    return any(tuple(shape) in cuts(size, stride) for stride in range(1, max(size) + 1))


def cuts(size: Size, stride: int) -> tuple[Size, Size]:
    """What a stride leaves of an image: without and with padding."""
    return (size[0] // stride, size[1] // stride), (-(-size[0] // stride), -(-size[1] // stride))
