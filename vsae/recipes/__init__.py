"""Recipes: combinations of parts that people know by name. A new one is a class and a line here; see `vsae.recipes.base.Recipe`."""

from vsae.recipes import adaptive, archetypal, columns, encoders, nested, polynomial, selection, variational
from vsae.recipes.adaptive import TopAFA
from vsae.recipes.archetypal import ATopK, RABatchTopK, RATopK
from vsae.recipes.base import Recipe
from vsae.recipes.encoders import MatchingPursuit, OrthogonalMatchingPursuit, TiedTopK
from vsae.recipes.joined import VLSAE, Crosscoder, TranscoderTopK
from vsae.recipes.polynomial import PolySAE
from vsae.recipes.selection import AbsTopK, BatchTopK, ReLU, TopK
from vsae.recipes.variational import VSAE

__all__ = [
    "JOINED",
    "RECIPES",
    "VLSAE",
    "VSAE",
    "ATopK",
    "AbsTopK",
    "BatchTopK",
    "Crosscoder",
    "MatchingPursuit",
    "OrthogonalMatchingPursuit",
    "PolySAE",
    "RABatchTopK",
    "RATopK",
    "ReLU",
    "Recipe",
    "TiedTopK",
    "TopAFA",
    "TopK",
    "TranscoderTopK",
]

ROOMS = (selection, nested, columns, adaptive, archetypal, encoders, polynomial, variational)
RECIPES: dict[str, type[Recipe]] = {recipe.name: recipe for room in ROOMS for recipe in room.RECIPES}
"""Recipes by name."""

JOINED: dict[str, type[Recipe]] = {recipe.name: recipe for recipe in (VLSAE, TranscoderTopK, Crosscoder)}
"""Those that need joined rows (vsae.activations.joined), by name."""
