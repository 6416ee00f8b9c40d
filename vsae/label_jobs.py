"""Jobs of `vsae eval` that hold latents against labels. Like `vsae.jobs`; field docstrings are the command line's help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from vsae.jobs import Model


@dataclass(frozen=True)
class OfLabels:
    """What all of these but zero_shot take."""

    run: tyro.conf.Positional[Path]
    """Directory of a trained SAE."""
    store: tyro.conf.Positional[Path]
    """Activations: half of the samples (of the SAE's own store, of those held out) to fit and choose on, half to report on."""
    attributes: str | None = None
    """What is true of each sample: .json, .jsonl or .parquet with a column key, or a dataset. Left out: the json of STORE's own images."""
    field: str = "attributes"
    """Field of the json or .jsonl that holds them."""
    kinds: tuple[str, ...] | None = None
    """Token kinds; those the SAE was trained on when left out."""
    resamples: int = 200
    """Of the bootstrap."""
    batch_size: int = 4096
    """Rows a step."""
    self_check: bool = True
    """Verify on loading that the SAE still does what it did when it was saved."""


@dataclass(frozen=True)
class EvalProbing(OfLabels):
    """Probe a few latents for every attribute, beside raw neurons, dense probes, PCA and kNN, with many, few, imbalanced and noisy labels."""

    k: tuple[int, ...] = (1, 2, 5, 16)
    """Numbers of latents."""
    scarce: int = 32
    """Training samples of the scarce regime."""
    imbalanced: float = 0.05
    """Share of positives in the imbalanced regime."""
    noisy: float = 0.3
    """Share of training labels turned over in the noisy regime."""
    most: int = 4000
    """Training samples in any regime."""
    pooling: Literal["max", "mean"] = "max"
    """How tokens become one code a sample; activations are always their mean."""
    min_positives: int = 10
    """Attributes that fewer samples have, or lack, are left out."""
    nonlinear: bool = False
    """Add gradient-boosted trees and an MLP to the dense probes: slow."""
    out: Path | None = None
    """Where result.json and the figure go: RUN/eval/probing when left out."""
    seed: int = 0
    """Of regimes, validation samples and bootstrap."""


@dataclass(frozen=True)
class EvalSeparability(OfLabels):
    """Measure how apart latents keep exclusive classes (Jensen-Shannon distance), and what suppressing a class costs it and the others."""

    group: str | None = None
    """The attributes GROUP:... are the classes, as in shape:star; all attributes when left out."""
    top: int = 5
    """Latents that masking silences."""
    out: Path | None = None
    """Where result.json and the figure go: RUN/eval/separability when left out."""
    seed: int = 0
    """Of permuted labels, random latents and bootstrap."""


@dataclass(frozen=True)
class EvalErasure(OfLabels):
    """Take concepts out of activations latent by latent: targeted probe perturbation, spurious correlation removal, and absorption, beside random latents."""

    group: str | None = None
    """Only the attributes GROUP:..., as in shape:star; all when left out."""
    n: tuple[int, ...] = (2, 5, 10, 20, 50, 100, 500)
    """Numbers of latents to ablate. The headline is at the largest that is 20 at most."""
    most_pairs: int = 50
    """Pairs of attributes whose correlation is removed, at random."""
    min_positives: int = 10
    """Attributes that fewer samples have, or lack, are left out."""
    out: Path | None = None
    """Where result.json and the figure go: RUN/eval/erasure when left out."""
    seed: int = 0
    """Of pairs, random latents and bootstrap."""


@dataclass(frozen=True)
class EvalSupervised(OfLabels):
    """Hold an SAE against a dictionary that knows the attributes: how well each approximates activations, and how well each controls a probe."""

    groups: tuple[str, ...] = ()
    """Attributes of several exclusive values, GROUP:VALUE in the table; all of which samples have one value at most when left out."""
    n: int = 4
    """Latents that are exchanged in an edit."""
    pairs: int = 200
    """Edits an attribute."""
    out: Path | None = None
    """Where result.json and the figure go: RUN/eval/supervised when left out."""
    seed: int = 0
    """Of pairs, random latents and bootstrap."""


@dataclass(frozen=True)
class EvalOntology(OfLabels):
    """Find how deep in a taxonomy the nodes are that latents stand for, beside raw neurons and permuted labels."""

    hierarchy: Path | None = None
    """JSON of parent -> [children] among the attributes, a tree. Must be given."""
    top: int = 16
    """Samples a latent is judged by; latents that fewer activate are left out."""
    pooling: Literal["max", "mean"] = "max"
    """How tokens become one score a sample."""
    out: Path | None = None
    """Where result.json and the figure go: RUN/eval/ontology when left out."""
    seed: int = 0
    """Of permuted labels and bootstrap."""


@dataclass(frozen=True)
class EvalZeroShot:
    """Classify images by the text of their class with a CLIP, with and without the cosine of a VL-SAE's codes, whose weight is chosen on other images."""

    run: tyro.conf.Positional[Path]
    """Directory of a VL-SAE on image_embedding+text_embedding."""
    data: tyro.conf.Positional[str]
    """Labelled images: a folder with a folder a class, shards or a list with labels."""
    model: Model
    """The CLIP that the run reads."""
    label: str | None = None
    """Field of the json, or column of the list, that holds the label."""
    phrase: str = "a photo of a {}"
    """The text of a class."""
    out: Path | None = None
    """Where result.json goes: RUN/eval/zero_shot when left out."""
    resamples: int = 500
    """Of the bootstrap over images."""
    seed: int = 0
    """Of the bootstrap, and of the exchanged classes."""
    batch_size: int = 64
    """Images a forward pass."""
    self_check: bool = True
    """Verify on loading that the SAE still does what it did when it was saved."""
