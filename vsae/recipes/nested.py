"""Recipes whose latents are ordered: the first of them reconstruct alone."""

from dataclasses import dataclass
from typing import ClassVar

from vsae.objectives import Objective
from vsae.prefixes import Prefixes, RandomPrefixes
from vsae.recipes.base import Recipe
from vsae.recipes.selection import BatchTopK


@dataclass(frozen=True)
class Matryoshka(BatchTopK):
    """BatchTopK whose first latents reconstruct alone, too: coarse concepts first (Bussmann et al. 2025, 2503.17547); the mean error over prefixes.

    The default prefixes are those of Pach et al. 2025 (2504.02821), who train with k = 20 and an AuxK of 0.03.
    """

    name: ClassVar[str] = "matryoshka"

    prefixes: tuple[float, ...] = (0.002, 0.011, 0.046, 0.235, 1.0)
    """Sizes of the nested prefixes, as shares of the latents; the last is 1."""

    random_prefixes: int = 0
    """Draw so many prefixes anew each step instead, short ones more often (Stevens et al. 2025 draw 10); 0: the fixed ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = all(0 < a < b for a, b in zip(self.prefixes, self.prefixes[1:], strict=False))
        if not (self.prefixes and self.prefixes[-1] == 1 and self.prefixes[0] > 0 and rising):
            raise ValueError(f"prefixes are {self.prefixes}: choose rising shares of the latents, the last being 1.")
        if self.random_prefixes < 0:
            raise ValueError(f"random_prefixes is {self.random_prefixes}: choose 0 (the fixed ones) or more.")

    def objective(self) -> Objective:
        nested = RandomPrefixes(count=self.random_prefixes) if self.random_prefixes else Prefixes(self.prefixes)
        return Objective(super().objective().terms, nested)


RECIPES: tuple[type[Recipe], ...] = (Matryoshka,)
