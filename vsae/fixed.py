"""Dictionaries found without gradients, behind the same encode and decode: PCA, ICA, sparse PCA and k-means (scikit-learn), so that every evaluation runs on them.

With atoms A [n_latents, d_model] and mean m of the rows they are fitted to, codes are least squares, of which the `k` largest in magnitude are kept:

    u = (A A^T + ridge)^-1 A (x - m)        z = the k entries of u largest in |u|, signed        x_hat = m + z A

ridge is 0 (the pseudo-inverse) but for sparse PCA, where it is scikit-learn's. With k = n_latents this is each method's own transform. They are ordinary
SAEs on the rows' own units, linear, which `vsae.run.save_run` writes; codes are signed. Taking the k largest is ours.

    k-means    z_j = 1 for the nearest centroid, and 0 for the others:    j = argmax_j <c_j, x - m> - |c_j|^2 / 2,    c_j the centroid less m
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vsae.anchors import kmeans_anchors
from vsae.code import Code
from vsae.dictionaries import Free
from vsae.encoders import Linear
from vsae.preactivations import PreActivations
from vsae.sae import SAE
from vsae.sparsifiers import AbsTopK, Sparsifier


def pca(rows: Float[Tensor, "rows d_model"], n_latents: int, k: int | None = None, seed: int = 0) -> SAE:
    """The first principal components, as unit atoms."""
    from sklearn.decomposition import PCA

    found = PCA(checked(rows, n_latents), random_state=seed).fit(array(rows))
    return around(found.components_, found.mean_, k)


def ica(rows: Float[Tensor, "rows d_model"], n_latents: int, k: int | None = None, seed: int = 0) -> SAE:
    """FastICA's independent components: atoms are the mixing matrix's columns, and codes have variance 1."""
    from sklearn.decomposition import FastICA

    found = FastICA(checked(rows, n_latents), whiten="unit-variance", random_state=seed, max_iter=1000).fit(array(rows))
    return around(found.mixing_.T, found.mean_, k)


def sparse_pca(
    rows: Float[Tensor, "rows d_model"], n_latents: int, k: int | None = None, seed: int = 0, alpha: float = 1.0
) -> SAE:
    """Mini-batch sparse PCA: atoms with few entries, the fewer the larger `alpha`."""
    from sklearn.decomposition import MiniBatchSparsePCA

    fit = MiniBatchSparsePCA(checked(rows, n_latents), alpha=alpha, random_state=seed).fit(array(rows))
    return around(fit.components_, fit.mean_, k, fit.ridge_alpha)


class OneHot(Sparsifier):
    """1 for the largest pre-activation of each row, positive or not. No gradient."""

    def forward(self, pre: PreActivations) -> Code:
        found = pre.pick(lambda u: u.argmax(1, keepdim=True))
        return Code(torch.ones_like(found.values), found.indices)


def kmeans(rows: Float[Tensor, "rows d_model"], n_latents: int, seed: int = 0) -> SAE:
    """Mini-batch k-means: the code says which centroid is nearest (of equally near ones any), the reconstruction is that centroid.

    Raises ValueError for more centroids than there are distinct rows.
    """
    mean = rows.double().mean(0).float()
    atoms = kmeans_anchors(rows.float() - mean, n_latents, n_latents, seed)
    encoder = Linear(atoms, -atoms.square().sum(1) / 2)
    return SAE(encoder, OneHot(), Free(atoms, unit_norm=False), mean).eval().requires_grad_(False)


def around(
    atoms: Float[np.ndarray, "n_latents d_model"], mean: Float[np.ndarray, "d_model"], k: int | None, ridge: float = 0.0
) -> SAE:
    """The SAE of given atoms, with least-squares codes; `k` None keeps all of them."""
    A = torch.from_numpy(np.asarray(atoms, np.float64))
    encoder = (
        torch.linalg.pinv(A).T if not ridge else torch.linalg.solve(A @ A.T + ridge * torch.eye(len(A)).double(), A)
    )
    k = len(A) if k is None else k
    if not 1 <= k <= len(A):
        raise ValueError(f"k is {k}, but there are {len(A)} latents: choose 1 <= k <= {len(A)}.")
    parts = Linear(encoder.float(), torch.zeros(len(A))), AbsTopK(k), Free(A.float(), unit_norm=False)
    return SAE(*parts, torch.from_numpy(np.asarray(mean, np.float32))).eval().requires_grad_(False)


def array(rows: Float[Tensor, "rows d_model"]) -> Float[np.ndarray, "rows d_model"]:
    return rows.detach().double().cpu().numpy()


def checked(rows: Float[Tensor, "rows d_model"], n_latents: int) -> int:
    """`n_latents`, or a sentence: these methods find no more atoms than there are dimensions or rows."""
    most = min(rows.shape)
    if not 1 <= n_latents <= most:
        raise ValueError(
            f"n_latents is {n_latents}, but {len(rows)} rows of {rows.shape[1]} dimensions have at most {most} components."
        )
    return n_latents
