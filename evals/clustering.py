"""Clusters of samples by the latents they activate, and samples found by latents (2512.10092; spec A12). Weights, k-means and measures are our choice.

    binary        e_ik = 1 where sample i activates latent k
    tf-idf        e_ik = z_ik (ln((1 + n) / (1 + n_k)) + 1), of the largest activation z_ik over tokens; n_k of n samples activate k
    activation    e_ik = z_ik
    rows          of unit length, so that products are cosines; a sample without an active latent is all zeros

    clusters      k-means of the rows; of some latents only where these are chosen, so that one says what alike means
    marks         of a cluster: latents whose share of its samples less the share of the others is largest
    by sample     the others in the order of their cosine with it; precision@k: share of the first k that have its label
    by latents    samples in the order of the sum of e_ik over the chosen latents

By attribute: on half of the samples the `most` latents are chosen whose share of those that have it less of those that lack it is largest; precision@k is that of
the other half in their order. Of dense features the direction from the one's mean to the other's is chosen instead, which is more than `most` coordinates.
Floors: the same with the samples' labels permuted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy.sparse import csc_array, csr_array
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.metrics import adjusted_rand_score
from sklearn.preprocessing import normalize

from evals.contents import active, differences
from evals.reconstruction import percentiles
from evals.result import Estimate
from evals.sums import draws

Weighting = Literal["binary", "tf-idf", "activation"]
Rows: TypeAlias = csr_array | np.ndarray
BLOCK = 512
PERMUTATIONS = 20


@dataclass(frozen=True)
class Mark:
    """A latent that a cluster is known by."""

    latent: int
    inside: float
    """Share of the cluster's samples that activate it."""
    outside: float


def embedded(scores: csc_array, weighting: Weighting = "tf-idf", latents: Sequence[int] | None = None) -> csr_array:
    """Rows [samples, latents] of positive scores, weighted; all but the chosen latents are 0. Raises ValueError for a latent that is none."""
    found = csr_array(scores).astype(np.float64)
    found = csr_array(found * (found > 0))
    if latents is not None:
        if lost := [k for k in latents if not 0 <= k < found.shape[1]]:
            raise ValueError(f"there is no latent {lost[0]}: they go from 0 to {found.shape[1] - 1:,}.")
        kept = np.zeros(found.shape[1])
        kept[list(latents)] = 1
        found = csr_array(found * kept[None])
    found.eliminate_zeros()
    # scikit-learn takes no 64-bit indices, which pooled codes have
    narrow = found.indices.astype(np.int32), found.indptr.astype(np.int32)
    found = csr_array((found.data, *narrow), shape=found.shape)
    if weighting == "binary":
        found.data[:] = 1
    if weighting == "tf-idf":
        found = csr_array(TfidfTransformer(norm=None).fit_transform(found))
    return csr_array(normalize(found))


def centred(x: Float[np.ndarray, "samples d"]) -> Float[np.ndarray, "samples d"]:
    """Dense features as rows of unit length about their mean."""
    return np.asarray(normalize(x - x.mean(0)))


def clusters(rows: Rows, n: int, seed: int = 0) -> Int64[np.ndarray, "samples"]:
    """Cluster of each sample, the largest 0. Raises ValueError for fewer than two clusters, or fewer samples than clusters."""
    if not 2 <= n <= rows.shape[0]:
        raise ValueError(f"{rows.shape[0]:,} samples cannot be put into {n} clusters: give 2 to the number of samples.")
    found = KMeans(n, n_init=5, random_state=seed).fit_predict(rows)
    order = np.argsort(-np.bincount(found, minlength=n), kind="stable")
    return np.argsort(order)[found].astype(np.int64)


def marks(scores: csc_array, cluster: Int64[np.ndarray, "samples"], most: int = 5) -> list[list[Mark]]:
    """Of each cluster, the latents commoner inside than outside, the most so first."""
    rows, found = csr_array(scores), list[list[Mark]]()
    for at in range(int(cluster.max()) + 1):
        inside = cluster == at
        if not inside.any() or inside.all():
            found.append([])
            continue
        d = differences(csc_array(rows[inside]), csc_array(rows[~inside]), min_samples=1)
        best = np.argsort(-d.difference, kind="stable")[:most]
        found.append([Mark(int(k), float(d.first[k]), float(d.second[k])) for k in best if d.difference[k] > 0])
    return found


def agreement(
    cluster: Int64[np.ndarray, "samples"], truth: Int64[np.ndarray, "samples"], resamples: int = 200, seed: int = 0
) -> Estimate:
    """Adjusted Rand index of clusters and labels; the interval is over samples."""
    rng, n = np.random.default_rng([seed, 51]), len(truth)
    floor = np.mean([adjusted_rand_score(rng.permutation(truth), cluster) for _ in range(PERMUTATIONS)])
    drawn = [rng.integers(0, n, n) for _ in range(resamples)]
    spread = np.array([adjusted_rand_score(truth[each], cluster[each]) for each in drawn])
    value = float(adjusted_rand_score(truth, cluster))
    return Estimate(value, float(floor), percentiles(spread) if resamples and n > 1 else None)


