"""Concepts read off a code, rules over them, and a push towards what follows: ActivationReasoning (2510.18184; notes A18).

    concept     single    the latent j with the largest E[l_j | y = 1] - E[l_j | y = 0]
                multi     the n latents with the largest of these differences, weighted by them
                relation  a decision tree on the latents
    detection   local     A[c, t] = max(a_c(t) - tau_c, 0) of a token, a_c = sum_j w_j l_j
                global    the same of a sample: of the largest (or mean) a_c over its tokens
    rules       "wheel & windshield -> car": forward chaining to a fixed point
    push        h' = h + alpha w |h| d_c / |d_c|, d_c = sum_j w_j D_j

The notes leave open how tau_c is found. Ours: the middle of the two neighbouring values between which balanced accuracy on the fit samples is best.
A rule may ask that a concept is absent ("!wet"), but only of a concept that no rule concludes: what follows is then the same in any order (ours).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from vsae.interventions import Layout, Where, atoms, moved
from vsae.sae import SAE

if TYPE_CHECKING:
    from sklearn.tree import DecisionTreeClassifier

Kind = Literal["single", "multi"]
Aggregate = Literal["max", "mean"]


@dataclass(frozen=True)
class Concept:
    """A weighted set of latents with a threshold."""

    name: str
    latents: tuple[int, ...]
    weights: tuple[float, ...]
    threshold: float

    @staticmethod
    def fit(
        name: str, codes: Float[np.ndarray, "samples n_latents"], truth: Bool[np.ndarray, "samples"], n: int = 1
    ) -> "Concept":
        """The n latents that separate best; n = 1 is R_single, with weight 1. codes: one row a sample, such as its largest activations.

        Raises ValueError where one side has no sample, or no latent is larger with the concept than without.
        """
        both_sides(name, truth)
        gap = codes[truth].mean(0) - codes[~truth].mean(0)
        order = np.argsort(-gap, kind="stable")[:n]
        order = order[gap[order] > 0]
        if not len(order):
            raise ValueError(
                f"no latent is larger where {name!r} is than where it is not: it cannot be read off this code."
            )
        weights = np.ones(1) if n == 1 else gap[order] / gap[order].sum()
        activation = codes[:, order] @ weights
        return Concept(name, tuple(order.tolist()), tuple(weights.tolist()), best_threshold(activation, truth))

    def activation(self, codes: Float[np.ndarray, "rows n_latents"]) -> Float[np.ndarray, "rows"]:
        """a_c of each row."""
        return codes[:, list(self.latents)] @ np.array(self.weights)

    def local(self, codes: Float[np.ndarray, "rows n_latents"]) -> Float[np.ndarray, "rows"]:
        """A[c, t] of each row: positive where the concept is detected."""
        return np.maximum(self.activation(codes) - self.threshold, 0)

    def whole(self, codes: Float[np.ndarray, "tokens n_latents"], aggregate: Aggregate = "max") -> float:
        """A of the sample that these tokens are."""
        a = self.activation(codes)
        return max(float(a.max() if aggregate == "max" else a.mean()) - self.threshold, 0.0)

    def direction(self, sae: SAE) -> Float[Tensor, "d_model"]:
        """d_c."""
        rows = atoms(sae, self.latents)
        return rows.new_tensor(self.weights) @ rows


@dataclass(frozen=True)
class Relation:
    """A concept that is a decision tree on latents: what several of them say together."""

    name: str
    tree: "DecisionTreeClassifier"

    @staticmethod
    def fit(
        name: str,
        codes: Float[np.ndarray, "samples n_latents"],
        truth: Bool[np.ndarray, "samples"],
        depth: int = 3,
        seed: int = 0,
    ) -> "Relation":
        from sklearn.tree import DecisionTreeClassifier

        both_sides(name, truth)
        tree = DecisionTreeClassifier(max_depth=depth, class_weight="balanced", random_state=seed)
        return Relation(name, tree.fit(codes, truth))

    def local(self, codes: Float[np.ndarray, "rows n_latents"]) -> Float[np.ndarray, "rows"]:
        """How far the tree's probability is above one half: positive where the concept is detected."""
        return np.maximum(self.tree.predict_proba(codes)[:, 1] - 0.5, 0)

    @property
    def latents(self) -> tuple[int, ...]:
        """Those that the tree asks for."""
        return tuple(sorted({int(j) for j in self.tree.tree_.feature if j >= 0}))


