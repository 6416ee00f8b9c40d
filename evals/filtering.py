"""Which image-text pairs to keep: scores of samples from codes, and how well they find planted mismatches (2502.17514, 2510.21323; spec/papers.md 4, 5).

    A_v, A_t      latents that are active (z > threshold) in some image token, in some text token of a sample; w: evals.cross_modal
    union         sum of w over A_v or A_t: SAE-V as its code has it. It rewards a sample for all it speaks of, so that a caption about something else,
                  with concepts of its own, raises it: not a match detector
    both          sum of w over A_v and A_t (ours)
    per_token     sum of w over the active latents of every token: the length of the sample, mostly
    cooccurring   number of latents above 1 in both;      l0, l1: mean over tokens
    agreement     cosine of the codes of image and text (VL-SAE: one encoder for both)

Larger: keep. AUROC is the chance that a matched pair scores above a mismatched one, ties counting half; floor .5.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from evals.memorisation import norms
from evals.result import Estimate

COOCCURRING = 1.0
STRATA = 10


@dataclass(frozen=True)
class SampleCodes:
    """Codes of mixed samples, pooled. Row i is sample i."""

    image: csr_array
    """[samples, n_latents] largest activation over the image tokens."""
    text: csr_array
    """The same over the text tokens."""
    counts: csr_array
    """In how many tokens each latent is active."""
    l0: Float[np.ndarray, "samples"]
    l1: Float[np.ndarray, "samples"]
    length: Float[np.ndarray, "samples"]
    """Text tokens."""


@dataclass(frozen=True)
class Filter:
    """A score, judged."""

    auroc: Estimate
    auroc_stratified: Estimate
    """Of the rank among samples of like length."""
    length_correlation: float | None
    """Pearson's, with the length of the text."""
    length_correlation_matched: float | None
    """Among matched pairs only."""
    kept_matched: Estimate
    """Share of matched pairs among the better half; floor: among all."""


def sae_v(
    codes: SampleCodes, weights: Float[np.ndarray, "n_latents"], threshold: float = 0.0
) -> dict[str, Float[np.ndarray, "samples"]]:
    """Scores of every sample by name; latents without a weight add nothing."""
    w = np.nan_to_num(weights)
    image, text = active(codes.image, threshold), active(codes.text, threshold)
    either, both = active(csr_array(image + text), 0.0), csr_array(image.multiply(text))
    strong = active(codes.image, COOCCURRING).multiply(active(codes.text, COOCCURRING))
    return {
        "union": either @ w,
        "both": both @ w,
        "per_token": codes.counts @ w,
        "cooccurring": np.asarray(strong.sum(1)).ravel().astype(np.float64),
        "l0": codes.l0,
        "l1": codes.l1,
    }


def patch_scores(
    patches: csr_array,
    text: Float[np.ndarray, "n_latents"],
    weights: Float[np.ndarray, "n_latents"],
    threshold: float = 0.0,
) -> dict[str, Float[np.ndarray, "patches"]]:
    """The same for the patches of one image, beside the largest activations of its text."""
    on = active(patches, threshold)
    return {
        "l0": np.asarray(on.sum(1)).ravel(),
        "l1": np.asarray(abs(patches).sum(1)).ravel(),
        "cooccurring": active(patches, COOCCURRING) @ (text > COOCCURRING).astype(np.float64),
        "cosine": on @ np.nan_to_num(weights),
    }


def agreement(image: csr_array, text: csr_array) -> Float[np.ndarray, "samples"]:
    """Cosine of codes, row by row; 0 for an empty one."""
    dot = np.asarray(image.multiply(text).sum(1, dtype=np.float64)).ravel()
    return dot / np.maximum(norms(image) * norms(text), np.finfo(float).tiny)


def active(codes: csr_array, threshold: float) -> csr_array:
    """1 where the code is above the threshold, which is 0 or more: zeros are not written."""
    if threshold < 0:
        raise ValueError(f"the threshold is {threshold}, but a silent latent is not active: choose 0 or more.")
    return csr_array((codes > threshold).astype(np.float64))


def keep(scores: Float[np.ndarray, "samples"], share: float | int) -> Int[np.ndarray, "kept"]:
    """The best share (0 to 1) of the samples, in their own order; of equal scores the first come first, NaN last. Raises ValueError."""
    if not 0 <= share <= 1:
        raise ValueError(f"the share to keep is {share}: give a number between 0 and 1.")
    order = np.argsort(-np.where(np.isnan(scores), -np.inf, scores), kind="stable")
    return np.sort(order[: round(share * len(scores))])