def nearest(rows: Rows, queries: Int64[np.ndarray, "queries"], most: int) -> Int64[np.ndarray, "queries most"]:
    """The samples with the largest cosine with each query, itself left out; of equal ones the first."""
    most, found = min(most, rows.shape[0] - 1), []
    for start in range(0, len(queries), BLOCK):
        block = queries[start : start + BLOCK]
        alike = rows[block] @ rows.T
        alike = alike if isinstance(alike, np.ndarray) else alike.toarray()
        # equal cosines must be equal numbers, in whatever order they were added up
        alike = np.round(alike, 10)
        alike[np.arange(len(block)), block] = -np.inf
        found.append(np.argsort(-alike, axis=1, kind="stable")[:, :most])
    return np.concatenate(found).astype(np.int64)


def by_sample(
    rows: Rows, truth: Int64[np.ndarray, "samples"], k: int = 10, resamples: int = 200, seed: int = 0
) -> Estimate:
    """Mean precision@k of every sample as a query; the interval is over queries."""
    order = nearest(rows, np.arange(len(truth)), k)
    mixed = np.random.default_rng([seed, 52]).permutation(truth)
    precision = (truth[order] == truth[:, None]).mean(1)
    spread = percentiles(draws(len(truth), resamples, seed) @ precision / len(truth)) if resamples else None
    return Estimate(float(precision.mean()), float((mixed[order] == mixed[:, None]).mean()), spread)


def by_latents(rows: csr_array, latents: Sequence[int], most: int) -> Int64[np.ndarray, "found"]:
    """Samples that activate one of the latents or more, the largest sum first; of equal ones the first. Raises ValueError for a latent that is none."""
    if lost := [k for k in latents if not 0 <= k < rows.shape[1]]:
        raise ValueError(f"there is no latent {lost[0]}: they go from 0 to {rows.shape[1] - 1:,}.")
    summed = np.asarray(rows[:, list(latents)].sum(1)).ravel()
    order = np.argsort(-summed, kind="stable")
    return order[summed[order] > 0][:most].astype(np.int64)


Scorer: TypeAlias = Callable[[Bool[np.ndarray, "half"]], Float[np.ndarray, "others"]]


def of_latents(scores: csc_array, rows: csr_array, fit: np.ndarray, report: np.ndarray, most: int) -> Scorer:
    """What an attribute of the fit half -> the report half's scores by the latents that tell it best."""
    fired = csr_array(active(scores))[fit].astype(np.float64)
    shown = csc_array(rows[report])

    def scored(has: Bool[np.ndarray, "half"]) -> Float[np.ndarray, "others"]:
        difference = (has / has.sum() - ~has / (~has).sum()) @ fired
        best = np.argsort(-difference, kind="stable")[:most]
        return np.asarray(shown[:, best].sum(1)).ravel()

    return scored


def of_dense(x: Float[np.ndarray, "samples d"], fit: np.ndarray, report: np.ndarray) -> Scorer:
    """The same by the direction from the mean of those that lack it to that of those that have it."""
    return lambda has: x[report] @ (x[fit][has].mean(0) - x[fit][~has].mean(0))


@dataclass(frozen=True)
class ByAttribute:
    """precision@k of each attribute that enough samples of both halves have, and not all."""

    names: tuple[str, ...]
    mean: dict[str, Estimate]
    """Of each method, over attributes; so is the interval. The floor chose by permuted labels."""
    precision: dict[str, list[float]]


def by_attribute(
    scores: csc_array,
    rows: csr_array,
    x: Float[np.ndarray, "samples d"],
    truth: Bool[np.ndarray, "samples attributes"],
    names: Sequence[str],
    *,
    k: int = 10,
    most: int = 3,
    resamples: int = 200,
    seed: int = 0,
) -> ByAttribute | None:
    """None where no attribute is true of k samples of either half, and false of one."""
    rng, n = np.random.default_rng([seed, 53]), len(truth)
    order = rng.permutation(n)
    fit, report = np.sort(order[: n // 2]), np.sort(order[n // 2 :])
    enough = [
        at
        for at in range(truth.shape[1])
        if min(truth[fit, at].sum(), truth[report, at].sum()) >= k and not (truth[fit, at].all())
    ]
    if not enough:
        return None
    methods = {"latents": of_latents(scores, rows, fit, report, most), "raw means": of_dense(x, fit, report)}
    mixed, weights = rng.permutation(len(fit)), draws(len(enough), resamples, seed) / len(enough)
    mean, precision = dict[str, Estimate](), dict[str, list[float]]()
    for name, scored in methods.items():

        def at_k(at: int, has: np.ndarray, scored: Scorer = scored) -> float:
            return float(truth[report, at][np.argsort(-scored(has), kind="stable")[:k]].mean())

        each = np.array([at_k(at, truth[fit, at]) for at in enough])
        floor = float(np.mean([at_k(at, truth[fit, at][mixed]) for at in enough]))
        spread = percentiles(weights @ each) if resamples and len(enough) > 1 else None
        mean[name], precision[name] = Estimate(float(each.mean()), floor, spread), each.tolist()
    return ByAttribute(tuple(names[at] for at in enough), mean, precision)
