"""Controllers watch a training and change its SAE between steps, where a gradient does not lead: dead latents, biases, targets."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor, nn

if TYPE_CHECKING:
    from vsae.objectives import Loss
    from vsae.training.state import Training


class Controller(nn.Module, ABC):
    """Its buffers are its state, and go into checkpoints with the rest."""

    @abstractmethod
    def forward(self, training: "Training", x: Float[Tensor, "batch columns"], loss: "Loss") -> None:
        """After a step on the normalised rows x: the optimiser has moved, projections are done, `training.step` counts this step.

        Most steps should not make the host wait for the device.
        """

    def factors(self) -> dict[str, Tensor]:
        """What the coefficients of some of the objective's terms are to be multiplied by in the next step, by the terms' names."""
        return {}
