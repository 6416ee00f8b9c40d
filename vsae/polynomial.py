"""Polynomial dictionary: latents that speak together may mean more than their sum (PolySAE, 2602.01322).

    a = z U                                                        z [batch, n_latents], U [n_latents, R1] with U^T U = 1
    x_hat = a C1^T + l2 (a[:, :R2])^2 C2^T + l3 (a[:, :R3])^3 C3^T            C_k [d_model, R_k], l2 and l3 scalars

    atom of latent i               U_i C1^T: the linear part of its effect, and with l2 = l3 = 0 all of it
    interaction of i and j         B_ij = C2 (U_i o U_j)[:R2]; together they add 2 l2 z_i z_j B_ij beyond what either does alone, to second order
    retraction, after each step    U R = QR(U), then U <- Q with the signs that make R's diagonal positive

U starts orthogonal, C_k Kaiming, l2 = -0.5 and l3 = 0.5, as in the authors' code. The decoder is not linear in z: an atom is not a latent's whole effect,
and what assumes so (edits along atoms, attribution, absorption) does not apply.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vsae import ops
from vsae.code import Code
from vsae.dictionaries import Dictionary

TINY = 1e-8
"""A column whose part orthogonal to those before is shorter than this has no direction of its own: its sign is left as QR gives it."""


class Polynomial(Dictionary):
    """z -> polynomial of degree 3 in a = z U. Ranks are the widths of C1, C2, C3; the first is the largest and at most n_latents."""

    linear = False

    def __init__(
        self,
        U: Float[Tensor, "n_latents rank"],
        C1: Float[Tensor, "d_model rank"],
        C2: Float[Tensor, "d_model rank2"],
        C3: Float[Tensor, "d_model rank3"],
        l2: Float[Tensor, ""],
        l3: Float[Tensor, ""],
    ):
        super().__init__()
        self.U, self.C1, self.C2, self.C3, self.l2, self.l3 = (
            nn.Parameter(tensor.detach().clone(memory_format=torch.contiguous_format))
            for tensor in (U, C1, C2, C3, l2, l3)
        )

    @staticmethod
    def start(n_latents: int, d_model: int, ranks: tuple[int, int, int], seed: int) -> "Polynomial":
        """As training begins. The same for a seed on every device. Raises ValueError for ranks that do not fit."""
        if not 1 <= max(ranks[1:]) <= ranks[0] <= n_latents or min(ranks) < 1:
            raise ValueError(
                f"ranks are {ranks} with {n_latents} latents: the first is the largest, and at most that many."
            )
        generator = torch.Generator().manual_seed(seed)
        U = retracted(torch.randn(n_latents, ranks[0], generator=generator))
        C1, C2, C3 = (torch.empty(d_model, rank) for rank in ranks)
        for each in (C1, C2, C3):
            nn.init.kaiming_normal_(each, nonlinearity="linear", generator=generator)
        return Polynomial(U, C1, C2, C3, torch.tensor(-0.5), torch.tensor(0.5))

    def forward(self) -> Float[Tensor, "n_latents d_model"]:
        """Linear parts: U C1^T."""
        return self.U @ self.C1.T

    def decode(self, code: Code) -> Float[Tensor, "batch d_model"]:
        a = ops.decode(code, self.U)
        second, third = a[:, : self.C2.shape[1]], a[:, : self.C3.shape[1]]
        return a @ self.C1.T + self.l2 * second.square() @ self.C2.T + self.l3 * third.pow(3) @ self.C3.T

    @property
    def n_latents(self) -> int:
        return len(self.U)

    def inference(self) -> "Polynomial":
        return self

    @torch.no_grad()
    def project_(self) -> None:
        self.U.copy_(retracted(self.U))

    @torch.no_grad()
    def interaction(self, pairs: Int[Tensor, "pairs two"]) -> Float[Tensor, "pairs"]:
        """|B_ij| of pairs of latents: compare it with how often they speak together, as the paper does."""
        rank = self.C2.shape[1]
        first, second = self.U[pairs[:, 0], :rank], self.U[pairs[:, 1], :rank]
        return torch.linalg.vector_norm((first * second) @ self.C2.T, dim=1)

    @torch.no_grad()
    def directions(self) -> Float[Tensor, "n_latents d_model"]:
        """Linear parts at unit length, the paper's `get_decoder_directions`."""
        return F.normalize(self(), dim=1)

    def extra_repr(self) -> str:
        ranks: list[Any] = [each.shape[1] for each in (self.C1, self.C2, self.C3)]
        return f"n_latents={len(self.U)}, ranks={ranks}"


def retracted(U: Float[Tensor, "n_latents rank"]) -> Float[Tensor, "n_latents rank"]:
    """The orthonormal factor of U = Q R with R's diagonal positive: U itself where it is orthonormal already."""
    Q, R = torch.linalg.qr(U)
    diagonal = R.diagonal()
    return Q * torch.where(diagonal.abs() > TINY, diagonal.sign(), 1)
