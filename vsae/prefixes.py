"""Matryoshka: the first latents alone reconstruct as well as they can, so that coarse concepts come first.

    mse = mean over prefixes m_1 < ... < m_G = n_latents of |x - b_dec - sum_{i < m_g} z_i D_i|^2 / |x - x_bar|^2

The mean over prefixes is the code's choice (Stevens et al. 2025 write a sum; spec/papers.md, section 8). One prefix is the plain loss.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vsae.objectives import Seen, mse
from vsae.ops.prefixes import decode_prefixes


@dataclass(frozen=True)
class Prefixes:
    """A reconstruction term over nested prefixes, which are chosen as shares of the latents, the last being 1."""

    shares: tuple[float, ...]

    def ends(self, n_latents: int, progress: float) -> list[int]:
        """Sizes of the prefixes, increasing; those that come to the same number are one."""
        return sorted({max(1, round(share * n_latents)) for share in self.shares})

    def __call__(self, seen: Seen) -> Float[Tensor, ""]:
        ends = self.ends(seen.sae.n_latents, seen.progress)
        if len(ends) == 1:
            return mse(seen)
        nested = decode_prefixes(seen.output.code, seen.sae.atoms, ends[:-1]) + seen.sae.bias
        error = (seen.target[:, None] - nested).square().sum() / seen.energy
        return (mse(seen) + error) / len(ends)


@dataclass(frozen=True)
class RandomPrefixes(Prefixes):
    """Other prefixes each step: `count` - 1 of them without replacement, P(m) = m^-1/2 - (m + 1)^-1/2, and all latents (Stevens et al. 2025, 2511.17735).

    What a step draws follows from how far training is, so that a resumed run draws the same.
    """

    shares: tuple[float, ...] = (1.0,)
    count: int = 10

    STEPS: ClassVar[int] = 2**53

    def ends(self, n_latents: int, progress: float) -> list[int]:
        draw = torch.Generator().manual_seed(int(progress * self.STEPS))
        sizes = torch.arange(1, n_latents, dtype=torch.float64)
        few = min(self.count, n_latents) - 1
        if not few:
            return [n_latents]
        chosen = torch.multinomial(sizes**-0.5 - (sizes + 1) ** -0.5, few, generator=draw) + 1
        return [*sorted(chosen.tolist()), n_latents]
