"""Recipes that are fitted once in place of being trained step by step: fixed atoms (vsae.recipes.fixed). They end in the same run directory.

What keeps how far it is (ITDA) goes on from there after a kill; the others look at rows that fit into memory, and begin anew.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vsae.activations import Source
from vsae.activations.source import Batch
from vsae.fitted import Kept, Once
from vsae.progress import track
from vsae.run import SELF_CHECK_ROWS, save_run, versions
from vsae.tables import write_origins
from vsae.training import checkpoint
from vsae.training.checkpoint import Checkpoint
from vsae.training.config import TrainConfig
from vsae.training.guard import Interruption
from vsae.training.heldout import measure


class Memory:
    """Checkpoints of a fit in the run's directory, as often as the config says for trainings. From `recall` on, signals wait for the next `keep`."""

    def __init__(self, folder: Path, config: TrainConfig, entered: ExitStack) -> None:
        self.folder, self.config, self.entered = folder, config, entered
        self.interruption, self.at = Interruption(), time.monotonic()

    def recall(self) -> Kept | None:
        self.entered.enter_context(self.interruption)
        checkpoint.clear(self.folder)
        last = checkpoint.newest(self.folder)
        return None if last is None else Kept(last.tensors, last.state)

    def keep(self, step: int, kept: Callable[[], Kept]) -> None:
        late = time.monotonic() - self.at > self.config.checkpoint_seconds
        if not (late or step % self.config.checkpoint_every == 0 or self.interruption):
            return
        where, self.at = checkpoint.save(self.folder, Checkpoint(step, *kept())), time.monotonic()
        if self.interruption:
            raise SystemExit(
                f"stopped by {self.interruption.name} at step {step:,}, saved in {where}: the same call goes on from there."
            )


def fit_once(
    source: Source,
    recipe: Once,
    out: Path,
    config: TrainConfig,
    val: Source | None,
    request: dict[str, Any],
    progress: bool,
) -> None:
    """Fit it, measure it on `val`, and save the run."""

    def shown(batches: Iterable[Batch], total: int) -> Iterator[Batch]:
        return track(batches, "fit", total) if progress else iter(batches)

    with ExitStack() as entered:
        fitted = recipe.fit(source, config, shown, Memory(out / "checkpoint", config, entered))
    cpu, metrics = torch.device("cpu"), None
    if val is not None:
        batches = val.batches(config.batch_size, config.seed, epochs=1)
        metrics = asdict(measure(fitted.sae, (batch.values for batch in batches), cpu))
    if fitted.origins is not None:
        write_origins(out, fitted.origins)
    about = {
        "fingerprint": source.fingerprint
        | {"normalisation": {"mode": "none"}, "seed": config.seed, "versions": versions()},
        "metrics": {"val": metrics},
        "training": {"steps": 0, "tokens": fitted.rows},
    }
    rows = (val or source).sample_rows(SELF_CHECK_ROWS, config.seed)
    save_run(out, fitted.sae, rows, request | about)
