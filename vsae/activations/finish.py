"""The end of writing: the journal becomes the table of samples and the manifest."""

import importlib.metadata
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vsae.activations.journal import Journal
from vsae.activations.manifest import MANIFEST, SAMPLES, SCHEMA, site_folder, split_site
from vsae.activations.moments import Sums
from vsae.files import sha256, write_json, write_whole

ROW_GROUP = 65536
COLUMNS = pa.schema(
    [(name, pa.string()) for name in ("key", "path", "caption", "label")]
    + [(name, pa.int64()) for name in ("width", "height")]
)


def finish(store: Path, job: dict[str, Any], journal: Journal) -> None:
    """Write `samples.parquet`, then `manifest.json`, then forget the journal."""
    write_whole(store / SAMPLES, lambda temporary: _write_samples(temporary, journal))
    n_samples = pq.read_metadata(store / SAMPLES).num_rows
    bad: list[dict[str, str]] = []
    layouts: dict[str, dict[str, Any]] = {}
    shards: dict[str, dict[int, dict[str, Any]]] = {}
    for entry in journal:
        bad += entry.get("bad", [])
        for site, layout in entry.get("sites", {}).items():
            layouts[site] = layout if site not in layouts else _common(layouts[site], layout)
        if "part" in entry:
            shards.setdefault(entry["site"], {})[entry["part"]] = entry
    request = job["request"]
    model = request.get("model", {})
    manifest = {
        "schema": SCHEMA,
        "job": job,
        "model": model,
        "preprocessing": model.get("preprocessing", {}),
        "data": request.get("data", {}),
        "kind_names": job["kind_names"],
        "dtype": job["dtype"],
        "samples": {"rows": n_samples, "bytes": (store / SAMPLES).stat().st_size, "sha256": sha256(store / SAMPLES)},
        "bad": {"count": len(bad), "samples": bad},
        "sites": {
            site: _site(
                site,
                layouts[site],
                [shards.get(site, {})[part] for part in sorted(shards.get(site, {}))],
                job["kind_names"],
            )
            for site in layouts
        },
        "versions": {name: importlib.metadata.version(name) for name in ("vsae", "torch", "numpy", "pyarrow")}
        | {"python": platform.python_version()},
    }
    write_json(store / MANIFEST, manifest)
    journal.remove()


def _site(site: str, layout: dict[str, Any], shards: list[dict[str, Any]], kind_names: list[str]) -> dict[str, Any]:
    path, side = split_site(site)
    return layout | {
        "path": path,
        "side": side,
        "folder": site_folder(site),
        "rows": sum(shard["rows"] for shard in shards),
        "shards": [{name: shard[name] for name in ("rows", "bytes", "sha256")} for shard in shards],
        "moments": _moments(shards, layout["d_model"], kind_names),
    }


def _moments(shards: list[dict[str, Any]], d_model: int, kind_names: list[str]) -> dict[str, dict[str, Any]]:
    """Sums of the shards, added in their order, so that they come out the same wherever a writer was killed."""
    totals: dict[str, Sums] = {}
    for shard in shards:
        for kind, (count, first, second) in shard["sums"].items():
            name = kind_names[int(kind)]
            totals[name] = totals.get(name, Sums.zero(d_model)) + Sums(count, np.array(first), np.array(second))
    moments = {name: total.moments() for name, total in totals.items()}
    return {
        name: {"count": m.count, "mean": m.mean.tolist(), "second": m.second.tolist()} for name, m in moments.items()
    }


def _common(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """What holds for both batches; None for what varies."""
    return {name: a[name] if a[name] == b[name] else None for name in a}


def _write_samples(path: Path, journal: Journal) -> None:
    # through a Python file, so that a full disk is an OSError with its number
    with path.open("wb") as file, pq.ParquetWriter(file, COLUMNS) as writer:
        for rows in _groups(row for entry in journal for row in entry.get("samples", [])):
            writer.write_table(pa.Table.from_pylist(rows, COLUMNS))


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for row in rows:
        group.append(row)
        if len(group) == ROW_GROUP:
            yield group
            group = []
    if group:
        yield group
