"""How apart a latent keeps the concepts: Jensen-Shannon distance of its class-conditional activations, and suppression by posterior (2508.15094; spec A14).

    JSD_j = H(sum_c P_jc / C) - sum_c H(P_jc) / C          P_jc: histogram of z_j among samples of class c, on bins all classes share; zero has its own bin
    separability_j = sqrt(JSD_j / log C)                    0: the same for every class, 1: every class has bins of its own
    floor                                                   the same after the labels have been permuted: few samples look separate by chance

    APP        z_j <- z_j (1 - P(c | z_j))                  P(c | z_j) by Bayes from the same histograms and the classes' shares
    masking    z_j <- keep z_j for the `top` latents that fire most more often among class c than among the others

    silhouette over latents i of class c, the `top` that speak most for it: (b_i - a_i) / max(a_i, b_i), a_i the mean cosine distance of i's atom to the other
               atoms of c, b_i the smallest mean distance to those of another class; 0 for a class of one. Whether atoms of one class lie together (spec A21
               scores columns of a decoder so, by labels of a judge; classes of samples, and cosines, are ours). Floor: classes permuted among the atoms

The paper's abstract is all that was read: the normaliser log C, the bins and the exact posterior are ours.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Int64
from sklearn.metrics import silhouette_samples

from evals.pooling import Scores
from evals.reconstruction import percentiles
from evals.result import Estimate
from evals.sums import draws

BINS = 16
CHUNK = 1024


@dataclass(frozen=True)
class Histograms:
    """Class-conditional activations of every latent; bin 0 is zero itself."""

    density: Float[np.ndarray, "n_latents classes bins"]
    """P(bin | class), summing to 1 over bins."""
    edges: Float[np.ndarray, "n_latents inner"]
    """Upper edges of the bins but zero's and the last; NaN-free, equal where a latent is dead."""
    share: Float[np.ndarray, "classes"]
    """Of the samples."""

    def posterior(
        self, codes: Float[np.ndarray, "rows n_latents"], concept: int
    ) -> Float[np.ndarray, "rows n_latents"]:
        """P(concept | z_j) of every entry; the share of the class in a bin that no sample fell in."""
        joint = self.density[:, concept] * self.share[concept]
        total = np.einsum("ncb,c->nb", self.density, self.share)
        table = np.where(total > 0, joint / np.where(total > 0, total, 1), self.share[concept])
        return table[np.arange(codes.shape[1]), binned(codes, self.edges)]


def histograms(codes: Scores, labels: Int[np.ndarray, "samples"], classes: int, bins: int = BINS) -> Histograms:
    """Of the codes of labelled samples; bins have equal numbers of the non-zero values. Raises ValueError for a class without a sample."""
    counts = np.bincount(labels, minlength=classes)
    if empty := np.flatnonzero(counts == 0).tolist():
        raise ValueError(f"classes {empty} have no sample: drop them, or give samples of them.")
    density, edges = [], []
    for start in range(0, codes.shape[1], CHUNK):
        some = dense(codes, start)
        inner = quantiles(some, bins)
        place = binned(some, inner)
        found = np.zeros((some.shape[1], classes, bins + 1))
        for latent in range(some.shape[1]):
            np.add.at(found[latent], (labels, place[:, latent]), 1)
        density.append(found / counts[None, :, None])
        edges.append(inner)
    return Histograms(np.concatenate(density), np.concatenate(edges), counts / counts.sum())


def dense(codes: Scores, start: int) -> Float[np.ndarray, "rows some"]:
    some = codes[:, start : start + CHUNK]
    return (some if isinstance(some, np.ndarray) else some.toarray()).astype(np.float64)


def quantiles(codes: Float[np.ndarray, "rows n"], bins: int) -> Float[np.ndarray, "n inner"]:
    """The inner quantiles of each column's non-zero values; zeros for a dead one."""
    found = np.zeros((codes.shape[1], bins - 1))
    at = np.arange(1, bins) / bins
    for column in range(codes.shape[1]):
        values = codes[codes[:, column] != 0, column]
        if len(values):
            found[column] = np.quantile(values, at)
    return found


