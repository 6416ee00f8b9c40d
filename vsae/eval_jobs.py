"""Jobs of `vsae eval` that measure runs on stores: reconstruction, recovery, ood. Like `vsae.jobs`; field docstrings are the command line's help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class EvalReconstruction:
    """Measure reconstruction and sparsity on held-out activations, beside PCA and k-means."""

    run: tyro.conf.Positional[Path]
    """Directory of a trained SAE."""
    store: tyro.conf.Positional[Path]
    """Activations to measure on."""
    out: Path | None = None
    """Where result.json and the figures go: RUN/eval/reconstruction when left out."""
    fit_store: Path | None = None
    """Store that PCA and k-means are fitted on. Left out: the part of STORE that the SAE was trained on, if it is its own store; else no baselines."""
    kinds: tuple[str, ...] | None = None
    """Token kinds; those the SAE was trained on when left out."""
    fit_rows: int = 65_536
    """Random rows that k-means is fitted on; PCA is fitted on all."""
    kmeans: int | None = None
    """Centroids of the k-means baselines; as many as the SAE has latents when left out."""
    seed: int = 0
    """Of the bootstrap and of k-means."""
    batch_size: int = 4096
    """Rows a step."""
    self_check: bool = True
    """Verify on loading that the SAE still does what it did when it was saved."""


@dataclass(frozen=True)
class EvalRecovery:
    """Find the latents that stand for known attributes, beside random directions, raw neurons and PCA. Several runs of one recipe are summed up over seeds.

    With --all instead: train every recipe on planted features and score what each recovers (vsae eval recovery --all --help).
    """

    paths: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN... STORE"), tyro.conf.Positional]
    """Directories of trained SAEs of one site, then that of the activations to measure on."""
    attributes: str | None = None
    """What is true of each sample: .json, .jsonl or .parquet with a column key, or a dataset. Left out: the json of STORE's own images."""
    field: str = "attributes"
    """Field of the json or .jsonl that holds them."""
    hierarchy: Path | None = None
    """JSON of parent -> [children] among the attributes: adds the parents, and measures absorption."""
    out: Path | None = None
    """Where result.json and the figure go: eval/recovery of the first RUN when left out."""
    fit_store: Path | None = None
    """Store that PCA is fitted on. Left out: the part of STORE that the SAE was trained on, or a fifth of it."""
    pooling: Literal["max", "mean"] = "max"
    """How tokens become one score a sample. A table with positions is read token by token."""
    kinds: tuple[str, ...] | None = None
    """Token kinds; those the SAE was trained on when left out."""
    min_positives: int = 10
    """Attributes that fewer rows have, or lack, are left out."""
    resamples: int = 200
    """Of the bootstrap over samples."""
    seed: int = 0
    """Of the bootstrap, the random baselines and the shuffle."""
    batch_size: int = 4096
    """Rows a step."""
    self_check: bool = True
    """Verify on loading that the SAE still does what it did when it was saved."""


@dataclass(frozen=True)
class EvalOod:
    """Tell images out of distribution from those in it, by the codes of runs and by dense features. Several runs are summed up over seeds."""

    paths: Annotated[
        tuple[Path, ...], tyro.conf.arg(metavar="RUN... TRAIN_STORE IN_STORE OUT_STORE..."), tyro.conf.Positional
    ]
    """Directories of trained SAEs of one site, then of stores: to fit on, in distribution, and one or more out of it."""
    near: tuple[str, ...] = ()
    """Names of the folders of those OUT_STOREs that are near; the others are far."""
    classes: Literal["probe", "nearest"] = "probe"
    """How an image gets its class: a linear probe on the features, or the nearest class activation profile."""
    head: Path | None = None
    """Safetensors with NAME.weight [classes, d_model] and NAME.bias: the model's own classifier, in place of a probe."""
    head_name: str = "classifier"
    """NAME in that file."""
    top: float = 0.15
    """Share of latents in a class's mask."""
    neighbours: int = 10
    """kNN: distance to this neighbour."""
    out: Path | None = None
    """Where result.json and the figure go: eval/ood of the first RUN when left out."""
    kinds: tuple[str, ...] | None = None
    """Token kinds, of which an image's features and codes are means; those the SAE was trained on when left out."""
    resamples: int = 200
    """Of the bootstrap over images."""
    seed: int = 0
    """Of the bootstrap, and of the clusters that stand for classes where there are no labels."""
    batch_size: int = 4096
    """Rows a step."""
    self_check: bool = True
    """Verify on loading that the SAE still does what it did when it was saved."""
