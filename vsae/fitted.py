"""What a recipe is that is fitted once, and what it gives; `vsae.training.once` makes a run of it."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from vsae.activations import Source
from vsae.activations.source import Batch
from vsae.sae import SAE
from vsae.tables import Origin
from vsae.training.config import TrainConfig

Shown = Callable[[Iterable[Batch], int], Iterator[Batch]]
"""Batches and their number, while progress is shown."""


class Fitted(NamedTuple):
    sae: SAE
    """On raw rows."""
    rows: int
    """That were looked at."""
    origins: list[Origin] | None = None
    """Where each atom is from, if it is a row of the data."""


@runtime_checkable
class Once(Protocol):
    """What is asked of such a recipe, a frozen dataclass of options."""

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def fit(self, source: Source, config: TrainConfig, shown: Shown) -> Fitted: ...
