"""Anchors: a few thousand points that stand for the data, by seeded mini-batch k-means, drawn at random, or from a file.

Centroids are means of rows, so they lie in the data's convex hull; an archetypal dictionary builds its atoms from them (2502.12892, section 4, where
k-means is called the most reliable way to thin the data out).
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vsae.tensors import read_tensors


def kmeans_anchors(
    rows: Float[Tensor, "rows d_model"], n_anchors: int | None, most: int, seed: int
) -> Float[Tensor, "n_anchors d_model"]:
    """`n_anchors` distinct points of the rows' convex hull; with None, `most` of them, or all distinct rows where those are fewer.

    The same rows and seed give the same anchors. A centroid that no row is nearest to (which is also what becomes of the second of two equal
    ones) is replaced by a row that is not an anchor yet. Raises ValueError when `n_anchors` is more than there are distinct rows.
    """
    points, wanted = distinct(rows, n_anchors, most)
    centres = points if wanted == len(points) else centroids(points, wanted, seed)
    return torch.from_numpy(centres).to(rows)


def random_anchors(
    rows: Float[Tensor, "rows d_model"], n_anchors: int | None, most: int, seed: int
) -> Float[Tensor, "n_anchors d_model"]:
    """The same number of distinct rows, each as likely as another."""
    points, wanted = distinct(rows, n_anchors, most)
    return torch.from_numpy(points[np.random.default_rng(seed).permutation(len(points))[:wanted]]).to(rows)


def given_anchors(
    path: Path, rows: Float[Tensor, "rows d_model"], n_anchors: int | None
) -> Float[Tensor, "n_anchors d_model"]:
    """The one matrix in a safetensors file. Raises ValueError where it is of another width or number, or on another scale than the rows by far."""
    if path.suffix != ".safetensors":
        raise ValueError(f"anchors_from is {path}: choose kmeans, random, or a .safetensors file.")
    matrices = list(read_tensors(path).values())
    if len(matrices) != 1 or matrices[0].ndim != 2 or matrices[0].shape[1] != rows.shape[1] or len(matrices[0]) < 2:
        raise ValueError(
            f"{path} has to hold one tensor [anchors, {rows.shape[1]}] of at least two anchors, and nothing else."
        )
    anchors = matrices[0].to(rows)
    if n_anchors not in (None, len(anchors)):
        raise ValueError(f"{path} holds {len(anchors)} anchors, and {n_anchors} were asked for: leave anchors out.")
    ratio = float(anchors.square().mean().sqrt() / rows.square().mean().sqrt())
    if not 0.1 < ratio < 10:
        raise ValueError(
            f"the anchors in {path} are {ratio:.3g} times as large as what training sees: save them in those units, "
            "or train on raw activations with --training.normalise none."
        )
    return anchors


def distinct(
    rows: Float[Tensor, "rows d_model"], n_anchors: int | None, most: int
) -> tuple[Float[np.ndarray, "points d_model"], int]:
    """All distinct rows, and how many anchors to make of them. Raises ValueError where that cannot be."""
    points = np.unique(rows.detach().cpu().numpy().astype(np.float32), axis=0)
    wanted = min(most, len(points)) if n_anchors is None else n_anchors
    if wanted > len(points):
        raise ValueError(
            f"{wanted} anchors need as many distinct rows of activations, and the sample has {len(points)}: "
            "ask for fewer anchors, or initialise from more rows."
        )
    if wanted < 1:
        raise ValueError(f"anchors is {wanted}: an archetypal dictionary needs at least one.")
    return points, wanted


def centroids(points: Float[np.ndarray, "rows d_model"], n: int, seed: int) -> Float[np.ndarray, "n d_model"]:
    """k-means of distinct points, no cluster empty and no two centres equal."""
    from sklearn.cluster import MiniBatchKMeans  # takes a second to import, and only this job needs it

    rng = np.random.default_rng(seed)
    shuffled = points[rng.permutation(len(points))]
    fit = MiniBatchKMeans(
        n,
        init="random",
        n_init=1,
        batch_size=max(1024, 2 * n),
        max_iter=10,
        compute_labels=False,
        random_state=seed,
    ).fit(shuffled)
    centres, nearest = fit.cluster_centers_, fit.predict(shuffled)
    empty = np.flatnonzero(np.bincount(nearest, minlength=n) == 0)
    elsewhere = np.flatnonzero((shuffled != centres[nearest]).any(1))
    centres[empty] = shuffled[elsewhere[: len(empty)]]
    return centres
