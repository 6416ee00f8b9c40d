"""Absorption in SAEBench's form, for image labels (2409.14507; spec D): does another latent carry a concept's direction where the concept's own latents are silent?

    p          unit direction of a linear probe of the concept on activations; only concepts whose probe has F1 >= GOOD are asked about
    main       the concept's own latents: those of a k-sparse probe, one more as long as F1 on training samples rises by more than RISE, at most MOST
    full       share of the concept's samples (that the probe recognises) where all main latents are silent, and the latent with the largest z_j (D_j . p)
               has cos(D_j, p) >= .025 and gives at least .4 of the probe's projection
    fraction   mean over those samples of absorbers / (absorbers + main), of contributions z_j (D_j . p) above 0; absorbers: the 3 largest of other latents
               with cos >= .1, counted where together they give at least .4 of the projection

The projection is x . p counted from the probe's boundary. Codes and activations are means over an image's tokens. Floor: the same with the atoms of the
live latents exchanged at random, so that who fires stays and where they point does not. SAEBench's thresholds were set for letters of words in models
of 2 billion parameters and more; for images they are a convention.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64

from evals.erasure import Images, LinearProbe
from evals.probes import logistic
from evals.reconstruction import percentiles
from evals.result import Estimate
from evals.sums import draws

GOOD, RISE, MOST = 0.6, 0.03, 10
FULL_COSINE, COSINE, SHARE, ABSORBERS = 0.025, 0.1, 0.4, 3


@dataclass(frozen=True)
class Absorbed:
    """One concept."""

    name: str
    main: tuple[int, ...]
    full: Estimate
    fraction: Estimate
    samples: int
    """Of the concept, that the probe recognises."""
    probe_f1: float


def absorption(
    train: Images,
    test: Images,
    atoms: Float[np.ndarray, "n_latents d"],
    names: Sequence[str],
    *,
    resamples: int = 200,
    seed: int = 0,
) -> tuple[tuple[Absorbed, ...], tuple[str, ...]]:
    """(concepts, those left out because a part lacks one side of them or their probe is too weak)."""
    live = np.flatnonzero((train.z != 0).any(0))
    exchanged = atoms.copy()
    exchanged[live] = atoms[np.random.default_rng([seed, 19]).permutation(live)]
    found, left_out = [], []
    for at, name in enumerate(names):
        has, asked = train.truth[:, at], test.truth[:, at]
        if min(has.sum(), (~has).sum()) < 4 or not asked.any():
            left_out.append(name)
            continue
        probe = LinearProbe.fit(train.x, has)
        f1 = f1_of(test.x @ probe.weight + probe.bias > 0, asked)
        seen = np.flatnonzero(asked & (test.x @ probe.weight + probe.bias > 0))
        if f1 < GOOD or not len(seen):
            left_out.append(name)
            continue
        main = main_latents(train.z, has)
        points = absorbed(test.some(seen), atoms, probe, main)
        null = absorbed(test.some(seen), exchanged, probe, main)
        weights = draws(len(seen), resamples, seed) / len(seen)
        full, fraction = (
            Estimate(
                float(value.mean()),
                float(floor.mean()),
                percentiles(weights @ value) if len(seen) > 1 and resamples else None,
            )
            for value, floor in zip(points, null, strict=True)
        )
        found.append(Absorbed(name, tuple(main.tolist()), full, fraction, len(seen), f1))
    return tuple(found), tuple(left_out)


def main_latents(
    z: Float[np.ndarray, "images n_latents"], has: Bool[np.ndarray, "images"]
) -> Int64[np.ndarray, "main"]:
    """By difference of means, as many as keep raising the F1 of a logistic regression on them."""
    order = np.argsort(-np.abs(z[has].mean(0) - z[~has].mean(0)), kind="stable").astype(np.int64)
    best = -1.0
    for k in range(1, min(MOST, len(order)) + 1):
        f1 = f1_of(logistic(1.0).fit(z[:, order[:k]], has).predict(z[:, order[:k]]), has)
        if k > 1 and f1 <= best + RISE:
            return order[: k - 1]
        best = f1
    return order[: min(MOST, len(order))]


def f1_of(said: Bool[np.ndarray, "images"], has: Bool[np.ndarray, "images"]) -> float:
    return float(2 * (said & has).sum() / max(said.sum() + has.sum(), 1))


def absorbed(
    images: Images, atoms: Float[np.ndarray, "n_latents d"], probe: LinearProbe, main: Int64[np.ndarray, "main"]
) -> tuple[Float[np.ndarray, "images"], Float[np.ndarray, "images"]]:
    """(1 where fully absorbed, else 0; absorption fraction) of images that the probe recognises."""
    size = np.linalg.norm(probe.weight)
    along = atoms @ (probe.weight / size)
    cosine = along / np.maximum(np.linalg.norm(atoms, axis=1), 1e-30)
    projection = images.x @ (probe.weight / size) + probe.bias / size
    given = images.z * along
    top = given.argmax(1)
    rows = np.arange(len(given))
    silent = ~(images.z[:, main] != 0).any(1)
    full = silent & (projection >= 0) & (cosine[top] >= FULL_COSINE) & (given[rows, top] >= SHARE * projection)
    others = np.where(cosine >= COSINE, np.maximum(given, 0), 0)
    others[:, main] = 0
    largest = np.sort(others, axis=1)[:, -ABSORBERS:].sum(1)
    largest = np.where(largest >= SHARE * projection, largest, 0)
    own = np.maximum(given[:, main], 0).sum(1)
    total = largest + own
    return full.astype(np.float64), np.where(total > 0, largest / np.where(total > 0, total, 1), 0.0)
