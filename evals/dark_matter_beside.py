"""What other codes leave out, beside what an SAE does (Engels et al., 2410.14670; spec A7).

    gradient pursuit    the SAE's own atoms with a better encoder: as many steps as its L0, each of which adds the atom with the largest inner product with what is left,
                        moves the chosen coefficients along the gradient to where the error is least, and clips them at 0
    norm R2             of |e| of another run, by a line in |e| of this one: 1 - sum (|e'| - line)^2 / sum (|e'| - mean)^2, line and mean of the fit part

Floor of the norm R2: lines fitted after the rows of this run's norms were shuffled, mean over SHUFFLES of them: one alone has a slope by chance.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from evals.dark_matter import errors
from evals.reconstruction import Codec, divide, percentiles
from evals.result import Estimate
from evals.sums import Groups, draws
from vsae.activations import Batch
from vsae.code import Code

CHUNK, SHUFFLES = 256, 20


@dataclass(frozen=True)
class GradientPursuit:
    """x ~ bias + sum of at most `steps` atoms with coefficients >= 0. Atoms are taken at unit length."""

    atoms: Float[Tensor, "n_latents d_model"]
    bias: Float[Tensor, "d_model"]
    steps: int

    @staticmethod
    def of(sae: Codec, steps: int) -> "GradientPursuit":
        """With a linear decoder's atoms and bias."""
        none = Code(sae.atoms.new_zeros(1, 1), torch.zeros(1, 1, dtype=torch.int64, device=sae.atoms.device))
        atoms = torch.nn.functional.normalize(sae.atoms.detach(), dim=1)
        return GradientPursuit(atoms, sae.decode(none)[0].detach(), min(steps, len(atoms)))

    @property
    def n_latents(self) -> int:
        return len(self.atoms)

    def encode(self, x: Float[Tensor, "batch d_model"]) -> Code:
        found = [self.pursued(part - self.bias) for part in x.split(CHUNK)]
        return Code(torch.cat([code.values for code in found]), torch.cat([code.indices for code in found]))

    def decode(self, code: Code) -> Float[Tensor, "batch d_model"]:
        return self.bias + torch.einsum("bk,bkd->bd", code.values, self.atoms[code.indices])

    def pursued(self, x: Float[Tensor, "rows d_model"]) -> Code:
        weights = x.new_zeros(len(x), self.n_latents)
        for _ in range(self.steps):
            left = x - weights @ self.atoms
            along = left @ self.atoms.T
            support = (weights != 0).scatter(1, along.argmax(1, keepdim=True), True)
            gradient = torch.where(support, along, 0)
            moved = gradient @ self.atoms
            square = moved.square().sum(1)
            step = torch.where(square > 0, (moved * left).sum(1) / torch.where(square > 0, square, 1), 0)
            weights = (weights + step[:, None] * gradient).clamp_min(0)
        values, indices = weights.topk(self.steps, dim=1)
        return Code(values, indices)


@torch.inference_mode()
def norms(
    this: Codec,
    others: Mapping[str, Codec],
    fit: Iterable[Batch],
    report: Iterable[Batch],
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Norm R2 of each other code; the interval is over samples. None where its error's norm does not vary."""
    fitted, _ = norms_of([this, *others.values()], fit)
    measured, group = norms_of([this, *others.values()], report)
    rng = np.random.default_rng([seed, 61])
    mixed = [rng.permutation(fitted[0]) for _ in range(SHUFFLES)]
    n = int(group.max()) + 1
    weights = np.concatenate([np.ones((1, n)), draws(n, resamples, seed)])
    found = {}
    for name, y, new in zip(others, fitted[1:], measured[1:], strict=True):
        about = (new - y.mean()) ** 2
        lefts = [
            (new - (slope * measured[0] + offset)) ** 2 for slope, offset in (line(x, y) for x in (fitted[0], *mixed))
        ]
        left, whole = (weights @ np.bincount(group, each, minlength=n) for each in (lefts[0], about))
        r2 = 1 - divide(left, whole)
        floor = 1 - divide(np.array([each.sum() for each in lefts[1:]]), np.full(SHUFFLES, about.sum()))
        spread = percentiles(r2[1:]) if n > 1 and resamples else None
        found[name] = Estimate(None if np.isnan(r2[0]) else float(r2[0]), float(floor.mean()), spread)
    return found


def norms_of(codecs: list[Codec], batches: Iterable[Batch]) -> tuple[Float64[np.ndarray, "codecs rows"], np.ndarray]:
    """|e| of each row, and its group of samples. Raises ValueError for no row."""
    found, groups, of = list[np.ndarray](), Groups(), list[np.ndarray]()
    for batch in batches:
        found.append(np.stack([errors(codec, batch)[1].norm(dim=1).numpy() for codec in codecs]))
        of.append(groups.of(batch.samples).numpy())
    if not found:
        raise ValueError("there is no row to measure: check which token kinds and which part were selected.")
    return np.concatenate(found, 1), np.concatenate(of)


def line(x: Float64[np.ndarray, "rows"], y: Float64[np.ndarray, "rows"]) -> tuple[float, float]:
    """Least squares; flat where x does not vary."""
    about = x - x.mean()
    square = float(about @ about)
    slope = float(about @ (y - y.mean())) / square if square else 0.0
    return slope, float(y.mean() - slope * x.mean())
