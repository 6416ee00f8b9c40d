"""Bootstrap over images of what `evals.segmentation` reports; latents, probes and thresholds are held fixed.

Draws of equal seeds take the same images, so that two methods on the same patches can be compared draw by draw.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Int64
from scipy.sparse import csc_array

from evals.ranking import resampled
from evals.recovery import bootstrap
from evals.segmentation import Segmentation

MEASURES = ("mean_ap", "probe_r", "mean_iou")


@dataclass(frozen=True)
class Draws:
    """One number a draw; NaN where a class came into none of its images."""

    mean_ap: Float[np.ndarray, "draws"]
    probe_r: Float[np.ndarray, "draws"]
    mean_iou: Float[np.ndarray, "draws"]


def drawn(
    found: Segmentation,
    codes: csc_array,
    labels: Int[np.ndarray, "patches"],
    samples: Int64[np.ndarray, "patches"],
    names: tuple[str, ...],
    resamples: int = 200,
    seed: int = 0,
) -> Draws:
    """Measures of resampled images. codes, labels and samples (the image of each patch): of the report split."""
    groups, weights = bootstrap(samples, resamples, seed)
    width, number = weights.shape[1], {name: at for at, name in enumerate(names)}
    patches = weights @ np.bincount(groups, minlength=width)
    aps, losses, entropies, ious = [], [], [], []
    for each in found.classes:
        has = labels == number[each.name]
        score = each.weight * codes[:, [each.latent]].toarray()[:, 0].astype(np.float64) + each.bias
        aps.append(resampled(score, has, each.threshold, groups, weights).ap_draws)
        loss = np.logaddexp(0, score) - has * score
        losses.append(weights @ np.bincount(groups, loss, width) / patches)
        p = weights @ np.bincount(groups, has, width) / patches
        with np.errstate(divide="ignore", invalid="ignore"):
            entropies.append(-np.where(p > 0, p * np.log(p), 0) - np.where(p < 1, (1 - p) * np.log1p(-p), 0))
        said = score > each.threshold
        both, either = (weights @ np.bincount(groups, rows, width) for rows in (said & has, said | has))
        ious.append(both / np.maximum(either, 1))
    with np.errstate(invalid="ignore"):
        r = 1 - np.mean(losses, axis=0) / np.mean(entropies, axis=0)
    defined = ~np.isnan(aps).all(0)
    mean_ap = np.full(resamples, np.nan)
    mean_ap[defined] = np.nanmean(np.array(aps)[:, defined], axis=0)
    return Draws(mean_ap, r, np.mean(ious, axis=0))
