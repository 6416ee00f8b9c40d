"""What a judge is asked about latents, and with which words: the questions of detection, fuzzing and intruder, each with what the null judge is asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from PIL import Image

from evals.explaining import NO, SHEET, YES, Drawn
from modalities.judge import Asked

TILE = 112


@dataclass(frozen=True)
class Prompts:
    """What the judge is asked; {} is the explanation, or for captions {0} is the text and {1} the explanation."""

    explain: str = (
        "Parts of these pictures are lit. What is shown in the lit parts of all of them? Answer with a few words."
    )
    detection: str = "Does this picture show {}? Answer yes or no."
    fuzzing: str = "Only a part of this picture is lit. Does the lit part show {}? Answer yes or no."
    intruder: str = "These pictures are numbered from the left, 1 to 5. All but one show the same thing. Which number is the odd one out? Answer with the number."
    explain_texts: str = "What do these texts have in common? Answer with a few words.\n{}"
    explain_marked: str = (
        "What do the parts between << and >> of these texts have in common? Answer with a few words.\n{}"
    )
    detection_texts: str = "Text: {0}\nIs this text about {1}? Answer yes or no."
    fuzzing_texts: str = "Text: {0}\nIs the part between << and >> about {1}? Answer yes or no."
    intruder_texts: str = "All but one of these texts have something in common. Which number is the odd one out? Answer with the number.\n{}"


@dataclass(frozen=True)
class Material:
    """What there is to look at: by row of the scores."""

    key: Callable[[int], str]
    picture: Callable[[int], Image.Image]
    lit: Callable[[int, int, int | None], Image.Image]
    """(row, latent, seed): the picture, dark but where the latent is active; with a seed, but at as many other places, drawn by it."""
    text: Callable[[int], str]
    embed: Callable[[Sequence[str]], Float[np.ndarray, "texts d"]] | None = None
    embeddings: Float[np.ndarray, "rows d"] | None = None
    """CLIP's of texts and of the rows' images; both or none."""
    marked: Callable[[int, int, int | None], str] | None = None
    """(row, latent, seed): the text with << and >> around the tokens where the latent is active; with a seed, around as many others. None: not known."""


Question = tuple[int, Any, Asked, Asked, list[str]]
"""(number of the latent, right answer, what is asked, what the null judge is asked, keys of the samples)."""


def detection(
    drawn: Sequence[Drawn],
    said: Sequence[str],
    null: Int64[np.ndarray, "n"],
    material: Material,
    captions: bool,
    prompts: Prompts,
) -> list[Question]:
    found: list[Question] = []
    for at, each in enumerate(drawn):
        for rows, right in ((each.active, YES), (each.silent, NO)):
            for row in rows.tolist():
                image = None if captions else material.picture(row)
                both = [
                    Asked(
                        prompts.detection_texts.format(material.text(row), words)
                        if captions
                        else prompts.detection.format(words),
                        (YES, NO),
                        image,
                    )
                    for words in (said[at], said[null[at]])
                ]
                found.append((at, right, both[0], both[1], [material.key(row)]))
    return found


def fuzzing(
    drawn: Sequence[Drawn],
    said: Sequence[str],
    null: Int64[np.ndarray, "n"],
    material: Material,
    captions: bool,
    prompts: Prompts,
    seed: int,
) -> list[Question]:
    """Every active picture (or text) twice: lit (or marked) where the latent is active, and elsewhere."""
    found: list[Question] = []
    for at, each in enumerate(drawn):
        for row in each.active.tolist():
            for right, elsewhere in ((YES, None), (NO, seed + row)):
                words = (said[at], said[null[at]])
                if captions:
                    assert material.marked is not None
                    text = material.marked(row, each.latent, elsewhere)
                    both = [Asked(prompts.fuzzing_texts.format(text, each_said), (YES, NO)) for each_said in words]
                else:
                    image = material.lit(row, each.latent, elsewhere)
                    both = [Asked(prompts.fuzzing.format(each_said), (YES, NO), image) for each_said in words]
                found.append((at, right, both[0], both[1], [material.key(row)]))
    return found


def intruders(
    drawn: Sequence[Drawn], material: Material, captions: bool, prompts: Prompts, seed: int
) -> list[Question]:
    """As many sheets of a latent as its active samples fill, the intruder at a random place; the null judge sees a sheet of silent samples only."""
    rng, found = np.random.default_rng([seed, 33]), list[Question]()
    options = tuple(str(number + 1) for number in range(SHEET))
    for at, each in enumerate(drawn):
        active = rng.permutation(each.active)
        for start in range(0, len(active) - SHEET + 2, SHEET - 1):
            place = int(rng.integers(SHEET))
            rows = np.insert(active[start : start + SHEET - 1], place, rng.choice(each.silent)).tolist()
            nobody = rng.choice(each.silent, SHEET, replace=False).tolist()
            both = []
            for some in (rows, nobody):
                if captions:
                    both.append(
                        Asked(prompts.intruder_texts.format(listed([material.text(row) for row in some])), options)
                    )
                else:
                    both.append(Asked(prompts.intruder, options, sheet([material.picture(row) for row in some], True)))
            found.append((at, str(place + 1), both[0], both[1], [material.key(row) for row in rows]))
    return found


def mark(text: str, spans: Sequence[tuple[int, int]], tokens: Sequence[int]) -> str:
    """The text with << and >> around these tokens; neighbours share a pair, and white space stays outside."""
    lit = np.zeros(len(text) + 2, bool)
    for token in tokens:
        lit[spans[token][0] + 1 : spans[token][1] + 1] = True
    edges = np.flatnonzero(np.diff(lit.astype(np.int8))).tolist()
    found, done = "", 0
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        part = text[begin:end]
        if words := part.strip():
            part = part.replace(words, f"<<{words}>>", 1)
        found, done = found + text[done:begin] + part, end
    return found + text[done:]


def listed(texts: Sequence[str]) -> str:
    return "\n".join(f"{number}. {text}" for number, text in enumerate(texts, 1))


def sheet(images: Sequence[Image.Image], row: bool) -> Image.Image:
    """Pictures side by side, in one row or as near to a square as may be."""
    wide = len(images) if row else int(np.ceil(np.sqrt(len(images))))
    whole = Image.new("RGB", (wide * TILE, -(-len(images) // wide) * TILE), (255, 255, 255))
    for at, image in enumerate(images):
        whole.paste(
            image.convert("RGB").resize((TILE - 4, TILE - 4)), ((at % wide) * TILE + 2, (at // wide) * TILE + 2)
        )
    return whole
