"""What a sparsifier is."""

from abc import abstractmethod

from vsae.code import Code
from vsae.parts import Part
from vsae.preactivations import PreActivations


class Sparsifier(Part):
    """What every sparsifier answers, besides `forward(pre) -> Code`."""

    signed: bool = False
    """Can a code be negative?"""

    entries_only: bool = False
    """Does it look at pre-activations only through their entries, and not at their parts (x, weight, bias)?"""

    @property
    def batch_dependent(self) -> bool:
        """Does a row's code depend on the other rows, in the present mode?"""
        return False

    def inference(self) -> "Sparsifier":
        """The same rule as a part that has no training state."""
        return self

    def strongest(self, pre: PreActivations, k: int) -> Code:
        """The `k` entries of each row that this rule would keep first; AuxK asks for those of dead latents."""
        return pre.top(k)

    def project_(self) -> None:
        """Back into the constraint, where its parameters have one. After the optimiser's step."""

    @abstractmethod
    def forward(self, pre: PreActivations) -> Code:
        """Which latents speak, and how loudly."""


def checked_k(k: int, n_latents: int) -> int:
    """`k`, or a sentence for the person who set it."""
    if not 1 <= k <= n_latents:
        raise ValueError(f"k is {k}, but this SAE has {n_latents} latents: choose 1 <= k <= {n_latents}.")
    return k
