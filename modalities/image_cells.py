"""Which image tokens of a prompt stand for which cell of which image, for each way models have of making them.

fixed             each image becomes the same number of tokens (LLaVA-1.5, FastVLM, Gemma 3, ...)
LLaVA-NeXT        the whole image, then the same image in tiles, put together and cut to the image's shape, with a mark after each row
LLaVA-OneVision   the same, shrunk where it would be too large; of several images in a prompt, only the whole of each, with one mark
Qwen-VL           patches in the image's own resolution, merged 2 x 2
Pixtral           patches in the image's own resolution

Of others (InternVL's tiles, ...) the image of a token is known, but no cell.
"""

from collections.abc import Sequence
from math import sqrt
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from modalities.base import Batch
from modalities.images import grid_of
from modalities.layout import NO_CELL

TILED = ("llava_next", "llava_onevision")


class Cells(NamedTuple):
    """The tokens of one image, in the order in which the model puts them into the prompt."""

    copy: Int[Tensor, "tokens"]
    row: Int[Tensor, "tokens"]
    column: Int[Tensor, "tokens"]


def grid_cells(rows: int, columns: int, copy: int = 0) -> Cells:
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return Cells(torch.full((rows * columns,), copy), row.flatten(), column.flatten())


def fixed_cells(count: int, size: tuple[int, int]) -> Cells:
    """`count` tokens for an image of (height, width) pixels; one too many is a class token before the others."""
    for prefix in (0, 1):
        if grid := grid_of(count - prefix, size):
            cells = grid_cells(*grid)
            lead = torch.full((prefix,), NO_CELL)
            return Cells(
                torch.cat([lead + 1, cells.copy]), torch.cat([lead, cells.row]), torch.cat([lead, cells.column])
            )
    nowhere = torch.full((count,), NO_CELL)
    return Cells(torch.zeros_like(nowhere), nowhere, nowhere)


def next_cells(config: Any, size: Sequence[int]) -> Cells:
    """LLaVA-NeXT's or OneVision's tokens of an image of (height, width) pixels: `pack_image_features`, done to row and column numbers."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    edge = config.vision_config.image_size // config.vision_config.patch_size
    tiles = get_anyres_image_grid_shape(list(size), config.image_grid_pinpoints, config.vision_config.image_size)
    whole = torch.zeros(1, tiles[0] * edge, tiles[1] * edge)
    rows, columns = unpad_image(whole, list(size)).shape[1:]
    if config.model_type == "llava_onevision":
        most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        if (ratio := sqrt(rows * columns / (most * edge**2))) > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
    base, fine = grid_cells(edge, edge), grid_cells(rows, columns + 1, copy=1)
    newline = fine.column == columns
    return Cells(
        torch.cat([base.copy, fine.copy]),
        torch.cat([base.row, fine.row]),
        torch.cat([base.column, fine.column.masked_fill(newline, NO_CELL)]),
    )


def one_of_several(config: Any) -> Cells:
    """LLaVA-OneVision's tokens of one of a prompt's images: the whole, and a mark."""
    base = grid_cells(*[config.vision_config.image_size // config.vision_config.patch_size] * 2)
    mark = torch.tensor([NO_CELL])
    return Cells(torch.cat([base.copy, mark + 2]), torch.cat([base.row, mark + 1]), torch.cat([base.column, mark]))


def tiled(config: Any, batch: Batch) -> list[bool]:
    """Whether each image of a LLaVA-NeXT or OneVision batch is seen in tiles, too."""
    if "batch_num_images" not in batch:
        return [True] * len(batch["image_sizes"])
    return [count == 1 for count in batch["batch_num_images"].tolist() for _ in range(count)]


def next_tiles(config: Any, batch: Batch) -> list[int]:
    """How many pictures LLaVA-NeXT's or OneVision's tower sees for each image: the whole and its tiles."""
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    edge, sizes = config.vision_config.image_size, batch["image_sizes"].tolist()
    return [
        int(image_size_to_num_patches(size, config.image_grid_pinpoints, edge)) if tiles else 1
        for size, tiles in zip(sizes, tiled(config, batch), strict=True)
    ]


def qwen_cells(config: Any, thw: Sequence[int]) -> Cells:
    merge = config.vision_config.spatial_merge_size
    cells = grid_cells(thw[1] // merge, thw[2] // merge)
    return Cells(*(part.repeat(thw[0]) for part in cells))


def image_cells(config: Any, batch: Batch, each: int) -> list[Cells] | None:
    """Cells of each image of a batch, in order. each: tokens an image, for models that make always as many; 0: others.

    None where this model's are not known.
    """
    if "image_grid_thw" in batch:
        return [qwen_cells(config, thw) for thw in batch["image_grid_thw"].tolist()]
    if "pixel_values" not in batch:
        return []
    if config.model_type in TILED:
        sizes = batch["image_sizes"].tolist()
        return [
            next_cells(config, size) if tiles else one_of_several(config)
            for size, tiles in zip(sizes, tiled(config, batch), strict=True)
        ]
    if config.vision_config.model_type == "pixtral":
        stride = config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)
        return [grid_cells(height // stride, width // stride) for height, width in batch["image_sizes"].tolist()]
    if not each:
        return None
    pixels = batch["pixel_values"]
    return [fixed_cells(each, (pixels.shape[-2], pixels.shape[-1]))] * len(pixels)


def place(ids: Int[Tensor, "rows length"], image_token: int, cells: Sequence[Cells]) -> dict[str, Tensor]:
    """Marks "image", "copy", "row", "column" [rows, length] of the image tokens, and "n_images" [rows].

    Raises ValueError where the places for image tokens are not as many as the images fill.
    """
    marks = {name: torch.full(ids.shape, NO_CELL) for name in ("image", *Cells._fields)}
    counts, used = [], 0
    for number, row in enumerate(ids.cpu()):
        places, begin, first = (row == image_token).nonzero().flatten(), 0, used
        while begin < len(places) and used < len(cells):
            here = places[begin : begin + len(cells[used].row)]
            if len(here) < len(cells[used].row):
                break
            marks["image"][number, here] = used - first
            for name, part in cells[used]._asdict().items():
                marks[name][number, here] = part
            begin, used = begin + len(here), used + 1
        if begin < len(places):
            raise ValueError(
                f"prompt {number} has {len(places)} places for image tokens, but its images fill {begin}: "
                "give as many images as there are places."
            )
        counts.append(used - first)
    if used < len(cells):
        raise ValueError(f"there are {len(cells)} images, but the prompts have places for {used}: make them agree.")
    return {name: mark.to(ids.device) for name, mark in marks.items()} | {"n_images": torch.tensor(counts)}
