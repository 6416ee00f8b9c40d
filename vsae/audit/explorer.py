"""The explorer of an audit: every concept, found or not, on a map and in a table to search, sort and filter, with its evidence. It opens from disk.

    explorer/index.html  explorer.css  explorer.js       and page.css, shared.js of vsae.report
    explorer/data/index.js                               the table: one array a column, and one for each generator
    explorer/data/concepts-00000.js                      pictures of CHUNK concepts, loaded when one of them is looked at
    explorer/0/images/000/000123.jpg                     thumbnail of image 123 of set 0, the real ones; the generators' sets follow

As on the page of latents, whatever comes from the data reaches the document as text only.
"""

import dataclasses
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from jinja2 import Environment, PackageLoader, StrictUndefined

from vsae.audit.concepts import members_of, number, verdict
from vsae.audit.names import UNNAMED
from vsae.files import write_whole
from vsae.progress import track
from vsae.report.data import CHUNK, Tiles, rounded, sample_data, script_json
from vsae.report.page import Fact, draw, refuse_foreign, replacing
from vsae.report.scatter import placed

if TYPE_CHECKING:
    from evals.blindspots_found import Audit
    from vsae.audit.look import Look
    from vsae.audit.names import Called

COLUMNS = ("generated", "relative", "p", "q", "delta", "limit")
VERDICTS = {
    "suppressed": "Drawn too rarely: the difference is beyond chance (q below the false discovery rate), larger than the least change, and in the same direction from the control.",
    "exaggerated": "Drawn too often: the difference is beyond chance (q below the false discovery rate), larger than the least change, and in the same direction from the control.",
    "low-level": "Differs from the real images, but not from real images that were only written anew: the file format or size, no content.",
    "unchanged": "No difference beyond chance, or none as large as the least change. That is no proof that there is none: see the interval and the detection limit.",
    "beyond detection": "Not significant, and so rare that with this many images not even its disappearance would be sure to be found.",
    "too rare to test": "Active on too few images for a test.",
}
"""Verdict -> what it says and what it does not."""


def write(
    out: Path,
    found: "Audit",
    called: "Mapping[int, Called]",
    looks: "Mapping[str, Look]",
    atoms: Float[np.ndarray, "candidates d_model"],
    facts: Sequence[Fact],
    not_shown: Sequence[str],
) -> Path:
    """Write the page to the folder `out`; returns its index.html. looks: by name, "real" first, then the generators in their order."""
    refuse_foreign(out)
    shown = np.flatnonzero(np.any([each.difference.live for each in found.generators], axis=0)).tolist()
    leading = leading_latents(found, looks["real"], shown)
    reach = np.max(
        [np.maximum(np.abs(look.lit.seen.low), np.abs(look.lit.seen.high)) for look in looks.values()], axis=0
    )
    with replacing(out) as partial:
        (partial / "data").mkdir()
        sets = [Shown(look, leading, reach, partial, at) for at, look in enumerate(looks.values())]
        for at in range(math.ceil(len(shown) / CHUNK)):
            mine = list(zip(shown, leading, strict=True))[at * CHUNK : (at + 1) * CHUNK]
            tiles = {concept: [each.tiles(latent) for each in sets] for concept, latent in mine}
            used = [{tile[0] for each in tiles.values() for tile in each[number]} for number in range(len(sets))]
            samples = [each.about(some) for each, some in zip(sets, used, strict=True)]
            text = script_json({"concepts": tiles, "samples": samples})
            (partial / "data" / f"concepts-{at:05d}.js").write_text(f"vsae.chunk({at}, {text});\n", "utf-8")
        table = columns(found, called, shown) | places(atoms[leading]) | about(looks)
        (partial / "data" / "index.js").write_text(f"vsae.index({script_json(table)});\n", "utf-8")
        shell(partial, {"names": [each.name for each in found.generators], "facts": facts, "not_shown": not_shown})
    return out / "index.html"


def leading_latents(found: "Audit", real: "Look", shown: Sequence[int]) -> list[int]:
    """The latent of each concept that is active on most real tokens; of equal ones the first."""
    members, tokens = members_of(found), real.lit.seen.tokens
    return [max(members[concept], key=lambda latent: (tokens[latent], -latent)) for concept in shown]


