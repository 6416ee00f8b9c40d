"""Several processes extract one store: each computes every n-th batch, and the same bytes come out as from one.

    accelerate launch --multi_gpu --num_processes 2 -m vsae.cli extract ...        torchrun --nproc-per-node 2 -m vsae.cli extract ...

Where a row lies in the store is known only when all samples before it have been read. So process r computes batches start + r, start + r + n, ...
and process 0 takes them in order, from the others by gloo, on the processor: it alone writes, as if it had computed them all. What is costly,
decoding and the model, goes on in all of them at once, two batches ahead. When any of them is killed the others stop; what is on disk is a store
begun by one process, which any number of them may complete. The bits are those of one process as long as each computes with as many threads.

Why the others do not write shards of their own: a shard begins at the row where the one before it is full, and each of its rows carries the number
of its sample. Both hang on how many samples before it were bad and how many of their tokens were padding, which a process knows only of batches
that it read itself. To write apart, each would have to read and tokenise all of the data, or rows would travel between processes all the same, and
a journal of each be merged after a kill. The price is one writer: many devices that compute faster than one disk takes will wait for process 0.
"""

import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from queue import Full, Queue
from threading import Event, Thread
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vsae.activations.chunk import Chunk
from vsae.activations.shard import DTYPES
from vsae.activations.store import ActivationStore
from vsae.activations.writer import write_store
from vsae.files import digest

Item = TypeVar("Item")
AHEAD = 2
"""Batches computed before they are asked for, in each process."""

MakeShare = Callable[[int, int], Iterable[Chunk]]
"""Chunks from a batch on, of every so many-th batch."""


class Bad(NamedTuple):
    key: str
    path: str
    reason: str


class Tokens(NamedTuple):
    values: Float[Tensor, "batch tokens d_model"]
    kinds: UInt8[Tensor, "batch tokens"]
    grid: tuple[int, int] | None


class Handed(NamedTuple):
    """A chunk that another process computed."""

    batch: int
    samples: list[dict[str, Any]]
    bad: list[Bad]
    activations: dict[str, Tokens]


