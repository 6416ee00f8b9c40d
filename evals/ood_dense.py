"""Out-of-distribution scores of dense features and logits: what a score on codes must beat. Larger means further out.

    MSP                    -max_c softmax(l)[c]                                              1610.02136
    energy                 -log sum_c exp l[c]                                               2010.03759
    Mahalanobis            min_c (x - m[c])^T S^-1 (x - m[c]),  S within classes             1807.03888
    relative Mahalanobis   that, less the distance to the mean of all with S of all          2106.09022
    kNN                    distance to the k-th nearest training sample, unit length         2204.06507
    ViM                    a |x - o, outside the first principal components| + energy        2203.10807; o = -W^+ b, a = mean max logit / mean residual

Covariances are shrunk towards a multiple of the identity by Ledoit and Wolf's closed form, so that there may be fewer samples than dimensions. The S of all is
shrunk as that within classes is: by amounts of their own, their difference is mostly that of the amounts, and far samples come out as near ones (ours).
Mahalanobis and kNN are also for codes, as dense rows.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from scipy.special import logsumexp, softmax
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.neighbors import NearestNeighbors

from vsae.tensors import read_tensors

NEIGHBOURS = 10


def msp(logits: Float[np.ndarray, "samples classes"]) -> Float[np.ndarray, "samples"]:
    """Minus the largest probability."""
    return -softmax(logits, axis=1).max(1)


def energy(logits: Float[np.ndarray, "samples classes"]) -> Float[np.ndarray, "samples"]:
    """Free energy at temperature 1."""
    return -logsumexp(logits, axis=1)


@dataclass(frozen=True)
class Gaussians:
    """Gaussians with one covariance: S^-1 = I / last - V diag(less) V^T, V the directions in which the training data vary."""

    means: Float[np.ndarray, "classes d"]
    vectors: Float[np.ndarray, "d rank"]
    less: Float[np.ndarray, "rank"]
    last: float
    shrinkage: tuple[float, float]
    """S = (1 - shrinkage) covariance + shrinkage * scale I: shrinkage and scale."""

    @staticmethod
    def fit(
        x: Float[np.ndarray, "samples d"],
        labels: Int[np.ndarray, "samples"],
        n_classes: int,
        shrinkage: tuple[float, float] | None = None,
    ) -> "Gaussians":
        """`shrinkage`: as that of another fit. Raises ValueError for a class without samples, and for classes whose samples are all equal."""
        counts = np.bincount(labels, minlength=n_classes)
        if empty := np.flatnonzero(counts == 0).tolist():
            raise ValueError(f"classes {empty} have no training sample: drop them, or give samples of them.")
        x = x.astype(np.float64)
        means = np.zeros((n_classes, x.shape[1]))
        np.add.at(means, labels, x)
        means /= counts[:, None]
        left = x - means[labels]
        scale = np.square(left).mean()
        if not scale > 0:
            raise ValueError("the training samples of each class are all equal: a covariance needs samples that vary.")
        share, scale = shrinkage or (float(ledoit_wolf_shrinkage(left, assume_centered=True)), float(scale))
        values, vectors = spectrum(left)
        last = share * scale
        if (
            not last > 0
        ):  # nothing was shrunk: only what varies counts, and the rest is as small as the smallest that does
            last = float(values.min())
        less = 1 / last - 1 / ((1 - share) * values + share * scale)
        return Gaussians(means, vectors, less, last, (share, scale))

    def distances(self, x: Float[np.ndarray, "rows d"]) -> Float[np.ndarray, "rows classes"]:
        """Squared Mahalanobis distance to each mean."""
        x = x.astype(np.float64) - self.means.mean(0)
        means = self.means - self.means.mean(0)
        weight = np.sqrt(np.maximum(self.less, 0))
        inside = squared((x @ self.vectors) * weight, (means @ self.vectors) * weight)
        return np.maximum(squared(x, means) / self.last - inside, 0)

    def score(self, x: Float[np.ndarray, "rows d"]) -> Float[np.ndarray, "rows"]:
        """To the nearest mean."""
        return self.distances(x).min(1)


def relative(
    classes: Gaussians, everything: Gaussians, x: Float[np.ndarray, "samples d"]
) -> Float[np.ndarray, "samples"]:
    """Relative Mahalanobis: `everything` is fitted with one class, and the shrinkage of `classes`."""
    return classes.score(x) - everything.score(x)


@dataclass(frozen=True)
class Neighbours:
    """Distance to the k-th nearest training sample, all of length 1."""

    index: NearestNeighbors

    @staticmethod
    def fit(x: Float[np.ndarray, "samples d"], k: int = NEIGHBOURS) -> "Neighbours":
        """The last of all samples where there are fewer than k."""
        return Neighbours(NearestNeighbors(n_neighbors=min(k, len(x)), algorithm="brute").fit(unit(x)))

    def score(self, x: Float[np.ndarray, "rows d"]) -> Float[np.ndarray, "rows"]:
        return self.index.kneighbors(unit(x))[0][:, -1].astype(np.float64)


@dataclass(frozen=True)
class Head:
    """A linear classifier of features: logits = x W^T + b."""

    weight: Float[np.ndarray, "classes d"]
    bias: Float[np.ndarray, "classes"]

    def logits(self, x: Float[np.ndarray, "rows d"]) -> Float[np.ndarray, "rows classes"]:
        """Raises ValueError for features of another width."""
        if x.shape[1] != self.weight.shape[1]:
            raise ValueError(
                f"the head reads {self.weight.shape[1]} features and the store has {x.shape[1]}: take the head of this site's model."
            )
        return x.astype(np.float64) @ self.weight.T + self.bias


def read_head(path: Path, name: str) -> Head:
    """The linear layer `name` of a safetensors file. Raises FileNotFoundError or ValueError with a sentence."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: give the model's weights.")
    tensors = read_tensors(path)
    if missing := [key for key in (f"{name}.weight", f"{name}.bias") if key not in tensors]:
        raise ValueError(f"{path} has no tensor {missing[0]}: name its classifier with --head-name.")
    return Head(*(tensors[f"{name}.{part}"].double().numpy() for part in ("weight", "bias")))


