"""The job of `vsae eval segmentation`. Like `vsae.jobs`; field docstrings are the command line's help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class EvalSegmentation:
    """Find the latent that lines up best with each class of segmentation masks, beside neurons, PCA, k-means, semi-NMF and random directions at the run's L0.

    Latents and probes are chosen on the fit store and reported on the report store; of one store alone, on two halves of its images.
    """

    paths: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN FIT_STORE [REPORT_STORE]"), tyro.conf.Positional]
    """Directory of a trained SAE, then of the activations to choose on and to report on."""
    masks: str | None = None
    """Dataset with the masks of both stores, where it is not what they were extracted from."""
    classes: Path | None = None
    """JSON of pixel value -> name, or a list of names. Pixel values when left out."""
    ignore: tuple[int, ...] = ()
    """Pixel values that say nothing (void, unlabelled): their patches are left out."""
    label: Literal["majority", "foreground"] = "majority"
    """A patch's class: of most of its pixels, or of most of those that are not background."""
    background: int = 0
    """The pixel value that is background, for --label foreground."""
    least: float = 0.0
    """Share of a patch that must be foreground, for --label foreground."""
    dense: int = 64
    """Candidates of neurons, PCA and semi-NMF: dense ones cost most of the time."""
    out: Path | None = None
    """Where result.json and the figure go: RUN/eval/segmentation when left out."""
    resamples: int = 200
    """Of the bootstrap over images."""
    seed: int = 0
    """Of the bootstrap and the baselines."""
    batch_size: int = 4096
    """Rows a step."""
    self_check: bool = True
    """Verify on loading that the SAE still does what it did when it was saved."""
