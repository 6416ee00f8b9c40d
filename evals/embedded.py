"""The same images by another encoder: the mean of each sample's rows in its store, found by key."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64

from evals.pooling import pool
from evals.recovery_runs import Directions
from vsae.activations import Select
from vsae.activations.store import SiteReader

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


def embedded(
    encoder: SiteReader,
    keys: Sequence[str],
    part: tuple[float, float] = (0.0, 1.0),
    batch_size: int = 4096,
    track: Track = lambda items, what, n: items,
) -> tuple[Int64[np.ndarray, "found"], Float[np.ndarray, "found d_encoder"]]:
    """(rows, embeddings): which of `keys` the encoder's store has in this part, and its embeddings of these. Raises ValueError for fewer than two."""
    identity = Directions(torch.eye(encoder.d_model), torch.zeros(encoder.d_model))
    batches = track(encoder.sequential(batch_size, Select(None, part)), "embeddings", -(-encoder.n_rows // batch_size))
    found = pool(identity, batches, "mean", dense=True)
    assert isinstance(found.scores, np.ndarray)
    place = {encoder.keys[at]: row for row, at in enumerate(found.samples.tolist())}
    rows = np.array([row for row, key in enumerate(keys) if key in place], np.int64)
    if len(rows) < 2:
        raise ValueError(
            f"{encoder.store.path} has {len(rows)} of the {len(keys):,} samples that are measured, by key: extract both stores from the same images."
        )
    return rows, found.scores[[place[keys[row]] for row in rows.tolist()]]
