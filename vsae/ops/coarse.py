"""Pre-activations at low precision: good enough to say which entries may be among the largest, and several times cheaper.

    int8    u ~ (q(x) q(W)^T + r b / (s_x s_W)) s_x s_W     q rounds to [-127, 127]; a scale s_x a row of x, one s_W for all weights
    bf16    u ~ bf16(x) bf16(W)^T + bf16(b)

Only the order within a row counts, so the int8 form is left as the int32 in brackets, without a pass to scale it.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from vsae.ops.pieces import row_pieces
from vsae.ops.scratch import scratch

ROWS = {"int8": 512, "bf16": 256}
"""Rows of pre-activations computed at a time: with 16,384 latents, what stays near the cache."""
MOST = 127
"""The largest int8 used, so that its negative is one, too."""


def coarse(
    x: Float[Tensor, "batch d_model"],
    weight: Float[Tensor, "n_latents d_model"],
    bias: Float[Tensor, "n_latents"],
    form: str,
) -> Iterator[Tensor]:
    """Numbers in nearly the order of x W^T + b within each row, for consecutive rows. One buffer is used again: a chunk is gone at the next."""
    return {"int8": _int8, "bf16": _bf16}[form](x, weight, bias)


def _bf16(x: Tensor, weight: Tensor, bias: Tensor) -> Iterator[Tensor]:
    low_weight, low_bias = weight.bfloat16(), bias.bfloat16()
    for some in x.bfloat16().split(ROWS["bf16"]):
        yield torch.addmm(low_bias, some, low_weight.T)


def _int8(x: Tensor, weight: Tensor, bias: Tensor) -> Iterator[Tensor]:
    weight_scale = _largest(weight) / MOST
    rows = x.float()
    scaled_bias = bias.float() / weight_scale
    row_scale = rows.abs().amax(1, keepdim=True).div_(MOST)
    finest = scaled_bias.abs().amax() / 2**28  # in a row of zeros the bias alone decides: as finely as integers can
    row_scale = torch.where(row_scale > 0, row_scale, torch.where(finest > 0, finest, 1))
    low_x, low_weight = rows.div(row_scale).round_().to(torch.int8), rounded(weight, weight_scale)
    row_factor, low_bias = _as_product(scaled_bias, row_scale)
    with scratch((min(ROWS["int8"], len(x)), len(weight)), torch.int32, x.device) as buffer:
        for some, factor in zip(low_x.split(ROWS["int8"]), row_factor.split(ROWS["int8"]), strict=True):
            u = buffer[: len(some)]
            torch._int_mm(some, low_weight.T, out=u)
            yield u.addcmul_(factor, low_bias)


def rounded(weight: Tensor, scale: Tensor) -> Tensor:
    """weight / scale as int8."""
    out = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    for some, to in row_pieces(weight, out):
        to.copy_(some.div(scale).round_())
    return out


def _largest(weight: Tensor) -> Tensor:
    """The largest magnitude, in one pass; 1 where all are 0."""
    low, high = torch.aminmax(weight)
    found = torch.maximum(-low, high)
    return torch.where(found > 0, found, 1)


def _as_product(bias: Tensor, row_scale: Tensor) -> tuple[Tensor, Tensor]:
    """bias / row_scale as the product of an int32 a row and an int32 a latent: what it takes to add it in one pass over integers.

    Each factor's rounding costs half of the other, so both are made about equally large.
    """
    typical = row_scale.mean()
    size = (bias.abs().amax() / typical).sqrt().clamp(1, 2**14)
    row_factor = (size * typical / row_scale).round_().clamp_(0, 2**15)
    low_bias = (bias / (size * typical)).round_().clamp_(-(2**15), 2**15)
    return row_factor.int(), low_bias.int()


def fast_forms(device: torch.device) -> tuple[str, ...]:
    """The forms whose product this processor makes faster than that of float32, the fastest first; none where nobody can tell.

    A rule, not a measurement, so that a run that goes on decides as it did. int8: VNNI. bf16: tiles (AMX), or AMD's AVX-512 BF16 (Zen 4 on); an
    Intel processor with these instructions but without tiles was measured, and is slower at bf16 than at float32.
    """
    if device.type != "cpu":
        return ()
    vnni, tiles, vectors = (
        bool(getattr(torch.cpu, name, lambda: False)())
        for name in ("_is_vnni_supported", "_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )
    good = {"int8": vnni, "bf16": tiles or (vectors and "AuthenticAMD" in processor())}
    return tuple(form for form, fast in good.items() if fast)


@cache
def processor() -> str:
    """What Linux says of the processor; "" elsewhere."""
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.is_file() else ""
