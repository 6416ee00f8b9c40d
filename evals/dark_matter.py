"""What an SAE leaves out, split into a part that is linear in the activations and one that is not (Engels et al., 2410.14670; spec A7).

    e = x - x_hat          A, b: least squares of e on x, fitted on one part of the samples, everything below measured on another
    R2                     1 - sum |e - (A x + b)|^2 / sum |e - mean e|^2          pooled; the paper's is the mean over dimensions, which is given beside it
    norm R2                the same of the number |e|^2, by a least squares of its own
    FVU                    sum |e|^2 / sum |x - mean x|^2
    nonlinear FVU          sum |e - (A x + b)|^2 / sum |x - mean x|^2              what stays when the linear part is given back
    linear FVU             FVU - nonlinear FVU

Means are those of the fit part, so that its mean error has R2 0. Floor of R2: the same least squares after the errors' rows have been shuffled.
Each token kind with enough rows has a map of its own. Intervals are 95 % bootstraps over samples.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from evals.reconstruction import Codec, divide, percentiles
from evals.result import Estimate
from evals.sums import MAX_GROUPS, Groups, draws
from vsae.activations import Batch

RCOND = 1e-12
"""Directions of x with less than this share of the largest variance are left alone."""
ROWS_PER_DIMENSION = 2
"""Fewer rows than this a dimension fit anything."""


@dataclass(frozen=True)
class Dark:
    """The error of one set of rows; the module's docstring has the definitions."""

    r2: Estimate
    r2_mean_of_dimensions: float
    norm_r2: Estimate
    fvu: Estimate
    linear_fvu: Estimate
    nonlinear_fvu: Estimate
    fit_rows: int
    rows: int


@dataclass(frozen=True)
class Split:
    """All rows, and each token kind under a map of its own."""

    total: Dark
    kinds: dict[str, Dark]
    left_out: tuple[str, ...]
    """Token kinds with too few rows to fit a map to."""
    samples: int
    pursuit: "Split | None" = None
    """The same of the SAE's atoms under gradient pursuit, where it was asked for."""
    norms: dict[str, Estimate] = field(default_factory=dict)
    """Other run -> R2 of its error's norm by this one's; see `evals.dark_matter_beside`."""


@dataclass
class Normal:
    """Sums of the normal equations, about the reference row: targets are e, e of shuffled rows, |e|^2 and that of shuffled rows, side by side."""

    reference: Float64[Tensor, "d"]
    count: int = 0
    x: Tensor = field(init=False)
    y: Tensor = field(init=False)
    xx: Tensor = field(init=False)
    xy: Tensor = field(init=False)

    def __post_init__(self) -> None:
        d = len(self.reference)
        self.x, self.y = torch.zeros(d, dtype=torch.float64), torch.zeros(2 * d + 2, dtype=torch.float64)
        self.xx = torch.zeros(d, d, dtype=torch.float64)
        self.xy = torch.zeros(d, 2 * d + 2, dtype=torch.float64)

    def add(self, x: Float64[Tensor, "rows d"], e: Float64[Tensor, "rows d"], order: Int64[Tensor, "rows"]) -> None:
        q = e.square().sum(1, keepdim=True)
        x, y = x - self.reference, torch.cat([e, e[order], q, q[order]], 1)
        self.count += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx += x.T @ x
        self.xy += x.T @ y

    def plus(self, other: "Normal") -> "Normal":
        total = Normal(self.reference, self.count + other.count)
        for name in ("x", "y", "xx", "xy"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    def solved(self) -> "Maps":
        mean_x, mean_y = self.x / self.count, self.y / self.count
        variance, vectors = torch.linalg.eigh(self.xx / self.count - torch.outer(mean_x, mean_x))
        there = variance > RCOND * variance.max()
        inverse = torch.where(there, 1 / torch.where(there, variance, 1), 0)
        weight = (vectors * inverse) @ vectors.T @ (self.xy / self.count - torch.outer(mean_x, mean_y))
        return Maps(self.reference + mean_x, mean_y, weight, self.count)


@dataclass(frozen=True)
class Maps:
    """y = mean_y + (x - mean_x) weight."""

    mean_x: Float64[Tensor, "d"]
    mean_y: Float64[Tensor, "targets"]
    weight: Float64[Tensor, "d targets"]
    count: int

    def __call__(self, x: Float64[Tensor, "rows d"]) -> Float64[Tensor, "rows targets"]:
        return self.mean_y + (x - self.mean_x) @ self.weight


SCALARS = ("x", "e", "about", "left", "left_shuffled", "norm_about", "norm_left", "norm_left_shuffled")


@dataclass
class Left:
    """Sums over the report part, by group of samples, and by dimension."""

    maps: Maps
    rows: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(MAX_GROUPS, len(SCALARS), dtype=torch.float64))
    about: Tensor | None = None
    left: Tensor | None = None

    def add(self, x: Float64[Tensor, "rows d"], e: Float64[Tensor, "rows d"], group: Int64[Tensor, "rows"]) -> None:
        d, q, y = x.shape[1], e.square().sum(1), self.maps(x)
        about, left = (e - self.maps.mean_y[:d]).square(), (e - y[:, :d]).square()
        per_row = [
            (x - self.maps.mean_x).square().sum(1),
            q,
            about.sum(1),
            left.sum(1),
            (e - y[:, d : 2 * d]).square().sum(1),
            (q - self.maps.mean_y[2 * d]).square(),
            (q - y[:, 2 * d]).square(),
            (q - y[:, 2 * d + 1]).square(),
        ]
        self.sums.index_add_(0, group, torch.stack(per_row, 1))
        self.about = about.sum(0) if self.about is None else self.about + about.sum(0)
        self.left = left.sum(0) if self.left is None else self.left + left.sum(0)
        self.rows += len(x)

    def dark(self, weights: Float[np.ndarray, "draws groups"]) -> Dark:
        summed = dict(zip(SCALARS, (weights @ self.sums[: weights.shape[1]].numpy()).T, strict=True))

        def estimate(values: Float[np.ndarray, "draws"], floor: float | None) -> Estimate:
            spread = percentiles(values[1:]) if weights.shape[1] > 1 and len(values) > 1 else None
            return Estimate(None if np.isnan(values[0]) else float(values[0]), floor, spread)

        def r2(left: str, about: str) -> Estimate:
            floor = 1 - divide(summed[f"{left}_shuffled"], summed[about])
            return estimate(1 - divide(summed[left], summed[about]), float(floor[0]))

        assert self.about is not None and self.left is not None
        varies = self.about > 0
        fvu, nonlinear = (divide(summed[name], summed["x"]) for name in ("e", "left"))
        return Dark(
            r2=r2("left", "about"),
            r2_mean_of_dimensions=float((1 - self.left[varies] / self.about[varies]).mean()),
            norm_r2=r2("norm_left", "norm_about"),
            fvu=estimate(fvu, 1.0),
            linear_fvu=estimate(fvu - nonlinear, 0.0),
            nonlinear_fvu=estimate(nonlinear, 0.0),
            fit_rows=self.maps.count,
            rows=self.rows,
        )


