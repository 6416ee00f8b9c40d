"""The tables of an audit: all concepts, significant or not, and all names."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vsae.files import write_json, write_whole

if TYPE_CHECKING:
    from evals.blindspots_found import Audit, Compared, Named
    from vsae.audit.names import Called

NUMBERS = ("real", "generated", "delta", "relative", "p", "q", "limit")
INTERVAL = ("low", "high")


def write(found: "Audit", called: "Mapping[int, Called]", folder: Path) -> None:
    """concepts.parquet and concepts.json: a row for each generator and each concept that is live in the real or the generated images."""
    import pyarrow as pa

    text = pa.string()
    columns = {
        "generator": text,
        "concept": pa.int32(),
        "latents": pa.list_(pa.int32()),
        "verdict": text,
        "name": text,
        "name_above_chance": pa.bool_(),
        "other_names": pa.list_(text),
    }
    numbers = dict.fromkeys((*NUMBERS, *INTERVAL, "name_cosine", "name_margin"), pa.float64())
    write_table(folder / "concepts", rows_of(found, called), columns | numbers)


def write_named(named: "Named", folder: Path) -> None:
    """by_name.parquet and by_name.json: a row for each generator and each name of a live concept."""
    import pyarrow as pa

    columns = {"generator": pa.string(), "name": pa.string(), "concepts": pa.list_(pa.int32()), "verdict": pa.string()}
    rows = [
        {"generator": each.name, "name": name, "concepts": list(concepts), "verdict": verdict(each, at)}
        | numbers_of(each, at)
        for each in named.generators
        for at, (name, concepts) in enumerate(zip(named.names, named.concepts, strict=True))
        if each.difference.live[at]
    ]
    write_table(folder / "by_name", rows, columns | dict.fromkeys((*NUMBERS, *INTERVAL), pa.float64()))


def write_table(path: Path, rows: list[dict[str, Any]], columns: Mapping[str, Any]) -> None:
    """PATH.parquet and PATH.json."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(rows, pa.schema(list(columns.items())))
    write_whole(path.with_suffix(".parquet"), lambda temporary: pq.write_table(table, temporary))
    write_json(path.with_suffix(".json"), rows)


def rows_of(found: "Audit", called: "Mapping[int, Called]") -> list[dict[str, Any]]:
    """The same as plain data. A concept without a name has None for it; numbers that are undefined are None."""
    members = members_of(found)
    rows: list[dict[str, Any]] = []
    for each in found.generators:
        for k in np.flatnonzero(each.difference.live).tolist():
            name = called.get(k)
            rows.append(
                {"generator": each.name, "concept": k, "latents": members[k], "verdict": verdict(each, k)}
                | numbers_of(each, k)
                | {
                    "name": name and name.name,
                    "name_above_chance": name and name.above_chance,
                    "other_names": list(name.others) if name else [],
                    "name_cosine": name and name.cosine,
                    "name_margin": name and name.margin,
                }
            )
    return rows


def numbers_of(each: "Compared", k: int) -> dict[str, float | None]:
    """Of one concept or name."""
    found = {name: number(getattr(each.difference, name)[k]) for name in NUMBERS}
    return found | dict(zip(INTERVAL, map(number, each.interval[:, k]), strict=True))


def members_of(found: "Audit") -> dict[int, list[int]]:
    """Concept -> its latents."""
    members: dict[int, list[int]] = {}
    for latent, concept in enumerate(found.concept.tolist()):
        members.setdefault(concept, []).append(latent)
    return members


def number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def verdict(each: "Compared", k: int) -> str:
    """What a concept was found to be."""
    d = each.difference
    if each.blindspots[k]:
        return "suppressed" if d.relative[k] < 0 else "exaggerated"
    if each.low_level[k]:
        return "low-level"
    if not d.tested[k]:
        return "too rare to test"
    return "beyond detection" if d.limit[k] > d.real[k] else "unchanged"
