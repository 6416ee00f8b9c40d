"""The table of all concepts of an audit, significant or not."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vsae.files import write_whole

if TYPE_CHECKING:
    from evals.blindspots_runs import Audit, Audited

NUMBERS = ("real", "generated", "delta", "relative", "p", "q", "limit")


def write(found: "Audit", path: Path) -> None:
    """A row for each generator and each concept that is live in the real or the generated images."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    members: dict[int, list[int]] = {}
    for latent, concept in enumerate(found.concept.tolist()):
        members.setdefault(concept, []).append(latent)
    rows: list[dict[str, Any]] = []
    for each in found.generators:
        for k in np.flatnonzero(each.difference.live).tolist():
            numbers = {name: number(getattr(each.difference, name)[k]) for name in NUMBERS}
            low, high = each.interval[:, k]
            about = {"generator": each.name, "concept": k, "latents": members[k], "verdict": verdict(each, k)}
            rows.append(about | numbers | {"low": number(low), "high": number(high)})
    text = [
        ("generator", pa.string()),
        ("concept", pa.int32()),
        ("latents", pa.list_(pa.int32())),
        ("verdict", pa.string()),
    ]
    schema = pa.schema([*text, *((name, pa.float64()) for name in (*NUMBERS, "low", "high"))])
    write_whole(path, lambda temporary: pq.write_table(pa.Table.from_pylist(rows, schema), temporary))


def number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def verdict(each: "Audited", k: int) -> str:
    """What a concept was found to be."""
    d = each.difference
    if each.blindspots[k]:
        return "suppressed" if d.relative[k] < 0 else "exaggerated"
    if each.low_level[k]:
        return "low-level"
    if not d.tested[k]:
        return "too rare to test"
    return "beyond detection" if d.limit[k] > d.real[k] else "unchanged"
