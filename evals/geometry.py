"""The shape of a dictionary, without and with its codes (Fel et al. 2025, 2502.12892, section 5; Babel: 2506.03093; spec/papers.md section 6).

Of atoms D [n, d], of unit norm first (zero atoms stay zero):

    stable rank      |D|_F^2 / |D|_2^2                         n for orthonormal atoms, 1 where all lie on one line
    effective rank   exp(entropy of the normalised singular values)
    coherence        max over i != j of |D_i . D_j|
    Babel(r)         max over j of the sum of its r largest |D_i . D_j|, i != j
    OOD              1 - mean over i of max over data rows a of D_i . a / |a|      0: every atom is a direction that the data have
    plausibility     mean over given directions v of max over i of v . D_i

Of codes Z [rows, n] as well:

    connectivity     share of pairs of different live latents that ever fire on one row. The paper's 1 - |Z^T Z|_0 / d^2 counts the same zeros from the other
                     side, and its text contradicts itself on the direction; this one is ours
    interference     |relu(-(Z^T Z) o (D D^T))|_2, spectral norm, Z^T Z a mean over rows: latents that fire together and pull apart
    Babel, selected  mean over rows of Babel among the atoms that the row selects, all of them: a dictionary may be coherent and its selections not (2506.03093)
    rank, together   effective rank of Z^T Z: in how many independent ways latents fire; n where each fires alone and equally strongly

Floor of each: the same of as many directions drawn at random.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from scipy.sparse.linalg import svds
from torch import Tensor

from evals.matching import unit
from vsae.code import Code

CHUNK = 4096
BABEL = (1, 8, 32)
BABEL_ROWS, MOST_SELECTED = 1024, 512
"""The Babel of selections is a mean over so many rows, of at most so many latents of each, the strongest."""
MOST_LIVE = 4096
"""More live latents than this have no rank of Z^T Z: it takes all eigenvalues."""


@dataclass(frozen=True)
class Shape:
    """Numbers that need atoms alone; the module's docstring has the definitions."""

    stable_rank: float
    effective_rank: float
    coherence: float
    babel: dict[int, float]
    ood: float | None
    """None without data rows."""


def shape(atoms: Float[Tensor, "n d_model"], rows: Float[Tensor, "rows d_model"] | None = None) -> Shape:
    """Of a dictionary, and of some rows of the data its atoms are to be compared with. Raises ValueError without two atoms that are not zero."""
    D = unit(atoms)
    if int((D.norm(dim=1) > 0).sum()) < 2:
        raise ValueError("a dictionary's shape needs at least two atoms that are not zero.")
    singular = torch.linalg.svdvals(D)
    share = singular[singular > 0] / singular.sum()
    near = largest_cosines(D, max(BABEL))
    return Shape(
        stable_rank=float(singular.square().sum() / singular[0] ** 2),
        effective_rank=float(torch.exp(-(share * share.log()).sum())),
        coherence=float(near[:, 0].max()),
        babel={r: float(near[:, :r].sum(1).max()) for r in BABEL},
        ood=None if rows is None else 1 - plausibility(D, rows),
    )


def largest_cosines(D: Float[Tensor, "n d_model"], r: int) -> Float[Tensor, "n r"]:
    """The r largest |cosines| of each unit atom to the others, descending; fewer where there are fewer."""
    found = []
    for start in range(0, len(D), CHUNK):
        cosines = (D[start : start + CHUNK] @ D.T).abs()
        own = torch.arange(len(cosines))
        cosines[own, own + start] = -1
        found.append(cosines.topk(min(r, len(D) - 1)).values)
    return torch.cat(found)


def plausibility(directions: Float[Tensor, "some d_model"], atoms: Float[Tensor, "n d_model"]) -> float:
    """Mean over `directions` of the largest cosine to an atom. It can only rise with more atoms: compare dictionaries of one size."""
    v, D = unit(directions), unit(atoms)
    best = torch.full((len(v),), -1.0, dtype=torch.float64)
    for some in D.split(CHUNK):
        best = torch.maximum(best, (v @ some.T).amax(1))
    return float(best.mean())


