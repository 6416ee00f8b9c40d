"""Whether the images and the texts that a latent likes are of one thing: VL-SAE's Intra and Inter similarity (2510.21323; spec/papers.md section 5).

    intra    mean over latents i of cos(mean embedding of i's top images, mean embedding of i's top texts)          higher is better
    inter    mean over pairs i < j of cos(mean embedding of i's top images, mean embedding of j's top texts)        lower is better
    floor    of both: the same with lists of random images and texts

Embeddings are those of an encoder that puts images and texts into one space (the paper's: CLIP ViT-L/14), and texts that say the same count once, as in
the authors' code. Images and texts of a CLIP are far apart however well they fit (its modality gap), which bounds intra from above and lifts inter: what
can be compared between encoders is their difference, whose floor is 0 (this reading is ours).
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy.sparse import csc_array, csr_array

from evals.reconstruction import percentiles
from evals.result import Estimate
from evals.sums import draws

TOP, MOST = 10, 1000


@dataclass(frozen=True)
class ConceptSimilarity:
    """The module's docstring has the definitions; intervals are over latents."""

    intra: Estimate
    inter: Estimate
    difference: Estimate
    latents: Int64[np.ndarray, "latents"]
    """Those that were compared."""
    left_out: int
    """Live latents without `top` images and `top` texts that activate them."""


def concept_similarity(
    image: csr_array,
    text: csr_array,
    image_embeddings: Float[np.ndarray, "samples d"],
    text_embeddings: Float[np.ndarray, "samples d"],
    *,
    said: Sequence[Hashable] | None = None,
    top: int = TOP,
    most: int = MOST,
    resamples: int = 200,
    seed: int = 0,
) -> ConceptSimilarity:
    """image, text: activations [samples, n_latents] of the same samples; latents like what is largest. said: the texts, of which equal ones count once.

    `most` latents are compared, drawn at random where more can be. Raises ValueError for other numbers of rows, and for fewer than two latents.
    """
    sizes = {len(image_embeddings), len(text_embeddings), image.shape[0], text.shape[0]}
    if len(sizes) > 1:
        raise ValueError(
            f"codes and embeddings are of {' and '.join(map(str, sorted(sizes)))} samples: give one of each."
        )
    first = firsts(said if said is not None else range(text.shape[0]))
    sides = [csc_array(np.abs(image)), csc_array(np.abs(text) * first[:, None])]
    for side in sides:
        side.eliminate_zeros()
    counts = [np.diff(side.indptr) for side in sides]
    live = (counts[0] > 0) | (counts[1] > 0)
    enough = np.flatnonzero((counts[0] >= top) & (counts[1] >= top))
    if len(enough) < 2:
        raise ValueError(
            f"{len(enough)} latents are activated by {top} images and by {top} texts: two or more can be compared. Give more samples, or a smaller --top."
        )
    rng = np.random.default_rng([seed, 31])
    latents = np.sort(rng.choice(enough, min(most, len(enough)), replace=False)).astype(np.int64)
    lists = [np.stack([largest(side, latent, top) for latent in latents.tolist()]) for side in sides]
    others = [np.arange(len(image_embeddings)), np.flatnonzero(first)]
    random = [np.stack([rng.choice(rows, top, replace=False) for _ in latents]) for rows in others]
    weights = np.concatenate([np.ones((1, len(latents))), draws(len(latents), resamples, seed)])
    found, null = (
        means(cosines(image_embeddings, text_embeddings, each), of)
        for each, of in ((lists, weights), (random, weights[:1]))
    )

    def estimate(values: Float[np.ndarray, "draws"], floor: float) -> Estimate:
        return Estimate(float(values[0]), floor, percentiles(values[1:]) if resamples else None)

    return ConceptSimilarity(
        estimate(found[0], float(null[0][0])),
        estimate(found[1], float(null[1][0])),
        estimate(found[0] - found[1], 0.0),
        latents,
        int(live.sum()) - len(enough),
    )


def firsts(said: Sequence[Hashable]) -> Bool[np.ndarray, "samples"]:
    """True for the first of each text."""
    seen = {text: at for at, text in reversed(list(enumerate(said)))}
    found = np.zeros(len(said), bool)
    found[list(seen.values())] = True
    return found


def largest(scores: csc_array, latent: int, top: int) -> Int64[np.ndarray, "top"]:
    """Samples that activate a latent most; of equals, the first."""
    column = slice(scores.indptr[latent], scores.indptr[latent + 1])
    order = np.lexsort((scores.indices[column], -scores.data[column]))[:top]
    return scores.indices[column][order].astype(np.int64)


def cosines(
    image: Float[np.ndarray, "samples d"], text: Float[np.ndarray, "samples d"], lists: Sequence[np.ndarray]
) -> Float[np.ndarray, "latents latents"]:
    """Of each latent's mean top image (rows) with each one's mean top text (columns)."""
    mean = [each[rows].mean(1) for each, rows in zip((image, text), lists, strict=True)]
    unit = [rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30) for rows in mean]
    return unit[0] @ unit[1].T


def means(
    cosine: Float[np.ndarray, "latents latents"], weights: Float[np.ndarray, "draws latents"]
) -> tuple[Float[np.ndarray, "draws"], Float[np.ndarray, "draws"]]:
    """(intra, inter) of weighted latents."""
    above = np.triu(np.ones_like(cosine), 1)
    pairs = np.einsum("wi,wi->w", weights @ above, weights)
    inter = np.einsum("wi,wi->w", weights @ (cosine * above), weights)
    return weights @ cosine.diagonal() / weights.sum(1), inter / np.where(pairs > 0, pairs, np.nan)
