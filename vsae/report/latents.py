"""What the data say about each latent, in two passes over the activations with bounded memory.

    first pass     how often, how strongly, on how many samples; the samples with the strongest activation (a sample counts by its strongest
                   token, of equal ones the earlier sample), the most negative ones of signed codes, and a seeded draw among all it is active on
    second pass    the code on every token of the picked samples, and a histogram between the extremes that the first pass found

No loop over rows: entries (latent, sample, value) are sorted and reduced a batch at a time.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from scipy import sparse
from torch import Tensor

from vsae.activations import Batch, whole_samples
from vsae.code import Code
from vsae.report.picks import Picker, Picks, lottery, without

BINS = 24
GRID_KINDS = ("patch", "image")
"""Token kinds that lie on the grid, in row-major order."""


@runtime_checkable
class Encodes(Protocol):
    """An SAE, or another view of its codes."""

    @property
    def n_latents(self) -> int: ...

    @property
    def atoms(self) -> Float[Tensor, "n_latents d_model"]: ...

    def encode(self, x: Float[Tensor, "batch d_model"]) -> Code: ...


class Entries(NamedTuple):
    """Active latents of some rows."""

    latent: Int64[np.ndarray, "entries"]
    sample: Int64[np.ndarray, "entries"]
    value: Float[np.ndarray, "entries"]
    row: Int64[np.ndarray, "entries"]
    """Row of the batch."""


@dataclass(frozen=True)
class Plan:
    """How much is gathered."""

    top: int = 16
    random: int = 8
    seed: int = 0
    cofiring_rows: int = 100_000
    """Rows on which co-firing is counted, drawn by a seeded lottery where there are more."""


@dataclass(frozen=True)
class Paint:
    """The code of each picked pair on its tokens. Pair i (an entry of `pairs`, latent * n_samples + sample) owns start[i] to start[i + 1]."""

    pairs: Int64[np.ndarray, "pairs"]
    start: Int64[np.ndarray, "pairs_and_one"]
    cell: Int32[np.ndarray, "cells"]
    """Place on the grid; rows * columns + kind for tokens that have none. Without a grid, the token's position."""
    value: Float[np.ndarray, "cells"]

    def of(self, pair: int) -> slice:
        at = int(np.searchsorted(self.pairs, pair))
        return slice(int(self.start[at]), int(self.start[at + 1]))


@dataclass(frozen=True)
class Evidence:
    """Everything gathered. Means and extremes are over active tokens; 0 for a silent latent."""

    n_rows: int
    n_samples: int
    """Samples that had a selected row."""
    table_rows: int
    """Length of the table of samples, by which pairs are numbered."""
    n_tokens: int
    """Highest token position + 1."""
    kinds: tuple[str, ...]
    """Token kinds that occur."""
    tokens: Int64[np.ndarray, "n_latents"]
    samples: Int64[np.ndarray, "n_latents"]
    mean: Float[np.ndarray, "n_latents"]
    low: Float[np.ndarray, "n_latents"]
    high: Float[np.ndarray, "n_latents"]
    histogram: Int64[np.ndarray, "n_latents bins"]
    """Active tokens by value, in equal steps from min(low, 0) to max(high, 0)."""
    top: Picks
    bottom: Picks
    """Most negative activations, scored by their magnitude; empty for codes that are never negative."""
    random: Picks
    paint: Paint
    firing: sparse.csr_matrix
    """[rows drawn, n_latents], 1 where active."""


def gather(
    sae: Encodes,
    batches: Callable[[str], Iterable[Batch]],
    table_rows: int,
    grid: tuple[int, int] | None,
    kind_names: Sequence[str],
    plan: Plan = Plan(),
) -> Evidence:
    """Read the activations twice; `batches(what)` starts a pass in sample order. Raises ValueError where there is no row, or out of order."""
    n, like = sae.n_latents, sae.atoms.detach()
    tokens, samples, total = np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n)
    low, high = np.full(n, np.inf), np.full(n, -np.inf)
    n_rows = n_samples = n_tokens = 0
    kinds: set[int] = set()
    top, bottom = Picker(n, plan.top), Picker(n, plan.top)
    # Twice top more than needed, because those among the strongest are shown there already.
    drawn = Picker(n, plan.random + 2 * plan.top)
    firing = Firing(n, plan)
    for batch in whole_samples(batches("look")):
        found = entries(sae, batch, like)
        n_rows, n_samples = n_rows + len(batch.samples), n_samples + len(batch.samples.unique())
        n_tokens = max(n_tokens, int(batch.positions.max()) + 1)
        kinds |= set(batch.kinds.unique().tolist())
        tokens += np.bincount(found.latent, minlength=n)
        total += np.bincount(found.latent, weights=found.value, minlength=n)
        latent, sample, least, most = by_sample(found, table_rows)
        samples += np.bincount(latent, minlength=n)
        np.minimum.at(low, latent, least)
        np.maximum.at(high, latent, most)
        for picker, score in ((top, most), (bottom, -least)):
            picker.add(latent[score > 0], sample[score > 0], score[score > 0])
        drawn.add(latent, sample, lottery(latent, sample, plan.seed))
        firing.add(batch, found)
    if not n_rows:
        raise ValueError("there is no activation to look at: check which token kinds and which part were selected.")
    low, high = np.where(tokens > 0, low, 0.0), np.where(tokens > 0, high, 0.0)
    best, worst = top.picks(), bottom.picks()
    chance = without(drawn.picks(), [best, worst], plan.random)
    histogram, paint = look_again(sae, batches, [best, worst, chance], (low, high), table_rows, grid, kind_names)
    return Evidence(
        n_rows,
        n_samples,
        table_rows,
        n_tokens,
        tuple(kind_names[kind] for kind in sorted(kinds)),
        tokens,
        samples,
        total / np.maximum(tokens, 1),
        low,
        high,
        histogram,
        best,
        worst,
        chance,
        paint,
        firing.matrix(),
    )


