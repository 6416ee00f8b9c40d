"""How much of the activations an SAE keeps, and how sparsely: the numbers every other evaluation is read beside.

    NMSE (= FVU)   sum |x - x_hat|^2 / sum |x - mean|^2       mean of each dimension over the same rows; the mean predictor has 1, a perfect one 0
    R2             1 - NMSE
    cosine         mean of cos(x, x_hat)                      beside that of the zero code, decode(0) = b
    L0, L1         mean number of values != 0, mean sum |value|
    relative bias  sum |x_hat - b|^2 / sum (x_hat - b)(x - b)     below 1: shrunk (2404.16014); about b, so that a shift changes nothing
    dead share     share of latents silent on all rows, beside what the same L0 spread evenly over the latents would leave silent by chance

Intervals are percentile bootstraps over samples, not rows: patches of an image are not independent.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from evals.result import Estimate, Result
from evals.sums import MAX_GROUPS, Groups, KindSums, draws, rows_of, totals
from vsae.activations import Batch
from vsae.code import Code

DENSITY_EDGES = tuple(np.arange(-7, 0.25, 0.5).tolist())
ALMOST_DEAD, DENSE = 1e-4, 0.1


@runtime_checkable
class Codec(Protocol):
    """What is measured: an SAE, or a baseline behind the same two verbs."""

    @property
    def n_latents(self) -> int: ...

    @property
    def atoms(self) -> Float[Tensor, "n_latents d_model"]: ...

    def encode(self, x: Float[Tensor, "batch d_model"]) -> Code: ...

    def decode(self, code: Code) -> Float[Tensor, "batch d_model"]: ...


@dataclass(frozen=True)
class Histogram:
    """Latents by log10 of their firing density (the share of rows they fire on); `silent` latents are in no bin, lower ones in the first."""

    log10_edges: tuple[float, ...]
    counts: tuple[int, ...]
    silent: int


@dataclass(frozen=True)
class Measures:
    """Reconstruction of one set of rows; the module's docstring has the definitions."""

    n_rows: int
    n_samples: int
    nmse: Estimate
    nmse_zero_code: Estimate
    """NMSE of decode(0): what the bias reaches alone."""
    r2: Estimate
    cosine: Estimate
    relative_bias: Estimate
    l0: Estimate
    l1: Estimate
    dead: Estimate
    almost_dead: Estimate
    """Share of latents that fire, but on at most one row in 10,000."""
    dense: Estimate
    """Share of latents that fire on more than one row in 10."""
    density: Histogram


@dataclass(frozen=True)
class Reconstruction:
    """All rows, and the rows of each token kind about that kind's own mean."""

    total: Measures
    kinds: dict[str, Measures]
    n_latents: int
    resamples: int
    seed: int


@torch.inference_mode()
def measure(
    sae: Codec, batches: Iterable[Batch], kind_names: Sequence[str], resamples: int = 1000, seed: int = 0
) -> Reconstruction:
    """Measure `sae` on every row of `batches`. Raises ValueError where there is no row, where rows do not vary, and for NaN or infinity."""
    like, groups, kinds = sae.atoms, Groups(), dict[int, KindSums]()
    zero = sae.decode(Code(like.new_zeros(1, 1), like.new_zeros(1, 1, dtype=torch.int64))).double().cpu()
    for batch in batches:
        code = sae.encode(batch.values.to(like))
        x, x_hat = batch.values.double().cpu(), sae.decode(code).double().cpu()
        code, group = Code(code.values.cpu(), code.indices.cpu()), groups.of(batch.samples)
        if not bool(torch.isfinite(x).all() and torch.isfinite(x_hat).all()):
            where = "the activations hold" if not bool(torch.isfinite(x).all()) else "the reconstruction holds"
            raise ValueError(f"{where} NaN or infinity: nothing can be measured on them.")
        for kind in batch.kinds.unique().tolist():
            rows = (batch.kinds == kind).nonzero().squeeze(1)
            if kind not in kinds:
                kinds[kind] = KindSums(x[rows[0]], sae.n_latents)
            kinds[kind].samples.update(batch.samples[rows].unique().tolist())
            kinds[kind].add(x[rows], x_hat[rows], zero, rows_of(code, rows, sae.n_latents), group[rows])
    if not kinds:
        raise ValueError("there is no row to measure: check which token kinds and which part were selected.")
    resampled = draws(len(groups), resamples, seed)
    by_kind = {kind_names[kind]: summary([kinds[kind]], resampled) for kind in sorted(kinds)}
    total = summary([kinds[kind] for kind in sorted(kinds)], resampled)
    if total.nmse.value is None:
        raise ValueError(f"all rows are equal ({total.n_rows} of them), so NMSE is undefined: measure other rows.")
    return Reconstruction(total, by_kind, sae.n_latents, resamples, seed)


