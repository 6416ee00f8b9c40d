"""Recipes that differ in the sparsifier: which latents may speak."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vsae import sparsifiers
from vsae.controllers import Controller
from vsae.dictionaries import Free
from vsae.objectives import L0, Objective, Weighted, gate_l1, gate_mse, l1
from vsae.recipes.base import START_ROWS, Recipe, random_atoms
from vsae.resampling import Resample
from vsae.sae import SAE
from vsae.targets import TargetL0


@dataclass(frozen=True)
class ReLU(Recipe):
    """Every positive pre-activation speaks, and an L1 penalty keeps them few (Bricken et al. 2023); scaled by the atoms' norms, as in Anthropic's update of April 2024."""

    name: ClassVar[str] = "relu"

    auxk_coefficient: float = field(default=0.0, kw_only=True)
    """Weight of the auxiliary loss that revives dead latents; 0 switches it off."""

    l1_coefficient: float = 0.05
    """Weight of the sparsity penalty. A latent that would explain less than about half this share of a token's norm is silenced."""

    l1_warmup: float = 0.0
    """Share of the budget over which the penalty rises from 0."""

    target_l0: float | None = None
    """How many latents are to speak for a token: the penalty's weight follows (vsae.targets). Left out (none): as few as it says."""

    resample_every: int = 0
    """Steps between resamplings of dead latents (vsae.resampling); Bricken et al. took 25,000. 0: never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_l0 is not None:
            checked(self.target_l0, self.l1_coefficient)

    def sparsifier(self) -> sparsifiers.Sparsifier:
        return sparsifiers.ReLU()

    def controllers(self) -> list[Controller]:
        found: list[Controller] = [Resample(self.resample_every)] if self.resample_every else []
        return found + ([TargetL0("l1", self.target_l0)] if self.target_l0 else [])

    def objective(self) -> Objective:
        penalty = {"l1": Weighted(l1, self.l1_coefficient, self.l1_warmup)}
        return Objective(penalty | super().objective().terms)


@dataclass(frozen=True)
class SAEV(ReLU):
    """One SAE for the image and text tokens of a multimodal language model, ReLU and L1 scaled by free atoms' norms (SAE-V, 2502.17514).

    Train it on a site of mixed samples, kinds image and text; evals.cross_modal then weighs its latents and `vsae eval filtering` scores samples by them.
    The authors' penalty is lambda = 5 against the squared error of rows with E|x| = sqrt(d_model), which here is lambda / sqrt(d_model): the default is
    that of d_model = 4096. They start W_enc at W_dec^T with atoms of norm 0.1; ours start with atoms of norm 1 and the encoder's best scale.
    """

    name: ClassVar[str] = "sae_v"

    l1_coefficient: float = 5 / 64
    """Weight of the sparsity penalty: the authors' 5 / sqrt(d_model)."""

    l1_warmup: float = 0.05
    """Share of the budget over which the penalty rises from 0."""

    def dictionary(self, sample: Float[Tensor, "rows d_model"], mean: Float[Tensor, "d_model"], seed: int) -> Free:
        return Free(random_atoms(self.n_latents, sample, seed), unit_norm=False)

    @property
    def suggested_lr(self) -> float:
        """The authors'."""
        return 5e-5


@dataclass(frozen=True)
class TopK(Recipe):
    """Keep the k largest latents of every token (Gao et al. 2024), revive dead ones by AuxK."""

    name: ClassVar[str] = "topk"

    k: int = 32
    """Latents that may speak for one token."""


@dataclass(frozen=True)
class AbsTopK(Recipe):
    """Keep the k latents of every token that are largest in magnitude, with their sign (2510.00404): an atom stands for two opposite concepts.

    z = the k entries of u largest in |u|. The paper trains 16 d_model latents on the squared error alone, k about d_model / 10, at 3e-4; its AuxK here
    is SAELens' (dead latents by |u|, sign kept).
    """

    name: ClassVar[str] = "abs_topk"

    k: int = 32
    """Latents that may speak for one token, for or against."""

    def sparsifier(self) -> sparsifiers.Sparsifier:
        return sparsifiers.AbsTopK(self.k)


