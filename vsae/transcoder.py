"""Transcoders: from what enters a place in a model to what leaves it, through a sparse code (Dunefsky et al. 2024, 2406.11944).

    z = sparsifier(W_enc (x - b_in) + b_enc)        y_hat = z D + b_dec + S (x - b_in)        S: an optional linear skip (Paulo et al. 2025, 2501.18823)

Rows are [x | y], side by side. Ours: b_in, x's mean, so that the encoder starts centred as an SAE's does; files of others have it folded into b_enc.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vsae.dictionaries import Dictionary, Free
from vsae.encoders import Encoder
from vsae.preactivations import PreActivations
from vsae.sae import SAE, Ends, Output
from vsae.sparsifiers import Sparsifier


class Transcoder(SAE):
    """An SAE whose two ends differ. `encode` takes x [batch, d_in]; x_hat and atoms are y's, [.., d_out]; `skip` [d_out, d_in] or None."""

    skip: Tensor | None

    def __init__(
        self,
        encoder: Encoder,
        sparsifier: Sparsifier,
        dictionary: Dictionary,
        b_dec: Float[Tensor, "d_out"],
        *,
        b_in: Float[Tensor, "d_in"],
        skip: Float[Tensor, "d_out d_in"] | None = None,
    ):
        super().__init__(encoder, sparsifier, dictionary, b_dec)
        self.b_in = nn.Parameter(b_in.detach().clone())
        self.register_parameter("skip", None if skip is None else nn.Parameter(skip.detach().clone()))

    def ends(self, rows: Float[Tensor, "batch columns"]) -> Ends:
        d_in, d_out = len(self.b_in), len(self.b_dec)
        return Ends(*rows.split([d_in, d_out], 1))

    def preactivations(self, x: Float[Tensor, "batch d_in"]) -> PreActivations:
        return self.encoder(x.to(self.b_in.dtype) - self.b_in, self.dictionary)

    def forward(self, x: Float[Tensor, "batch d_in"]) -> Output:
        code = self.encode(x)
        y_hat = self.decode(code)
        if self.skip is not None:
            y_hat = y_hat + (x.to(self.b_in.dtype) - self.b_in) @ self.skip.T
        return Output(y_hat, code)

    @torch.no_grad()
    def fuse(self, shift: Float[Tensor, "columns"], scale: Float[Tensor, "*columns"]) -> "Transcoder":
        """The same on raw rows. Raises ValueError for an encoder into which a scale cannot be folded."""
        sizes = [len(self.b_in), len(self.b_dec)]
        (shift_in, shift_out), (scale_in, scale_out) = (each.expand(sum(sizes)).split(sizes) for each in (shift, scale))
        encoder = self.encoder.fold(scale_in, self.dictionary)
        if encoder is None:
            raise ValueError(f"a transcoder needs a linear encoder, not a {type(self.encoder).__name__}.")
        extra: dict[str, Any] = {"b_in": shift_in + scale_in * self.b_in}
        if self.skip is not None:
            extra["skip"] = scale_out[:, None] * self.skip / scale_in
        dictionary = Free(self.atoms * scale_out, unit_norm=False)
        fused = Transcoder(
            encoder, self.sparsifier.inference(), dictionary, shift_out + scale_out * self.b_dec, **extra
        )
        return fused.eval().requires_grad_(False)
