"""Are explanations of latents right? A judge is asked, and its answers are counted (Delphi, 2410.13928, for images; spec/seeds_and_text_peers.md A3).

    detection    a sample and the explanation: is it shown there? Yes where the latent is active, no where it is silent
    fuzzing      a picture lit where the latent is active, or at as many other places of it, and the explanation: is it shown in the lit part?
    intruder     SHEET pictures of which all but one activate the latent, and no explanation: which is the odd one? Whether there is anything to explain
    embedding    the explanation as a query: do the cosines of its CLIP text embedding rank active images above silent ones? (AUROC; no judge)

Detection and fuzzing are scored by balanced accuracy, the mean of the shares of right answers among the yes and among the no: a judge that always says yes
has .5, its floor. Beside it the AUROC of log p(yes) - log p(no), which a judge's leaning to one answer does not change. Floor of intruder: 1 / SHEET.

The null judge is the same judge asked the same with another latent's explanation: what it gets right needs no explanation, and where its answers agree with
the judge's own, those do not come from the explanation. Intervals are over latents.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64
from scipy.sparse import csc_array
from sklearn.metrics import roc_auc_score

from evals.reconstruction import percentiles
from evals.result import Estimate
from evals.sums import draws

SHEET = 5
YES, NO = "yes", "no"


@dataclass(frozen=True)
class Drawn:
    """Samples of one latent, by row of its scores: for its explanation, and others to ask about."""

    latent: int
    shown: Int64[np.ndarray, "shown"]
    """The strongest of the explaining half."""
    active: Int64[np.ndarray, "active"]
    """Of the asking half, spread over the quantiles of the activation."""
    silent: Int64[np.ndarray, "silent"]
    """Of the asking half, at random."""


@dataclass(frozen=True)
class Scored:
    """One kind of question. NaN for a latent that it could not be asked about."""

    score: Estimate
    auroc: Estimate | None
    null: Estimate | None
    """The null judge's score."""
    agreement: float | None
    """Share of equal answers of the judge and the null judge."""
    by_latent: Float[np.ndarray, "latents"]
    null_by_latent: Float[np.ndarray, "latents"] | None
    questions: int


def draw(
    scores: csc_array,
    explaining: np.ndarray,
    latents: int,
    shown: int = 8,
    asked: int = 10,
    seed: int = 0,
    among: Collection[int] | None = None,
) -> list[Drawn]:
    """Random latents (of `among`) with enough samples. explaining: boolean, the rows to explain by; the others are asked about.

    A latent needs `shown` active rows to explain by, and `asked` active and as many silent ones to ask about. Raises ValueError where none has.
    """
    if asked < SHEET or shown < 1:
        raise ValueError(f"ask about {SHEET} samples or more (that is a sheet), and explain by one or more.")
    columns, n = csc_array(scores), scores.shape[0]
    rng, found = np.random.default_rng([seed, 31]), list[Drawn]()
    for latent in rng.permutation(columns.shape[1]).tolist():
        if among is not None and latent not in among:
            continue
        entries = slice(columns.indptr[latent], columns.indptr[latent + 1])
        rows, values = (
            columns.indices[entries][columns.data[entries] > 0],
            columns.data[entries][columns.data[entries] > 0],
        )
        order = np.lexsort((rows, -values))
        rows = rows[order].astype(np.int64)
        own, others = rows[explaining[rows]], rows[~explaining[rows]]
        silent = np.setdiff1d(np.flatnonzero(~explaining), rows)
        if len(own) < shown or len(others) < asked or len(silent) < asked:
            continue
        spread = others[np.linspace(0, len(others) - 1, asked).round().astype(int)]
        found.append(Drawn(latent, own[:shown], spread, np.sort(rng.choice(silent, asked, replace=False))))
        if len(found) == latents:
            break
    if not found:
        raise ValueError(
            f"no latent is active on {shown} samples to explain by and {asked} to ask about, and silent on as many, of {n:,}: give more samples."
        )
    return found


def others(n: int, seed: int = 0) -> Int64[np.ndarray, "n"]:
    """Whose explanation the null judge gets: never a latent's own. Raises ValueError for a single latent."""
    if n < 2:
        raise ValueError("the null judge needs another latent's explanation: ask about two latents or more.")
    order = np.random.default_rng([seed, 32]).permutation(n)
    found = np.empty(n, np.int64)
    found[order] = np.roll(order, 1)
    return found


def balanced(right: np.ndarray, said: np.ndarray) -> float:
    """Mean of the shares of right answers among the yes and among the no; NaN where one of them was not asked."""
    if not right.any() or right.all():
        return float("nan")
    return float((said[right].mean() + (~said[~right]).mean()) / 2)


def scored(
    owner: Int64[np.ndarray, "questions"],
    right: np.ndarray,
    lean: Float[np.ndarray, "questions"],
    null: Float[np.ndarray, "questions"],
    latents: int,
    resamples: int = 200,
    seed: int = 0,
) -> Scored:
    """Yes/no questions. owner: number of the latent; right: boolean; lean, null: log p(yes) - log p(no) of the judge and the null judge. 0 is a no."""
    own, nothing, curve = (np.full(latents, np.nan) for _ in range(3))
    for latent in range(latents):
        mine = owner == latent
        own[latent], nothing[latent] = balanced(right[mine], lean[mine] > 0), balanced(right[mine], null[mine] > 0)
        if right[mine].any() and not right[mine].all():
            curve[latent] = roc_auc_score(right[mine], lean[mine])
    return Scored(
        mean(own, 0.5, resamples, seed),
        mean(curve, 0.5, resamples, seed),
        mean(nothing, 0.5, resamples, seed),
        float(((lean > 0) == (null > 0)).mean()) if len(lean) else None,
        own,
        nothing,
        len(right),
    )


def chosen(
    owner: Int64[np.ndarray, "questions"],
    right: Int64[np.ndarray, "questions"],
    said: Int64[np.ndarray, "questions"],
    null: Int64[np.ndarray, "questions"],
    latents: int,
    options: int = SHEET,
    resamples: int = 200,
    seed: int = 0,
) -> Scored:
    """Questions with several answers. null: what the judge said of sheets without an intruder, each in the place of one with."""
    own, nothing = (
        np.array(
            [(x[owner == k] == right[owner == k]).mean() if (owner == k).any() else np.nan for k in range(latents)]
        )
        for x in (said, null)
    )
    floor = 1 / options
    agreement = float((said == null).mean()) if len(said) else None
    return Scored(
        mean(own, floor, resamples, seed),
        None,
        mean(nothing, floor, resamples, seed),
        agreement,
        own,
        nothing,
        len(right),
    )


def retrieved(
    cosines: Sequence[Float[np.ndarray, "samples"]],
    right: Sequence[np.ndarray],
    null: Sequence[Float[np.ndarray, "samples"]],
    resamples: int = 200,
    seed: int = 0,
) -> Scored:
    """AUROC of each latent's cosines; null: cosines to another latent's explanation."""
    own, nothing = (
        np.array([roc_auc_score(r, x) for r, x in zip(right, each, strict=True)], np.float64)
        for each in (cosines, null)
    )
    total = int(sum(len(each) for each in right))
    return Scored(mean(own, 0.5, resamples, seed), None, mean(nothing, 0.5, resamples, seed), None, own, nothing, total)


def mean(values: Float[np.ndarray, "latents"], floor: float, resamples: int, seed: int) -> Estimate:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return Estimate(None, floor)
    interval = None
    if len(defined) > 1 and resamples:
        interval = percentiles(draws(len(defined), resamples, seed) @ defined / len(defined))
    return Estimate(float(defined.mean()), floor, interval)
