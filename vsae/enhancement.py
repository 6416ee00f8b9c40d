"""An answer brought nearer to the image by a VL-SAE (Shen et al. 2025, section on hallucination; notes papers 5).

    h'_t = (1 - beta) h_t + beta h_v           h: codes of the mean text token and of the mean image token of a prompt
    x'_t = (1 - alpha) x_t + alpha Dec(h'_t)   Dec: the text side's decoder and, where representations were aligned first, back out of the alignment
    every text token moves by x'_t - x_t       alpha = 0 moves nothing, to the bit

    logits = (1 - a) l + a l_sae, of the tokens with l >= max l + log b; the others are refused            a = 0 leaves the logits as they are

Tokens that are generated move as the prompt's did (the notes do not say; ours). The published defaults for yes/no questions are a .6, b .8, alpha .8, beta .9.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from vsae.alignment import Alignment, Halves
from vsae.code import Code
from vsae.interventions import Layout, moved, of_kinds
from vsae.sae import SAE


class Enhanced:
    """A function for `model.edit(site, ...)` of an image-text model; a prompt without an image is left as it is.

    image, text: the two sides of a VL-SAE on mean tokens of that site (`Run.side`).
    seen: a mean image token for each prompt, in place of its own: another image's is the control that a gain must beat.
    """

    def __init__(
        self,
        image: SAE,
        text: SAE,
        *,
        alpha: float = 0.8,
        beta: float = 0.9,
        kind_names: Sequence[str],
        alignment: Alignment | None = None,
        seen: Float[Tensor, "batch d_model"] | None = None,
    ) -> None:
        if image.n_latents != text.n_latents:
            raise ValueError(
                f"the sides have {image.n_latents} and {text.n_latents} latents: give those of one VL-SAE."
            )
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value:g}: it is a share, from 0 to 1.")
        self.image, self.text, self.alpha, self.beta = image, text, alpha, beta
        self.kind_names, self.alignment, self.seen = tuple(kind_names), alignment, seen
        self._shift: Tensor | None = None

    @torch.no_grad()
    def __call__(
        self,
        values: Float[Tensor, "batch tokens d_model"],
        kinds: UInt8[Tensor, "batch tokens"],
        layout: Layout | None = None,
    ) -> Float[Tensor, "batch tokens d_model"]:
        images, texts = (of_kinds(kinds, self.kind_names, [name]) for name in ("image", "text"))
        if images.any():
            self._shift = self.shift(values, images, texts)
        if self._shift is None or len(self._shift) != len(values):
            return values
        change = self._shift[:, None].expand_as(values)[texts]
        return moved(values, texts, change)

    def shift(
        self,
        values: Float[Tensor, "batch tokens d_model"],
        images: Bool[Tensor, "batch tokens"],
        texts: Bool[Tensor, "batch tokens"],
    ) -> Float[Tensor, "batch d_model"]:
        """x'_t - x_t; 0 for a row without image or text tokens."""
        x = values.to(self.text.b_dec)
        x_v, x_t = mean(x, images) if self.seen is None else self.seen.to(x), mean(x, texts)
        e = Halves(x_v, x_t) if self.alignment is None else self.alignment.encode(Halves(x_v, x_t))
        h_v, h_t = (dense(sae, of) for sae, of in ((self.image, e.first), (self.text, e.second)))
        back = self.text.decode(Code.full(torch.lerp(h_t, h_v, self.beta)))
        if self.alignment is not None:
            back = self.alignment.decode(Halves(back, back)).second
        there = images.any(1) & texts.any(1)
        return self.alpha * (back - x_t) * there[:, None]


def mixed(
    plain: Float[Tensor, "rows vocabulary"], enhanced: Float[Tensor, "rows vocabulary"], a: float = 0.6, b: float = 0.8
) -> Float[Tensor, "rows vocabulary"]:
    """Logits of both passes; -inf for tokens that the plain pass finds b times less likely than its favourite. Raises ValueError for a or b out of [0, 1]."""
    if not 0 <= a <= 1 or not 0 < b <= 1:
        raise ValueError(f"a is {a:g} and b {b:g}: both are shares, b above 0.")
    if a == 0:
        return plain
    kept = plain >= plain.amax(1, keepdim=True) + math.log(b)
    return ((1 - a) * plain + a * enhanced).masked_fill(~kept, -torch.inf)


def mean(
    values: Float[Tensor, "batch tokens d_model"], mask: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch d_model"]:
    """Mean of the masked tokens; 0 where there are none."""
    return (values * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def dense(sae: SAE, x: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows n_latents"]:
    code = sae.encode(x)
    return code.values.new_zeros(len(x), sae.n_latents).scatter_add_(1, code.indices, code.values)
