"""`vsae eval segmentation`: do single latents line up with the classes of masks, in a run and in what it must beat?

    run                  codes of its patches
    random dictionary    random unit atoms, the run's number of latents and L0: an SAE that learnt nothing
    neurons              coordinates of the activation, `dense` random ones
    PCA                  the first `dense` components
    k-means              1 for the nearest of as many centroids as the run has latents
    semi-NMF             `dense` atoms, non-negative codes

The dictionaries of the last three are fitted on the fit split, and so is every probe; all numbers are of the report split (`evals.segmentation`). Codes stay
sparse from the first batch on, so that memory is the non-zeros' alone.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Int64
from scipy.sparse import csc_array

from evals import baselines, propose
from evals.masks import NONE, Masks
from evals.pooling import candidates, pool
from evals.reconstruction import Codec, percentiles
from evals.recovery_runs import Directions, unit
from evals.result import Estimate, Result, write_result
from evals.segmentation import Segmentation, align
from evals.segmentation_draws import MEASURES, Draws, drawn
from vsae.activations import Select, StoreSource, fingerprint
from vsae.activations.store import SiteReader
from vsae.nmf import semi_nmf
from vsae.run import Run
from vsae.sae import SAE
from vsae.sparsifiers import TopK

Part = tuple[float, float]
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
PATCH = ("patch",)
DENSE, FIT_ROWS = 64, 16_384


@dataclass(frozen=True)
class Patches:
    """Labelled patches of one split."""

    codes: csc_array
    labels: Int[np.ndarray, "patches"]
    samples: Int64[np.ndarray, "patches"]

    @property
    def all(self) -> tuple[csc_array, Int[np.ndarray, "patches"], Int64[np.ndarray, "patches"]]:
        return self.codes, self.labels, self.samples


@dataclass(frozen=True)
class Method:
    """A run or a baseline."""

    name: str
    run: str | None
    candidates: int
    l0: float
    """Non-zeros a patch, report split."""
    found: Segmentation
    mean_ap: Estimate
    probe_r: Estimate
    mean_iou: Estimate
    more_ap: Estimate | None
    """Mean AP of the run less this one's, on the same draws; None for the run."""


@dataclass(frozen=True)
class Comparison:
    """The run first."""

    methods: tuple[Method, ...]
    audit: propose.Audit | None
    names: tuple[str, ...]
    splits: dict[str, Any]
    without: int


