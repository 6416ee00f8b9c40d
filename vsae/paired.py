"""VL-SAE: one code for two modalities (Shen et al. 2025, 2510.21323; spec/papers.md section 5). Rows are pairs side by side, [x_v | x_l].

    h_i(x) = 2 - | x / |x| - w_i / |w_i| | = 2 - sqrt(2 - 2 cos(x, w_i))    in [0, 2], for both modalities alike
    z = the k largest h
    x_hat_v = z_v D_v + b_v       x_hat_l = z_l D_l + b_l                   a dictionary each

As |h_i(x_v) - h_i(x_l)| <= |x_v / |x_v| - x_l / |x_l||, representations that point the same way get the same code. A code of a batch of pairs
has the first modality's rows above and the second's below. Where the modalities do not point the same way, or are not of one width, each is first mapped
to where its pairs agree (step A of the paper; vsae.alignment), e = E x + a, and h is of e. Ours: the decoders answer in x's space, not in e's.

Ours, too: ties at the k-th place are broken at random where the authors' code drops them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vsae import ops
from vsae.code import Code
from vsae.dictionaries import Dictionary, Free
from vsae.encoders import Encoder
from vsae.preactivations import Affine, PreActivations
from vsae.sae import SAE

CLOSEST = 1e-12
"""Squared distance below which the distance's gradient, which grows as 1 / distance, is taken as 0."""


@dataclass(frozen=True)
class Closeness(PreActivations):
    """h = 2 - sqrt(4 - 2 u) of u = 1 + cos in [0, 2]. It rises with u, so u alone decides which entries are largest."""

    inner: Affine

    @property
    def shape(self) -> tuple[int, int]:
        return self.inner.shape

    def top(self, k: int) -> Code:
        return closer(self.inner.top(k))

    def above(self, threshold: Float[Tensor, "..."]) -> Code:
        return closer(self.inner.above((4 - (2 - threshold.clamp(max=2)).square()) / 2))

    def pick(self, choose: Callable[[Tensor], Tensor]) -> Code:
        return closer(self.inner.pick(lambda u: choose(closeness(u))))

    def at(
        self, indices: Int[Tensor, "batch k"], values: Float[Tensor, "batch k"] | None = None
    ) -> Float[Tensor, "batch k"]:
        return closeness(self.inner.at(indices))

    def rows(self, which: Tensor) -> "Closeness":
        return Closeness(self.inner.rows(which))

    def latents(self, which: Int[Tensor, "some"]) -> "Closeness":
        return Closeness(self.inner.latents(which))


def closeness(u: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    squared = 4 - 2 * u
    return 2 - torch.where(squared > CLOSEST, squared, 0 * squared.detach() + CLOSEST).sqrt()


def closer(code: Code) -> Code:
    """Empty slots stay empty: h of u = 0 is 0, and 0 marks them."""
    return Code(torch.where(code.values > 0, closeness(code.values), 0), code.indices)


class Distance(Encoder):
    """h of x as it is: neither b_dec nor a bias, and no matter how long x is. `weight` [n_latents, d_model]."""

    centred = False

    def __init__(self, weight: Float[Tensor, "n_latents d_model"]):
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))

    def forward(self, x: Float[Tensor, "batch d_model"], dictionary: Dictionary) -> Closeness:
        weight = F.normalize(self.weight, dim=1)
        return Closeness(Affine(F.normalize(x, dim=1), weight, weight.new_ones(len(weight))))


class PairedDistance(Distance):
    """The same for pairs [x_v | x_l]: both halves go through one encoder, the second modality's rows below the first's."""

    def forward(self, x: Float[Tensor, "batch columns"], dictionary: Dictionary) -> Closeness:
        return super().forward(torch.cat(x.chunk(2, 1)), dictionary)


