"""A map of atoms: alike ones side by side. t-SNE (scikit-learn's) of their directions; distances between far ones mean nothing."""

import numpy as np
from jaxtyping import Float

MOST = 5000
"""Atoms that t-SNE places; more are put among the three placed ones that they are most alike to."""
COMPONENTS, FEWEST = 50, 10


def placed(atoms: Float[np.ndarray, "n d_model"], seed: int = 0, most: int = MOST) -> Float[np.ndarray, "n 2"]:
    """Places in the unit square. Fewer than FEWEST atoms are placed by their first two principal components. The same atoms, the same places."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    n = len(atoms)
    unit = np.asarray(atoms, np.float64)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    if n < 2:
        return np.full((n, 2), 0.5)
    chosen = np.sort(np.random.default_rng(seed).permutation(n)[:most])
    some = unit[chosen]
    reduced = PCA(
        min(COMPONENTS, *some.shape), svd_solver="full" if min(some.shape) <= 1000 else "auto", random_state=seed
    ).fit_transform(some)
    if len(chosen) < FEWEST or np.ptp(reduced, axis=0).max() < 1e-9:
        spots = np.pad(reduced[:, :2], ((0, 0), (0, max(0, 2 - reduced.shape[1]))))
    else:
        tsne = TSNE(
            2,
            perplexity=min(30.0, (len(chosen) - 1) / 3),
            init="pca" if reduced.shape[1] > 1 else "random",
            random_state=seed,
        )
        with threadpool_limits(1):  # its threads wait for each other in a spin: slow where a core is busy
            spots = np.asarray(tsne.fit_transform(reduced), np.float64)
    found = np.zeros((n, 2))
    found[chosen] = spots
    others = np.setdiff1d(np.arange(n), chosen)
    for start in range(0, len(others), 1024):
        mine = others[start : start + 1024]
        cosine = unit[mine] @ some.T
        near = np.argpartition(-cosine, min(2, len(chosen) - 1), axis=1)[:, :3]
        weight = np.exp(10 * np.take_along_axis(cosine, near, 1))
        found[mine] = (spots[near] * (weight / weight.sum(1, keepdims=True))[..., None]).sum(1)
    low, wide = found.min(0), np.ptp(found, axis=0)
    return np.where(wide > 1e-9, (found - low) / np.where(wide > 1e-9, wide, 1), 0.5)
