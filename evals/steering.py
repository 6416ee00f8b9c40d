"""What steering does to a concept, and to everything else, at several strengths; a latent beside the baselines of the same size.

    reach    mean over prompts of how far the concept is there (a judge's probability, or whether an answer says it)
             floor: the same without an edit
    kept     mean over prompts of what stayed as it was without the edit, a number for each other attribute
             floor: what two prompts share without any edit
    at equal reach
             difference of two directions' kept, averaged over the reaches that both come to, each interpolated in strength:
             at equal size a direction that does nothing keeps everything, so that size alone decides nothing (our form)

Intervals are 95 % bootstraps over prompts, which all directions and strengths share.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from evals.result import Estimate

LEVELS = 101
"""Reaches at which two directions are compared."""


@dataclass(frozen=True)
class Seen:
    """What came of a set of prompts under one edit; NaN for a prompt that gave nothing to look at."""

    reach: Float[np.ndarray, "prompts"]
    kept: Mapping[str, Float[np.ndarray, "prompts"]]


@dataclass(frozen=True)
class Effect:
    """One direction at one strength."""

    direction: str
    strength: float
    reach: Estimate
    kept: Mapping[str, Estimate]
    n: int
    """Prompts that gave something to look at with and without the edit."""


@dataclass(frozen=True)
class Steered:
    effects: tuple[Effect, ...]
    monotone: Mapping[str, bool]
    """Whether the mean reach never falls from one strength to the next, by direction."""
    monotone_share: Mapping[str, float]
    """Share of the bootstrap's draws of which that is true."""
    equal: Mapping[str, Mapping[str, Estimate]]
    """Baseline -> attribute -> kept by the first direction less that of the baseline, at equal reach; floor 0. None where neither reaches anything."""


def evaluate(
    bare: Seen,
    seen: Mapping[str, Mapping[float, Seen]],
    floors: Mapping[str, float | None],
    *,
    resamples: int = 500,
    seed: int = 0,
) -> Steered:
    """bare: without an edit. seen: by direction, the one it is all about first, and by strength. floors: of each kept attribute.

    Raises ValueError where no prompt gave anything, or strengths differ between directions.
    """
    first = next(iter(seen))
    if not np.isfinite(bare.reach).any():
        raise ValueError("no prompt gave anything to look at without an edit: see that the model works as it is.")
    if any({*each} - {0.0} != {*seen[first]} - {0.0} for each in seen.values()):
        raise ValueError("directions compare at the same strengths only.")
    draws = weights(len(bare.reach), resamples, seed)
    effects = [
        effect(name, s, bare, at, floors, draws) for name, each in seen.items() for s, at in sorted(each.items())
    ]
    ways = {name: path(bare, each) for name, each in seen.items()}
    rising = {name: monotone(bare, each, draws) for name, each in seen.items()}
    return Steered(
        tuple(effects),
        {name: bool(monotone(bare, each).all()) for name, each in seen.items()},
        {name: float(of.mean()) for name, of in rising.items()},
        {name: {of: compared(ways[first], ways[name], of, draws) for of in floors} for name in seen if name != first},
    )


