"""`vsae eval filtering --retrain`: the projections of `evals.retraining` from the sites of two stores."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from evals.filtering_runs import Scored, replanted
from evals.retraining import Retrained, Track, Training, retrain
from vsae.activations import ActivationStore
from vsae.activations.pairs import PairSource


@dataclass(frozen=True)
class Worth:
    """What each way to choose pairs is worth, and how it was measured."""

    found: tuple[Retrained, ...]
    clean: int
    """Held-out pairs."""
    share: float
    settings: dict[str, Any]
    sites: str
    held_out: dict[str, Any]


def evaluate(
    stores: tuple[ActivationStore, ActivationStore],
    sites: str,
    scored: Scored,
    matched: Bool[np.ndarray, "pairs"],
    *,
    shuffle: float,
    share: float = 0.7,
    seeds: Sequence[int] = (0, 1, 2),
    seed: int = 0,
    config: Training | None = None,
    track: Track = lambda items, what, n: items,
) -> Worth:
    """Retrain on pairs of the first store, their captions exchanged as `evals.filtering_runs.embedded` did with this `shuffle` and `seed`.

    Raises ValueError for sites that are not two, and for stores that share a pair.
    """
    names = sites.split("+")
    if len(names) != 2:
        raise ValueError(f"--retrain is '{sites}', but projections are of two sites: A+B.")
    train, clean = ([store.site(name) for name in names] for store in stores)
    if shared := len(set(train[0].keys) & set(clean[0].keys)):
        raise ValueError(
            f"{stores[0].path} and {stores[1].path} share {shared:,} pairs: the held-out ones must be others."
        )
    x, y, rows = read(PairSource(train[0], train[1]))
    if not np.array_equal(rows, scored.rows):
        raise ValueError(f"the sites {sites} are of other pairs than those that were scored: extract both in one pass.")
    order, _ = replanted(len(rows), shuffle, seed)
    held = read(PairSource(clean[0], clean[1]))[:2]
    config = config or Training()
    found = retrain((x, y[torch.from_numpy(order)]), held, scored.scores, matched, share, seeds, config, track)
    return Worth(found, len(held[0]), share, asdict(config) | {"seeds": list(seeds)}, sites, clean[0].fingerprint)


def read(source: PairSource) -> tuple[Float[Tensor, "pairs d"], Float[Tensor, "pairs e"], Int[np.ndarray, "pairs"]]:
    """All pairs of rows, and the sample of each. Raises ValueError for none."""
    parts = [
        (pair.first.values.float(), pair.second.values.float(), pair.first.samples) for pair in source.sequential(4096)
    ]
    if not parts:
        raise ValueError("there is no pair to retrain on.")
    x, y, rows = (torch.cat([part[at] for part in parts]) for at in range(3))
    return x, y, rows.numpy()
