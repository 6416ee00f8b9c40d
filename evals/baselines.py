"""What an SAE's NMSE must be held against: PCA of the same rank, and k-means with as many atoms, at the same L0.

    PCA of rank k          x_hat = mean + V_k V_k^T (x - mean)          L0 = k, signed and dense: the best linear code of k numbers
    residual k-means       x_hat = mean + c_1 + ... + c_L               L0 = L: each level codes what is left by the nearest of its centroids;
                                                                        one level is plain k-means

Both have an SAE's two verbs, `encode` and `decode`, so that `evals.reconstruction.measure` takes them as they are. Fit them on the
training part and measure on the part that is reported.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Float
from rich.table import Table
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from evals.reconstruction import Codec, Reconstruction, measure
from evals.result import Estimate
from vsae.activations import Batch
from vsae.code import Code

ENCODE_ROWS = 1024


@dataclass(frozen=True)
class PCA:
    """The first components of the data; `first(k)` is the codec of rank k."""

    mean: Float[Tensor, "d_model"]
    atoms: Float[Tensor, "n_latents d_model"]
    variance: Float[Tensor, "n_latents"]
    """Of the data along each component, largest first."""

    @property
    def n_latents(self) -> int:
        return len(self.atoms)

    def first(self, k: int) -> "PCA":
        """PCA of rank `k`. Raises ValueError beyond the number of components."""
        if not 0 < k <= self.n_latents:
            raise ValueError(f"PCA of rank {k} was asked for, but there are {self.n_latents} components.")
        return PCA(self.mean, self.atoms[:k], self.variance[:k])

    def encode(self, x: Float[Tensor, "batch d_model"]) -> Code:
        return Code((x - self.mean) @ self.atoms.T, torch.arange(self.n_latents, device=x.device).expand(len(x), -1))

    def decode(self, code: Code) -> Float[Tensor, "batch d_model"]:
        return self.mean + weighted_sum(code, self.atoms)


@dataclass(frozen=True)
class KMeans:
    """Residual k-means: latents [l * n, (l + 1) * n) are the centroids of level l, of which each row uses exactly one, with value 1."""

    mean: Float[Tensor, "d_model"]
    atoms: Float[Tensor, "n_latents d_model"]
    levels: int = 1

    @property
    def n_latents(self) -> int:
        return len(self.atoms)

    def encode(self, x: Float[Tensor, "batch d_model"]) -> Code:
        """Nearest centroid, level by level; of equally near ones the first."""
        per_level = self.n_latents // self.levels
        left, indices = x - self.mean, []
        for level, centroids in enumerate(self.atoms.split(per_level)):
            nearest = nearest_centroid(left, centroids)
            left = left - centroids[nearest]
            indices.append(nearest + level * per_level)
        return Code(x.new_ones(len(x), self.levels), torch.stack(indices, 1))

    def decode(self, code: Code) -> Float[Tensor, "batch d_model"]:
        return self.mean + weighted_sum(code, self.atoms)


def fit_pca(batches: Iterable[Batch]) -> PCA:
    """All components, by the eigenvectors of a covariance accumulated in float64 about the first row. Raises ValueError for fewer than 2 rows."""
    stream = iter(batches)
    if (first := next(stream, None)) is None:
        raise ValueError("PCA needs at least 2 rows to fit, but got none.")
    reference, count = first.values[0].double().cpu(), 0
    total, square = torch.zeros_like(reference), reference.new_zeros(len(reference), len(reference))
    for batch in chain([first], stream):
        x = batch.values.double().cpu() - reference
        count, total, square = count + len(x), total + x.sum(0), square + x.T @ x
    if count < 2:
        raise ValueError(f"PCA needs at least 2 rows to fit, but got {count}.")
    shift = total / count
    variance, vectors = torch.linalg.eigh(square / count - torch.outer(shift, shift))
    return PCA((reference + shift).float(), vectors.T.flip(0).float().contiguous(), variance.flip(0).clamp_min(0))


def fit_kmeans(rows: Float[Tensor, "rows d_model"], n: int, levels: int = 1, seed: int = 0, epochs: int = 10) -> KMeans:
    """Mini-batch k-means with `n` atoms in all, shared evenly by the levels. Raises ValueError with fewer rows than centroids.

    To match an SAE of n latents and L0 = k, take levels = k: as many atoms, as many of them used a row.
    """
    per_level = n // levels
    if not 1 <= per_level <= len(rows):
        raise ValueError(
            f"k-means with {n} atoms on {levels} levels has {per_level} centroids a level and {len(rows)} rows to fit: "
            "it needs at least one centroid a level and no more than there are rows."
        )
    mean = rows.double().mean(0).to(rows.dtype)
    left, atoms = rows - mean, []
    for level in range(levels):
        fitted = MiniBatchKMeans(
            per_level,
            # k-means++ costs centroids^2, and is no longer better than random rows when there are thousands
            init="k-means++" if per_level <= 512 else "random",
            batch_size=max(1024, min(per_level, len(rows))),
            max_iter=epochs,
            n_init=1,
            random_state=seed + level,
            compute_labels=False,
        ).fit(left.numpy())
        atoms.append(torch.from_numpy(fitted.cluster_centers_).to(rows.dtype))
        left = left - atoms[-1][nearest_centroid(left, atoms[-1])]
    return KMeans(mean, torch.cat(atoms), levels)


@dataclass(frozen=True)
class Point:
    """One codec on the frontier of error against sparsity."""

    name: str
    n_latents: int
    l0: float
    nmse: Estimate
    dead: float


def frontier(
    codecs: Mapping[str, Codec], batches: Callable[[], Iterable[Batch]], kind_names: tuple[str, ...], seed: int = 0
) -> list[Point]:
    """Measure every codec on the same rows; `batches()` starts reading them again."""
    return [point(name, measure(codec, batches(), kind_names, seed=seed)) for name, codec in codecs.items()]


def point(name: str, measured: Reconstruction) -> Point:
    total = measured.total
    return Point(name, measured.n_latents, total.l0.value or 0.0, total.nmse, total.dead.value or 0.0)


def table(points: Iterable[Point]) -> Table:
    """The frontier as a table, best NMSE first within equal L0, floor beside."""
    shown = Table(
        "codec", "latents", "L0", "NMSE", "95 % interval", "dead", title="Reconstruction (NMSE floor 1: the mean)"
    )
    for each in sorted(points, key=lambda p: (round(p.l0), p.nmse.value or 0.0)):
        interval = f"{each.nmse.interval[0]:.3f} to {each.nmse.interval[1]:.3f}" if each.nmse.interval else "-"
        cells = (f"{each.n_latents:,}", f"{each.l0:.1f}", f"{each.nmse.value:.3f}", interval, f"{each.dead:.1%}")
        shown.add_row(each.name, *cells)
    return shown


def nearest_centroid(x: Float[Tensor, "rows d_model"], centroids: Float[Tensor, "n d_model"]) -> Tensor:
    """argmin_j |x - c_j|^2, a block of rows at a time."""
    half = centroids.square().sum(1) / 2
    return torch.cat([(half - block @ centroids.T).argmin(1) for block in x.split(ENCODE_ROWS)])


def weighted_sum(code: Code, atoms: Float[Tensor, "n_latents d_model"]) -> Float[Tensor, "batch d_model"]:
    return torch.nn.functional.embedding_bag(code.indices, atoms, per_sample_weights=code.values.to(atoms), mode="sum")
