"""Jobs of `vsae eval` that put latents into words. Like `vsae.jobs`; field docstrings are the command line's help."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vsae.jobs import Options


@dataclass(frozen=True)
class EvalNaming:
    """Name each latent by the word whose CLIP text embedding is nearest, beside names of what means nothing (Discover-then-Name)."""

    run: tyro.conf.Positional[Path]
    """Directory of a trained SAE."""
    store: tyro.conf.Positional[Path]
    """Activations of images to name by."""
    encoder: tyro.conf.Positional[Path]
    """Store of the same images' image_embedding by a CLIP; STORE itself where it holds them."""
    encoder_site: str | None = None
    """Which site of ENCODER; image_embedding, or NAME/image_embedding, when left out."""
    name: str | None = None
    """Where that CLIP is, when it is no longer where it was."""
    options: Options = field(default_factory=dict)
    """Of the CLIP, as in vsae extract."""
    words: Path | None = None
    """Vocabulary: a text file with a name a line, synonyms behind it after commas. Left out: 517 words for what photographs and drawings show."""
    template: str = "{}"
    """What stands around a word, as in 'a photo of a {}'."""
    by: Literal["auto", "images", "atoms"] = "auto"
    """images: the mean embedding of the images a latent is active on. atoms: its direction, for SAEs on image_embedding itself (auto's choice there)."""
    attributes: str | None = None
    """What is true of each sample, as for vsae eval recovery: adds how many names are right. 'own': the json of STORE's own images."""
    field: str = "attributes"
    """Field of the json or .jsonl that holds them."""
    least: float = 0.5
    """A latent stands for the attribute with the largest AP above prevalence, (AP - p) / (1 - p), where that is so much or more."""
    pooling: Literal["max", "mean"] = "max"
    """How tokens become one activation an image."""
    kinds: tuple[str, ...] | None = None
    """Token kinds; those the SAE was trained on when left out."""
    device: str = "auto"
    """Of the CLIP: auto (cuda when there is one), cpu, cuda, cuda:1 ..."""
    out: Path | None = None
    """Where result.json, names.parquet and the figure go: RUN/eval/naming when left out."""
    resamples: int = 200
    """Of the bootstrap over latents."""
    seed: int = 0
    """Of the floor and the bootstrap."""
    batch_size: int = 4096
    """Rows a step."""
    self_check: bool = True
    """Verify on loading that the SAE still does what it did when it was saved."""


@dataclass(frozen=True)
class EvalExplaining:
    """Let a language or image-text model explain latents, and score the explanations by detection, fuzzing, intruder and embedding, beside a null judge."""

    run: tyro.conf.Positional[Path]
    """Directory of a trained SAE."""
    store: tyro.conf.Positional[Path]
    """Activations: half of the samples (of the SAE's own store, of those held out) to explain by, half to ask about."""
    judge: str
    """The judge: a hub name of transformers or a directory; for llm a .gguf file, too."""
    family: Literal["llava", "llm"] = "llava"
    """llava: an image-text model, which sees the pictures. llm: a language model, with --captions."""
    judge_options: Options = field(default_factory=dict)
    """Of the judge, as in vsae extract."""
    captions: bool = False
    """Samples are their captions or texts instead of their pictures. Fuzzing is left out but where STORE is of a language model (llm)."""
    name: str | None = None
    """Where the language model of STORE is, when it is no longer where it was: texts are shown as it read them."""
    explanations: Path | None = None
    """names.parquet of vsae eval naming, or a .json of latent -> words: score these instead of the judge's own."""
    encoder: Path | None = None
    """Store of the same images' image_embedding by a CLIP, or with --captions of the same texts' text_embedding: adds embedding scores."""
    encoder_site: str | None = None
    """Which site of it; image_embedding (text_embedding), or NAME/image_embedding, when left out."""
    encoder_name: str | None = None
    """Where that CLIP is, when it is no longer where it was."""
    prompts: Path | None = None
    """YAML of prompts in place of our own (result.json has those that were used): explain, detection, fuzzing, intruder; with --captions ..._texts, and explain_marked where tokens are known."""
    latents: int = 20
    """So many at random."""
    shown: int = 8
    """Samples to explain a latent by."""
    asked: int = 10
    """Active samples to ask about, and as many silent ones."""
    data: str | None = None
    """Where the images are, when they are no longer where they were."""
    kinds: tuple[str, ...] | None = None
    """Token kinds; those the SAE was trained on when left out."""
    device: str = "auto"
    """Of the judge: auto (cuda when there is one), cpu, cuda, cuda:1 ..."""
    judge_batch: int = 8
    """Questions a forward pass."""
    out: Path | None = None
    """Where result.json, asked.jsonl and the figure go: RUN/eval/explaining when left out."""
    resamples: int = 200
    """Of the bootstrap over latents."""
    seed: int = 0
    """Of latents, samples, places and bootstrap."""
    batch_size: int = 4096
    """Rows a step."""
    self_check: bool = True
    """Verify on loading that the SAE still does what it did when it was saved."""


