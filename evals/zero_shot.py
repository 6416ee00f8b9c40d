"""Does agreement of codes help a CLIP name images? VL-SAE's enhancement of zero-shot classification (2510.21323; notes papers 5).

    score(image, class) = cos(x_v, x_c) + alpha cos(h_v, h_c)        x: embeddings of the image and of the class's text, h: their codes

alpha is the one of ALPHAS with the best accuracy on the validation images, the smallest of equals; test images are looked at once. The paper has an alpha
for each data set and does not say how it was found.

    accuracy      floor: share of the commonest class
    gain          of the enhanced over the plain score on the same test images; floor 0, interval: bootstrap over images
    control       the same with the codes of the classes exchanged: their cosines say nothing, and a gain would be one of tuning
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from evals.memorisation import norms
from evals.result import Estimate
from evals.steering import interval, weights

ALPHAS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)


@dataclass(frozen=True)
class Side:
    """Images of one split, or classes."""

    x: Float[np.ndarray, "rows d"]
    """Embeddings, as they are."""
    h: csr_array
    """Codes [rows, n_latents]."""


@dataclass(frozen=True)
class Enhanced:
    alpha: float
    plain: Estimate
    enhanced: Estimate
    gain: Estimate
    control: Estimate
    """Gain with exchanged codes, with an alpha of its own."""
    codes_alone: Estimate
    """Accuracy of cos(h_v, h_c)."""
    curve: dict[float, float]
    """alpha -> accuracy on the validation images."""


def evaluate(
    classes: Side,
    val: Side,
    val_class: Int[np.ndarray, "val"],
    test: Side,
    test_class: Int[np.ndarray, "test"],
    *,
    resamples: int = 500,
    seed: int = 0,
) -> Enhanced:
    """Raises ValueError for fewer than two classes, and an empty split."""
    if len(classes.x) < 2 or not len(val.x) or not len(test.x):
        raise ValueError(
            f"{len(classes.x)} classes, {len(val.x)} validation and {len(test.x)} test images: two classes and some of each are needed."
        )
    draws = weights(len(test.x), resamples, seed)
    curve = {alpha: accuracy(scores(val, classes, alpha), val_class) for alpha in ALPHAS}
    alpha = best(curve)
    order = np.random.default_rng(seed).permutation(len(classes.x))
    exchanged = Side(classes.x, classes.h[deranged(order)])
    other = best({each: accuracy(scores(val, exchanged, each), val_class) for each in ALPHAS})
    floor = float(np.bincount(test_class).max() / len(test_class))
    plain = hits(scores(test, classes, 0.0), test_class)
    ours = hits(scores(test, classes, alpha), test_class)
    theirs = hits(scores(test, exchanged, other), test_class)
    alone = hits(code_cosines(test.h, classes.h), test_class)

    def of(values: np.ndarray, at: float) -> Estimate:
        return Estimate(float(values.mean()), at, interval(draws @ values / len(values)))

    return Enhanced(
        alpha,
        of(plain, floor),
        of(ours, floor),
        of(ours - plain, 0.0),
        of(theirs - plain, 0.0),
        of(alone, floor),
        curve,
    )


def scores(images: Side, classes: Side, alpha: float) -> Float[np.ndarray, "images classes"]:
    """alpha 0 is the plain cosine, to the bit."""
    plain = cosines(images.x, classes.x)
    return plain if alpha == 0 else plain + alpha * code_cosines(images.h, classes.h)


def cosines(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(float).tiny) for x in (a, b))
    return a @ b.T


def code_cosines(a: csr_array, b: csr_array) -> Float[np.ndarray, "n m"]:
    """0 for an empty code."""
    lengths = np.maximum(norms(a)[:, None] * norms(b)[None], np.finfo(float).tiny)
    return np.asarray((a @ b.T).todense()) / lengths


def hits(scores: Float[np.ndarray, "images classes"], truth: Int[np.ndarray, "images"]) -> Float[np.ndarray, "images"]:
    """1 where the truth has the largest score; of equal scores each counts for its share."""
    top = scores.max(1, keepdims=True)
    ties = scores == top
    return np.where(ties[np.arange(len(truth)), truth], 1 / ties.sum(1), 0.0)


def accuracy(scores: Float[np.ndarray, "images classes"], truth: Int[np.ndarray, "images"]) -> float:
    return float(hits(scores, truth).mean())


def best(curve: dict[float, float]) -> float:
    """The smallest alpha of the best accuracy."""
    return min(curve, key=lambda alpha: (-round(curve[alpha], 12), alpha))


def deranged(order: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """A permutation along the circle `order`, which leaves nobody in place."""
    found = np.empty(len(order), np.int64)
    found[order] = np.roll(order, 1)
    return found