@dataclass(frozen=True)
class Rule:
    """If all of `has` are there and none of `lacks`, then `then` is."""

    has: tuple[str, ...]
    then: str
    lacks: tuple[str, ...] = ()

    @staticmethod
    def parse(text: str) -> "Rule":
        """`wheel & !wing -> car`. Raises ValueError for anything else."""
        left, arrow, then = text.partition("->")
        parts = [part.strip() for part in left.split("&")]
        names = [part.removeprefix("!").strip() for part in parts]
        if not arrow or not all(re.fullmatch(r"[^&!>]+", name) for name in (*names, then.strip())):
            raise ValueError(f"{text!r} is no rule: write 'wheel & !wing -> car'.")
        has = tuple(name for part, name in zip(parts, names, strict=True) if not part.startswith("!"))
        lacks = tuple(name for part, name in zip(parts, names, strict=True) if part.startswith("!"))
        return Rule(has, then.strip(), lacks)


def detected(
    concepts: Sequence[Concept | Relation], codes: Float[np.ndarray, "rows n_latents"]
) -> dict[str, Bool[np.ndarray, "rows"]]:
    """Which rows have which concept, before any rule."""
    return {concept.name: concept.local(codes) > 0 for concept in concepts}


def chained(
    facts: Mapping[str, Bool[np.ndarray, "rows"]], rules: Sequence[Rule]
) -> dict[str, Bool[np.ndarray, "rows"]]:
    """The facts with all that follows from them, for every row at once.

    Raises ValueError for a rule about a concept that is neither detected nor concluded, and for one that asks for the absence of what rules conclude.
    """
    concluded = {rule.then for rule in rules}
    known = {*facts, *concluded}
    for rule in rules:
        if unknown := [name for name in (*rule.has, *rule.lacks) if name not in known]:
            raise ValueError(f"a rule speaks of {unknown[0]!r}, which is no concept: {', '.join(sorted(known))} are.")
        if circular := [name for name in rule.lacks if name in concluded]:
            raise ValueError(
                f"a rule asks that {circular[0]!r} is absent, which rules conclude: what follows would depend on their order."
            )
    n = len(next(iter(facts.values()))) if facts else 0
    found = {name: np.zeros(n, bool) | facts.get(name, False) for name in known}
    changed = True
    while changed:
        changed = False
        for rule in rules:
            holds = np.ones(n, bool)
            for name in rule.has:
                holds &= found[name]
            for name in rule.lacks:
                holds &= ~found[name]
            new = holds & ~found[rule.then]
            if new.any():
                found[rule.then] = found[rule.then] | new
                changed = True
    return found


class Push:
    """A function for `model.edit(site, ...)`: h' = h + alpha w |h| d / |d|, so that a step is a share of what is there."""

    def __init__(
        self,
        direction: Float[Tensor, "d_model"],
        alpha: float,
        weight: float = 1.0,
        where: Where | None = None,
        kind_names: Sequence[str] = (),
        columns: int | None = None,
    ) -> None:
        if not direction.norm() > 0:
            raise ValueError("the direction has no length: a concept needs latents whose atoms do not cancel.")
        self.unit, self.size = direction / direction.norm(), alpha * weight
        self.where, self.kind_names, self.columns = where or Where(), tuple(kind_names), columns

    @torch.no_grad()
    def __call__(
        self,
        values: Float[Tensor, "batch tokens d_model"],
        kinds: UInt8[Tensor, "batch tokens"],
        layout: Layout | None = None,
    ) -> Float[Tensor, "batch tokens d_model"]:
        mask = self.where.mask(kinds, self.kind_names, self.columns, layout)
        length = values[mask].to(self.unit).norm(dim=1, keepdim=True)
        return moved(values, mask, self.size * length * self.unit)


def best_threshold(activation: Float[np.ndarray, "samples"], truth: Bool[np.ndarray, "samples"]) -> float:
    """Where "larger is yes" has the best balanced accuracy; the lowest such place. Between two values that occur, or half of the only one."""
    values = np.unique(activation)
    cuts = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values / 2
    yes, no = np.sort(activation[truth]), np.sort(activation[~truth])
    right = (1 - np.searchsorted(yes, cuts, "right") / len(yes)) + np.searchsorted(no, cuts, "right") / len(no)
    return float(cuts[np.argmax(right)])


def both_sides(name: str, truth: Any) -> None:
    if truth.all() or not truth.any():
        raise ValueError(
            f"{truth.sum()} of {len(truth)} samples have {name!r}: samples with it and without are needed."
        )
