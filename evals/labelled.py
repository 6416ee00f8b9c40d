"""A site's scores beside what is known of its samples: what every evaluation against a table of attributes begins with."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from scipy.sparse import csc_array

from evals.attributes import Attributes
from evals.pooling import Pool, Pooled, pool
from evals.reconstruction import Codec
from evals.recovery import Labelled
from vsae.activations import Select
from vsae.activations.store import SiteReader

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


def labelled(
    codec: Codec,
    site: SiteReader,
    attributes: Attributes,
    select: Select,
    how: Pool = "max",
    batch_size: int = 4096,
    track: Track = lambda items, what, n: items,
    dense: bool = False,
) -> Labelled:
    """Pooled scores of the selected rows that the table knows. A table of tokens is read token by token. Raises ValueError where it knows none."""
    how = "token" if attributes.positions is not None else how
    batches = track(site.sequential(batch_size, select), "read", -(-site.n_rows // batch_size))
    return beside(pool(codec, batches, how, dense=dense), site, attributes)[0]


def beside(pooled: Pooled, site: SiteReader, attributes: Attributes) -> tuple[Labelled, int]:
    """The scores that the table knows, with what it says of them, and how many it does not know. Raises ValueError where it knows none."""
    rows = attributes.rows_of([site.keys[at] for at in pooled.samples.tolist()], pooled.positions)
    known = np.flatnonzero(rows >= 0)
    if not len(known):
        raise ValueError(
            f"the table of attributes knows none of the {len(rows):,} samples of {site.store.path}, whose first key is "
            f"{site.keys[0]!r}: its keys must be the store's."
        )
    scores = pooled.scores[known] if isinstance(pooled.scores, np.ndarray) else csc_array(pooled.scores.tocsr()[known])
    return Labelled(scores, csc_array(attributes.truth[rows[known]]), pooled.samples[known]), len(rows) - len(known)
