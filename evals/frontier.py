"""`vsae eval reconstruction`: a run on rows it was not trained on, beside PCA and k-means fitted on the rows it was.

PCA rank k, k = the SAE's L0       fitted on every row of the fit split
k-means                            L0 1, as many centroids as the SAE has latents
residual k-means                   L0 k, as many centroids in all, on k levels
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals import baselines
from evals.figures import draw_density, draw_frontier
from evals.reconstruction import Codec, Reconstruction, measure, to_result
from evals.result import write_result
from vsae.activations import Batch, Select, StoreSource
from vsae.activations.store import SiteReader
from vsae.run import Run

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""(items, what is done, how many) -> the same items, with a progress bar."""


@dataclass(frozen=True)
class Frontier:
    """The run and its baselines on the same rows; the run comes first."""

    measured: Reconstruction
    points: list[baselines.Point]


def evaluate(
    run: Run,
    site: SiteReader,
    out: Path,
    *,
    kinds: tuple[str, ...] | None = None,
    fit_site: SiteReader | None = None,
    fit_rows: int = 65_536,
    kmeans: int | None = None,
    seed: int = 0,
    batch_size: int = 4096,
    track: Track = lambda items, what, n: items,
) -> Frontier:
    """Measure `run` on `site` and write result.json and figures to `out`.

    Of the run's own training store only what was held out is measured, and the baselines are fitted on the rest; of another store everything is,
    and the baselines are fitted on `fit_site` (without one there are none). Raises ValueError when nothing was held out.
    """
    kinds, part = kinds or run.kinds, run.held_out(site)
    border, report = part[0], Select(kinds, part, run.skip)
    fit = (
        StoreSource(site, Select(kinds, (0.0, border), run.skip))
        if border
        else StoreSource(fit_site, Select(kinds, skip=run.skip))
        if fit_site
        else None
    )

    def rows(what: str) -> Iterable[Batch]:
        batches = -(-StoreSource(site, report).n_rows // batch_size)
        return track(site.sequential(batch_size, report), f"measure {what}", batches)

    measured = measure(run.sae, rows("the SAE"), site.kind_names, seed=seed)
    points = [baselines.point(run.meta["recipe"]["name"], measured)]
    if fit is not None:
        k = max(1, round(measured.total.l0.value or 1))
        for name, codec in fitted(fit, k, kmeans or run.sae.n_latents, fit_rows, seed, batch_size, track).items():
            points.append(baselines.point(name, measure(codec, rows(name), site.kind_names, seed=seed)))
    result = to_result(
        measured,
        splits={"fit": fit.fingerprint if fit else None, "report": site.fingerprint | {"select": report.describe()}},
        normalisation=run.fingerprint["normalisation"]["mode"],
        fingerprint={"sae": run.fingerprint, "store": site.fingerprint},
        baselines=points,
    )
    write_result(out, result)
    draw_frontier(points, out / "frontier.png", points[0].name)
    draw_density(measured, out / "density.png")
    return Frontier(measured, points)


def fitted(fit: StoreSource, k: int, n: int, n_rows: int, seed: int, batch_size: int, track: Track) -> dict[str, Codec]:
    """The baselines, by name. PCA reads every row; k-means `n_rows` random ones, or `n` if that is more."""
    batches = fit.site.sequential(batch_size, fit.select)
    pca = baselines.fit_pca(track(batches, "fit PCA", -(-fit.n_rows // batch_size)))
    sample = fit.sample_rows(max(n_rows, n), seed)
    n = min(n, len(sample))
    return {
        f"PCA {k}": pca.first(min(k, pca.n_latents)),
        f"k-means {n}": baselines.fit_kmeans(sample, n, seed=seed),
        f"k-means {n} on {k} levels": baselines.fit_kmeans(sample, n, levels=min(k, n), seed=seed),
    }
