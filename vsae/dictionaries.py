"""Dictionaries: the atoms that a code adds up, one row a latent.

A dictionary is called without arguments and returns its atoms, [n_latents, d_model], with gradients. Reading never changes anything: constraints are
met by two explicit steps, `project_gradients_` before the optimiser's step and `project_` after it.
"""

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vsae import ops
from vsae.code import Code
from vsae.ops.pieces import row_pieces
from vsae.parts import Part


class Dictionary(Part):
    """What every dictionary answers, besides `forward() -> atoms`."""

    linear: bool = True
    """Is what it decodes the code's weighted sum of atoms?"""

    modalities: int = 1
    """How many modalities it decodes to at once."""

    def decode(self, code: Code) -> Float[Tensor, "batch d_model"]:
        """The rows that codes stand for, without b_dec."""
        return ops.decode(code, self())

    def inference(self) -> "Dictionary":
        """The same without constraint and training state."""
        return Free(self(), unit_norm=False)

    @property
    def n_latents(self) -> int:
        return len(self())

    @property
    def n_here(self) -> int:
        """Of them, those that this process holds; all, unless the dictionary is divided (vsae.sharded)."""
        return self.n_latents

    def everywhere(self, here: Int[Tensor, "_"]) -> Int[Tensor, "_"]:
        """Latents as this process numbers them -> as all do."""
        return here

    def decode_some(self, code: Code, latents: Int[Tensor, "some"]) -> Float[Tensor, "batch d_model"]:
        """The weighted sums of some latents' atoms; the code's indices count within `latents`."""
        return ops.decode(code, self().index_select(0, latents))

    def folded(self, scale: Float[Tensor, "d_model"]) -> "Dictionary":
        """The atoms times `scale`, without constraint and training state, where they are all there is to decoding."""
        return Free(self() * scale, unit_norm=False)

    def rates(self) -> dict[str, float]:
        """Parameters, by name, that learn at another rate than the rest: what theirs is multiplied by."""
        return {}

    @abstractmethod
    def forward(self) -> Float[Tensor, "n_latents d_model"]:
        """The atoms, with gradients."""

    def project_gradients_(self) -> None:
        """Remove what the projection would undo. Before the optimiser's step, after backward."""

    def project_(self) -> None:
        """Back into the constraint. After the optimiser's step."""


class Free(Dictionary):
    """Atoms as free parameters; with `unit_norm`, on the unit sphere.

    The gradient's part along an atom only changes its norm, which the projection undoes; left in, it would still move Adam's moments.
    """

    def __init__(self, weight: Float[Tensor, "n_latents d_model"], unit_norm: bool = True):
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
        self.unit_norm = unit_norm
        self.project_()

    def forward(self) -> Float[Tensor, "n_latents d_model"]:
        return self.weight

    @torch.no_grad()
    def project_gradients_(self) -> None:
        if self.unit_norm and self.weight.grad is not None:
            for atoms, grad in row_pieces(self.weight, self.weight.grad):
                grad.addcmul_(atoms, torch.linalg.vecdot(grad, atoms)[:, None], value=-1)

    @torch.no_grad()
    def project_(self) -> None:
        if self.unit_norm:
            norms = torch.linalg.vector_norm(self.weight, dim=1, keepdim=True)
            self.weight.div_(norms.clamp_min(torch.finfo(norms.dtype).tiny))

    def options(self) -> dict[str, Any]:
        return {"unit_norm": self.unit_norm}
