"""What an audit of generators found (`evals.blindspots_runs`), and what result.json says of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csc_array

from evals.blindspots import EXAGGERATED, SUPPRESSED, Difference, Null
from evals.memorisation import Memorised
from evals.result import Estimate, Result
from vsae.activations.store import SiteReader
from vsae.run import Run

SHOWN = 50
"""Concepts of each sort, and images, that result.json lists."""


@dataclass(frozen=True)
class Energies:
    """Energies [images, concepts] of the images of one store, and their keys."""

    scores: csc_array
    keys: tuple[str, ...]

    def rows(self, which: Int[np.ndarray, "some"]) -> "Energies":
        return Energies(csc_array(self.scores.tocsr()[which]), tuple(self.keys[at] for at in which.tolist()))


@dataclass(frozen=True)
class Compared:
    """One generator, concept by concept."""

    name: str
    difference: Difference
    blindspots: Bool[np.ndarray, "concepts"]
    low_level: Bool[np.ndarray, "concepts"]
    """Differs from the real images, but not in the same direction from the control."""
    interval: Float[np.ndarray, "2 concepts"]
    """95 % bootstrap interval of the relative difference over images."""


@dataclass(frozen=True)
class Audited(Compared):
    """And image by image."""

    skew: float
    pairs: Memorised | None
    """With the real image of the same key."""
    nearest: Memorised
    energies: Energies
    """Of the images that were compared."""


@dataclass(frozen=True)
class Named:
    """Concepts of one name counted as one, in the generators' order."""

    names: tuple[str, ...]
    concepts: tuple[tuple[int, ...], ...]
    """Of each name."""
    generators: tuple[Compared, ...]
    floor: float
    """Share of the names that are found between two halves of the real images."""


@dataclass(frozen=True)
class Audit:
    """All generators against the same real images."""

    generators: tuple[Audited, ...]
    null: Null
    correlations: dict[str, Estimate]
    concept: Int[np.ndarray, "n_latents"]
    """Of each latent."""
    largest: int
    """Latents of the concept that has most."""
    control: str | None
    settings: dict[str, Any]
    real: Energies
    altered: Energies | None
    """Of the control."""

    def latents(self, concept: int) -> list[int]:
        return np.flatnonzero(self.concept == concept).tolist()


def to_result(found: Audit, run: Run, real: SiteReader, generated: Sequence[SiteReader]) -> Result:
    """The share of tested concepts that are blindspots of the first generator is the headline; floor: the same of two halves of the real images."""
    first = found.generators[0]
    tested = int(first.difference.tested.sum())
    return Result(
        metric="share of tested concepts that are blindspots",
        value=float(first.blindspots.sum() / tested) if tested else None,
        floor=found.null.found,
        interval=None,
        n={
            "real": first.difference.n_real,
            "concepts": len(first.difference.real),
            "live": int(first.difference.live.sum()),
            "tested": tested,
            "resamples": found.settings["resamples"],
        },
        seeds={"permutations, bootstrap and splits": found.settings["seed"]},
        splits={"real": real.fingerprint | {"part": found.settings["part"]}}
        | {each.name: site.fingerprint for each, site in zip(found.generators, generated, strict=True)},
        normalisation=run.fingerprint["normalisation"]["mode"],
        token_kinds=list(found.settings["kinds"] or real.kind_names),
        fingerprint={"sae": run.fingerprint},
        details={
            "settings": found.settings,
            "control": found.control,
            "null": found.null,
            "correlations": found.correlations,
            "largest_concept": found.largest,
            "generators": {each.name: described(each, found) for each in found.generators},
        },
    )


def described(each: Audited, found: Audit) -> dict[str, Any]:
    """A generator as JSON: counts, and the concepts that say most."""
    d, least = each.difference, found.settings["temperature"] * np.log(9)
    live, keys = np.flatnonzero(d.live), each.energies.keys

    def concept(k: int) -> dict[str, Any]:
        numbers = {name: float(getattr(d, name)[k]) for name in ("real", "generated", "delta", "relative", "p", "q")}
        of = {"latents": found.latents(k), "limit": float(d.limit[k]), "interval": each.interval[:, k].tolist()}
        return numbers | of

    def images(memorised: Memorised | None, real: tuple[str, ...]) -> Any:
        if memorised is None:
            return None
        nearest = np.argsort(np.where(np.isnan(memorised.distance), np.inf, memorised.distance), kind="stable")[:SHOWN]
        listed = [
            {"key": keys[i], "real": real[memorised.real[i]], "distance": float(memorised.distance[i])}
            for i in nearest.tolist()
        ]
        control = memorised.control
        return {
            "candidates": len(memorised.candidates),
            "nearest": listed,
            "median": float(np.nanmedian(memorised.distance)) if np.isfinite(memorised.distance).any() else None,
            "control_smallest": float(control.min()) if len(control) else None,
            "control_median": float(np.median(control)) if len(control) else None,
            "min_energy": memorised.min_energy,
            "left_out": memorised.left_out,
        }

    return {
        "paired": d.paired,
        "n_generated": d.n_generated,
        "permutations": d.permutations,
        "skew": Estimate(each.skew, found.null.skew),
        "suppressed_by_delta": int((d.delta[live] < SUPPRESSED).sum()),
        "exaggerated_by_delta": int((d.delta[live] > EXAGGERATED).sum()),
        "could_be_suppressed_by_delta": int((d.real[live] > least).sum()),
        "unseen_if_gone": int((d.limit > d.real).sum()),
        "n_blindspots": int(each.blindspots.sum()),
        "n_low_level": int(each.low_level.sum()),
        "blindspots": [concept(k) for k in by_change(d, each.blindspots)],
        "low_level": [concept(k) for k in by_change(d, each.low_level)],
        "smallest_delta": [concept(int(k)) for k in live[np.argsort(d.delta[live], kind="stable")][:SHOWN]],
        "largest_delta": [concept(int(k)) for k in live[np.argsort(-d.delta[live], kind="stable")][:SHOWN]],
        "memorised": {"pairs": images(each.pairs, keys), "nearest": images(each.nearest, found.real.keys)},
    }


def by_change(d: Difference, which: Bool[np.ndarray, "concepts"]) -> list[int]:
    """The largest |relative difference| first; of equal ones, as of all that are gone, what there was most of."""
    chosen = np.flatnonzero(which)
    energy = d.real[chosen] + d.generated[chosen]
    return chosen[np.lexsort((-energy, -np.abs(d.relative[chosen])))].tolist()[: 2 * SHOWN]


def either_way(d: Difference, which: Bool[np.ndarray, "concepts"], most: int) -> list[int]:
    """Of these, as `by_change` has them, the first so many: of suppressed and exaggerated ones half each, or more of one where the other has fewer."""
    ways = [by_change(d, which & sign) for sign in (d.relative < 0, d.relative > 0)]
    shares = [max(-(-most // 2), most - len(other)) for other in reversed(ways)]
    chosen = {k for way, share in zip(ways, shares, strict=True) for k in way[:share]}
    return by_change(d, np.isin(np.arange(len(which)), list(chosen)))[:most]
