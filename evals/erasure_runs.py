"""`vsae eval erasure`: whether a run's latents take a concept out of activations, and leave the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from evals.absorbing import Absorbed, absorption
from evals.attributes import Attributes
from evals.erasure import Images, N, Removal, Targeted, mean_over, removal, targeted
from evals.figures import ACCENT, QUIET, save
from evals.label_reading import NONE, Track, atoms_of, means_of, read, write
from evals.reconstruction import percentiles
from evals.result import Estimate
from evals.sums import draws
from vsae.activations.store import SiteReader
from vsae.run import Run
from vsae.sae import require


@dataclass(frozen=True)
class Erasure:
    """TPP, SCR and absorption of one run."""

    tpp: Estimate
    """Mean over classes at `n` latents; floor: as many random latents; interval over classes."""
    scr: Estimate | None
    """Mean over pairs at `n` latents; None where no pair of attributes has all four combinations."""
    absorbed: Estimate | None
    """Mean rate of full absorption over concepts; floor: atoms exchanged."""
    n: int
    classes: tuple[Targeted, ...]
    pairs: tuple[Removal, ...]
    absorption: tuple[Absorbed, ...]
    left_out: tuple[str, ...]
    """Attributes too rare, or too frequent, to be probed; and of absorption those whose probe is too weak."""


def erasure_of(
    run: Run,
    site: SiteReader,
    attributes: Attributes,
    out: Path,
    *,
    group: str | None = None,
    n: Sequence[int] = N,
    most_pairs: int = 50,
    min_positives: int = 10,
    resamples: int = 200,
    seed: int = 0,
    batch_size: int = 4096,
    kinds: tuple[str, ...] | None = None,
    track: Track = NONE,
) -> Erasure:
    """TPP of every attribute (of GROUP:... where `group` is given), SCR of random pairs, absorption; write result.json and erasure.png to `out`. Raises ValueError."""
    require(run.sae, linear_decoder=True, for_="erasure")
    found = read(run, site, attributes, kinds, "mean", batch_size, track)
    train, test = means_of(found)
    wanted = [at for at, name in enumerate(attributes.names) if group is None or name.startswith(f"{group}:")]
    common = [
        at
        for at in wanted
        if all(min_positives <= part.truth[:, at].sum() <= len(part.x) - min_positives for part in (train, test))
    ]
    if len(common) < 2:
        raise ValueError(
            f"{len(common)} attributes are true of {min_positives} samples, and false of as many, in both parts: erasure compares two or more."
        )
    names = [attributes.names[at] for at in common]
    train, test = (Images(part.x, part.z, part.truth[:, common]) for part in (train, test))
    atoms = atoms_of(run)
    live = int((train.z != 0).any(0).sum())
    sizes = tuple(size for size in n if size <= live)
    if not sizes:
        raise ValueError(
            f"{live} latents fire on these samples, fewer than any number that is to be ablated ({', '.join(map(str, n))})."
        )
    classes = targeted(train, test, atoms, names, n=sizes, seed=seed)
    every = list(combinations(range(len(names)), 2))
    order = np.random.default_rng([seed, 23]).permutation(len(every))[:most_pairs]
    pairs = [
        removal(train, test, atoms, names, every[at], n=sizes, seed=seed)
        for at in track(order.tolist(), "pairs of attributes", len(order))
    ]
    kept = tuple(pair for pair in pairs if pair is not None)
    concepts, weak = absorption(train, test, atoms, names, resamples=resamples, seed=seed)
    size = max((each for each in sizes if each <= 20), default=sizes[0])

    def mean(values: list[float], floor: list[float]) -> Estimate | None:
        if not values:
            return None
        drawn = draws(len(values), resamples, seed) @ np.array(values) / len(values)
        return Estimate(
            float(np.mean(values)), float(np.mean(floor)), percentiles(drawn) if len(values) > 1 and resamples else None
        )

    tpp = mean([each.scores[size] for each in classes], [each.random[size] for each in classes])
    assert tpp is not None
    rare = [attributes.names[at] for at in wanted if at not in common]
    erased = Erasure(
        tpp,
        mean([each.scores[size] for each in kept], [each.random[size] for each in kept]),
        mean([each.full.value or 0.0 for each in concepts], [each.full.floor or 0.0 for each in concepts]),
        size,
        classes,
        kept,
        concepts,
        (*rare, *weak),
    )
    counts = {"training samples": len(train.x), "test samples": len(test.x), "classes": len(names), "pairs": len(kept)}
    write(out, f"TPP at {size} latents", tpp, counts, run, site, found, {"erasure": erased, "group": group}, seed)
    draw_erasure(erased, out / "erasure.png")
    return erased


def erasure_table(found: Erasure) -> Table:
    shown = Table("latents ablated", "TPP", "to their mean", "random", "SCR", "to their mean", "random")
    sides = [
        [mean_over(each, what) for what in ("scores", "to_mean", "random")] for each in (found.classes, found.pairs)
    ]
    for size in sides[0][0]:
        shown.add_row(str(size), *(f"{each[size]:.3f}" if size in each else "-" for side in sides for each in side))
    said = [
        f"{np.mean([one.projection for one in each]):.3f}" if each else "-" for each in (found.classes, found.pairs)
    ]
    shown.add_row("difference of means projected out", "", said[0], "", "", said[1], "")
    shown.title = (
        f"Targeted perturbation of {len(found.classes)} classes, spurious correlations of {len(found.pairs)} pairs"
    )
    if found.absorbed is not None:
        shown.caption = f"fully absorbed: {found.absorbed.value:.1%} of samples, mean of {len(found.absorption)} concepts (atoms exchanged: {found.absorbed.floor:.1%})"
    return shown


def draw_erasure(found: Erasure, path: Path) -> Path:
    """TPP and SCR by number of ablated latents, with what random ones do."""

    def on(axes: Any) -> None:
        for name, each, color in (("TPP", found.classes, ACCENT), ("SCR", found.pairs, "#1f6f8b")):
            for what, style in (("scores", "-o"), ("random", "--")):
                curve = mean_over(each, what)
                axes.plot(
                    list(curve),
                    list(curve.values()),
                    style,
                    color=color if what == "scores" else QUIET,
                    ms=4,
                    label=f"{name}{'' if what == 'scores' else ', random latents'}",
                )
        axes.axhline(0, color=QUIET, lw=1)
        axes.set(xscale="log", xlabel="latents ablated", ylabel="score")
        axes.legend(frameon=False, fontsize=8)

    return save(on, path)
