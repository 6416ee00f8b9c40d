"""What does each latent do to a picture? A name proposed on some prompts, and verified on others (generic protocol of the notes, papers 1d).

    propose   the word whose cosine with the picture grows most under the edit, on average over the proposing prompts
    verify    on the other prompts a judge is shown the pair of pictures (same prompt, same seed) and the name, and picks the edited one: the picture
              with the larger cosine; equal ones count half. The pair comes in both orders, so that accuracy is balanced.  floor: 1/2
    p         exact, of a judge who tosses a coin for each pair (ties left out), one-sided; q after Benjamini-Hochberg over the latents
    beyond    on the proposing prompts the cosine grew more than under every random direction of the same size
    found     q <= alpha, and beyond.      floor: share of random directions that are found, each beside the others

The notes ask for accuracy and its floor only. That a name must be beyond random directions is our addition: they change pictures a little too, always in the same way,
and a coin is beaten by that as soon as there are pairs enough. Intervals are 95 % bootstraps over the verifying prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from scipy.stats import binomtest, false_discovery_control

from evals.result import Estimate
from evals.steering import estimate, weights

Likeness = Float[np.ndarray, "prompts words"]
"""Cosine of each picture with each word; NaN for a prompt without a picture."""


@dataclass(frozen=True)
class Named:
    """One direction with its proposed name."""

    direction: str
    name: str | None
    """None where no proposing prompt gave a picture."""
    growth: float | None
    """How much the cosine grew on the proposing prompts."""
    accuracy: Estimate
    p: float
    q: float
    n: int
    """Pairs that verified."""
    beyond: bool = False
    """Whether it grew more than under every (other) random direction; true where there is none."""


@dataclass(frozen=True)
class Discovery:
    named: tuple[Named, ...]
    found: Estimate
    """Share of the latents with q <= alpha that are beyond random directions; floor: of random directions."""
    alpha: float


def evaluate(
    bare: Likeness,
    edited: Mapping[str, Likeness],
    random: Mapping[str, Likeness],
    words: Sequence[str],
    *,
    alpha: float = 0.05,
    resamples: int = 500,
    seed: int = 0,
) -> Discovery:
    """bare: without an edit. edited: of each latent. random: of each control. Every second prompt verifies, the first not.

    Raises ValueError for no word, or fewer than two prompts.
    """
    if not len(words) or len(bare) < 2:
        raise ValueError(
            f"{len(words)} words and {len(bare)} prompts: a name needs a vocabulary, and two prompts at least."
        )
    draws = weights(len(bare[1::2]), resamples, seed)
    raw = [verified(name, bare, seen, words, draws) for name, seen in {**edited, **random}.items()]
    ours, p = len(edited), [one.p for one in raw]
    q = np.concatenate([adjusted(p[:ours]), adjusted(p[ours:])])
    growth = np.array([-np.inf if one.growth is None else one.growth for one in raw])
    beyond = [
        all(growth[at] > growth[other] for other in range(ours, len(raw)) if other != at) for at in range(len(raw))
    ]
    named = [replace(one, q=float(value), beyond=far) for one, value, far in zip(raw, q, beyond, strict=True)]
    hits = np.array([is_found(one, alpha) for one in named], float)
    floor = float(hits[ours:].mean()) if len(hits) > ours else None
    latents = weights(ours, resamples, seed)
    return Discovery(tuple(named), estimate(hits[:ours], floor, latents), alpha)


def is_found(one: Named, alpha: float) -> bool:
    return one.q <= alpha and one.beyond


def verified(name: str, bare: Likeness, seen: Likeness, words: Sequence[str], draws: np.ndarray) -> Named:
    growth = seen - bare
    there = np.isfinite(growth).all(1)
    proposing, verifying = np.flatnonzero(there[::2]) * 2, np.arange(1, len(bare), 2)
    if not len(proposing):
        return Named(name, None, None, Estimate(None, 0.5, None), 1.0, 1.0, 0)
    mean = growth[proposing].mean(0)
    word = int(mean.argmax())
    picks = picked(growth[verifying, word])
    wins, losses = int((picks == 1).sum()), int((picks == 0).sum())
    p = float(binomtest(wins, wins + losses, 0.5, "greater").pvalue) if wins + losses else 1.0
    return Named(
        name, words[word], float(mean[word]), estimate(picks, 0.5, draws), p, 1.0, int(np.isfinite(picks).sum())
    )


def picked(growth: Float[np.ndarray, "pairs"]) -> Float[np.ndarray, "pairs"]:
    """1 where the edited picture is picked, 1/2 where both are alike, NaN where there is no pair."""
    return np.where(np.isnan(growth), np.nan, np.where(growth == 0, 0.5, (growth > 0).astype(float)))


def adjusted(p: Sequence[float]) -> Float[np.ndarray, "n"]:
    return false_discovery_control(p, method="bh") if len(p) else np.zeros(0)
