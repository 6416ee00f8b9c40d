"""Write a store: batches in, shards out, and the same bytes whether or not the writer was killed on the way.

Batches are a function of their number, and every file a function of the batches. The journal remembers which shards are on disk and at which row
of which batch the next one begins; after a kill the model runs again from the earliest such batch, and rows already on disk are dropped.
Memory: a shard's buffer a site, and two shards on their way to disk.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vsae.activations.chunk import Chunk, MakeChunks
from vsae.activations.finish import finish
from vsae.activations.journal import Journal
from vsae.activations.manifest import JOURNAL, MANIFEST, part_name, read_manifest, site_folder, strays
from vsae.activations.shard import DTYPES
from vsae.activations.site_writer import SiteWriter, default_rows, layout_of, rows_of, store_shard
from vsae.activations.store import ActivationStore
from vsae.files import FULL, digest

ENOUGH_CANDIDATES = 100
"""The share of bad samples is judged from this many candidates on, and at the end."""

FIELDS = ("key", "path", "caption", "label", "width", "height")


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
    path = Path(path)
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known: choose from {', '.join(DTYPES)}.")
    if rows_per_shard is not None and rows_per_shard < 1:
        raise ValueError(f"rows_per_shard is {rows_per_shard}, but a shard holds at least one row.")
    job = json.loads(
        json.dumps(
            {
                "request": request,
                "kind_names": list(kind_names),
                "dtype": dtype,
                "rows_per_shard": rows_per_shard,
                "keep_pad": keep_pad,
            },
            allow_nan=False,
        )
    )
    try:
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
            _Writer(path, job, journal, max_bad_share, progress).run(chunks_from)
            return ActivationStore.open(path)
        finally:
            journal.close()
    except OSError as error:
        if error.errno in FULL:
            raise OSError(
                f"the disk is full while writing {path}: free some space and run the same command again; it goes on from here."
            ) from error
        raise


def _finished(path: Path, job: dict[str, Any]) -> ActivationStore:
    _check_same_job(path, read_manifest(path)["job"], job)
    (path / JOURNAL).unlink(missing_ok=True)  # a kill between writing the manifest and this line
    return ActivationStore.open(path)


def _check_same_job(path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    flat = [{**job, **job["request"], "request": None} for job in (theirs, ours)]
    if differing := sorted(name for name in flat[0] | flat[1] if flat[0].get(name) != flat[1].get(name)):
        raise ValueError(
            f"{path} holds activations of another job ({', '.join(differing)} differ): choose another folder, or delete this one to extract again."
        )


@dataclass(frozen=True)
class _Seen:
    """Good and bad samples up to and with a batch, and the digest of its journal line, which it must repeat."""

    good: int = 0
    bad: int = 0
    line: str = ""

    def then(self, entry: dict[str, Any]) -> "_Seen":
        return _Seen(self.good + len(entry["samples"]), self.bad + len(entry["bad"]), digest(entry))

    @property
    def candidates(self) -> int:
        return self.good + self.bad


@dataclass
class _Writer:
    path: Path
    job: dict[str, Any]
    journal: Journal
    max_bad_share: float
    progress: Callable[[int, int], None] | None
    seen: list[_Seen] = field(default_factory=lambda: [_Seen()])  # seen[b]: before batch b
    done: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    writers: dict[str, SiteWriter] = field(default_factory=dict)
    pending: list[Future[None]] = field(default_factory=list)

    def run(self, chunks_from: MakeChunks) -> None:
        self._recall()
        end = start = min((shards[-1]["next"][0] if shards else 0 for shards in self.done.values()), default=0)
        # one thread, so that shards enter the journal in order; the model runs on while a shard is hashed, written and synced
        with ThreadPoolExecutor(1, "vsae-writer") as pool:
            for chunk in chunks_from(start):
                self._take(end, chunk, pool)
                end += 1
                if self.progress:
                    self.progress(self.seen[end].candidates, self.seen[end].bad)
            self._check_end(end)
            for writer in self.writers.values():
                if writer.filled:
                    self._submit(pool, *writer.cut((end, 0)))
            self._wait(0)
        finish(self.path, self.job, self.journal)

    def _recall(self) -> None:
        """Read the journal of an earlier run, or begin one."""
        entries = iter(self.journal)
        first = next(entries, None)
        if first is None:
            self.journal.append({"job": self.job}, sync=True)
            return
        _check_same_job(self.path, first["job"], self.job)
        for entry in entries:
            if "batch" in entry:
                self.seen.append(self.seen[-1].then(entry))
                for site in entry["sites"]:
                    self.done.setdefault(site, [])
            elif self._intact(entry) and entry["part"] == len(self.done[entry["site"]]):
                self.done[entry["site"]].append(entry)

    def _intact(self, shard: dict[str, Any]) -> bool:
        file = self.path / site_folder(shard["site"]) / part_name(shard["part"])
        return file.is_file() and file.stat().st_size == shard["bytes"]

    def _take(self, number: int, chunk: Chunk, pool: ThreadPoolExecutor) -> None:
        if chunk.batch != number:
            raise ValueError(
                f"batch {chunk.batch} came where batch {number} was due: batches must come in order, without gaps."
            )
        pad = (
            self.job["kind_names"].index("pad")
            if "pad" in self.job["kind_names"] and not self.job["keep_pad"]
            else None
        )
        first = self.seen[number].good
        samples = [_sample_row(row) for row in chunk.samples]
        keys = [row["key"] for row in samples]
        index = torch.arange(first, first + len(samples))
        rows = {
            site: rows_of(site, tokens, index, keys, DTYPES[self.job["dtype"]], pad)
            for site, tokens in (chunk.activations.items() if samples else ())
        }
        entry = {
            "batch": number,
            "samples": samples,
            "bad": [{name: _text(getattr(bad, name)) for name in ("key", "path", "reason")} for bad in chunk.bad],
            "sites": {site: layout_of(rows[site], len(samples), chunk.activations[site].grid) for site in rows},
        }
        self._note(entry)
        for site, batch in rows.items():
            self._submit_all(pool, self._writer(site, batch.values.shape[1]).add(number, batch))

    def _note(self, entry: dict[str, Any]) -> None:
        """Put a batch in the journal; one that is there already must be the same again."""
        number = entry["batch"]
        now = self.seen[number].then(entry)
        if number + 1 < len(self.seen):
            if self.seen[number + 1] != now:
                raise ValueError(
                    f"batch {number} is not what it was when {self.path} was begun: the data changed. Delete the folder and extract again."
                )
            return
        if now.candidates >= ENOUGH_CANDIDATES:
            self._check_bad(now, entry["bad"])
        self.seen.append(now)
        self.journal.append(entry)

    def _check_bad(self, seen: _Seen, examples: list[dict[str, str]]) -> None:
        if seen.bad == 0 or (seen.good > 0 and seen.bad <= self.max_bad_share * seen.candidates):
            return
        example = (
            f" The last: {examples[-1]['path'] or examples[-1]['key']} ({examples[-1]['reason']})." if examples else ""
        )
        raise ValueError(
            f"{seen.bad} of {seen.candidates} samples could not be read, more than the share of {self.max_bad_share:g} that is allowed.{example} "
            "Mend the data, or allow a larger share with --max-bad-share."
        )

    def _check_end(self, end: int) -> None:
        if end + 1 < len(self.seen):
            raise ValueError(
                f"the data ended at batch {end}, earlier than when {self.path} was begun. Delete the folder and extract again."
            )
        if self.seen[-1].candidates == 0:
            raise ValueError(f"there is nothing to write to {self.path}: the data holds no sample.")
        self._check_bad(self.seen[-1], [bad for entry in self.journal for bad in entry.get("bad", [])])

    def _writer(self, site: str, d_model: int) -> SiteWriter:
        if site not in self.writers:
            dtype = DTYPES[self.job["dtype"]]
            n_rows = self.job["rows_per_shard"] or default_rows(d_model, dtype)
            shards = self.done.setdefault(site, [])
            (self.path / site_folder(site)).mkdir(exist_ok=True)
            at = tuple(shards[-1]["next"]) if shards else (0, 0)
            self.writers[site] = SiteWriter(site, d_model, n_rows, dtype, at, len(shards))
        if self.writers[site].d_model != d_model:
            raise ValueError(
                f"{site} has {self.writers[site].d_model} dimensions in one batch and {d_model} in another: choose another site."
            )
        return self.writers[site]

    def _submit_all(self, pool: ThreadPoolExecutor, shards: list[tuple[dict[str, Any], Any]]) -> None:
        for entry, rows in shards:
            self._submit(pool, entry, rows)

    def _submit(self, pool: ThreadPoolExecutor, entry: dict[str, Any], rows: Any) -> None:
        self._wait(1)
        self.pending.append(pool.submit(lambda: self.journal.append(store_shard(self.path, entry, rows), sync=True)))

    def _wait(self, at_most: int) -> None:
        while len(self.pending) > at_most:
            self.pending.pop(0).result()


def _sample_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The six columns of a sample; file names that are not UTF-8 are spelled with backslashes."""
    text = {name: None if row.get(name) is None else _text(row[name]) for name in FIELDS[:4]}
    return text | {name: None if row.get(name) is None else int(row[name]) for name in FIELDS[4:]}


def _text(value: Any) -> str:
    return str(value).encode("utf-8", "backslashreplace").decode()
