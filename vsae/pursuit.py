"""Pursuit: encoders that choose atoms one after the other, each by what the ones before it left over. They own their selection: `TopK(k)` is k steps.

With r = x at first (centred), v_j = D_j / |D_j|, and one step

    j = argmax_j <r, v_j>       the largest positive one; the largest |<r, v_j>| where codes are signed
    MP     r <- r - <r, v_j> v_j                                              2506.03093 (MP-SAE), which has unit atoms and takes no absolute value
    OMP    r <- r - <r, q> q,   q = v_j's part orthogonal to all atoms chosen, unit norm        Pati et al. 1993

No norm |r| ever rises, and as many steps may be taken as one likes, in training and after it. The choice is made without gradients. With the chosen
atoms G [k, d_model] of a row and K = G G^T, its coefficients are then the solution of one small system, through which gradients reach x and the atoms:

    MP     tril(K) c = G x      line t says  |D_t|^2 c_t = <D_t, x - sum over s < t of c_s D_s>
    OMP         K  c = G x      least squares on the support

so memory is O(batch * k * d_model) beside the chunks of the choice. A row of which nothing but rounding is left takes no more atoms: slots stay empty.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vsae import ops
from vsae.code import Code
from vsae.dictionaries import Dictionary
from vsae.encoders import Encoder
from vsae.preactivations import PreActivations

ROUNDING = 64
"""In units of the machine epsilon: a step that explains no more of |x| than this explains nothing."""


class MatchingPursuit(Encoder):
    """Atoms one by one, each with the residual's projection on it (MP-SAE, 2506.03093). Tied to the dictionary; an atom may be chosen again.

    `signed` lets atoms be subtracted, too, as ITDA does (2505.17769); the paper's form adds only.
    """

    def __init__(self, signed: bool = False):
        super().__init__()
        self.signed = signed

    def forward(self, x: Float[Tensor, "batch d_model"], dictionary: Dictionary) -> "Pursuit":
        return Pursuit(x, dictionary(), self.signed, orthogonal=False)

    def options(self) -> dict[str, Any]:
        return {"signed": self.signed}


class OrthogonalMatchingPursuit(Encoder):
    """The same with the coefficients of all chosen atoms fitted again at each step, by least squares. Codes are signed."""

    signed = True

    def forward(self, x: Float[Tensor, "batch d_model"], dictionary: Dictionary) -> "Pursuit":
        return Pursuit(x, dictionary(), signed=True, orthogonal=True)


@dataclass(frozen=True)
class Pursuit(PreActivations):
    """Rows waiting to be explained: `top(k)` takes k steps. An atom chosen twice has one slot with the sum, and an empty one."""

    x: Float[Tensor, "batch d_model"]
    atoms: Float[Tensor, "n_latents d_model"]
    signed: bool
    orthogonal: bool

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.x), len(self.atoms)

    def top(self, k: int) -> Code:
        indices, taken = self.choose(k)
        with torch.autocast(self.x.device.type, enabled=False):
            chosen, x = F.embedding(indices, self.atoms), self.x[:, :, None]
            if self.orthogonal:  # atoms may be almost dependent, and K squares that
                chosen, x = chosen.double(), x.double()
            eye = torch.eye(k, dtype=chosen.dtype, device=chosen.device)
            gram = torch.where(taken[:, :, None] & taken[:, None], chosen @ chosen.mT, eye)
            right = (chosen @ x) * taken[:, :, None]
            if self.orthogonal:
                values = torch.linalg.solve_ex(gram, right).result
            else:
                values = torch.linalg.solve_triangular(gram.tril(), right, upper=False)
        return merged(values[:, :, 0].to(self.x.dtype), indices)

    @torch.no_grad()
    def choose(self, k: int) -> tuple[Int[Tensor, "batch k"], Bool[Tensor, "batch k"]]:
        """The atom of each step, and whether it was taken: there must have been something left for it to explain."""
        unit = F.normalize(self.atoms, dim=1, eps=torch.finfo(self.atoms.dtype).tiny)
        bias, left = unit.new_zeros(len(unit)), self.x.clone()
        epsilon = torch.finfo(self.x.dtype).eps
        least = ROUNDING * epsilon * torch.linalg.vector_norm(self.x, dim=1)
        basis = self.x.new_zeros(len(self.x), k, self.x.shape[1])
        indices = torch.zeros(len(self.x), k, dtype=torch.int64, device=self.x.device)
        taken = torch.zeros_like(indices, dtype=torch.bool)
        for step in range(k):
            best = ops.pick(left, unit, bias, self.largest)
            indices[:, step] = best.indices[:, 0]
            size = best.values[:, 0].abs() if self.signed else best.values[:, 0]
            taken[:, step] = size > least
            direction = unit[indices[:, step]]
            if self.orthogonal:
                for _ in range(2):  # once is not enough in floating point
                    along = torch.einsum("btd,bd->bt", basis[:, :step], direction)
                    direction = direction - torch.einsum("btd,bt->bd", basis[:, :step], along)
                norm = torch.linalg.vector_norm(direction, dim=1)
                taken[:, step] &= norm > epsilon**0.5
                direction = direction / norm.clamp_min(epsilon)[:, None]
                basis[:, step] = direction * taken[:, step, None]
            left -= (torch.linalg.vecdot(left, direction) * taken[:, step])[:, None] * direction
        return indices, taken

    def largest(self, u: Float[Tensor, "rows n_latents"]) -> Int[Tensor, "rows 1"]:
        return (u.abs() if self.signed else u).argmax(1, keepdim=True)

    def rows(self, which: Tensor) -> "Pursuit":
        return Pursuit(self.x[which], self.atoms, self.signed, self.orthogonal)

    def latents(self, which: Int[Tensor, "some"]) -> "Pursuit":
        return Pursuit(self.x, self.atoms.index_select(0, which), self.signed, self.orthogonal)


def merged(values: Float[Tensor, "batch k"], indices: Int[Tensor, "batch k"]) -> Code:
    """A code in which every latent has one slot: repetitions are added to the first, and left empty."""
    first = (indices[:, :, None] == indices[:, None]).int().argmax(2)
    return Code(torch.zeros_like(values).scatter_add(1, first, values), indices)
