"""Top-k selection in bfloat16, values in full precision: several times cheaper where the processor multiplies bfloat16 faster.

    candidates = the k + extra largest of bf16(x) bf16(W)^T + b      a matrix product at low precision
    u          = x W^T + b at the candidates                          batch * (k + extra) dot products in the weights' own precision
    code       = the k largest of u

Values and gradients are exact; only an entry that is not among the candidates can be missed. `Trust` counts how many are, on the data at hand.
"""

from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vsae.code import Code
from vsae.ops.largest import largest
from vsae.ops.sparse import dots, entries, pick

EXTRA = 16
"""Candidates beyond k. With 16 to 32 of them, 0.99999 of the true top k are found on structured data, 0.999 on Gaussian noise (spec/performance.md)."""
ROWS = 256
"""Rows of pre-activations computed at a time."""
LEAST_RECALL = 0.9995
"""Below this share of the true top k, selection is exact again."""


def encode_topk(
    x: Float[Tensor, "batch d_model"],
    weight: Float[Tensor, "n_latents d_model"],
    bias: Float[Tensor, "n_latents"],
    k: int,
    extra: int = EXTRA,
) -> Code:
    """As `vsae.ops.encode_topk`, but for entries whose bfloat16 value is not among the k + extra largest."""
    with torch.no_grad():
        low_x, low_weight, low_bias = x.bfloat16(), weight.bfloat16(), bias.bfloat16()
        wide = min(k + extra, len(weight))
        candidates = torch.cat([largest(torch.addmm(low_bias, some, low_weight.T), wide) for some in low_x.split(ROWS)])
        exact = dots(x, weight, candidates) + bias[candidates]
        values, slots = exact.topk(k, sorted=False)
        indices = candidates.gather(1, slots)
    return Code(entries(x, weight, bias, indices, values).relu(), indices)


def is_fast(device: torch.device) -> bool:
    """Does this processor multiply bfloat16 matrices faster than float32 ones? False where nobody can tell.

    A rule, not a measurement, so that a run that goes on decides as it did: tiles (AMX), or AMD's AVX-512 BF16 (Zen 4 on). An Intel processor with the
    instructions but without tiles was measured, and is slower.
    """
    if device.type != "cpu":
        return False
    tiles, vectors = (
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )
    return bool(tiles) or (bool(vectors) and "AuthenticAMD" in processor())


@cache
def processor() -> str:
    """What Linux says of the processor; "" elsewhere."""
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.is_file() else ""


class Trust(nn.Module):
    """Selects by `encode_topk` as long as a running check finds at least LEAST_RECALL of the true top k, and exactly from then on.

    The first call and every `every`-th after it are checked on `rows` rows, before their result is used. The counts are buffers: a resumed run
    goes on as it was.
    """

    found: Tensor
    wanted: Tensor
    calls: Tensor

    def __init__(self, every: int = 64, rows: int = 64):
        super().__init__()
        self.every, self.rows = every, rows
        self.register_buffer("found", torch.zeros((), dtype=torch.float64))
        self.register_buffer("wanted", torch.zeros((), dtype=torch.float64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    @property
    def recall(self) -> float:
        """Share of the true top k that was found, an older check counting 0.9 times as much as the next; 1 before the first."""
        return float(self.found / self.wanted) if self.wanted > 0 else 1.0

    def select(self, x: Tensor, weight: Tensor, bias: Tensor, k: int) -> Code | None:
        """The code, or None where only an exact selection will do: k is no small part of the latents, or trust is lost."""
        if 8 * (k + EXTRA) > len(weight) or self.recall < LEAST_RECALL:
            return None
        if int(self.calls) % self.every == 0:
            self.check(x[: self.rows], weight, bias, k)
        self.calls += 1
        return encode_topk(x, weight, bias, k) if self.recall >= LEAST_RECALL else None

    @torch.no_grad()
    def check(self, x: Tensor, weight: Tensor, bias: Tensor, k: int) -> None:
        """Compare with the exact selection. A value that ties with the k-th counts as found."""
        truth = pick(x, weight, bias, lambda u: largest(u, k)).values.relu()
        least = truth.amin(1, keepdim=True)
        hits = (encode_topk(x, weight, bias, k).values >= least - 1e-6 * least.abs()).sum()
        self.found.mul_(0.9).add_(hits)
        self.wanted.mul_(0.9).add_(truth.numel())
