"""Recipes: combinations of parts that people know by name. A new one is a class and a line here; see `vsae.recipes.base.Recipe`."""

from vsae.recipes import (
    adaptive,
    archetypal,
    bias,
    columns,
    encoders,
    fixed,
    nested,
    polynomial,
    selection,
    variational,
)
from vsae.recipes.adaptive import TopAFA
from vsae.recipes.archetypal import ATopK, RABatchTopK, RATopK
from vsae.recipes.base import Recipe
from vsae.recipes.bias import GBA
from vsae.recipes.encoders import MatchingPursuit, OrthogonalMatchingPursuit, TiedTopK
from vsae.recipes.fixed import ITDA, Fixed
from vsae.recipes.joined import VLSAE, Crosscoder, GradientTopK, TranscoderTopK
from vsae.recipes.polynomial import PolySAE
from vsae.recipes.selection import SAEV, AbsTopK, BatchTopK, ReLU, TopK
from vsae.recipes.variational import VSAE

__all__ = [
    "FIXED",
    "GBA",
    "ITDA",
    "JOINED",
    "RECIPES",
    "SAEV",
    "VLSAE",
    "VSAE",
    "ATopK",
    "AbsTopK",
    "BatchTopK",
    "Crosscoder",
    "Fixed",
    "GradientTopK",
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

ROOMS = (selection, nested, columns, adaptive, bias, archetypal, encoders, polynomial, variational)
RECIPES: dict[str, type[Recipe]] = {recipe.name: recipe for room in ROOMS for recipe in room.RECIPES}
"""Recipes by name."""

FIXED: dict[str, type[Fixed]] = {recipe.name: recipe for recipe in fixed.RECIPES}
"""Those that are fitted without gradients, by name."""

JOINED: dict[str, type[Recipe]] = {recipe.name: recipe for recipe in (VLSAE, TranscoderTopK, Crosscoder, GradientTopK)}
"""Those that need joined rows (vsae.activations.joined), by name."""