def summary(kinds: Sequence[KindSums], resampled: Float[np.ndarray, "draws groups"]) -> Measures:
    """Measures of the rows of one kind, or of several together."""
    point = totals(kinds, np.ones((1, resampled.shape[1])))
    spread = totals(kinds, resampled) if resampled.shape[1] > 1 and len(resampled) else None

    def ratio(above: str, below: str) -> Estimate:
        value = divide(point[above], point[below])[0]
        if np.isnan(value):
            return Estimate(None)
        return Estimate(float(value), None, percentiles(divide(spread[above], spread[below])) if spread else None)

    def beside(estimate: Estimate, floor: float | None) -> Estimate:
        return Estimate(estimate.value, floor, estimate.interval)

    n_rows, firing = int(point["n"][0]), torch.stack([kind.firing for kind in kinds]).sum(0).numpy()
    density, l0, nmse = firing / n_rows, ratio("l0", "n"), beside(ratio("error", "variation"), 1.0)
    share = (l0.value or 0.0) / len(firing)
    return Measures(
        n_rows=n_rows,
        n_samples=len(set().union(*(kind.samples for kind in kinds))),
        nmse=nmse,
        nmse_zero_code=beside(ratio("zero_error", "variation"), 1.0),
        r2=complement(nmse),
        cosine=beside(ratio("cosine", "n"), float(point["zero_cosine"][0] / n_rows)),
        relative_bias=ratio("code_square", "code_dot"),
        l0=l0,
        l1=ratio("l1", "n"),
        dead=Estimate(float(np.mean(firing == 0)), floor=float((1 - min(share, 1.0)) ** n_rows)),
        almost_dead=Estimate(float(np.mean((firing > 0) & (density <= ALMOST_DEAD)))),
        dense=Estimate(float(np.mean(density > DENSE))),
        density=histogram(density),
    )


def histogram(density: Float[np.ndarray, "n_latents"]) -> Histogram:
    logs = np.log10(density[density > 0])
    counts = np.histogram(np.clip(logs, DENSITY_EDGES[0], DENSITY_EDGES[-1]), DENSITY_EDGES)[0]
    return Histogram(DENSITY_EDGES, tuple(counts.tolist()), int(np.sum(density == 0)))


def complement(estimate: Estimate) -> Estimate:
    """1 - x of a number with floor 1: R2 of an NMSE."""
    low_high = estimate.interval and (1 - estimate.interval[1], 1 - estimate.interval[0])
    return Estimate(None if estimate.value is None else 1 - estimate.value, 0.0, low_high)


def divide(above: Float[np.ndarray, "draws"], below: Float[np.ndarray, "draws"]) -> Float[np.ndarray, "draws"]:
    """NaN where the divisor is 0."""
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)


def percentiles(values: Float[np.ndarray, "draws"]) -> tuple[float, float] | None:
    """The middle 95 % of the draws in which the number is defined."""
    defined = values[~np.isnan(values)]
    return tuple(np.quantile(defined, [0.025, 0.975]).tolist()) if len(defined) else None


def to_result(
    measured: Reconstruction,
    *,
    splits: Mapping[str, Any],
    normalisation: str,
    fingerprint: Mapping[str, Any],
    baselines: Any = None,
) -> Result:
    """The common fields of result.json: NMSE over all rows is the headline."""
    nmse = measured.total.nmse
    return Result(
        metric="nmse",
        value=nmse.value,
        floor=nmse.floor,
        interval=nmse.interval,
        n={"rows": measured.total.n_rows, "samples": measured.total.n_samples, "latents": measured.n_latents},
        seeds={"bootstrap": measured.seed},
        splits=splits,
        normalisation=normalisation,
        token_kinds=list(measured.kinds),
        fingerprint=fingerprint,
        details={
            "reconstruction": measured,
            "baselines": baselines,
            "bootstrap_groups": min(measured.total.n_samples, MAX_GROUPS),
        },
    )
