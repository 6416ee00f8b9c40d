"""Write the explorer: index.html with its script and style, the table of latents, their evidence in chunks, one small picture an image.

    page/index.html  page.css  page.js  shared.js
    page/data/index.js              the table: one array a column
    page/data/latents-00000.js      evidence of CHUNK latents, loaded when one of them is looked at
    page/images/000/000123.jpg      thumbnail of sample 123: named by number, because file names are hostile

Browsers refuse fetch() on file://, so data are scripts that call a function of shared.js. What comes from the data reaches the document as
text only: JSON without `<`, `>` and `&` here, textContent there, and a content security policy over both.
"""

import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from vsae.activations import Select
from vsae.files import sync
from vsae.report.data import thumbnail_path, write_index, write_latents
from vsae.report.latents import Evidence, Plan, gather
from vsae.report.neighbours import by_direction, by_firing
from vsae.sae import SAE

if TYPE_CHECKING:
    from PIL.Image import Image

    from vsae.activations.store import SiteReader

MARK = "data/index.js"
"""What a folder must hold to be taken for an earlier page and replaced."""

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""(items, what is done, how many) -> the same items, with a progress bar."""


@dataclass(frozen=True)
class Fact:
    """A number in the page's header, as text, with its floor."""

    name: str
    value: str
    floor: str = ""


def explore(
    sae: SAE,
    site: "SiteReader",
    image: "Callable[[Mapping[str, Any]], Image | None]",
    out: str | Path,
    *,
    title: str = "Latents",
    about: Sequence[str] = (),
    facts: Sequence[Fact] = (),
    select: Select | None = None,
    plan: Plan | None = None,
    latents: int | None = None,
    near: int = 8,
    thumbnail: int = 128,
    batch_size: int = 4096,
    track: Track = lambda items, what, n: items,
) -> Path:
    """Write the page of `sae` on the rows of `site` to the folder `out`; returns its index.html.

    `image(row)` gives the picture of a row of the table of samples as the model saw it (resized and cropped); None or an OSError or ValueError makes a grey tile. `latents`
    limits the page to so many latents that fire on most tokens. Raises ValueError without rows, and FileExistsError when `out` is something other than a page.
    """
    out, plan = Path(out), plan or Plan()
    refuse_foreign(out)
    samples = site.samples.to_pylist()

    def batches(what: str) -> Iterable[Any]:
        return track(site.sequential(batch_size, select), what, math.ceil(site.n_rows / batch_size))

    evidence = gather(sae, batches, len(samples), site.grid, site.kind_names, plan)
    shown = chosen(evidence, latents)
    with replacing(out) as partial:
        (partial / "data").mkdir()
        pictured = draw(image, samples, needed(evidence, shown), partial / "images", thumbnail, track)
        related = by_direction(sae.atoms, near), by_firing(evidence.firing, near)
        write_latents(partial / "data", evidence, shown, related, samples, pictured)
        write_index(partial / "data" / "index.js", evidence, shown, samples, site.grid, site.kind_names)
        header = {"title": title, "about": about, "facts": [*facts, *counted(evidence)]}
        not_shown = omissions(evidence, shown, sae.n_latents, len(needed(evidence, shown)) - len(pictured))
        write_shell(partial, header | {"not_shown": not_shown})
    return out / "index.html"


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into, which takes its place at the end, or is gone where something was raised."""
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if out.exists():
            shutil.rmtree(out)
        os.replace(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync(out.parent)


def refuse_foreign(out: Path) -> None:
    """Only an earlier page is replaced. Raises FileExistsError."""
    if out.exists() and not (out / MARK).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an explorer page: choose another folder for the page.")
    out.parent.mkdir(parents=True, exist_ok=True)


def chosen(evidence: Evidence, latents: int | None) -> list[int]:
    """The latents of the page, ascending: all, or those that fire on most tokens."""
    order = np.argsort(-evidence.tokens, kind="stable")[: len(evidence.tokens) if latents is None else latents]
    return sorted(order.tolist())


def needed(evidence: Evidence, shown: Sequence[int]) -> list[int]:
    """Samples that some shown latent picked, ascending."""
    picked = [p.sample[np.isin(p.latents(), shown)] for p in (evidence.top, evidence.bottom, evidence.random)]
    return np.unique(np.concatenate(picked)).tolist()


def draw(
    image: "Callable[[Mapping[str, Any]], Image | None]",
    samples: Sequence[Mapping[str, Any]],
    wanted: Sequence[int],
    folder: Path,
    size: int,
    track: Track,
) -> set[int]:
    """Write a thumbnail of each wanted sample; returns those that could be read."""
    folder.mkdir()

    def one(sample: int) -> int | None:
        try:
            picture = image(samples[sample])
        except (OSError, ValueError):
            return None
        if picture is None:
            return None
        picture = picture.convert("RGB")
        picture.thumbnail((size, size))
        path = folder.parent / thumbnail_path(sample)
        path.parent.mkdir(exist_ok=True)
        picture.save(path, "JPEG", quality=85)
        return sample

    with ThreadPoolExecutor(2) as threads:
        done = track(threads.map(one, wanted), "pictures", len(wanted))
        return {sample for sample in done if sample is not None}


def counted(evidence: Evidence) -> list[Fact]:
    """What the page itself counted."""
    l0, n = float(evidence.tokens.sum() / evidence.n_rows), len(evidence.tokens)
    silent = float(np.mean(evidence.tokens == 0))
    by_chance = (1 - min(l0 / n, 1)) ** evidence.n_rows
    return [
        Fact("L0 on this page's rows", f"{l0:.1f}", f"of {n:,} latents"),
        Fact("silent on this page's rows", f"{silent:.1%}", f"{by_chance:.1%} if L0 were spread evenly"),
        Fact(
            "rows",
            f"{evidence.n_rows:,}",
            f"tokens of {evidence.n_samples:,} samples; kinds: {', '.join(evidence.kinds)}",
        ),
    ]


def omissions(evidence: Evidence, shown: Sequence[int], n_latents: int, unread: int) -> list[str]:
    """What a reader must not take for shown."""
    said = [
        "A picture counts by its strongest token; heat maps are scaled to the latent's own maximum, so their brightness cannot be compared between latents.",
        "Heat maps say where the code is active, not which pixels caused it.",
    ]
    if len(shown) < n_latents:
        said.append(f"{n_latents - len(shown):,} latents that fire on fewer tokens are left out.")
    if unread:
        said.append(f"{unread:,} pictures could not be read and are grey.")
    if evidence.firing.shape[0] < evidence.n_rows:
        said.append(
            f"Co-firing was counted on {evidence.firing.shape[0]:,} of the {evidence.n_rows:,} rows, drawn at random."
        )
    said.append("Words and labels beside a latent come from its own top images: names to search by, not a measurement.")
    return said


def write_shell(folder: Path, header: Mapping[str, Any]) -> None:
    """index.html, and the script and style beside it."""
    environment = Environment(loader=PackageLoader("vsae.report", "."), autoescape=True, undefined=StrictUndefined)
    (folder / "index.html").write_text(environment.get_template("page.html").render(header), "utf-8")
    for name in ("page.css", "page.js", "shared.js"):
        shutil.copyfile(Path(__file__).with_name(name), folder / name)
