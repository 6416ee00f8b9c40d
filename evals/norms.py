"""Do codes have the length of what they stand for? (Quasi-orthogonality and ZF plot, 2503.24277; spec A17.)

Were all atoms orthogonal and the reconstruction exact, a code would be as long as its activation, |z| = |x - b_dec|. For every row x with code z, whose values are
first scaled by the lengths of their atoms:

    gap            mean over rows of | |z| - |x - b_dec| | / |x - b_dec|          rows on b_dec itself left out
    correlation    Pearson's r of |z| and |x - b_dec|
    epsilon        of unit atoms: max (coherence, `evals.geometry`) and mean of |D_i . D_j|, i != j

Floors: gap and correlation with the codes of other rows, drawn at random; mean |cosine| of as many random directions. Reading the gap as one number is ours;
the paper plots |z| against |x|.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from evals.figures import ACCENT, QUIET, save
from evals.matching import unit
from evals.reconstruction import Codec, percentiles
from evals.result import Estimate
from evals.sums import draws

CHUNK = 4096


@dataclass(frozen=True)
class Norms:
    """The module's docstring has the definitions."""

    gap: Estimate
    """Its interval is over rows."""
    correlation: Estimate
    rows: int
    on_bias: int
    """Rows left out, whose length is 0."""


@torch.inference_mode()
def lengths(
    codec: Codec, batches: Iterable[Float[Tensor, "_ d_model"]], bias: Float[Tensor, "d_model"]
) -> tuple[Float[np.ndarray, "rows"], Float[np.ndarray, "rows"]]:
    """(|z|, |x - bias|) of every row."""
    of_atoms, z, x = codec.atoms.double().norm(dim=1), list[np.ndarray](), list[np.ndarray]()
    for batch in batches:
        rows = batch.to(codec.atoms)
        code = codec.encode(rows)
        z.append((code.values.double() * of_atoms[code.indices]).norm(dim=1).cpu().numpy())
        x.append((rows.double() - bias.double()).norm(dim=1).cpu().numpy())
    return np.concatenate(z), np.concatenate(x)


def norms(z: Float[np.ndarray, "rows"], x: Float[np.ndarray, "rows"], resamples: int = 200, seed: int = 0) -> Norms:
    """Of `lengths`. Raises ValueError for fewer than two rows that are not on the bias."""
    there = x > 0
    z, x = z[there], x[there]
    if len(x) < 2:
        raise ValueError(f"{len(x)} rows have a length, and two or more are needed: give more.")
    other = z[np.random.default_rng([seed, 41]).permutation(len(z))]
    gap = np.abs(z - x) / x
    interval = percentiles(draws(len(gap), resamples, seed) @ gap / len(gap)) if resamples else None
    return Norms(
        Estimate(float(gap.mean()), float((np.abs(other - x) / x).mean()), interval),
        Estimate(correlation(z, x), correlation(other, x)),
        len(x),
        int((~there).sum()),
    )


def correlation(a: Float[np.ndarray, "rows"], b: Float[np.ndarray, "rows"]) -> float | None:
    """None where one of them is constant."""
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else None


def mean_cosine(atoms: Float[Tensor, "n d_model"]) -> float:
    """Mean |cosine| of pairs of different atoms that are not zero; NaN for fewer than two."""
    D = unit(atoms)
    D = D[D.norm(dim=1) > 0]
    total = sum(float((some @ D.T).abs().sum()) for some in D.split(CHUNK))
    return (total - len(D)) / (len(D) * (len(D) - 1)) if len(D) > 1 else float("nan")


def draw_zf(z: Float[np.ndarray, "rows"], x: Float[np.ndarray, "rows"], path: Path) -> Path:
    """The ZF plot: length of a code against that of its activation."""

    def on(axes: Any) -> None:
        axes.plot(x, z, ".", ms=2, alpha=0.4, color=ACCENT)
        axes.axline((0, 0), slope=1, color=QUIET, lw=1, ls="--")
        axes.set(xlabel="|x - b_dec|", ylabel="|z|, scaled by the lengths of atoms", xlim=(0, None), ylim=(0, None))

    return save(on, path)
