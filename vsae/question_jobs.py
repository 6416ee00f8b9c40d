"""The job of `vsae eval yes_no`. Like `vsae.jobs`; field docstrings are the command line's help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from vsae.jobs import Model


@dataclass(frozen=True)
class EvalYesNo:
    """Ask an image-text model yes/no questions about images, as it is and, with a run, under an edit of latents, beside random latents of the same size.

    With a VL-SAE: with answers brought nearer to the image by its codes, beside the codes of other images.
    """

    data: tyro.conf.Positional[str]
    """The images: shards, a folder or a list."""
    out: Path
    """Where result.json and answers.jsonl go."""
    model: Model
    """The model that is asked, of family llava."""
    questions: Path | None = None
    """A .jsonl of image (key), question, answer (yes or no) and kind. Left out: each kind of question about the rendered world, from the images' own json."""
    most: int | None = None
    """Only the first so many questions."""
    phrase: str = "{}"
    """What is asked: {} is the question. For LLaVA-1.5: '{} Answer the question using a single word or phrase.'"""
    answers: tuple[str, str] = ("yes", "no")
    """As the model says them: LLaVA-1.5 says Yes and No."""
    run: Path | None = None
    """An SAE of a site of this model, whose latents are changed; or a VL-SAE on SITE:image+SITE:text of it. Left out: nothing is changed."""
    latents: tuple[int, ...] = ()
    """With a run: what is changed."""
    operation: Literal["add", "clamp", "scale"] = "add"
    """Add --value to the latents, set them to it, or multiply them by it where they fire."""
    value: float = 0.0
    """See --operation: 'scale' with 0 silences."""
    kinds: tuple[str, ...] | None = None
    """Kinds of tokens that are changed; all, when left out."""
    alphas: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    """VL-SAE: how far text tokens move. Half of the images choose the alpha with the best balanced accuracy; the numbers are of the other half."""
    beta: float = 0.9
    """VL-SAE: share of the image's code in what text tokens move to."""
    mix: float = 0.6
    """VL-SAE: share of the moved pass in an answer's logits."""
    plausible: float = 0.8
    """VL-SAE: an answer that the model as it is finds less than this times as likely as the other stays refused. Near 0: none does."""
    batch_size: int = 16
    """Questions a forward pass."""
    resamples: int = 500
    """Of the bootstrap over images."""
    seed: int = 0
    """Of the bootstrap, of random latents, and of questions about the rendered world."""
    self_check: bool = True
    """Verify on loading that the SAE still does what it did when it was saved."""