@dataclass(frozen=True)
class ViM:
    """Virtual-logit matching; see the module's docstring."""

    head: Head
    origin: Float[np.ndarray, "d"]
    outside: Float[np.ndarray, "d rest"]
    alpha: float

    @staticmethod
    def fit(x: Float[np.ndarray, "samples d"], head: Head, principal: int | None = None) -> "ViM":
        """principal: dimension of the principal space; as the authors have it 1000 from d = 2048 on, 512 from 768 on, else d / 2."""
        d = x.shape[1]
        principal = principal or (1000 if d >= 2048 else 512 if d >= 768 else max(1, d // 2))
        if not principal < d:
            raise ValueError(f"the principal space has {principal} of {d} dimensions: leave some outside.")
        origin = -np.linalg.pinv(head.weight) @ head.bias
        left = x.astype(np.float64) - origin
        outside = np.linalg.eigh(left.T @ left)[1][:, : d - principal]
        residual = np.linalg.norm(left @ outside, axis=1).mean()
        alpha = head.logits(x).max(1).mean() / residual if residual > 0 else 0.0
        return ViM(head, origin, outside, float(alpha))

    def score(self, x: Float[np.ndarray, "rows d"]) -> Float[np.ndarray, "rows"]:
        left = x.astype(np.float64) - self.origin
        return self.alpha * np.linalg.norm(left @ self.outside, axis=1) + energy(self.head.logits(x))


def spectrum(x: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, "rank"], Float[np.ndarray, "d rank"]]:
    """Variances and directions of centred rows, by the smaller of the two Gram matrices; directions without variance are left out."""
    n, d = x.shape
    values, vectors = np.linalg.eigh(x.T @ x / n if d <= n else x @ x.T / n)
    kept = values > values[-1] * max(n, d) * np.finfo(np.float64).eps
    values, vectors = values[kept], vectors[:, kept]
    return values, vectors if d <= n else x.T @ vectors / np.sqrt(n * values)


def squared(x: Float[np.ndarray, "rows d"], y: Float[np.ndarray, "others d"]) -> Float[np.ndarray, "rows others"]:
    """Squared distances."""
    return np.maximum(np.square(x).sum(1)[:, None] - 2 * x @ y.T + np.square(y).sum(1), 0)


def unit(rows: Float[np.ndarray, "rows d"]) -> Float[np.ndarray, "rows d"]:
    """In the dtype given; a row of zeros stays one."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)
