"""Rows made of a dictionary that is known: what a method should find, it can be told.

    x = z D + offset + noise

z is sparse: feature i is there with a probability that falls like rank^-exponent, `active` features a row on average, of magnitude |1 + spread * N(0, 1)|.
Options, each a difficulty of real activations:

    coherence    atoms come in groups of 4 whose cosines are about this
    exponent     0: all equally often; 1: Zipf
    children     features come as 1 parent and so many children; of a parent's children at most one is there, and only where the parent is
    antipodal    share of the features that come in pairs d, -d, never both there
    signed       a feature's magnitude is negative half the time: one atom, two directions
    noise        standard deviation of white noise over that of the signal
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vsae.activations import JoinedSource
from vsae.activations.memory import TensorSource
from vsae.code import Code

GROUP = 4
MOST_OFTEN = 0.5
"""No feature is there more often than this."""
CHUNK = 8192
TWIN = 1_000_003
"""Added to the seed of a world, it is that of what its twin's atoms have of their own."""


@dataclass(frozen=True)
class Planted:
    """A world of planted features. Equal fields are equal worlds. Raises ValueError for what cannot be planted."""

    d_model: int = 64
    """Dimensions of a row."""
    n_features: int = 128
    """Atoms of the known dictionary."""
    active: float | int = 4.0
    """Features that are there in a row, on average."""
    coherence: float | int = 0.0
    """Cosine within groups of 4 atoms, about."""
    exponent: float | int = 0.0
    """Of the power law of frequencies."""
    children: int = 0
    """Children of each parent; 0: no hierarchy."""
    antipodal: float | int = 0.0
    """Share of the features that have an opposite."""
    signed: bool = False
    """Whether magnitudes can be negative."""
    noise: float | int = 0.0
    """Standard deviation of the noise over that of the signal, both of a whole row."""
    spread: float | int = 0.25
    """Of magnitudes around 1."""
    offset: float | int = 0.0
    """Length of a vector that is added to every row."""
    seed: int = 0
    """Of the dictionary."""

    def __post_init__(self) -> None:
        for name in ("coherence", "antipodal"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name):g}: choose 0 to 1.")
        for name in ("exponent", "children", "noise", "spread", "offset"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name):g}: choose 0 or more.")
        most = self.units * MOST_OFTEN * (1 + self.given_parent)
        if not 0 < self.active <= most:
            raise ValueError(
                f"{self.active:g} of {self.n_features} features cannot be active on average: choose more than 0 and at most {most:g}."
            )
        if self.antipodal and self.signed:
            raise ValueError("opposites of signed features are the features themselves: choose antipodal or signed.")

    @cached_property
    def atoms(self) -> Float[Tensor, "features d_model"]:
        """The known dictionary: unit rows. With opposites, feature 2 i + 1 is the negative of feature 2 i, for the first ones."""
        rng = np.random.default_rng([self.seed, 0])
        own = unit(rng.standard_normal((self.n_features, self.d_model)))
        shared = unit(rng.standard_normal((-(-self.n_features // GROUP), self.d_model)))
        shared = shared[rng.permutation(np.arange(self.n_features) // GROUP)]
        mixed = math.sqrt(self.coherence) * shared + math.sqrt(1 - self.coherence) * own
        atoms = unit(mixed)
        atoms[1 : 2 * self.opposites : 2] = -atoms[0 : 2 * self.opposites : 2]
        return torch.from_numpy(atoms).float()

    @property
    def opposites(self) -> int:
        """Pairs of a feature and its opposite."""
        return int(self.antipodal * self.n_features) // 2

    @cached_property
    def frequencies(self) -> Float[np.ndarray, "features"]:
        """How often each feature is there; ranks are shuffled, so that a feature's number says nothing. Opposites, which exclude each other, lose a little."""
        law = np.arange(1, self.units + 1) ** -float(self.exponent)
        often = np.random.default_rng([self.seed, 1]).permutation(capped(law, self.active / (1 + self.given_parent)))
        parents = np.arange(self.n_features - self.units) % self.units
        return np.concatenate([often, often[parents] * self.given_parent / max(1, self.children)])

    @property
    def units(self) -> int:
        """Features drawn by themselves: all, or the parents."""
        return -(-self.n_features // (1 + self.children))

    @property
    def given_parent(self) -> float:
        """Probability that a parent brings a child."""
        return 0.8 if self.children else 0.0

    def parent(self, feature: int) -> int | None:
        """Parents are the first `units` features; the children follow, parent after parent in turn."""
        return (feature - self.units) % self.units if feature >= self.units else None

    @cached_property
    def shift(self) -> Float[Tensor, "d_model"]:
        direction = unit(np.random.default_rng([self.seed, 2]).standard_normal((1, self.d_model)))[0]
        return torch.from_numpy(self.offset * direction).float()

    def draw(self, n: int, seed: int) -> tuple[Float[Tensor, "n d_model"], Code]:
        """`n` rows, and the codes they were made of; a prefix of what a larger n gives."""
        rows, values, indices = [], [], []
        for number, start in enumerate(range(0, n, CHUNK)):
            rng = np.random.default_rng([self.seed, 3, seed, number])
            present = self.present(rng)
            size = 1 + self.spread * rng.standard_normal(present.shape)
            size = np.abs(size) * (rng.choice([-1, 1], present.shape) if self.signed else 1)
            z = torch.from_numpy(np.where(present, size, 0)).float()
            noise = torch.from_numpy(rng.standard_normal((CHUNK, self.d_model))).float()
            scale = self.noise * math.sqrt(self.active * (1 + self.spread**2) / self.d_model)
            kept = min(CHUNK, n - start)
            rows.append((z @ self.atoms + self.shift + scale * noise)[:kept])
            most = z.ne(0).sum(1).max().clamp_min(1)
            top = z.abs().topk(int(most), 1).indices
            values.append(z.gather(1, top)[:kept])
            indices.append(top[:kept])
        width = max(part.shape[1] for part in values)
        padded = [
            [torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts] for parts in (values, indices)
        ]
        return torch.cat(rows), Code(torch.cat(padded[0]), torch.cat(padded[1]))

    def present(self, rng: np.random.Generator) -> Bool[np.ndarray, "rows features"]:
        """Which features are there, in CHUNK rows."""
        there = rng.random((CHUNK, self.n_features)) < self.frequencies
        if self.children:
            # one child a parent: the numbers 0 to children - 1 are its children, higher ones none
            chosen = rng.random((CHUNK, self.units)) * self.children / self.given_parent
            for feature in range(self.units, self.n_features):
                parent = (feature - self.units) % self.units
                number = (feature - self.units) // self.units
                there[:, feature] = there[:, parent] & (np.floor(chosen[:, parent]) == number)
        if self.opposites:
            first, second = there[:, 0 : 2 * self.opposites : 2], there[:, 1 : 2 * self.opposites : 2]
            both, coin = first & second, rng.random(first.shape) < 0.5
            first &= ~(both & coin)
            second &= ~(both & ~coin)
        return there

    @cached_property
    def twin(self) -> "Planted":
        """The same codes through other atoms, at a cosine of about 0.7 to these: what another site, or an aligned modality, shows of the same features."""
        twin, other = dataclasses.replace(self), dataclasses.replace(self, seed=self.seed + TWIN)
        twin.__dict__["atoms"] = torch.nn.functional.normalize(self.atoms + other.atoms, dim=1)
        return twin

    def source(self, n: int, seed: int) -> TensorSource:
        """`n` rows to train on."""
        about = {"data": {"kind": "planted", "rows": n, "draw": seed} | dataclasses.asdict(self)}
        return TensorSource(self.draw(n, seed)[0], about)

    def joined(self, n: int, seed: int) -> JoinedSource:
        """`n` rows of this world and its twin, side by side."""
        first, second = self.source(n, seed), self.twin.source(n, seed)
        return JoinedSource(first, TensorSource(second.rows, first.fingerprint | {"site": "twin"}))


def capped(law: Float[np.ndarray, "features"], total: float) -> Float[np.ndarray, "features"]:
    """Probabilities proportional to the law, but none above MOST_OFTEN, that add up to `total`."""
    often = np.zeros(len(law))
    free = np.ones(len(law), bool)
    while True:
        often[free] = law[free] * (total - MOST_OFTEN * (~free).sum()) / law[free].sum()
        if not (over := free & (often > MOST_OFTEN)).any():
            return often
        often[over], free = MOST_OFTEN, free & ~over


def unit(rows: Float[np.ndarray, "n d_model"]) -> Float[np.ndarray, "n d_model"]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
