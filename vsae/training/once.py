"""Recipes that are fitted once in place of being trained step by step: fixed atoms (vsae.recipes.fixed). They end in the same run directory.

There is no checkpoint: what a kill interrupts begins anew.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vsae.activations import Source
from vsae.activations.source import Batch
from vsae.fitted import Once
from vsae.progress import track
from vsae.run import SELF_CHECK_ROWS, save_run, versions
from vsae.tables import write_origins
from vsae.training.config import TrainConfig
from vsae.training.heldout import measure


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

    fitted = recipe.fit(source, config, shown)
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
