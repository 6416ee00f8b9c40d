"""What is in one collection and not in another, and what goes together, by the latents that samples activate (spec/seeds_and_text_peers.md A12; 2512.10092).

    embedding      a sample is the set of latents that are active on some token of it
    difference_k   share of the samples of A that activate latent k, less that of B's
    p_k            two-sided, exact: with n_A + n_B samples of which m activate k, the number in A is hypergeometric if A and B are alike (twice the smaller
                   tail); q_k: Benjamini-Hochberg over the latents that enough samples activate
    NPMI_ij        ln(p_ij / (p_i p_j)) / -ln p_ij: 1 always together, 0 as by chance, -1 never together (where neither is rare)

Floor of the differences: the same count between random halves of all samples. Floor of NPMI: the largest of pairs whose samples were permuted.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy.sparse import csc_array, csr_array, vstack
from scipy.stats import hypergeom

from evals.permutation import adjusted

MIN_SAMPLES, ALPHA = 10, 0.05


@dataclass(frozen=True)
class Differences:
    """One entry a latent; p and q are NaN for latents that fewer than `min_samples` samples activate."""

    first: Float[np.ndarray, "latents"]
    """Share of the first collection's samples that activate it."""
    second: Float[np.ndarray, "latents"]
    p: Float[np.ndarray, "latents"]
    q: Float[np.ndarray, "latents"]
    samples: tuple[int, int]

    @property
    def difference(self) -> Float[np.ndarray, "latents"]:
        return self.first - self.second

    def found(self, alpha: float = ALPHA) -> Bool[np.ndarray, "latents"]:
        with np.errstate(invalid="ignore"):
            return self.q < alpha

    def order(self) -> Int64[np.ndarray, "latents"]:
        """The largest difference first; of equal ones the first latent."""
        return np.argsort(-np.abs(self.difference), kind="stable")


@dataclass(frozen=True)
class Together:
    """The pairs of latents with the largest NPMI."""

    pairs: Int64[np.ndarray, "pairs 2"]
    npmi: Float[np.ndarray, "pairs"]
    samples: Int64[np.ndarray, "pairs"]
    """That activate both."""
    floor: float
    """Largest NPMI of all pairs after each latent's samples were permuted."""


def active(scores: csc_array) -> csc_array:
    """Whether each sample activates each latent: a positive score."""
    found = csc_array(scores)
    return csc_array((found > 0).astype(np.int64))


def differences(first: csc_array, second: csc_array, min_samples: int = MIN_SAMPLES) -> Differences:
    """Of two collections' scores [samples, latents], which count where they are positive. Raises ValueError for other latents, or an empty collection."""
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"one collection has {first.shape[1]:,} latents and the other {second.shape[1]:,}: they need one SAE."
        )
    n, m = first.shape[0], second.shape[0]
    if not n or not m:
        raise ValueError(f"the collections have {n:,} and {m:,} samples: give one or more in both.")
    a, b = (np.asarray(active(each).sum(0)).ravel().astype(np.int64) for each in (first, second))
    tested = a + b >= min_samples
    p = np.full(len(a), np.nan)
    tail = np.minimum(hypergeom.cdf(a, n + m, a + b, n), hypergeom.sf(a - 1, n + m, a + b, n))[tested]
    p[tested] = np.minimum(1.0, 2 * tail)
    return Differences(a / n, b / m, p, adjusted(p), (n, m))


def halves(
    first: csc_array,
    second: csc_array,
    min_samples: int = MIN_SAMPLES,
    splits: int = 8,
    seed: int = 0,
    alpha: float = ALPHA,
) -> float:
    """Share of tested latents that are found between random parts, as large as the collections, of all samples; mean over splits."""
    whole = csr_array(vstack([first, second], "csr"))
    rng, n, shares = np.random.default_rng([seed, 41]), first.shape[0], []
    for _ in range(splits):
        order = rng.permutation(whole.shape[0])
        found = differences(csc_array(whole[order[:n]]), csc_array(whole[order[n:]]), min_samples)
        tested = int((~np.isnan(found.q)).sum())
        shares.append(float(found.found(alpha).sum() / tested) if tested else 0.0)
    return float(np.mean(shares))


def together(scores: csc_array, most: int = 50, min_samples: int = MIN_SAMPLES, seed: int = 0) -> Together:
    """Pairs among the latents that at least `min_samples` samples activate and not all do."""
    fired = active(scores)
    n, counts = fired.shape[0], np.asarray(fired.sum(0)).ravel()
    kept = np.flatnonzero((counts >= min_samples) & (counts < n))
    fired = csc_array(fired[:, kept])
    npmi, both = normalised_pmi(fired)
    rng = np.random.default_rng([seed, 42])
    rows = np.concatenate([rng.choice(n, k, replace=False) for k in np.diff(fired.indptr)] or [np.zeros(0, np.int64)])
    null, _ = normalised_pmi(csc_array((np.ones(len(rows), np.int64), rows, fired.indptr), shape=fired.shape))
    i, j = np.triu_indices(len(kept), 1)
    order = np.argsort(-npmi[i, j], kind="stable")[:most]
    pairs = np.stack([kept[i[order]], kept[j[order]]], 1) if len(order) else np.zeros((0, 2), np.int64)
    floor = float(null[i, j].max()) if len(i) else float("nan")
    return Together(pairs.astype(np.int64), npmi[i, j][order], both[i, j][order], floor)


def normalised_pmi(
    fired: csc_array,
) -> tuple[Float[np.ndarray, "latents latents"], Int64[np.ndarray, "latents latents"]]:
    """(NPMI, samples with both) of all pairs; -1 where no sample has both, 1 where all have."""
    n = max(fired.shape[0], 1)
    both = (fired.T @ fired).toarray().astype(np.int64)
    p, joint = np.diag(both) / n, both / n
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log(joint / (p[:, None] * p)) / -np.log(joint)
    return np.where(both == 0, -1.0, np.where(both == n, 1.0, found)), both
