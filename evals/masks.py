"""Segmentation masks -> one class for each patch of a store, seen through the model's own preprocessing.

    majority      the class with most pixels of the patch, the smaller number of equals
    foreground    the class with most pixels among those that are not background, wherever such pixels are at least `least` of the patch; else background

2511.17735, whose code has both. Patches that lie beside the image, or are of a class that says nothing (`ignore`), have no class.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, Int32, Int64

from modalities.data import Dataset, Sample
from modalities.segments import votes
from vsae.activations.store import SiteReader
from vsae.files import read_json

By = Literal["majority", "foreground"]
NONE = -1


@dataclass(frozen=True)
class Masks:
    """The class of every patch of a store."""

    labels: Int[np.ndarray, "samples cells"]
    """Pixel values of the masks, NONE where there is none."""
    without: int
    """Samples whose mask could not be read, or that have none."""

    @property
    def values(self) -> list[int]:
        """Classes that occur."""
        return sorted(set(np.unique(self.labels).tolist()) - {NONE})

    def rows(self, samples: Int64[np.ndarray, "rows"], positions: Int32[np.ndarray, "rows"]) -> Int[np.ndarray, "rows"]:
        """The class of patch tokens: a sample's first patch is the first cell."""
        first = np.full(len(self.labels), np.iinfo(np.int64).max)
        np.minimum.at(first, samples, positions.astype(np.int64))
        return self.labels[samples, positions - first[samples]]


def read(
    dataset: Dataset,
    site: SiteReader,
    by: By = "majority",
    *,
    background: int = 0,
    least: float = 0.0,
    ignore: Collection[int] = (),
) -> Masks:
    """Masks of the store's samples. Raises ValueError for a site without a grid, and where no sample of the dataset that the store knows has a mask."""
    if site.grid is None:
        raise ValueError(f"{site.name} of {site.store.path} has no grid of patches: masks are of an image's layers.")
    place = {key: at for at, key in enumerate(dataset.keys)}
    labels, without = np.full((len(site.keys), site.grid[0] * site.grid[1]), NONE), 0
    preprocessing = site.fingerprint["preprocessing"]
    for row, key in enumerate(site.keys):
        sample = dataset.read(place[key]) if key in place else None
        if not isinstance(sample, Sample) or sample.mask is None:
            without += 1
            continue
        labels[row] = classes(*votes(sample.mask, site.grid, preprocessing), by, background, least)
    if without == len(labels):
        raise ValueError(f"none of the {len(labels):,} samples of {site.store.path} has a mask in that dataset.")
    labels[np.isin(labels, list(ignore))] = NONE
    return Masks(labels, without)


def classes(
    kinds: Int[np.ndarray, "kinds"],
    counts: Int[np.ndarray, "cells kinds"],
    by: By = "majority",
    background: int = 0,
    least: float = 0.0,
) -> Int[np.ndarray, "cells"]:
    """The class of each cell from the pixels of each class in it; see the module's docstring."""
    found = kinds[counts.argmax(1)]
    if by == "majority":
        return found
    front = np.where((kinds == background) | (kinds == NONE), 0, counts)
    seen = front.sum(1) > 0
    enough = seen & (front.sum(1) >= least * counts.sum(1))
    # what is mostly beside the image stays without a class, and what has too little foreground is background
    back = np.where(found == NONE, NONE, background)
    return np.where(enough & (found != NONE), kinds[front.argmax(1)], back)


def read_names(path: Path | None, values: Sequence[int]) -> tuple[str, ...]:
    """Names of pixel values from a JSON of value -> name, or a list; their numbers where it has none. Raises ValueError."""
    content: Any = read_json(path) if path else {}
    if isinstance(content, list):
        content = {str(at): name for at, name in enumerate(content)}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content.values()):
        raise ValueError(f"{path} names no classes: it holds a JSON of pixel value -> name, or a list of names.")
    return tuple(content.get(str(value), str(value)) for value in values)