@dataclass(frozen=True)
class Together:
    """How latents fire together."""

    connectivity: float
    interference: float
    live: int
    """Latents that fire at all."""
    rows: int
    babel: float | None
    """Of the atoms that a row selects; None where no row selects two."""
    rank: float | None
    """Of Z^T Z; None where nothing fires, and above MOST_LIVE live latents."""


def together(codes: Iterable[Code], atoms: Float[Tensor, "n d_model"]) -> Together:
    """Of the codes of all rows, batch by batch. Memory: the pairs of latents that fire together. Raises ValueError without a row."""
    n, rows, D = len(atoms), 0, unit(atoms)
    gram, babels = sparse.csr_array((n, n)), list[np.ndarray]()
    for code in codes:
        values = code.values.detach().double().cpu()
        row, slot = np.nonzero(values.numpy())
        entries = values.numpy()[row, slot], (row, code.indices.cpu().numpy()[row, slot])
        Z = sparse.csr_array(entries, shape=(len(values), n))
        if rows < BABEL_ROWS:
            babels.append(selected_babel(Z[: BABEL_ROWS - rows], D))
        gram, rows = gram + Z.T @ Z, rows + len(values)
    if rows == 0:
        raise ValueError("no row was given, and how latents fire together is counted over rows.")
    gram = sparse.coo_array(gram / rows)
    live = int(np.count_nonzero(gram.diagonal() > 0))
    i, j = gram.coords
    off = (i != j) & (gram.data != 0)
    d = D.numpy()
    pull = np.concatenate([np.einsum("pd,pd->p", d[a], d[b]) for a, b in _pairs(i[off], j[off])] or [np.empty(0)])
    negative = np.maximum(-gram.data[off] * pull, 0)
    return Together(
        connectivity=float(off.sum()) / max(live * (live - 1), 1),
        interference=_norm(sparse.csr_array((negative, (i[off], j[off])), shape=(n, n))),
        live=live,
        rows=rows,
        babel=float(np.mean(several)) if len(several := np.concatenate(babels)) else None,
        rank=effective_rank(gram.tocsr()) if 0 < live <= MOST_LIVE else None,
    )


def selected_babel(Z: sparse.csr_array, D: Float[Tensor, "n d_model"]) -> Float[np.ndarray, "rows_with_two"]:
    """Largest sum of |cosines| of one atom of a row's selection to the others; of rows that select two or more."""
    found = []
    for row in range(Z.shape[0]):
        own = slice(Z.indptr[row], Z.indptr[row + 1])
        mine = Z.indices[own][np.argsort(-np.abs(Z.data[own]), kind="stable")[:MOST_SELECTED]]
        if len(mine) > 1:
            cosines = (D[mine] @ D[mine].T).abs().fill_diagonal_(0)
            found.append(float(cosines.sum(1).max()))
    return np.array(found)


def effective_rank(gram: sparse.csr_array) -> float:
    """exp(entropy of the normalised eigenvalues) of what fires."""
    live = np.flatnonzero(gram.diagonal() > 0)
    values = np.clip(np.linalg.eigvalsh(gram[live][:, live].toarray()), 0, None)
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def random_atoms(n: int, d_model: int, seed: int) -> Float[Tensor, "n d_model"]:
    """Directions without preference: the floor."""
    return torch.randn(n, d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _pairs(i: np.ndarray, j: np.ndarray) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    return ((i[at : at + 2**16], j[at : at + 2**16]) for at in range(0, len(i), 2**16))


def _norm(matrix: sparse.csr_array) -> float:
    """Largest singular value."""
    if matrix.count_nonzero() == 0:
        return 0.0
    if matrix.shape[0] <= 64:
        return float(np.linalg.norm(matrix.toarray(), 2))
    start = np.random.default_rng(0).standard_normal(matrix.shape[0])
    return float(svds(matrix, k=1, v0=start, return_singular_vectors=False)[0])