class MappedDistance(Distance):
    """h of e = x map^T + offset: one modality of an `AlignedDistance`."""

    def __init__(
        self,
        weight: Float[Tensor, "n_latents width"],
        map: Float[Tensor, "width d_model"],
        offset: Float[Tensor, "width"],
    ):
        super().__init__(weight)
        self.register_buffer("map", map.detach().clone())
        self.register_buffer("offset", offset.detach().clone())

    def mapped(self, x: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch width"]:
        return F.linear(x, self.get_buffer("map"), self.get_buffer("offset"))

    def forward(self, x: Float[Tensor, "batch d_model"], dictionary: Dictionary) -> Closeness:
        return super().forward(self.mapped(x), dictionary)


class AlignedDistance(Distance):
    """For pairs that an alignment makes agree: each half through its own map, and both through one encoder. The maps do not learn."""

    def __init__(
        self,
        weight: Float[Tensor, "n_latents width"],
        first: Float[Tensor, "width d_first"],
        first_offset: Float[Tensor, "width"],
        second: Float[Tensor, "width d_second"],
        second_offset: Float[Tensor, "width"],
    ):
        super().__init__(weight)
        for name, map, offset in (("first", first, first_offset), ("second", second, second_offset)):
            self.register_buffer(name, map.detach().clone())
            self.register_buffer(f"{name}_offset", offset.detach().clone())

    def maps(self) -> list[tuple[Tensor, Tensor]]:
        """E and a of each modality."""
        return [(self.get_buffer(name), self.get_buffer(f"{name}_offset")) for name in ("first", "second")]

    def forward(self, x: Float[Tensor, "batch columns"], dictionary: Dictionary) -> Closeness:
        maps = self.maps()
        halves = x.split([each.shape[1] for each, _ in maps], 1)
        e = [F.linear(half, *each) for half, each in zip(halves, maps, strict=True)]
        return super().forward(torch.cat(e), dictionary)


class TwoDecoders(Dictionary):
    """Atoms [n_latents, columns]: a latent's atom in the first modality, `first` wide (half, when left out), and that in the second."""

    modalities = 2

    def __init__(self, weight: Float[Tensor, "n_latents columns"], first: int | None = None):
        super().__init__()
        self.first = weight.shape[1] // 2 if first is None else first
        self.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))

    def decode(self, code: Code) -> Float[Tensor, "batch columns"]:
        """Pairs side by side, from codes one below the other."""
        n = len(code.values) // 2
        sides = (Code(code.values[:n], code.indices[:n]), Code(code.values[n:], code.indices[n:]))
        both = zip(sides, self.weight.split(self.columns, 1), strict=True)
        return torch.cat([ops.decode(side, atoms.contiguous()) for side, atoms in both], 1)

    def inference(self) -> "TwoDecoders":
        return self

    @property
    def columns(self) -> list[int]:
        """Widths of the two modalities."""
        return [self.first, self.weight.shape[1] - self.first]

    def options(self) -> dict[str, Any]:
        return {"first": self.first}

    @property
    def n_latents(self) -> int:
        return len(self.weight)

    def forward(self) -> Float[Tensor, "n_latents columns"]:
        return self.weight


@torch.no_grad()
def mapped(alone: SAE, x: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch width"] | None:
    """e of raw rows of one modality (`view`): where an alignment puts them. None where there was none."""
    if not isinstance(alone.encoder, MappedDistance):
        return None
    x = x.to(alone.b_dec)
    x = x if alone.shift is None else x - alone.shift
    return alone.encoder.mapped(x if alone.scale is None else x / alone.scale)


@torch.no_grad()
def view(sae: SAE, side: int) -> SAE:
    """The inference SAE of one modality alone, 0 or 1: the shared encoder with that modality's dictionary. Raises ValueError for an SAE of one."""
    if not isinstance(sae.dictionary, TwoDecoders) or side not in (0, 1):
        raise ValueError(f"this SAE has no side {side} to look at: only paired ones (recipe vl_sae) have two, 0 and 1.")
    columns = sae.dictionary.columns
    half: Callable[[Any], Any] = lambda tensor: None if tensor is None else tensor.split(columns, -1)[side]  # noqa: E731
    dictionary, looks = Free(half(sae.dictionary.weight), unit_norm=False), sae.encoder.get_parameter("weight")
    encoder = Distance(looks)
    if isinstance(sae.encoder, AlignedDistance):
        encoder = MappedDistance(looks, *sae.encoder.maps()[side])
    alone = SAE(encoder, sae.sparsifier.inference(), dictionary, half(sae.b_dec), half(sae.shift), half(sae.scale))
    return alone.eval().requires_grad_(False)
