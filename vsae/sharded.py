"""A dictionary divided over processes: the parts of a TopK SAE of which each process holds some latents, encoder rows and atoms alike.

    encode    every shard finds its own k largest; their values, [batch, k] a shard, are gathered; the k largest of all are kept, each by its owner
    decode    every shard decodes its slots; the parts are summed, [batch, d_model]
    backward  all weight gradients stay where they are; only that of b_dec is summed

So a step sends batch * (k + d_model) numbers a process, however many latents there are, and the selection is exactly that of one process: of
equal values at the k-th place those of the first shard are kept, one process keeps any. Codes here number a shard's own latents from 0;
lists of dead latents number all of them.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vsae import ops
from vsae.code import Code
from vsae.dictionaries import Dictionary, Free
from vsae.encoders import Linear
from vsae.parallel import Copied, Layout, Reduced, gathered
from vsae.preactivations import Affine, PreActivations
from vsae.sae import SAE
from vsae.sparsifiers import AbsTopK, Sparsifier, TopK


class Shard:
    """Which latents are this process's."""

    def __init__(self, layout: Layout, n_latents: int) -> None:
        if n_latents % layout.shards:
            raise ValueError(
                f"n_latents is {n_latents}, which {layout.shards} shards cannot share evenly: choose a multiple of {layout.shards}."
            )
        self.layout, self.n_latents = layout, n_latents
        self.n_here = n_latents // layout.shards
        self.first = layout.shard * self.n_here
        self._asked: Tensor | None = None
        self._answer: tuple[Tensor, bool] | None = None

    def mine(self, latents: Int[Tensor, "some"]) -> tuple[Int[Tensor, "_"], bool]:
        """Those of some latents that are here, numbered from 0, and whether there is none: then a stand-in, so that all shards do alike.

        The answer is kept, as the host waits for the device to know how many they are.
        """
        if self._asked is not latents or self._answer is None:
            here = latents[(latents >= self.first) & (latents < self.first + self.n_here)] - self.first
            empty = len(here) == 0
            self._asked, self._answer = latents, (latents.new_zeros(1) if empty else here, empty)
        return self._answer

    def everywhere(self, here: Int[Tensor, "_"]) -> Int[Tensor, "_"]:
        """Latents of this shard's own numbering -> those of all shards, in order. The host waits."""
        flags = torch.zeros(self.n_here, dtype=torch.uint8, device=here.device).index_fill_(0, here, 1)
        return gathered(flags, self.layout.over_latents, self.layout.shards).flatten().nonzero().flatten()

    def whole(self, rows: Float[Tensor, "n_here ..."]) -> Float[Tensor, "n_latents ..."]:
        """All shards' rows on this process."""
        return gathered(rows, self.layout.over_latents, self.layout.shards).flatten(0, 1)

    def __deepcopy__(self, memo: object) -> "Shard":
        return self


@dataclass(frozen=True)
class ShardedAffine(Affine):
    """Pre-activations of this shard's latents."""

    shard: Shard | None = None
    empty: bool = field(default=False)
    """Is what is here only a stand-in?"""

    def latents(self, which: Int[Tensor, "some"]) -> "ShardedAffine":
        """`which` numbers the latents of all shards."""
        assert self.shard is not None
        here, empty = self.shard.mine(which)
        weight, bias = self.weight.index_select(0, here), self.bias.index_select(0, here)
        return ShardedAffine(self.x, weight, bias, None, self.shard, empty)


class ShardedLinear(Linear):
    """Rows of a linear encoder."""

    def __init__(self, weight: Float[Tensor, "n_here d_model"], bias: Float[Tensor, "n_here"], shard: Shard) -> None:
        super().__init__(weight, bias)
        self.shard = shard

    def fold(self, scale: Float[Tensor, "d_model"], dictionary: Dictionary) -> "ShardedLinear":
        return ShardedLinear(self.weight / scale, self.bias, self.shard)

    def around(
        self, x: Float[Tensor, "batch d_model"], centre: Float[Tensor, "d_model"], dictionary: Dictionary
    ) -> PreActivations:
        if not x.requires_grad:
            centre = Copied.apply(centre, self.shard.layout.over_latents)
        return super().around(x, centre, dictionary)

    def forward(self, x: Float[Tensor, "batch d_model"], dictionary: Dictionary) -> ShardedAffine:
        x = Copied.apply(x, self.shard.layout.over_latents)
        return ShardedAffine(x, self.weight, self.bias, self.trust if self.training else None, self.shard)


