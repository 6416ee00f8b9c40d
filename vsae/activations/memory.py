"""Rows that are in memory already: for activations of your own, and for trying things out."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vsae.activations.moments import Moments, Sums
from vsae.activations.source import Batch


class TensorSource:
    """A `Source` of the rows of one CPU tensor, each once an epoch, in another order every epoch. The last batch of an epoch may be short."""

    def __init__(self, rows: Float[Tensor, "rows d_model"], fingerprint: dict[str, Any] | None = None) -> None:
        self.rows = rows.contiguous()
        self.kind_names = ("patch",)
        self.given = fingerprint or {}

    @property
    def d_model(self) -> int:
        return self.rows.shape[1]

    @property
    def n_rows(self) -> int:
        return len(self.rows)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What was given, and the sha256 of the rows."""
        content = hashlib.sha256(self.rows.view(torch.uint8).numpy().data).hexdigest()
        return {"model": {}, "site": None, "side": "output", "preprocessing": {}} | self.given | {"store": content}

    def moments(self) -> Moments:
        return Sums.of(self.rows).moments()

    def sample_rows(self, n: int, seed: int) -> Float[Tensor, "n d_model"]:
        return self.rows[self.order(seed, 0)[:n]].float()

    def order(self, seed: int, epoch: int) -> Tensor:
        """The permutation of an epoch; epoch 0 is kept for samples."""
        mixed = int.from_bytes(hashlib.sha256(f"{seed} {epoch}".encode()).digest()[:7])
        return torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(mixed))

    def batches(
        self, batch_size: int, seed: int, state: dict[str, Any] | None = None, epochs: int | None = None
    ) -> "TensorBatches":
        return TensorBatches(self, batch_size, seed, epochs, **(state or {}))


class TensorBatches:
    """Iterator of a `TensorSource`."""

    def __init__(
        self, source: TensorSource, batch_size: int, seed: int, epochs: int | None, epoch: int = 0, start: int = 0
    ) -> None:
        self.source, self.batch_size, self.seed, self.epochs = source, batch_size, seed, epochs
        self.epoch, self.start = epoch, start
        self.order = source.order(seed, epoch + 1)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self.start >= len(self.order):
            self.epoch, self.start = self.epoch + 1, 0
            self.order = self.source.order(self.seed, self.epoch + 1)
        if len(self.order) == 0 or (self.epochs is not None and self.epoch >= self.epochs):
            raise StopIteration
        rows = self.order[self.start : self.start + self.batch_size]
        self.start += len(rows)
        zeros = torch.zeros(len(rows), dtype=torch.uint8)
        return Batch(self.source.rows[rows], zeros, rows, zeros.int())

    def state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "start": self.start}
