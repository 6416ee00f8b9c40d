"""Non-negative codes of dictionaries without gradients: semi-NMF, its sparse form and convex NMF (Ding, Li and Jordan 2010), behind encode and decode.

    semi-NMF    X ~ Z D          Z >= 0, D of any sign
    SNMF        the same, and each atom keeps only its `share` largest entries in magnitude (2506.10920; spec A22)
    convex NMF  X ~ Z W X        Z >= 0, W >= 0: atoms are in the cone of the rows

with X [rows, d_model]. Multiplicative updates, A_+ = max(A, 0) and A_- = max(-A, 0), in float64, until the squared error falls by less than 1e-5 of itself a
step or `iterations` are done:

    D <- (Z^T Z + ridge)^-1 Z^T X                    Z <- Z sqrt( ([X D^T]_+ + Z [D D^T]_-) / ([X D^T]_- + Z [D D^T]_+) )
    convex: with Y = X X^T,                          Z <- Z sqrt( (Y_+ W^T + Z W Y_- W^T) / (Y_- W^T + Z W Y_+ W^T) )
                                                     W <- W sqrt( (Z^T Y_+ + Z^T Z W Y_-) / (Z^T Y_- + Z^T Z W Y_+) )

Z starts at k-means' assignments + 0.2, as Ding et al. do. There is no centre: x_hat(0) = 0. New rows get the non-negative least-squares code, of which the
`k` largest are kept (ours; the papers keep all): z = argmin |x - z D|^2 with z >= 0, by accelerated projected gradients (`NonNegative`).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vsae.anchors import kmeans_anchors
from vsae.dictionaries import Dictionary, Free
from vsae.encoders import Encoder
from vsae.preactivations import Dense
from vsae.sae import SAE
from vsae.sparsifiers import TopK, checked_k

TINY = 1e-12
TOLERANCE = 1e-5


class NonNegative(Encoder):
    """u = argmin |x - u D|^2 over u >= 0, by `steps` of FISTA with restarts (Beck and Teboulle 2009; O'Donoghue and Candes 2015). No weights of its own."""

    def __init__(self, steps: int = 300):
        super().__init__()
        self.steps = steps

    def forward(self, x: Float[Tensor, "batch d_model"], dictionary: Dictionary) -> Dense:
        atoms = dictionary()
        return Dense(non_negative(x, atoms, self.steps))

    def options(self) -> dict[str, Any]:
        return {"steps": self.steps}


@torch.no_grad()
def non_negative(
    x: Float[Tensor, "batch d_model"], atoms: Float[Tensor, "n_latents d_model"], steps: int
) -> Float[Tensor, "batch n_latents"]:
    """Non-negative least squares of each row by itself. Atoms of length 0 get 0."""
    lengths = torch.linalg.vector_norm(atoms, dim=1)
    unit = atoms / lengths.clamp_min(torch.finfo(atoms.dtype).tiny)[:, None]  # one length suits one step size
    gram, right = unit @ unit.T, x @ unit.T
    step = 1 / torch.linalg.matrix_norm(unit, 2).square().clamp_min(TINY)
    u = previous = torch.zeros_like(right)
    age = x.new_zeros(len(x), 1)  # steps since a row's last restart
    for _ in range(steps):
        ahead = u + age / (age + 3) * (u - previous)
        new = (ahead - step * (ahead @ gram - right)).relu()
        restart = ((ahead - new) * (new - u)).sum(1, keepdim=True) > 0
        age, previous, u = torch.where(restart, 0, age + 1), u, new
    return torch.where(lengths > 0, u / lengths.clamp_min(torch.finfo(u.dtype).tiny), 0)


def semi_nmf(
    rows: Float[Tensor, "rows d_model"],
    n_latents: int,
    k: int | None = None,
    seed: int = 0,
    iterations: int = 500,
    share: float = 1.0,
    ridge: float = 1e-6,
) -> SAE:
    """Semi-NMF; with a `share` below 1, SNMF. `k` None keeps every code. `ridge`: of the rows' mean square code. Raises ValueError for what cannot be."""
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}: choose a share of each atom's entries in (0, 1].")
    X = rows.double()
    Z = start(rows, n_latents, seed)
    keep = max(1, round(share * X.shape[1]))
    D, last = X.new_zeros(n_latents, X.shape[1]), torch.inf
    eye = torch.eye(n_latents, dtype=X.dtype, device=X.device)
    for _ in range(max(1, iterations)):
        gram = Z.T @ Z
        D = torch.linalg.solve(gram + ridge * gram.diagonal().mean() * eye, Z.T @ X)
        if keep < X.shape[1]:
            D = torch.zeros_like(D).scatter(1, (top := D.abs().topk(keep).indices), D.gather(1, top))
        right, gram = X @ D.T, D @ D.T
        Z = Z * ((right.relu() + Z @ (-gram).relu()) / ((-right).relu() + Z @ gram.relu()).clamp_min(TINY)).sqrt()
        error = float((X - Z @ D).square().sum())
        if last - error < TOLERANCE * error:
            break
        last = error
    return coded(D, k)


def convex_nmf(
    rows: Float[Tensor, "rows d_model"], n_latents: int, k: int | None = None, seed: int = 0, iterations: int = 500
) -> SAE:
    """Convex NMF. Memory and time are those of [rows, rows]: give it a few thousand. Raises ValueError for what cannot be."""
    X = rows.double()
    Z = start(rows, n_latents, seed)
    Y = X @ X.T
    above, below = Y.relu(), (-Y).relu()
    W, last = (Z / Z.sum(0)).T.contiguous(), torch.inf
    for _ in range(max(1, iterations)):
        inner = Z.T @ Z @ W
        W = W * ((Z.T @ above + inner @ below) / (Z.T @ below + inner @ above).clamp_min(TINY)).sqrt()
        up, down = above @ W.T, below @ W.T
        Z = Z * ((up + Z @ (W @ down)) / (down + Z @ (W @ up)).clamp_min(TINY)).sqrt()
        error = float((X - Z @ (W @ X)).square().sum())
        if last - error < TOLERANCE * error:
            break
        last = error
    return coded(W @ X, k)


def start(rows: Float[Tensor, "rows d_model"], n_latents: int, seed: int) -> Float[Tensor, "rows n_latents"]:
    """k-means' assignments, 1 for the nearest centroid and 0 else, plus 0.2. Raises ValueError for more latents than distinct rows, or none."""
    centres = kmeans_anchors(rows.float(), n_latents, n_latents, seed)
    nearest = torch.cdist(rows.float(), centres).argmin(1)
    return torch.nn.functional.one_hot(nearest, n_latents).double() + 0.2


def coded(atoms: Float[Tensor, "n_latents d_model"], k: int | None) -> SAE:
    """The SAE of given atoms with non-negative codes and no centre."""
    atoms = atoms.float()
    sparsifier = TopK(checked_k(len(atoms) if k is None else k, len(atoms)))
    sae = SAE(NonNegative(), sparsifier, Free(atoms, unit_norm=False), torch.zeros_like(atoms[0]))
    return sae.eval().requires_grad_(False)
