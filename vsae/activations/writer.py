"""Write a store: batches in, shards out, and the same bytes whether or not the writer was killed on the way.

Batches are a function of their number, and every file a function of the batches. The journal remembers which shards are on disk and at which row
of which batch the next one begins; after a kill the model runs again from the earliest such batch, and rows already on disk are dropped.
Memory: a shard's buffer a site, and two shards on their way to disk.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vsae.activations.chunk import MakeChunks
from vsae.activations.journal import Journal
from vsae.activations.ledger import Ledger, check_same_job
from vsae.activations.manifest import JOURNAL, MANIFEST, read_manifest, strays
from vsae.activations.rows import readings
from vsae.activations.shard import DTYPES
from vsae.activations.shards import Shards, rows_at
from vsae.activations.store import ActivationStore
from vsae.files import FULL


def write_store(
    path: str | Path,
    chunks_from: MakeChunks,
    request: Mapping[str, Any],
    *,
    kind_names: Sequence[str],
    rows_per_shard: int | None = None,
    dtype: str = "bfloat16",
    max_bad_share: float = 0.05,
    keep_pad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ActivationStore:
    """Write what `chunks_from(first batch)` yields to the folder `path`, or complete what a killed writer began there.

    `request` is the JSON identity of the job ("model": provenance, "data": identity, and whatever else decides the result). A finished store of
    the same job is returned as it is. `rows_per_shard` None: about 256 MB a shard. `progress(candidates, bad)` is called after every batch.
    Raises ValueError for a folder with another job or other files in it, values that are not finite in `dtype`, or more than
    `max_bad_share` bad samples; OSError when the disk is full or another process writes the same store. Running again goes on where it stopped.
    """
    job = job_of(request, kind_names=kind_names, rows_per_shard=rows_per_shard, dtype=dtype, keep_pad=keep_pad)

    def write(ledger: Ledger) -> None:
        with Shards(ledger.path, job, ledger.record) as shards:
            for reading in readings(chunks_from(ledger.start), job):
                for piece in ledger.take(reading.entry, reading.counts):
                    shards.put(piece, rows_at(reading.rows[piece.site], piece))
            for piece in ledger.end():
                shards.filled(piece)
            shards.finish()

    return complete(Path(path), job, write, max_bad_share, progress)


def job_of(
    request: Mapping[str, Any],
    *,
    kind_names: Sequence[str],
    rows_per_shard: int | None = None,
    dtype: str = "bfloat16",
    keep_pad: bool = False,
) -> dict[str, Any]:
    """All that decides the bytes of a store, as JSON. Raises ValueError for options that make no sense."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known: choose from {', '.join(DTYPES)}.")
    if rows_per_shard is not None and rows_per_shard < 1:
        raise ValueError(f"rows_per_shard is {rows_per_shard}, but a shard holds at least one row.")
    job = {
        "request": request,
        "kind_names": list(kind_names),
        "dtype": dtype,
        "rows_per_shard": rows_per_shard,
        "keep_pad": keep_pad,
    }
    return dict(json.loads(json.dumps(job, allow_nan=False)))


def complete(
    path: Path,
    job: dict[str, Any],
    write: Callable[[Ledger], None],
    max_bad_share: float = 0.05,
    progress: Callable[[int, int], None] | None = None,
) -> ActivationStore:
    """The store at `path`: as it is if it is finished, else once `write(ledger)` has handed all batches to its ledger and put all shards on disk."""
    with full_disk_named(path):
        if (path / MANIFEST).is_file():
            return _finished(path, job)
        if path.is_dir() and not (path / JOURNAL).exists() and (others := strays(path, set())):
            raise ValueError(
                f"{path} already holds other files, such as {others[0]}: choose a new folder for the store."
            )
        path.mkdir(parents=True, exist_ok=True)
        journal = Journal(path / JOURNAL)
        try:
            if (path / MANIFEST).is_file():
                return _finished(path, job)
            ledger = Ledger(path, job, journal, max_bad_share, progress)
            write(ledger)
            ledger.finish()
            return ActivationStore.open(path)
        finally:
            journal.close()


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Says of a full disk what to do about it."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise OSError(
                f"the disk is full while writing {path}: free some space and run the same command again; it goes on from here."
            ) from error
        raise


def _finished(path: Path, job: dict[str, Any]) -> ActivationStore:
    check_same_job(path, read_manifest(path)["job"], job)
    (path / JOURNAL).unlink(missing_ok=True)  # a kill between writing the manifest and this line
    return ActivationStore.open(path)