def stratified(
    scores: Float[np.ndarray, "samples"], lengths: Float[np.ndarray, "samples"], strata: int = STRATA
) -> Float[np.ndarray, "samples"]:
    """Rank, 0 to 1, among the samples of like length: as many strata as quantiles of the length differ. Ties have one rank."""
    return rank_within(scores, length_strata(lengths, strata))


def length_strata(lengths: Float[np.ndarray, "samples"], strata: int = STRATA) -> Int[np.ndarray, "samples"]:
    """Stratum of each sample, by quantiles of the length."""
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, strata + 1)[1:-1]))
    return np.searchsorted(edges, lengths, side="right")


def rank_within(
    scores: Float[np.ndarray, "samples"], stratum: Int[np.ndarray, "samples"]
) -> Float[np.ndarray, "samples"]:
    """Rank, 0 to 1, among the samples of one stratum. Ties have one rank."""
    found = np.empty(len(scores))
    for each in np.unique(stratum):
        mine = stratum == each
        found[mine] = (rankdata(scores[mine]) - 0.5) / mine.sum()
    return found


def budgeted(
    scores: Float[np.ndarray, "samples"],
    share: float | None = None,
    count: int | None = None,
    threshold: float | None = None,
    strata: Int[np.ndarray, "samples"] | None = None,
) -> Bool[np.ndarray, "samples"]:
    """Which samples one of three budgets keeps: a share, a number, or all that score `threshold` or more. A score of NaN is never kept.

    With `strata`, samples are compared with those of their own stratum: each keeps its best of the share or, as near as whole samples allow, of the number.
    Raises ValueError unless there is one budget, and for a threshold with strata.
    """
    if sum(budget is not None for budget in (share, count, threshold)) != 1:
        raise ValueError("how much to keep is not clear: give one of a share, a count and a threshold.")
    known = ~np.isnan(scores)
    if threshold is not None:
        if strata is not None:
            raise ValueError(
                "a threshold is on the score itself, which strata replace by ranks: give a share or a count."
            )
        return known & (np.nan_to_num(scores, nan=-np.inf) >= threshold)
    if count is not None and count < 0:
        raise ValueError(f"the number to keep is {count}: give 0 or more.")
    ranked = scores if strata is None else rank_within(np.where(known, scores, -np.inf), strata)
    ranked = np.where(known, ranked, np.nan)
    wanted = share if share is not None else min(1.0, (count or 0) / max(1, len(scores)))
    found = np.zeros(len(scores), bool)
    found[keep(ranked, wanted)] = True
    return found & known


def judge(
    scores: Float[np.ndarray, "samples"],
    matched: Bool[np.ndarray, "samples"],
    lengths: Float[np.ndarray, "samples"],
    resamples: int = 200,
    seed: int = 0,
) -> Filter:
    """How well a score tells matched from mismatched. Raises ValueError unless there are both."""
    if matched.all() or not matched.any():
        raise ValueError(
            f"{matched.sum()} of {len(matched)} pairs are matched: a filter is judged on matched and mismatched ones."
        )
    kept, base = keep(scores, 0.5), float(matched.mean())
    return Filter(
        auroc(scores, matched, resamples, seed),
        auroc(stratified(scores, lengths), matched, resamples, seed),
        correlation(scores, lengths),
        correlation(scores[matched], lengths[matched]),
        Estimate(float(matched[kept].mean()) if len(kept) else None, base),
    )


def auroc(
    scores: Float[np.ndarray, "samples"], matched: Bool[np.ndarray, "samples"], resamples: int = 200, seed: int = 0
) -> Estimate:
    """With a 95 % bootstrap interval over matched and over mismatched samples."""
    rng, groups = np.random.default_rng(seed), (np.flatnonzero(matched), np.flatnonzero(~matched))
    drawn = []
    for _ in range(resamples):
        rows = np.concatenate([rng.choice(group, len(group)) for group in groups])
        drawn.append(roc_auc_score(matched[rows], scores[rows]))
    interval = tuple(np.quantile(drawn, [0.025, 0.975]).tolist()) if resamples else None
    return Estimate(float(roc_auc_score(matched, scores)), 0.5, interval)


def correlation(first: Float[np.ndarray, "n"], second: Float[np.ndarray, "n"]) -> float | None:
    """Pearson's; None where one does not vary."""
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])
