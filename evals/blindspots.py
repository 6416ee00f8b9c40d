"""What an image generator draws too rarely or too often: concepts of real images against those of generated ones (2506.19708; spec/papers.md section 3).

    e_k        mean over images of the image's energy: mean of z_k over its tokens (the paper's code: their sum)
    delta_k    sigmoid((e_k(generated) - e_k(real)) / T)              below .1 suppressed, above .9 exaggerated, .5 neither
    r_k        (e_k(generated) - e_k(real)) / (their sum)             the same without a scale; -1: gone, 1: new
    p_k, q_k   permutation p-value (evals.permutation) and its Benjamini-Hochberg adjustment over the tested concepts
    limit_k    (Phi^-1(1 - alpha / 2m) + Phi^-1(power)) * se_k        the smallest |difference| that a lone change among m tests is found at

With p ~ exp(-energy) the paper's delta would have the other sign; its use (below .1: suppressed) needs this one. Delta moves with the scale of the code, of
the tokens' sum and of T, so it is never reported alone: delta < .1 needs e_real - e_gen > 2.197 T, which a concept of smaller energy cannot reach even
when it is gone, and noise can when tokens are summed up. The split-half null says what two halves of the same real images do.

A blindspot is a concept with q < alpha and |r| >= least_change; with a control (real images re-encoded as the generator's are), it must differ from the
control, too, and in the same direction, so that what the encoding does is not held against the content.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array, csc_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit
from scipy.stats import norm, skew
from torch import Tensor

from evals.permutation import adjusted, dense_columns, enough_for, paired, unpaired
from evals.reconstruction import divide

SUPPRESSED, EXAGGERATED = 0.1, 0.9
POWER = 0.8


@dataclass(frozen=True)
class Difference:
    """Two sets of images, concept by concept; NaN where a concept is silent in both, or (p, q, limit) too rare to be tested."""

    real: Float[np.ndarray, "concepts"]
    generated: Float[np.ndarray, "concepts"]
    delta: Float[np.ndarray, "concepts"]
    relative: Float[np.ndarray, "concepts"]
    p: Float[np.ndarray, "concepts"]
    q: Float[np.ndarray, "concepts"]
    limit: Float[np.ndarray, "concepts"]
    """Above `real`, not even the concept's disappearance would be found for sure."""
    temperature: float
    alpha: float
    paired: bool
    permutations: int
    n_real: int
    n_generated: int

    @property
    def live(self) -> Bool[np.ndarray, "concepts"]:
        return ~np.isnan(self.relative)

    @property
    def tested(self) -> Bool[np.ndarray, "concepts"]:
        return ~np.isnan(self.p)

    def found(self, least_change: float) -> Bool[np.ndarray, "concepts"]:
        """q < alpha and |r| >= least_change."""
        with np.errstate(invalid="ignore"):
            return (self.q < self.alpha) & (np.abs(self.relative) >= least_change)


@dataclass(frozen=True)
class Null:
    """What random halves of the same real images do to each other."""

    delta_range: tuple[float, float]
    """Over concepts and splits."""
    crosses: bool
    """The range reaches .1 or .9, so that at this temperature those thresholds say nothing."""
    skew: float
    """Of delta, mean over splits."""
    correlation: float
    """Of relative differences of two thirds from the third: two generators are compared with the same real images, which alone correlates them."""
    found: float
    """Share of tested concepts that are found (q < alpha and large enough) between two halves."""
    splits: int


def delta(
    generated: Float[np.ndarray, "concepts"], real: Float[np.ndarray, "concepts"], temperature: float
) -> Float[np.ndarray, "concepts"]:
    """sigmoid((generated - real) / temperature) of mean energies. Raises ValueError unless the temperature is positive."""
    if not temperature > 0:
        raise ValueError(f"the temperature is {temperature}, but delta divides by it: choose a positive one.")
    return expit((generated - real) / temperature)


def relative_difference(
    generated: Float[np.ndarray, "concepts"], real: Float[np.ndarray, "concepts"]
) -> Float[np.ndarray, "concepts"]:
    """(generated - real) / (generated + real); NaN where both are 0."""
    return divide(generated - real, generated + real)


def energy(scores: csc_array) -> Float[np.ndarray, "concepts"]:
    """Mean over images."""
    return np.asarray(scores.mean(axis=0, dtype=np.float64)).ravel()


def compare(
    real: csc_array,
    generated: csc_array,
    *,
    temperature: float,
    pairs: bool,
    alpha: float = 0.05,
    permutations: int | None = None,
    min_samples: int = 10,
    seed: int = 0,
) -> Difference:
    """Energies [images, concepts] of two sets; with `pairs`, row i of both is of the same caption.

    permutations: as many as a lone change needs (`evals.permutation.enough_for`) when left out. Concepts that speak in fewer than `min_samples` images
    of both sets together are not tested. Raises ValueError for empty sets and for sets of other concepts.
    """
    check(real, generated)
    e_real, e_generated = energy(real), energy(generated)
    speaks = np.asarray((real != 0).sum(0) + (generated != 0).sum(0)).ravel()
    tested = np.flatnonzero(speaks >= max(1, min_samples))
    permutations = permutations or enough_for(len(tested), alpha)
    p, limit = np.full((2, real.shape[1]), np.nan)
    test = paired if pairs else unpaired
    p[tested] = test(generated[:, tested], real[:, tested], permutations, seed)
    reach = norm.isf(alpha / (2 * max(1, len(tested)))) + norm.ppf(POWER)
    limit[tested] = reach * standard_error(generated[:, tested], real[:, tested], pairs)
    relative = relative_difference(e_generated, e_real)
    moved = np.where(np.isnan(relative), np.nan, delta(e_generated, e_real, temperature))
    sizes = real.shape[0], generated.shape[0]
    q = adjusted(p)
    return Difference(
        e_real, e_generated, moved, relative, p, q, limit, temperature, alpha, pairs, permutations, *sizes
    )


