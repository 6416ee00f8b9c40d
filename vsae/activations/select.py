"""Which rows of a store are read: some token kinds, of a share of the samples, after the first tokens of each where they are left out.

A sample belongs to a part by a hash of its key alone, so that train and validation never share one, whatever is added, removed or reordered.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

Part = tuple[float | int, float | int]


@dataclass(frozen=True)
class Select:
    """Rows of the named token kinds (None: all but padding), of the samples whose `shares_of([key])` lies in [part[0], part[1]).

    skip: leaves out the first so many tokens of every sample, of whatever kind: positions below it. The first token of a language model's context
    has a norm that takes over a dictionary (its attention sink), whether it is a mark (kind special) or a word.
    """

    kinds: tuple[str, ...] | None = None
    part: Part = (0.0, 1.0)
    skip: int = 0

    def __post_init__(self) -> None:
        low, high = self.part
        if not 0 <= low < high <= 1:
            raise ValueError(
                f"part is {low} to {high}, but a part runs from low to high within 0 to 1, like 0 to 0.95."
            )
        if self.kinds is not None and not self.kinds:
            raise ValueError(
                "kinds is empty, so no row is selected: name at least one token kind, or leave it out for all."
            )
        if self.skip < 0:
            raise ValueError(f"skip is {self.skip}, but it counts tokens that are left out: choose 0 or more.")

    def describe(self) -> dict[str, Any]:
        """JSON, for fingerprints."""
        told = {"kinds": list(self.kinds) if self.kinds else None, "part": [float(edge) for edge in self.part]}
        return told | ({"skip": self.skip} if self.skip else {})

    def kind_mask(self, kind_names: Sequence[str]) -> Bool[np.ndarray, "kinds"]:
        """True for each selected kind. Raises ValueError for a kind the store does not know."""
        if self.kinds is None:
            return np.array([name != "pad" for name in kind_names], bool)
        if unknown := sorted(set(self.kinds) - set(kind_names)):
            raise ValueError(f"token kind {unknown[0]!r} does not exist: choose from {', '.join(kind_names)}.")
        return np.array([name in self.kinds for name in kind_names], bool)

    def sample_mask(self, keys: Iterable[str]) -> Bool[np.ndarray, "samples"]:
        """True for each sample of the part."""
        shares = shares_of(keys)
        return (shares >= self.part[0]) & (shares < self.part[1])


def shares_of(keys: Iterable[str]) -> Float[np.ndarray, "samples"]:
    """A number in [0, 1) for each key: the first 53 bits of its sha256, so equal everywhere and for ever."""
    digests = [hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8] for key in keys]
    return (np.frombuffer(b"".join(digests), ">u8") >> np.uint64(11)).astype(np.float64) / 2**53
