"""Rows of several sites side by side, [first | second | ...]: what paired, transcoding and multi-site dictionaries train on.

    source = JoinedSource(StoreSource(store.site("image_embedding")), StoreSource(store.site("text_embedding")))

Sites that were extracted in one pass, with as many rows each, are read by the same plan and so in the same order: nothing has to be looked up.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vsae.activations.loader import StoreSource
from vsae.activations.memory import TensorSource
from vsae.activations.moments import Moments
from vsae.activations.source import Batch, BatchIterator

Part = StoreSource | TensorSource


class JoinedSource:
    """A `Source` of rows that belong together, `columns` wide each; kinds and positions are the first one's.

    Raises ValueError where the sources have other rows: of other samples, other numbers of them, or cut into other shards.
    """

    def __init__(self, *sources: Part) -> None:
        if len(sources) < 2:
            raise ValueError(f"{len(sources)} source was given, but joining takes two or more.")
        self.sources = sources
        self.columns = tuple(source.d_model for source in sources)
        self.n_rows = sources[0].n_rows
        self.kind_names = sources[0].kind_names
        for number, source in enumerate(sources[1:], 2):
            if source.n_rows != self.n_rows:
                raise ValueError(
                    f"source {number} has {source.n_rows} rows and the first {self.n_rows}, so they do not belong together row by row: "
                    "choose token kinds of which each sample has as many at every site."
                )
            if _layout(source) != _layout(sources[0]):
                raise ValueError(
                    f"source {number} is cut into other shards or blocks than the first: extract the sites in one pass with "
                    "--rows-per-shard, and read them with the same pool."
                )

    @property
    def d_model(self) -> int:
        return sum(self.columns)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The first source's, with the names of all sites, and all fingerprints under `joined`."""
        each = [source.fingerprint for source in self.sources]
        site = "+".join(str(one["site"]) for one in each)
        return each[0] | {"site": site, "joined": each, "columns": list(self.columns)}

    def moments(self) -> Moments:
        each = [source.moments() for source in self.sources]
        mean, second = (torch.cat([getattr(one, name) for one in each]) for name in ("mean", "second"))
        return Moments(each[0].count, mean, second)

    def sample_rows(self, n: int, seed: int) -> Float[Tensor, "n d_model"]:
        """`n` random rows in float32, the same of every source."""
        return torch.cat([source.sample_rows(n, seed) for source in self.sources], 1)

    def batches(
        self, batch_size: int, seed: int, state: dict[str, Any] | None = None, epochs: int | None = None
    ) -> "JoinedBatches":
        """See `Source.batches`."""
        states = [None] * len(self.sources) if state is None else state["parts"]
        parts = zip(self.sources, states, strict=True)
        return JoinedBatches([source.batches(batch_size, seed, one, epochs) for source, one in parts])


class JoinedBatches:
    """Iterator of a `JoinedSource`."""

    def __init__(self, parts: list[BatchIterator]) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        first, *others = [next(part) for part in self.parts]
        for other in others:
            if not torch.equal(first.samples, other.samples):
                raise ValueError(
                    "the sites that are read together do not hold the same samples in the same order: extract them in one pass."
                )
        dtype = torch.promote_types(first.values.dtype, others[0].values.dtype)
        values = torch.cat([batch.values.to(dtype) for batch in (first, *others)], 1)
        return first._replace(values=values)

    def state(self) -> dict[str, Any]:
        return {"parts": [part.state() for part in self.parts]}


def _layout(source: Part) -> Any:
    """What the order of rows depends on, besides seed and epoch."""
    if isinstance(source, TensorSource):
        return "tensor"
    return source.pool_rows, source.block_rows, source.blocks.counts.tolist(), source.blocks.edges.tolist()
