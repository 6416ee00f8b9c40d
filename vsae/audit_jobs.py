"""Jobs of `vsae eval` that audit image generators and image-text data. Like `vsae.jobs`; field docstrings are the command line's help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class EvalBlindspots:
    """Find the concepts that image generators draw too rarely or too often, and images they may have memorised, beside what two halves of the real images do.

    Images of one key (one caption) are compared pair by pair. A signed SAE's latents count twice, once a sign.
    """

    paths: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN REAL_STORE GENERATED_STORE..."), tyro.conf.Positional]
    """Directory of a trained SAE, activations of real images, then those of each generator's."""
    control: Path | None = None
    """Activations of the real images encoded as the generators' are (size, JPEG, VAE): what only these change is called low-level."""
    out: Path | None = None
    """Where result.json and the figures go: RUN/eval/blindspots when left out."""
    temperature: float = 1.0
    """T of delta = sigmoid((generated - real) / T). Delta means nothing without it; the relative difference and p do."""
    energy: Literal["mean", "paper_sum"] = "mean"
    """An image's energy: mean over its tokens, or their sum as in the paper's code."""
    kinds: tuple[str, ...] | None = None
    """Token kinds; patches where there are any, when left out."""
    least_change: float = 0.1
    """Smallest |relative difference| that counts: a paired test sees changes that nobody cares about."""
    alpha: float = 0.05
    """False discovery rate."""
    permutations: int | None = None
    """As many as a lone change among the tested concepts needs, when left out."""
    min_samples: int = 10
    """Concepts that fewer images have are not tested."""
    merge: float = 0.9
    """Latents whose atoms have a larger cosine count as one concept; 1: none."""
    resamples: int = 200
    """Of the bootstrap over images."""
    seed: int = 0
    """Of permutations, bootstrap and splits."""
    batch_size: int = 4096
    """Rows a step."""
    self_check: bool = True
    """Verify on loading that the SAE still does what it did when it was saved."""


@dataclass(frozen=True)
class EvalFiltering:
    """Score image-text pairs by an SAE's codes, and measure how well the scores find mismatched pairs, beside CLIP score or raw cosine, length and chance.

    SAE-V: a run on a site of an image-text model, whose samples have image and text tokens. VL-SAE: a run on image_embedding+text_embedding.
    """

    run: tyro.conf.Positional[Path]
    """Directory of a trained SAE."""
    store: tyro.conf.Positional[Path]
    """Activations of the pairs."""
    labels: str | None = None
    """Dataset whose records say what is mismatched; the store's own when left out."""
    field: str = "corruption"
    """Field of the record: null, false or absent for a matched pair, anything else for a mismatched one."""
    shuffle: float = 0.0
    """VL-SAE only: instead, give this share of the images another's caption."""
    fit_samples: int = 1000
    """SAE-V: samples that the cross-modal weights are fitted on."""
    out: Path | None = None
    """Where result.json, scores.json and the figure go: RUN/eval/filtering when left out."""
    resamples: int = 200
    """Of the bootstrap over pairs."""
    seed: int = 0
    """Of bootstrap, planting and the random score."""
    batch_size: int = 4096
    """Rows a step."""
    self_check: bool = True
    """Verify on loading that the SAE still does what it did when it was saved."""
