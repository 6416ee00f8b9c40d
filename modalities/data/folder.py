"""A folder of images, any depth.

    label   name of the folder that holds the file, as in timm: `train/cat/1.jpg` and `cat/1.jpg` are both "cat"; None at the top
    key     path relative to the folder, without extension: `cat/1`; with it where two files would share a key
    order   by the bytes of the relative path

Names that begin with a dot are left out (`._1.jpg` is no photo); linked folders are followed, but not in circles.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from modalities.data.decode import MAX_PIXELS, Unreadable, decode, unopened
from modalities.data.samples import Bad, Sample, identify
from modalities.data.text import distinct, printable, sorted_classes

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2"),
)


class Folder:
    """Image files below `root`. Raises ValueError when there are none.

    max_pixels: larger images are bad, known from their header before they are decoded.
    """

    def __init__(self, root: Path, max_pixels: int = MAX_PIXELS) -> None:
        found = sorted(images(root), key=lambda entry: os.fsencode(entry[0]))
        if not found:
            some = next(root.iterdir(), None)
            what = "is empty" if some is None else f"holds no images ({', '.join(EXTENSIONS)})"
            raise ValueError(f"the folder {printable(str(root))} {what}: give one with photos at any depth.")
        self._root, self._max_pixels = root, max_pixels
        self._files = [path for path, _ in found]
        self._sizes = [size for _, size in found]
        self._keys = _keys([printable(path) for path in self._files])

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    def classes(self) -> tuple[str, ...]:
        return sorted_classes(map(_label, self._files))

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> Sample | Bad:
        key, path = self._keys[index], self._files[index]
        try:
            with open(self._root / path, "rb") as file:
                image = decode(file, self._max_pixels)
        except Unreadable as error:
            return Bad(key, printable(path), str(error))
        except OSError as error:
            return Bad(key, printable(path), unopened(error))
        return Sample(key, printable(path), image, label=_label(path))

    def identity(self) -> dict[str, Any]:
        entries = zip(self._keys, self._sizes, strict=True)
        return identify("folder", printable(self._root.resolve().name), entries, max_pixels=self._max_pixels)


def images(root: Path) -> Iterator[tuple[str, int]]:
    """(path relative to root, bytes) of every image below it, by extension; -1 bytes for a link that leads nowhere."""
    yield from _walk(root, "", frozenset())


def _walk(folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, int]]:
    here = os.stat(folder)
    if (here.st_dev, here.st_ino) in above:
        return
    above |= {(here.st_dev, here.st_ino)}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", above)
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                if entry.is_file():
                    yield prefix + entry.name, entry.stat().st_size
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    yield prefix + entry.name, -1


def _label(path: str) -> str | None:
    return printable(path.split("/")[-2]) if "/" in path else None


def _keys(paths: list[str]) -> list[str]:
    """Without extension where that names one file only. Whole paths are unique, so no key can be taken for another's."""
    stems = [os.path.splitext(path)[0] for path in paths]
    count, whole = Counter(stems), set(paths)
    return distinct(
        stem if count[stem] == 1 and stem not in whole else path for stem, path in zip(stems, paths, strict=True)
    )
