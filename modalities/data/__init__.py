"""Data in: folders of images, webdataset shards, lists of pairs -> samples, with what is bad skipped and named.

dataset = open_dataset("photos/")
for i in range(len(dataset)):
    match dataset.read(i):
        case Sample(key=key, image=image): ...
        case Bad(key=key, reason=reason): ...
"""

import glob
import os
from pathlib import Path

from braceexpand import braceexpand

from modalities.data.corpus import Corpus
from modalities.data.decode import MAX_PIXELS
from modalities.data.folder import Folder, images
from modalities.data.pairs import READERS, Pairs
from modalities.data.samples import Bad, Dataset, Sample, describe
from modalities.data.tars import Tars
from modalities.data.text import printable

__all__ = ["Bad", "Dataset", "Sample", "describe", "open_dataset", "shards_of"]


def open_dataset(path: str | Path, *, label: str | None = None, max_pixels: int = MAX_PIXELS) -> Dataset:
    """The dataset at `path`, indexed but not decoded.

    path: a folder of images of any depth; webdataset shards as a .tar, a folder of them, a glob or "x-{000..003}.tar"; or a list of
        pairs or conversations (.jsonl, .json, .csv, .parquet); or a .txt of documents with empty lines between them.
    label: field of the json, or column of the list, that holds the label. A folder's labels are the names of its folders.
    max_pixels: larger images are bad.

    Raises FileNotFoundError or ValueError, in one sentence, for what is none of these or holds nothing.
    """
    if not 1 <= max_pixels <= MAX_PIXELS:
        raise ValueError(f"max_pixels is {max_pixels}: choose 1 to {MAX_PIXELS}, above which PIL opens no image.")
    path = Path(path)
    if path.is_dir():
        return _folder(path, label, max_pixels)
    if not path.exists() or path.suffix.lower() == ".tar":
        return Tars(shards_of(path), path.name, label, max_pixels)
    if path.suffix.lower() in READERS:
        return Pairs(path, label, max_pixels)
    if path.suffix.lower() == ".txt":
        return Corpus(path)
    raise ValueError(
        f"{printable(str(path))} is no dataset: give a folder of images, .tar shards, a list ({', '.join(READERS)}) or a .txt."
    )


def shards_of(path: str | Path) -> list[Path]:
    """The files that `path` names: a .tar, a folder of them, a glob or "x-{000..003}.tar", in order. Raises FileNotFoundError or ValueError."""
    path = Path(path)
    found = (
        sorted(path.glob("*.tar"), key=os.fsencode)
        if path.is_dir()
        else [path]
        if path.exists()
        else _expand(str(path))
    )
    if wrong := [each for each in found if each.suffix.lower() != ".tar"] or ([path] if not found else []):
        raise ValueError(f"{printable(str(wrong[0]))} is no .tar and no folder of them: give webdataset shards.")
    return found


def _folder(path: Path, label: str | None, max_pixels: int) -> Dataset:
    if not any(path.glob("*.tar")):
        if label is not None:
            raise ValueError(f"label is {label!r}, but the labels of a folder of images are the names of its folders.")
        return Folder(path, max_pixels)
    if next(images(path), None) is not None:
        raise ValueError(f"{printable(str(path))} holds images and .tar shards: name the shards, as in {path}/*.tar.")
    return Tars(shards_of(path), printable(path.resolve().name), label, max_pixels)


def _expand(pattern: str) -> list[Path]:
    """Shards of a pattern with braces (as webdataset expands them) or wildcards, in order. Each must be there."""
    found: list[str] = []
    for name in braceexpand(pattern) if "{" in pattern else [pattern]:
        matches = [name] if os.path.exists(name) else sorted(glob.glob(name), key=os.fsencode)
        if not matches:
            raise FileNotFoundError(f"there is no {printable(name)}: give an existing folder, list or shards.")
        found += matches
    return [Path(name) for name in found]
