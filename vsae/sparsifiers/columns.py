"""Feature Choice: every latent chooses the rows it speaks for, so that none can die (Ayonrinde 2024, 2411.02124).

    z = u where u > 0 is among the m_i largest of latent i's column in the batch;     sum of m_i = batch * k,   m_i ~ 1 / (i + 1)^s
    for inference   z = u 1[u > theta_i],   theta_i = running mean of the smallest entry that latent i kept

s = 0 gives all the same budget. How the paper gives Zipf-shaped budgets to latents is not known to us: by index is our form. After a time of Mutual Choice
(BatchTopK), as reviews of the paper describe it, budgets follow how often each latent spoke instead (`ZipfBudgets`):

    m_i ~ (r_i + b)^-s      r_i the rank of latent i by frequency, 0 first;  s >= 0 and b > 0 by least squares of log frequencies, silent latents last
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from vsae.code import Code
from vsae.controllers import Controller
from vsae.ops.columns import encode_columns
from vsae.preactivations import Affine, PreActivations
from vsae.sparsifiers.base import Sparsifier, checked_k
from vsae.sparsifiers.batch import mutual_choice
from vsae.sparsifiers.rows import Threshold

if TYPE_CHECKING:
    from vsae.objectives import Loss
    from vsae.training.state import Training


class FeatureChoice(Sparsifier):
    """The module's docstring has the rule. A batch with fewer than n_latents / `k` rows has too few slots for all latents; some stay silent then.

    `law` [n_latents] is each latent's share of the slots; while it is 0, which `mutual` makes it at first, choice is mutual.
    """

    threshold: Tensor
    updates: Tensor
    law: Tensor

    def __init__(self, n_latents: int, k: int, exponent: float = 0.0, momentum: float = 0.99, mutual: bool = False):
        super().__init__()
        self.k, self.exponent, self.momentum = checked_k(k, n_latents), exponent, momentum
        self.register_buffer("threshold", torch.zeros(n_latents))
        self.register_buffer("updates", torch.zeros(n_latents, dtype=torch.int64))
        self.register_buffer("law", zipf(n_latents, exponent) * (not mutual))
        self.on_host: Tensor | None = None

    def _load_from_state_dict(self, *given: Any) -> None:
        super()._load_from_state_dict(*given)
        self.on_host = None

    @property
    def shares(self) -> Float[Tensor, "n_latents"]:
        """`law` on the host, which is waited for once."""
        if self.on_host is None:
            self.on_host = self.law.cpu()
        return self.on_host

    @torch.no_grad()
    def take(self, law: Float[Tensor, "n_latents"]) -> None:
        """From now on these shares; thresholds are followed anew."""
        self.law.copy_(law)
        self.updates.zero_()
        self.on_host = None

    @property
    def batch_dependent(self) -> bool:
        return self.training

    def inference(self) -> Threshold:
        return Threshold(self.threshold)

    def forward(self, pre: PreActivations) -> Code:
        """Raises TypeError for pre-activations that are not linear."""
        if not self.training:
            return pre.above(self.threshold)
        if not isinstance(pre, Affine):
            raise TypeError(f"Feature Choice needs a linear encoder, but this one gives {type(pre).__name__}.")
        if self.shares.any():
            code = encode_columns(pre.x, pre.weight, pre.bias, self.budgets(len(pre.x)))
        else:
            code = mutual_choice(pre, self.k)
        self.follow(code)
        return code

    def budgets(self, batch: int) -> Int[Tensor, "n_latents"]:
        """m_i on the host: at least 1 where there is enough, at most `batch`, batch * k in all (fewer where a latent would need more than `batch`)."""
        n = len(self.threshold)
        least = int(batch * self.k >= n)
        ends = (self.shares.cumsum(0) * (batch * self.k - least * n)).round().long()
        return (least + ends.diff(prepend=ends.new_zeros(1))).clamp(max=batch)

    @torch.no_grad()
    def follow(self, code: Code) -> None:
        """Move each threshold towards its latent's smallest entry kept; without one, leave it."""
        values = torch.where(code.values > 0, code.values, torch.inf).to(self.threshold.dtype)
        smallest = torch.full_like(self.threshold, torch.inf)
        smallest.scatter_reduce_(0, code.indices.flatten(), values.flatten(), "amin")
        rate = torch.clamp(1 / (self.updates + 1), min=1 - self.momentum)
        seen = smallest.isfinite()
        self.threshold.add_(torch.where(seen, rate * (smallest - self.threshold), 0))
        self.updates.add_(seen)

    def options(self) -> dict[str, Any]:
        return {"k": self.k, "exponent": self.exponent, "momentum": self.momentum}


class ZipfBudgets(Controller):
    """After `steps` steps of Mutual Choice: budgets by the law of how often each latent spoke in the second half of them."""

    counts: Tensor

    def __init__(self, n_latents: int, steps: int):
        super().__init__()
        self.steps = steps
        self.register_buffer("counts", torch.zeros(n_latents))

    @torch.no_grad()
    def forward(self, training: "Training", x: Float[Tensor, "batch columns"], loss: "Loss") -> None:
        if training.step <= self.steps and 2 * training.step > self.steps:
            self.counts += loss.output.code.counts(len(self.counts))
        if training.step == self.steps:
            sparsifier = training.sae.sparsifier
            assert isinstance(sparsifier, FeatureChoice)
            sparsifier.take(law_of(self.counts))


def law_of(counts: Shaped[Tensor, "n_latents"]) -> Float[Tensor, "n_latents"]:
    """Shares of the latents by the power law of their ranks that fits their counts; equal ones where fewer than three spoke. The module's docstring has the form."""
    from scipy.optimize import minimize_scalar

    found = counts.double().cpu().numpy()
    order = np.argsort(-found, kind="stable")
    spoke = int((found > 0).sum())
    exponent, offset = 0.0, 1.0
    if spoke > 2:
        logs, ranks = np.log(found[order[:spoke]]), np.arange(spoke)

        def line(log_b: float) -> tuple[float, float]:
            """Squared error, and s, of the best line through the logs for this b."""
            x = np.log(ranks + math.exp(log_b))
            slope = min(0.0, float(np.cov(x, logs)[0, 1] / np.var(x, ddof=1)))
            return float(np.square(logs - logs.mean() - slope * (x - x.mean())).sum()), -slope

        best = minimize_scalar(
            lambda b: line(b)[0], bounds=(math.log(1e-2), math.log(10 * len(found))), method="bounded"
        )
        exponent, offset = line(best.x)[1], math.exp(best.x)
    shares = np.empty(len(found))
    shares[order] = (np.arange(len(found)) + offset) ** -exponent
    return torch.from_numpy(shares / shares.sum())


def zipf(n: int, exponent: float) -> Float[Tensor, "n"]:
    """Shares falling as a power of the rank; sum 1."""
    shares = torch.arange(1, n + 1, dtype=torch.float64) ** -exponent
    return shares / shares.sum()
