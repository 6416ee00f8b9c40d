"""What the SAE that will be saved does on raw activations: error, sparsity and silence, summed in float64.

NMSE = sum ||x - x_hat||^2 / sum ||x - mean||^2        mean: per dimension, of the rows measured; a predictor of the mean scores 1
L0   = mean number of non-zero latents a row
dead = share of latents that fired on no row
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vsae.sae import SAE

NMSE_FLOOR = 1.0


@dataclass(frozen=True)
class Heldout:
    """Reconstruction and sparsity on `n` rows. `nmse_floor` is the score of always answering with the mean."""

    nmse: float
    l0: float
    dead_share: float
    n: int
    nmse_floor: float = NMSE_FLOOR


@torch.no_grad()
def measure(
    sae: SAE, rows: Iterable[Float[Tensor, "_ d_model"]], device: torch.device, limit: int | None = None
) -> Heldout:
    """Run the fused `sae` over batches of raw rows, at most `limit` rows. Raises ValueError when they do not vary."""
    fired = torch.zeros(sae.n_latents, dtype=torch.bool, device=device)
    n, coded, error, active = 0, 0, 0.0, 0
    origin: Tensor | None = None
    first, second = torch.zeros(()), torch.zeros(())
    for batch in rows:
        x = batch[: None if limit is None else limit - n].to(device).float()
        ends = sae.ends(x)
        output = sae(ends.x)
        wide = ends.target.double()
        # Sums about the first batch's mean: a large common offset would otherwise eat the digits of the variance.
        if origin is None:
            origin = wide.mean(0)
            first, second = torch.zeros_like(origin), torch.zeros_like(origin)
        centred = wide - origin
        first += centred.sum(0)
        second += centred.square().sum(0)
        error += float((wide - output.x_hat.double()).square().sum())
        on = output.code.values != 0
        active += int(on.sum())
        coded += len(on)
        fired.index_fill_(0, output.code.indices[on], True)
        n += len(x)
        if limit is not None and n >= limit:
            break
    spread = float((second - first.square() / max(n, 1)).sum()) if n else 0.0
    if spread <= 0:
        raise ValueError(
            f"the {n} held-out rows are all alike, so no error can be measured on them: hold out more samples."
        )
    return Heldout(nmse=error / spread, l0=active / coded, dead_share=1 - int(fired.sum()) / sae.n_latents, n=n)
