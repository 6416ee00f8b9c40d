"""Which latents are of one modality, and which are shared: is a latent that speaks for images and for texts speaking for the same thing?

modality score    E[z | image] / (E[z | image] + E[z | text])      of |z|, over the tokens of each modality; 1: image only, 0: text only (2506.03093)
shared            fires on more than a share RATE of the tokens of both, and in the image and the text of one sample together more often than in those
                  of samples paired at random: under re-pairing the number of samples with both is hypergeometric, so its p is exact; Benjamini-Hochberg
                  over the latents that fire on both (this form is ours)
unrelated         fires on both, but not together: two concepts in one latent, or too few samples to tell
floor of shared   the same share after the pairs have been exchanged at random
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Int64
from scipy.sparse import csc_array, csr_array
from scipy.stats import hypergeom

from evals.permutation import adjusted
from evals.reconstruction import percentiles
from evals.result import Estimate
from evals.sums import draws

RATE, ALPHA = 1e-4, 0.05
KINDS = ("dead", "image only", "text only", "unrelated", "shared")


@dataclass(frozen=True)
class Side:
    """Codes of one modality: sums over its tokens, sample by sample."""

    total: csr_array
    """[samples, n_latents], sum of |z|."""
    fired: csr_array
    """[samples, n_latents], tokens with z != 0."""
    tokens: Int64[np.ndarray, "samples"]


@dataclass(frozen=True)
class Modality:
    """Of every latent, and summed up; the module's docstring has the definitions."""

    score: Float[np.ndarray, "n_latents"]
    """NaN for a dead latent."""
    kind: Int[np.ndarray, "n_latents"]
    """Index into KINDS."""
    together: Int64[np.ndarray, "n_latents"]
    """Samples in whose image and text it fires."""
    expected: Float[np.ndarray, "n_latents"]
    """The same under random pairing."""
    q: Float[np.ndarray, "n_latents"]
    """Smallest false discovery rate at which the latent is shared; NaN where it does not fire on both."""
    counts: dict[str, int]
    shared: Estimate
    """Share of the live latents."""
    samples: int


def modality(
    image: Side, text: Side, *, rate: float = RATE, alpha: float = ALPHA, resamples: int = 200, seed: int = 0
) -> Modality:
    """Of codes of the same samples in the same order. Raises ValueError for other numbers of samples, or fewer than two."""
    n = len(image.tokens)
    if len(text.tokens) != n or n < 2:
        raise ValueError(
            f"{n} samples have images and {len(text.tokens)} texts: give both of the same two samples or more."
        )
    means = [np.asarray(side.total.sum(0)).ravel() / max(side.tokens.sum(), 1) for side in (image, text)]
    rates = [np.asarray(side.fired.sum(0)).ravel() / max(side.tokens.sum(), 1) for side in (image, text)]
    score = np.divide(means[0], means[0] + means[1], out=np.full(len(means[0]), np.nan), where=means[0] + means[1] > 0)
    seen, said = (csc_array(side.fired != 0, dtype=np.int64) for side in (image, text))
    kind, q, both = kinds(seen, said, rates, rate, alpha)
    order = np.random.default_rng([seed, 9]).permutation(n)
    floor = share(kinds(seen, csc_array(said[order]), rates, rate, alpha)[0])
    a, b = (np.asarray(side.sum(0)).ravel() for side in (seen, said))
    drawn = []
    live = np.flatnonzero(kind > 0)
    for weights in draws(
        max(len(live), 1), resamples, seed
    ):  # over latents: resampled pairs repeat, and repeats look like agreement
        drawn.append(float(weights @ (kind[live] == KINDS.index("shared")) / len(live)) if len(live) else np.nan)
    return Modality(
        score=score,
        kind=kind,
        together=both,
        expected=a * b / n,
        q=q,
        counts={name: int((kind == at).sum()) for at, name in enumerate(KINDS)},
        shared=Estimate(share(kind), floor, percentiles(np.array(drawn)) if len(live) > 1 and drawn else None),
        samples=n,
    )


def kinds(
    seen: csc_array, said: csc_array, rates: list[np.ndarray], rate: float, alpha: float
) -> tuple[Int64[np.ndarray, "n_latents"], Float[np.ndarray, "n_latents"], Int64[np.ndarray, "n_latents"]]:
    """(kind, q, samples with both) of every latent."""
    n = seen.shape[0]
    both = np.asarray(seen.multiply(said).sum(0)).ravel().astype(np.int64)
    a, b = (np.asarray(side.sum(0)).ravel().astype(np.int64) for side in (seen, said))
    on_image, on_text = rates[0] > rate, rates[1] > rate
    two = on_image & on_text
    p = np.full(len(both), np.nan)
    p[two] = hypergeom.sf(both[two] - 1, n, a[two], b[two])
    q = adjusted(p)
    kind = np.select(
        [two & (q <= alpha), two, on_image, on_text],
        [KINDS.index(name) for name in ("shared", "unrelated", "image only", "text only")],
        0,
    )
    return kind.astype(np.int64), q, both


def share(kind: Int64[np.ndarray, "n_latents"]) -> float | None:
    live = int((kind > 0).sum())
    return float((kind == KINDS.index("shared")).sum() / live) if live else None
