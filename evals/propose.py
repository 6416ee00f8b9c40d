"""Propose and audit: do a few image labels point at latents that stand for things nobody labelled? (2511.17735, draft protocol.)

    propose      logistic regression with an L1 penalty from the largest activation of each latent in an image to the image's labels;
                 latents ranked by s_j = sum_c |W_cj|, equal ones at random
    audit        AP_j = max_h AP(z_j, mask of h) on the patches of other images and of classes h that proposed nothing; grounded: AP_j >= .3
    yield(B)     how many of the first B are grounded       floor: B * share of all live latents that are; with the 95 % range of random orders

AP_j is a maximum over classes on the data it is reported on, as published; the random order has the same advantage, and is what a yield is read beside.
The penalty's strength is the one of STRENGTHS with the best log loss on held-out folds; features are scaled to a largest value of 1 (both ours).
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import sklearn
from jaxtyping import Bool, Float, Int, Int64
from scipy.sparse import csc_array, csr_array
from scipy.stats import hypergeom
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.preprocessing import MaxAbsScaler

from evals.ranking import average_precisions, resampled
from evals.recovery import bootstrap
from evals.result import Estimate

STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""C; 1 is ours, for a few hundred images leave no weight at the published ones."""
BUDGETS = (10, 25, 50, 100)
GROUNDED = 0.3
FOLDS = 3


@dataclass(frozen=True)
class Yield:
    """Grounded latents among the first B that were proposed."""

    budget: int
    grounded: Estimate
    """Floor: of a random order. Interval: bootstrap over images, order and classes held."""
    random: tuple[int, int]
    """What 95 % of random orders have."""


@dataclass(frozen=True)
class Audit:
    """Proposals, judged."""

    yields: tuple[Yield, ...]
    share: float
    """Of live latents that are grounded."""
    live: int
    known: tuple[str, ...]
    """Classes whose presence in an image proposed."""
    audited: tuple[str, ...]
    """Classes whose masks judged."""
    strengths: tuple[float, ...]
    """C, for each class that proposed."""
    order: tuple[int, ...]
    """The proposed latents, best first."""


def image_max(codes: csc_array, samples: Int64[np.ndarray, "patches"]) -> csr_array:
    """[images, n_latents]: the largest positive activation over the patches of each image, images in ascending order."""
    _, image = np.unique(samples, return_inverse=True)
    entries = codes.tocoo()
    rows, columns = image[entries.row], entries.col
    order = np.lexsort((columns, rows))
    rows, columns, values = rows[order], columns[order], entries.data[order]
    first = np.flatnonzero(np.diff(rows.astype(np.int64) * codes.shape[1] + columns, prepend=-1))
    top = np.maximum.reduceat(values, first) if len(first) else values
    shape = (int(image.max()) + 1, codes.shape[1])
    found = csr_array((np.maximum(top, 0), (rows[first], columns[first])), shape=shape)
    found.eliminate_zeros()
    return found


def presence(
    labels: Int[np.ndarray, "patches"], samples: Int64[np.ndarray, "patches"], n_classes: int
) -> Bool[np.ndarray, "images classes"]:
    """Which classes are on some patch of each image."""
    _, image = np.unique(samples, return_inverse=True)
    found = np.zeros((int(image.max()) + 1, n_classes), bool)
    found[image, labels] = True
    return found


def propose(
    images: csr_array, labels: Bool[np.ndarray, "images classes"], seed: int = 0
) -> tuple[Float[np.ndarray, "n_latents"], tuple[float, ...]]:
    """(s, the chosen C of each class). Raises ValueError for a class that fewer than FOLDS images have, or lack."""
    x, s, chosen = MaxAbsScaler().fit_transform(images.copy()), np.zeros(images.shape[1]), list[float]()
    # scikit-learn's solver takes 32-bit indices only
    x.indices, x.indptr = x.indices.astype(np.int32), x.indptr.astype(np.int32)
    for c in range(labels.shape[1]):
        y = labels[:, c]
        if min(y.sum(), (~y).sum()) < FOLDS:
            raise ValueError(
                f"class {c} is in {y.sum()} of {len(y)} images: {FOLDS} must have it, and {FOLDS} lack it."
            )
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            scores = [
                cross_val_score(model(strength, seed), x, y, cv=folds, scoring="neg_log_loss").mean()
                for strength in STRENGTHS
            ]
            chosen.append(STRENGTHS[int(np.argmax(scores))])
            s += np.abs(model(chosen[-1], seed).fit(x, y).coef_[0])
    return s, tuple(chosen)


