"""Pre-activations: one number u for every row and latent, asked for by entries, so that [batch, n_latents] need never be built.

Affine      u = x W^T + b
Dense       u itself, where an encoder cannot do without it (noise on every entry, say)

A sparsifier takes the entries it needs; gradients flow through those, and only through those.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from vsae import ops
from vsae.code import Code
from vsae.ops.largest import Magnitudes
from vsae.ops.rescored import Trust


class PreActivations(ABC):
    """What a sparsifier may ask. A kind that cannot answer a question says so in a sentence, as TypeError."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(batch, n_latents)"""

    def top(self, k: int) -> Code:
        """The k largest of each row, negative ones set to 0."""
        raise TypeError(f"this encoder's {type(self).__name__} cannot say which {k} pre-activations are largest.")

    def above(self, threshold: Float[Tensor, "..."]) -> Code:
        """All entries greater than `threshold`: a scalar, or one a latent."""
        raise TypeError(f"this encoder's {type(self).__name__} knows no threshold: choose a top-k sparsifier.")

    def pick(self, choose: Callable[[Tensor], Tensor]) -> Code:
        """Entries at the indices [rows, k] that `choose` returns for some rows' u [rows, n_latents]. The sign is kept."""
        raise TypeError(f"this encoder's {type(self).__name__} cannot be picked from: choose a top-k sparsifier.")

    def at(
        self, indices: Int[Tensor, "batch k"], values: Float[Tensor, "batch k"] | None = None
    ) -> Float[Tensor, "batch k"]:
        """Entries at given indices; `values` are the same numbers, where known."""
        raise TypeError(f"this encoder's {type(self).__name__} has no single entries: choose a top-k sparsifier.")

    def rows(self, which: Tensor) -> "PreActivations":
        """Of some rows only: a boolean mask [batch] or indices."""
        raise TypeError(f"this encoder's {type(self).__name__} cannot be cut by rows: choose a top-k sparsifier.")

    def latents(self, which: Int[Tensor, "some"]) -> "PreActivations":
        """Of some latents only; indices in its codes count within `which`."""
        raise TypeError(f"this encoder's {type(self).__name__} cannot be cut by latents: switch AuxK off.")


@dataclass(frozen=True)
class Affine(PreActivations):
    """u = x W^T + b, computed where it is asked for; gradients reach x, weight and bias."""

    x: Float[Tensor, "batch d_model"]
    weight: Float[Tensor, "n_latents d_model"]
    bias: Float[Tensor, "n_latents"]
    trust: Trust | None = None
    """In training, whether the largest may be looked for at low precision."""

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.x), len(self.weight)

    def top(self, k: int) -> Code:
        if self.trust and (code := self.trust.select(self.x, self.weight, self.bias, k)):
            return code
        return ops.encode_topk(self.x, self.weight, self.bias, k)

    def above(self, threshold: Float[Tensor, "..."]) -> Code:
        return ops.encode_above(self.x, self.weight, self.bias, threshold)

    def pick(self, choose: Callable[[Tensor], Tensor]) -> Code:
        code = None
        if isinstance(choose, Magnitudes) and self.trust:
            code = self.trust.select(self.x, self.weight, self.bias, choose.k, signed=True)
        return code or ops.pick(self.x, self.weight, self.bias, choose)

    def at(
        self, indices: Int[Tensor, "batch k"], values: Float[Tensor, "batch k"] | None = None
    ) -> Float[Tensor, "batch k"]:
        return ops.entries(self.x, self.weight, self.bias, indices, values)

    def rows(self, which: Tensor) -> "Affine":
        return Affine(self.x[which], self.weight, self.bias, self.trust)

    def latents(self, which: Int[Tensor, "some"]) -> "Affine":
        return Affine(self.x, self.weight.index_select(0, which), self.bias.index_select(0, which))


@dataclass(frozen=True)
class Dense(PreActivations):
    """u given in full."""

    u: Float[Tensor, "batch n_latents"]

    @property
    def shape(self) -> tuple[int, int]:
        return self.u.shape[0], self.u.shape[1]

    def top(self, k: int) -> Code:
        values, indices = self.u.topk(k, sorted=False)
        return Code(values.relu(), indices)

    def above(self, threshold: Float[Tensor, "..."]) -> Code:
        return Code.full(self.u * (self.u > threshold))

    def pick(self, choose: Callable[[Tensor], Tensor]) -> Code:
        indices = choose(self.u.detach())
        return Code(self.u.gather(1, indices), indices)

    def at(
        self, indices: Int[Tensor, "batch k"], values: Float[Tensor, "batch k"] | None = None
    ) -> Float[Tensor, "batch k"]:
        return self.u.gather(1, indices)

    def rows(self, which: Tensor) -> "Dense":
        return Dense(self.u[which])

    def latents(self, which: Int[Tensor, "some"]) -> "Dense":
        return Dense(self.u.index_select(1, which))
