"""A page of results: one HTML file without scripts, its style and pictures beside it. It opens from disk, and everything in it is escaped.

Sections hold words and parts: pictures in a strip, a table, findings (a bar each, with what it must beat marked on it), another page in a frame.
"""

import hashlib
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Float, Int
from jinja2 import Environment, PackageLoader, StrictUndefined

from vsae.files import write_text, write_whole
from vsae.report.page import Fact

if TYPE_CHECKING:
    from PIL.Image import Image

DIM = 0.38
"""Brightness of what a latent is silent on."""


@dataclass(frozen=True)
class Picture:
    """An image, what is said under it, and whether it is as it should be (None: nothing to be right about)."""

    image: "Image"
    words: str = ""
    right: bool | None = None


@dataclass(frozen=True)
class Strip:
    """Pictures side by side; `told`: with their words under them even where they are right or wrong."""

    pictures: Sequence[Picture]
    name: str = ""
    told: bool = False


@dataclass(frozen=True)
class Chart:
    """A figure, wide enough to be read."""

    picture: Picture


@dataclass(frozen=True)
class Grid:
    """A table; `strong` rows are those the page is about."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: Sequence[int] = ()
    note: str = ""
    prose: bool = False
    """Cells are sentences, which wrap, and not numbers."""


@dataclass(frozen=True)
class Finding:
    """A number between 0 and 1, what it must beat, and its evidence."""

    name: str
    value: float
    interval: tuple[float, float] | None
    marks: Mapping[str, float]
    """Other numbers on the same scale, by the names in `Findings.marks`."""
    link: tuple[str, str]
    """(words, address) of more."""
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class Findings:
    """Findings by group; `marks` are the names of what is marked on the bars, in the order of their symbols, and what each means."""

    measure: str
    marks: Mapping[str, str]
    groups: Mapping[str, Sequence[Finding]]


@dataclass(frozen=True)
class Frame:
    """Another page, inside this one."""

    source: str
    name: str


Part: TypeAlias = Strip | Chart | Grid | Findings | Frame


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, parts."""

    title: str
    words: Sequence[str] = ()
    parts: Sequence[Part] = ()


def write(out: Path, title: str, lead: Sequence[str], facts: Sequence[Fact], sections: Sequence[Section]) -> Path:
    """Write the page to the folder `out`, which may hold others in folders of their own; returns its index.html, which is written last."""
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    environment = Environment(
        loader=PackageLoader("vsae.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.tests |= {each.__name__.lower(): is_a(each) for each in (Strip, Chart, Grid, Findings, Frame)}
    used: set[str] = set()

    def place(picture: Picture) -> str:
        used.add(name := saved(picture.image, out / "pictures"))
        return f"pictures/{name}"

    content = {"title": title, "lead": lead, "facts": facts, "sections": sections, "place": place}
    text = environment.get_template("results.html").render(content)
    write_whole(out / "results.css", lambda path: shutil.copyfile(Path(__file__).with_name("results.css"), path))
    write_text(out / "index.html", text)
    for stale in (path for path in (out / "pictures").iterdir() if path.name not in used):
        stale.unlink()
    return out / "index.html"


def is_a(kind: type) -> Any:
    return lambda part: isinstance(part, kind)


def saved(image: "Image", folder: Path) -> str:
    """Name of the picture's file, which is its content's checksum: equal pictures are one file, and none ever changes."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=88)
    name = f"{hashlib.sha256(buffer.getvalue()).hexdigest()[:16]}.jpg"
    if not (folder / name).exists():
        write_whole(folder / name, lambda path: path.write_bytes(buffer.getvalue()))
    return name


def spotlight(
    image: "Image", cells: Int[np.ndarray, "cells"], values: Float[np.ndarray, "cells"], grid: tuple[int, int]
) -> "Image":
    """The image, dark where a latent is silent: brightness of cell i (of `grid`, row by row) is DIM + (1 - DIM) sqrt(value / largest value)."""
    from PIL import Image as pil

    light = np.full(grid[0] * grid[1], DIM)
    on_grid = (cells < len(light)) & (values > 0)
    if on_grid.any():
        light[cells[on_grid]] += (1 - DIM) * np.sqrt(values[on_grid] / values[on_grid].max())
    mask = pil.fromarray(np.round(255 * light.reshape(grid)).astype(np.uint8)).resize(
        image.size, pil.Resampling.NEAREST
    )
    return pil.composite(image.convert("RGB"), pil.new("RGB", image.size), mask)
