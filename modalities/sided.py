"""The two sides of an image-text model's prompts at one site: its image tokens and its words, pooled to a token each. What a VL-SAE of such a model trains on.

    Sided(model, "mean").activations(batch, ["model.language_model.layers.15:image", "model.language_model.layers.15:text"])

Shen et al. 2025 (2510.21323): the input of a late layer, mean over the image tokens, and mean over the caption's. Ours: all words of a prompt count, before the
image as after it, for all of them are moved when an answer is enhanced (vsae.enhancement).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from modalities.base import ActivationModel, Activations, Batch
from modalities.segments import of_kinds, reduced

SIDES = {"image": ("patch", "image"), "text": ("text",)}
"""Side -> the kinds of tokens that are pooled."""


class Sided:
    """A model as extraction reads it, whose every site is two: SITE:image and SITE:text, of kind `cls`. Raises ValueError for several models at once."""

    def __init__(self, model: Any, how: str) -> None:
        if not isinstance(model, ActivationModel):
            raise ValueError("image and text tokens are taken apart in one model at a time: leave the others out.")
        self.model, self.how, self.provenance = model, how, model.provenance

    def prepare(self, samples: Sequence[Any]) -> Batch:
        return self.model.prepare(samples)

    def needs(self, sites: Sequence[str]) -> dict[str, str]:
        return {"image": sites[0]}

    def edit(self, site: str, fn: Callable[[Tensor, Tensor], Tensor]) -> AbstractContextManager[ActivationModel]:
        return self.model.edit(split(site)[0], fn)

    def activations(self, batch: Batch, sites: Sequence[str]) -> dict[str, Activations]:
        """[samples, 1, d_model] a site; `pad` where a sample has no such token. Raises ValueError as the model does, and where nothing is of that side."""
        asked = self.model.activations(batch, list(dict.fromkeys(split(site)[0] for site in sites)))
        found = {}
        for site in sites:
            own, side = split(site)
            mine = of_kinds(asked[own], SIDES[side])
            if not (mine >= 0).any():
                raise ValueError(f"site {own!r} holds no {side} tokens: choose a layer that both go through.")
            found[site] = reduced(asked[own], mine.to(asked[own].values.device), self.how)
        return found


def sides(site: str) -> list[str]:
    """The names under which a site's two sides are stored."""
    return [f"{site}:{side}" for side in SIDES]


def split(site: str) -> tuple[str, str]:
    """The model's own site, and the side. Raises ValueError for a name without one."""
    own, _, side = site.rpartition(":")
    if not own or side not in SIDES:
        raise ValueError(f"site {site!r} has no side: write {' or '.join(sides(site))}.")
    return own, side