@dataclass(frozen=True)
class EvalContents:
    """Say what one collection of images or texts holds more of than another, latent by latent, and which latents go together in the first."""

    paths: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN FIRST_STORE SECOND_STORE"), tyro.conf.Positional]
    """Directory of a trained SAE, and the activations of two collections."""
    names: Path | None = None
    """names.parquet of vsae eval naming, or a .json of latent -> words, to say them by."""
    kinds: tuple[str, ...] | None = None
    """Token kinds; those the SAE was trained on when left out."""
    alpha: float = 0.05
    """False discovery rate."""
    min_samples: int = 10
    """Latents that fewer samples activate are not tested."""
    pairs: int = 50
    """Pairs of latents that result.json lists."""
    out: Path | None = None
    """Where result.json and the figure go: RUN/eval/contents when left out."""
    resamples: int = 200
    """Of the bootstrap over samples."""
    seed: int = 0
    """Of floors and bootstrap."""
    batch_size: int = 4096
    """Rows a step."""
    self_check: bool = True
    """Verify on loading that the SAE still does what it did when it was saved."""


@dataclass(frozen=True)
class EvalClustering:
    """Cluster images or texts by the latents they activate, say which latents mark each cluster, and find samples by latents or by a sample."""

    run: tyro.conf.Positional[Path]
    """Directory of a trained SAE."""
    store: tyro.conf.Positional[Path]
    """Activations; of the SAE's own store the samples held out."""
    attributes: str | None = None
    """What is true of each sample, to compare clusters with: .json, .jsonl, .parquet or a dataset; "own" for the json of STORE's own images."""
    field: str = "attributes"
    """Field of the json or .jsonl that holds them."""
    groups: tuple[str, ...] = ()
    """Attributes of exclusive values, GROUP:VALUE in the table; all of them when left out."""
    clusters: int | None = None
    """As many as the first group has values when left out, or 8."""
    weighting: Literal["binary", "tf-idf", "activation"] = "tf-idf"
    """Of the latents of a sample."""
    latents: tuple[int, ...] | None = None
    """Latents to cluster and compare by; all when left out."""
    like: str | None = None
    """Key of a sample: list those most like it."""
    find: tuple[int, ...] = ()
    """Latents: list the samples with most of them."""
    k: int = 10
    """Of precision@k."""
    names: Path | None = None
    """names.parquet of vsae eval naming, or a .json of latent -> words, to say them by."""
    kinds: tuple[str, ...] | None = None
    """Token kinds; those the SAE was trained on when left out."""
    out: Path | None = None
    """Where result.json and the figure go: RUN/eval/clustering when left out."""
    resamples: int = 200
    """Of the bootstrap over samples."""
    seed: int = 0
    """Of k-means, halves, permuted labels and bootstrap."""
    batch_size: int = 4096
    """Rows a step."""
    self_check: bool = True
    """Verify on loading that the SAE still does what it did when it was saved."""
