"""Top-k selection at low precision, values in full precision: several times cheaper where the processor multiplies int8 or bfloat16 faster.

    candidates = the k + extra largest of a coarse x W^T + b          a matrix product at low precision (coarse.py)
    u          = x W^T + b at the candidates                          batch * (k + extra) dot products in the weights' own precision
    code       = the k largest of u

Values and gradients are exact; only an entry that is not among the candidates can be missed. `Trust` counts how many are, on the data at hand.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vsae.code import Code
from vsae.ops.coarse import coarse
from vsae.ops.largest import Magnitudes, largest, roughly
from vsae.ops.sparse import dots, entries, pick

EXTRA = 16
"""Candidates beyond k. With 16, at least 0.9998 of the true top k were found on photos' features and on Gaussian noise, in int8 and bf16."""
LEAST_RECALL = 0.9995
"""Below this share of the true top k, the next form is tried, and selection is exact after the last."""


def encode_topk(
    x: Float[Tensor, "batch d_model"],
    weight: Float[Tensor, "n_latents d_model"],
    bias: Float[Tensor, "n_latents"],
    k: int,
    form: str = "bf16",
    extra: int = EXTRA,
    signed: bool = False,
) -> Code:
    """As `vsae.ops.encode_topk`, but for entries whose coarse value is not among the k + extra largest. `signed`: the largest in magnitude, with their signs."""
    with torch.no_grad():
        wide = min(k + extra, len(weight))
        candidates = torch.cat(
            [largest(u.abs_() if signed else u, wide, roughly) for u in coarse(x, weight, bias, form)]
        )
        exact = dots(x, weight, candidates) + bias[candidates]
        values, slots = (exact.abs() if signed else exact).topk(k, sorted=False)
        values, indices = exact.gather(1, slots) if signed else values, candidates.gather(1, slots)
    values = entries(x, weight, bias, indices, values)
    return Code(values if signed else values.relu(), indices)


class Trust(nn.Module):
    """Selects by `encode_topk` in the first of `forms` for which a running check finds at least LEAST_RECALL of the true top k; exactly where none is left.

    A form's first call and every `every`-th after it are checked on `rows` rows, before their result is used. The counts are buffers: a resumed
    run goes on as it was.
    """

    found: Tensor
    wanted: Tensor
    calls: Tensor
    lost: Tensor

    def __init__(self, forms: tuple[str, ...] = ("bf16",), every: int = 64, rows: int = 256):
        super().__init__()
        self.forms, self.every, self.rows = forms, every, rows
        self.register_buffer("found", torch.zeros((), dtype=torch.float64))
        self.register_buffer("wanted", torch.zeros((), dtype=torch.float64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("lost", torch.zeros((), dtype=torch.int64))

    @property
    def form(self) -> str | None:
        """How it selects; None: exactly, as all forms are lost."""
        return self.forms[int(self.lost)] if self.lost < len(self.forms) else None

    @property
    def recall(self) -> float:
        """Share of the true top k that this form found, an older check counting 0.9 times as much as the next; 1 before the first and for exact selection."""
        return float(self.found / self.wanted) if self.wanted > 0 else 1.0

    def select(self, x: Tensor, weight: Tensor, bias: Tensor, k: int, signed: bool = False) -> Code | None:
        """The code, or None where only an exact selection will do: k is no small part of the latents, or trust is lost."""
        if 8 * (k + EXTRA) > len(weight):
            return None
        while form := self.form:
            if int(self.calls) % self.every == 0:
                self.check(x[: self.rows], weight, bias, k, form, signed)
            if self.recall >= LEAST_RECALL:
                self.calls += 1
                return encode_topk(x, weight, bias, k, form, signed=signed)
            self.lost += 1
            for count in (self.found, self.wanted, self.calls):
                count.zero_()
        return None

    @torch.no_grad()
    def check(self, x: Tensor, weight: Tensor, bias: Tensor, k: int, form: str, signed: bool) -> None:
        """Compare with the exact selection. A value that ties with the k-th counts as found."""
        choose = Magnitudes(k) if signed else lambda u: largest(u, k)
        truth, got = (
            code.values.abs() if signed else code.values.relu()
            for code in (pick(x, weight, bias, choose), encode_topk(x, weight, bias, k, form, signed=signed))
        )
        least = truth.amin(1, keepdim=True)
        self.found.mul_(0.9).add_((got >= least - 1e-6 * least).sum())
        self.wanted.mul_(0.9).add_(truth.numel())