def weights(n: int, resamples: int, seed: int) -> Float[np.ndarray, "resamples n"]:
    """How often each prompt is drawn in each resample."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples).astype(np.float64)


def mean(values: Float[np.ndarray, "n"], draws: Float[np.ndarray, "resamples n"] | None = None) -> np.ndarray:
    """Mean of what is not NaN, in each resample; NaN where nothing is left."""
    there = np.isfinite(values)
    draws = np.ones((1, len(values))) if draws is None else draws
    n = draws[:, there].sum(1)
    return np.where(n > 0, (draws[:, there] @ values[there]) / np.maximum(n, 1), np.nan)


def interval(draws: np.ndarray) -> tuple[float, float] | None:
    """The middle 95 %; None where a draw in twenty or more is undefined."""
    if len(draws) < 2 or np.isfinite(draws).mean() < 0.95:
        return None
    low, high = np.nanquantile(draws, [0.025, 0.975]).tolist()
    return low, high


def estimate(values: np.ndarray, floor: float | None, draws: np.ndarray) -> Estimate:
    value = float(mean(values)[0])
    return Estimate(value if np.isfinite(value) else None, floor, interval(mean(values, draws)))


def effect(
    name: str, strength: float, bare: Seen, seen: Seen, floors: Mapping[str, float | None], draws: np.ndarray
) -> Effect:
    both = np.isfinite(bare.reach) & np.isfinite(seen.reach)
    floor = float(mean(np.where(both, bare.reach, np.nan))[0]) if both.any() else None
    kept = {of: estimate(seen.kept[of], floors[of], draws) for of in floors}
    return Effect(name, strength, estimate(np.where(both, seen.reach, np.nan), floor, draws), kept, int(both.sum()))


def monotone(
    bare: Seen, seen: Mapping[float, Seen], draws: Float[np.ndarray, "resamples prompts"] | None = None
) -> np.ndarray:
    """Whether the mean reach never falls with the strength, in each resample; no edit counts as strength 0."""
    points = {0.0: bare} | dict(seen)
    means = np.stack([mean(points[s].reach, draws) for s in sorted(points)], 1)
    means = means[:, np.isfinite(means).all(0)]
    return np.asarray((np.diff(means) >= -1e-12).all(1))


Way = tuple[list[np.ndarray], dict[str, list[np.ndarray]]]
"""Reach, and kept, of a direction at strength 0 and at its positive ones in order."""


def path(bare: Seen, seen: Mapping[float, Seen]) -> Way:
    steps = [bare, *(seen[s] for s in sorted(seen) if s > 0)]
    return [each.reach for each in steps], {of: [each.kept[of] for each in steps] for of in bare.kept}


def compared(ours: Way, theirs: Way, of: str, draws: np.ndarray) -> Estimate:
    """Difference of kept at equal reach."""

    def differences(weight: np.ndarray | None) -> np.ndarray:
        lines = [
            np.stack([mean(values, weight) for values in each], 1)
            for way in (ours, theirs)
            for each in (way[0], way[1][of])
        ]
        return at_equal_reach(*lines)

    value = float(differences(None)[0])
    return Estimate(value if np.isfinite(value) else None, 0.0, interval(differences(draws)))


def at_equal_reach(
    reach_a: Float[np.ndarray, "draws a"],
    kept_a: Float[np.ndarray, "draws a"],
    reach_b: Float[np.ndarray, "draws b"],
    kept_b: Float[np.ndarray, "draws b"],
) -> Float[np.ndarray, "draws"]:
    """Mean of kept_a - kept_b over the reaches both come to; each is what it was when the reach was first passed. NaN where there is none.

    Columns are strengths from 0 on; one without any number, in a draw, is passed over.
    """
    start = reach_a[:, 0]
    top = np.minimum(np.nanmax(reach_a, 1), np.nanmax(reach_b, 1))
    levels = start[:, None] + (top - start)[:, None] * np.linspace(0, 1, LEVELS)
    gap = when_passed(reach_a, kept_a, levels) - when_passed(reach_b, kept_b, levels)
    return np.where(top > start, gap.mean(1), np.nan)


def when_passed(
    reach: Float[np.ndarray, "draws steps"],
    kept: Float[np.ndarray, "draws steps"],
    levels: Float[np.ndarray, "draws levels"],
) -> Float[np.ndarray, "draws levels"]:
    """Kept where the line through the steps first comes to each level. NaN above all of them."""
    found = np.full(levels.shape, np.nan)
    low, before = reach[:, :1], kept[:, :1]
    for at in range(1, reach.shape[1]):
        high, after = reach[:, at : at + 1], kept[:, at : at + 1]
        inside = np.isnan(found) & (levels >= low) & (levels <= high)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(high > low, (levels - low) / (high - low), 0.0)
        found = np.where(inside, before + share * (after - before), found)
        there = np.isfinite(high) & np.isfinite(after)
        low, before = np.where(there, high, low), np.where(there, after, before)
    return found


def threshold(
    score: Callable[[float], float], level: float, high: float, *, steps: int = 5, most: float = 64.0
) -> float | None:
    """Smallest strength whose score comes to `level`, to within high / 2^steps (A2's threshold finder, b* at a mean judge score of 30 of 100).

    score: mean score at a strength > 0, taken to rise with it. high: a first guess, doubled until it is enough; None if `most` is not.
    """
    low = 0.0
    while score(high) < level:
        low, high = high, 2 * high
        if high > most:
            return None
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if score(middle) >= level else (middle, high)
    return high


def shared(values: Sequence[int] | np.ndarray) -> float | None:
    """Chance that two different prompts have the same value: the floor of what is kept. None for fewer than two."""
    counts = np.unique(np.asarray(values), return_counts=True)[1]
    n = counts.sum()
    return float((counts * (counts - 1)).sum() / (n * (n - 1))) if n > 1 else None
