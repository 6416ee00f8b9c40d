"""Several models on one pass over the data: each image is decoded once, and one store holds them all.

    Several({"": load("vision", ...), "clip": load("clip", ...)})        sites "blocks.11", "clip/image_embedding"

A site is NAME/SITE, of the model of that name; the main model has the name "" and its sites no prefix.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from modalities.base import ActivationModel, Activations, Batch


class Several:
    """What extraction needs of a model (`modalities.extract.Reader`), by several. A batch holds each model's own batch under its name."""

    def __init__(self, models: Mapping[str, ActivationModel]) -> None:
        if wrong := [name for name in models if "/" in name or ":" in name]:
            raise ValueError(f"{wrong[0]!r} cannot name a model: leave out '/' and ':'.")
        self.models = dict(models)

    @property
    def provenances(self) -> dict[str, dict[str, Any]]:
        return {name: model.provenance for name, model in self.models.items()}

    def prepare(self, samples: Sequence[Any]) -> Batch:
        return {name: model.prepare(samples) for name, model in self.models.items()}

    def activations(self, batch: Batch, sites: Sequence[str]) -> dict[str, Activations]:
        """Activations by site, one model after the other. Raises ValueError as each model does, and for a name that no model has."""
        found: dict[str, Activations] = {}
        for name, mine in self._by_model(sites).items():
            read = self.models[name].activations(batch[name], list(mine))
            found |= {mine[site]: value for site, value in read.items()}
        return {site: found[site] for site in sites}

    def needs(self, sites: Sequence[str]) -> dict[str, str]:
        """What every sample must have for these sites -> one that needs it."""
        found: dict[str, str] = {}
        for name, mine in self._by_model(sites).items():
            needs = getattr(self.models[name], "needs", None)
            found = {part: mine[site] for part, site in (needs(list(mine)) if needs else {}).items()} | found
        return found

    def edit(self, site: str, fn: Callable[[Tensor, Tensor], Tensor]) -> AbstractContextManager[ActivationModel]:
        name, own = self._split(site)
        return self.models[name].edit(own, fn)

    def of_site(self, site: str, batch: Batch) -> tuple[ActivationModel, Batch, str]:
        """The model of a site, its own batch, and its own name of the site."""
        name, own = self._split(site)
        return self.models[name], batch[name], own

    def _by_model(self, sites: Sequence[str]) -> dict[str, dict[str, str]]:
        """Model -> its own name of each site -> the name asked for."""
        found: dict[str, dict[str, str]] = {}
        for site in sites:
            name, own = self._split(site)
            found.setdefault(name, {})[own] = site
        return found

    def _split(self, site: str) -> tuple[str, str]:
        name, slash, own = site.partition("/")
        name, own = (name, own) if slash else ("", site)
        if name not in self.models:
            known = ", ".join(f"{known}/..." for known in self.models if known)
            raise ValueError(f"site {site!r} is of no model here: write a site of the main model, or {known}.")
        return name, own
