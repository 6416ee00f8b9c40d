"""Recipes whose dictionary is found without gradients, behind the same encode and decode: `vsae train --recipe pca` fits and writes a run as any other.

They look at `training.init_rows` random rows, in the rows' own units (`training.normalise` is not asked); ITDA reads all rows, batch by batch.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from vsae import fixed, nmf
from vsae.activations import Source
from vsae.fitted import FORGETFUL, Fitted, Kept, Memory, Shown
from vsae.itda import ERRORS, Growing
from vsae.sae import SAE
from vsae.training.config import TrainConfig


@dataclass(frozen=True)
class Fixed(ABC):
    """A dictionary that `fit` finds without gradients."""

    name: ClassVar[str] = ""

    n_latents: int | None = None
    """Number of atoms; as many as the rows have dimensions when left out."""

    k: int | None = None
    """Latents that may speak for one token, the largest in magnitude; all when left out."""

    def __post_init__(self) -> None:
        """Raises ValueError with a sentence for sizes that cannot be."""
        if self.n_latents is not None and self.n_latents < 1:
            raise ValueError(f"n_latents is {self.n_latents}: a dictionary needs at least one atom.")
        if self.k is not None and not 1 <= self.k <= (self.n_latents or self.k):
            raise ValueError(f"k is {self.k}, but n_latents is {self.n_latents}: choose 1 <= k <= {self.n_latents}.")

    @abstractmethod
    def fit(self, source: Source, config: TrainConfig, shown: Shown, memory: Memory = FORGETFUL) -> Fitted:
        """Find it in the source's rows."""

    def sized(self, n_latents: int, k: int, d_model: int) -> "Fixed":
        """The same with so many atoms, of which so many may speak for a row of `d_model` dimensions: as far as the method can."""
        return replace(self, n_latents=n_latents, k=k)


@dataclass(frozen=True)
class Sampled(Fixed):
    """A dictionary found in a sample of rows. A new one overrides `found`."""

    def fit(self, source: Source, config: TrainConfig, shown: Shown, memory: Memory = FORGETFUL) -> Fitted:
        """Find it in `config.init_rows` rows of the source, drawn by `config.seed`."""
        rows = source.sample_rows(self.wanted(config), config.seed)
        return Fitted(self.found(rows, self.n_latents or rows.shape[1], config.seed), len(rows))

    def wanted(self, config: TrainConfig) -> int:
        """How many rows."""
        return config.init_rows

    @abstractmethod
    def found(self, rows: Float[Tensor, "rows d_model"], n_latents: int, seed: int) -> SAE:
        """The SAE that the method finds in these rows."""


@dataclass(frozen=True)
class Components(Sampled):
    """A method that finds no more atoms than there are dimensions."""

    def sized(self, n_latents: int, k: int, d_model: int) -> "Fixed":
        return super().sized(min(n_latents, d_model), min(k, d_model), d_model)


@dataclass(frozen=True)
class PCA(Components):
    """Principal components as unit atoms; codes are signed (scikit-learn). See vsae.fixed."""

    name: ClassVar[str] = "pca"

    def found(self, rows: Float[Tensor, "rows d_model"], n_latents: int, seed: int) -> SAE:
        return fixed.pca(rows, n_latents, self.k, seed)


@dataclass(frozen=True)
class ICA(Components):
    """Independent components, by FastICA; codes are signed and have variance 1 (scikit-learn). See vsae.fixed."""

    name: ClassVar[str] = "ica"

    def found(self, rows: Float[Tensor, "rows d_model"], n_latents: int, seed: int) -> SAE:
        return fixed.ica(rows, n_latents, self.k, seed)


@dataclass(frozen=True)
class SparsePCA(Components):
    """Components with few entries; codes are signed (scikit-learn, mini-batch). See vsae.fixed."""

    name: ClassVar[str] = "sparse_pca"

    alpha: float = 1.0
    """Weight of the penalty on atoms' entries."""

    def found(self, rows: Float[Tensor, "rows d_model"], n_latents: int, seed: int) -> SAE:
        return fixed.sparse_pca(rows, n_latents, self.k, seed, self.alpha)


