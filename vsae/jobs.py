"""What a person can ask for, one dataclass a command. Field docstrings are the command line's help."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vsae.training.config import TrainConfig


def options_of(words: Sequence[str]) -> dict[str, Any]:
    """`name=value` words as a dictionary; values are JSON where they can be, else the text itself. Raises ValueError for another word."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise ValueError(f"'{word}' is no option: write name=value, as in length=256.")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


Options = Annotated[
    dict[str, Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME=VALUE",
        instance_from_str=options_of,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [f"{name}={json.dumps(of)}" for name, of in value.items()],
    ),
]
"""In a YAML file a mapping, on the command line words."""


def swept(given: Sequence[str]) -> dict[str, Any]:
    from vsae.sweeps import words  # which knows recipes and runs, and so takes a second to import

    return words(given)


Grid = Annotated[
    dict[str, Any] | list[dict[str, Any]] | None,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME=VALUE,VALUE",
        instance_from_str=swept,
        is_instance=lambda value: value is None or isinstance(value, dict | list),
        str_from_instance=lambda value: [json.dumps(value)],
    ),
]
"""In a YAML file a mapping of lists (every combination) or a list of mappings (these), on the command line words."""


@dataclass(frozen=True)
class Model:
    """The model to read."""

    family: Literal["vision", "dinov2", "clip", "llava", "diffusion", "llm"]
    """vision (or dinov2): image backbones of timm and transformers. clip: image-text dual encoders. llava: image-text-to-text models.
    diffusion: the text encoders of a diffusers pipeline, or its denoiser. llm: causal language models."""
    name: str
    """A hub name (timm, transformers, open_clip, diffusers) or a local directory in the library's own format; for llm a .gguf file, too."""
    options: Options = field(default_factory=dict)
    """What else a family takes, as NAME=VALUE: all: dtype. vision, clip: library; clip: pretrained (which weights of a plain open_clip name).
    llava, llm: length (tokens), padding, chat_template, revision; llava: prompt (what is asked about a captioned image); llm: sequence
    (per_sample or pack), chat, gguf_file. diffusion: part (text or denoiser), variant, revision, and for the denoiser the pipeline's own."""
    pretrained: bool = True
    """False: random weights drawn from `seed`, and said so wherever the store is described. Not for diffusion."""
    img_size: int | tuple[int, int] | None = None
    """Input size, where the model allows another than its own."""
    seed: int = 0
    """Seed of random weights."""
    device: str = "auto"
    """auto (cuda when there is one), cpu, cuda, cuda:1 ..."""


@dataclass(frozen=True)
class Extract:
    """Write the activations of a model on your images or texts to a store: interrupted runs go on where they were."""

    data: str
    """Folder of images, webdataset shards (a .tar, a folder of them, or name-{000..009}.tar), a list (.jsonl, .csv, .parquet) of images,
    captions, pairs or conversations, or a .txt of documents with empty lines between them."""
    model: Model
    sites: tuple[str, ...]
    """Where to read: module paths of the model, output side unless they end in ':input'. A wrong name lists the nearest."""
    out: Path
    """The store's directory."""
    batch_size: int = 32
    """Samples a forward pass."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Number format on disk."""
    rows_per_shard: int | None = None
    """Rows of a shard file; about 256 MB when left out."""
    max_bad_share: float = 0.05
    """Stop when more than this share of the samples cannot be read."""
    workers: int = 2
    """Threads that decode, preprocess and tokenise."""
    pool: Literal["none", "mean", "max", "last"] = "none"
    """One row a segment instead of one a token: the mean or the maximum of its patches or words, or the last of them."""
    segments: Literal["sample", "caption", "image", "modality", "sentence", "region"] = "sample"
    """What is pooled: all that a sample has; of mixed samples the caption alone, or each image, or image and text apart, as SITE:image and SITE:text
    (pairs for recipe vl_sae); each sentence; or each region of the images' masks."""
    gradient: Literal["none", "logit", "contrastive", "next_token"] = "none"
    """Also write, as SITE:gradient, the gradient of this scalar at each site, for recipe gradient_topk. logit: of the predicted class.
    contrastive: InfoNCE of a batch's images and captions. next_token: the language model's loss."""
    gradient_class: int | None = None
    """Take the gradient of this class's logit in place of the predicted one's."""
    more: Annotated[dict[str, Model], tyro.conf.Fixed, tyro.conf.Suppress] = field(default_factory=dict)
    """In a YAML file: further models to read in the same pass, by names that stand before their sites, as in clip/image_embedding."""