def binned(codes: Float[np.ndarray, "rows n"], edges: Float[np.ndarray, "n inner"]) -> Int64[np.ndarray, "rows n"]:
    """Bin of each entry: 0 for zero, else 1 + the number of edges below it."""
    place = np.empty(codes.shape, np.int64)
    for column in range(codes.shape[1]):
        place[:, column] = 1 + np.searchsorted(edges[column], codes[:, column], "left")
    return np.where(codes == 0, 0, place)


def separability(found: Histograms) -> Float[np.ndarray, "n_latents"]:
    """sqrt(JSD / log C) of every latent; 0 for a dead one."""
    mixture = found.density.mean(1)
    jsd = entropy(mixture) - entropy(found.density).mean(1)
    return np.sqrt(np.clip(jsd / np.log(found.density.shape[1]), 0, 1))


def entropy(p: Float[np.ndarray, "*n bins"]) -> Float[np.ndarray, "*n"]:
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1)


def suppressed(
    codes: Float[np.ndarray, "rows n_latents"], found: Histograms, concept: int
) -> Float[np.ndarray, "rows n_latents"]:
    """APP: every activation scaled by how little it speaks for the concept."""
    return codes * (1 - found.posterior(codes, concept))


def masked(
    codes: Float[np.ndarray, "rows n_latents"], found: Histograms, concept: int, top: int, keep: float = 0.0
) -> Float[np.ndarray, "rows n_latents"]:
    """The `top` latents that speak most for the concept silenced, or (partial suppression) left a share `keep`; ones that never fire do not speak."""
    new = codes.copy()
    new[:, speakers(found, concept)[:top]] *= keep
    return new


def speakers(found: Histograms, concept: int) -> Int64[np.ndarray, "n_latents"]:
    """Latents by P(concept fires) - P(others fire), largest first."""
    fires = 1 - found.density[:, :, 0]
    others = (fires * found.share).sum(1) - fires[:, concept] * found.share[concept]
    return np.argsort(-(fires[:, concept] - others / max(1 - found.share[concept], 1e-12)), kind="stable").astype(
        np.int64
    )


def members(found: Histograms, top: int) -> tuple[Int64[np.ndarray, "members"], Int64[np.ndarray, "members"]]:
    """(latents, class of each): the `top` that speak most for each class, of those that speak for none more, and do speak for it."""
    fires, share = 1 - found.density[:, :, 0], found.share
    others = ((fires * share).sum(1)[:, None] - fires * share) / np.maximum(1 - share, 1e-12)
    speaks = fires - others
    own = speaks.argmax(1)
    latents = [
        [j for j in speakers(found, at).tolist() if own[j] == at and speaks[j, at] > 1e-9][:top]
        for at in range(len(share))
    ]
    return np.concatenate([np.array(each, np.int64) for each in latents]), np.repeat(
        np.arange(len(share)), [len(each) for each in latents]
    )


def silhouette(
    atoms: Float[np.ndarray, "members d"],
    classes: Int64[np.ndarray, "members"],
    resamples: int = 200,
    seed: int = 0,
    permutations: int = 20,
) -> Estimate | None:
    """Mean over atoms, with an interval over them. None for fewer than two classes, where none has two atoms, or for an atom that is zero."""
    lengths = np.linalg.norm(atoms, axis=1)
    if len(np.unique(classes)) < 2 or len(np.unique(classes)) == len(classes) or (lengths == 0).any():
        return None
    D = atoms / lengths[:, None]
    distance = np.clip(1 - D @ D.T, 0, 2)
    np.fill_diagonal(distance, 0)
    values = silhouette_samples(distance, classes, metric="precomputed")
    rng = np.random.default_rng([seed, 12])
    null = [
        silhouette_samples(distance, rng.permutation(classes), metric="precomputed").mean() for _ in range(permutations)
    ]
    interval = percentiles(draws(len(values), resamples, seed) @ values / len(values)) if resamples else None
    return Estimate(float(values.mean()), float(np.mean(null)), interval)


def silenced(
    codes: Float[np.ndarray, "rows n_latents"], latents: Int[np.ndarray, "some"]
) -> Float[np.ndarray, "rows n_latents"]:
    new = codes.copy()
    new[:, latents] = 0
    return new
