"""The page's data, as scripts: a table of all latents, and their evidence in chunks.

A heat map is 3 bytes an active token in base64; a picture is named by its sample's number. Strings from the data appear only inside JSON
that holds no `<`, `>` or `&`.
"""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int32, Int64

from vsae.report.hints import hints
from vsae.report.latents import Evidence
from vsae.report.neighbours import Neighbours
from vsae.report.picks import Picks

CHUNK = 64
"""Latents a file."""


def thumbnail_path(sample: int) -> str:
    return f"images/{sample // 1000:03d}/{sample:06d}.jpg"


def write_latents(
    folder: Path,
    evidence: Evidence,
    shown: Sequence[int],
    related: tuple[Neighbours, Neighbours],
    samples: Sequence[Mapping[str, Any]],
    pictured: set[int],
) -> None:
    """Evidence of the shown latents in files of CHUNK, each with what it needs to know about its samples."""
    tiles = Tiles(evidence)
    for number in range(math.ceil(len(shown) / CHUNK)):
        mine = shown[number * CHUNK : (number + 1) * CHUNK]
        about = {latent: latent_data(evidence, tiles, latent, related) for latent in mine}
        used = {tile[0] for each in about.values() for name in ("top", "bottom", "random") for tile in each[name]}
        captions = {s: sample_data(s, samples[s], s in pictured) for s in sorted(used)}
        (folder / f"latents-{number:05d}.js").write_text(
            f"vsae.chunk({number}, {script_json({'latents': about, 'samples': captions})});\n", "utf-8"
        )


class Tiles:
    """Picks as the page reads them: [sample, strongest activation, codes], the codes packed by `packed`."""

    def __init__(self, evidence: Evidence) -> None:
        paint, self.table_rows = evidence.paint, evidence.table_rows
        reach = np.maximum(np.abs(evidence.low), np.abs(evidence.high))[paint.pairs // self.table_rows]
        sizes = np.diff(paint.start)
        self.records, self.start = packed(paint.cell, paint.value, np.repeat(reach, sizes), paint.start)
        self.pairs = paint.pairs
        # Every picked pair has an active token, so no slice is empty.
        most, least = (
            f.reduceat(paint.value, paint.start[:-1]) if len(sizes) else reach for f in (np.maximum, np.minimum)
        )
        self.strongest = np.where(most >= -least, most, least)

    def of(self, picks: Picks, latent: int) -> list[list[Any]]:
        samples = picks.sample[picks.of(latent)]
        at = np.searchsorted(self.pairs, latent * self.table_rows + samples).tolist()
        codes = [self.records[self.start[i] : self.start[i + 1]].tobytes() for i in at]
        values = [rounded(value) for value in self.strongest[at].tolist()]
        return [
            [sample, value, base64.b64encode(code).decode()]
            for sample, value, code in zip(samples.tolist(), values, codes, strict=True)
        ]


def packed(
    cells: Int32[np.ndarray, "cells"],
    values: Float[np.ndarray, "cells"],
    reach: Float[np.ndarray, "cells"],
    start: Int64[np.ndarray, "pairs_and_one"],
) -> tuple[np.ndarray, Int64[np.ndarray, "pairs_and_one"]]:
    """3 bytes a cell, and where each pair starts: its number (uint16; cells beyond 65,535 are left out), value / reach in 127ths (int8, never 0)."""
    level = np.clip(np.round(values / reach * 127), -127, 127)
    kept = cells < 2**16
    records = np.zeros(int(kept.sum()), np.dtype([("cell", "<u2"), ("level", "i1")]))
    records["cell"], records["level"] = cells[kept], np.where(level == 0, np.sign(values), level)[kept]
    return records, np.concatenate([[0], np.cumsum(kept)])[start]


def latent_data(
    evidence: Evidence, tiles: Tiles, latent: int, related: tuple[Neighbours, Neighbours]
) -> dict[str, Any]:
    """What the page shows of one latent."""
    return {
        "histogram": evidence.histogram[latent].tolist(),
        "top": tiles.of(evidence.top, latent),
        "bottom": tiles.of(evidence.bottom, latent),
        "random": tiles.of(evidence.random, latent),
        "near": links(related[0], latent),
        "with": links(related[1], latent),
    }


def links(neighbours: Neighbours, latent: int) -> list[list[Any]]:
    """[latent, score, chance] of each neighbour."""
    columns = (neighbours.latent[latent], neighbours.score[latent], neighbours.chance[latent])
    return [[int(i), round(float(s), 3), rounded(c)] for i, s, c in zip(*columns, strict=True) if i >= 0]


def sample_data(sample: int, row: Mapping[str, Any], pictured: bool, folder: str = "") -> list[Any]:
    """[thumbnail below `folder` or 0, key, label, caption]."""
    words = (str(row.get(name) or "")[:400] for name in ("key", "label", "caption"))
    return [folder + thumbnail_path(sample) if pictured else 0, *words]


def write_index(
    path: Path,
    evidence: Evidence,
    shown: Sequence[int],
    samples: Sequence[Mapping[str, Any]],
    grid: tuple[int, int] | None,
    kind_names: Sequence[str],
) -> None:
    """The table of latents, and what is common to all."""
    named = hints(evidence.top, [s.get("label") for s in samples], [s.get("caption") for s in samples])
    table = {
        "chunk": CHUNK,
        "files": "latents",
        "rows": evidence.n_rows,
        "tokens_per_sample": evidence.n_tokens,
        "grid": list(grid) if grid else None,
        "kinds": list(kind_names),
        "id": shown,
        "hint": [named[latent] for latent in shown],
        "density": [rounded(evidence.tokens[latent] / evidence.n_rows) for latent in shown],
        "images": evidence.samples[shown].tolist(),
        "mean": [rounded(v) for v in evidence.mean[shown]],
        "high": [rounded(v) for v in evidence.high[shown]],
        "low": [rounded(v) for v in evidence.low[shown]],
    }
    path.write_text(f"vsae.index({script_json(table)});\n", "utf-8")


def script_json(content: Any) -> str:
    """JSON that stays JSON inside a script, whatever its strings hold. Raises ValueError for NaN or infinity."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def rounded(value: float) -> float:
    """Four significant digits: what a reader can use, and a quarter of the bytes."""
    return float(f"{float(value):.4g}")
