"""Lists of pairs: a .jsonl, .csv or .parquet with a row a sample, or a .json that is one list of them (LLaVA's conversations).

    image     column image, path, file or file_name: a path relative to the list's folder
    captions  column caption, captions or text: a string or a list of strings
    key       column key, or id; else the image's path without extension; else the row's number
    label     column label, class, class_name or category

A list without any image is a dataset of captions. Paths may leave the list's folder but not be absolute: a list that names the
places of one machine is of no use on the next.
"""

import csv
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from modalities.data.decode import MAX_PIXELS, Unreadable, decode, unopened
from modalities.data.samples import Bad, Sample, identify
from modalities.data.text import distinct, find_captions, find_label, printable, sorted_classes

CONVERSATIONS = ("messages", "conversations", "prompt", "answer")
"""Columns that `modalities.chat` reads: a row of them needs no image and no caption."""

IMAGES = ("image", "path", "file", "file_name")

Row = dict[str, Any]


class Pairs:
    """Rows of a list. Raises ValueError for a list that cannot be parsed, has no rows, or neither images nor captions.

    label: the column that is the label, if it has another name. max_pixels: larger images are bad.
    """

    def __init__(self, path: Path, label: str | None = None, max_pixels: int = MAX_PIXELS) -> None:
        self._path, self._label, self._max_pixels = path, label, max_pixels
        try:
            self._rows = list(READERS[path.suffix.lower()](path))
        except (ValueError, csv.Error, OSError, NotImplementedError) as error:
            words = " ".join(printable(str(error)).split())
            raise ValueError(f"{path} is no readable {path.suffix} list: {words[:200]}.") from error
        if not self._rows:
            raise ValueError(f"{path} has no rows: give a list with columns image and caption.")
        self._images = any(_image(row) is not None for row in self._rows)
        columns = ", ".join(dict.fromkeys(printable(name) for row in self._rows[:100] for name in row))
        if label is not None and not any(label in row for row in self._rows):
            raise ValueError(f"{path} has no column {label!r} for the label: its columns are {columns}.")
        if not self._images and not any(_said(row) for row in self._rows):
            raise ValueError(
                f"{path} has neither images ({', '.join(IMAGES)}) nor captions: its columns are {columns}."
            )
        self._keys = distinct(_key(row, number) for number, row in enumerate(self._rows, 1))

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    def classes(self) -> tuple[str, ...]:
        return sorted_classes(find_label(row, self._label) for row in self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> Sample | Bad:
        key, row = self._keys[index], self._rows[index]
        name = _image(row)
        path = printable(name) if isinstance(name, str) else f"{self._path.name}, row {index + 1}"
        if broken := row.get(BROKEN):
            return Bad(key, path, broken)
        try:
            image = self._decode(name) if self._images else None
        except Unreadable as error:
            return Bad(key, path, str(error))
        except OSError as error:
            return Bad(key, path, unopened(error))
        if image is None and not _said(row):
            return Bad(key, path, "has no caption")
        return Sample(key, path, image, find_captions(row), find_label(row, self._label), extra=row)

    def identity(self) -> dict[str, Any]:
        """Captions count as well as keys and sizes: a text tower reads nothing else."""
        entries = (
            (key, self._size(row), hashlib.sha256(json.dumps(_said(row), default=str).encode()).hexdigest())
            for key, row in zip(self._keys, self._rows, strict=True)
        )
        return identify("pairs", printable(self._path.name), entries, max_pixels=self._max_pixels, label=self._label)

    def _decode(self, name: Any) -> Image.Image:
        if name is None:
            raise Unreadable("has no image")
        if not isinstance(name, str):
            raise Unreadable(f"has for an image {type(name).__name__}, not the path of a file")
        if os.path.isabs(name):
            raise Unreadable("is an absolute path: make it relative to the list's folder")
        if "\0" in name or not encodable(name):
            raise Unreadable("is no path a file can have")
        with open(self._path.parent / name, "rb") as file:
            return decode(file, self._max_pixels)

    def _size(self, row: Row) -> int:
        name = _image(row)
        try:
            return os.stat(self._path.parent / name).st_size if isinstance(name, str) else -1
        except (OSError, ValueError):
            return -1


BROKEN = "\0broken"
"""Field of a row that stands for a line which could not be parsed, with the reason."""


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield _object(line)


def _object(line: bytes) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {BROKEN: "is no readable JSON"}
    return row if isinstance(row, dict) else {BROKEN: f"is a {type(row).__name__}, not a JSON object"}


def _csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for row in csv.DictReader(file):
            yield {name: value for name, value in row.items() if name is not None and value not in (None, "")}


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet

    for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
        yield from batch.to_pylist()


def encodable(path: str) -> bool:
    try:
        return bool(os.fsencode(path))
    except UnicodeEncodeError:
        return False


def _json(path: Path) -> Iterator[Row]:
    content = json.loads(path.read_bytes())
    if not isinstance(content, list):
        raise ValueError(f"it is a {type(content).__name__}, not a list of rows")
    for row in content:
        yield row if isinstance(row, dict) else {BROKEN: f"is a {type(row).__name__}, not a JSON object"}


READERS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}


def _said(row: Row) -> list[Any]:
    return [*find_captions(row), *(row[name] for name in CONVERSATIONS if row.get(name))]


def _image(row: Row) -> Any:
    return next((row[name] for name in IMAGES if row.get(name) is not None), None)


def _key(row: Row, number: int) -> str:
    if row.get("key") is not None:
        return printable(str(row["key"]))
    if isinstance(row.get("id"), str | int):
        return printable(str(row["id"]))
    name = _image(row)
    return printable(os.path.splitext(name)[0]) if isinstance(name, str) else f"row-{number:08d}"
