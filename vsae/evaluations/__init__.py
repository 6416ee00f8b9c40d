"""`vsae eval NAME`: measure runs, print the table, write result.json and its figures. Part of the roof, for evaluations live in `evals`.

A room here is a few evaluations of one subject: a function each, which takes its job and returns the directory it wrote, and their names in JOBS.
"""

from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

EVALUATIONS = {
    "reconstruction": ("quality", "how much of the activations an SAE keeps and how sparsely, beside PCA and k-means"),
    "recovery": (
        "quality",
        "which known attributes single latents stand for, beside random directions, neurons and PCA; --all: every recipe on planted features",
    ),
    "faithfulness": (
        "models",
        "how much of the model's own answers survives an SAE's reconstruction, beside PCA, mean and zero ablation",
    ),
    "dark_matter": (
        "dictionaries",
        "how much of what an SAE leaves out is linear in the activations, beside shuffled errors",
    ),
    "stability": ("dictionaries", "whether other seeds find the same atoms, beside untrained dictionaries"),
    "similarity": ("dictionaries", "how many atoms ITDA dictionaries of models or layers share, beside rows at random"),
    "geometry": ("dictionaries", "ranks, coherence and co-firing of a dictionary, beside random directions"),
    "attention_heads": (
        "dictionaries",
        "which attention head each latent reads, and how many unrelated ones a head has, beside random directions",
    ),
    "monosemanticity": (
        "dictionaries",
        "how alike the images are that a latent likes, by another encoder, beside raw neurons",
    ),
    "modality": ("dictionaries", "which latents image and text share, beside pairs exchanged at random"),
    "naming": ("words", "what latents are called, by CLIP's nearest words, beside names of what means nothing"),
    "explaining": (
        "words",
        "whether explanations of latents are right, by a local model's answers, beside the same model given others' explanations",
    ),
    "contents": ("words", "what one collection holds more of than another, beside random parts of both"),
    "clustering": (
        "words",
        "groups of samples by the latents they activate, and samples found by latents, beside raw activations and permuted labels",
    ),
    "probing": ("labels", "what a few latents know of attributes, beside neurons, dense probes, PCA and kNN"),
    "separability": ("labels", "how apart latents keep classes, and what suppressing one costs, beside neurons"),
    "erasure": ("labels", "whether latents take one concept out and leave the others, beside random latents"),
    "supervised": ("labels", "how near an SAE comes to a dictionary that knows the attributes"),
    "ontology": ("labels", "how deep in a taxonomy latents stand, beside neurons and permuted labels"),
    "segmentation": (
        "masks",
        "which latents line up with the classes of segmentation masks, beside neurons, PCA, k-means, semi-NMF and random directions",
    ),
    "ood": ("audits", "which images are out of distribution, by codes and by the dense features they must beat"),
    "blindspots": (
        "audits",
        "what image generators draw too rarely or too often, and what they may have memorised, beside real images against themselves",
    ),
    "filtering": (
        "audits",
        "how well scores from codes find mismatched image-text pairs, beside CLIP score, length and chance",
    ),
    "zero_shot": (
        "alignment",
        "whether a VL-SAE's codes help a CLIP name images, with a weight chosen on other images",
    ),
    "yes_no": (
        "questions",
        "whether an image-text model says yes to what is not there, and what an edit of latents, or a VL-SAE, makes of it",
    ),
    "all": ("world", "--world: all of these where the right answers are known, in a rendered world, in one table"),
}
"""Name -> (room, what it answers)."""


def command(arguments: list[str]) -> None:
    """Parse and run one evaluation. Raises ValueError with a sentence for what a person got wrong."""
    from vsae import config

    if not arguments or arguments[0] in ("-h", "--help"):
        lines = "\n".join(f"  {name:<15} {text}" for name, (_, text) in EVALUATIONS.items())
        print(
            f"vsae eval NAME: measure runs\n\n{lines}\n\n"
            "vsae eval NAME --help lists its options, --about says what its numbers mean, their floor and their traps."
        )
        return
    name, rest = arguments[0], arguments[1:]
    if name not in EVALUATIONS:
        raise ValueError(f"there is no evaluation '{name}'{config.near(name, EVALUATIONS)}")
    if "--about" in rest:
        show_page(name)
        return
    room = import_module(f"vsae.evaluations.{EVALUATIONS[name][0]}")
    if name == "recovery" and "--all" in rest:
        rest.remove("--all")
        room.planted(config.parse(room.planted_type(), rest, "vsae eval recovery --all"))
        return
    job, evaluate = room.JOBS[name]
    evaluate(config.parse(job, rest, f"vsae eval {name}"))


def show_page(name: str) -> None:
    """Print the page of an evaluation: what its numbers mean, their floor, their traps."""
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown((files("evals") / "pages" / f"{name}.md").read_text()))


def told(table: "Table", out: Path) -> Path:
    """Print what was found, and where it is."""
    shown(table)
    print(f"wrote {out / 'result.json'}")
    return out


def shown(table: "Table") -> None:
    """Print a table; all of it into a file or a pipe, whose width nobody knows."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    if not console.is_terminal:
        console.width = max(
            console.width, Measurement.get(console, console.options.update(max_width=1000), table).maximum
        )
    console.print(table)
