"""Dead latents begin anew where the SAE errs most (Bricken et al. 2023, "Towards Monosemanticity", neuron resampling).

Every `every` steps each dead latent i draws a row of the batch, without replacement, with probability proportional to |x - x_hat|^4 (the squared loss), and

    D_i = (x - b_dec) / |x - b_dec|        w_i = 0.2 * (mean |w| of living latents) * D_i        b_i = 0        Adam's moments of all three: 0

The authors draw from 819,200 rows; here it is the batch of that step, and at most a row a latent. The draw follows from the step, so that a resumed run
draws the same.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vsae.controllers import Controller
from vsae.dictionaries import Free
from vsae.encoders import Linear
from vsae.objectives import Loss
from vsae.training.state import Training

SHARE = 0.2
"""Length of a resampled encoder row, in units of the living ones'."""


class Resample(Controller):
    """The module's docstring has the rule. A latent is dead by the list that training keeps, which is renewed every `check_every` steps."""

    def __init__(self, every: int):
        super().__init__()
        self.every = every

    @torch.no_grad()
    def forward(self, training: Training, x: Float[Tensor, "batch columns"], loss: Loss) -> None:
        """Raises TypeError for encoders and dictionaries that are not plain ones."""
        sae, dead = training.sae, training.dead
        if training.step % self.every or not len(dead):
            return
        if not isinstance(sae.encoder, Linear) or not isinstance(sae.dictionary, Free):
            raise TypeError(
                f"a {type(sae.encoder).__name__} encoder with a {type(sae.dictionary).__name__} dictionary cannot be resampled: switch that off."
            )
        alive = torch.ones(sae.n_latents, dtype=torch.bool, device=x.device).index_fill(0, dead, False)
        badness = (loss.target - loss.output.x_hat).double().square().sum(1).square().cpu()
        dead = dead[: int((badness > 0).sum())]
        if not len(dead) or not alive.any():
            return
        draw = torch.Generator().manual_seed(training.step)
        rows = torch.multinomial(badness, len(dead), generator=draw).to(x.device)
        atoms = F.normalize(x[rows] - sae.b_dec, dim=1)
        length = SHARE * torch.linalg.vector_norm(sae.encoder.weight[alive], dim=1).mean()
        for parameter, value in (
            (sae.dictionary.weight, atoms),
            (sae.encoder.weight, length * atoms),
            (sae.encoder.bias, atoms.new_zeros(len(dead))),
        ):
            parameter.index_copy_(0, dead, value.to(parameter.dtype))
            for name in ("exp_avg", "exp_avg_sq"):
                training.optimiser.state[parameter][name].index_fill_(0, dead, 0)
        training.clock.since.index_fill_(0, dead, 0)
        training.dead = training.dead[len(dead) :]
