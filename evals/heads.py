"""Linear heads that are kept from leaning on latents nobody meant (self-regularised classifier, 2502.14133; notes A20).

    loss = cross-entropy of softmax(x W' + b) + lambda * mean over classes c of sum_{i in U} sim(w_c, D_i)
    sim  |cosine| of a class's weights and the atom of an unintended latent, or |dot product|; |s| as sqrt(s^2 + e^2) - e, e = .001, which has a gradient at 0

The notes leave the norm open; both are here. Classes are averaged, so that lambda means the same for any number of them, x is centred and brought
to unit mean square, and a weight decay fixes the size of W (all ours).

    accuracy        of all test samples                                                floor: of the commonest class
    worst group     smallest accuracy among groups (class, spurious attribute)         floor: 0, of a head that says one class
                    groups of fewer than `least` samples are left out and counted

Baselines: lambda 0; the span of the same atoms projected out of x; as many random live latents in U, which says whether it matters which.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from evals.result import Estimate

Sim = Literal["cosine", "dot"]
DECAY, EDGE = 1e-3, 1e-3
STEPS = 200


@dataclass(frozen=True)
class Head:
    """argmax over classes of x @ weight.T + bias."""

    weight: Float[np.ndarray, "classes d"]
    bias: Float[np.ndarray, "classes"]

    def __call__(self, x: Float[np.ndarray, "samples d"]) -> Int[np.ndarray, "samples"]:
        return (x @ self.weight.T + self.bias).argmax(1)


@dataclass(frozen=True)
class Accuracy:
    overall: Estimate
    worst: Estimate
    groups: Mapping[tuple[int, int], float]
    """Accuracy of each (class, spurious value) that is large enough."""
    left_out: int
    """Groups that are not."""


def fit(
    x: Float[np.ndarray, "samples d"],
    y: Int[np.ndarray, "samples"],
    unintended: Float[np.ndarray, "unintended d"],
    strength: float,
    sim: Sim = "cosine",
) -> Head:
    """The head of least loss by L-BFGS in float64, from zero weights without the similarities and from there with them: the same for the same data.

    unintended: atoms of U; none are the plain head. Raises ValueError for a negative strength, or fewer than two classes.
    """
    if strength < 0:
        raise ValueError(f"lambda is {strength:g}: it is 0 or more.")
    classes = int(y.max()) + 1
    if len(np.unique(y)) < 2:
        raise ValueError("a head needs samples of two classes at least.")
    middle, scale = x.mean(0), float(np.sqrt(np.mean(np.square(x - x.mean(0)))))
    scale = scale if scale > 0 else 1.0
    rows, labels = torch.from_numpy((x - middle) / scale).double(), torch.from_numpy(y).long()
    d = torch.from_numpy(np.asarray(unintended, float)).double().reshape(-1, x.shape[1])
    weight = nn.Parameter(torch.zeros(classes, x.shape[1], dtype=torch.float64))
    bias = nn.Parameter(torch.zeros(classes, dtype=torch.float64))
    # first without: a cosine has no gradient at weights of 0
    descend(weight, bias, partial(loss, weight, bias, rows, labels, d, 0.0, sim))
    if strength and len(d):
        descend(weight, bias, partial(loss, weight, bias, rows, labels, d, strength, sim))
    w = weight.detach().numpy() / scale
    return Head(w, bias.detach().numpy() - w @ middle)


def descend(weight: nn.Parameter, bias: nn.Parameter, value: Callable[[], Tensor]) -> None:
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe", tolerance_change=1e-10)

    def closure() -> Tensor:
        optimiser.zero_grad()
        found = value()
        found.backward()
        return found

    optimiser.step(closure)


def loss(
    weight: Float[Tensor, "classes d"],
    bias: Float[Tensor, "classes"],
    x: Float[Tensor, "samples d"],
    y: Int[Tensor, "samples"],
    unintended: Float[Tensor, "unintended d"],
    strength: float,
    sim: Sim,
) -> Tensor:
    value = nn.functional.cross_entropy(x @ weight.T + bias, y) + DECAY * weight.square().sum()
    if strength and len(unintended):
        value = value + strength * similarity(weight, unintended, sim).sum(1).mean()
    return value


def similarity(
    weight: Float[Tensor, "classes d"], unintended: Float[Tensor, "unintended d"], sim: Sim
) -> Float[Tensor, "classes unintended"]:
    """|cosine| or |dot product|. A cosine with a weight of no length is 0, with gradient 0."""
    if sim == "cosine":
        unintended = nn.functional.normalize(unintended, dim=1)
        length = weight.square().sum(1, keepdim=True)
        weight = weight / torch.where(length > 0, length, 1.0).sqrt()
    return ((weight @ unintended.T).square() + EDGE**2).sqrt() - EDGE


def projected(
    x: Float[np.ndarray, "samples d"], unintended: Float[np.ndarray, "unintended d"]
) -> Float[np.ndarray, "samples d"]:
    """x without the span of these atoms: the baseline that trains nothing."""
    if not len(unintended):
        return x
    _, s, vt = np.linalg.svd(unintended, full_matrices=False)
    span = vt[s > 1e-10 * s[0]]
    return x - x @ span.T @ span


def accuracy(
    said: Int[np.ndarray, "samples"],
    y: Int[np.ndarray, "samples"],
    spurious: Int[np.ndarray, "samples"],
    *,
    least: int = 10,
    resamples: int = 200,
    seed: int = 0,
) -> Accuracy:
    """Intervals are 95 % bootstraps over samples, for the worst group of each draw anew. Raises ValueError where every group is too small."""
    right = (said == y).astype(float)
    keys, group = np.unique(np.stack([y, spurious], 1), axis=0, return_inverse=True)
    counts = np.bincount(group.ravel())
    there = np.flatnonzero(counts >= least)
    if not len(there):
        raise ValueError(
            f"no group of class and spurious attribute has {least} samples: give more, or a smaller least."
        )
    draws = np.random.default_rng(seed).multinomial(len(y), np.full(len(y), 1 / len(y)), resamples).astype(float)
    member = group.ravel()[:, None] == there
    hits = right @ member / counts[there]
    drawn = draws @ member
    each = (draws @ (right[:, None] * member)) / np.maximum(drawn, 1)
    worst = np.where(drawn > 0, each, np.inf).min(1)
    overall = draws @ right / len(y)
    commonest = float(np.bincount(y).max() / len(y))
    return Accuracy(
        Estimate(float(right.mean()), commonest, spread(overall)),
        Estimate(float(hits.min()), 0.0, spread(worst)),
        {(int(keys[g][0]), int(keys[g][1])): float(hit) for g, hit in zip(there, hits, strict=True)},
        len(counts) - len(there),
    )


def spread(draws: Float[np.ndarray, "resamples"]) -> tuple[float, float] | None:
    if len(draws) < 2:
        return None
    low, high = np.quantile(draws, [0.025, 0.975]).tolist()
    return low, high


def compared(
    train: tuple[Float[np.ndarray, "samples d"], Int[np.ndarray, "samples"]],
    test: tuple[Float[np.ndarray, "more d"], Int[np.ndarray, "more"], Int[np.ndarray, "more"]],
    atoms: Float[np.ndarray, "n_latents d"],
    unintended: Sequence[int],
    live: Sequence[int],
    strength: float,
    *,
    sim: Sim = "cosine",
    seed: int = 0,
) -> dict[str, Accuracy]:
    """The head beside its baselines: "plain", "regularised", "projected", "random" (as many other live latents in U).

    train: (x, class). test: (x, class, spurious attribute), without the correlation. Raises ValueError where too few other latents are live.
    """
    others = np.setdiff1d(live, unintended)
    if len(others) < len(unintended):
        raise ValueError(f"{len(others)} other latents are live: too few for a control of {len(unintended)}.")
    control = np.random.default_rng(seed).choice(others, len(unintended), replace=False)
    d, random, none = atoms[list(unintended)], atoms[control], atoms[:0]
    heads = {
        "plain": (fit(*train, none, 0.0), test[0]),
        "regularised": (fit(*train, d, strength, sim), test[0]),
        "projected": (fit(projected(train[0], d), train[1], none, 0.0), projected(test[0], d)),
        "random": (fit(*train, random, strength, sim), test[0]),
    }
    return {name: accuracy(head(x), test[1], test[2], seed=seed) for name, (head, x) in heads.items()}
