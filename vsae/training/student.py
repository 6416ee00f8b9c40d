"""One run on its way: what the loop does to each SAE that learns from the same stream of rows.

    x_n = (x - shift) / scale          normalise.py
    loss = objective(sae, x_n, dead)   the recipe's
    Adam, its rate from schedule.py, the gradient clipped to a global norm, both projected by the dictionary where it has a constraint

Nothing in a step waits for the device; every `check_every` steps the host looks at what the gauge and the firing clock gathered.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from vsae.activations import JoinedSource, Source
from vsae.controllers import Controller
from vsae.encoders import Linear
from vsae.files import read_json, write_json
from vsae.objectives import Loss, Objective
from vsae.ops.rescored import Trust, is_fast
from vsae.run import SELF_CHECK_ROWS, save_run, versions
from vsae.sae import SAE
from vsae.training import checkpoint
from vsae.training.config import TrainConfig
from vsae.training.dead import FiringClock, default_dead_tokens
from vsae.training.gauge import Gauge
from vsae.training.heldout import Heldout
from vsae.training.normalise import Normalisation, normalisation
from vsae.training.schedule import lr_factor
from vsae.training.state import Training
from vsae.training.trackers import Trackers, accelerator


@runtime_checkable
class Recipe(Protocol):
    """What the loop asks of a recipe, which is a frozen dataclass of hyper-parameters; see vsae.recipes."""

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def suggested_lr(self) -> float: ...

    def build(self, sample: Float[Tensor, "rows d_model"], mean: Float[Tensor, "d_model"], seed: int) -> SAE: ...

    def objective(self) -> Objective: ...

    def controllers(self) -> list[Controller]: ...


class Shared:
    """What several runs on one source need alike, computed once: its moments, its normalised samples."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.moments = cache(source.moments)
        self.rows = cache(source.sample_rows)

    @property
    def columns(self) -> tuple[int, ...] | None:
        return self.source.columns if isinstance(self.source, JoinedSource) else None


