"""`vsae eval separability`: how apart a run's latents keep exclusive classes, and what suppressing a class costs it and the others."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from rich.markup import escape
from rich.table import Table
from sklearn.linear_model import LogisticRegression

from evals.attributes import Attributes
from evals.figures import ACCENT, QUIET, save
from evals.label_reading import NONE, Track, atoms_of, read, write
from evals.reconstruction import percentiles
from evals.result import Estimate
from evals.separability import histograms, masked, members, separability, silenced, silhouette, suppressed
from evals.sums import draws
from vsae.activations.store import SiteReader
from vsae.run import Run
from vsae.sae import require


@dataclass(frozen=True)
class Suppression:
    """Of one class under one intervention on codes: what a probe on reconstructions loses on that class, and on the others."""

    concept: str
    how: str
    accuracy: float
    """Share of the concept's samples that the probe still calls so; before: see `before`."""
    before: float
    side_effect: float
    """Mean loss of that share over the other classes."""


@dataclass(frozen=True)
class Separated:
    """Latents beside raw neurons."""

    latents: Estimate
    """Mean separability of the live latents; floor: labels permuted. The interval is over latents."""
    neurons: Estimate
    top_latents: float
    """Mean over classes of the separability of the latent that speaks most for it."""
    top_neurons: float
    silhouette: Estimate | None
    """Of the atoms of the latents that speak most for each class; None where there are too few."""
    suppression: tuple[Suppression, ...]
    means: dict[str, dict[str, float]]
    """By intervention: mean loss on the class, and on the others."""
    classes: tuple[str, ...]
    samples: int


def separability_of(
    run: Run,
    site: SiteReader,
    attributes: Attributes,
    out: Path,
    *,
    group: str | None = None,
    top: int = 5,
    kinds: tuple[str, ...] | None = None,
    resamples: int = 200,
    seed: int = 0,
    batch_size: int = 4096,
    track: Track = NONE,
) -> Separated:
    """How apart latents keep exclusive classes, and what suppressing one costs; write result.json and separability.png to `out`.

    group: the attributes GROUP:... are the classes; of a sample that has none or several of them nothing is asked. Left out: all attributes are.
    Histograms, posteriors and the probe are of the training part, numbers of the test part. Raises ValueError for fewer than two classes.
    """
    require(run.sae, linear_decoder=True, for_="suppression")
    found = read(run, site, attributes, kinds, "mean", batch_size, track)
    wanted = [at for at, name in enumerate(attributes.names) if group is None or name.startswith(f"{group}:")]
    sides, present = [], list[np.ndarray]()
    for codes, dense in zip(found.codes, found.dense, strict=True):
        truth = codes.truth.toarray().astype(bool)[:, wanted]
        one = np.flatnonzero(truth.sum(1) == 1)
        present.append(np.bincount(truth[one].argmax(1), minlength=len(wanted)))
        sides.append(
            (
                codes.scores[one] if isinstance(codes.scores, np.ndarray) else codes.scores.tocsr()[one].toarray(),
                np.asarray(dense.scores)[one],
                truth[one].argmax(1),
            )
        )
    kept = [at for at in range(len(wanted)) if min(present[0][at], present[1][at]) >= 2]
    if len(kept) < 2:
        raise ValueError(
            f"separability needs two classes with samples that are of one class only, and there are {len(kept)}: name --group."
        )
    number = {old: new for new, old in enumerate(kept)}
    (z, x, y), (z_test, _, y_test) = (
        (codes[mask].astype(np.float64), dense[mask], np.array([number[at] for at in labels[mask]], np.int64))
        for codes, dense, labels in sides
        for mask in [np.isin(labels, kept)]
    )
    names = tuple(attributes.names[wanted[at]] for at in kept)
    rng = np.random.default_rng([seed, 11])
    mixed = rng.permutation(y)

    def apart(features: Float[np.ndarray, "samples n"]) -> tuple[Estimate, float]:
        own = histograms(features, y, len(kept))
        live = (features != 0).any(0)
        values, null = separability(own)[live], separability(histograms(features, mixed, len(kept)))[live]
        if not len(values):
            return Estimate(None), 0.0
        drawn = draws(len(values), resamples, seed) @ values / len(values)
        best = separability(own)
        each = [
            best[(1 - own.density[:, concept, 0]).argmax()] if own.density[:, concept, 0].min() < 1 else 0.0
            for concept in range(len(kept))
        ]
        return Estimate(
            float(values.mean()), float(null.mean()), percentiles(drawn) if len(values) > 1 else None
        ), float(np.mean(each))

    latents, top_latents = apart(z)
    neurons, top_neurons = apart(x)
    speaking, of_class = members(histograms(z, y, len(kept)), top)
    together = silhouette(atoms_of(run)[speaking], of_class, resamples, seed)
    suppressions = tuple(suppress(run, z, y, z_test, y_test, names, top, rng))
    hows = dict.fromkeys(each.how for each in suppressions)
    means = {
        how: {
            "loss on the class": float(
                np.mean([each.before - each.accuracy for each in suppressions if each.how == how])
            ),
            "loss on the others": float(np.mean([each.side_effect for each in suppressions if each.how == how])),
        }
        for how in hows
    }
    separated = Separated(latents, neurons, top_latents, top_neurons, together, suppressions, means, names, len(y))
    counts = {"training samples": len(y), "test samples": len(y_test), "classes": len(names)}
    details = {"separability": separated, "group": group, "top": top}
    write(out, "mean separability of live latents", latents, counts, run, site, found, details, seed)
    draw_separability(separated, out / "separability.png")
    return separated