@dataclass(frozen=True)
class KMeans(Sampled):
    """The nearest of some centroids speaks, with 1 (scikit-learn, mini-batch). See vsae.fixed."""

    name: ClassVar[str] = "kmeans"

    n_latents: int | None = 4096
    """Number of centroids."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k not in (None, 1):
            raise ValueError(f"k is {self.k}, but of a k-means dictionary one atom speaks for a row: leave k out.")

    def sized(self, n_latents: int, k: int, d_model: int) -> "Fixed":
        return replace(self, n_latents=n_latents)

    def found(self, rows: Float[Tensor, "rows d_model"], n_latents: int, seed: int) -> SAE:
        return fixed.kmeans(rows, n_latents, seed)


@dataclass(frozen=True)
class SemiNMF(Sampled):
    """X ~ Z D with Z >= 0 (Ding, Li and Jordan 2010). See vsae.nmf."""

    name: ClassVar[str] = "semi_nmf"

    n_latents: int | None = 400
    """Number of atoms."""

    iterations: int = 500
    """Updates at most."""

    share: float = 1.0
    """Share of its entries that an atom keeps, the largest in magnitude."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}: choose a share of each atom's entries in (0, 1].")

    def found(self, rows: Float[Tensor, "rows d_model"], n_latents: int, seed: int) -> SAE:
        return nmf.semi_nmf(rows, n_latents, self.k, seed, self.iterations, self.share)


@dataclass(frozen=True)
class SNMF(SemiNMF):
    """Semi-NMF of MLP activations whose atoms keep their largest entries alone, each a small set of neurons (2506.10920; 1 %, and 5 % for GPT-2). See vsae.nmf."""

    name: ClassVar[str] = "snmf"

    share: float = 0.01
    """Share of its entries that an atom keeps, the largest in magnitude."""


@dataclass(frozen=True)
class ConvexNMF(Sampled):
    """X ~ Z W X with Z >= 0 and W >= 0: atoms are in the cone of the rows (Ding, Li and Jordan 2010). See vsae.nmf."""

    name: ClassVar[str] = "convex_nmf"

    n_latents: int | None = 400
    """Number of atoms."""

    iterations: int = 500
    """Updates at most."""

    most_rows: int = 4096
    """Rows to look at, at most: memory and time grow with their square."""

    def wanted(self, config: TrainConfig) -> int:
        return min(config.init_rows, self.most_rows)

    def found(self, rows: Float[Tensor, "rows d_model"], n_latents: int, seed: int) -> SAE:
        return nmf.convex_nmf(rows, n_latents, self.k, seed, self.iterations)


@dataclass(frozen=True)
class ITDA(Fixed):
    """Atoms are rows of the data that the atoms before them explain badly; signed matching pursuit (2505.17769). See vsae.itda.

    Reads the budget of `training`, an epoch when left out, and goes on where it was stopped. The run keeps where each atom is from in atoms.parquet;
    `vsae eval similarity` compares such runs.
    """

    name: ClassVar[str] = "itda"

    n_latents: int | None = None
    """Atoms at most; as many as tau asks for when left out."""

    k: int | None = 40
    """Steps of matching pursuit."""

    tau: float = 1e-3
    """Error above which a row becomes an atom. The authors give no default: this one is ours, and has to be found for each model."""

    error: str = "cosine_mse"
    """Which error: cosine_mse (the authors' code) or mse (the paper)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k is None:
            raise ValueError("ITDA needs a number of steps: give k.")
        if self.error not in ERRORS or not self.tau >= 0:
            raise ValueError(
                f"error is {self.error!r} and tau {self.tau}: choose {' or '.join(ERRORS)}, and 0 or more."
            )

    def fit(self, source: Source, config: TrainConfig, shown: Shown, memory: Memory = FORGETFUL) -> Fitted:
        """Grow it, going on from what `memory` recalls."""
        assert self.k is not None
        growing = Growing(source.d_model, self.k, self.tau, self.error, self.n_latents)
        n_rows = getattr(source, "n_rows", None)
        budget, step, seen, position = config.budget(n_rows), 0, 0, None
        if (before := memory.recall()) is not None:
            growing.take_up(before.tensors)
            step, seen, position = (before.state[name] for name in ("step", "seen", "loader"))
        batches = source.batches(config.batch_size, config.seed, position)
        for batch in shown(batches, -(-(budget - seen) // config.batch_size)):
            growing.add(batch)
            step, seen = step + 1, seen + len(batch.values)
            if growing.full or seen >= budget:
                break
            state = {"step": step, "seen": seen, "loader": batches.state()}
            memory.keep(step, lambda state=state: Kept(growing.tensors(), state))  # type: ignore[misc]
        keys = getattr(getattr(source, "site", None), "keys", None)
        return Fitted(growing.sae(), min(seen, n_rows or seen), growing.origins(keys))


RECIPES: tuple[type[Fixed], ...] = (PCA, ICA, SparsePCA, KMeans, SemiNMF, SNMF, ConvexNMF, ITDA)
