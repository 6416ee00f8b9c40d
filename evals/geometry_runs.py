"""`vsae eval geometry`: what a run's dictionary is like, beside random directions."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor

from evals.attributes import Attributes
from evals.figures import ACCENT, QUIET, save
from evals.geometry import Shape, Together, largest_cosines, plausibility, random_atoms, shape, together
from evals.identifiability import Identifiability, identify
from evals.labelled import labelled
from evals.matching import unit
from evals.norms import Norms, draw_zf, lengths, mean_cosine, norms
from evals.pooling import Pool, candidates
from evals.recovery_runs import parts
from evals.result import Result, write_result
from vsae.activations import Select, StoreSource, fingerprint
from vsae.activations.store import SiteReader
from vsae.run import Run
from vsae.sae import require

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
NORM_ROWS = 8192
"""Rows of the ZF plot."""


@dataclass(frozen=True)
class Geometry:
    """A run's dictionary, and as many random directions, by the same measures."""

    shape: Shape
    random_shape: Shape
    together: Together
    random_together: Together
    """The run's codes with random atoms: connectivity is the codes' own."""
    plausibility: float | None
    random_plausibility: float | None
    data_plausibility: float | None
    """Of as many rows of the data: being directions of the data is worth this much."""
    identifiability: Identifiability | None
    norms: Norms
    mean_cosine: float
    random_mean_cosine: float


def geometry_of(
    run: Run,
    site: SiteReader,
    out: Path,
    *,
    directions: Float[Tensor, "some d_model"] | None = None,
    attributes: Attributes | None = None,
    rows: int = 65_536,
    pooling: Pool = "max",
    resamples: int = 200,
    seed: int = 0,
    batch_size: int = 4096,
    track: Track = lambda items, what, n: items,
) -> Geometry:
    """Measure a run's dictionary and codes; write result.json, geometry.png and zf.png to `out`.

    directions: such as a classifier's rows, for plausibility. attributes: objects that samples have, for identifiability. Raises ValueError.
    """
    fingerprint.check(run.fingerprint, site.fingerprint)
    require(run.sae, linear_decoder=True, for_="geometry")
    kinds = run.kinds
    selection, report = parts([run], site, site, None, None)[1:]
    source = StoreSource(site, Select(kinds, report, run.skip))
    sample = source.sample_rows(rows, seed)
    atoms = run.sae.atoms.detach()
    random = random_atoms(atoms.shape[0], atoms.shape[1], seed)

    def codes(what: str) -> Iterable[Any]:
        batches = site.sequential(batch_size, Select(kinds, report, run.skip))
        for batch in track(batches, what, -(-source.n_rows // batch_size)):
            with torch.inference_mode():
                yield run.sae.encode(batch.values.to(atoms))

    if directions is not None and directions.shape[1] != atoms.shape[1]:
        raise ValueError(
            f"the directions have {directions.shape[1]} dimensions and the atoms {atoms.shape[1]}: give those of this site."
        )
    identified = None
    if attributes is not None:
        codec = candidates(run.sae)
        select, told = (
            labelled(codec, site, attributes, Select(kinds, part, run.skip), pooling, batch_size, track)
            for part in (selection, report)
        )
        identified = identify(select, told, attributes.names, resamples=resamples, seed=seed)
    z, x = lengths(run.sae, sample[:NORM_ROWS].split(batch_size), run.sae.bias)
    found = Geometry(
        shape(atoms, sample),
        shape(random, sample),
        together(codes("codes"), atoms),
        together(codes("codes, random atoms"), random),
        None if directions is None else plausibility(directions, atoms),
        None if directions is None else plausibility(directions, random),
        None if directions is None else plausibility(directions, source.sample_rows(len(atoms), seed + 1)),
        identified,
        norms(z, x, resamples, seed),
        mean_cosine(atoms),
        mean_cosine(random),
    )
    write_result(
        out,
        Result(
            metric="stable rank",
            value=found.shape.stable_rank,
            floor=found.random_shape.stable_rank,
            interval=None,
            n={"latents": len(atoms), "rows": found.together.rows, "rows compared with atoms": len(sample)},
            seeds={"random directions, rows and bootstrap": seed},
            splits={
                "selection": Select(kinds, selection, run.skip).describe(),
                "report": Select(kinds, report, run.skip).describe(),
            },
            normalisation=run.fingerprint["normalisation"]["mode"],
            token_kinds=list(kinds or site.kind_names),
            fingerprint={"sae": run.fingerprint, "store": site.fingerprint},
            details=found,
        ),
    )
    draw_geometry(atoms, random, out / "geometry.png")
    draw_zf(z, x, out / "zf.png")
    return found


def geometry_table(found: Geometry) -> Table:
    shown = Table("measure", "dictionary", "random directions")
    for name in ("stable_rank", "effective_rank", "coherence"):
        shown.add_row(
            name.replace("_", " "), f"{getattr(found.shape, name):.3f}", f"{getattr(found.random_shape, name):.3f}"
        )
    for r, value in found.shape.babel.items():
        shown.add_row(f"Babel({r})", f"{value:.3f}", f"{found.random_shape.babel[r]:.3f}")
    if found.shape.ood is not None and found.random_shape.ood is not None:
        shown.add_row("OOD of atoms", f"{found.shape.ood:.3f}", f"{found.random_shape.ood:.3f}")
    if found.together.babel is not None:
        shown.add_row("Babel of selections", f"{found.together.babel:.3f}", f"{found.random_together.babel:.3f}")
    if found.together.rank is not None:
        shown.add_row("rank of firing together", f"{found.together.rank:.1f}", "(the codes' own)")
    shown.add_row("connectivity", f"{found.together.connectivity:.4f}", "(the codes' own)")
    shown.add_row("interference", f"{found.together.interference:.4g}", f"{found.random_together.interference:.4g}")
    shown.add_row("mean |cosine|", f"{found.mean_cosine:.3f}", f"{found.random_mean_cosine:.3f}")
    gap, matched = found.norms.gap, found.norms.correlation
    shown.add_row("gap of |z| and |x|", f"{gap.value:.3f}", f"{gap.floor:.3f} (codes of other rows)")
    if matched.value is not None and matched.floor is not None:
        shown.add_row(
            "correlation of |z| and |x|", f"{matched.value:.3f}", f"{matched.floor:.3f} (codes of other rows)"
        )
    if found.plausibility is not None:
        shown.add_row(
            "plausibility",
            f"{found.plausibility:.3f}",
            f"{found.random_plausibility:.3f} (rows of the data {found.data_plausibility:.3f})",
        )
    if found.identifiability is not None:
        each = found.identifiability.accuracy
        shown.add_row("identifiability", f"{each.value:.3f}", f"{each.floor:.3f} (a code that never changes)")
    shown.title = "Geometry of the dictionary"
    return shown


def draw_geometry(atoms: Float[Tensor, "n d_model"], random: Float[Tensor, "n d_model"], path: Path) -> Path:
    """Each atom's largest |cosine| to another, ascending."""

    def on(axes: Any) -> None:
        for name, each, color in (("dictionary", atoms, ACCENT), ("random directions", random, QUIET)):
            near = sorted(largest_cosines(unit(each), 1)[:, 0].tolist())
            axes.plot([at / max(len(near) - 1, 1) for at in range(len(near))], near, color=color, label=name)
        axes.set(xlabel="share of atoms", ylabel="largest |cosine| to another atom", ylim=(0, 1.02))
        axes.legend(frameon=False)

    return save(on, path)
