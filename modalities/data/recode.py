"""The same images, written anew: what a change of size and JPEG alone does to them. A control for audits of generated images."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from modalities.data.samples import Dataset, Sample

LIST, FOLDER = "images.jsonl", "images"


def recode(
    dataset: Dataset,
    out: Path,
    *,
    jpeg: int | None = None,
    side: int | None = None,
    most: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the first `most` images, no larger than `side` and as JPEG of quality `jpeg` (PNG without), with their keys and captions, to a list in `out`.

    Returns the list, which is written last: where it is there, nothing is done again. Images that cannot be read are left out.
    Raises ValueError for a quality or a size that no image can have, and where no image can be read.
    """
    if (jpeg is not None and not 1 <= jpeg <= 95) or (side is not None and side < 1):
        raise ValueError(f"jpeg is {jpeg} and side {side}: choose a quality of 1 to 95 and a side of at least 1 pixel.")
    target = out / LIST
    if target.is_file():
        return target
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    n = len(dataset) if most is None else min(most, len(dataset))
    lines = []
    for index in range(n):
        found = dataset.read(index)
        if isinstance(found, Sample) and found.image is not None:
            name = f"{FOLDER}/{index:08d}.{'png' if jpeg is None else 'jpg'}"
            _write(out / name, encoded(shrunk(found.image, side), jpeg))
            lines.append(json.dumps({"key": found.key, "image": name, "captions": list(found.captions)}) + "\n")
        if progress is not None:
            progress(index + 1, n)
    if not lines:
        raise ValueError("no image can be read, so there is nothing to compare.")
    _write(target, "".join(lines).encode())
    return target


def shrunk(image: Image.Image, side: int | None) -> Image.Image:
    """No side longer than `side`."""
    if side is None or max(image.size) <= side:
        return image
    scale = side / max(image.size)
    return image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
    )


def encoded(image: Image.Image, jpeg: int | None) -> bytes:
    buffer = io.BytesIO()
    if jpeg is None:
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=jpeg)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    """Whole, or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
