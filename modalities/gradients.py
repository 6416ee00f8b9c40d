"""Gradients of a scalar with respect to activations, read beside them: what a gradient SAE selects by (g-SAE, arXiv 2411.10397).

    Gradients(model, "logit").activations(batch, ["blocks.11", "blocks.11:gradient"])

SITE:gradient holds dL / dx for each token x of SITE, with the same kinds and grid. L is a sum over the batch's samples of

    logit         the predicted class's logit, or that of `class_index`          vision models with a classifier
    contrastive   InfoNCE of images and captions, both ways, over the batch      CLIP and its kin; a gradient depends on who else is in the batch
    next_token    cross-entropy of each token given those before it, in nats     language models, alone or with images

The activations are those of a pass without gradients, bit for bit; a second pass adds zeros at the sites and asks for the derivative of L by these.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modalities.base import KINDS, ActivationModel, Activations, Batch
from modalities.causal import CausalModel, next_token_loss
from modalities.sites import hidden_state

SUFFIX = ":gradient"
SCALARS = ("logit", "contrastive", "next_token")


class Gradients:
    """A model as extraction reads it, whose every site has a gradient beside it. Raises ValueError for a scalar the model does not have."""

    def __init__(self, model: Any, scalar: str, class_index: int | None = None) -> None:
        if scalar not in SCALARS:
            raise ValueError(f"there is no scalar {scalar!r} to take gradients of: choose {', '.join(SCALARS)}.")
        if class_index is not None and scalar != "logit":
            raise ValueError(f"a class was given, but {scalar} has none: leave it out, or choose logit.")
        if not isinstance(model, ActivationModel):
            raise ValueError("gradients are taken of one model at a time: leave the others out.")
        has = {
            "logit": getattr(model.module, "num_classes", 1) != 0,
            "contrastive": hasattr(model, "logits"),
            "next_token": isinstance(model, CausalModel),
        }
        if not has[scalar]:
            lacking = {"logit": "classifier", "contrastive": "captions to compare with", "next_token": "next token"}
            raise ValueError(f"this model has no {lacking[scalar]}, so it has no {scalar} to take gradients of.")
        self.model: Any = model
        self.scalar, self.class_index = scalar, class_index
        self.provenance = model.provenance

    def prepare(self, samples: Sequence[Any]) -> Batch:
        return self.model.prepare(samples)

    def needs(self, sites: Sequence[str]) -> dict[str, str]:
        if self.scalar == "contrastive":
            return dict.fromkeys(("image", "caption"), sites[0])
        needs = getattr(self.model, "needs", None)
        return needs([plain(site) for site in sites]) if needs else {}

    def edit(self, site: str, fn: Callable[[Tensor, Tensor], Tensor]) -> AbstractContextManager[ActivationModel]:
        return self.model.edit(plain(site), fn)

    def activations(self, batch: Batch, sites: Sequence[str]) -> dict[str, Activations]:
        """Values at sites, gradients at sites that end in ":gradient". Raises ValueError as the model does, and where L does not depend on a site."""
        asked = list(dict.fromkeys(plain(site) for site in sites))
        found = self.model.activations(batch, asked)
        wanted = [site for site in asked if site + SUFFIX in sites]
        if wanted:
            slopes = self.gradients(batch, wanted)
            for site in wanted:
                found[site + SUFFIX] = found[site]._replace(values=slopes[site])
        return {site: found[site] for site in sites}

    def gradients(self, batch: Batch, sites: Sequence[str]) -> dict[str, Tensor]:
        """dL / dx [batch, tokens, d_model] at each site, in the model's dtype."""
        nothing: dict[str, Tensor] = {}

        def adding(site: str) -> Callable[[Tensor, Tensor], Tensor]:
            def add(values: Tensor, kinds: Tensor) -> Tensor:
                nothing[site] = torch.zeros_like(values, requires_grad=True)
                return values + nothing[site]

            return add

        with ExitStack() as edits, torch.enable_grad():
            for site in sites:
                edits.enter_context(self.model.edit(site, adding(site)))
            total = self.total(batch)
        if not total.requires_grad:
            raise ValueError(f"{self.scalar} does not depend on {', '.join(sites)}: choose a site before it.")
        slopes = torch.autograd.grad(total, [nothing[site] for site in sites], allow_unused=True)
        for site, slope in zip(sites, slopes, strict=True):
            if slope is None:
                raise ValueError(f"{self.scalar} does not depend on {site!r}: choose a site before it.")
        return {site: slope.detach() for site, slope in zip(sites, slopes, strict=True) if slope is not None}

    def total(self, batch: Batch) -> Tensor:
        """L of the batch, with its graph."""
        if self.scalar == "contrastive":
            logits = self.model.logits(batch, gradients=True).float()
            own = torch.arange(len(logits), device=logits.device)
            return (F.cross_entropy(logits, own, reduction="sum") + F.cross_entropy(logits.T, own, reduction="sum")) / 2
        output = self.model.run(batch, gradients=True)
        if self.scalar == "next_token":
            assert isinstance(self.model, CausalModel)
            full = self.model.marked(batch)
            loss = next_token_loss(output.logits, full)
            named = (full["kinds"] == KINDS.index("image")).to(loss.device)  # in the vocabulary by name only
            return torch.where(loss.isnan() | named, 0, loss).sum()
        logits = getattr(output, "logits", None)
        logits = hidden_state(output) if logits is None else logits
        if logits is None or logits.ndim != 2:
            raise ValueError("this model gives no logits [batch, classes]: choose one with a classifier.")
        if self.class_index is None:
            return logits.amax(1).sum()
        if not 0 <= self.class_index < logits.shape[1]:
            raise ValueError(f"class {self.class_index} was asked for, but there are {logits.shape[1]}, from 0.")
        return logits[:, self.class_index].sum()


def plain(site: str) -> str:
    """The site itself, of its gradient."""
    return site.removesuffix(SUFFIX)
