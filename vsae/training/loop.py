"""The training loop: shuffled activations in, a run directory out.

    x_n = (x - shift) / scale          normalise.py
    loss = objective(sae, x_n, dead)   the recipe's
    Adam, its rate from schedule.py, the gradient clipped to a global norm, both projected by the dictionary where it has a constraint

Nothing in a step waits for the device; every `check_every` steps the host looks at what the gauge and the firing clock gathered. The state of a run
is a `Training` (state.py), from whose checkpoint it goes on bit for bit (on CPU).
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from vsae.activations import JoinedSource, Source
from vsae.controllers import Controller
from vsae.encoders import Linear
from vsae.files import digest
from vsae.fitted import Once
from vsae.objectives import Loss, Objective
from vsae.ops.rescored import Trust, is_fast
from vsae.run import SELF_CHECK_ROWS, Run, save_run, versions
from vsae.sae import SAE
from vsae.training import checkpoint, guard
from vsae.training.config import TrainConfig
from vsae.training.dead import FiringClock, default_dead_tokens
from vsae.training.gauge import Gauge
from vsae.training.heldout import Heldout, measure
from vsae.training.normalise import Normalisation, normalisation
from vsae.training.once import fit_once
from vsae.training.progress import Display
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


def train(
    source: Source,
    recipe: Recipe | Once,
    out: str | Path,
    config: TrainConfig = TrainConfig(),  # noqa: B008 (frozen)
    val: Source | None = None,
    progress: bool = True,
) -> Run:
    """Train (or fit) the recipe's SAE on `source` and write the run directory `out`; held-out numbers come from `val`.

    The same call goes on where an interrupted one was, and returns a finished run as it is. Raises ValueError when `out` holds another run or is in
    use, FloatingPointError when the loss is not finite or diverges, SystemExit after SIGINT or SIGTERM, a checkpoint having been written.
    """
    out = Path(out)
    recipe = fitted(recipe, source) if isinstance(recipe, Recipe) else recipe
    request = {
        "recipe": {"name": recipe.name, "fields": asdict(recipe)},
        "config": asdict(config),
        "source": digest(source.fingerprint),
        "val": digest(val.fingerprint) if val is not None else None,
    }
    with guard.claimed(out):
        guard.hold_to(out, request)
        if not (out / "run.json").exists():
            if isinstance(recipe, Once):
                fit_once(source, recipe, out, config, val, request, progress)
            else:
                fit(source, recipe, out, config, val, request, progress)
        return Run.load(out)


def fitted(recipe: Recipe, source: Source) -> Recipe:
    """A recipe for joined rows with the widths of the source's sites. Raises ValueError where there is only one site."""
    if "columns" not in recipe.__dataclass_fields__ or recipe.columns is not None:  # type: ignore[attr-defined]
        return recipe
    if not isinstance(source, JoinedSource):
        raise ValueError(
            f"{recipe.name} reads several sites side by side, and this is one: give --site A+B (a JoinedSource in Python)."
        )
    return replace(recipe, columns=source.columns)


