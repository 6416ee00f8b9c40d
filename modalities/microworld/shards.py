"""Scenes as webdataset shards, the way a user's own data would come.

    KEY.jpg | KEY.png     the image
    KEY.txt               its first caption
    KEY.json              captions, label, attributes, objects, relations, background, light, and what was done to the sample
    KEY.mask.png          class index of each pixel: 0 background, 1 + number of the shape (or of another attribute)
    KEY.instances.png     0 background, 1 + number of the object in `objects`: every other attribute's mask follows from it

A key is `s<seed>-<scene>`: shards of the same seed written with other knobs are paired by key.
"""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from . import corruption, samplers
from .captions import choose, everything, say, without
from .renderer import render
from .scenes import World, draw
from .tables import table


def write(
    out: Path | str,
    n: int,
    seed: int = 0,
    *,
    image: str = "jpg",
    per_shard: int = 1000,
    **knobs: Any,
) -> list[Path]:
    """Write `n` scenes of `seed` to the new folder `out`; returns the shards in order. Equal arguments write equal bytes.

    image: "jpg" or "png". knobs: those of `records`. Raises ValueError for a bad knob and FileExistsError if `out` is there already.
    """
    import webdataset

    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty: name a new folder for the shards, or remove it first.")
    if image not in ("jpg", "png"):
        raise ValueError(f"images cannot be written as {image!r}: choose jpg or png.")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    options = {
        "maxcount": per_shard,
        "maxsize": 1 << 40,
        "verbose": 0,
        "encoder": False,
        "mtime": 0,
        "user": "",
        "group": "",
    }
    with webdataset.ShardWriter(str(partial / "scenes-%06d.tar"), **options) as writer:
        for key, pixels, facts, classes, instances in records(n, seed, **knobs):
            writer.write(
                {
                    "__key__": key,
                    image: samplers.encoded(pixels) if image == "jpg" else _png(pixels),
                    "txt": facts["captions"][0].encode(),
                    "json": json.dumps(facts, sort_keys=True).encode(),
                    "mask.png": _png(classes),
                    "instances.png": _png(instances),
                }
            )
    out.mkdir(exist_ok=True)
    out.rmdir()
    partial.rename(out)
    return sorted(out.glob("*.tar"))


Record = tuple[
    str,
    UInt8[np.ndarray, "rows columns 3"],
    dict[str, Any],
    UInt8[np.ndarray, "rows columns"],
    UInt8[np.ndarray, "rows columns"],
]


def records(
    n: int,
    seed: int = 0,
    *,
    start: int = 0,
    size: int = 64,
    captions: int = 3,
    detail: float = 0.75,
    untold: tuple[str, ...] = (),
    mask: str = "shape",
    corrupt: float = 0.0,
    corruptions: tuple[str, ...] = corruption.KINDS,
    copies: float = 0.0,
    copies_of: tuple[int, int] = (0, 1000),
    jpeg: int | None = None,
    resize: int | None = None,
    **world: Any,
) -> Iterator[Record]:
    """(key, image, facts, mask, instances) of scenes `start` to `start + n` of `seed`, as `write` writes them, without the disk.

    `captions` a scene, told in `detail`, but for the attributes `untold` (so that what a generator adds by itself can be seen); a share `corrupt`
    of scenes gets captions spoiled in one of the ways `corruptions`; a share `copies` of images repeats a scene of `copies_of` = (seed, number of
    training scenes); `jpeg` re-encodes at that quality and `resize` shrinks to that side and back; the rest are the fields of `World`. Raises
    ValueError for a bad knob.
    """
    if not 0 <= corrupt <= 1:
        raise ValueError(f"the share of corrupt captions is {corrupt}: give a number between 0 and 1.")
    if captions < 1:
        raise ValueError(f"{captions} captions a scene are too few: give at least 1.")
    kinds = tuple(corruptions)
    if not kinds or not set(kinds) <= set(corruption.KINDS):
        raise ValueError(f"corruptions are {kinds}: choose among {', '.join(corruption.KINDS)}.")
    knobs = World(**world)
    source = samplers.copied(n, copies, copies_of[1], seed)
    for first in range(0, n, 256):
        count = min(256, n - first)
        scenes = draw(count, seed, start + first, knobs)
        rendered = render(scenes, size, knobs.style)
        images, instances = rendered.images.copy(), rendered.instances.copy()
        classes = rendered.mask(scenes, mask)
        others = draw(count, seed + 1_000_003, start + first, knobs)
        for row in range(count):
            index = start + first + row
            facts = table(scenes, row, instances[row])
            if (copy_of := int(source[first + row])) >= 0:
                original = draw(1, copies_of[0], copy_of, knobs)
                drawn = render(original, size, knobs.style)
                images[row], instances[row] = drawn.images[0], drawn.instances[0]
                classes[row] = drawn.mask(original, mask)[0]
                facts = table(original, 0, drawn.instances[0]) | {"copied_from": f"s{copies_of[0]}-{copy_of:06d}"}
            rng = np.random.default_rng([seed, index, 1])
            spoiled = rng.random() < corrupt
            facts["corruption"] = str(rng.choice(kinds)) if spoiled else None
            told = []
            for number in range(captions):
                mention = everything(facts) if number == captions - 1 > 0 else choose(facts, rng, detail)
                mention = without(mention, untold)
                if spoiled:
                    other = without(choose(table(others, row), rng, detail), untold)
                    mention, became = corruption.corrupted(mention, other, facts["corruption"], rng)
                    facts["corruption"] = became if number == 0 else facts["corruption"]
                told.append(say(mention, rng))
            facts["captions"] = told
            if facts["corruption"] is not None:
                facts["true_caption"] = say(everything(facts))
            pixels = images[row][None]
            if resize is not None:
                pixels = samplers.resize(pixels, resize)
            if jpeg is not None:
                pixels = samplers.jpeg(pixels, jpeg)
            yield f"s{seed}-{index:06d}", pixels[0], facts, classes[row], instances[row]


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
