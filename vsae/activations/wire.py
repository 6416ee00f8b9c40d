"""What the processes of one launch say to each other, by gloo, on the processor.

Every send waits for its receiver, so the processes must agree on the order of all messages. Who fails says so on a board that all can read (the
store by which the processes found each other) before it ends; the others notice the end at their next message, and say what the board says.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from vsae.activations.source import Batch

FAILURE = "vsae/failure"
PATIENCE = timedelta(seconds=10)
"""With the board, when its keeper may have ended."""


class Elsewhere(OSError):
    """Another process of the team failed or ended."""


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

    @property
    def others(self) -> list[int]:
        return [rank for rank in range(self.size) if rank != self.rank]


@contextmanager
def connected(team: Team) -> Iterator[None]:
    """Messages are possible within this. An error that leaves it is told to the others."""
    import torch.distributed as dist

    began = not dist.is_initialized()
    if began:
        dist.init_process_group("gloo", rank=team.rank, world_size=team.size)
    try:
        yield
    except Exception as error:
        _post(str(error) if isinstance(error, Elsewhere) else f"process {team.rank}: {error}")
        raise
    finally:
        if began:
            dist.destroy_process_group()


def send(message: dict[str, Any], rank: int) -> None:
    """JSON: its length, then itself."""
    # surrogates of file names that are no Unicode are spelled in ASCII by JSON
    text = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
    _send(torch.tensor([len(text)]), rank)
    _send(text, rank)


def receive(rank: int) -> dict[str, Any]:
    length = torch.empty(1, dtype=torch.int64)
    _receive(length, rank)
    text = torch.empty(int(length), dtype=torch.uint8)
    _receive(text, rank)
    return dict(json.loads(bytes(text.numpy())))


def send_rows(rows: Batch, rank: int) -> None:
    for column in rows:
        _send(column.contiguous(), rank)


def receive_rows(slots: Batch, rank: int) -> None:
    """Into memory of the rows' number and dtypes."""
    for column in slots:
        _receive(column, rank)


def _send(tensor: Tensor, rank: int) -> None:
    import torch.distributed as dist

    if tensor.numel():
        with _noticing(rank):
            dist.send(tensor.view(-1).view(torch.uint8), rank)


def _receive(tensor: Tensor, rank: int) -> None:
    import torch.distributed as dist

    if tensor.numel():
        with _noticing(rank):
            dist.recv(tensor.view(-1).view(torch.uint8), rank)


@contextmanager
def _noticing(rank: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise Elsewhere(
            _posted(rank)
            or f"process {rank} ended before the store was finished: run the same command again; it goes on from here."
        ) from error


def _post(text: str) -> None:
    """Put a failure on the board, unless another came first or nobody keeps it any more."""
    from torch.distributed.distributed_c10d import _get_default_store

    try:
        board = _get_default_store()
        board.set_timeout(PATIENCE)
        board.compare_set(FAILURE, "", text)
    except RuntimeError:
        pass


def _posted(ended: int) -> str | None:
    """What the board says, now that a process has ended."""
    from torch.distributed.distributed_c10d import _get_default_store

    if ended == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None  # it kept the board itself
    try:
        board = _get_default_store()
        board.set_timeout(PATIENCE)
        return bytes(board.get(FAILURE)).decode() if board.check([FAILURE]) else None
    except RuntimeError:
        return None