@torch.inference_mode()
def split(
    sae: Codec,
    fit: Iterable[Batch],
    report: Iterable[Batch],
    kind_names: Sequence[str],
    *,
    resamples: int = 200,
    seed: int = 0,
) -> Split:
    """Fit on the rows of one part, measure on those of the other. Raises ValueError for too few rows, and where there is no error to explain."""
    normal: dict[int, Normal] = {}
    generator, reference = torch.Generator().manual_seed(seed), list[Tensor]()
    for batch in fit:
        x, e = errors(sae, batch)
        reference = reference or [x[0]]
        for kind in batch.kinds.unique().tolist():
            rows = (batch.kinds == kind).nonzero().squeeze(1)
            order = torch.randperm(len(rows), generator=generator)
            if kind not in normal:
                normal[kind] = Normal(reference[0])
            normal[kind].add(x[rows], e[rows], order)
    if not normal:
        raise ValueError("there is no row to fit on: check which token kinds and which part were selected.")
    whole = None
    for each in normal.values():
        whole = each if whole is None else whole.plus(each)
    assert whole is not None
    least = ROWS_PER_DIMENSION * len(whole.reference)
    if whole.count < least:
        raise ValueError(
            f"{whole.count:,} rows to fit on for {len(whole.reference)} dimensions, which fits anything: give {least:,} or more."
        )
    left = {kind: Left(each.solved()) for kind, each in normal.items() if each.count >= least}
    total, groups = Left(whole.solved()), Groups()
    for batch in report:
        (x, e), group = errors(sae, batch), groups.of(batch.samples)
        total.add(x, e, group)
        for kind in set(batch.kinds.unique().tolist()) & set(left):
            rows = (batch.kinds == kind).nonzero().squeeze(1)
            left[kind].add(x[rows], e[rows], group[rows])
    if not total.rows:
        raise ValueError("there is no row to measure: check which token kinds and which part were selected.")
    if not bool((total.sums[:, SCALARS.index("about")] > 0).any()):
        raise ValueError("this SAE makes no error that varies, so there is nothing to split.")
    n = len(groups)
    weights = np.concatenate([np.ones((1, n)), draws(n, resamples, seed)])
    found = {kind_names[kind]: each.dark(weights) for kind, each in sorted(left.items()) if each.rows}
    few = tuple(kind_names[kind] for kind in sorted(normal) if kind_names[kind] not in found)
    return Split(total.dark(weights), found, few, len(groups.seen))


def errors(sae: Codec, batch: Batch) -> tuple[Float64[Tensor, "rows d"], Float64[Tensor, "rows d"]]:
    """x and x - x_hat. Raises ValueError for NaN and infinity."""
    x = batch.values.double().cpu()
    e = x - sae.decode(sae.encode(batch.values.to(sae.atoms))).double().cpu()
    if not bool(torch.isfinite(e).all()):
        raise ValueError(
            "the activations or their reconstructions hold NaN or infinity: nothing can be measured on them."
        )
    return x, e
