"""Semi-nonnegative matrix factorisation as a codec: x = z A with z >= 0 and atoms A of either sign (Ding, Li and Jordan 2010).

    fit       in turns: z for the atoms there are, then A = (z'z + RIDGE)^-1 z'x, atoms then scaled to length 1
    encode    min over z >= 0 of |x - z A|^2, by accelerated projected gradient

The published baseline (2511.17735, code only) fits by mini-batch multiplicative updates; the factorisation is the same, the solver ours.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from evals.baselines import weighted_sum
from vsae.code import Code

RIDGE = 1e-6
ROUNDS, INNER, ENCODE = 30, 10, 100


@dataclass(frozen=True)
class SemiNMF:
    """Atoms of length 1."""

    atoms: Float[Tensor, "n_latents d_model"]

    @property
    def n_latents(self) -> int:
        return len(self.atoms)

    def encode(self, x: Float[Tensor, "batch d_model"]) -> Code:
        return Code.full(nonnegative(x, self.atoms, ENCODE))

    def decode(self, code: Code) -> Float[Tensor, "batch d_model"]:
        return weighted_sum(code, self.atoms)


def fit_semi_nmf(rows: Float[Tensor, "rows d_model"], n: int, seed: int = 0) -> SemiNMF:
    """`n` atoms, from random rows on. Raises ValueError for more atoms than rows."""
    if not 1 <= n <= len(rows):
        raise ValueError(f"semi-NMF with {n} atoms needs as many rows, but got {len(rows)}.")
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:n]
    atoms = torch.nn.functional.normalize(rows[chosen], dim=1)
    z: Tensor | None = None
    for _ in range(ROUNDS):
        z = nonnegative(rows, atoms, INNER, z)
        gram = z.T @ z
        gram.diagonal().add_(RIDGE * max(float(gram.diagonal().max()), RIDGE))
        atoms = torch.linalg.solve(gram, z.T @ rows)
        norms = atoms.norm(dim=1)
        # an atom that nothing used is zero: it becomes a row again
        silent = norms < 1e-8
        atoms[silent], norms[silent] = rows[chosen[silent]], rows[chosen[silent]].norm(dim=1).clamp_min(1e-8)
        atoms, z = atoms / norms[:, None], z * norms
    return SemiNMF(atoms)


def nonnegative(
    x: Float[Tensor, "batch d_model"],
    atoms: Float[Tensor, "n_latents d_model"],
    steps: int,
    start: Float[Tensor, "batch n_latents"] | None = None,
) -> Float[Tensor, "batch n_latents"]:
    """Non-negative least squares of every row (FISTA)."""
    gram, target = atoms @ atoms.T, x @ atoms.T
    rate = 1 / float(torch.linalg.matrix_norm(gram, 2).clamp_min(1e-12))
    z = (target * rate).clamp_min(0) if start is None else start
    ahead, t = z, 1.0
    for _ in range(steps):
        new = (ahead - rate * (ahead @ gram - target)).clamp_min(0)
        after = (1 + (1 + 4 * t * t) ** 0.5) / 2
        ahead, z, t = new + (t - 1) / after * (new - z), new, after
    return z
