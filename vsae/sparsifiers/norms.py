"""top-AFA: as many latents as it takes for the code to be as long as the input (Lee et al. 2025, 2503.24277; spec A17).

    order a row's positive u descending;   k = argmin over k of | sqrt(u_1^2 + ... + u_k^2) - |x - b_dec| |;   keep the k largest

With nearly orthogonal unit atoms |z| is about |x_hat - b_dec|, so no k has to be chosen. The authors sort all latents of every row; here the largest few
are looked at, and more of them only for the rows that need more.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from vsae.code import Code
from vsae.preactivations import Affine, PreActivations
from vsae.sparsifiers.base import Sparsifier

FIRST = 64
"""Entries looked at first; four times as many where they are too short."""


class TopAFA(Sparsifier):
    """The module's docstring has the rule. It needs unit atoms, and an encoder of x - b_dec in the units it was trained in. Waits for the device."""

    def forward(self, pre: PreActivations) -> Code:
        """Raises TypeError for pre-activations that are not linear in x."""
        if not isinstance(pre, Affine):
            raise TypeError(
                f"top-AFA compares codes with the input, which {type(pre).__name__} does not know: use a linear encoder."
            )
        with torch.no_grad():
            n, length = pre.shape[1], torch.linalg.vector_norm(pre.x, dim=1)
            width = min(FIRST, n)
            values, indices = pre.top(width)
            while width < n and (short := too_short(values, length)).any():
                more = min(4 * width, n)
                values, indices = F.pad(values, (0, more - width)), F.pad(indices, (0, more - width))
                values[short], indices[short] = pre.rows(short).top(more)
                width = more
            values, order = values.sort(1, descending=True)
            lengths = values.square().cumsum(1).sqrt()
            last = (lengths - length[:, None]).abs().argmin(1)
            most = int(last.max()) + 1 if len(last) else 1
            kept = torch.arange(most, device=values.device) <= last[:, None]
            values, indices = values[:, :most] * kept, indices.gather(1, order)[:, :most]
        return Code(pre.at(indices, values) * (values > 0), indices)


def too_short(values: Float[Tensor, "rows width"], length: Float[Tensor, "rows"]) -> Bool[Tensor, "rows"]:
    """Rows whose entries so far are shorter than `length`, and all positive, so that there may be more."""
    return (values.square().sum(1).sqrt() < length) & (values > 0).all(1)