def model(strength: float, seed: int) -> LogisticRegression:
    # scikit-learn 1.8 renamed the penalty, and would take the old name's default, L2, for granted before
    major, minor = (int(number) for number in sklearn.__version__.split(".")[:2])
    penalty: dict[str, Any] = {"l1_ratio": 1.0} if (major, minor) >= (1, 8) else {"penalty": "l1"}
    return LogisticRegression(C=strength, solver="liblinear", random_state=seed, **penalty)


def ranking(
    s: Float[np.ndarray, "n_latents"], live: Bool[np.ndarray, "n_latents"], seed: int = 0
) -> Int64[np.ndarray, "live"]:
    """Live latents by s, largest first; equal ones in random order."""
    luck = np.random.default_rng([seed, 9]).random(len(s))
    order = np.lexsort((luck, -s))
    return order[live[order]]


def audit(
    order: Int64[np.ndarray, "live"],
    codes: csc_array,
    labels: Int[np.ndarray, "patches"],
    samples: Int64[np.ndarray, "patches"],
    classes: Int64[np.ndarray, "audited"],
    resamples: int = 200,
    seed: int = 0,
) -> tuple[tuple[Yield, ...], float]:
    """(yields, share of live latents that are grounded), on the masks of `classes`. Raises ValueError for no latent or no class."""
    if not len(order) or not len(classes):
        raise ValueError(f"{len(order)} latents and {len(classes)} classes: an audit needs one of each at least.")
    truth = csc_array(labels[:, None] == classes)
    aps = np.nan_to_num(average_precisions(codes, truth))
    grounded = aps.max(0)[order] >= GROUNDED
    first = order[: max(BUDGETS)]
    best = classes[aps.argmax(0)[first]]
    groups, weights = bootstrap(samples, resamples, seed)
    again = np.zeros((resamples, len(first)), bool)
    for at, (latent, c) in enumerate(zip(first.tolist(), best.tolist(), strict=True)):
        score = codes[:, [latent]].toarray()[:, 0].astype(np.float64)
        again[:, at] = resampled(score, labels == c, 0.0, groups, weights).ap_draws >= GROUNDED
    found, n = [], len(order)
    for budget in BUDGETS:
        taken, some = min(budget, n), resamples > 1
        random = hypergeom(n, int(grounded.sum()), taken)
        spread = np.quantile(again[:, :taken].sum(1), [0.025, 0.975]).tolist() if some else None
        value = Estimate(
            float(grounded[:taken].sum()), taken * float(grounded.mean()), tuple(spread) if spread else None
        )
        chances = np.cumsum(random.pmf(np.arange(taken + 1)))
        low, high = np.searchsorted(chances, [0.025, 0.975]).tolist()
        found.append(Yield(budget, value, (low, min(high, taken))))
    return tuple(found), float(grounded.mean())


def evaluate(
    fit: tuple[csc_array, Int[np.ndarray, "fit"], Int64[np.ndarray, "fit"]],
    report: tuple[csc_array, Int[np.ndarray, "report"], Int64[np.ndarray, "report"]],
    names: tuple[str, ...],
    resamples: int = 200,
    seed: int = 0,
) -> Audit | None:
    """Every second class (of those that enough images of the fit split have and lack) proposes, the others are audited; None with fewer than two.

    Each split: (codes, classes, image) of its patches.
    """
    images, there = image_max(fit[0], fit[2]), presence(fit[1], fit[2], len(names))
    counts = there.sum(0)
    usable = np.flatnonzero((counts >= FOLDS) & (len(there) - counts >= FOLDS))
    known = usable[::2]
    others = np.setdiff1d(np.flatnonzero(np.bincount(report[1], minlength=len(names))), known)
    live = np.diff(fit[0].indptr) > 0
    if not len(known) or not len(others) or not live.any():
        return None
    s, strengths = propose(images, there[:, known], seed)
    order = ranking(s, live, seed)
    yields, share = audit(order, *report, others, resamples, seed)
    named = tuple(names[c] for c in known), tuple(names[c] for c in others)
    return Audit(yields, share, len(order), *named, strengths, tuple(order[: max(BUDGETS)].tolist()))