class Shown:
    """Thumbnails and tiles of one set."""

    def __init__(self, look: "Look", leading: Sequence[int], reach: np.ndarray, folder: Path, at: int) -> None:
        self.seen, self.folder = look.lit.seen, f"{at}/"
        self.samples = look.site.samples.to_pylist()
        # one scale for all sets, so that heat maps side by side can be compared
        self.packed = Tiles(dataclasses.replace(self.seen, low=-reach, high=reach))
        top = self.seen.top
        wanted = np.unique(np.concatenate([top.sample[top.of(latent)] for latent in leading] or [top.sample[:0]]))
        (folder / str(at)).mkdir()
        self.pictured = draw(look.picture, self.samples, wanted.tolist(), folder / str(at) / "images", 128, track)

    def tiles(self, latent: int) -> list[list[Any]]:
        """[sample, strongest activation, codes] of the images it is strongest on."""
        return self.packed.of(self.seen.top, latent)

    def about(self, samples: set[int]) -> dict[int, list[Any]]:
        return {s: sample_data(s, self.samples[s], s in self.pictured, self.folder) for s in sorted(samples)}


def columns(found: "Audit", called: "Mapping[int, Called]", shown: Sequence[int]) -> dict[str, Any]:
    """What is said of each concept, and by each generator; None where a number is undefined."""
    members, first = members_of(found), found.generators[0].difference
    names = [called.get(concept) for concept in shown]
    generators = []
    for each in found.generators:
        d, (low, high) = each.difference, each.interval
        arrays = {name: getattr(d, name) for name in COLUMNS} | {"low": low, "high": high}
        live = d.live
        values = {name: [tidy(array[k]) for k in shown] for name, array in arrays.items()}
        said = [list(VERDICTS).index(verdict(each, k)) if live[k] else -1 for k in shown]
        generators.append(values | {"name": each.name, "paired": d.paired, "images": d.n_generated, "verdict": said})
    return {
        "id": list(shown),
        "latents": [members[concept][:8] for concept in shown],
        "name": [name.shown if name else "" for name in names],
        "others": [list(name.others) if name else [] for name in names],
        "cosine": [name and rounded(name.cosine) for name in names],
        "margin": [name and rounded(name.margin) for name in names],
        "real": [tidy(first.real[k]) for k in shown],
        "generators": generators,
        "verdicts": [[name, text] for name, text in VERDICTS.items()],
        "alpha": found.settings["alpha"],
        "least_change": found.settings["least_change"],
        "images": first.n_real,
        "null": rounded(found.null.found),
        "unnamed": "" if called else UNNAMED,
        "chunk": CHUNK,
        "files": "concepts",
    }


def tidy(value: Any) -> float | None:
    known = number(value)
    return None if known is None else rounded(known)


def places(atoms: Float[np.ndarray, "shown d_model"]) -> dict[str, list[float]]:
    spots = placed(atoms)
    return {"x": spots[:, 0].round(4).tolist(), "y": spots[:, 1].round(4).tolist()}


def about(looks: "Mapping[str, Look]") -> dict[str, Any]:
    """What the heat maps are painted by."""
    site = looks["real"].site
    tokens = max(look.lit.seen.n_tokens for look in looks.values())
    grid = list(site.grid) if site.grid else None
    return {"grid": grid, "kinds": list(site.kind_names), "tokens_per_sample": tokens, "sets": list(looks)}


def shell(folder: Path, content: Mapping[str, Any]) -> None:
    """index.html, and scripts and styles beside it."""
    environment = Environment(loader=PackageLoader("vsae.audit", "."), autoescape=True, undefined=StrictUndefined)
    (folder / "index.html").write_text(environment.get_template("explorer.html").render(content), "utf-8")
    here, report = Path(__file__).parent, Path(__file__).parents[1] / "report"
    for source in (here / "explorer.css", here / "explorer.js", report / "page.css", report / "shared.js"):
        write_whole(folder / source.name, lambda path, source=source: shutil.copyfile(source, path))  # type: ignore[misc]
