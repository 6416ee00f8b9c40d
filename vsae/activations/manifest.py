"""The manifest of a store: what it holds, of what, and how to know that all of it is there.

`manifest.json` is written last, so a folder with one is a finished store. It holds nothing of the machine or the hour it was made on.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vsae.files import digest, read_json, sha256

SCHEMA = 1
MANIFEST, SAMPLES, JOURNAL = "manifest.json", "samples.parquet", "journal.jsonl"
SIDES = ("input", "output")


def split_site(site: str) -> tuple[str, str]:
    """Module path and side of a site: `blocks.11` -> (`blocks.11`, `output`)."""
    path, _, side = site.rpartition(":")
    return (path, side) if path and side in SIDES else (site, "output")


def site_folder(site: str) -> str:
    """A folder name for a site: its own name where that is safe, else a safe one made unique by a hash."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", site).lstrip(".")[:80]
    return safe if safe == site and safe not in ("", MANIFEST, SAMPLES, JOURNAL) else f"{safe}-{digest(site)[:8]}"


def part_name(part: int) -> str:
    return f"part-{part:05d}.safetensors"


def read_manifest(store: Path) -> dict[str, Any]:
    """The manifest of a finished store. Raises FileNotFoundError or ValueError with a sentence."""
    if not (store / MANIFEST).is_file():
        if (store / JOURNAL).is_file():
            raise FileNotFoundError(
                f"{store} is an unfinished store: run the same extraction again, and it will be completed."
            )
        raise FileNotFoundError(f"{store} is not an activation store: it has no {MANIFEST}.")
    manifest = read_json(store / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema"), int):
        raise ValueError(f"{store / MANIFEST} is not the manifest of an activation store.")
    if manifest["schema"] > SCHEMA:
        raise ValueError(
            f"{store} was written by a newer vsae (store schema {manifest['schema']}; this one reads up to {SCHEMA}): update vsae to read it."
        )
    return manifest


def expected_files(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each data file's path within the store, with its `bytes` and `sha256`."""
    files = {SAMPLES: manifest["samples"]}
    for site in manifest["sites"].values():
        files |= {f"{site['folder']}/{part_name(part)}": shard for part, shard in enumerate(site["shards"])}
    return files


def check_files(store: Path, manifest: Mapping[str, Any], verify: bool = False) -> None:
    """Raises ValueError naming files that are missing, of the wrong size, not of this store or, with `verify`, altered."""
    expected = expected_files(manifest)
    remedy = "restore it, or delete the folder and extract again"
    for name, entry in expected.items():
        path = store / name
        if not path.is_file():
            raise ValueError(f"{path} is missing: {remedy}.")
        if (size := path.stat().st_size) != entry["bytes"]:
            raise ValueError(f"{path} has {size} bytes where the manifest says {entry['bytes']}: {remedy}.")
    if stray := sorted(strays(store, set(expected))):
        raise ValueError(
            f"{store} has {len(stray)} stray file(s) that its manifest does not know, such as {stray[0]}: move them elsewhere."
        )
    if verify:
        for name, entry in expected.items():
            if sha256(store / name) != entry["sha256"]:
                raise ValueError(f"{store / name} was altered (its checksum is not the manifest's): {remedy}.")


def strays(store: Path, expected: set[str]) -> list[str]:
    """Files of no meaning to a store; hidden ones, which file managers leave behind, are passed over."""
    files = (path.relative_to(store) for path in store.rglob("*") if path.is_file())
    known = {MANIFEST, JOURNAL, *expected}
    return [
        name.as_posix()
        for name in files
        if name.as_posix() not in known and not any(part.startswith(".") for part in name.parts)
    ]
