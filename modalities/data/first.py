"""The first candidates of a dataset, as a dataset."""

from collections.abc import Sequence
from typing import Any

from modalities.data.samples import Bad, Dataset, Sample


class First:
    """The first `n` candidates of `inner`; all of them where it has no more, or n is None. Raises ValueError for n < 1."""

    def __init__(self, inner: Dataset, n: int | None) -> None:
        if n is not None and n < 1:
            raise ValueError(f"{n} samples are none: ask for 1 or more.")
        self._inner, self._n = inner, len(inner) if n is None else min(n, len(inner))

    @property
    def keys(self) -> Sequence[str]:
        return self._inner.keys[: self._n]

    def classes(self) -> tuple[str, ...]:
        return self._inner.classes()

    def __len__(self) -> int:
        return self._n

    def read(self, index: int) -> Sample | Bad:
        if not 0 <= index < self._n:
            raise IndexError(index)
        return self._inner.read(index)

    def identity(self) -> dict[str, Any]:
        whole = self._inner.identity()
        return (
            whole if self._n == len(self._inner) else whole | {"digest": f"{whole['digest']}:{self._n}", "n": self._n}
        )
