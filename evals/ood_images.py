"""What `evals.ood_runs` scores: images, each one row of features and one of codes, and the classes that its scores assign them to.

classes   head     the logits of a classifier file; the training images are grouped by its predictions, classes of fewer than MIN_CLASS left out
          probe    a logistic regression on the features, fitted on the training labels; without labels, on k-means clusters
          nearest  the class (label or cluster) with the nearest profile; MSP, energy and ViM are then left out, as there are no logits
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array, vstack
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from evals import ood, ood_dense
from evals.pooling import candidates, pooled
from vsae.activations import whole_samples
from vsae.activations.store import SiteReader
from vsae.code import Code
from vsae.run import Run

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
