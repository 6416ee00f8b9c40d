"""Words that latents may be named by: a name a line, its synonyms behind it after commas; empty lines and lines that begin with # are no words.

Nothing is fetched. Without a file of one's own, the few hundred words of `words.txt` beside this module: what photographs and drawings commonly show.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from evals.naming import normalised, plain

DEFAULT = Path(__file__).with_name("words.txt")
BATCH = 64
TEXT, IMAGE = "text_embedding", "image_embedding"
Words = tuple[tuple[str, ...], ...]
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


def read(path: Path | None = None) -> Words:
    """Synonyms by name, in the file's order. Raises ValueError for a word that comes twice, FileNotFoundError, and ValueError for fewer than two names."""
    path = path or DEFAULT
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file: a vocabulary is a text file with a name a line.")
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: a vocabulary is a text file with a name a line.") from error
    found, seen = [], dict[str, int]()
    for number, line in enumerate(lines, 1):
        words = tuple(word for part in line.split(",") if (word := " ".join(part.split())))
        if not words or line.lstrip().startswith("#"):
            continue
        for word in words:
            if (before := seen.setdefault(plain(word), number)) != number:
                raise ValueError(f"{path} has {word!r} in lines {before} and {number}: keep one of them.")
        found.append(words)
    if len(found) < 2:
        raise ValueError(f"{path} has {len(found)} names: give two or more, one a line.")
    return tuple(found)


@torch.inference_mode()
def embed(
    words: Sequence[Sequence[str]],
    model: Any,
    template: str = "{}",
    track: Track = lambda items, what, n: items,
) -> Float[np.ndarray, "words d"]:
    """Mean of the unit text embeddings of each name and its synonyms, by a model of the family clip. Raises ValueError for a template without {}."""
    if "{}" not in template:
        raise ValueError(f"the template {template!r} has no place for the word: write {{}} where it goes.")
    texts = [template.replace("{}", word) for synonyms in words for word in synonyms]
    starts = np.cumsum([0] + [len(synonyms) for synonyms in words])
    batches = [texts[at : at + BATCH] for at in range(0, len(texts), BATCH)]
    blocks = []
    for batch in track(batches, "words", len(batches)):
        found = model.activations(model.texts(batch), [TEXT])[TEXT]
        blocks.append(normalised(found.values[:, 0].float().cpu().numpy()))
    rows = np.concatenate(blocks)
    return np.stack([rows[a:b].mean(0) for a, b in pairwise(starts)])
