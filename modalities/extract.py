"""A dataset through a model, batch by batch: what the activation store writes and a stream trains on.

Batch b is the candidates [b * batch_size, (b + 1) * batch_size) less the bad ones: a function of the data alone, so that a job that
starts at any batch gets the same bits as one that began at the first.
"""

import math
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any, NamedTuple, Protocol, runtime_checkable

from modalities.base import Activations, Batch
from modalities.data.samples import Bad, Dataset, Sample
from modalities.segments import Pool

SampleRow = dict[str, str | int | None]
"""What a store notes of a sample: key, path, caption (the first), label, width, height (pixels, upright)."""


class Chunk(NamedTuple):
    batch: int
    samples: list[SampleRow]
    """Row i belongs to row i of every activation."""
    bad: list[Bad]
    activations: dict[str, Activations]
    """By site. Empty when every candidate of the batch is bad."""


@runtime_checkable
class Reader(Protocol):
    """The two verbs of an `ActivationModel` that extraction needs. `prepare` runs in several threads at once."""

    def prepare(self, samples: Sequence[Any]) -> Batch: ...

    def activations(self, batch: Batch, sites: Sequence[str]) -> dict[str, Activations]: ...


@runtime_checkable
class Needy(Protocol):
    """A model some of whose sites need an image, and others a caption."""

    def needs(self, sites: Sequence[str]) -> dict[str, str]:
        """ "image" or "caption" -> a site that needs it."""


class Prepared(NamedTuple):
    batch: Batch | None
    rows: list[SampleRow]
    bad: list[Bad]
    samples: list[Sample]
    """Kept where tokens are pooled, for their masks."""


def stream(
    model: Reader,
    dataset: Dataset,
    sites: Sequence[str],
    batch_size: int,
    start_batch: int = 0,
    workers: int = 2,
    step: int = 1,
    pool: Pool | None = None,
) -> Generator[Chunk, None, None]:
    """Activations of the dataset from batch `start_batch` on, in order; of every `step`-th batch, where several processes share them.

    pool: one token a segment in place of all. A sample without the image or caption that one of the sites needs is bad.
    `workers` threads decode and prepare ahead of the forward pass, a batch each. At most `workers` batches of decoded images and
    `workers` + 2 prepared ones are in memory at a time (with `pool`, each with its images): with large photos, choose a smaller batch.
    What a thread raises is raised here, at its batch. Closing the generator, or an error, stops the threads.
    """
    if batch_size < 1 or workers < 1 or start_batch < 0 or step < 1:
        raise ValueError(
            f"batch_size {batch_size}, workers {workers}, start_batch {start_batch}, step {step}: choose at least 1, 1, 0 and 1."
        )
    numbers = range(start_batch, math.ceil(len(dataset) / batch_size), step)
    return _stream(model, dataset, list(sites), batch_size, numbers, workers, pool)


def _stream(
    model: Reader, dataset: Dataset, sites: list[str], batch_size: int, numbers: range, workers: int, pool: Pool | None
) -> Generator[Chunk, None, None]:
    stop = Event()
    todo = iter(numbers)
    needs = model.needs(sites) if isinstance(model, Needy) else {}
    threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    ahead: deque[tuple[int, Future[Prepared]]] = deque()

    def order() -> None:
        if (number := next(todo, None)) is not None:
            candidates = range(number * batch_size, min(len(dataset), (number + 1) * batch_size))
            ahead.append((number, threads.submit(_prepare, model, dataset, candidates, needs, pool is not None, stop)))

    try:
        for _ in range(workers + 1):
            order()
        while ahead:
            number, future = ahead.popleft()
            batch, rows, bad, samples = future.result()
            order()
            found = {} if batch is None else model.activations(batch, sites)
            if pool is not None and batch is not None:
                found = {site: pool(model, samples, batch, site, tokens) for site, tokens in found.items()}
            yield Chunk(number, rows, bad, found)
    finally:
        stop.set()
        threads.shutdown(wait=True, cancel_futures=True)


def _prepare(
    model: Reader, dataset: Dataset, candidates: range, needs: dict[str, str], keep: bool, stop: Event
) -> Prepared:
    samples: list[Sample] = []
    bad: list[Bad] = []
    for index in candidates:
        if stop.is_set():
            return Prepared(None, [], [], [])
        found = dataset.read(index)
        if isinstance(found, Sample) and (lacking := _lacking(found, needs)):
            found = Bad(found.key, found.path, lacking)
        if isinstance(found, Bad):
            bad.append(found)
        else:
            samples.append(found)
    batch = model.prepare(samples) if samples else None
    return Prepared(batch, [_row(sample) for sample in samples], bad, samples if keep else [])


def _lacking(sample: Sample, needs: dict[str, str]) -> str | None:
    has = {"image": sample.image is not None, "caption": bool(sample.captions)}
    return next((f"has no {part}, which {site} needs" for part, site in needs.items() if not has[part]), None)


def _row(sample: Sample) -> SampleRow:
    width, height = sample.image.size if sample.image is not None else (None, None)
    return {
        "key": sample.key,
        "path": sample.path,
        "caption": sample.captions[0] if sample.captions else None,
        "label": sample.label,
        "width": width,
        "height": height,
    }
