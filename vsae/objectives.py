"""Objectives: what training makes small, a sum of terms. Called as `objective(sae, rows, dead, progress) -> Loss`.

With |.|^2 summed over the batch and x_bar the batch's mean, so that no coefficient or learning rate depends on d_model or on the units of x:

    mse      |x - x_hat|^2 / |x - x_bar|^2
    auxk     |e - e_hat|^2 / |e - e_bar|^2,   e = x - x_hat, detached; e_hat = the k_aux strongest dead latents' reconstruction, without b_dec
    l1       mean over rows of sum_i |z_i| |D_i|,  divided by the root mean square of |x - x_bar|
    l0       mean over rows of the number of latents that speak, with gradients to thresholds;  to a target T: (l0 / T - 1)^2
    gate_l1  l1 of max(pi, 0), the gate's pre-activation
    gate_mse |x - sum_i max(pi_i, 0) D_i - b_dec|^2 / |x - x_bar|^2,  D and b_dec frozen

A batch without variance (a single row, say) has nothing to be measured against: its squared error is taken as it is, and AuxK is 0.

AuxK: Gao et al. 2024 (2406.04093), appendix A.2, with k_aux = min(512, d_model / 2, dead latents) and coefficient 1/32. The residual's variance as its
scale is dictionary_learning's choice (the paper divides by the residual's energy); they differ where the residual has a mean.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vsae import ops, parallel
from vsae.code import Code
from vsae.sae import SAE, Output
from vsae.sparsifiers import GatedCode

TINY = 1e-12
"""Share of the data's variance below which a residual counts as zero."""


class Loss(NamedTuple):
    total: Float[Tensor, ""]
    """What to call backward on."""

    terms: dict[str, Tensor]
    """Each term before its coefficient, detached, on the device."""

    output: Output
    """The forward pass it was computed from."""

    target: Float[Tensor, "batch d_out"]
    """What it was to reconstruct."""

    error: Float[Tensor, ""]
    """Sum of squared errors, detached: whatever the loss is, how well it was reconstructed."""


class Seen(NamedTuple):
    """What a term looks at."""

    sae: SAE
    x: Float[Tensor, "batch d_model"]
    """What was encoded."""
    target: Float[Tensor, "batch d_out"]
    """What was to be reconstructed; x itself for most."""
    output: Output
    error: Float[Tensor, ""]
    """Sum of squares of the target less its reconstruction."""
    energy: Float[Tensor, ""]
    """Sum of squares of the target around the batch's mean; 1 where that is 0."""
    dead: Int[Tensor, "n_dead"] | None
    """Latents that did not fire for long."""
    progress: float = 1.0
    """Share of the budget that is done."""


Term = Callable[[Seen], Float[Tensor, ""]]
"""A number to make small, on the scale of mse where it can be."""


@dataclass(frozen=True)
class Weighted:
    """A term, and its coefficient, which rises linearly from 0 over the first `warmup` of the budget. With a coefficient of 0 it is not computed."""

    term: Term
    coefficient: float = 1.0
    warmup: float = 0.0

    def at(self, progress: float) -> float:
        """The coefficient when a share `progress` of the budget is done."""
        return self.coefficient * (1.0 if progress >= self.warmup else progress / self.warmup)


@dataclass(frozen=True)
class Objective:
    """mse + coefficient * term + ... of named terms. `reconstruction` may take the place of mse."""

    terms: dict[str, Weighted] = field(default_factory=dict)
    reconstruction: Term | None = None

    def __call__(
        self,
        sae: SAE,
        rows: Float[Tensor, "batch columns"],
        dead: Int[Tensor, "n_dead"] | None = None,
        progress: float = 1.0,
        factors: Mapping[str, Tensor] | None = None,
    ) -> Loss:
        """`dead`: latents that did not fire for long, which AuxK revives; None or empty for none. `progress`: share of the budget that is done.
        `factors`: what coefficients are multiplied by, by the terms' names; 1 where there is none.

        Shapes are all it looks at, so nothing here waits for the device.
        """
        x, target = sae.ends(rows.to(sae.b_dec.dtype))
        output = sae(x)
        energy = spread(target)
        error = F.mse_loss(output.x_hat, target, reduction="sum")
        seen = Seen(sae, x, target, output, error, torch.where(energy > 0, energy, 1), dead, progress)
        found = {"mse": (self.reconstruction or mse)(seen)}
        total = found["mse"]
        for name, weighted in self.terms.items():
            if weighted.coefficient:
                found[name] = weighted.term(seen)
                total = total + weighted.at(progress) * (factors or {}).get(name, 1.0) * found[name]
        terms = {name: term.detach() for name, term in found.items()}
        return Loss(total, terms, output, target, error.detach())


