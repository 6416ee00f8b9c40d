"""How a run is read beside labels: pooled by sample, one half of the samples to fit and choose on, the other to report on."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from evals.attributes import Attributes
from evals.erasure import Images
from evals.labelled import labelled
from evals.pooling import Pool, candidates
from evals.recovery import Labelled
from evals.recovery_runs import Directions, parts
from evals.result import Estimate, Result, write_result
from vsae.activations import Select, fingerprint
from vsae.activations.store import SiteReader
from vsae.run import Run

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
NONE: Track = lambda items, what, n: items  # noqa: E731


@dataclass(frozen=True)
class Read:
    """Codes and activations of the two parts of a store, with what is known of their samples."""

    codes: tuple[Labelled, Labelled]
    dense: tuple[Labelled, Labelled]
    kinds: tuple[str, ...] | None
    splits: dict[str, Any]


def read(
    run: Run,
    site: SiteReader,
    attributes: Attributes,
    kinds: tuple[str, ...] | None,
    pooling: Pool,
    batch_size: int,
    track: Track,
) -> Read:
    """Pooled by sample: codes as `pooling` says, activations by their mean. Raises ValueError."""
    fingerprint.check(run.fingerprint, site.fingerprint)
    kinds = kinds or run.kinds
    codec = candidates(run.sae)
    identity = Directions(torch.eye(run.sae.d_model), torch.zeros(run.sae.d_model))
    selects = [Select(kinds, part, run.skip) for part in parts([run], site, site, None, None)[1:]]
    codes = [labelled(codec, site, attributes, select, pooling, batch_size, track) for select in selects]
    dense = [labelled(identity, site, attributes, select, "mean", batch_size, track, dense=True) for select in selects]
    return Read(
        (codes[0], codes[1]),
        (dense[0], dense[1]),
        kinds,
        {"train": selects[0].describe(), "test": selects[1].describe()},
    )


def means_of(found: Read) -> tuple[Images, Images]:
    """Train and test as dense means over tokens. Codes must have been pooled by mean."""
    sides = []
    for codes, dense in zip(found.codes, found.dense, strict=True):
        z = codes.scores if isinstance(codes.scores, np.ndarray) else codes.scores.toarray()
        sides.append(
            Images(np.asarray(dense.scores, np.float64), z.astype(np.float64), codes.truth.toarray().astype(bool))
        )
    return sides[0], sides[1]


def atoms_of(run: Run) -> Float[np.ndarray, "candidates d"]:
    """An atom a candidate: of a signed SAE each latent's, and its negative."""
    atoms = run.sae.atoms.detach().double().cpu().numpy()
    return np.concatenate([atoms, -atoms]) if run.sae.capabilities.signed else atoms


def write(
    out: Path,
    metric: str,
    headline: Estimate,
    n: Mapping[str, int],
    run: Run,
    site: SiteReader,
    found: Read,
    details: Any,
    seed: int,
) -> Path:
    """result.json of an evaluation that read train and test."""
    return write_result(
        out,
        Result(
            metric=metric,
            value=headline.value,
            floor=headline.floor,
            interval=headline.interval,
            n=n,
            seeds={"random latents, pairs and bootstrap": seed},
            splits=found.splits,
            normalisation=run.fingerprint["normalisation"]["mode"],
            token_kinds=list(found.kinds or site.kind_names),
            fingerprint={"sae": run.fingerprint, "store": site.fingerprint},
            details=details,
        ),
    )
