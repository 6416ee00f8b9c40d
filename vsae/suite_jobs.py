"""Jobs of `vsae eval` that run the model, or look at dictionaries themselves. Like `vsae.jobs`; field docstrings are the command line's help."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vsae.jobs import Options


@dataclass(frozen=True)
class EvalFaithfulness:
    """Put an SAE's reconstruction in the model's place and measure what is left of its answers, beside PCA, mean and zero ablation.

    Language and image-text models: the next token. CLIP: images against class prompts, or against all captions. Image backbones: their own head, or a
    probe of the labels. Diffusion: the images.
    """

    run: tyro.conf.Positional[Path]
    """Directory of a trained SAE."""
    data: tyro.conf.Positional[str]
    """What the model is asked about: any dataset that `vsae extract` takes."""
    name: str | None = None
    """Where the run's model is, when it is no longer where it was."""
    options: Options = field(default_factory=dict)
    """Of the model, as in vsae extract."""
    img_size: int | tuple[int, int] | None = None
    """Input size that activations were extracted at, where it is not the model's own."""
    device: str = "auto"
    """auto (cuda when there is one), cpu, cuda, cuda:1 ..."""
    kinds: tuple[str, ...] | None = None
    """Token kinds to substitute; those the SAE was trained on when left out."""
    samples: int = 512
    """At most so many are asked about."""
    fit_samples: int = 256
    """PCA, means and probe are fitted on so many others."""
    head: Literal["auto", "own", "probe"] = "auto"
    """Image backbones: what classifies. auto: a probe where the data have labels, else the model's own head, held against its own answers."""
    template: str = "a photo of a {}."
    """CLIP: the prompt of a class."""
    painting: Options = field(default_factory=dict)
    """Text encoders of a pipeline: its options, as num_inference_steps=20."""
    side: int = 0
    """Of a run on two sites (vl_sae): which, 0 or 1."""
    out: Path | None = None
    """Where result.json and the figure go: RUN/eval/faithfulness when left out."""
    resamples: int = 200
    """Of the bootstrap over samples."""
    seed: int = 0
    """Of the bootstrap, and of painted images."""
    batch_size: int = 8
    """Samples a forward pass."""
    self_check: bool = True
    """Verify on loading that the SAE still does what it did when it was saved."""


@dataclass(frozen=True)
class EvalDarkMatter:
    """Split what an SAE leaves out into a part that is linear in the activations and one that is not, for each token kind."""

    run: tyro.conf.Positional[Path]
    """Directory of a trained SAE."""
    store: tyro.conf.Positional[Path]
    """Activations: half of the samples (of the SAE's own store, of those held out) to fit on, half to measure."""
    kinds: tuple[str, ...] | None = None
    """Token kinds; those the SAE was trained on when left out."""
    others: tuple[Path, ...] = ()
    """Runs of the same activations, of other widths: how well this one's error predicts the norm of theirs."""
    pursuit: bool = False
    """Measure its atoms under gradient pursuit, too, as many steps as its L0: the same dictionary with a better encoder. Slow."""
    out: Path | None = None
    """Where result.json and the figure go: RUN/eval/dark_matter when left out."""
    resamples: int = 200
    """Of the bootstrap over samples."""
    seed: int = 0
    """Of bootstrap and shuffle."""
    batch_size: int = 4096
    """Rows a step."""
    self_check: bool = True
    """Verify on loading that the SAE still does what it did when it was saved."""


@dataclass(frozen=True)
class EvalStability:
    """Compare the dictionaries of runs that differ in their seed, beside untrained ones of the same make and random directions."""

    paths: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN RUN... STORE"), tyro.conf.Positional]
    """Directories of two runs or more, then that of the store they were trained on, from which the untrained dictionaries are built."""
    out: Path | None = None
    """Where result.json and the figure go: eval/stability of the first RUN when left out."""
    seed: int = 0
    """Of the random directions."""
    self_check: bool = True
    """Verify on loading that the SAE still does what it did when it was saved."""


@dataclass(frozen=True)
class EvalSimilarity:
    """Compare models, layers or checkpoints by the rows of the same data that became atoms of their ITDA dictionaries (Jaccard), beside rows chosen at random."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of itda runs on the same data."""
    against: tuple[Path, ...] = ()
    """Compare them with these runs in place of each other: as many, in the same order, also say how often counterparts are each other's nearest."""
    prefixes: tuple[int, ...] = ()
    """Tokens before the first patch (class token, registers) in the model of each run, those of --against last: positions are counted from there."""
    rows: int | None = None
    """Rows that each was grown on, where the runs (imported ones) do not say."""
    out: Path | None = None
    """Where result.json and the figure go: eval/similarity of the first run when left out."""
    resamples: int = 1000
    """Of the bootstrap over samples."""
    seed: int = 0
    """Of the bootstrap."""
    self_check: bool = True
    """Verify on loading that the SAE still does what it did when it was saved."""