def spread(x: Float[Tensor, "batch d_model"]) -> Float[Tensor, ""]:
    """Sum of squares around the batch's mean."""
    mean = parallel.sum_rows(x.sum(0)) / max(1, parallel.all_rows(len(x)))
    return parallel.sum_rows(F.mse_loss(x, mean.expand_as(x), reduction="sum"))


def mse(seen: Seen) -> Float[Tensor, ""]:
    return seen.error / seen.energy


def l1(seen: Seen) -> Float[Tensor, ""]:
    """In units of the data's root mean square. With the atoms' norms in it, no latent escapes by a small code and a large atom."""
    return magnitude(seen.output.code, seen.sae.atoms) / (seen.energy / parallel.all_rows(len(seen.x))).sqrt()


def magnitude(code: Code, atoms: Float[Tensor, "n_latents d_model"]) -> Float[Tensor, ""]:
    """Mean over rows of sum_i |z_i| |D_i|."""
    norms = torch.linalg.vector_norm(atoms, dim=1, keepdim=True)
    return ops.decode(Code(code.values.abs(), code.indices), norms).sum() / parallel.all_rows(len(code.values))


def gate(seen: Seen) -> Code:
    """What opened the slots, as a code of its own. Raises TypeError where nothing did."""
    code = seen.output.code
    if not isinstance(code, GatedCode):
        raise TypeError(f"{type(seen.sae.sparsifier).__name__} has no gate to penalise: choose JumpReLU or Gated.")
    return Code(code.gate, code.indices)


@dataclass(frozen=True)
class L0:
    """Latents that speak for a row, on average; how far that is from `target`, where there is one (dictionary_learning's form)."""

    target: float | None = None

    def __call__(self, seen: Seen) -> Float[Tensor, ""]:
        steps = gate(seen).values
        count = steps.sum() / len(steps)
        return count if self.target is None else (count / self.target - 1).square()


def gate_l1(seen: Seen) -> Float[Tensor, ""]:
    """l1 of the gate's pre-activations (2404.16014, eq. 8)."""
    return magnitude(gate(seen), seen.sae.atoms) / (seen.energy / len(seen.x)).sqrt()


def gate_mse(seen: Seen) -> Float[Tensor, ""]:
    """What the gate's pre-activations alone reconstruct with a decoder that does not learn from it (2404.16014, eq. 8)."""
    sae = seen.sae
    x_hat = ops.decode(gate(seen), sae.atoms.detach()) + sae.bias.detach()
    return F.mse_loss(x_hat, seen.target, reduction="sum") / seen.energy


def auxk(seen: Seen) -> Float[Tensor, ""]:
    """How badly the dead latents alone explain what the living ones left over. 0 without dead latents, or without a residual."""
    return left_over(seen, seen.dead)


@dataclass(frozen=True)
class ZipfAux:
    """AuxK of under-used latents, dead or not: those that fire in this batch less than `share` as often as a Zipf law says of their rank (2411.02124).

    The law is that of the sparsifier's budgets, where they were fitted to the data. The paper's exact limits are not known to us; `share` is ours. Waits for the device.
    """

    exponent: float = 1.0
    share: float = 0.5

    def __call__(self, seen: Seen) -> Float[Tensor, ""]:
        n = seen.sae.n_latents
        counts, order = seen.output.code.counts(n).sort(descending=True, stable=True)
        law = torch.arange(1, n + 1, device=counts.device, dtype=torch.float32) ** -self.exponent
        if (budgets := getattr(seen.sae.sparsifier, "law", None)) is not None and bool(budgets.any()):
            law = budgets.sort(descending=True).values
        return left_over(seen, order[counts < self.share * counts.sum() * law / law.sum()])


def left_over(seen: Seen, dead: Int[Tensor, "n_dead"] | None) -> Float[Tensor, ""]:
    """AuxK's error of some latents."""
    sae = seen.sae
    if dead is None or len(dead) == 0:
        return seen.target.new_zeros(())
    k = max(1, min(512, sae.d_model // 2, len(dead)))
    code = sae.sparsifier.strongest(sae.preactivations(seen.x).latents(dead), k)
    residual = (seen.target - seen.output.x_hat).detach()
    error = (residual - sae.dictionary.decode_some(code, dead)).square().sum()
    scale = spread(residual)
    counts = scale > TINY * seen.energy
    return error * counts / torch.where(counts, scale, 1)