def suppress(
    run: Run,
    z: Float[np.ndarray, "train n"],
    y: Int64[np.ndarray, "train"],
    z_test: Float[np.ndarray, "test n"],
    y_test: Int64[np.ndarray, "test"],
    names: Sequence[str],
    top: int,
    rng: np.random.Generator,
) -> Iterable[Suppression]:
    """Each class under APP, masking and halving of its `top` latents, and masking of as many random live latents. The probe reads decoded codes, so that atoms count by their direction."""
    atoms = atoms_of(run)
    found = histograms(z, y, len(names))
    x = z @ atoms
    middle, spread = x.mean(0), x.std(0) + 1e-12
    linear = LogisticRegression(max_iter=500).fit((x - middle) / spread, y)

    def hits(codes: Float[np.ndarray, "test n"]) -> Float[np.ndarray, "classes"]:
        right = linear.predict((codes @ atoms - middle) / spread) == y_test
        return np.array([right[y_test == at].mean() for at in range(len(names))])

    before = hits(z_test)
    live = np.flatnonzero((z != 0).any(0))
    for concept, name in enumerate(names):
        changed = {
            "APP": suppressed(z_test, found, concept),
            f"masking {top}": masked(z_test, found, concept, top),
            f"halving {top}": masked(z_test, found, concept, top, keep=0.5),
            f"random {top}": silenced(z_test, rng.permutation(live)[:top]),
        }
        for how, codes in changed.items():
            after = hits(codes)
            others = np.delete(before - after, concept)
            yield Suppression(name, how, float(after[concept]), float(before[concept]), float(others.mean()))


def separability_table(found: Separated) -> Table:
    shown = Table("directions", "separability", "labels permuted", "best for each class")
    shown.title = f"Separability of {len(found.classes)} classes: {escape(', '.join(found.classes[:4]))}{' ...' if len(found.classes) > 4 else ''}"
    for name, each, best in (
        ("latents", found.latents, found.top_latents),
        ("neurons", found.neurons, found.top_neurons),
    ):
        shown.add_row(
            name,
            "-" if each.value is None else f"{each.value:.3f}",
            "-" if each.floor is None else f"{each.floor:.3f}",
            f"{best:.3f}",
        )
    lost = "; ".join(
        f"{how} {each['loss on the class']:.2f} ({each['loss on the others']:+.2f})"
        for how, each in found.means.items()
    )
    shown.caption = f"accuracy lost on a suppressed class (and on the others): {lost}"
    if (atoms := found.silhouette) is not None:
        shown.caption += f"\nsilhouette of the atoms that speak for each class: {atoms.value:.2f} (classes permuted {atoms.floor:.2f})"
    return shown


def draw_separability(found: Separated, path: Path) -> Path:
    """What an intervention costs the class against what it costs the others."""

    def on(axes: Any) -> None:
        for how, color in zip(found.means, (ACCENT, "#1f6f8b", "#7a9e3a", QUIET), strict=True):
            mine = [each for each in found.suppression if each.how == how]
            axes.plot(
                [each.side_effect for each in mine],
                [each.before - each.accuracy for each in mine],
                "o",
                color=color,
                label=how,
            )
        axes.axline((0, 0), slope=1, color=QUIET, lw=1, ls="--")
        axes.set(xlabel="accuracy lost on the other classes", ylabel="accuracy lost on the class")
        axes.legend(frameon=False)

    return save(on, path)
