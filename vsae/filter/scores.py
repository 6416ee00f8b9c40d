"""The table of scores: computed block by block, gathered with the choice of what is kept."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool

from vsae.audit_jobs import Filter
from vsae.files import write_whole
from vsae.progress import track

if TYPE_CHECKING:
    from modalities.data.subset import Units
    from vsae.activations.together import Team
    from vsae.run import Run

BLOCK = 4096
"""Samples of a block, about: a whole number of batches."""
CONCEPTS = 5
"""Latents noted behind a score."""
SCORES = "scores.parquet"


def scorer(job: Filter, run: "Run") -> Any:
    """What scores batches of the run's kind. Raises ValueError for a run of another kind, and for a method it has not."""
    from evals.pair_scores import Mixed, Pairs
    from modalities.base import KINDS

    if "pool" in run.fingerprint:
        raise ValueError(f"{run.path} was trained on pooled tokens: filtering needs tokens or embeddings as they are.")
    found = Pairs(run) if "joined" in run.fingerprint else Mixed(run, KINDS)
    if job.method is not None and job.method not in (*found.names, "length", "random"):
        raise ValueError(
            f"this run has no score '{job.method}': choose from {', '.join((*found.names, 'length', 'random'))}."
        )
    return found


def blocks(job: Filter, units: "Units") -> Iterator[tuple[int, int, int, int, Path]]:
    """(number, unit, first candidate, last, its table) of every block."""
    size, number = max(1, BLOCK // job.batch_size) * job.batch_size, 0
    for unit in range(len(units)):
        n = units.count(unit)
        for start in range(0, n, size):
            yield number, unit, start, min(n, start + size), job.out / "scores" / f"{unit:06d}-{start:09d}.parquet"
            number += 1


def missing(job: Filter, units: "Units") -> bool:
    """Whether any block has no table yet; asked by all processes before any of them writes one."""
    return any(not path.is_file() for *_, path in blocks(job, units))


def fit(job: Filter, units: "Units", scorer: Any, model: Any, team: "Team", wait: Callable[[], Any]) -> None:
    """The cross-modal weights of a token stream: fitted once, by process 0, and noted."""
    from vsae.tensors import read_tensors, write_tensors

    (job.out / "scores").mkdir(exist_ok=True)
    if not hasattr(scorer, "fit"):
        return
    note = job.out / "weights.safetensors"
    if team.rank == 0 and not note.is_file():
        scorer.fit(first(job, units, scorer, model))
        write_tensors(note, {"weights": torch.from_numpy(scorer.weights)})
    wait()
    scorer.weights = read_tensors(note)["weights"].numpy()


def score(job: Filter, units: "Units", scorer: Any, model: Any, team: "Team") -> None:
    """Compute the tables that are missing."""
    todo = [each for each in blocks(job, units) if each[0] % team.size == team.rank and not each[-1].is_file()]

    def batches() -> Iterator[int]:
        for _, unit, start, stop, path in todo:
            rows: list[dict[str, Any]] = []
            for more in scored(job, units, unit, start, stop, scorer, model):
                rows += more
                yield len(more)
            write_whole(path, partial(pq.write_table, pa.Table.from_pylist(rows, schema(scorer))))

    total = sum(-(-(stop - start) // job.batch_size) for _, _, start, stop, _ in todo)
    for _ in track(batches(), f"score batches of {job.batch_size}", total):
        pass


def scored(
    job: Filter, units: "Units", unit: int, start: int, stop: int, scorer: Any, model: Any
) -> Iterator[list[dict[str, Any]]]:
    """Rows of the table, a batch at a time, bad samples with a reason."""
    from modalities.extract import stream

    part = Part(units.open(unit), start, stop, job)
    for chunk in stream(model, part, scorer.sites, job.batch_size, workers=job.workers):
        rows = []
        for bad in chunk.bad:
            rows.append(part.row(bad.key, units.name(unit)) | {"reason": bad.reason})
        if chunk.activations:
            seen = scorer(chunk.activations)
            for at, sample in enumerate(chunk.samples):
                row = part.row(str(sample["key"]), units.name(unit))
                entries = slice(*seen.behind.indptr[at : at + 2].tolist())
                values, latents = seen.behind.data[entries], seen.behind.indices[entries]
                top = np.lexsort((latents, -values))[:CONCEPTS]
                row |= {f"score_{name}": float(seen.scores[name][at]) for name in scorer.names}
                row |= {"concepts": latents[top].tolist(), "strengths": values[top].astype(float).tolist()}
                rows.append(row)
        yield sorted(rows, key=lambda row: row["index"])


def first(job: Filter, units: "Units", scorer: Any, model: Any) -> Iterator[Any]:
    """Activations of the first samples of the data, the same in every process."""
    from modalities.extract import stream

    taken = 0
    for unit in range(len(units)):
        for chunk in stream(model, units.open(unit), scorer.sites, job.batch_size, workers=job.workers):
            if chunk.activations:
                yield chunk.activations
                taken += len(chunk.samples)
            if taken >= job.fit_samples:
                return


class Part:
    """Candidates start to stop of a unit, as a dataset that notes what else is known of those it reads."""

    def __init__(self, inner: Any, start: int, stop: int, job: Filter) -> None:
        self.inner, self.start, self.job = inner, start, job
        self.keys = list(inner.keys[start:stop])
        self.place = {key: start + at for at, key in enumerate(self.keys)}
        self.known: dict[str, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def classes(self) -> tuple[str, ...]:
        return self.inner.classes()

    def identity(self) -> dict[str, Any]:
        return self.inner.identity() | {"part": [self.start, self.start + len(self)]}

    def read(self, index: int) -> Any:
        from modalities.data import Sample

        found = self.inner.read(self.start + index)
        if isinstance(found, Sample):
            self.known[found.key] = {
                "source": worded(found.extra.get(self.job.source_field)) if self.job.source_field else None,
                "wrong": worded(found.extra.get(self.job.truth_field)),
                "told": self.job.truth_field in found.extra,
                "length": words(found),
            }
        return found

    def row(self, key: str, shard: str) -> dict[str, Any]:
        known = self.known.pop(key, {})
        if not self.job.source_field:
            known["source"] = shard
        return {
            "key": key,
            "shard": shard,
            "index": self.place[key],
            "score_random": chance(key, shard, self.job.seed),
            **known,
        }


def words(sample: Any) -> int:
    """Of its first caption, or of everything that is said in its conversation."""
    turns = sample.extra.get("conversations") or sample.extra.get("messages") or []
    said = [str(turn.get("value", turn.get("content", ""))) for turn in turns if isinstance(turn, Mapping)]
    return len((sample.captions[0] if sample.captions else " ".join(said)).split())


def worded(value: Any) -> str | None:
    return None if value in (None, False, "") else str(value).encode("utf-8", "backslashreplace").decode()[:200]


def chance(key: str, shard: str, seed: int) -> float:
    """In [0, 1), from the names alone: the same in any process."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{shard}/{key}".encode()).digest()[:8], "big") / 2**64


def schema(scorer: Any) -> pa.Schema:
    text = [(name, pa.string()) for name in ("key", "shard", "reason", "source", "wrong")]
    scores = [(f"score_{name}", pa.float64()) for name in (*scorer.names, "random")]
    lists = [("concepts", pa.list_(pa.int32())), ("strengths", pa.list_(pa.float32()))]
    return pa.schema([*text, ("index", pa.int64()), ("told", pa.bool_()), ("length", pa.int32()), *scores, *lists])


def gather(job: Filter, units: "Units", scorer: Any) -> None:
    """Choose what is kept, and write all tables as one. Memory: a few numbers a sample."""
    from evals.filtering import budgeted, length_strata

    paths = [path for *_, path in blocks(job, units)]
    method = job.method or scorer.headline
    column = "length" if method == "length" else f"score_{method}"
    narrow = pa.concat_tables([pq.read_table(path, columns=[column, "length", "source", "reason"]) for path in paths])
    good = pc.is_null(narrow["reason"]).to_numpy(zero_copy_only=False)
    if not good.any():
        raise ValueError(f"no sample of {job.data} can be scored; the first: {narrow['reason'][0].as_py()}.")
    value = narrow[column].cast(pa.float64()).to_numpy(zero_copy_only=False)[good]
    strata = None
    if job.stratify == "length":
        strata = length_strata(narrow["length"].cast(pa.float64()).to_numpy(zero_copy_only=False)[good])
    elif job.stratify == "source":
        coded = pc.fill_null(narrow["source"], "").combine_chunks().dictionary_encode()
        strata = coded.indices.to_numpy(zero_copy_only=False)[good]
    kept = np.zeros(len(good), bool)
    kept[good] = budgeted(value, job.share, job.count, job.threshold, strata)

    def join(temporary: Path) -> None:
        at = 0
        with pq.ParquetWriter(temporary, schema(scorer).append(pa.field("kept", pa.bool_()))) as out:
            for path in paths:
                table = pq.read_table(path)
                out.write_table(table.append_column("kept", pa.array(kept[at : at + len(table)])))
                at += len(table)

    write_whole(job.out / SCORES, join)


def kept_of(out: Path, shard: str) -> Bool[np.ndarray, "candidates"]:
    """Which candidates of a shard are kept."""
    table = pq.read_table(out / SCORES, columns=["index", "kept"], filters=[("shard", "=", shard)])
    kept = np.zeros(len(table), bool)
    kept[table["index"].to_numpy()] = table["kept"].to_numpy(zero_copy_only=False)
    return kept
