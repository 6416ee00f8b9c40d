"""What the writer and the stream are fed with: all that a model says about one numbered batch of samples."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, UInt8
from torch import Tensor


@runtime_checkable
class TokenValues(Protocol):
    """Activations of one site (`modalities.Activations`)."""

    @property
    def values(self) -> Float[Tensor, "batch tokens d_model"]: ...

    @property
    def kinds(self) -> UInt8[Tensor, "batch tokens"]: ...

    @property
    def grid(self) -> tuple[int, int] | None: ...


@runtime_checkable
class BadSample(Protocol):
    """A candidate that could not be read."""

    @property
    def key(self) -> str: ...

    @property
    def path(self) -> str: ...

    @property
    def reason(self) -> str: ...


@runtime_checkable
class Chunk(Protocol):
    """Batch number `batch`, a function of that number alone: its readable samples, its bad ones, activations by site."""

    @property
    def batch(self) -> int: ...

    @property
    def samples(self) -> Sequence[Mapping[str, Any]]: ...

    @property
    def bad(self) -> Sequence[BadSample]: ...

    @property
    def activations(self) -> Mapping[str, TokenValues]: ...


MakeChunks = Callable[[int], Iterable[Chunk]]
"""Chunks from the given batch number on."""
