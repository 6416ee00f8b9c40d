"""The table of all concepts of an audit, significant or not."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vsae.files import write_json, write_whole

if TYPE_CHECKING:
    from evals.blindspots_found import Audit, Audited
    from vsae.audit.names import Called

NUMBERS = ("real", "generated", "delta", "relative", "p", "q", "limit")


def write(found: "Audit", called: "Mapping[int, Called]", folder: Path) -> None:
    """concepts.parquet and concepts.json: a row for each generator and each concept that is live in the real or the generated images."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, numbers = pa.string(), [*NUMBERS, "low", "high", "name_cosine", "name_margin"]
    schema = pa.schema(
        [
            ("generator", text),
            ("concept", pa.int32()),
            ("latents", pa.list_(pa.int32())),
            ("verdict", text),
            ("name", text),
            ("name_above_chance", pa.bool_()),
            ("other_names", pa.list_(text)),
            *((name, pa.float64()) for name in numbers),
        ]
    )
    rows = rows_of(found, called)
    table = pa.Table.from_pylist(rows, schema)
    write_whole(folder / "concepts.parquet", lambda temporary: pq.write_table(table, temporary))
    write_json(folder / "concepts.json", rows)


def rows_of(found: "Audit", called: "Mapping[int, Called]") -> list[dict[str, Any]]:
    """The same as plain data. A concept without a name has None for it; numbers that are undefined are None."""
    members = members_of(found)
    rows: list[dict[str, Any]] = []
    for each in found.generators:
        for k in np.flatnonzero(each.difference.live).tolist():
            numbers = {name: number(getattr(each.difference, name)[k]) for name in NUMBERS}
            low, high = each.interval[:, k]
            name = called.get(k)
            rows.append(
                {"generator": each.name, "concept": k, "latents": members[k], "verdict": verdict(each, k)}
                | numbers
                | {"low": number(low), "high": number(high)}
                | {
                    "name": name and name.name,
                    "name_above_chance": name and name.above_chance,
                    "other_names": list(name.others) if name else [],
                    "name_cosine": name and name.cosine,
                    "name_margin": name and name.margin,
                }
            )
    return rows


def members_of(found: "Audit") -> dict[int, list[int]]:
    """Concept -> its latents."""
    members: dict[int, list[int]] = {}
    for latent, concept in enumerate(found.concept.tolist()):
        members.setdefault(concept, []).append(latent)
    return members


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
