"""Recipes on joined rows: pairs of modalities, two ends of a layer, several sites (vsae.activations.joined)."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vsae import gradient
from vsae.alignment import fit_rows
from vsae.dictionaries import Dictionary, Free
from vsae.encoders import Linear
from vsae.objectives import Objective
from vsae.paired import AlignedDistance, PairedDistance, TwoDecoders
from vsae.recipes.base import Recipe, random_atoms
from vsae.sae import SAE
from vsae.sparsifiers import Sparsifier
from vsae.transcoder import Transcoder


@dataclass(frozen=True)
class Joined(Recipe):
    """What recipes on joined rows have in common."""

    columns: tuple[int, ...] | None = field(default=None, kw_only=True)
    """Widths of the sites that are read together; the source's when left out."""

    def widths(self, sample: Float[Tensor, "rows columns"]) -> tuple[int, ...]:
        """`columns`, or two halves. Raises ValueError where they do not add up."""
        total = sample.shape[1]
        widths = self.columns or (total // 2, total - total // 2)
        if sum(widths) != total:
            raise ValueError(
                f"columns are {widths}, but the rows are {total} wide: give the widths of the sites that are read together."
            )
        return widths


@dataclass(frozen=True)
class VLSAE(Joined):
    """One code for both modalities of a pair: distance encoder, two decoders (Shen et al. 2025); see vsae.paired. Its mean squared error is of both alike.

    The paper trains without pairing for CLIP and without AuxK; in our loss the two modalities are summed, so that pairs are not needed there either.
    Representations of other models (a VLM's) are aligned first, by two linear autoencoders and InfoNCE on the pairs to start from (vsae.alignment).
    """

    name: ClassVar[str] = "vl_sae"

    auxk_coefficient: float = field(default=0.0, kw_only=True)
    """AuxK does not apply to codes of two modalities: leave it 0."""

    k: int = 256
    """Latents that may speak for one row."""

    align_width: int | None = None
    """Align pairs in so many dimensions before they are coded. Left out: not at all, unless the sites differ in width; then as many as the narrower has."""

    align_epochs: int = 50
    """Alignment: passes over `training.init_rows` pairs."""

    align_batch_size: int = 2048
    """Alignment: pairs a step, each against all others of its batch."""

    align_lr: float = 5e-5
    """Alignment: learning rate. The paper's; few pairs take more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("align_width", "align_epochs", "align_batch_size", "align_lr"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name} is {value}: choose more than 0.")
        if self.auxk_coefficient:
            raise ValueError(
                f"auxk_coefficient is {self.auxk_coefficient}: codes of two modalities have no AuxK, leave it 0."
            )

    def build(self, sample: Float[Tensor, "rows columns"], mean: Float[Tensor, "columns"], seed: int) -> SAE:
        first, second = self.widths(sample)
        if self.align_width is not None or first != second:
            return self.aligned(sample, mean, (first, second), seed)
        directions = random_atoms(self.n_latents, sample[:, :first], seed)
        start = torch.cat([directions, directions], 1) * scale_of(sample - mean) / self.k
        return SAE(PairedDistance(directions), self.sparsifier(), TwoDecoders(start), mean).to(sample)

    def aligned(
        self, sample: Float[Tensor, "rows columns"], mean: Float[Tensor, "columns"], widths: tuple[int, int], seed: int
    ) -> SAE:
        """Directions are of the aligned space; atoms start as what the alignment's decoders make of them."""
        width = self.align_width or min(widths)
        options = {"epochs": self.align_epochs, "batch_size": self.align_batch_size, "lr": self.align_lr}
        alignment = fit_rows(sample, widths, width, seed=seed, **options)  # type: ignore[arg-type]
        directions = random_atoms(self.n_latents, sample.new_zeros(1, width), seed)
        length = scale_of(sample - mean) / self.k
        start = [length * F.normalize(F.linear(directions, each.weight), dim=1) for each in alignment.decoders]  # type: ignore[arg-type]
        maps = [tensor for each in alignment.encoders for tensor in (each.weight, each.bias)]
        encoder = AlignedDistance(directions, *maps)  # type: ignore[arg-type]
        return SAE(encoder, self.sparsifier(), TwoDecoders(torch.cat(start, 1), widths[0]), mean).to(sample)

    def objective(self) -> Objective:
        return Objective()

    @property
    def suggested_lr(self) -> float:
        """The paper's for CLIP."""
        return 1e-3


@dataclass(frozen=True)
class TranscoderTopK(Joined):
    """From a layer's input to its output through a sparse code (Dunefsky et al. 2024), TopK; with `skip`, beside a linear map (Paulo et al. 2025)."""

    name: ClassVar[str] = "transcoder"

    k: int = 32
    """Latents that may speak for one token."""

    skip: bool = False
    """Add a learnt linear map from input to output, from 0."""

    def build(self, sample: Float[Tensor, "rows columns"], mean: Float[Tensor, "columns"], seed: int) -> SAE:
        d_in, d_out = self.widths(sample)
        x, _ = sample.split([d_in, d_out], 1)
        b_in, b_dec = mean.split([d_in, d_out])
        looks = random_atoms(self.n_latents, x, seed)
        atoms = random_atoms(self.n_latents, sample[:, d_in:], seed + 1) / len(looks) ** 0.5
        skip = sample.new_zeros(d_out, d_in) if self.skip else None
        encoder = Linear(looks, looks.new_zeros(len(looks)))
        dictionary = Free(atoms, unit_norm=False)
        return Transcoder(encoder, self.sparsifier(), dictionary, b_dec, b_in=b_in, skip=skip).to(sample)


@dataclass(frozen=True)
class GradientTopK(Joined):
    """TopK whose k latents are chosen by their effect on the model's output, too (g-SAE, 2411.10397); see vsae.gradient. Sites: A+A:gradient.

    s = u + beta u |D g|, k largest, values u. beta and the units of g are ours: report how results change with it. AuxK as for TopK.
    """

    name: ClassVar[str] = "gradient_topk"

    k: int = 32
    """Latents that may speak for one token."""

    beta: float = 1.0
    """How much a latent's effect counts beside its activation, both in units of the data's root mean square; 0 is TopK."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta >= 0:
            raise ValueError(f"beta is {self.beta}: choose 0 or more.")

    def sparsifier(self) -> Sparsifier:
        return gradient.GradientTopK(self.k, self.beta)

    def build(self, sample: Float[Tensor, "rows columns"], mean: Float[Tensor, "columns"], seed: int) -> SAE:
        d_model, other = self.widths(sample)
        if d_model != other:
            raise ValueError(
                f"the two sites are {d_model} and {other} wide: {self.name} reads a site and its gradient, as in --site A+A:gradient."
            )
        plain = super().build(sample[:, :d_model], mean[:d_model], seed)
        return gradient.GradientSAE(plain.encoder, plain.sparsifier, plain.dictionary, plain.b_dec).to(sample)


@dataclass(frozen=True)
class Crosscoder(Joined):
    """One code for several sites at once (Lindsey et al. 2024): TopK on their rows side by side, an atom being a direction at every site.

    Ours: TopK instead of an L1 of the norms' sum. Each site is normalised by itself, and `site_norms` tells where a latent lives.
    """

    name: ClassVar[str] = "crosscoder"

    k: int = 32
    """Latents that may speak for one token."""

    def dictionary(
        self, sample: Float[Tensor, "rows columns"], mean: Float[Tensor, "columns"], seed: int
    ) -> Dictionary:
        self.widths(sample)
        return super().dictionary(sample, mean, seed)


def site_norms(sae: SAE, columns: tuple[int, ...]) -> Float[Tensor, "n_latents sites"]:
    """Share of each latent's atom norms that each site has: sums to 1 a row; 1 / sites for a latent that all sites share alike."""
    norms = torch.stack([torch.linalg.vector_norm(part, dim=1) for part in sae.atoms.detach().split(columns, 1)], 1)
    return F.normalize(norms, p=1, dim=1)


def scale_of(rows: Float[Tensor, "rows columns"]) -> Float[Tensor, ""]:
    """Root mean square length of half a row."""
    return (rows.square().sum(1).mean() / 2).sqrt()