def evaluate(
    run: Run,
    fit: SiteReader,
    report: SiteReader,
    masks: tuple[Masks, Masks],
    named: Callable[[Sequence[int]], tuple[str, ...]],
    out: Path,
    *,
    dense: int = DENSE,
    resamples: int = 200,
    seed: int = 0,
    batch_size: int = 4096,
    track: Track = lambda items, what, n: items,
) -> Comparison:
    """Measure run and baselines; write result.json and segmentation.png to `out`. masks: of the two stores; named: pixel values -> names.

    Of one store for both, the fit split is the half of the images with the smaller hashes. Raises ValueError for codes of another SAE, splits that share
    images, and report images that the run was trained on.
    """
    for site in (fit, report):
        fingerprint.check(run.fingerprint, site.fingerprint)
    if "patch" not in report.entry["moments"]:
        raise ValueError(f"{report.name} of {report.store.path} has no patch tokens: segmentation is of patches.")
    parts = splits(run, fit, report)
    values = sorted({*masks[0].values, *masks[1].values})
    names = named(values)

    def patches(codec: Codec, at: int, what: str) -> Patches:
        site, part = (fit, report)[at], parts[at]
        batches = track(site.sequential(batch_size, Select(PATCH, part, run.skip)), what, -(-site.n_rows // batch_size))
        found = pool(codec, batches, "token")
        assert found.positions is not None and not isinstance(found.scores, np.ndarray)
        labels = masks[at].rows(found.samples, found.positions)
        known = np.flatnonzero(labels != NONE)
        if not len(known):
            raise ValueError(f"no patch of the {('fit', 'report')[at]} split has a class: give more images with masks.")
        codes = csc_array(found.scores.tocsr()[known])
        codes.sum_duplicates()
        codes.eliminate_zeros()
        return Patches(codes, np.searchsorted(values, labels[known]), found.samples[known])

    own: str = run.meta["recipe"]["name"]
    first: tuple[Segmentation, Draws] | None = None
    audit: propose.Audit | None = None
    methods: list[Method] = []
    for name, codec in codecs(run, fit, parts[0], own, dense, seed, batch_size, track).items():
        learnt, seen = patches(codec, 0, f"fit, {name}"), patches(codec, 1, f"report, {name}")
        found = align(learnt.codes, learnt.labels, seen.codes, seen.labels, names)
        draws = drawn(found, *seen.all, names, resamples, seed)
        if first is None:
            audit = propose.evaluate(learnt.all, seen.all, names, resamples, seed)
        methods.append(method(name, run if first is None else None, seen, found, draws, first))
        first = first or (found, draws)
    comparison = Comparison(
        tuple(methods),
        audit,
        names,
        {
            name: site.fingerprint | {"select": Select(PATCH, part, run.skip).describe()}
            for name, site, part in zip(("fit", "report"), (fit, report), parts, strict=True)
        },
        masks[0].without + (masks[1].without if fit.store.digest != report.store.digest else 0),
    )
    from evals.segmentation_shown import draw_classes

    write_result(out, to_result(comparison, run, report, seed))
    draw_classes(comparison, out / "segmentation.png")
    return comparison


def splits(run: Run, fit: SiteReader, report: SiteReader) -> tuple[Part, Part]:
    """The part of either store. Raises ValueError; see `evaluate`."""
    border = run.held_out(report)[0]
    if fit.store.digest == report.store.digest:
        middle = border or 0.5
        return (0.0, middle), (middle, 1.0)
    if shared := set(fit.keys) & set(report.keys):
        raise ValueError(
            f"{fit.store.path} and {report.store.path} share {len(shared):,} images: scores would be measured where they were fitted."
        )
    return (0.0, 1.0), (border, 1.0)


def codecs(
    run: Run, fit: SiteReader, part: Part, own: str, dense: int, seed: int, batch_size: int, track: Track
) -> dict[str, Codec]:
    """The run and its baselines."""
    select, n = Select(PATCH, part, run.skip), run.sae.n_latents
    source = StoreSource(fit, select)
    pca = baselines.fit_pca(track(fit.sequential(batch_size, select), "fit PCA", -(-fit.n_rows // batch_size)))
    rows = source.sample_rows(min(max(FIT_ROWS, n), source.n_rows), seed).float()
    generator = torch.Generator().manual_seed(seed)
    d, some = pca.n_latents, min(dense, pca.n_latents, len(rows))
    atoms = unit(torch.randn(n, d, generator=generator))
    k = min(n, max(1, round(run.meta["self_check"]["l0"])))
    neurons = torch.eye(d)[torch.randperm(d, generator=generator)[:some].sort().values]
    centroids = min(n, len(rows))
    return {
        own: candidates(run.sae),
        "random dictionary": SAE.from_weights(atoms.T.contiguous(), torch.zeros(n), atoms, pca.mean, TopK(k)),
        # read from zero, not from their mean: where they are silent, they cost nothing
        f"neurons {some}": Directions(neurons, torch.zeros_like(pca.mean)),
        f"PCA {some}": pca.first(some),
        f"k-means {centroids}": baselines.fit_kmeans(rows, centroids, seed=seed),
        f"semi-NMF {some}": semi_nmf(rows, some, seed=seed),
    }


def method(
    name: str,
    run: Run | None,
    seen: Patches,
    found: Segmentation,
    draws: Draws,
    first: tuple[Segmentation, Draws] | None,
) -> Method:
    floors = {"mean_ap": found.mean_ap_floor, "probe_r": 0.0, "mean_iou": found.mean_ap_floor}
    estimates = {
        at: Estimate(getattr(found, at), floors[at], percentiles(getattr(draws, at)) if len(draws.mean_ap) else None)
        for at in MEASURES
    }
    more = None
    if first is not None:
        spread = percentiles(first[1].mean_ap - draws.mean_ap) if len(draws.mean_ap) else None
        more = Estimate(first[0].mean_ap - found.mean_ap, 0.0, spread)
    l0 = seen.codes.nnz / len(seen.labels)
    return Method(name, str(run.path) if run else None, seen.codes.shape[1], l0, found, more_ap=more, **estimates)


def to_result(found: Comparison, run: Run, report: SiteReader, seed: int) -> Result:
    """Mean AP of the run is the headline."""
    first = found.methods[0]
    details: Mapping[str, Any] = {
        "methods": found.methods,
        "propose_audit": found.audit,
        "classes": found.names,
        "images_without_mask": found.without,
    }
    return Result(
        metric="mean AP over classes of the latent chosen for each",
        value=first.mean_ap.value,
        floor=first.mean_ap.floor,
        interval=first.mean_ap.interval,
        n={"fit": first.found.n_fit, "report": first.found.n_report, "classes": len(first.found.classes)},
        seeds={"bootstrap and baselines": seed, "training": run.meta.get("config", {}).get("seed", 0)},
        splits=found.splits,
        normalisation=run.fingerprint["normalisation"]["mode"],
        token_kinds=list(PATCH),
        fingerprint={"sae": run.fingerprint, "store": report.fingerprint},
        details=details,
    )
