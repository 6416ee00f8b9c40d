"""`vsae eval blindspots`: real images against those of one or more generators, in the latents of a run.

Images of one caption have one key: where a generator's keys are the real ones', the two are compared pair by pair, else as two sets. Of a store that the
run was trained on, only what was held out is used, for the SAE knows the other images better than any generated one.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csc_array

from evals import memorisation
from evals.blindspots import (
    EXAGGERATED,
    SUPPRESSED,
    Difference,
    Null,
    by_concept,
    compare,
    correlation,
    merged,
    null,
    relative_difference,
    resampled,
    skewness,
)
from evals.memorisation import Memorised
from evals.pooling import candidates, pool
from evals.result import Estimate, Result, write_result
from evals.sums import draws
from vsae.activations import Select, fingerprint
from vsae.activations.store import SiteReader
from vsae.run import Run

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
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
class Audited:
    """One generator."""

    name: str
    difference: Difference
    blindspots: Bool[np.ndarray, "concepts"]
    low_level: Bool[np.ndarray, "concepts"]
    """Differs from the real images, but not in the same direction from the control."""
    interval: Float[np.ndarray, "2 concepts"]
    """95 % bootstrap interval of the relative difference over images."""
    skew: float
    pairs: Memorised | None
    nearest: Memorised
    keys: tuple[str, ...]
    real_keys: tuple[str, ...]


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

    def latents(self, concept: int) -> list[int]:
        return np.flatnonzero(self.concept == concept).tolist()


def evaluate(
    run: Run,
    real: SiteReader,
    generated: Sequence[SiteReader],
    out: Path,
    *,
    control: SiteReader | None = None,
    temperature: float = 1.0,
    kinds: tuple[str, ...] | None = None,
    energy: Literal["mean", "paper_sum"] = "mean",
    least_change: float = 0.1,
    alpha: float = 0.05,
    permutations: int | None = None,
    min_samples: int = 10,
    merge: float = 0.9,
    resamples: int = 200,
    seed: int = 0,
    batch_size: int = 4096,
    track: Track = lambda items, what, n: items,
) -> Audit:
    """Measure; write result.json and a figure a generator to `out`. `kinds`: patches where there are any, when left out.

    Raises ValueError for stores that the run does not fit, and where the run was trained on all of the real images.
    """
    for site in (real, *generated, *([control] if control else [])):
        fingerprint.check(run.fingerprint, site.fingerprint)
    kinds = kinds or (("patch",) if "patch" in real.entry["moments"] else None)
    part, how = run.held_out(real), "sum" if energy == "paper_sum" else "mean"
    codec = candidates(run.sae)
    concept = merged(codec.atoms, merge)

    def energies(site: SiteReader, name: str, part: tuple[float, float] = (0.0, 1.0)) -> Energies:
        batches = track(site.sequential(batch_size, Select(kinds, part, run.skip)), name, -(-site.n_rows // batch_size))
        found = pool(codec, batches, how)  # type: ignore[arg-type]
        assert not isinstance(found.scores, np.ndarray)
        return Energies(by_concept(found.scores, concept), tuple(site.keys[at] for at in found.samples.tolist()))

    options: dict[str, Any] = {"temperature": temperature, "alpha": alpha, "min_samples": min_samples, "seed": seed}
    truth = energies(real, "real images", part)
    altered = energies(control, "control") if control else None
    audited = []
    for name, site in zip(names([site.store.path for site in generated]), generated, strict=True):
        theirs = energies(site, name)
        found = audit(name, truth, theirs, altered, least_change, permutations, resamples, options)
        audited.append(found)
    floor = null(
        truth.scores,
        temperature=temperature,
        least_change=least_change,
        alpha=alpha,
        min_samples=min_samples,
        seed=seed,
    )
    settings = options | {
        "energy": energy,
        "least_change": least_change,
        "merge": merge,
        "thresholds": [SUPPRESSED, EXAGGERATED],
        "part": part,
        "kinds": kinds,
    }
    audit_of = Audit(
        tuple(audited),
        floor,
        correlations(audited, floor.correlation),
        concept,
        int(np.bincount(concept).max()),
        str(control.store.path) if control else None,
        settings,
    )
    from evals.blindspots_shown import draw_audited

    write_result(out, to_result(audit_of, run, real, generated, resamples))
    for each in audited:
        draw_audited(each, floor, out / f"{each.name}.png")
    return audit_of


def audit(
    name: str,
    real: Energies,
    generated: Energies,
    control: Energies | None,
    least_change: float,
    permutations: int | None,
    resamples: int,
    options: dict[str, Any],
) -> Audited:
    """One generator."""
    pairs, ours, theirs = matched(real, generated)
    found = compare(ours.scores, theirs.scores, pairs=pairs, permutations=permutations, **options)
    flagged = found.found(least_change)
    blind = flagged
    if control:
        both, altered, again = matched(control, theirs)
        beyond = compare(altered.scores, again.scores, pairs=both, permutations=permutations, **options)
        blind = flagged & beyond.found(0.0) & (np.sign(beyond.relative) == np.sign(found.relative))
    first = draws(len(ours.keys), resamples, options["seed"])
    second = first if pairs else draws(len(theirs.keys), resamples, options["seed"] + 1)
    moved = relative_difference(resampled(theirs.scores, second).ravel(), resampled(ours.scores, first).ravel())
    moved = moved.reshape(resamples, -1)
    interval = np.full((2, moved.shape[1]), np.nan)
    interval[:, found.live] = np.nanquantile(moved[:, found.live], [0.025, 0.975], axis=0)
    return Audited(
        name,
        found,
        blind,
        flagged & ~blind,
        interval,
        skewness(found.delta),
        memorisation.pairs(theirs.scores, ours.scores, seed=options["seed"]) if pairs else None,
        memorisation.nearest(theirs.scores, real.scores),
        theirs.keys,
        real.keys,
    )


def matched(real: Energies, generated: Energies) -> tuple[bool, Energies, Energies]:
    """(True, both in one order) of the samples of both, where there are any of one key; else (False, both as they are)."""
    place = {key: at for at, key in enumerate(generated.keys)}
    ours = np.array([at for at, key in enumerate(real.keys) if key in place], np.int64)
    if len(ours) < 2:
        return False, real, generated
    return True, real.rows(ours), generated.rows(np.array([place[real.keys[at]] for at in ours.tolist()]))


def correlations(audited: Sequence[Audited], floor: float) -> dict[str, Estimate]:
    """r of the relative differences of every two generators. No interval: a bootstrap adds the noise of the shared real images once more."""
    found = {}
    for at, second in enumerate(audited):
        for first in audited[:at]:
            r = correlation(first.difference.relative, second.difference.relative)
            found[f"{first.name} and {second.name}"] = Estimate(r if np.isfinite(r) else None, floor)
    return found


def names(paths: Sequence[Path]) -> list[str]:
    """Folder names; numbered where two are equal."""
    found: list[str] = []
    for path in paths:
        twice = sum(path.name == other.name for other in paths) > 1
        found.append(f"{path.name}-{len(found) + 1}" if twice else path.name)
    return found


def to_result(found: Audit, run: Run, real: SiteReader, generated: Sequence[SiteReader], resamples: int) -> Result:
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
            "resamples": resamples,
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
    live = np.flatnonzero(d.live)

    def concept(k: int) -> dict[str, Any]:
        numbers = {name: float(getattr(d, name)[k]) for name in ("real", "generated", "delta", "relative", "p", "q")}
        of = {"latents": found.latents(k), "limit": float(d.limit[k]), "interval": each.interval[:, k].tolist()}
        return numbers | of

    def images(found: Memorised | None) -> Any:
        if found is None:
            return None
        nearest = np.argsort(np.where(np.isnan(found.distance), np.inf, found.distance), kind="stable")[:SHOWN]
        listed = [
            {"key": each.keys[i], "real": each.real_keys[found.real[i]], "distance": float(found.distance[i])}
            for i in nearest.tolist()
        ]
        control = found.control
        return {
            "candidates": len(found.candidates),
            "nearest": listed,
            "median": float(np.nanmedian(found.distance)) if np.isfinite(found.distance).any() else None,
            "control_smallest": float(control.min()) if len(control) else None,
            "control_median": float(np.median(control)) if len(control) else None,
            "min_energy": found.min_energy,
            "left_out": found.left_out,
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
        "memorised": {"pairs": images(each.pairs), "nearest": images(each.nearest)},
    }


def by_change(d: Difference, which: Bool[np.ndarray, "concepts"]) -> list[int]:
    """The largest |relative difference| first; of equal ones, as of all that are gone, what there was most of."""
    chosen = np.flatnonzero(which)
    energy = d.real[chosen] + d.generated[chosen]
    return chosen[np.lexsort((-energy, -np.abs(d.relative[chosen])))].tolist()[: 2 * SHOWN]
