"""Gradient SAE: latents are chosen by what they do to the model's output as well as by how large they are (g-SAE, 2411.10397; spec A4). Rows are [x | g].

    s = max(u, 0) (1 + beta |D g|)       g = dL / dx at the site, for a scalar L (modalities.gradients)
    z = u at the k largest s, 0 elsewhere            x_hat = z D + b_dec; the values stay those of TopK, and so does the loss

After training g may be left out: rows [x] are encoded as TopK does (beta = 0). We know the paper from a summary: beta is not given there. Ours: x and g are
each divided by their root mean square over the data, so that beta means the same at every site, and a beta of 1 doubles the score of a latent of common effect.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vsae.code import Code
from vsae.dictionaries import Free
from vsae.preactivations import Affine, PreActivations
from vsae.sae import SAE, Ends
from vsae.sparsifiers import Sparsifier, TopK, checked_k

ENTRIES = 1 << 24
"""Scores held at a time."""


@dataclass(frozen=True)
class Effective(PreActivations):
    """Pre-activations `inner`, and what each latent does to L for a unit of its activation: g D^T."""

    inner: Affine
    g: Float[Tensor, "batch d_model"]
    atoms: Float[Tensor, "n_latents d_model"]

    @property
    def shape(self) -> tuple[int, int]:
        return self.inner.shape

    def top(self, k: int) -> Code:
        return self.inner.top(k)

    def latents(self, which: Int[Tensor, "some"]) -> Affine:
        return self.inner.latents(which)

    @torch.no_grad()
    def chosen(self, k: int, beta: float) -> Int[Tensor, "batch k"]:
        """The k largest scores of each row; the graph is not theirs."""
        inner, found = self.inner, []
        with torch.autocast(self.g.device.type, enabled=False):
            for some in torch.arange(len(self.g)).split(max(1, ENTRIES // self.shape[1])):
                u = torch.nn.functional.linear(inner.x[some], inner.weight, inner.bias).relu_()
                found.append((u * (1 + beta * (self.g[some] @ self.atoms.T).abs())).topk(k, sorted=False).indices)
        return torch.cat(found)


class GradientTopK(Sparsifier):
    """The `k` positive pre-activations of each row with the largest scores; without gradients, the k largest."""

    def __init__(self, k: int, beta: float):
        super().__init__()
        self.k, self.beta = k, beta

    def forward(self, pre: PreActivations) -> Code:
        k = checked_k(self.k, pre.shape[1])
        if not isinstance(pre, Effective):
            return pre.top(k)
        indices = pre.chosen(k, self.beta)
        return Code(pre.inner.at(indices).relu(), indices)

    def options(self) -> dict[str, Any]:
        return {"k": self.k, "beta": self.beta}


class GradientSAE(SAE):
    """An SAE that may be given [x | g], 2 d_model wide, in place of x. Atoms and x_hat are those of x."""

    def ends(self, rows: Float[Tensor, "batch columns"]) -> Ends:
        return Ends(rows, rows[:, : self.d_model])

    def preactivations(self, x: Float[Tensor, "batch columns"]) -> PreActivations:
        """Raises ValueError for rows of another width."""
        d = self.d_model
        if x.shape[1] not in (d, 2 * d):
            raise ValueError(
                f"rows are {x.shape[1]} wide: a gradient SAE reads [x] of {d} or [x | gradient] of {2 * d}."
            )
        pre = super().preactivations(x[:, :d])
        if x.shape[1] == d:
            return pre
        assert isinstance(pre, Affine)
        return Effective(pre, x[:, d:].to(self.b_dec.dtype), self.atoms.detach())

    @torch.no_grad()
    def fuse(self, shift: Float[Tensor, "columns"], scale: Float[Tensor, "*columns"]) -> "GradientSAE":
        """The same on raw rows. Raises ValueError for another normalisation than a number for x and one for g: what g is to D would change."""
        d = self.d_model
        shifts, scales = (each.expand(2 * d).split(d) for each in (shift, scale))
        if bool((shifts[1] != 0).any()) or any(bool((one != one[0]).any()) for one in scales):
            raise ValueError(
                "a gradient belongs to its activation's own axes: train gradient_topk with --training.normalise scale or none."
            )
        sparsifier = self.sparsifier
        assert isinstance(sparsifier, GradientTopK)
        plain = SAE(self.encoder, sparsifier, self.dictionary, self.b_dec).fuse(shifts[0], scales[0])
        # D and g are scale_x and scale_g times what they were in training
        beta = sparsifier.beta / float(scales[0][0] * scales[1][0])
        fused = GradientSAE(plain.encoder, GradientTopK(sparsifier.k, beta), plain.dictionary, plain.b_dec)
        return fused.eval().requires_grad_(False)

    @torch.no_grad()
    def plain(self) -> SAE:
        """The SAE of x alone, TopK: what encodes where there are no gradients."""
        assert isinstance(self.sparsifier, GradientTopK)
        dictionary = Free(self.atoms, unit_norm=False)
        return SAE(self.encoder, TopK(self.sparsifier.k), dictionary, self.b_dec).eval().requires_grad_(False)
