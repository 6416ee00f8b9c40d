"""What to steer with: latents that a concept separates, how large they get, and edits of the same size that a latent must beat.

    separation   s_j = mean over samples with the concept of l_j - mean over those without, l_j the strongest activation in the sample
    size         how large a latent gets where the concept is: the unit of strength
    Along        any direction, as far at every token as another edit goes there: difference of means, random latents

The latent with the largest s_j is R_single of ActivationReasoning (2510.18184); the strongest token in place of any token is our form.
Random controls matched to the latents are 2602.06941's; that they match in firing rate and in size is our form.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vsae.code import Code
from vsae.interventions import Operation, atoms
from vsae.sae import SAE


@dataclass(frozen=True)
class Along:
    """Move each token along `direction` as far as `like` would move it along its own."""

    direction: Float[Tensor, "d_model"]
    like: Operation

    def change(self, sae: SAE, code: Code) -> Float[Tensor, "rows d_model"]:
        length = self.like.change(sae, code).norm(dim=1, keepdim=True)
        return length * (self.direction / self.direction.norm()).to(length)


@dataclass(frozen=True)
class Examples:
    """What samples with and without a concept have at a site; without a concept in mind, all of them count as having it."""

    having: Int64[np.ndarray, "n"]
    """Samples with the concept, and ..."""
    lacking: Int64[np.ndarray, "m"]
    """... without it."""
    strongest: Float[np.ndarray, "samples n_latents"]
    """Largest activation of each latent over a sample's tokens; 0 where it is silent."""
    fires: Float[np.ndarray, "n_latents"]
    """Share of the tokens on which it is positive."""
    means: Float[Tensor, "d_model"] | None
    """Difference of means: tokens of samples with the concept less those of samples without. None without a concept."""

    def separation(self) -> Float[np.ndarray, "n_latents"]:
        """How much larger each latent is where the concept is."""
        return self.strongest[self.having].mean(0) - self.strongest[self.lacking].mean(0)

    def best(self, n: int) -> list[int]:
        """The n latents that the concept separates best, the best first. Raises ValueError where fewer are larger with it than without."""
        s = self.separation()
        order = np.argsort(-s, kind="stable")[:n]
        if len(order) < n or s[order[-1]] <= 0:
            raise ValueError(f"only {(s > 0).sum()} latents are larger where the concept is: ask for fewer.")
        return [int(j) for j in order]

    def sizes(self, latents: Sequence[int]) -> list[float]:
        """How large each latent gets: mean over the samples that have the concept and in which it fires; over all samples where none does."""
        found = []
        for j in latents:
            column = (
                self.strongest[self.having, j] if (self.strongest[self.having, j] > 0).any() else self.strongest[:, j]
            )
            if not (column > 0).any():
                raise ValueError(f"latent {j} fires on none of the examples: give --value, or other examples.")
            found.append(float(column[column > 0].mean()))
        return found

    def matched(self, latents: Sequence[int], seed: int) -> list[int]:
        """As many other latents, at random among the tenth of those that fire whose rates are nearest (at least 20, or all there are)."""
        rate = float(np.mean(self.fires[list(latents)]))
        others = np.setdiff1d(np.flatnonzero(self.fires > 0), list(latents))
        if len(others) < len(latents):
            raise ValueError(
                f"{len(others)} other latents fire on the examples: too few for a control of {len(latents)}."
            )
        near = others[
            np.argsort(np.abs(self.fires[others] - rate), kind="stable")[: max(20, len(latents), len(others) // 10)]
        ]
        return np.random.default_rng(seed).choice(near, len(latents), replace=False).tolist()


def examples(
    sae: SAE,
    batches: Iterable[tuple[Float[Tensor, "batch tokens d_model"], Bool[Tensor, "batch tokens"]]],
    has: Sequence[bool] | None = None,
) -> Examples:
    """Read batches of (activations, which tokens count) of samples of which `has` says, in their order, whether they have the concept.

    Raises ValueError where no sample has it, or none lacks it, and where no token counts.
    """
    having = None if has is None else np.array(has, bool)
    if having is not None and (having.all() or not having.any()):
        raise ValueError(
            f"{having.sum()} of {len(having)} examples have the concept: both kinds are needed, those with it and those without."
        )
    total = torch.zeros(2, sae.d_model, dtype=torch.float64)
    tokens, fired = np.zeros(2), np.zeros(sae.n_latents)
    strongest: list[np.ndarray] = []
    at = 0
    for values, mask in batches:
        x = values[mask].to(sae.b_dec.dtype)
        row = mask.nonzero()[:, 0]
        batch = np.ones(len(values), bool) if having is None else having[at : at + len(values)]
        side = torch.tensor(batch).long()[row.cpu()]
        total.index_add_(0, side, x.double().cpu())
        tokens += np.bincount(side.numpy(), minlength=2)
        code = sae.encode(x)
        fired += np.bincount(code.indices[code.values > 0].cpu().numpy(), minlength=sae.n_latents)
        most = torch.zeros(len(values), sae.n_latents, dtype=code.values.dtype, device=x.device)
        where = row[:, None] * sae.n_latents + code.indices
        most.view(-1).scatter_reduce_(0, where.flatten(), code.values.clamp(min=0).flatten(), "amax")
        strongest.append(most.cpu().numpy())
        at += len(values)
    if not tokens[1] or (having is not None and not tokens[0]):
        raise ValueError("the tokens that the edit reaches are in none of the examples: choose other --kinds.")
    means = None
    if having is None:
        having = np.ones(at, bool)
    else:
        mean = total / torch.tensor(tokens)[:, None]
        means = (mean[1] - mean[0]).to(sae.b_dec.dtype)
        if not means.norm() > 0:
            raise ValueError(
                "examples with and without the concept have the same mean: the model does not tell them apart here."
            )
    return Examples(
        np.flatnonzero(having), np.flatnonzero(~having), np.concatenate(strongest), fired / tokens.sum(), means
    )


def summed(sae: SAE, latents: Sequence[int], values: Sequence[float]) -> Float[Tensor, "d_model"]:
    """The direction in which the latents push together."""
    rows = atoms(sae, latents)
    return rows.new_tensor(values) @ rows
