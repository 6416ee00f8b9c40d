"""What moves during a run, and so what a checkpoint holds."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vsae import parallel
from vsae.objectives import Loss
from vsae.sae import SAE
from vsae.training.checkpoint import Checkpoint
from vsae.training.dead import FiringClock
from vsae.training.gauge import Gauge, Watch


@dataclass
class Training:
    """A training SAE on its way."""

    sae: SAE
    optimiser: torch.optim.Optimizer
    clock: FiringClock
    gauge: Gauge
    controllers: torch.nn.ModuleList
    dead: Int[Tensor, "m"]
    """Latents that were dead at the last look."""
    step: int = 0
    tokens: int = 0
    loader: dict[str, Any] | None = None
    """Where the source's iterator is."""
    watch: Watch = field(default_factory=Watch)
    numbers: dict[str, float] = field(default_factory=dict)
    """Of the window before the last look: loss, gradient norm, NMSE, L0, dead share."""
    curve: list[dict[str, Any]] = field(default_factory=list)
    """Held-out measurements so far."""

    def factors(self) -> dict[str, Tensor]:
        """What the controllers want the objective's coefficients to be multiplied by."""
        return {name: factor for controller in self.controllers for name, factor in controller.factors().items()}  # type: ignore[operator]

    def note(self, loss: Loss, grad_norm: Float[Tensor, ""]) -> None:
        """Count a step. Nothing here waits for the device."""
        rows = parallel.all_rows(len(loss.target))
        self.gauge.add(self.step, loss, grad_norm)
        self.clock.tick(loss.output.code, rows)
        self.step += 1
        self.tokens += rows

    def look(self, dead_tokens: int) -> None:
        """Renew `numbers`, `watch` and `dead`; here the host waits. Raises FloatingPointError when a number is not finite or the run diverges."""
        numbers = self.gauge.read(self.step)
        self.watch.see(numbers["nmse"])
        self.dead = self.sae.dictionary.everywhere(self.clock.dead(dead_tokens))
        self.numbers = numbers | {"dead_share": len(self.dead) / self.sae.n_latents}
        if (trust := getattr(self.sae.encoder, "trust", None)) is not None:
            self.numbers["selection_recall"] = trust.recall
        if self.watch.diverged:
            raise FloatingPointError(
                f"the reconstruction error diverges at step {self.step} (NMSE {numbers['nmse']:.3g}, {self.watch.best:.3g} at best)"
            )

    def summary(self) -> dict[str, Any]:
        """For run.json."""
        last = {name: value for name, value in self.numbers.items() if name != "dead_share"}
        dead_share = self.numbers["dead_share"]
        return {
            "steps": self.step,
            "tokens": self.tokens,
            "dead_share": dead_share,
            "last_window": last,
            "curve": self.curve,
        }

    def checkpoint(self) -> Checkpoint:
        """All of it, as tensors and JSON."""
        tensors = {f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        for index, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": tensor for name, tensor in moments.items()}
        tensors |= {f"controllers.{name}": tensor for name, tensor in self.controllers.state_dict().items()}
        tensors |= {"clock.since": self.clock.since, "gauge.window": self.gauge.window, "dead": self.dead}
        state = {name: getattr(self, name) for name in ("step", "tokens", "loader", "numbers", "curve")}
        return Checkpoint(self.step, tensors, state | {"watch": vars(self.watch)})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where `checkpoint` was taken."""
        tensors, state = checkpoint.tensors, checkpoint.state
        self.sae.load_state_dict({name[4:]: tensor for name, tensor in tensors.items() if name.startswith("sae.")})
        controllers = {name[12:]: tensor for name, tensor in tensors.items() if name.startswith("controllers.")}
        self.controllers.load_state_dict(controllers)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, index, moment = name.split(".")
                moments.setdefault(int(index), {})[moment] = tensor
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": moments})
        self.clock.since.copy_(tensors["clock.since"])
        self.gauge.window.copy_(tensors["gauge.window"])
        self.dead = tensors["dead"].to(self.clock.since.device)
        for name in ("step", "tokens", "loader", "numbers", "curve"):
            setattr(self, name, state[name])
        self.watch = Watch(**state["watch"])
