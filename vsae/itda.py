"""ITDA: a dictionary of real activations, chosen one batch after the other without gradients (Inference-Time Decomposition of Activations, 2505.17769).

    a = k steps of matching pursuit on x, signed      x_hat = a D      atoms D_i = x_i / |x_i| of rows x_i that were badly explained when they came

    for each batch:  add the rows whose error is more than tau, unless an atom like them is there already
    error  cosine_mse   mean over dimensions of (x / |x| - x_hat / |x_hat|)^2     the authors' code, the default
           mse          |x - x_hat|^2                                             the paper's text

First, until there are d_model atoms, the most frequent rows of a batch are taken as they come (in the code's order: most frequent first, of equals
the first). Neither bias nor centre. An atom keeps where it is from, its sample's key and its token's position: it is its own exemplar, and the overlap of
two dictionaries tells how alike two models see the same data,

    similarity = |A and B| / |A or B|       over (sample, position)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vsae.activations.source import Batch
from vsae.dictionaries import Free
from vsae.pursuit import MatchingPursuit
from vsae.sae import SAE
from vsae.sparsifiers import TopK
from vsae.tables import Origin

ERRORS = ("cosine_mse", "mse")
ALIKE = 1e-6
"""1 - cosine below which two rows are one atom."""
TINY = 1e-12
CHUNK = 4096


@dataclass
class Growing:
    """A dictionary on its way. `atoms` [n, d_model] in float32; `samples` and `positions` [n] say where each is from."""

    d_model: int
    k: int = 40
    tau: float = 1e-3
    error: str = "cosine_mse"
    most: int | None = None
    atoms: Tensor = field(init=False)
    samples: Tensor = field(init=False)
    positions: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Raises ValueError with a sentence."""
        if self.error not in ERRORS:
            raise ValueError(f"there is no error {self.error!r}: choose {' or '.join(ERRORS)}.")
        if not self.tau >= 0 or self.k < 1 or (self.most is not None and self.most < 1):
            raise ValueError(
                f"tau is {self.tau}, k {self.k} and the largest number of atoms {self.most}: choose 0 or more, and at least 1."
            )
        self.atoms = torch.zeros(0, self.d_model)
        self.samples = self.positions = torch.zeros(0, dtype=torch.int64)

    @property
    def full(self) -> bool:
        return self.most is not None and len(self.atoms) >= self.most

    @torch.no_grad()
    def add(self, batch: Batch) -> int:
        """Look at a batch; returns how many atoms it gave."""
        x, before = batch.values.float(), len(self.atoms)
        x, batch = self.varied(x, batch)
        seeds = self.d_model - len(self.atoms)
        if seeds > 0:
            first, counts = frequent(x)
            self.take(x, batch, first[counts.argsort(descending=True, stable=True)][:seeds])
        if len(self.atoms) and not self.full:
            errors = error_of(x, self.sae()(x).x_hat, self.error)
            self.take(x, batch, (errors > self.tau).nonzero().squeeze(1))
        return len(self.atoms) - before

    def varied(self, x: Float[Tensor, "rows d_model"], batch: Batch) -> tuple[Float[Tensor, "some d_model"], Batch]:
        """Without rows of length 0, which are no directions."""
        there = torch.linalg.vector_norm(x, dim=1) > TINY
        return x[there], Batch(*(column[there] for column in batch))

    def take(self, x: Float[Tensor, "rows d_model"], batch: Batch, chosen: Int[Tensor, "some"]) -> None:
        """Make atoms of some rows, in their order, less those that are there already and those there is no room for."""
        unit = F.normalize(x[chosen], dim=1)
        new = distinct(unit, self.atoms)
        if self.most is not None:
            new = new[: max(0, self.most - len(self.atoms))]
        self.atoms = torch.cat([self.atoms, unit[new]])
        self.samples = torch.cat([self.samples, batch.samples[chosen[new]].long()])
        self.positions = torch.cat([self.positions, batch.positions[chosen[new]].long()])

    def sae(self) -> SAE:
        """The dictionary so far, as an inference SAE. Raises ValueError while it is empty."""
        if not len(self.atoms):
            raise ValueError("no row has become an atom: give rows that are not all 0.")
        steps = min(self.k, len(self.atoms))
        zero = torch.zeros(self.d_model)
        sae = SAE(MatchingPursuit(signed=True), TopK(steps), Free(self.atoms, unit_norm=False), zero)
        return sae.eval().requires_grad_(False)

    def origins(self, keys: Sequence[str] | None = None) -> list[Origin]:
        """Where each atom is from. `keys`: of the samples, by number."""
        both = zip(self.samples.tolist(), self.positions.tolist(), strict=True)
        return [Origin(str(i if keys is None else keys[i]), position, i) for i, position in both]

    def tensors(self) -> dict[str, Tensor]:
        """What has grown so far, to be taken up again by `take_up`."""
        return {"atoms": self.atoms, "samples": self.samples, "positions": self.positions}

    def take_up(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        self.atoms, self.samples, self.positions = (tensors[name] for name in ("atoms", "samples", "positions"))


def error_of(
    x: Float[Tensor, "rows d_model"], x_hat: Float[Tensor, "rows d_model"], form: str
) -> Float[Tensor, "rows"]:
    """How badly each row is explained; the module's docstring has the forms."""
    if form == "mse":
        return (x - x_hat).square().sum(1)
    return (F.normalize(x, dim=1) - F.normalize(x_hat, dim=1)).square().mean(1)


def frequent(x: Float[Tensor, "rows d_model"]) -> tuple[Int[Tensor, "distinct"], Int[Tensor, "distinct"]]:
    """The first of each set of equal rows, in their order, and how many there are of it."""
    _, which, counts = x.unique(dim=0, return_inverse=True, return_counts=True)
    first = torch.full_like(counts, len(x)).scatter_reduce_(0, which, torch.arange(len(x)), "amin")
    order = first.argsort()
    return first[order], counts[order]


def distinct(unit: Float[Tensor, "some d_model"], atoms: Float[Tensor, "n d_model"]) -> Int[Tensor, "new"]:
    """Rows that are like no atom and like no row before them, by number."""
    new = torch.ones(len(unit), dtype=torch.bool)
    for start in range(0, len(unit), CHUNK):
        some = slice(start, start + CHUNK)
        if len(atoms):
            new[some] = (unit[some] @ atoms.T).amax(1) < 1 - ALIKE
        new[some] &= ~(unit[some] @ unit[: start + CHUNK].T > 1 - ALIKE).tril(start - 1).any(1)
    return new.nonzero().squeeze(1)


def fit(batches: Iterable[Batch], d_model: int, **options: Any) -> Growing:
    """Grow a dictionary over all batches, or until it is full. Options and errors are those of `Growing`."""
    growing = Growing(d_model, **options)
    for batch in batches:
        growing.add(batch)
        if growing.full:
            break
    return growing


def similarity(first: Iterable[Origin], second: Iterable[Origin]) -> float:
    """Jaccard index of the origins (key, position) of two dictionaries that were grown on the same data. NaN for two empty."""
    a, b = ({(origin.key, origin.position) for origin in each} for each in (first, second))
    return len(a & b) / len(a | b) if a | b else float("nan")


def matched(similarities: Float[Tensor, "n n"]) -> float:
    """Layer matching accuracy: share of the rows i whose largest similarity is that with their own counterpart i; its floor is 1 / n. A tie is no match."""
    own = similarities.diagonal()
    others = similarities.masked_fill(torch.eye(len(own), dtype=torch.bool, device=own.device), -torch.inf)
    return float((own > others.amax(1)).double().mean())
