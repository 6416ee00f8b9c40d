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

from vsae import parallel
from vsae.activations import JoinedSource, Source
from vsae.controllers import Controller
from vsae.encoders import Linear
from vsae.files import read_json, write_json
from vsae.objectives import Loss, Objective, auxk, l1
from vsae.ops.coarse import fast_forms
from vsae.ops.rescored import Trust
from vsae.parallel import Layout
from vsae.run import SELF_CHECK_ROWS, save_run, versions
from vsae.sae import SAE
from vsae.sharded import divided, joined
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
        self.layout = layout = Layout.of(device, config.shards)
        sae = recipe.build(sample, mean, config.seed).to(device)
        trust(sae, config, device)
        sae.fuse(self.normalise.shift, self.normalise.scale)  # what could not be saved is refused before it is trained
        if layout.size > 1:
            demand_sums(recipe, sae)
        if layout.shards > 1:
            sae = divided(sae, layout)
            trust(sae, config, device)
        self.objective = recipe.objective()
        self.training = Training(
            sae,
            torch.optim.Adam(sae.parameter_groups(), lr=self.peak, betas=(config.beta1, config.beta2), fused=True),
            FiringClock(sae.dictionary.n_here, device),
            Gauge(config.check_every, float(sae.ends(self.normalise.spread(moments)[None]).target.sum()), device),
            torch.nn.ModuleList(recipe.controllers()).to(device),
            dead=torch.zeros(0, dtype=torch.int64, device=device),
        )
        self.folder = out / "checkpoint"
        if layout.shards > 1:
            self.folder /= f"shard-{layout.shard + 1}-of-{layout.shards}"
        if self.writes:
            checkpoint.clear(self.folder)
        self.restore()
        self.trackers = Trackers(self.hardware, config, out, request, self.training.step)
        self.saved_at = time.monotonic()
        self.rate = 0.0

    @property
    def writes(self) -> bool:
        """Is it this process that writes what it has: of those with the same latents, the first?"""
        return self.layout.part == 0

    def restore(self) -> None:
        """Go back to the newest checkpoint that all processes have."""
        last = checkpoint.newest(self.folder)
        step = parallel.least(-1 if last is None else last.step, self.layout, self.device)
        if last is not None and last.step > step >= 0:
            last = checkpoint.newest(self.folder, step)
        if last is not None and step >= 0:
            if last.step != step:
                raise ValueError(
                    f"{self.folder} has no whole checkpoint of step {step}, as the other processes have: remove {self.folder.parent}."
                )
            self.training.restore(last)

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
        x = self.normalise(self.layout.cut(raw))
        self.rate = self.peak * lr_factor(
            training.tokens, len(raw), self.budget, config.warmup, config.decay, config.decay_shape
        )
        for group in training.optimiser.param_groups:
            group["lr"] = self.rate * group["rate"]
        # Noise, where a method has some, is the same after a resume, and whoever else learns beside.
        torch.manual_seed(config.seed * 1_000_003 + training.step)
        with parallel.step_of(self.layout, len(raw)):
            progress = training.tokens / self.budget
            loss = step(training, self.objective, self.hardware, x, config.clip, progress, self.layout)
            terms = {name: parallel.sum_rows(value) for name, value in loss.terms.items() if self.looked}
        if self.looked:
            with self.explained():
                training.look(self.dead_tokens)
            numbers = {name: float(value) for name, value in terms.items()}
            self.trackers.log(training.step, "train", training.numbers | numbers | {"lr": self.rate})

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
        if self.layout.size > 1:  # clocks differ
            late = self.looked and parallel.agreed(late, self.layout, self.device)
        due = self.training.step % self.config.checkpoint_every == 0 or late
        return self.done or (due and not self.training.watch.bad)

    def save(self, position: dict[str, Any]) -> Path:
        """Write a checkpoint; `position` is where the source's iterator is. Raises FloatingPointError rather than save what is broken."""
        with self.explained():
            self.training.gauge.read(self.training.step)
        self.training.loader = position
        if self.writes:
            checkpoint.save(self.folder, self.training.checkpoint())
        self.saved_at = time.monotonic()
        return self.folder / f"{checkpoint.PREFIX}{self.training.step:08d}"

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
        whole = joined(self.fused())
        if self.layout.rank == 0:
            save_run(self.out, whole, rows, self.request | about)
        parallel.wait(self.layout)

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
    layout: Layout = Layout(),  # noqa: B008 (frozen)
) -> Loss:
    """One step on normalised rows; nothing in it waits for the device. `objective`: called as an `Objective` is. `clip`: largest gradient norm, 0 for any. `progress`: share of the budget done."""
    sae = training.sae
    with hardware.autocast():
        loss = objective(sae, x, training.dead, progress, training.factors())
    hardware.backward(loss.total)
    parallel.sum_gradients_(sae.parameters(), layout)
    sae.project_gradients_()
    most = clip or math.inf
    grad_norm = parallel.clip_(sae, most, layout) if layout.shards > 1 else clip_(sae, most)
    training.optimiser.step()
    training.optimiser.zero_grad(set_to_none=True)
    sae.project_()
    training.note(loss, grad_norm)
    for controller in training.controllers:
        controller(training, x, loss)
    return loss


def clip_(sae: SAE, most: float) -> Float[Tensor, ""]:
    """Scale all gradients down to a global norm of at most `most`; the norm they had. On a CPU, where looking costs nothing, none is multiplied by 1."""
    norm = torch.nn.utils.get_total_norm([each.grad for each in sae.parameters() if each.grad is not None])
    if norm.device.type != "cpu" or not norm <= most:
        torch.nn.utils.clip_grads_with_norm_(sae.parameters(), most, norm)
    return norm


def trust(sae: SAE, config: TrainConfig, device: torch.device) -> None:
    """Let a linear encoder select at low precision, where that was asked for or is known to be fast."""
    forms = {"auto": fast_forms(device), "exact": (), "rescored": fast_forms(device) or ("bf16",)}[config.selection]
    if forms and isinstance(sae.encoder, Linear):
        sae.encoder.trust = Trust(forms).to(device)


def demand_sums(recipe: Recipe, sae: SAE) -> None:
    """Raises ValueError for a recipe whose loss is not a sum over rows, given sums over all rows: several processes would train another."""
    objective = recipe.objective()
    known = objective.reconstruction is None and all(each.term in (auxk, l1) for each in objective.terms.values())
    if not known or sae.sparsifier.batch_dependent or recipe.controllers():
        raise ValueError(
            f"{recipe.name} looks at more of a batch than its own rows, and trains in one process: start it without torchrun."
        )


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
