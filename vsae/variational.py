"""Variational encoder: a latent's pre-activation is drawn from a Gaussian that the encoder learns (vSAE, 2509.22994).

    mu = W_enc x + b_enc        log sigma^2 = 0, or learned: V x + c
    u  = mu + sigma eps         in training;  u = mu ever after
    KL = 1/2 sum_j mu_j^2 + sigma_j^2 - 1 - log sigma_j^2         of each row's posterior from N(0, 1); with sigma = 1 it is |mu|^2 / 2

The loss is |x - x_hat|^2 + beta(t) KL, beta rising from 0, with TopK on u. The authors report that it loses: worse reconstructions than TopK and about half
the features alive. So its diagnostics come with it (`collapse`): a latent whose posterior is the prior whatever x is carries nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vsae.dictionaries import Dictionary
from vsae.encoders import Linear
from vsae.objectives import Seen
from vsae.preactivations import Dense, PreActivations
from vsae.sae import SAE

ACTIVE = 0.01
"""Variance of mu_j over the data above which latent j is an active unit (Burda et al. 2016, 1509.00519)."""


class Variational(Linear):
    """Noise on every pre-activation in training, none after it. Without `logvar_weight` and `logvar_bias` the variance is 1.

    Noise comes from PyTorch's own generator, which training seeds before each step. A fused one of variance 1 is a plain linear encoder.
    """

    affine = False
    logvar_weight: Tensor | None
    logvar_bias: Tensor | None

    def __init__(
        self,
        weight: Float[Tensor, "n_latents d_model"],
        bias: Float[Tensor, "n_latents"],
        logvar_weight: Float[Tensor, "n_latents d_model"] | None = None,
        logvar_bias: Float[Tensor, "n_latents"] | None = None,
    ):
        super().__init__(weight, bias)
        if (logvar_weight is None) != (logvar_bias is None):
            raise ValueError("a learned variance needs logvar_weight and logvar_bias: give both, or neither.")
        for name, tensor in (("logvar_weight", logvar_weight), ("logvar_bias", logvar_bias)):
            self.register_parameter(name, None if tensor is None else nn.Parameter(tensor.detach().clone()))

    def fold(self, scale: Float[Tensor, "d_model"], dictionary: Dictionary) -> Linear:
        if self.logvar_weight is None:
            return Linear(self.weight / scale, self.bias)
        return Variational(self.weight / scale, self.bias, self.logvar_weight / scale, self.logvar_bias)

    def posterior(
        self, x: Float[Tensor, "batch d_model"]
    ) -> tuple[Float[Tensor, "batch n_latents"], Float[Tensor, "batch n_latents"]]:
        """mu and log sigma^2 of centred rows."""
        mu = nn.functional.linear(x, self.weight, self.bias)
        if self.logvar_weight is None:
            return mu, torch.zeros_like(mu)
        return mu, nn.functional.linear(x, self.logvar_weight, self.logvar_bias)

    def forward(  # type: ignore[override]  # not only affine
        self, x: Float[Tensor, "batch d_model"], dictionary: Dictionary
    ) -> PreActivations:
        if not self.training:
            return super().forward(x, dictionary)
        mu, logvar = self.posterior(x)
        return Dense(mu + (logvar / 2).exp() * torch.randn_like(mu))


def divergence(mu: Float[Tensor, "batch n_latents"], logvar: Float[Tensor, "batch n_latents"]) -> Tensor:
    """KL of each row and latent, in nats."""
    return (mu.square() + logvar.exp() - 1 - logvar) / 2


def kl(seen: Seen) -> Float[Tensor, ""]:
    """Sum of all KLs of the batch over its energy: with `mse`, the published loss divided by the batch's energy, so that a coefficient is its beta."""
    encoder = seen.sae.encoder
    assert isinstance(encoder, Variational)
    return divergence(*encoder.posterior(seen.x - seen.sae.b_dec)).sum() / seen.energy


@dataclass(frozen=True)
class Collapse:
    """What latents carry, over some rows. The prior itself would have KL 0, no active unit, and no latent alive but by chance."""

    kl: Float[Tensor, "n_latents"]
    """Mean KL of each latent, nats."""
    variance: Float[Tensor, "n_latents"]
    """Of mu over the rows."""
    alive: Float[Tensor, "n_latents"]
    """1 where a latent spoke at least once."""

    @property
    def active_units(self) -> float:
        """Share of latents whose mean moves: Var_x mu_j > 0.01."""
        return float((self.variance > ACTIVE).double().mean())

    @property
    def alive_share(self) -> float:
        return float(self.alive.double().mean())


@torch.no_grad()
def collapse(sae: SAE, batches: Iterable[Float[Tensor, "_ d_model"]]) -> Collapse:
    """Diagnose an SAE with a variational or (of variance 1, as a fused one) linear encoder, in float64. Raises ValueError for another, or without rows."""
    if not isinstance(sae.encoder, Linear) or sae.scale is not None or sae.shift is not None:
        raise ValueError("posterior collapse is a question to variational encoders: train the recipe vsae.")
    n = 0
    nothing = torch.zeros(sae.n_latents, dtype=torch.float64, device=sae.b_dec.device)
    total, first, second, alive = nothing.clone(), nothing.clone(), nothing.clone(), nothing.clone()
    origin: Tensor | None = None
    for rows in batches:
        x = rows.to(sae.b_dec)
        if isinstance(sae.encoder, Variational):
            mu, logvar = sae.encoder.posterior(x - sae.b_dec)
        else:
            mu = nn.functional.linear(x - sae.b_dec, sae.encoder.weight, sae.encoder.bias)
            logvar = torch.zeros_like(mu)
        mu = mu.double()
        total += divergence(mu, logvar.double()).sum(0)
        origin = mu.mean(0) if origin is None else origin
        first += (mu - origin).sum(0)
        second += (mu - origin).square().sum(0)
        alive += sae.encode(x).counts(sae.n_latents)
        n += len(x)
    if not n:
        raise ValueError("posterior collapse was to be measured on no rows: give some.")
    return Collapse(total / n, (second / n - (first / n).square()).clamp_min(0), (alive > 0).double())
