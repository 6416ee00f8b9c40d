"""What is a latent called? The words of a vocabulary whose CLIP text embedding is nearest to it (Discover-then-Name, 2407.14499; spec/vision_peers.md 2.13).

    atoms     v_k = d_k                                                     of an SAE on CLIP's own image embedding, where images and texts share a space
    images    v_k = sum_i a_ik e_i / sum_i a_ik - mean_i e_i                of any SAE: e_i CLIP's unit image embedding, a_ik >= 0 the latent's pooled activation on image i
    name      argmax over words w of cos(v_k, t_w - mean_w t_w)             t_w: mean of the unit text embeddings of the word and its synonyms
    margin    cosine of the first name less that of the second

Texts and images lie in two cones of CLIP's space; both are centred, each about its own mean, which the paper does not do. A name is above chance when its cosine
exceeds that of 95 % of names of the floor: for `images` the latents' activations on other images (rows permuted), for `atoms` differences of two random images.
Where it is known what latents stand for: the share whose first name (or one of the first five) is that, beside names permuted among the same latents, exactly:
sum over words of (latents so named) (latents that stand for it) / n^2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64
from scipy.sparse import csc_array

from evals.pooling import Scores
from evals.ranking import average_precisions
from evals.reconstruction import percentiles
from evals.result import Estimate
from evals.sums import draws

LISTED = 5
LEAST_AP = 0.5
ABOVE = 0.95


@dataclass(frozen=True)
class Names:
    """One entry a latent that has a vector; the others are silent, or active on all images alike."""

    latent: Int64[np.ndarray, "named"]
    words: Int64[np.ndarray, "named listed"]
    """Numbers of the nearest words, nearest first."""
    cosine: Float[np.ndarray, "named listed"]
    margin: Float[np.ndarray, "named"]
    """0 where the vocabulary has one word."""


@dataclass(frozen=True)
class Right:
    """Names against what latents are known to stand for."""

    first: Estimate
    among: Estimate
    """Among the first LISTED."""
    random_first: float
    """Share of the floor's names that are right: of random images, or random directions."""
    latents: Int64[np.ndarray, "known"]
    word: Int64[np.ndarray, "known"]
    """What each of these stands for."""


def means_of_images(
    scores: Scores, embeddings: Float[np.ndarray, "images d"]
) -> tuple[Int64[np.ndarray, "named"], Float[np.ndarray, "named d"]]:
    """Latents with a mean of their own, and these means. Only positive activations count. Raises ValueError for other numbers of images."""
    if scores.shape[0] != len(embeddings):
        raise ValueError(f"{scores.shape[0]:,} images have activations and {len(embeddings):,} embeddings.")
    columns = csc_array(scores, dtype=np.float64).maximum(0)
    unit = normalised(embeddings)
    total = np.asarray(columns.sum(0)).ravel()
    means = np.asarray(columns.T @ unit) / np.where(total > 0, total, 1)[:, None] - unit.mean(0)
    # a latent that is active on all images alike is about nothing that CLIP could see
    kept = np.flatnonzero((total > 0) & (np.linalg.norm(means, axis=1) > 1e-9))
    return kept, means[kept]


def name(
    latent: Int64[np.ndarray, "named"],
    vectors: Float[np.ndarray, "named d"],
    words: Float[np.ndarray, "words d"],
    listed: int = LISTED,
) -> Names:
    """The nearest words of each vector; of equally near ones the first. Raises ValueError for fewer than two words, which cannot be centred."""
    if len(words) < 2:
        raise ValueError("a vocabulary of one word gives everything the same name: give two or more.")
    cosines = normalised(vectors) @ normalised(centred(words)).T
    order = np.argsort(-cosines.round(12), axis=1, kind="stable")[:, : max(2, listed)]
    best = np.take_along_axis(cosines, order, 1)
    return Names(latent, order[:, :listed].astype(np.int64), best[:, :listed], best[:, 0] - best[:, 1])


def bar(floor: Names, above: float = ABOVE) -> float:
    """The cosine that a first name must exceed; infinite where the floor has no name."""
    return float(np.quantile(floor.cosine[:, 0], above)) if len(floor.latent) else np.inf


