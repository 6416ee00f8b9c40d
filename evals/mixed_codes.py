"""Codes of mixed token streams -> one `SampleCodes` for the samples that have both image and text tokens."""

import numpy as np
import torch
from jaxtyping import Bool, Int
from scipy.sparse import csr_array

from evals.filtering import SampleCodes
from evals.pooling import pooled
from vsae.code import Code


def sample_codes(
    code: Code, owner: Int[np.ndarray, "rows"], is_image: Bool[np.ndarray, "rows"], n_latents: int
) -> tuple[Int[np.ndarray, "whole"], SampleCodes, Bool[np.ndarray, "rows"]]:
    """(samples with tokens of both kinds, their codes, the rows that are theirs). `owner`: the sample of each row; rows of a sample are neighbours."""
    names, place = np.unique(owner, return_inverse=True)
    has = [np.bincount(place[mask], minlength=len(names)) > 0 for mask in (is_image, ~is_image)]
    whole = np.flatnonzero(has[0] & has[1])
    kept = np.isin(place, whole)

    def starts(mask: np.ndarray) -> np.ndarray:
        return np.flatnonzero(np.diff(place[mask], prepend=-1))

    def part(mask: np.ndarray) -> Code:
        at = torch.from_numpy(np.flatnonzero(mask))
        return Code(code.values[at], code.indices[at])

    image, text = (
        csr_array(pooled(part(mask), n_latents, starts(mask), "max")) for mask in (kept & is_image, kept & ~is_image)
    )
    own, first = part(kept), starts(kept)
    sizes = np.diff(first, append=int(kept.sum()))
    counts = csr_array(pooled(Code((own.values > 0).float(), own.indices), n_latents, first, "sum"))
    l0, l1 = ((own.values != 0).sum(1).numpy(), own.values.abs().sum(1).numpy())
    means = [np.add.reduceat(each, first) / sizes if len(first) else np.zeros(0) for each in (l0, l1)]
    length = np.bincount(place[kept & ~is_image], minlength=len(names))[whole].astype(np.float64)
    return names[whole], SampleCodes(image, text, counts, means[0], means[1], length), kept
