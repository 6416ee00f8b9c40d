"""Target-L0 controller: the penalty's weight follows how many latents speak, until they are as many as wanted.

    f <- f exp(rate clamp(log(L0 / T), -1, 1))        every step; the coefficient of the penalty is f times what the recipe says, f = 1 at first

At rest L0 is T, whatever the units and the data: nobody has to search for a coefficient. Ours; JumpReLU's own target is a term of its loss
(`vsae.objectives.L0`).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from vsae.controllers import Controller
from vsae.objectives import Loss
from vsae.training.state import Training

TINY = 1e-3
"""Latents a row below which a code counts as empty."""


class TargetL0(Controller):
    """Steers the coefficient of the objective's term `term` so that `target` latents speak for a row, on average over batches."""

    log_factor: Tensor

    def __init__(self, term: str, target: float, rate: float = 0.01):
        super().__init__()
        if not target > 0:
            raise ValueError(f"target_l0 is {target}: choose more than 0.")
        self.term, self.target, self.rate = term, target, rate
        self.register_buffer("log_factor", torch.zeros(()))

    @torch.no_grad()
    def forward(self, training: Training, x: Float[Tensor, "batch columns"], loss: Loss) -> None:
        values = loss.output.code.values
        l0 = (values != 0).sum() / len(values)
        self.log_factor += self.rate * (l0.clamp(min=TINY) / self.target).log().clamp(-1, 1)

    def factors(self) -> dict[str, Tensor]:
        return {self.term: self.log_factor.exp()}