def above_chance(names: Names, floor: Names, resamples: int = 200, seed: int = 0) -> Estimate:
    """Share of the names above the bar, which 5 % of the floor's are; the interval is over latents."""
    high = names.cosine[:, 0] > bar(floor)
    own = float((floor.cosine[:, 0] > bar(floor)).mean()) if len(floor.latent) else None
    return share(high, own, resamples, seed)


def share(yes: np.ndarray, floor: float | None, resamples: int, seed: int) -> Estimate:
    if not len(yes):
        return Estimate(None, floor)
    weights = draws(len(yes), resamples, seed)
    return Estimate(
        float(yes.mean()), floor, percentiles(weights @ yes / len(yes)) if len(yes) > 1 and resamples else None
    )


def known(
    scores: Scores, truth: csc_array, word_of: Int64[np.ndarray, "attributes"], least: float = LEAST_AP
) -> tuple[Int64[np.ndarray, "known"], Int64[np.ndarray, "known"]]:
    """(latents, words): the attribute of each latent with the largest AP above prevalence, (AP - p) / (1 - p), where that is `least` or more.

    word_of: -1 for an attribute without a word; latents that stand for one are left out.
    """
    p = np.asarray(truth.mean(0, dtype=np.float64)).ravel()[:, None]
    precision = (average_precisions(scores, truth) - p) / np.where(p < 1, 1 - p, 1)
    precision = np.where(np.isnan(precision) | (p == 1), -1, precision)
    attribute = precision.argmax(0)
    kept = np.flatnonzero((precision.max(0) >= least) & (word_of[attribute] >= 0))
    return kept, word_of[attribute[kept]]


def right(
    names: Names,
    floor: Names,
    latents: Int64[np.ndarray, "known"],
    word: Int64[np.ndarray, "known"],
    resamples: int = 200,
    seed: int = 0,
) -> Right:
    """How many of the latents whose meaning is known are called so. A known latent without a name is called wrongly."""
    own = listed(names, latents)
    first, among = own[:, :1] == word[:, None], own == word[:, None]
    n = max(len(latents), 1)

    def permuted(shown: np.ndarray) -> float:
        size = int(max(word.max(initial=0), shown.max(initial=0))) + 1
        meant, called = np.bincount(word, minlength=size), np.bincount(shown[shown >= 0], minlength=size)
        return float(meant @ called / n**2)

    return Right(
        share(first.any(1), permuted(own[:, :1]), resamples, seed),
        share(among.any(1), permuted(own), resamples, seed),
        float((listed(floor, latents)[:, :1] == word[:, None]).mean()) if len(latents) else 0.0,
        latents,
        word,
    )


def listed(names: Names, latents: Int64[np.ndarray, "known"]) -> Int64[np.ndarray, "known listed"]:
    """The names of some latents, -1 where there is none."""
    place = dict(zip(names.latent.tolist(), range(len(names.latent)), strict=True))
    rows = np.array([place.get(latent, -1) for latent in latents.tolist()], np.int64)
    found = np.full((len(latents), names.words.shape[1]), -1, np.int64)
    found[rows >= 0] = names.words[rows[rows >= 0]]
    return found


def differences(embeddings: Float[np.ndarray, "images d"], n: int, seed: int = 0) -> Float[np.ndarray, "n d"]:
    """Of two random images each: directions that occur in the data and mean nothing."""
    rng, unit = np.random.default_rng([seed, 21]), normalised(embeddings)
    first = rng.integers(0, len(unit), n)
    return unit[first] - unit[(first + rng.integers(1, max(len(unit), 2), n)) % len(unit)]


def centred(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    return rows - rows.mean(0)


def normalised(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Unit rows in float64; a zero row stays zero."""
    rows = np.asarray(rows, np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def words_of(attributes: Sequence[str], vocabulary: Sequence[Sequence[str]]) -> Int64[np.ndarray, "attributes"]:
    """Word of each attribute, by its whole name or what follows its last colon, in any case; -1 where the vocabulary has none."""
    place: dict[str, int] = {}
    for at, words in enumerate(vocabulary):
        for word in words:
            place.setdefault(plain(word), at)
    return np.array([place.get(plain(a), place.get(plain(a.rsplit(":", 1)[-1]), -1)) for a in attributes], np.int64)


def plain(word: str) -> str:
    return " ".join(word.casefold().replace("_", " ").split())
