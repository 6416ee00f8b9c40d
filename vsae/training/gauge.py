"""The numbers of the last steps, kept on the device until the host looks: loss, gradient norm, NMSE, L0.

A run stops when a loss or gradient is not finite, or when it diverges: the mean NMSE of a window has been above 10 times the best window's, and above
2 (twice as bad as answering with the mean), for 5 windows in a row. NMSE and not the loss is watched, because penalties rise on purpose.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vsae import parallel
from vsae.objectives import Loss

TIMES_BEST, WORSE_THAN, PATIENCE = 10.0, 2.0, 5
COLUMNS = ("loss", "grad_norm", "nmse", "l0")


@dataclass
class Watch:
    """What is remembered from window to window. JSON through `vars`."""

    best: float | None = None
    bad: int = 0

    def see(self, nmse: float) -> None:
        worse = self.best is not None and nmse > max(WORSE_THAN, TIMES_BEST * self.best)
        self.bad = self.bad + 1 if worse else 0
        self.best = nmse if self.best is None else min(self.best, nmse)

    @property
    def diverged(self) -> bool:
        return self.bad >= PATIENCE


class Gauge:
    """A window of `size` steps on the device. `spread` is the variance of the normalised activations, summed over dimensions."""

    def __init__(self, size: int, spread: float, device: torch.device) -> None:
        self.window = torch.zeros(size, len(COLUMNS), dtype=torch.float32, device=device)
        self.spread = spread

    @torch.no_grad()
    def add(self, step: int, loss: Loss, grad_norm: Float[Tensor, ""]) -> None:
        """Note step number `step` (from 0), without a device sync."""
        active = parallel.sum_latents((loss.output.code.values != 0).sum().float())
        total, error, active = parallel.sum_rows(torch.stack([loss.total.detach().float(), loss.error.float(), active]))
        nmse = error / (parallel.all_rows(len(loss.target)) * self.spread)
        l0 = active / parallel.all_rows(len(loss.output.code.values))
        self.window[step % len(self.window)] = torch.stack([total, grad_norm.float(), nmse, l0])

    def read(self, steps: int) -> dict[str, float]:
        """Means over the steps noted in the current window, `steps` having been made in all. The host waits for the device here.

        Raises FloatingPointError naming the first step whose loss or gradient is not finite.
        """
        filled = (steps - 1) % len(self.window) + 1
        rows = self.window[:filled].double().cpu()
        for at, row in enumerate(rows.tolist()):
            for name, value in zip(COLUMNS, row, strict=True):
                if not math.isfinite(value):
                    raise FloatingPointError(f"{name.replace('_', ' ')} is {value} at step {steps - filled + at + 1}")
        return dict(zip(COLUMNS, rows.mean(0).tolist(), strict=True))
