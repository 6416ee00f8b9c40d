"""What a recipe is that is fitted once, and what it gives; `vsae.training.once` makes a run of it."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

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
    """Different ones that were looked at."""
    origins: list[Origin] | None = None
    """Where each atom is from, if it is a row of the data."""


class Kept(NamedTuple):
    """How far a fit is."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    """As JSON."""


@runtime_checkable
class Memory(Protocol):
    """Where a long fit keeps how far it is, so that a kill costs little."""

    def recall(self) -> Kept | None:
        """What was kept last, if anything."""

    def keep(self, step: int, kept: Callable[[], Kept]) -> None:
        """Keep it if it is time to. Raises SystemExit, having kept it, when the process is to stop."""


class Forgetful:
    """Keeps nothing."""

    def recall(self) -> Kept | None:
        return None

    def keep(self, step: int, kept: Callable[[], Kept]) -> None:
        return None


FORGETFUL = Forgetful()


@runtime_checkable
class Once(Protocol):
    """What is asked of such a recipe, a frozen dataclass of options."""

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def fit(self, source: Source, config: TrainConfig, shown: Shown, memory: Memory = FORGETFUL) -> Fitted: ...