def look_again(
    sae: Encodes,
    batches: Callable[[str], Iterable[Batch]],
    picked: list[Picks],
    extremes: tuple[Float[np.ndarray, "n_latents"], Float[np.ndarray, "n_latents"]],
    table_rows: int,
    grid: tuple[int, int] | None,
    kind_names: Sequence[str],
) -> tuple[Int64[np.ndarray, "n_latents bins"], Paint]:
    """The second pass: histograms between the extremes, and the codes of the picked pairs."""
    n, like = sae.n_latents, sae.atoms.detach()
    low, high = np.minimum(extremes[0], 0), np.maximum(extremes[1], 0)
    step = np.maximum(high - low, np.finfo(np.float64).tiny) / BINS
    histogram = np.zeros(n * BINS, np.int64)
    pairs = np.unique(np.concatenate([p.latents() * table_rows + p.sample for p in picked]))
    owner, cells, values = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
    for batch in whole_samples(batches("paint")):
        found = entries(sae, batch, like)
        bin_ = np.clip((found.value - low[found.latent]) / step[found.latent], 0, BINS - 1).astype(np.int64)
        histogram += np.bincount(found.latent * BINS + bin_, minlength=n * BINS)
        key = found.latent * table_rows + found.sample
        at = np.minimum(np.searchsorted(pairs, key), len(pairs) - 1)
        hit = pairs[at] == key if len(pairs) else np.zeros(0, bool)
        owner.append(at[hit])
        cells.append(cells_of(batch, grid, kind_names)[found.row[hit]])
        values.append(found.value[hit].astype(np.float32))
    owners = np.concatenate(owner)
    order = np.argsort(owners, kind="stable")
    start = np.searchsorted(owners[order], np.arange(len(pairs) + 1))
    paint = Paint(pairs, start, np.concatenate(cells)[order], np.concatenate(values)[order])
    return histogram.reshape(n, BINS), paint


@torch.inference_mode()
def entries(sae: Encodes, batch: Batch, like: Tensor) -> Entries:
    """Active latents of every row of the batch, encoded on the device and in the type of `like`."""
    code = sae.encode(batch.values.to(like))
    row, slot = (code.values != 0).nonzero(as_tuple=True)
    value, latent = code.values[row, slot].double(), code.indices[row, slot]
    row = row.cpu()
    return Entries(latent.cpu().numpy(), batch.samples[row].numpy(), value.cpu().numpy(), row.numpy())


def by_sample(
    found: Entries, table_rows: int
) -> tuple[
    Int64[np.ndarray, "pairs"], Int64[np.ndarray, "pairs"], Float[np.ndarray, "pairs"], Float[np.ndarray, "pairs"]
]:
    """(latent, sample, least, most) of each pair of latent and sample."""
    key = found.latent * table_rows + found.sample
    order = np.argsort(key, kind="stable")
    pair, first = np.unique(key[order], return_index=True)
    value = found.value[order]
    least, most = (f.reduceat(value, first) if len(first) else np.zeros(0) for f in (np.minimum, np.maximum))
    return pair // table_rows, pair % table_rows, least, most


def cells_of(batch: Batch, grid: tuple[int, int] | None, kind_names: Sequence[str]) -> Int32[np.ndarray, "rows"]:
    """Where each row of whole samples is painted; see `Paint.cell`."""
    position = batch.positions.numpy().astype(np.int64)
    if grid is None:
        return position.astype(np.int32)
    on_grid = np.isin(batch.kinds.numpy(), [i for i, name in enumerate(kind_names) if name in GRID_KINDS])
    _, sample = np.unique(batch.samples.numpy(), return_inverse=True)
    first = np.full(sample.max(initial=0) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, sample[on_grid], position[on_grid])
    beside = grid[0] * grid[1] + batch.kinds.numpy().astype(np.int64)
    return np.where(on_grid, position - first[sample], beside).astype(np.int32)


class Firing:
    """Which latents fire together, on rows drawn by lottery: every row has the same chance, and the draw does not depend on batches."""

    def __init__(self, n_latents: int, plan: Plan) -> None:
        self.n_latents, self.plan = n_latents, plan
        self.bar = 0.0
        self.kept: list[tuple[Float[np.ndarray, "rows"], sparse.csr_matrix]] = []
        self.rows = 0

    def add(self, batch: Batch, found: Entries) -> None:
        draw = lottery(batch.samples.numpy(), batch.positions.numpy().astype(np.int64), self.plan.seed)
        ones = np.ones(len(found.row), np.float32)
        matrix = sparse.csr_matrix((ones, (found.row, found.latent)), (len(draw), self.n_latents))
        self.kept.append((draw[draw >= self.bar], matrix[draw >= self.bar]))
        self.rows += int((draw >= self.bar).sum())
        if self.rows > 2 * self.plan.cofiring_rows:
            self.compact()

    def compact(self) -> None:
        """Keep the rows with the highest draws, in order."""
        draw, matrix = np.concatenate([k[0] for k in self.kept]), sparse.vstack([k[1] for k in self.kept], "csr")
        if len(draw) > self.plan.cofiring_rows:
            self.bar = float(np.partition(draw, -self.plan.cofiring_rows)[-self.plan.cofiring_rows])
            draw, matrix = draw[draw >= self.bar], matrix[draw >= self.bar]
        self.kept, self.rows = [(draw, matrix)], len(draw)

    def matrix(self) -> sparse.csr_matrix:
        self.compact()
        return self.kept[0][1]
