"""What the SAE that will be saved does on raw activations: error, sparsity and silence, summed in float64.

NMSE = sum ||x - x_hat||^2 / sum ||x - mean||^2        mean: per dimension, of the rows measured; a predictor of the mean scores 1
L0   = mean number of non-zero latents a row
dead = share of latents that fired on no row
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vsae import parallel
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


class Sums:
    """What held-out numbers are made of, for one fused SAE."""

    def __init__(self, sae: SAE, device: torch.device) -> None:
        self.sae = sae
        self.fired = torch.zeros(sae.dictionary.n_here, dtype=torch.bool, device=device)
        self.active = torch.zeros((), dtype=torch.int64, device=device)
        self.n, self.coded, self.error = 0, 0, 0.0
        self.origin: Tensor | None = None
        self.first, self.second = torch.zeros(()), torch.zeros(())

    def add(self, x: Float[Tensor, "batch d_model"]) -> None:
        ends = self.sae.ends(x)
        output = self.sae(ends.x)
        wide = ends.target.double()
        # Sums about the first batch's mean: a large common offset would otherwise eat the digits of the variance.
        if self.origin is None:
            self.origin = wide.mean(0)
            self.first, self.second = torch.zeros_like(self.origin), torch.zeros_like(self.origin)
        centred = wide - self.origin
        self.first += centred.sum(0)
        self.second += centred.square().sum(0)
        self.error += float((wide - output.x_hat.double()).square().sum())
        on = output.code.values != 0
        self.active += on.sum()
        self.coded += len(on)
        self.fired.index_fill_(0, output.code.indices[on], True)
        self.n += len(x)

    def result(self) -> Heldout:
        """Raises ValueError when the rows do not vary."""
        spread = float((self.second - self.first.square() / max(self.n, 1)).sum()) if self.n else 0.0
        if spread <= 0:
            raise ValueError(
                f"the {self.n} held-out rows are all alike, so no error can be measured on them: hold out more samples."
            )
        active, fired = parallel.sum_latents(torch.stack([self.active, self.fired.sum()])).tolist()
        return Heldout(self.error / spread, active / self.coded, 1 - fired / self.sae.n_latents, self.n)


def measure(
    sae: SAE, rows: Iterable[Float[Tensor, "_ d_model"]], device: torch.device, limit: int | None = None
) -> Heldout:
    """Run the fused `sae` over batches of raw rows, at most `limit` rows. Raises ValueError when they do not vary."""
    return measure_each([sae], rows, device, limit)[0]


@torch.no_grad()
def measure_each(
    saes: Sequence[SAE], rows: Iterable[Float[Tensor, "_ d_model"]], device: torch.device, limit: int | None = None
) -> list[Heldout]:
    """As `measure`, of several SAEs in one pass over the rows."""
    sums = [Sums(sae, device) for sae in saes]
    n = 0
    for batch in rows:
        x = batch[: None if limit is None else limit - n].to(device).float()
        for each in sums:
            each.add(x)
        n += len(x)
        if limit is not None and n >= limit:
            break
    return [each.result() for each in sums]
