"""Which latents are dead: those that have not fired for `dead_tokens` tokens (Gao et al. 2024, section 2.2).

The count lives on the device and a step only adds to it; the host asks for the list every `check_every` steps.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from vsae import parallel
from vsae.code import Code


class FiringClock:
    """`since` [n_latents]: tokens seen since each latent last fired."""

    def __init__(self, n_latents: int, device: torch.device) -> None:
        self.since = torch.zeros(n_latents, dtype=torch.int64, device=device)

    @torch.no_grad()
    def tick(self, code: Code, tokens: int) -> None:
        """Count a batch, without a device sync."""
        fired = parallel.any_rows(code.counts(len(self.since)) > 0)
        self.since.add_(tokens).masked_fill_(fired, 0)

    def dead(self, dead_tokens: int) -> Int[Tensor, "m"]:
        """Indices of the dead latents. The host waits for the device here."""
        return (self.since >= dead_tokens).nonzero().flatten()


def default_dead_tokens(budget: int) -> int:
    """10 million tokens, or a tenth of a budget too small for that to ever happen."""
    return min(10_000_000, max(1, budget // 10))
