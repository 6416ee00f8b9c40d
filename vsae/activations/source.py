"""What training eats: an endless, shuffled, resumable stream of activation rows."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int32, Int64, UInt8
from torch import Tensor

from vsae.activations.moments import Moments


class Batch(NamedTuple):
    """Rows of one site, with where each comes from."""

    values: Float[Tensor, "rows d_model"]
    """Activations in the dtype they are stored in (bfloat16 by default): convert before computing."""

    kinds: UInt8[Tensor, "rows"]
    """Token kind, an index into the source's `kind_names`."""

    samples: Int64[Tensor, "rows"]
    """Row of the sample in the store's table of samples."""

    positions: Int32[Tensor, "rows"]
    """Position of the token in its sample."""


def whole_samples(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same rows, cut between samples only: the last sample of a batch waits for the rest of it. Raises ValueError for rows out of order."""
    waiting: Batch | None = None
    for batch in batches:
        if waiting is not None:
            batch = Batch(*(torch.cat(columns) for columns in zip(waiting, batch, strict=True)))
        if not len(batch.samples):
            continue
        if bool((batch.samples.diff() < 0).any()):
            raise ValueError(
                "these rows do not come sample after sample, in the order of their samples: read them with `sequential`."
            )
        border = int(torch.searchsorted(batch.samples.contiguous(), batch.samples[-1]))
        if border:
            yield Batch(*(column[:border] for column in batch))
        waiting = Batch(*(column[border:] for column in batch))
    if waiting is not None:
        yield waiting


@runtime_checkable
class BatchIterator(Iterator[Batch], Protocol):
    def state(self) -> dict[str, Any]:
        """JSON from which `batches(..., state=...)` goes on with the batch that would have come next."""


@runtime_checkable
class Source(Protocol):
    """Shuffled activation rows of one site, from a store (`StoreSource`) or from a running model (`StreamSource`)."""

    @property
    def d_model(self) -> int: ...

    @property
    def fingerprint(self) -> dict[str, Any]: ...

    @property
    def kind_names(self) -> tuple[str, ...]: ...

    def moments(self) -> Moments:
        """Mean and second moment of the selected rows (a stream estimates them from its first pool)."""

    def sample_rows(self, n: int, seed: int) -> Float[Tensor, "n d_model"]:
        """`n` random selected rows in float32, all of them where there are fewer."""

    def batches(
        self, batch_size: int, seed: int, state: dict[str, Any] | None = None, epochs: int | None = None
    ) -> BatchIterator:
        """Each selected row exactly once an epoch, in another order every epoch; endless unless `epochs` is given."""
