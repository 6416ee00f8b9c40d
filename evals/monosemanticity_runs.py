"""`vsae eval monosemanticity`: how alike the images are that each latent likes, by another encoder, beside raw neurons and the mean cosine of all pairs."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from rich.table import Table
from torch import Tensor

from evals.embedded import embedded
from evals.figures import ACCENT, QUIET, save
from evals.monosemanticity import CHUNK, Monosemanticity, scores
from evals.pooling import Pool, Pooled, candidates, pool
from evals.reconstruction import percentiles
from evals.recovery_runs import Directions
from evals.result import Estimate, Result, write_result
from evals.sums import draws
from vsae.activations import Select, StoreSource, fingerprint
from vsae.activations.store import SiteReader
from vsae.run import Run

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
TOP = 16


@dataclass(frozen=True)
class Compared:
    """A run, and the site's own coordinates, of either sign."""

    sae: Monosemanticity
    neurons: Monosemanticity
    mean: Estimate
    """Of the SAE's latents that have a score; its interval is over latents."""
    uniqueness: float | None
    """1 - mean Jaccard index of the sets of TOP images of pairs of latents; None for fewer than two latents with as many."""


def evaluate(
    run: Run,
    site: SiteReader,
    encoder: SiteReader,
    out: Path,
    *,
    pooling: Pool = "mean",
    kinds: tuple[str, ...] | None = None,
    resamples: int = 200,
    seed: int = 0,
    batch_size: int = 4096,
    track: Track = lambda items, what, n: items,
) -> Compared:
    """Score a run's latents by the embeddings in `encoder`, the mean of each sample's rows; write result.json and monosemanticity.png to `out`.

    Samples are paired by key. Of the run's own store only held-out samples are read. Raises ValueError where the two stores share fewer than two samples.
    """
    fingerprint.check(run.fingerprint, site.fingerprint)
    kinds, part = kinds or run.kinds, run.held_out(site)
    codec = candidates(run.sae)
    eye = torch.eye(run.sae.d_model)
    neurons = Directions.both(eye, StoreSource(site, Select(kinds, skip=run.skip)).moments().mean.float())

    def read(of: Any, where: SiteReader, what: str, select: Select, how: Pool, dense: bool = False) -> Pooled:
        return pool(
            of, track(where.sequential(batch_size, select), what, -(-where.n_rows // batch_size)), how, dense=dense
        )

    select = Select(kinds, part, run.skip)
    pooled = {
        "sae": read(codec, site, "codes", select, pooling),
        "neurons": read(neurons, site, "neurons", select, pooling, dense=True),
    }
    keys = [site.keys[at] for at in pooled["sae"].samples.tolist()]
    rows, embeddings = embedded(encoder, keys, part, batch_size, track)
    E = torch.from_numpy(embeddings)
    found = {name: in_chunks(each.scores, rows, E) for name, each in pooled.items()}
    sae = found["sae"]
    defined = sae.scores[~np.isnan(sae.scores)]
    drawn = draws(len(defined), resamples, seed) @ defined / max(len(defined), 1) if len(defined) > 1 else None
    compared = Compared(
        sae,
        found["neurons"],
        Estimate(sae.mean, sae.floor, None if drawn is None else percentiles(drawn)),
        uniqueness(pooled["sae"].scores, rows),
    )
    write_result(
        out,
        Result(
            metric="mean monosemanticity score",
            value=compared.mean.value,
            floor=compared.mean.floor,
            interval=compared.mean.interval,
            n={"images": sae.images, "latents": len(sae.scores), "without a score": sae.undefined},
            seeds={"bootstrap over latents": seed},
            splits={"report": select.describe()},
            normalisation=run.fingerprint["normalisation"]["mode"],
            token_kinds=list(kinds or site.kind_names),
            fingerprint={"sae": run.fingerprint, "store": site.fingerprint, "encoder": encoder.fingerprint},
            details={"compared": compared, "pooling": pooling},
        ),
    )
    draw(compared, out / "monosemanticity.png")
    return compared


def in_chunks(pooled: Any, rows: Int64[np.ndarray, "found"], E: Float[Tensor, "images d"]) -> Monosemanticity:
    """`scores` of so many latents at a time, so that sparse codes are never dense together."""
    parts = []
    for start in range(0, pooled.shape[1], CHUNK):
        some = pooled[:, start : start + CHUNK]
        dense = some if isinstance(some, np.ndarray) else some.toarray()
        parts.append(scores(torch.from_numpy(np.ascontiguousarray(dense[rows])), E))
    together = np.concatenate([part.scores for part in parts])
    return dataclasses.replace(parts[0], scores=together, undefined=int(np.isnan(together).sum()))


def uniqueness(pooled: Any, rows: Int64[np.ndarray, "found"], most: int = 2048) -> float | None:
    """Over the first `most` latents that at least TOP images activate."""
    codes = pooled[:, :].tocsr()[rows].tocsc()
    live = np.flatnonzero(np.diff(codes.indptr) >= TOP)[:most]
    if len(live) < 2:
        return None
    member = np.zeros((len(live), codes.shape[0]), np.float32)
    for at, latent in enumerate(live):
        entries = slice(codes.indptr[latent], codes.indptr[latent + 1])
        order = np.lexsort((codes.indices[entries], -codes.data[entries]))[:TOP]
        member[at, codes.indices[entries][order]] = 1
    both = member @ member.T
    jaccard = both / (2 * TOP - both)
    n = len(live)
    return float(1 - (jaccard.sum() - n) / (n * (n - 1)))


def table(found: Compared) -> Table:
    shown = Table("directions", "mean score", "best", "mean above floor", "floor (all pairs)", "without a score")
    shown.title = f"Monosemanticity, {found.sae.images:,} images"
    for name, each in (("latents", found.sae), ("neurons, both signs", found.neurons)):
        mean, best = each.mean, each.best
        numbers = (
            ("-", "-", "-")
            if mean is None or best is None
            else (f"{mean:.3f}", f"{best:.3f}", f"{mean - each.floor:+.3f}")
        )
        shown.add_row(name, *numbers, f"{each.floor:.3f}", f"{each.undefined:,} of {len(each.scores):,}")
    return shown


def draw(found: Compared, path: Path) -> Path:
    """Scores in ascending order."""

    def on(axes: Any) -> None:
        for name, each, color in (("latents", found.sae, ACCENT), ("neurons", found.neurons, QUIET)):
            values = np.sort(each.scores[~np.isnan(each.scores)])
            axes.plot(
                np.linspace(0, 1, len(values)),
                values,
                color=color,
                label=f"{name} ({each.undefined:,} without a score)",
            )
        axes.axhline(found.sae.floor, color=QUIET, lw=1, ls="--")
        axes.text(0.01, found.sae.floor, "mean cosine of all pairs", color=QUIET, va="bottom", fontsize=8)
        axes.set(xlabel="share of latents", ylabel="monosemanticity score")
        axes.legend(frameon=False, fontsize=8)

    return save(on, path)
