"""SAE-V's cross-modal weights: how alike the image and the text tokens are that a latent speaks for (2502.17514; spec/papers.md section 4).

    code     each token keeps its 50 largest latents; each latent its 30 largest tokens, of either modality. With at least 5 image and 5 text tokens among
             them it is cross-modal, and w = mean of all 5 x 5 cosines of the hidden states of its 5 largest of each
    paper    w = (1 / K) sum_i cos(text_i, image_i), its K largest of each modality paired by rank (eq. 7)

Latents without enough tokens of a modality have no weight: NaN. A modality gap, the same offset in all hidden states of a modality, pulls w down and
changes its order; `centres`, the mean hidden state of each modality, takes it away first (ours).
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csc_array, csr_array

States = Callable[[Int[np.ndarray, "rows"]], np.ndarray]
"""Ascending token numbers -> their hidden states [rows, d_model]."""

PER_TOKEN, PER_LATENT, LEAST = 50, 30, 5
LATENTS = 2048
"""Whose hidden states are held at a time."""


def weights(
    codes: csr_array,
    is_image: Bool[np.ndarray, "tokens"],
    states: States,
    *,
    form: str = "code",
    k: int = LEAST,
    centres: tuple[np.ndarray, np.ndarray] | None = None,
) -> Float[np.ndarray, "n_latents"]:
    """Weight of every latent from codes [tokens, n_latents] and the tokens' hidden states; `centres`: of images, of text. Raises ValueError."""
    if form not in ("code", "paper"):
        raise ValueError(f"there is no form {form!r} of the weights: choose code or paper.")
    if k < 1:
        raise ValueError(f"{k} tokens of a modality make no weight: ask for at least 1.")
    image, text = top_tokens(codes, is_image, form, k)
    found = np.full(codes.shape[1], np.nan)
    known = np.flatnonzero((image[:, -1] >= 0) & (text[:, -1] >= 0))
    for start in range(0, len(known), LATENTS):
        some = known[start : start + LATENTS]
        sides = []
        for side, tokens in enumerate((image[some], text[some])):
            rows, place = np.unique(tokens, return_inverse=True)
            x = np.asarray(states(rows), np.float64)
            if centres is not None:
                x = x - centres[side]
            lengths = np.linalg.norm(x, axis=1, keepdims=True)
            sides.append((x / np.maximum(lengths, 1e-12))[place.reshape(tokens.shape)])
        if form == "code":
            found[some] = np.einsum("ld,ld->l", sides[0].mean(1), sides[1].mean(1))  # the mean of all pairs' cosines
        else:
            found[some] = np.einsum("lkd,lkd->lk", *sides).mean(1)
    return found


def top_tokens(
    codes: csr_array, is_image: Bool[np.ndarray, "tokens"], form: str, k: int
) -> tuple[Int[np.ndarray, "n_latents k"], Int[np.ndarray, "n_latents k"]]:
    """The k largest image and text tokens of each latent, largest first, of equals the first; all -1 where it has fewer."""
    n = codes.shape[1]
    columns = csc_array(largest(codes, PER_TOKEN) if form == "code" else codes)
    columns.sort_indices()
    columns.eliminate_zeros()
    latent = np.repeat(np.arange(n), np.diff(columns.indptr))
    order = np.lexsort((columns.indices, -columns.data, latent))
    latent, token = latent[order], columns.indices[order]
    positive = columns.data[order] > 0
    latent, token = latent[positive], token[positive]
    if form == "code":
        kept = rank_in(latent, n) < PER_LATENT
        latent, token = latent[kept], token[kept]
    found = []
    for mine in (is_image[token], ~is_image[token]):
        at, of = latent[mine], token[mine]
        rank, top = rank_in(at, n), np.full((n, k), -1)
        top[at[rank < k], rank[rank < k]] = of[rank < k]
        top[top[:, -1] < 0] = -1
        found.append(top)
    return found[0], found[1]


def largest(codes: csr_array, k: int) -> csr_array:
    """Each row's k largest entries."""
    sizes = np.diff(codes.indptr)
    if not len(sizes) or sizes.max() <= k:
        return codes
    row = np.repeat(np.arange(codes.shape[0]), sizes)
    order = np.lexsort((codes.indices, -codes.data, row))
    kept = order[rank_in(row[order], codes.shape[0]) < k]
    return csr_array((codes.data[kept], (row[kept], codes.indices[kept])), shape=codes.shape)


def rank_in(group: Int[np.ndarray, "n"], groups: int) -> Int[np.ndarray, "n"]:
    """Place of each entry within its group; entries of a group are neighbours."""
    sizes = np.bincount(group, minlength=groups)
    return np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
