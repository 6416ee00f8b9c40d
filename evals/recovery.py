"""Do single latents stand for the attributes that are known to be there?

For each attribute the latent with the largest AP is chosen on one split of the samples, with the threshold of its largest F1, and AP and F1 are reported on
another: never the best of the report split, which even random codes win (1 of 16,384 is a lucky one). Beside them:

    floor of AP        prevalence: what a score that is the same for all rows has
    floor of F1        2 p / (1 + p): always yes
    share recovered    of attributes whose AP (or F1) is above a threshold; floor: the share whose own floor is
    shuffled           the whole protocol once more, with the rows of the truth permuted

Intervals are 95 % percentile bootstraps over samples of the report split; the choice is held fixed. Rows are samples, or tokens, of which those of a
sample are drawn together.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64
from scipy.sparse import csc_array

from evals.pooling import Scores
from evals.ranking import Resampled, average_precisions, best_threshold, column, resampled
from evals.reconstruction import percentiles
from evals.result import Estimate
from evals.sums import MAX_GROUPS, draws

THRESHOLDS = (0.3, 0.5, 0.7, 0.9)
HEADLINE = 0.7
MIN_POSITIVES = 10


@dataclass(frozen=True)
class Labelled:
    """Scores and truth of the same rows."""

    scores: Scores
    """[rows, candidates]."""
    truth: csc_array
    """[rows, attributes], boolean."""
    samples: Int64[np.ndarray, "rows"]
    """Which sample each row is of."""

    def has(self, attribute: int) -> np.ndarray:
        """Boolean column of the truth."""
        return self.truth[:, [attribute]].toarray()[:, 0].astype(bool)


@dataclass(frozen=True)
class Found:
    """One attribute, and the latent that was chosen for it."""

    name: str
    latent: int
    ap: Estimate
    f1: Estimate
    threshold: float
    """The latent says yes above this; minus infinity: always."""
    selection_ap: float
    """AP where the latent was chosen: above `ap` by what choosing flatters."""
    selection_positives: int
    positives: int


@dataclass(frozen=True)
class Recovery:
    """All attributes with enough rows that have them and enough that have not."""

    attributes: tuple[Found, ...]
    mean_ap: Estimate
    mean_f1: Estimate
    share_ap: dict[str, Estimate]
    """Share of attributes with AP above each threshold."""
    share_f1: dict[str, Estimate]
    distinct_latents: int
    """How many different latents were chosen; fewer than attributes where one stands for several."""
    candidates: int
    n_rows: int
    n_samples: int
    left_out: tuple[str, ...]
    """Attributes that too few rows of a split have, or lack."""
    ap_draws: Float[np.ndarray, "draws attributes"] | None = None
    """Bootstrap draws, for paired differences; not written."""


def recover(
    selection: Labelled,
    report: Labelled,
    names: tuple[str, ...],
    *,
    resamples: int = 200,
    seed: int = 0,
    min_positives: int = MIN_POSITIVES,
) -> Recovery:
    """Choose on `selection`, measure on `report`. Raises ValueError when they share a sample, or no attribute has enough rows."""
    if shared := len(np.intersect1d(selection.samples, report.samples)):
        raise ValueError(f"{shared:,} samples are both chosen on and reported on: split the samples.")
    kept = enough(selection, report, min_positives)
    if not len(kept):
        raise ValueError(
            f"no attribute is true of {min_positives} rows, and false of as many, in both the selection split "
            f"({selection.truth.shape[0]:,} rows) and the report split ({report.truth.shape[0]:,}): give more samples."
        )
    precisions = average_precisions(selection.scores, selection.truth[:, kept])
    latents = precisions.argmax(1)
    groups, weights = bootstrap(report.samples, resamples, seed)
    found, drawn = [], []
    for row, (attribute, latent) in enumerate(zip(kept.tolist(), latents.tolist(), strict=True)):
        chosen_on, has = selection.has(attribute), report.has(attribute)
        threshold, _ = best_threshold(column(selection.scores, latent), chosen_on)
        measured = resampled(column(report.scores, latent), has, threshold, groups, weights)
        p = float(has.mean())
        ap = Estimate(measured.ap, p, percentiles(measured.ap_draws))
        f1 = Estimate(measured.f1, 2 * p / (1 + p), percentiles(measured.f1_draws))
        at_selection = float(precisions[row, latent])
        found.append(
            Found(names[attribute], latent, ap, f1, threshold, at_selection, int(chosen_on.sum()), int(has.sum()))
        )
        drawn.append(measured)
    return summary(found, drawn, report, set(range(len(names))) - set(kept.tolist()), names)


def summary(
    found: list[Found], drawn: list[Resampled], report: Labelled, left_out: set[int], names: tuple[str, ...]
) -> Recovery:
    aps, f1s = np.stack([each.ap_draws for each in drawn], 1), np.stack([each.f1_draws for each in drawn], 1)
    ap, f1 = [each.ap for each in found], [each.f1 for each in found]
    return Recovery(
        attributes=tuple(found),
        mean_ap=mean(ap, aps),
        mean_f1=mean(f1, f1s),
        share_ap={str(at): share(ap, aps, at) for at in THRESHOLDS},
        share_f1={str(at): share(f1, f1s, at) for at in THRESHOLDS},
        distinct_latents=len({each.latent for each in found}),
        candidates=report.scores.shape[1],
        n_rows=len(report.samples),
        n_samples=len(np.unique(report.samples)),
        left_out=tuple(names[at] for at in sorted(left_out)),
        ap_draws=aps,
    )


def mean(estimates: list[Estimate], drawn: Float[np.ndarray, "draws attributes"]) -> Estimate:
    """Over attributes; a resample without any row of some attribute says nothing."""
    return Estimate(float(np.mean(values(estimates))), float(np.mean(floors(estimates))), percentiles(drawn.mean(1)))


def share(estimates: list[Estimate], drawn: Float[np.ndarray, "draws attributes"], above: float) -> Estimate:
    """Of attributes strictly above a threshold."""
    shares = np.where(np.isnan(drawn).any(1), np.nan, (drawn > above).mean(1))
    point, floor = np.mean(values(estimates) > above), np.mean(floors(estimates) > above)
    return Estimate(float(point), float(floor), percentiles(shares))


def shuffled(
    selection: Labelled, report: Labelled, names: tuple[str, ...], seed: int = 0, min_positives: int = MIN_POSITIVES
) -> Recovery:
    """The same protocol on permuted rows of the truth: what choosing among so many candidates reaches by luck."""
    rng = np.random.default_rng([seed, 1])

    def permuted(split: Labelled) -> Labelled:
        return dataclasses.replace(split, truth=csc_array(split.truth[rng.permutation(len(split.samples))]))

    return recover(permuted(selection), permuted(report), names, resamples=0, seed=seed, min_positives=min_positives)


def difference(ours: Recovery, theirs: Recovery, above: float | None = None) -> Estimate:
    """Paired difference of mean AP, or of the share of attributes with AP above a threshold; floor 0. Both on the same report split and seed.

    Raises ValueError when they do not report on the same attributes and resamples.
    """
    names = [[each.name for each in recovery.attributes] for recovery in (ours, theirs)]
    if names[0] != names[1] or ours.n_rows != theirs.n_rows:
        raise ValueError("the two were not measured on the same attributes and rows: measure them on one report split.")
    sides = []
    for recovery in (ours, theirs):
        points, drawn = values([each.ap for each in recovery.attributes])[None], recovery.ap_draws
        if drawn is None:
            raise ValueError("a difference needs the bootstrap draws, which were dropped: measure again.")
        scored = (
            [points, drawn] if above is None else [points > above, np.where(np.isnan(drawn), np.nan, drawn > above)]
        )
        sides.append([part.mean(1) for part in scored])
    (our_point, our_draws), (their_point, their_draws) = sides
    return Estimate(float(our_point[0] - their_point[0]), 0.0, percentiles(our_draws - their_draws))


def enough(selection: Labelled, report: Labelled, least: int) -> Int64[np.ndarray, "attributes"]:
    """Attributes that at least `least` rows have, and as many have not, in both splits."""
    good = np.ones(selection.truth.shape[1], bool)
    for split in (selection, report):
        positives = np.diff(split.truth.indptr)
        good &= (positives >= least) & (split.truth.shape[0] - positives >= least)
    return np.flatnonzero(good).astype(np.int64)


def bootstrap(
    samples: Int64[np.ndarray, "rows"], resamples: int, seed: int
) -> tuple[Int64[np.ndarray, "rows"], Float[np.ndarray, "draws groups"]]:
    """(group of each row, how often each group is drawn): samples one by one, or in MAX_GROUPS groups when there are more."""
    _, number = np.unique(samples, return_inverse=True)
    n = min(int(number.max()) + 1, MAX_GROUPS)
    return (number % MAX_GROUPS).astype(np.int64), draws(n, resamples, seed)


def values(estimates: list[Estimate]) -> Float[np.ndarray, "attributes"]:
    return np.array([each.value for each in estimates], np.float64)


def floors(estimates: list[Estimate]) -> Float[np.ndarray, "attributes"]:
    return np.array([each.floor for each in estimates], np.float64)
