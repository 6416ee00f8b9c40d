"""The job that steers. Like `vsae.jobs`; field docstrings are the command line's help."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vsae.jobs import Model, Options


@dataclass(frozen=True)
class Steer:
    """Change latents while a model draws or writes: pictures or answers at several strengths, and what became of the concept and of everything else, beside the difference of means and random latents of the same size. Writes a page to look at.

    Interrupted runs go on where they were.
    """

    prompts: str
    """What is drawn or answered: a list with captions (pictures), or with captions, prompts, conversations and images (answers)."""
    model: Model
    """The model that the run reads: diffusion (edits in its text encoder), llm or llava."""
    run: Path
    """Directory of a trained SAE."""
    out: Path
    """Directory of what is written: images/ or answers/, sheet.png, result.json, effects.parquet, report/."""
    concept: tuple[str, ...] = ()
    """Words for it; the first is its name. Examples that say one of them have the concept; an answer that says one of them shows it."""
    vocabulary: tuple[str, ...] = ()
    """Pictures, in place of a concept: words, or a .txt of them. Each latent is then raised alone, at the largest strength, named by one of them, and the name verified on every second prompt."""
    latents: tuple[int, ...] = ()
    """What is changed; when left out, the latents that the concept separates best, or with a vocabulary any that fire."""
    choose: int = 1
    """How many, where --latents is left out."""
    examples: str | None = None
    """Captions or texts with and without the concept, for choosing latents, the difference of means, and how large latents get. The prompts, when left out."""
    most: int | None = None
    """Only the first so many prompts."""
    most_examples: int = 2000
    """Only the first so many examples."""
    operation: Literal["add", "clamp", "scale"] = "add"
    """add: strength times --value on top of the latent. clamp: towards --value. scale: by 1 + strength times (--value - 1) where it fires."""
    value: float | None = None
    """What strength 1 means. When left out: how large each latent gets where the concept is (add, clamp), or 0 (scale: strength 1 silences)."""
    strengths: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """0, which must change nothing, is always drawn too."""
    find: float | None = None
    """Also find the strength at which the concept comes to this (0 to 1), by bisection, and draw it."""
    kinds: tuple[str, ...] | None = ("text",)
    """Kinds of tokens that are changed."""
    answer_only: bool = False
    """Answers: change generated tokens only, not the prompt's."""
    controls: int = 1
    """Sets of random latents, matched in number, firing rate and size. With a vocabulary: random directions, which a name must go beyond; 8, say."""
    judge: str | None = None
    """Pictures: the CLIP that looks at them, an open_clip or transformers name or directory."""
    attributes: Options = field(default_factory=dict)
    """Pictures: what the judge tells apart, as colour=red,green,blue shape=circle,square. One of them holds the concept's name; the others should stay."""
    phrase: str = "a {}"
    """Pictures: what the judge reads for a value."""
    steps: int = 30
    """Pictures: of the denoising."""
    guidance: float = 5.0
    """Pictures: of the pipeline."""
    tokens: int = 40
    """Answers: at most so many new tokens."""
    batch_size: int = 8
    """Prompts a forward pass."""
    resamples: int = 500
    """Of the bootstrap over prompts."""
    seed: int = 0
    """Of generation, controls and bootstrap."""
    self_check: bool = True
    """Verify on loading that the SAE still does what it did when it was saved."""