def fit(
    source: Source,
    recipe: Recipe,
    out: Path,
    config: TrainConfig,
    val: Source | None,
    request: dict[str, Any],
    progress: bool,
) -> None:
    """Train from the newest checkpoint, or from nothing, to the end of the budget, and save the run."""
    hardware = accelerator(config, out)
    device = hardware.device
    budget = config.budget(n_rows(source))
    dead_tokens = config.dead_tokens or default_dead_tokens(budget)
    peak = config.lr or recipe.suggested_lr
    moments = source.moments()
    normalise = normalisation(
        config.normalise, moments, source.columns if isinstance(source, JoinedSource) else None
    ).to(device)

    sample = normalise(source.sample_rows(config.init_rows, config.seed).to(device))
    sae = recipe.build(sample, normalise(moments.mean.float().to(device)[None])[0], config.seed).to(device)
    if isinstance(sae.encoder, Linear) and (
        config.selection == "rescored" or (config.selection == "auto" and is_fast(device))
    ):
        sae.encoder.trust = Trust().to(device)
    sae.fuse(normalise.shift, normalise.scale)  # what could not be saved is refused before it is trained
    objective = recipe.objective()
    training = Training(
        sae,
        torch.optim.Adam(sae.parameter_groups(), lr=peak, betas=(config.beta1, config.beta2), fused=True),
        FiringClock(sae.n_latents, device),
        Gauge(config.check_every, float(sae.ends(normalise.spread(moments)[None]).target.sum()), device),
        torch.nn.ModuleList(recipe.controllers()).to(device),
        dead=torch.zeros(0, dtype=torch.int64, device=device),
    )
    folder = out / "checkpoint"
    checkpoint.clear(folder)
    if (last := checkpoint.newest(folder)) is not None:
        training.restore(last)
    batches = source.batches(config.batch_size, config.seed, training.loader)
    trackers = Trackers(hardware, config, out, request, training.step)
    display = Display(budget, training.tokens, progress, config.log_every_seconds)
    saved_at = time.monotonic()

    alone = torch.random.fork_rng(
        [device] if device.type == "cuda" else []
    )  # the caller's random numbers stay as they were
    with guard.Interruption() as interruption, alone, display, trackers:
        if training.step:
            display.say(f"going on from step {training.step:,} of {out}")
        while training.tokens < budget:
            x = normalise(moved(next(batches).values, device).float())
            rate = peak * lr_factor(training.tokens, len(x), budget, config.warmup, config.decay)
            for group in training.optimiser.param_groups:
                group["lr"] = rate * group["rate"]
            torch.manual_seed(
                config.seed * 1_000_003 + training.step
            )  # noise, where a method has some, is the same after a resume
            loss = step(training, objective, hardware, x, config.clip, training.tokens / budget)

            # From here on the host may wait for the device.
            done = training.tokens >= budget
            display.show(training.step, training.tokens)
            if training.step % config.check_every == 0 or done:
                with explained(folder, rate):
                    training.look(dead_tokens)
                terms = {name: float(value) for name, value in loss.terms.items()}
                trackers.log(training.step, "train", training.numbers | terms | {"lr": rate})
                display.show(training.step, training.tokens, training.numbers)
            if val is not None and config.eval_every and training.step % config.eval_every == 0 and not done:
                found = heldout(sae, normalise, val, config, config.eval_rows)
                training.curve.append({"step": training.step} | asdict(found))
                trackers.log(training.step, "val", asdict(found))
            due = (
                training.step % config.checkpoint_every == 0 or time.monotonic() - saved_at > config.checkpoint_seconds
            )
            if done or interruption or (due and not training.watch.bad):
                with explained(folder, rate):
                    training.gauge.read(training.step)
                training.loader = batches.state()
                saved = checkpoint.save(folder, training.checkpoint())
                saved_at = time.monotonic()
                if interruption and not done:
                    raise SystemExit(
                        f"stopped by {interruption.name} at step {training.step:,}, saved in {saved}: the same call goes on from there."
                    )

        metrics = asdict(heldout(sae, normalise, val, config, None)) if val is not None else None
    rows = (val or source).sample_rows(SELF_CHECK_ROWS, config.seed)
    about = {
        "fingerprint": source.fingerprint
        | {"normalisation": normalise.describe(config.normalise), "seed": config.seed, "versions": versions()},
        "metrics": {"val": metrics},
        "training": training.summary() | {"budget": budget, "lr": peak, "dead_tokens": dead_tokens},
    }
    save_run(out, sae.fuse(normalise.shift, normalise.scale), rows, request | about)


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
        loss = objective(sae, x, training.dead, progress, training.factors())
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


def heldout(sae: SAE, normalise: Normalisation, val: Source, config: TrainConfig, limit: int | None) -> Heldout:
    """Measure the SAE as it would be saved, on raw rows of `val`: always the same ones, `limit` of them."""
    batches = val.batches(config.batch_size, config.seed, epochs=1)
    fused = sae.fuse(normalise.shift, normalise.scale)
    return measure(fused, (batch.values for batch in batches), fused.b_dec.device, limit)


def n_rows(source: Source) -> int | None:
    """Rows an epoch; None for a stream, which does not know."""
    return getattr(source, "n_rows", None)


def moved(values: Float[Tensor, "rows d_model"], device: torch.device) -> Float[Tensor, "rows d_model"]:
    """On the device; from pinned memory, as the host would otherwise wait for the copy."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


@contextmanager
def explained(folder: Path, rate: float) -> Iterator[None]:
    """Add to a numerical failure what there is to go back to, and what to do."""
    try:
        yield
    except FloatingPointError as error:
        kept = checkpoint.saved(folder)
        last = f"The last good checkpoint stays: {kept[-1]}." if kept else "There is no checkpoint yet."
        raise FloatingPointError(
            f"training stopped: {error}. {last} Train into another directory with a smaller lr (it was {rate:.3g}), "
            "a longer warmup or stronger clipping."
        ) from None