class ShardedTopK(Sparsifier):
    """The k largest over all shards, each kept by its owner; a row of a shard has up to k slots, and empty ones where other shards were larger."""

    def __init__(self, rule: TopK | AbsTopK, shard: Shard) -> None:
        super().__init__()
        self.rule, self.shard, self.signed, self.entries_only = rule, shard, rule.signed, rule.entries_only

    def forward(self, pre: PreActivations) -> Code:
        return self.strongest(pre, self.rule.k)

    def strongest(self, pre: PreActivations, k: int) -> Code:
        assert isinstance(pre, ShardedAffine)
        layout = self.shard.layout
        code = self.rule.strongest(pre, min(k, pre.shape[1]))
        values = code.values * (not pre.empty)
        width = values.shape[1]
        scores = gathered(F.pad(values.abs(), (0, k - width)), layout.over_latents, layout.shards)
        _, batch, _ = scores.shape
        order = scores.transpose(0, 1).reshape(batch, -1).sort(dim=1, descending=True, stable=True).indices[:, :k]
        kept = torch.zeros(batch, layout.shards * k, dtype=torch.bool, device=values.device).scatter_(1, order, True)
        return Code(values * kept[:, layout.shard * k :][:, :width], code.indices)


class ShardedFree(Free):
    """Atoms of this shard; what it decodes is the sum over all."""

    def __init__(self, weight: Float[Tensor, "n_here d_model"], shard: Shard, unit_norm: bool = True) -> None:
        super().__init__(weight, unit_norm)
        self.shard = shard

    @property
    def n_latents(self) -> int:
        return self.shard.n_latents

    @property
    def n_here(self) -> int:
        return self.shard.n_here

    def everywhere(self, here: Int[Tensor, "_"]) -> Int[Tensor, "_"]:
        return self.shard.everywhere(here)

    def decode(self, code: Code) -> Float[Tensor, "batch d_model"]:
        return Reduced.apply(ops.decode(code, self.weight), self.shard.layout.over_latents)

    def decode_some(self, code: Code, latents: Int[Tensor, "some"]) -> Float[Tensor, "batch d_model"]:
        atoms = self.weight.index_select(0, self.shard.mine(latents)[0])
        return Reduced.apply(ops.decode(code, atoms), self.shard.layout.over_latents)

    def folded(self, scale: Float[Tensor, "d_model"]) -> "ShardedFree":
        return ShardedFree(self.weight * scale, self.shard, unit_norm=False)


def divided(sae: SAE, layout: Layout) -> SAE:
    """This process's shard of a training SAE. Raises ValueError for parts that cannot be divided."""
    encoder, rule, atoms = sae.encoder, sae.sparsifier, sae.dictionary
    if type(encoder) is not Linear or type(atoms) is not Free or type(rule) not in (TopK, AbsTopK):
        parts = ", ".join(type(part).__name__ for part in (encoder, rule, atoms))
        raise ValueError(
            f"only recipes of a linear encoder, top-k by row and free atoms can be divided over processes (topk, abs_topk), and this one is {parts}: leave training.shards at 1."
        )
    assert isinstance(rule, TopK | AbsTopK)
    shard = Shard(layout, sae.n_latents)
    here = slice(shard.first, shard.first + shard.n_here)
    return SAE(
        ShardedLinear(encoder.weight[here], encoder.bias[here], shard),
        ShardedTopK(rule, shard),
        ShardedFree(atoms.weight[here], shard, atoms.unit_norm),
        sae.b_dec,
    )


@torch.no_grad()
def joined(sae: SAE) -> SAE:
    """The whole of a divided inference SAE, in every process; one that is not divided as it is."""
    encoder, rule, atoms = sae.encoder, sae.sparsifier, sae.dictionary
    if (
        not isinstance(encoder, ShardedLinear)
        or not isinstance(rule, ShardedTopK)
        or not isinstance(atoms, ShardedFree)
    ):
        return sae
    weight, bias, dictionary = (atoms.shard.whole(part) for part in (encoder.weight, encoder.bias, atoms.weight))
    whole = SAE(Linear(weight, bias), rule.rule, Free(dictionary, unit_norm=False), sae.b_dec)
    return whole.eval().requires_grad_(False)
