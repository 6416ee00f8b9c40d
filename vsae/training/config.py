"""What a person decides about training. Field docstrings are the command line's help; importing this file is cheap."""

import math
from dataclasses import dataclass
from typing import Literal

UNTIED_TO_THE_RESULT = ("checkpoint_every", "checkpoint_seconds", "log_every_seconds", "tracker")
"""Fields that a rerun may change without becoming another run: they decide what is written when, never what is computed."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train: budget, optimiser, numbers and bookkeeping. Raises ValueError for a value that makes no sense."""

    tokens: int | None = None
    """Budget in tokens (rows), rounded up to whole batches."""
    epochs: int | float | None = None
    """Budget in passes over the selected rows; 1 when neither this nor `tokens` is given."""
    batch_size: int = 4096
    """Tokens a step."""
    seed: int = 0
    """Decides the initialisation and the order of rows."""
    lr: float | None = None
    """Peak learning rate. Left out: what the recipe suggests (2e-4 / sqrt(n_latents / 2^14) for most)."""
    warmup: float = 0.05
    """Share of the budget over which the learning rate rises linearly from 0."""
    decay: float = 0.2
    """Share of the budget, at the end, over which the learning rate falls to 0."""
    decay_shape: Literal["linear", "cosine"] = "linear"
    """How it falls: straight, or along half a cosine."""
    beta1: float = 0.9
    """Adam's decay rate of the mean gradient."""
    beta2: float = 0.999
    """Adam's decay rate of the mean squared gradient."""
    clip: float = 1.0
    """Largest global norm of the gradient; a longer one is scaled down to it. 0 switches this off."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Numbers of the matrix products; weights and optimiser stay fp32. auto: bf16 on CUDA cards that have it, fp32 elsewhere."""
    selection: Literal["auto", "exact", "rescored"] = "auto"
    """How a linear encoder finds the k largest in training. rescored: in int8 or bf16, then again exactly, watched, and given up when it misses more
    than 0.05 %. auto: so where the processor multiplies int8 or bf16 faster, else exact."""
    normalise: Literal["none", "scale", "standardise"] = "scale"
    """Of the activations, folded into the weights when the run is saved. scale: E||x||^2 = d_model. standardise: every dimension to mean 0, variance 1."""
    init_rows: int = 65_536
    """Random rows given to the recipe to initialise from."""
    dead_tokens: int | None = None
    """A latent is dead when it has not fired for so many tokens. Left out: 10 million (Gao et al. 2024), or a tenth of the budget if that is less."""
    check_every: int = 50
    """Steps between looks at the device: loss and gradient are checked, the list of dead latents is refreshed."""
    eval_every: int = 1000
    """Steps between held-out measurements; there is always one at the end. 0: only that."""
    eval_rows: int = 65_536
    """Held-out rows measured on the way; at the end all are."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    checkpoint_seconds: float = 600.0
    """A checkpoint is also written when the last is older than this."""
    log_every_seconds: float = 10.0
    """Least time between two lines of progress when the output is not a terminal."""
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    """Where curves go, besides log.jsonl in the run directory. wandb needs `pip install vsae[wandb]`."""
    shards: int = 1
    """Parts that the dictionary is divided into, over as many of the processes that torchrun started; the rest divide the rows of each batch."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda when there is one, else cpu. CUDA_VISIBLE_DEVICES chooses among several cards."""

    def __post_init__(self) -> None:
        if self.tokens is not None and self.epochs is not None:
            raise ValueError(f"tokens is {self.tokens} and epochs is {self.epochs}: give one budget, not both.")
        for name in ("batch_size", "init_rows", "check_every", "eval_rows", "checkpoint_every", "checkpoint_seconds"):
            _demand(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        for name in ("tokens", "epochs", "lr", "dead_tokens"):
            value = getattr(self, name)
            _demand(value is None or (value > 0 and math.isfinite(value)), name, value, "more than 0")
        for name in ("warmup", "decay"):
            _demand(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a share between 0 and 1")
        _demand(self.warmup + self.decay <= 1, "warmup + decay", self.warmup + self.decay, "at most 1")
        for name in ("beta1", "beta2"):
            _demand(0 <= getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")
        _demand(self.clip >= 0, "clip", self.clip, "0 (off) or more")
        _demand(self.eval_every >= 0, "eval_every", self.eval_every, "0 (only at the end) or more")
        _demand(self.shards >= 1, "shards", self.shards, "1 or more")
        _demand(self.seed >= 0, "seed", self.seed, "0 or more")

    def budget(self, n_rows: int | None) -> int:
        """Tokens to train on, given how many rows an epoch has (None: a stream that does not know). Raises ValueError."""
        if self.tokens is not None:
            return self.tokens
        if n_rows is None:
            raise ValueError(
                "a stream has no known number of rows, so epochs mean nothing to it: give a budget in tokens."
            )
        return max(1, math.ceil((self.epochs or 1) * n_rows))


def _demand(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise ValueError(f"training {name} is {value}: it must be {wanted}.")