@dataclass(frozen=True)
class BatchTopK(Recipe):
    """Keep the batch * k largest latents of a batch (Bussmann et al. 2024): k a token on average. A threshold does the same for inference."""

    name: ClassVar[str] = "batchtopk"

    k: int = 32
    """Latents that speak for one token on average."""

    momentum: float = 0.99
    """Of the inference threshold's running mean, a batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}: choose 0 <= momentum < 1.")

    def sparsifier(self) -> sparsifiers.Sparsifier:
        return sparsifiers.BatchTopK(self.k, self.momentum)

    def build(self, sample: Float[Tensor, "rows d_model"], mean: Float[Tensor, "d_model"], seed: int) -> SAE:
        sae = super().build(sample, mean, seed)
        with torch.no_grad():
            sae.encode(sample[:START_ROWS])  # so that the threshold is a sensible one before the first step, too
        return sae


@dataclass(frozen=True)
class GroupMax(Recipe):
    """One latent of each of k groups of neighbours speaks, the largest (sparsify, EleutherAI): what TopK chooses, by k searches that are k times smaller."""

    name: ClassVar[str] = "groupmax"

    k: int = 32
    """Groups, and so the most latents that speak for one token."""

    def sparsifier(self) -> sparsifiers.Sparsifier:
        return sparsifiers.GroupMax(self.k)


@dataclass(frozen=True)
class JumpReLU(Recipe):
    """z = u 1[u > theta], theta learnt through a rectangle of width eps; loss mse + lambda L0 (Rajamanoharan et al. 2024, 2407.14435).

    With `target_l0` T the penalty is lambda (L0 / T - 1)^2 (dictionary_learning, whose other defaults these are, Adam's beta1 = 0 among them:
    `--training.beta1 0`). theta itself is trained, not its logarithm, which hardly moves under Adam. Initial theta and eps are shares of the data's root
    mean square norm, as the paper's data have norm 1. AuxK is ours; off.
    """

    name: ClassVar[str] = "jumprelu"

    auxk_coefficient: float = field(default=0.0, kw_only=True)
    """Weight of the auxiliary loss that revives dead latents; 0 switches it off."""

    l0_coefficient: float = 1.0
    """Weight of the penalty: lambda. Without a target, of each active latent: choose about 1e-3."""

    target_l0: float | None = 32.0
    """How many latents are to speak for a token. Left out (none): as few as lambda says."""

    l0_warmup: float = 0.1
    """Share of the budget over which the penalty rises from 0."""

    threshold: float = 0.001
    """To start from, as a share of the data's root mean square norm."""

    bandwidth: float = 0.001
    """Width eps of the rectangle, as a share of the data's root mean square norm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("threshold", "bandwidth", "target_l0"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}: choose more than 0.")

    def build(self, sample: Float[Tensor, "rows d_model"], mean: Float[Tensor, "d_model"], seed: int) -> SAE:
        sae = super().build(sample, mean, seed)
        norm = float((sample - mean).square().sum(1).mean().sqrt())
        sae.sparsifier = sparsifiers.JumpReLU(
            sae.b_enc.new_full((self.n_latents,), self.threshold * norm), self.bandwidth * norm
        )
        return sae

    def sparsifier(self) -> sparsifiers.Sparsifier:
        return sparsifiers.ReLU()  # until the data's norm is known

    def objective(self) -> Objective:
        penalty = {"l0": Weighted(L0(self.target_l0), self.l0_coefficient, self.l0_warmup)}
        return Objective(penalty | super().objective().terms)

    @property
    def suggested_lr(self) -> float:
        """dictionary_learning's."""
        return 7e-5


@dataclass(frozen=True)
class Gated(Recipe):
    """Who speaks (pi > 0) and how loudly are decided apart, so that the penalty shrinks no activation (Rajamanoharan et al. 2024, 2404.16014).

    pi = W x + b_gate;  z = 1[pi > 0] max(0, exp(r) W x + b_mag);  loss = mse + lambda |max(pi, 0)|_1 + |x - max(pi, 0) D_frozen|^2.  AuxK is ours; off.
    """

    name: ClassVar[str] = "gated"

    auxk_coefficient: float = field(default=0.0, kw_only=True)
    """Weight of the auxiliary loss that revives dead latents; 0 switches it off."""

    l1_coefficient: float = 0.05
    """Weight of the sparsity penalty on the gate."""

    l1_warmup: float = 0.0
    """Share of the budget over which the penalty rises from 0."""

    frozen_coefficient: float = 1.0
    """Weight of what the gate alone reconstructs; the paper's is 1."""

    target_l0: float | None = None
    """How many latents are to speak for a token: the penalty's weight follows (vsae.targets). Left out (none): as few as it says."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_l0 is not None:
            checked(self.target_l0, self.l1_coefficient)

    def controllers(self) -> list[Controller]:
        return [TargetL0("gate_l1", self.target_l0)] if self.target_l0 else []

    def sparsifier(self) -> sparsifiers.Sparsifier:
        return sparsifiers.Gated(torch.zeros(self.n_latents), torch.zeros(self.n_latents))

    def objective(self) -> Objective:
        terms = {
            "gate_l1": Weighted(gate_l1, self.l1_coefficient, self.l1_warmup),
            "gate_mse": Weighted(gate_mse, self.frozen_coefficient),
        }
        return Objective(terms | super().objective().terms)


def checked(target_l0: float, coefficient: float) -> None:
    """Raises ValueError with a sentence for a target that cannot be steered to."""
    if not target_l0 > 0:
        raise ValueError(f"target_l0 is {target_l0}: choose more than 0.")
    if not coefficient:
        raise ValueError("target_l0 steers the penalty, and l1_coefficient is 0: choose more, to start from.")


RECIPES: tuple[type[Recipe], ...] = (ReLU, SAEV, TopK, AbsTopK, BatchTopK, GroupMax, JumpReLU, Gated)