def null(
    real: csc_array,
    *,
    temperature: float,
    least_change: float,
    alpha: float = 0.05,
    min_samples: int = 10,
    splits: int = 20,
    seed: int = 0,
) -> Null:
    """Random halves (and thirds) of the real images against each other. Raises ValueError for fewer than six images."""
    n = real.shape[0]
    if n < 6:
        raise ValueError(f"{n} real images are too few to be split: give at least six.")
    rng, rows = np.random.default_rng([seed, 1]), real.tocsr()
    deltas, skews, correlations = [], [], []
    for _ in range(splits):
        halves = [energy(csc_array(rows[part])) for part in np.array_split(rng.permutation(n), 2)]
        live = halves[0] + halves[1] > 0
        deltas.append(delta(halves[0], halves[1], temperature)[live])
        skews.append(skewness(deltas[-1]))
        third, first, second = (energy(csc_array(rows[part])) for part in np.array_split(rng.permutation(n), 3))
        correlations.append(correlation(relative_difference(first, third), relative_difference(second, third)))
    first, second = (csc_array(rows[np.sort(part)]) for part in np.array_split(rng.permutation(n), 2))
    one = compare(first, second, temperature=temperature, pairs=False, alpha=alpha, min_samples=min_samples, seed=seed)
    low, high = float(min(map(np.min, deltas))), float(max(map(np.max, deltas)))
    share = float(one.found(least_change).sum() / max(1, one.tested.sum()))
    crosses = low <= SUPPRESSED or high >= EXAGGERATED
    return Null((low, high), crosses, mean_of(skews), mean_of(correlations), share, splits)


def merged(atoms: Float[Tensor, "n_latents d_model"], cosine: float = 0.9) -> Int[np.ndarray, "n_latents"]:
    """The concept of each latent: latents whose atoms have a larger cosine, directly or through others, are one. Numbered by their first latent."""
    unit = torch.nn.functional.normalize(atoms.detach().float(), dim=1)
    rows, columns = [], []
    for start in range(0, len(unit), 1024):
        near = (unit[start : start + 1024] @ unit.T > cosine).nonzero()
        rows.append(near[:, 0] + start)
        columns.append(near[:, 1])
    row, column = torch.cat(rows).cpu().numpy(), torch.cat(columns).cpu().numpy()
    graph = coo_array((np.ones(len(row), bool), (row, column)), shape=(len(unit), len(unit)))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def by_concept(scores: csc_array, concept: Int[np.ndarray, "n_latents"]) -> csc_array:
    """Sum of the latents of each concept."""
    latents, shape = np.arange(len(concept)), (len(concept), int(concept.max()) + 1)
    return csc_array(scores @ csc_array((np.ones(len(concept)), (latents, concept)), shape=shape))


def standard_error(generated: csc_array, real: csc_array, pairs: bool) -> Float[np.ndarray, "concepts"]:
    """Of the difference of mean energies."""
    if pairs:
        return np.sqrt(variance(csc_array(generated - real)) / real.shape[0])
    return np.sqrt(variance(generated) / generated.shape[0] + variance(real) / real.shape[0])


def variance(scores: csc_array) -> Float[np.ndarray, "concepts"]:
    """Of each column, unbiased; 0 for one row. In blocks, about the mean: sums of squares would cancel."""
    found, n = np.zeros(scores.shape[1]), scores.shape[0]
    for some, block in dense_columns(scores, np.arange(scores.shape[1])):
        found[some] = block.var(0, ddof=1) if n > 1 else 0.0
    return found


def resampled(scores: csc_array, draws: Float[np.ndarray, "draws images"]) -> Float[np.ndarray, "draws concepts"]:
    """Mean energies of bootstrap draws: how often each image is drawn in each."""
    weights = draws / draws.sum(1, keepdims=True)
    return np.concatenate([weights @ block for _, block in dense_columns(scores, np.arange(scores.shape[1]))], 1)


def correlation(first: Float[np.ndarray, "concepts"], second: Float[np.ndarray, "concepts"]) -> float:
    """Pearson's r over the concepts that both have a number for; NaN where that is undefined."""
    both = np.isfinite(first) & np.isfinite(second)
    x, y = first[both], second[both]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def skewness(deltas: Float[np.ndarray, "concepts"]) -> float:
    """Of delta over the live concepts: negative where more goes missing than comes up. 0 where all are equal."""
    finite = deltas[np.isfinite(deltas)]
    return float(skew(finite)) if len(finite) > 2 and np.ptp(finite) > 1e-12 else 0.0


def mean_of(values: list[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def check(real: csc_array, generated: csc_array) -> None:
    if real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"the real images have {real.shape[1]} concepts and the generated ones {generated.shape[1]}: encode both with one SAE."
        )
    for name, scores in (("real", real), ("generated", generated)):
        if not scores.shape[0]:
            raise ValueError(f"there is no {name} image: see that the store holds tokens of the chosen kinds.")
