"""Jobs that audit image generators and image-text data, and filter it. Like `vsae.jobs`; field docstrings are the command line's help."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vsae.jobs import Model, Options


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
    retrain: str | None = None
    """VL-SAE only: two sites A+B of STORE whose rows two linear projections are retrained from, on what each score keeps, on all and on random pairs."""
    clean: Path | None = None
    """Activations of other, matched pairs, for --retrain: what the projections are searched with."""
    keep: float = 0.7
    """Share of the pairs that a score keeps, for --retrain."""
    retrain_seeds: int = 3
    """Trainings of each, for --retrain."""
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


@dataclass(frozen=True)
class Filter:
    """Keep the image-text pairs whose image and text agree: filtered data in the format it came in, the score of every sample, and a page to look at.

    Interrupted runs go on where they were. Several processes share the work: accelerate launch --multi_gpu --num_processes 2 -m vsae.cli filter ...
    """

    data: str
    """Webdataset shards (a .tar, a folder of them, or name-{000..009}.tar) or a list of pairs or LLaVA conversations (.jsonl, .json, .csv, .parquet)."""
    model: Model
    """The model that the run reads."""
    out: Path
    """Directory of what is written: shards/, scores.parquet, report/."""
    run: Path | None = None
    """Directory of a trained SAE: VL-SAE on image_embedding+text_embedding of a clip model, or any on a site of a llava model's token stream."""
    train: bool = False
    """Instead of a run: train one on the data first (vl_sae on a clip model's embeddings, topk on --site of a llava model)."""
    site: str | None = None
    """With --train on a llava model: where to read."""
    skip: int = 0
    """With --train on a llava model: leave out the first so many tokens of every sample, here and in the scores. 1: the first has a norm that takes over a dictionary."""
    latents: int = 1024
    """With --train: concepts of the SAE."""
    k: int = 32
    """With --train: concepts a token."""
    tokens: int = 2_000_000
    """With --train: rows to train on."""
    method: str | None = None
    """Score to keep by. VL-SAE: agreement (default), clip. Token streams (SAE-V): both (default), union, per_token, cooccurring, l0, l1. Either: length, random."""
    share: float | None = None
    """Keep this share of the samples, the best."""
    count: int | None = None
    """Or this many."""
    threshold: float | None = None
    """Or all that score this or more."""
    stratify: Literal["none", "length", "source"] = "none"
    """Compare each sample with those of like length, or of its own source, only."""
    source_field: str | None = None
    """Field of a sample's json (or column of the list) that is its source; the shard it is in, when left out."""
    truth_field: str = "corruption"
    """Field that says, where it is known, what is wrong with a pair: null or absent for nothing. The page then shows how well each score finds it."""
    scores_only: bool = False
    """Write scores.parquet and the page, but no filtered data."""
    fit_samples: int = 1000
    """Token streams: samples that the cross-modal weights are fitted on."""
    batch_size: int = 32
    """Samples a forward pass."""
    workers: int = 2
    """Threads that decode and preprocess."""
    seed: int = 0
    """Of the random score, and of the pictures shown."""
    self_check: bool = True
    """Verify on loading that the SAE still does what it did when it was saved."""


@dataclass(frozen=True)
class Audit:
    """Audit image generators: which concepts of the real images they draw too rarely or too often, and which images they copy. Writes a page to look at.

    The generated images are either there (--generated), or drawn by a diffusers pipeline from the captions of the real ones (--pipelines). Interrupted
    runs go on where they were.
    """

    real: str
    """Real images: a folder, webdataset shards or a list. Captions are needed where something is to be generated."""
    model: Model
    """The model that looks at the images, real and generated."""
    out: Path
    """Directory of what is written: images, stores, result.json, concepts.parquet and .json, report/."""
    generated: tuple[str, ...] = ()
    """Images of one or more generators. Where their keys are those of the real images (one caption, one key), they are compared pair by pair."""
    pipelines: tuple[str, ...] = ()
    """Diffusers pipelines, by hub name or directory, that draw an image for each caption."""
    run: Path | None = None
    """Directory of an SAE trained on a site of MODEL."""
    train: bool = False
    """Instead of a run: train one (ra_topk) on half of the real images; the other half is compared."""
    site: str | None = None
    """With --train: where to read."""
    skip: int = 0
    """With --train: leave out the first so many tokens of every image, here and wherever the SAE is used."""
    latents: int = 1024
    """With --train: concepts of the SAE."""
    k: int = 16
    """With --train: concepts a token."""
    tokens: int = 1_000_000
    """With --train: rows to train on."""
    images: int | None = None
    """Only the first so many real images."""
    names: str | None = None
    """A CLIP that names the concepts by its nearest words: an open_clip or hub name, or a directory. Left out: concepts have no names."""
    names_options: Options = field(default_factory=dict)
    """Of that CLIP, as pretrained=laion2b_s34b_b79k."""
    names_template: str = "{}"
    """What stands around a word, as in 'a photo of a {}'."""
    words: Path | None = None
    """Vocabulary of the names: a text file with a name a line, synonyms behind it after commas. Left out: 517 words for what photographs and drawings show."""
    control_jpeg: int | None = 75
    """The low-level control: the real images as JPEG of this quality, ..."""
    control_side: int | None = None
    """... made no larger than this first. Give the generated images' size where it is smaller than the real ones'."""
    seed: int = 0
    """Of generation, training, permutations and bootstrap."""
    steps: int = 30
    """Of the pipelines' denoising."""
    guidance: float = 5.0
    """Of the pipelines."""
    temperature: float = 1.0
    """T of delta = sigmoid((generated - real) / T)."""
    least_change: float = 0.1
    """Smallest |relative difference| that counts."""
    alpha: float = 0.05
    """False discovery rate."""
    batch_size: int = 32
    """Images a forward pass."""
    workers: int = 2
    """Threads that decode and preprocess."""
    shown: int = 24
    """Concepts of each generator that the page shows with pictures."""
    self_check: bool = True
    """Verify on loading that the SAE still does what it did when it was saved."""
