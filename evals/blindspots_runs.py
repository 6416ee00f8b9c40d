"""`vsae eval blindspots`: real images against those of one or more generators, in the latents of a run.

Images of one caption have one key: where a generator's keys are the real ones', the two are compared pair by pair, else as two sets. Of a store that the
run was trained on, only what was held out is used, for the SAE knows the other images better than any generated one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.sparse import csc_array

from evals import memorisation
from evals.blindspots import (
    EXAGGERATED,
    SUPPRESSED,
    by_concept,
    compare,
    correlation,
    merged,
    null,
    relative_difference,
    resampled,
    skewness,
)
from evals.blindspots_found import Audit, Audited, Compared, Energies, Named, to_result
from evals.blindspots_shown import draw_audited
from evals.pooling import candidates, pool
from evals.result import Estimate, write_result
from evals.sums import draws
from vsae.activations import Select, fingerprint
from vsae.activations.store import SiteReader
from vsae.run import Run

OPTIONS = ("temperature", "alpha", "min_samples", "seed")
"""Settings that a comparison and its floor have in common."""
Matched = tuple[bool, Energies, Energies]
"""Whether row i of both is of one key, the real images' energies, the generator's."""
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


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

    settings: dict[str, Any] = {
        "temperature": temperature,
        "alpha": alpha,
        "min_samples": min_samples,
        "seed": seed,
        "energy": energy,
        "least_change": least_change,
        "merge": merge,
        "thresholds": [SUPPRESSED, EXAGGERATED],
        "part": part,
        "kinds": kinds,
        "permutations": permutations,
        "resamples": resamples,
    }
    truth = energies(real, "real images", part)
    altered = energies(control, "control") if control else None
    audited = []
    for name, site in zip(names([site.store.path for site in generated]), generated, strict=True):
        audited.append(audit(name, truth, energies(site, name), altered, settings))
    floor = null(truth.scores, least_change=least_change, **{name: settings[name] for name in OPTIONS})
    audit_of = Audit(
        tuple(audited),
        floor,
        correlations(audited, floor.correlation),
        concept,
        int(np.bincount(concept).max()),
        str(control.store.path) if control else None,
        settings,
        truth,
        altered,
    )
    write_result(out, to_result(audit_of, run, real, generated))
    for each in audited:
        draw_audited(each, floor, out / f"{each.name}.png")
    return audit_of


def audit(
    name: str, real: Energies, generated: Energies, control: Energies | None, settings: Mapping[str, Any]
) -> Audited:
    """One generator."""
    pairs, ours, theirs = both = matched(real, generated)
    seen = compared(name, both, control, settings)
    return Audited(
        **vars(seen),
        skew=skewness(seen.difference.delta),
        pairs=memorisation.pairs(theirs.scores, ours.scores, seed=settings["seed"]) if pairs else None,
        nearest=memorisation.nearest(theirs.scores, real.scores),
        energies=theirs,
    )


def compared(name: str, both: Matched, control: Energies | None, settings: Mapping[str, Any]) -> Compared:
    """One generator, concept by concept."""
    pairs, ours, theirs = both
    options = {option: settings[option] for option in (*OPTIONS, "permutations")}
    seed, resamples = settings["seed"], settings["resamples"]
    found = compare(ours.scores, theirs.scores, pairs=pairs, **options)
    flagged = found.found(settings["least_change"])
    blind = flagged
    if control:
        same, altered, again = matched(control, theirs)
        beyond = compare(altered.scores, again.scores, pairs=same, **options)
        blind = flagged & beyond.found(0.0) & (np.sign(beyond.relative) == np.sign(found.relative))
    first = draws(len(ours.keys), resamples, seed)
    second = first if pairs else draws(len(theirs.keys), resamples, seed + 1)
    moved = relative_difference(resampled(theirs.scores, second).ravel(), resampled(ours.scores, first).ravel())
    moved = moved.reshape(resamples, -1)
    interval = np.full((2, moved.shape[1]), np.nan)
    interval[:, found.live] = np.nanquantile(moved[:, found.live], [0.025, 0.975], axis=0)
    return Compared(name, found, blind, flagged & ~blind, interval)


def by_name(found: Audit, called: Mapping[int, str]) -> Named:
    """The same audit with all concepts of one name, found or not, counted as one: their energies are added up and tested again, names among themselves.

    called: the name of a concept. A name says less than it seems to where few of its concepts carry most of the energy, and what has no name is not in it.
    """
    names = tuple(sorted(set(called.values())))
    members = tuple(tuple(k for k in sorted(called) if called[k] == name) for name in names)
    if not names:
        return Named(names, members, (), 0.0)
    rows, columns = np.array([(k, at) for at, some in enumerate(members) for k in some]).T
    sums = csc_array((np.ones(len(rows)), (rows, columns)), shape=(found.real.scores.shape[1], len(names)))

    def summed(energies: Energies) -> Energies:
        return Energies(csc_array(energies.scores @ sums), energies.keys)

    real, control, settings = summed(found.real), found.altered and summed(found.altered), found.settings
    floor = null(real.scores, least_change=settings["least_change"], **{name: settings[name] for name in OPTIONS}).found
    generators = [
        compared(each.name, matched(real, summed(each.energies)), control, settings) for each in found.generators
    ]
    return Named(names, members, tuple(generators), floor)


def matched(real: Energies, generated: Energies) -> Matched:
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
