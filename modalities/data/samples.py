"""What a dataset is: candidates in a fixed order, each of which reads as a `Sample` or, with a reason, as a `Bad`.

The order, and what each candidate reads as, depend on the data alone. So position i means the same in every process, and a job
that was killed goes on where it stopped.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from PIL import Image


@dataclass(frozen=True)
class Sample:
    key: str
    """Names the sample within its dataset: unique, stable, valid Unicode."""
    path: str
    """Where it came from, relative to the dataset. To show, not to open: bytes that are no Unicode are escaped."""
    image: Image.Image | None = None
    """Decoded, upright, mode RGB. None in a dataset of captions only."""
    captions: tuple[str, ...] = ()
    label: str | None = None
    mask: Image.Image | None = None
    """As stored: pixel values are class indices, so it is never converted or turned."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else is known of it: its json as it is, or its row in a list."""


@dataclass(frozen=True)
class Bad:
    """A candidate that cannot be used, and why, for the person who owns the data."""

    key: str
    path: str
    reason: str


@runtime_checkable
class Dataset(Protocol):
    """`Folder`, `Tars`, `Pairs` and `Corpus`. Random access; safe to read from several threads."""

    @property
    def keys(self) -> Sequence[str]:
        """Key of each candidate, in order."""

    def classes(self) -> tuple[str, ...]:
        """The labels that occur, sorted; empty where there are none. Reads no image."""

    def __len__(self) -> int:
        """Number of candidates."""

    def read(self, index: int) -> Sample | Bad:
        """Decode one candidate. Never raises for bad data: that is what `Bad` is for."""

    def identity(self) -> dict[str, Any]:
        """JSON: kind, name, options, count, and a sha256 over keys and sizes that is the same wherever the data lies."""


def identify(kind: str, name: str, entries: Iterable[Sequence[Any]], **options: Any) -> dict[str, Any]:
    """The identity of a dataset whose candidates are `entries`: key, sizes and whatever else tells two datasets apart."""
    digest, count = hashlib.sha256(), 0
    for entry in entries:
        digest.update(json.dumps(entry).encode() + b"\n")
        count += 1
    return {"kind": kind, "name": name, "options": options, "count": count, "digest": digest.hexdigest()}


def describe(dataset: Dataset) -> str:
    """One sentence on what a dataset is. Reads no image."""
    identity, classes = dataset.identity(), dataset.classes()
    shown = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
    labels = f"{len(classes)} classes ({shown})" if classes else "no labels"
    return f"{identity['kind']} {identity['name']}: {len(dataset):,} candidates, {labels}, digest {identity['digest'][:12]}"
