"""`vsae eval ood`: which images are out of distribution, by the codes of runs and by the dense features they must beat.

An image is one row: its features and its codes are means over its tokens. Everything is fitted on the training store; scores are compared between the store
that is in distribution and each that is out.

    classes   head     the logits of a classifier file; the training images are grouped by its predictions, classes of fewer than MIN_CLASS left out
              probe    a logistic regression on the features, fitted on the training labels; without labels, on k-means clusters
              nearest  the class (label or cluster) with the nearest profile; MSP, energy and ViM are then left out, as there are no logits

Where images in and out of distribution have labels that the training images have, too, a linear probe on codes is held against one on features (`evals.shift`).
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array, vstack
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from evals import ood, ood_dense, shift
from evals.detection import Detection, detection, mean_of
from evals.ood_shown import Comparison, Score, draw_ood
from evals.pooling import candidates, pooled
from evals.recovery_runs import over
from evals.result import Estimate, Result, write_result
from vsae.activations import Select, StoreSource, fingerprint, whole_samples
from vsae.activations.store import SiteReader
from vsae.code import Code
from vsae.run import Run

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
By = Literal["probe", "nearest"]
MIN_CLASS, CLUSTERS = 5, 10


@dataclass(frozen=True)
class Images:
    """One row an image."""

    features: Float[np.ndarray, "images d_model"]
    codes: csr_array
    error: Float[np.ndarray, "images"]
    """Mean over tokens of |x - x_hat|^2."""
    relative_error: Float[np.ndarray, "images"]
    """sum |x - x_hat|^2 / sum |x - mean|^2, the mean being that of the training store."""
    labels: tuple[str | None, ...]


@dataclass(frozen=True)
class Classes:
    """What the training images are grouped by, and how a new one is assigned."""

    source: str
    groups: Int[np.ndarray, "images"]
    """Of each training image; -1 where its class is too small."""
    n: int
    head: ood_dense.Head | None
    kept: Int[np.ndarray, "n"]
    """Which of the head's outputs the groups are."""

    def assign(
        self, features: Float[np.ndarray, "rows d"], codes: csr_array, profiles: ood.Profiles
    ) -> Int[np.ndarray, "rows"]:
        if self.head is None:
            return ood.nearest_cap(codes, profiles)
        return self.head.logits(features)[:, self.kept].argmax(1)


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


@torch.inference_mode()
def images(run: Run, site: SiteReader, batches: Iterable[Any], mean: torch.Tensor) -> Images:
    """Every image of `batches`, in order. Raises ValueError for none, and for NaN or infinity."""
    codec = candidates(run.sae)
    features, codes, sums, samples = list[np.ndarray](), list[csr_array](), list[np.ndarray](), list[np.ndarray]()
    for batch in whole_samples(batches):
        x = batch.values.to(codec.atoms)
        code = codec.encode(x)
        error = (x - codec.decode(code)).double().square().sum(1)
        spread = (x.double() - mean).square().sum(1)
        starts = np.flatnonzero(np.diff(batch.samples.numpy(), prepend=-1))
        sizes = np.diff(starts, append=len(x))
        features.append(np.add.reduceat(x.double().numpy(), starts, axis=0) / sizes[:, None])
        codes.append(
            pooled(Code(code.values.float().cpu(), code.indices.cpu()), codec.n_latents, np.asarray(starts), "mean")
        )
        both = np.stack([error.numpy(), spread.numpy()], 1)
        sums.append(np.c_[np.add.reduceat(both, starts, axis=0), sizes])
        samples.append(batch.samples.numpy()[starts])
    if not features:
        raise ValueError(f"{site.store.path} has no row to score: check which token kinds were selected.")
    errors, spreads, tokens = np.concatenate(sums).T
    rows = np.concatenate(features).astype(np.float32)
    if not np.isfinite(rows).all() or not np.isfinite(errors).all():
        raise ValueError(f"{site.store.path} holds NaN or infinity: nothing can be scored on it.")
    known = site.samples.column("label").to_pylist()
    labels = tuple(known[at] for at in np.concatenate(samples).tolist())
    relative = errors / np.maximum(spreads, np.finfo(np.float64).tiny)
    return Images(rows, csr_array(vstack(codes, "csr")), errors / tokens, relative, labels)


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


def grouping(train: Images, head: ood_dense.Head | None, by: By, seed: int) -> Classes:
    """What the classes are; see the module's docstring. Raises ValueError where fewer than one class has enough images."""
    if head is not None:
        predicted = head.logits(train.features).argmax(1)
        kept = np.flatnonzero(np.bincount(predicted, minlength=len(head.weight)) >= MIN_CLASS)
        if not len(kept):
            raise ValueError(f"the head gives no class to {MIN_CLASS} training images: give more images.")
        place = np.full(len(head.weight), -1)
        place[kept] = np.arange(len(kept))
        return Classes("head, training images grouped by its predictions", place[predicted], len(kept), head, kept)
    if any(label is not None for label in train.labels):
        names = sorted({label for label in train.labels if label is not None})
        number = {name: at for at, name in enumerate(names)}
        groups = np.array([number[label] if label is not None else -1 for label in train.labels])
        origin = "labels"
    else:
        n = min(CLUSTERS, len(train.features))
        groups = KMeans(n, n_init=1, random_state=seed).fit_predict(train.features).astype(np.int64)
        origin = f"{n} k-means clusters, for want of labels"
        names = [str(at) for at in range(n)]
    kept = np.arange(len(names))
    if by == "nearest" or len(names) == 1:
        return Classes(f"nearest CAP of {origin}", groups, len(names), None, kept)
    return Classes(f"linear probe on {origin}", groups, len(names), probe(train.features, groups), kept)


def probe(x: Float[np.ndarray, "rows d"], groups: Int[np.ndarray, "rows"]) -> ood_dense.Head:
    """Logistic regression on standardised features, as a head of the features themselves. Rows of group -1 are left out."""
    keep = groups >= 0
    scaler = StandardScaler().fit(x[keep])
    model = LogisticRegression(max_iter=200).fit(scaler.transform(x[keep]), groups[keep])
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:  # two classes: one row of scikit-learn's is the difference of their logits
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / scaler.scale_
    return ood_dense.Head(weight, bias - weight @ scaler.mean_)


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