@dataclass(frozen=True)
class EvalGeometry:
    """Measure a dictionary's shape (ranks, coherence, Babel, distance from the data) and how its latents fire together, beside random directions."""

    run: tyro.conf.Positional[Path]
    """Directory of a trained SAE."""
    store: tyro.conf.Positional[Path]
    """Activations to measure on."""
    directions: Path | None = None
    """Safetensors with NAME.weight [some, d_model], as a classifier's: adds plausibility."""
    directions_name: str = "classifier"
    """NAME in that file."""
    attributes: str | None = None
    """What is true of each sample, as for vsae eval recovery: adds identifiability."""
    field: str = "attributes"
    """Field of the json or .jsonl that holds them."""
    pooling: Literal["max", "mean"] = "max"
    """Identifiability: how tokens become one score a sample."""
    rows: int = 65_536
    """Random rows of the data that atoms are compared with."""
    out: Path | None = None
    """Where result.json and the figure go: RUN/eval/geometry when left out."""
    resamples: int = 200
    """Of identifiability's bootstrap over samples."""
    seed: int = 0
    """Of random directions, rows and bootstrap."""
    batch_size: int = 4096
    """Rows a step."""
    self_check: bool = True
    """Verify on loading that the SAE still does what it did when it was saved."""


@dataclass(frozen=True)
class EvalAttentionHeads:
    """Tell which attention head each latent reads, and how many unrelated latents a head has, beside random directions.

    For an SAE of an attention's output with heads side by side: the input of its last projection, as blocks.8.attn.proj:input.
    """

    run: tyro.conf.Positional[Path]
    """Directory of a trained SAE."""
    store: tyro.conf.Positional[Path]
    """Activations to measure on."""
    heads: int
    """Heads of the attention."""
    top: int = 10
    """Latents a head that are asked whether they are related."""
    cosine: float = 0.5
    """They are where their parts in the head have a larger |cosine|, directly or through others."""
    kinds: tuple[str, ...] | None = None
    """Token kinds; those the SAE was trained on when left out."""
    out: Path | None = None
    """Where result.json and the figure go: RUN/eval/attention_heads when left out."""
    resamples: int = 200
    """Of the bootstrap over heads."""
    seed: int = 0
    """Of random directions and bootstrap."""
    batch_size: int = 4096
    """Rows a step."""
    self_check: bool = True
    """Verify on loading that the SAE still does what it did when it was saved."""


@dataclass(frozen=True)
class EvalMonosemanticity:
    """Score how alike the images are that each latent likes, by another encoder's embeddings, beside raw neurons and the mean cosine of all pairs."""

    run: tyro.conf.Positional[Path]
    """Directory of a trained SAE."""
    store: tyro.conf.Positional[Path]
    """Activations to measure on."""
    encoder: tyro.conf.Positional[Path]
    """Store of the same images by another encoder; an image's embedding is the mean of its rows."""
    encoder_site: str | None = None
    """Which site of ENCODER; may be left out when there is one."""
    pooling: Literal["max", "mean"] = "mean"
    """How an image's tokens become one activation."""
    kinds: tuple[str, ...] | None = None
    """Token kinds; those the SAE was trained on when left out."""
    out: Path | None = None
    """Where result.json and the figure go: RUN/eval/monosemanticity when left out."""
    resamples: int = 200
    """Of the bootstrap over latents."""
    seed: int = 0
    """Of the bootstrap."""
    batch_size: int = 4096
    """Rows a step."""
    self_check: bool = True
    """Verify on loading that the SAE still does what it did when it was saved."""


@dataclass(frozen=True)
class EvalModality:
    """Tell latents of images, of texts and of both apart, beside what pairs exchanged at random would share.

    A run on a site of an image-text model, whose samples have tokens of both; or of two sites (vl_sae), such as image_embedding+text_embedding.
    """

    run: tyro.conf.Positional[Path]
    """Directory of a trained SAE."""
    store: tyro.conf.Positional[Path]
    """Activations of image-text pairs."""
    image_kinds: tuple[str, ...] = ("image", "patch")
    """Token kinds of images; of a run on one site."""
    text_kinds: tuple[str, ...] = ("text",)
    """Token kinds of texts."""
    encoder: Path | None = None
    """Store of the same images and texts by an encoder that puts both into one space, such as a CLIP: are the images and texts of a latent alike?"""
    encoder_sites: tuple[str, str] = ("image_embedding", "text_embedding")
    """Its sites of images and of texts."""
    top: int = 10
    """Images and texts a latent that are compared by the encoder."""
    rate: float = 1e-4
    """A latent is of a modality when it fires on more than this share of its tokens."""
    alpha: float = 0.05
    """False discovery rate among shared latents."""
    out: Path | None = None
    """Where result.json and the figure go: RUN/eval/modality when left out."""
    resamples: int = 200
    """Of the bootstrap over latents."""
    seed: int = 0
    """Of re-pairing and bootstrap."""
    batch_size: int = 4096
    """Rows a step."""
    self_check: bool = True
    """Verify on loading that the SAE still does what it did when it was saved."""