@dataclass(frozen=True)
class Team:
    """The processes of one launch: this one's number, how many there are, and its number on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @staticmethod
    def of_launch() -> "Team":
        """From the environment that `accelerate launch` and `torchrun` make; a team of one without them."""
        if "RANK" not in os.environ:
            return Team()
        rank, size = int(os.environ["RANK"]), int(os.environ.get("WORLD_SIZE", 1))
        return Team(rank, size, int(os.environ.get("LOCAL_RANK", rank)))


def write_together(
    path: str | Path,
    share_from: MakeShare,
    request: Mapping[str, Any],
    *,
    team: Team,
    shown: Callable[[Iterable[Chunk], int], Iterable[Chunk]] = lambda chunks, start: chunks,
    **options: Any,
) -> ActivationStore:
    """`write_store` by all processes of a team, each of which calls this with the same arguments; `path` is a folder that all of them see.

    share_from(first, step): chunks of batches first, first + step, ... shown(chunks, start): shows progress, in process 0.
    Raises what `write_store` raises, ValueError where processes disagree on the job, and OSError when another process ended early.
    """
    if team.size == 1:
        return write_store(path, lambda start: shown(share_from(start, 1), start), request, **options)
    import torch.distributed as dist

    job = digest(dict(request) | {"dtype": options.get("dtype", "bfloat16")})
    began = not dist.is_initialized()
    if began:
        dist.init_process_group("gloo", rank=team.rank, world_size=team.size)
    try:
        if team.rank:
            _deliver(share_from, job, DTYPES.get(options.get("dtype", "bfloat16")), team)
            return ActivationStore.open(path)
        return _write(Path(path), share_from, request, job, team, shown, options)
    finally:
        if began:
            dist.destroy_process_group()


def _write(
    path: Path,
    share_from: MakeShare,
    request: Mapping[str, Any],
    job: str,
    team: Team,
    shown: Callable[[Iterable[Chunk], int], Iterable[Chunk]],
    options: Mapping[str, Any],
) -> ActivationStore:
    """Process 0: compute, take what the others computed, write."""
    others, called = range(1, team.size), False

    def gathered(start: int) -> Iterator[Chunk]:
        nonlocal called
        called = True
        for rank in others:
            _send({"start": start, "job": job}, rank)
        with closing(ahead(share_from(start, team.size), AHEAD)) as own:
            ended = None
            while ended is None:
                for rank in range(team.size):
                    chunk = _receive_chunk(rank) if rank else next(own, None)
                    if chunk is None:
                        ended = rank
                        break
                    yield chunk
        for rank in others:  # the data end for all of them at once: the others are about to say so too
            if rank != ended:
                _receive_chunk(rank)

    failed = True
    try:
        store = write_store(path, lambda start: shown(gathered(start), start), request, **options)
        failed = False
    finally:
        if not (failed and called):  # in the midst of their work the others notice that this process ends
            for rank in others:
                _send({"start": None, "failed": failed}, rank)
    return store


def _deliver(share_from: MakeShare, job: str, dtype: torch.dtype | None, team: Team) -> None:
    """Every other process: compute batches and hand them over, until the store is finished."""
    order, _ = _receive(0)
    if order["start"] is not None:
        try:
            if order["job"] != job:
                raise ValueError("it reads other data or another model than process 0: start all with one command.")
            with closing(ahead(share_from(order["start"] + team.rank, team.size), AHEAD)) as chunks:
                for chunk in chunks:
                    _send_chunk(chunk, dtype)
        except (ValueError, OSError) as error:
            _send({"error": str(error)}, 0)
            raise
        _send({"end": True}, 0)
        order, _ = _receive(0)
    if order["failed"]:
        raise OSError("process 0 could not write the store: its own message says why.")


def _send_chunk(chunk: Chunk, dtype: torch.dtype | None) -> None:
    tensors, sites = [], {}
    for site, tokens in chunk.activations.items():
        values = _narrowed(tokens.values.detach().cpu(), dtype).contiguous()
        tensors += [values, tokens.kinds.cpu().contiguous()]
        sites[site] = {
            "shape": list(values.shape),
            "dtype": str(values.dtype).removeprefix("torch."),
            "grid": tokens.grid,
        }
    bad = [[bad.key, bad.path, bad.reason] for bad in chunk.bad]
    _send(
        {"batch": chunk.batch, "samples": [dict(row) for row in chunk.samples], "bad": bad, "sites": sites}, 0, tensors
    )


def _narrowed(values: Tensor, dtype: torch.dtype | None) -> Tensor:
    """In the dtype of the store, which is less to send; as they are where that would hide what is wrong with them."""
    narrow = values if dtype is None or dtype.itemsize >= values.dtype.itemsize else values.to(dtype)
    return narrow if torch.isfinite(narrow).all() else values


def _receive_chunk(rank: int) -> Handed | None:
    """The next chunk of a process; None when it has come to the end of the data."""
    header, read = _receive(rank)
    if "end" in header:
        return None
    activations = {}
    for site, layout in header["sites"].items():
        values = read(layout["shape"], getattr(torch, layout["dtype"]))
        kinds = read(layout["shape"][:2], torch.uint8)
        activations[site] = Tokens(values, kinds, tuple(layout["grid"]) if layout["grid"] else None)
    return Handed(header["batch"], header["samples"], [Bad(*bad) for bad in header["bad"]], activations)


def _send(header: dict[str, Any], rank: int, tensors: Iterable[Tensor] = ()) -> None:
    """A message: the length of its header, the header, then tensors as bytes."""
    import torch.distributed as dist

    # surrogates of file names that are no Unicode are spelled in ASCII by JSON
    text = torch.frombuffer(bytearray(json.dumps(header).encode()), dtype=torch.uint8)
    try:
        for part in (torch.tensor([len(text)]), text, *tensors):
            if part.numel():
                dist.send(part.reshape(-1).view(torch.uint8), rank)
    except RuntimeError as error:
        raise _lost(rank) from error


def _receive(rank: int) -> tuple[dict[str, Any], Callable[[list[int], torch.dtype], Tensor]]:
    """The header of the next message, and a reader of its tensors in their order. Raises ValueError for an error of the other process."""
    import torch.distributed as dist

    def read(shape: list[int], dtype: torch.dtype) -> Tensor:
        tensor = torch.empty(shape, dtype=dtype)
        if tensor.numel():
            try:
                dist.recv(tensor.view(-1).view(torch.uint8), rank)
            except RuntimeError as error:
                raise _lost(rank) from error
        return tensor

    header = json.loads(bytes(read([int(read([1], torch.int64))], torch.uint8).numpy()))
    if "error" in header:
        raise ValueError(f"process {rank}: {header['error']}")
    return header, read


def _lost(rank: int) -> OSError:
    return OSError(
        f"process {rank} ended before the store was finished: run the same command again; it goes on from here."
    )


def ahead(items: Iterable[Item], n: int) -> Generator[Item, None, None]:
    """The items, made by a thread that is at most `n` ahead. What it raises is raised here, at its item; closing stops it."""
    ready: Queue[tuple[Item | None, BaseException | None]] = Queue(n)
    stop = Event()

    def put(entry: tuple[Item | None, BaseException | None]) -> None:
        while not stop.is_set():
            try:
                return ready.put(entry, timeout=0.1)
            except Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((item, None))
                if stop.is_set():
                    break
            end: BaseException = StopIteration()
        except BaseException as error:
            end = error
        finally:
            if hasattr(items, "close"):
                items.close()
        put((None, end))

    thread = Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