@dataclass(frozen=True)
class Train:
    """Train a sparse dictionary on a store (or straight from a model) and write a run directory."""

    out: Path
    """The run's directory. The same command goes on where it was after an interruption."""
    store: Path | None = None
    """An activation store made by `vsae extract`."""
    stream: Path | None = None
    """Instead of a store: the YAML file of an extract job, whose model is then read directly, without disk."""
    site: str | None = None
    """Which site of the store; may be left out when there is one. A+B: two sites side by side, for vl_sae, transcoder and crosscoder."""
    recipe: str = "topk"
    """Which method; its own options are those that start with --sae."""
    kinds: tuple[str, ...] | None = None
    """Token kinds to train on, such as patch. All but padding when left out."""
    skip: int = 0
    """Leave out the first so many tokens of every sample, here and in every evaluation of the run. 1 for language models, whose first token has a norm that
    takes over a dictionary; where a mark begins each text, --kinds text leaves that one out, too. Packed texts (sequence=pack) have it elsewhere."""
    val_share: float = 0.05
    """Share of the samples held out, by a hash of their keys."""
    pool_rows: int = 131_072
    """Rows shuffled together; memory is two such pools."""
    training: TrainConfig = field(default_factory=TrainConfig)
    sweep: Grid = None
    """Many SAEs in one pass over the data, each into a directory of its own below --out: every combination of k=16,32 lr=1e-4,3e-4 recipe=topk,batchtopk
    and other options of recipes and training. In a YAML file also a list of runs."""


@dataclass(frozen=True)
class EvalPlanted:
    """Train every recipe on rows of a known dictionary, and score how much of it each finds, beside itself before training."""

    out: Path = Path("eval/planted")
    """Where result.json and the runs go."""
    recipes: tuple[str, ...] = ()
    """Only these; all there are when left out."""
    seeds: int = 3
    """Worlds and trainings a recipe; the interval is over them."""
    rows: int = 65_536
    """Rows to train on."""


@dataclass(frozen=True)
class Explore:
    """Write a static HTML page that shows what each latent responds to."""

    run: tyro.conf.Positional[Path]
    """Directory of a trained SAE."""
    store: tyro.conf.Positional[Path]
    """Activations, whose images are still where they were."""
    out: Path | None = None
    """Directory of the page: RUN/explorer when left out."""
    data: str | None = None
    """The images, when they are no longer where the store was made from."""
    top: int = 16
    """Top images a latent."""
    random: int = 8
    """Random activating images a latent."""
    latents: int | None = None
    """Only the first so many live latents by density; all when left out."""
    thumbnail: int = 128
    """Side of the stored pictures, pixels."""
    self_check: bool = True
    """Verify on loading that the SAE still does what it did when it was saved."""


@dataclass(frozen=True)
class Info:
    """Say in words what a store or a run is."""

    path: tyro.conf.Positional[Path]
    """Directory of a store or of a run."""
    verify: bool = False
    """Also check every byte against its checksum."""


@dataclass(frozen=True)
class Convert:
    """Read an SAE (a run, or another library's files, which are recognised) and write it as another library keeps it, or as a run."""

    source: tyro.conf.Positional[str]
    """File or directory, or a repository of the hub."""
    out: tyro.conf.Positional[Path]
    """Directory to write, which must not be there yet."""
    to: str = "vsae"
    """saelens, dictionary_learning, sparsify, saev, openai ...; vsae is a run directory."""
    subfolder: str | None = None
    """Where in SOURCE."""
    store: Path | None = None
    """For --to vsae: the store the SAE belongs to. Its rows become the self-check; without it they are random, and the run says so."""
    site: str | None = None
    """Which site of the store; may be left out when there is one."""
    options: Options = field(default_factory=dict)
    """What a format's files leave open, as NAME=VALUE."""


@dataclass(frozen=True)
class Demo:
    """The main job on the embedded default: a rendered world whose concepts are known and tiny models trained on it. No network, minutes on two cores."""

    out: Path = Path("vsae-demo")
    """Where scenes, store, runs, results and the page go. The same command goes on where it was."""
    scenes: int = 4000
    """Rendered scenes; three in five are trained on."""
    latents: int = 1024
    """Of each SAE."""
    tokens: int = 1_000_000
    """Patch tokens that each SAE is trained on."""


def train_job(recipe: type) -> type[Any]:
    """`Train` with the options of one recipe as its field `sae`."""
    return dataclasses.make_dataclass(
        "Train",
        [("sae", recipe, field(default_factory=recipe))],
        bases=(Train,),
        frozen=True,
        namespace={"__doc__": Train.__doc__},
    )


def planted_job(world: type, training: TrainConfig) -> type[Any]:
    """`EvalPlanted` with the options of the world, and with these settings of the trainings."""
    return dataclasses.make_dataclass(
        "EvalPlanted",
        [("world", world, field(default_factory=world)), ("training", TrainConfig, field(default=training))],
        bases=(EvalPlanted,),
        frozen=True,
        namespace={"__doc__": EvalPlanted.__doc__},
    )
