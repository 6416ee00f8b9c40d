"""How much of a known dictionary another one holds.

    matched cosine     mean over the known atoms of the cosine to the atom paired with it; the pairing is one to one and maximises the sum (Hungarian)
    recovered          share of the known atoms whose paired atom has a cosine above 0.9
    nearest cosine     mean over the known atoms of the largest cosine to any atom (MMCS): one atom may serve several
    unmatched cosine   mean over all pairs of atoms: large where a dictionary has collapsed, and then a large matched cosine means nothing

Signed: an atom and its negative are one, and cosines are absolute.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

ABOVE = 0.9


@dataclass(frozen=True)
class Matching:
    """The module's docstring has the definitions."""

    matched: float
    recovered: float
    nearest: float
    unmatched: float
    cosines: Float[np.ndarray, "features"]
    """Of each known atom to the one paired with it; 0 for one that no atom was left for."""
    pairs: Int64[np.ndarray, "features"]
    """Atom paired with each known atom; -1 where none was left."""


def match(
    known: Float[Tensor, "features d_model"], atoms: Float[Tensor, "n_latents width"], signed: bool = False
) -> Matching:
    """Pair known atoms with a dictionary's. The lengths of atoms do not matter; a zero atom has cosine 0 to all. Raises ValueError for other widths."""
    if known.shape[1] != atoms.shape[1]:
        raise ValueError(f"the known atoms have {known.shape[1]} dimensions and the dictionary's {atoms.shape[1]}.")
    cosine = (unit(known) @ unit(atoms).T).numpy()
    cosine = np.abs(cosine) if signed else cosine
    rows, columns = linear_sum_assignment(cosine, maximize=True)
    pairs, cosines = np.full(len(known), -1, np.int64), np.zeros(len(known))
    pairs[rows], cosines[rows] = columns, cosine[rows, columns]
    return Matching(
        matched=float(cosines.mean()),
        recovered=float((cosines > ABOVE).mean()),
        nearest=float(cosine.max(1).mean()),
        unmatched=float(cosine.mean()),
        cosines=cosines,
        pairs=pairs,
    )


def unit(atoms: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    return torch.nn.functional.normalize(atoms.detach().cpu().double(), dim=1, eps=1e-30)
