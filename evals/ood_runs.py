"""`vsae eval ood`: which images are out of distribution, by the codes of runs and by the dense features they must beat.

An image is one row: its features and its codes are means over its tokens. Everything is fitted on the training store; scores are compared between the store
that is in distribution and each that is out. Classes are those of `evals.ood_images`.

Where images in and out of distribution have labels that the training images have, too, a linear probe on codes is held against one on features (`evals.shift`).
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float

from evals import ood, ood_dense, shift
from evals.detection import Detection, detection, mean_of
from evals.ood_images import By, Classes, Images, grouping, images
from evals.ood_shown import Comparison, Score, draw_ood
from evals.recovery_runs import over
from evals.result import Estimate, Result, write_result
from vsae.activations import Select, StoreSource, fingerprint
from vsae.activations.store import SiteReader
from vsae.run import Run

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


def evaluate(
    runs: Sequence[Run],
    train: SiteReader,
    inside: SiteReader,
    outside: Mapping[str, SiteReader],
    out: Path,
    *,
    near: Sequence[str] = (),
    head: ood_dense.Head | None = None,
    classes: By = "probe",
    kinds: tuple[str, ...] | None = None,
    top: float = ood.TOP,
    neighbours: int = ood_dense.NEIGHBOURS,
    resamples: int = 200,
    seed: int = 0,
    batch_size: int = 4096,
    track: Track = lambda items, what, n: items,
) -> Comparison:
    """Fit on `train`, tell `inside` from each of `outside`; write result.json and ood.png to `out`.

    Raises ValueError when `inside` shares images with `train`, for `near` sets that are not there, and for codes of another SAE.
    """
    if unknown := sorted(set(near) - set(outside)):
        raise ValueError(f"near names {unknown[0]!r}, which is no set out of distribution: {', '.join(outside)}.")
    for site in (train, inside, *outside.values()):
        for run in runs:
            fingerprint.check(run.fingerprint, site.fingerprint)
    if inside.store.digest == train.store.digest or set(inside.keys) & set(train.keys):
        raise ValueError(
            f"{inside.store.path} and {train.store.path} share images: scores would be measured where they were fitted."
        )
    kinds = kinds or runs[0].kinds
    mean = torch.as_tensor(StoreSource(train, Select(kinds, skip=runs[0].skip)).moments().mean)

    def read(run: Run, site: SiteReader, what: str) -> Images:
        batches = track(site.sequential(batch_size, Select(kinds, skip=run.skip)), what, -(-site.n_rows // batch_size))
        return images(run, site, batches, mean)

    scores, grouped, probes = list[Score](), None, list[shift.Probed]()
    told: dict[str, np.ndarray] | None = None
    for at, run in enumerate(runs):
        fitted = read(run, train, f"{run.path.name}, train")
        if grouped is None:
            grouped = grouping(fitted, head, classes, seed)
        keep = grouped.groups >= 0
        profiles = ood.class_profiles(fitted.codes[keep], grouped.groups[keep], grouped.n, top)
        on_codes = code_scores(fitted, grouped, profiles, neighbours)
        on_features = dense_scores(fitted, grouped, neighbours) if at == 0 else {}
        sets = {name: read(run, site, f"{run.path.name}, {name}") for name, site in {"": inside, **outside}.items()}
        tables = {
            name: {score: of(rows) for score, of in (on_codes | on_features).items()} for name, rows in sets.items()
        }
        if at == 0 and (dense := carried(fitted, sets, "features", None, None, resamples, seed)):
            probes.append(dense[0])
            told = dense[1]
        if sparse := carried(fitted, sets, "codes", run.path.name, told, resamples, seed):
            probes.append(sparse[0])
        for score in on_codes | on_features:
            found = {name: detection(tables[""][score], tables[name][score], resamples, seed) for name in outside}
            scores.append(
                Score(
                    score,
                    run.path.name if score in on_codes else None,
                    found,
                    mean_of([found[name] for name in near]) if near else None,
                    mean_of([found[name] for name in outside if name not in near]) if len(near) < len(found) else None,
                    mean_of(list(found.values())),
                )
            )
    assert grouped is not None
    scores.sort(key=lambda score: score.run is None)
    comparison = Comparison(
        tuple(scores), seeds_of(scores), grouped.source, grouped.n, int((grouped.groups >= 0).sum()), tuple(probes)
    )
    write_result(out, to_result(comparison, runs, train, inside, outside, kinds, top, neighbours, seed))
    draw_ood(comparison, out / "ood.png")
    return comparison


def carried(
    train: Images,
    sets: Mapping[str, Images],
    name: Literal["codes", "features"],
    run: str | None,
    beside: Mapping[str, np.ndarray] | None,
    resamples: int,
    seed: int,
) -> tuple[shift.Probed, dict[str, np.ndarray]] | None:
    """`evals.shift.probed` on codes or features; the set in distribution is called "in"."""

    def rows(of: Images) -> tuple[Any, tuple[str | None, ...]]:
        return getattr(of, name), of.labels

    named = {at or "in": rows(of) for at, of in sets.items()}
    return shift.probed(rows(train), named, name, run, beside, resamples, seed)


Scorer = Callable[[Images], Float[np.ndarray, "images"]]


def code_scores(train: Images, classes: Classes, profiles: ood.Profiles, neighbours: int) -> dict[str, Scorer]:
    keep = classes.groups >= 0
    # latents that are silent on all of the training images tell Mahalanobis nothing that a shrunk variance could
    dense = train.codes.toarray()
    gauss = ood_dense.Gaussians.fit(dense[keep], classes.groups[keep], classes.n)
    near = ood_dense.Neighbours.fit(dense, neighbours)
    return {
        "EPD": lambda im: ood.epd(im.codes, classes.assign(im.features, im.codes, profiles), profiles),
        "Spearman-CAP": lambda im: ood.spearman_cap(im.codes, profiles),
        "max-CAP cosine": lambda im: ood.cosine_cap(im.codes, profiles),
        "Mahalanobis, codes": lambda im: gauss.score(im.codes.toarray()),
        "kNN, codes": lambda im: near.score(im.codes.toarray()),
        "error": lambda im: im.error,
        "relative error": lambda im: im.relative_error,
        "-L0": lambda im: ood.silence_l0(im.codes),
        "-L1": lambda im: ood.silence_l1(im.codes),
    }


def dense_scores(train: Images, classes: Classes, neighbours: int) -> dict[str, Scorer]:
    keep = classes.groups >= 0
    gauss = ood_dense.Gaussians.fit(train.features[keep], classes.groups[keep], classes.n)
    everything = ood_dense.Gaussians.fit(train.features, np.zeros(len(train.features), np.int64), 1, gauss.shrinkage)
    near = ood_dense.Neighbours.fit(train.features, neighbours)
    found: dict[str, Scorer] = {
        "Mahalanobis": lambda im: gauss.score(im.features),
        "relative Mahalanobis": lambda im: ood_dense.relative(gauss, everything, im.features),
        "kNN": lambda im: near.score(im.features),
    }
    if (head := classes.head) is not None:
        vim = ood_dense.ViM.fit(train.features, head)
        found |= {
            "MSP": lambda im: ood_dense.msp(head.logits(im.features)),
            "energy": lambda im: ood_dense.energy(head.logits(im.features)),
            "ViM": lambda im: vim.score(im.features),
        }
    return found


def seeds_of(scores: Sequence[Score]) -> dict[str, Estimate]:
    names = dict.fromkeys(score.name for score in scores if score.run)
    return {
        name: over(np.array([score.mean.auroc.value for score in scores if score.name == name], np.float64), 0.5)
        for name in names
    }


def to_result(
    found: Comparison,
    runs: Sequence[Run],
    train: SiteReader,
    inside: SiteReader,
    outside: Mapping[str, SiteReader],
    kinds: Sequence[str] | None,
    top: float,
    neighbours: int,
    seed: int,
) -> Result:
    """EPD's AUROC, mean over sets and runs, is the headline."""
    first = found.scores[0]
    headline = found.over_seeds["EPD"] if len(runs) > 1 else first.mean.auroc

    def bare(of: Detection | None) -> Detection | None:
        return of and dataclasses.replace(of, drawn=None)

    scores = [
        {field.name: getattr(score, field.name) for field in dataclasses.fields(score)}
        | {"sets": {name: bare(of) for name, of in score.sets.items()}}
        | {"near": bare(score.near), "far": bare(score.far), "mean": bare(score.mean)}
        for score in found.scores
    ]
    return Result(
        metric="AUROC of EPD, mean over sets",
        value=headline.value,
        floor=headline.floor,
        interval=headline.interval,
        n={"train": found.n_train, "in": first.mean.n_in, "out": first.mean.n_out, "runs": len(runs)},
        seeds={"bootstrap, probe and clusters": seed}
        | {f"training, {run.path.name}": run.meta.get("config", {}).get("seed", 0) for run in runs},
        splits={"fit": train.fingerprint, "in": inside.fingerprint}
        | {f"out, {name}": site.fingerprint for name, site in outside.items()},
        normalisation=runs[0].fingerprint["normalisation"]["mode"],
        token_kinds=list(kinds or train.kind_names),
        fingerprint={"saes": [run.fingerprint for run in runs], "store": train.fingerprint},
        details={
            "scores": scores,
            "over_seeds": found.over_seeds,
            "generalisation": found.probes,
            "classes": {"source": found.classes, "number": found.n_classes},
            "pooling": "mean over tokens",
            "top": top,
            "neighbours": neighbours,
        },
    )