class Student:
    """A run that goes on from its newest checkpoint in `out`, or from nothing. `request` is what run.json says was asked for."""

    def __init__(self, shared: Shared, recipe: Recipe, config: TrainConfig, out: Path, request: dict[str, Any]) -> None:
        self.shared, self.config, self.out, self.request = shared, config, out, request
        self.hardware = accelerator(config, out)
        self.device = device = self.hardware.device
        self.budget = config.budget(n_rows(shared.source))
        self.dead_tokens = config.dead_tokens or default_dead_tokens(self.budget)
        self.peak = config.lr or recipe.suggested_lr
        moments = shared.moments()
        self.normalise: Normalisation = normalisation(config.normalise, moments, shared.columns).to(device)

        sample = self.normalise(shared.rows(config.init_rows, config.seed).to(device))
        mean = self.normalise(moments.mean.float().to(device)[None])[0]
        sae = recipe.build(sample, mean, config.seed).to(device)
        if isinstance(sae.encoder, Linear) and (
            config.selection == "rescored" or (config.selection == "auto" and is_fast(device))
        ):
            sae.encoder.trust = Trust().to(device)
        self.objective = recipe.objective()
        self.training = Training(
            sae,
            torch.optim.Adam(sae.parameter_groups(), lr=self.peak, betas=(config.beta1, config.beta2), fused=True),
            FiringClock(sae.n_latents, device),
            Gauge(config.check_every, float(sae.ends(self.normalise.spread(moments)[None]).target.sum()), device),
            torch.nn.ModuleList(recipe.controllers()).to(device),
            dead=torch.zeros(0, dtype=torch.int64, device=device),
        )
        self.folder = out / "checkpoint"
        checkpoint.clear(self.folder)
        if (last := checkpoint.newest(self.folder)) is not None:
            self.training.restore(last)
        self.trackers = Trackers(self.hardware, config, out, request, self.training.step)
        self.saved_at = time.monotonic()
        self.rate = 0.0

    @property
    def done(self) -> bool:
        return self.training.tokens >= self.budget

    @property
    def looked(self) -> bool:
        """Are `training.numbers` those of the steps up to now?"""
        return self.training.step % self.config.check_every == 0 or self.done

    def learn(self, raw: Float[Tensor, "batch columns"]) -> None:
        """One step on raw rows of the device, and a look where one is due. Raises FloatingPointError with what there is to go back to."""
        training, config = self.training, self.config
        x = self.normalise(raw)
        self.rate = self.peak * lr_factor(training.tokens, len(x), self.budget, config.warmup, config.decay)
        for group in training.optimiser.param_groups:
            group["lr"] = self.rate * group["rate"]
        # Noise, where a method has some, is the same after a resume, and whoever else learns beside.
        torch.manual_seed(config.seed * 1_000_003 + training.step)
        loss = step(training, self.objective, self.hardware, x, config.clip, training.tokens / self.budget)
        if self.looked:
            with self.explained():
                training.look(self.dead_tokens)
            terms = {name: float(value) for name, value in loss.terms.items()}
            self.trackers.log(training.step, "train", training.numbers | terms | {"lr": self.rate})

    @property
    def wants_heldout(self) -> bool:
        every = self.config.eval_every
        return bool(every) and self.training.step % every == 0 and not self.done

    def note_heldout(self, found: Heldout) -> None:
        self.training.curve.append({"step": self.training.step} | asdict(found))
        self.trackers.log(self.training.step, "val", asdict(found))

    @property
    def wants_saving(self) -> bool:
        late = time.monotonic() - self.saved_at > self.config.checkpoint_seconds
        due = self.training.step % self.config.checkpoint_every == 0 or late
        return self.done or (due and not self.training.watch.bad)

    def save(self, position: dict[str, Any]) -> Path:
        """Write a checkpoint; `position` is where the source's iterator is. Raises FloatingPointError rather than save what is broken."""
        with self.explained():
            self.training.gauge.read(self.training.step)
        self.training.loader = position
        saved = checkpoint.save(self.folder, self.training.checkpoint())
        self.saved_at = time.monotonic()
        return saved

    def fused(self) -> SAE:
        """The SAE as it would be saved, on raw rows."""
        return self.training.sae.fuse(self.normalise.shift, self.normalise.scale)

    def finish(self, found: Heldout | None, val: Source | None) -> None:
        """Write the run directory's files; run.json is the last."""
        source, config = self.shared.source, self.config
        rows = (val or source).sample_rows(SELF_CHECK_ROWS, config.seed)
        normalised = {"normalisation": self.normalise.describe(config.normalise), "seed": config.seed}
        about = {
            "fingerprint": source.fingerprint | normalised | {"versions": versions()},
            "metrics": {"val": None if found is None else asdict(found)},
            "training": self.training.summary()
            | {"budget": self.budget, "lr": self.peak, "dead_tokens": self.dead_tokens},
        }
        save_run(self.out, self.fused(), rows, self.request | about)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Add to a numerical failure what there is to go back to, and what to do."""
        try:
            yield
        except FloatingPointError as error:
            kept = checkpoint.saved(self.folder)
            last = f"The last good checkpoint stays: {kept[-1]}." if kept else "There is no checkpoint yet."
            raise FloatingPointError(
                f"training stopped: {error}. {last} Train into another directory with a smaller lr (it was {self.rate:.3g}), "
                "a longer warmup or stronger clipping."
            ) from None


def step(
    training: Training,
    objective: Callable[..., Loss],
    hardware: Accelerator,
    x: Float[Tensor, "batch columns"],
    clip: float,
    progress: float,
) -> Loss:
    """One step on normalised rows; nothing in it waits for the device. `objective`: called as an `Objective` is. `clip`: largest gradient norm, 0 for any. `progress`: share of the budget done."""
    sae = training.sae
    with hardware.autocast():
        loss = objective(sae, x, training.dead, progress)
    hardware.backward(loss.total)
    sae.project_gradients_()
    grad_norm = hardware.clip_grad_norm_(sae.parameters(), clip or math.inf)
    training.optimiser.step()
    training.optimiser.zero_grad(set_to_none=True)
    sae.project_()
    training.note(loss, grad_norm)
    for controller in training.controllers:
        controller(training, x, loss)
    return loss


def n_rows(source: Source) -> int | None:
    """Rows an epoch; None for a stream, which does not know."""
    return getattr(source, "n_rows", None)


def failure(out: Path) -> str | None:
    """Why the run in `out` was given up in a sweep, if it was."""
    noted = out / "checkpoint" / "failed.json"
    return str(read_json(noted)["why"]) if noted.exists() else None


def give_up(out: Path, why: str) -> None:
    """Note a failure for `failure`: the same steps would only fail again."""
    write_json(out / "checkpoint" / "failed.json", {"why": why})
