"""Can concepts be taken out of activations latent by latent? Spurious correlation removal (SCR) and targeted probe perturbation (TPP), for image labels
(SAEBench; spec D).

Everything is done on activations x and codes z that are means over an image's tokens: ablating latents in every token, with the error term kept, is then exactly

    x' = x - sum over ablated j of (z_j - c_j) D_j          c_j = 0: as published; c_j: mean of z_j over the training images, ours (`to_mean`)

To zero all images move the same way, and a probe that leant on the latent may say no to all of them; to their mean they do not.

    SCR    a probe of `target` is trained on samples where `spurious` always agrees with it; the N latents with the largest
           |(mean z_j | spurious - mean z_j | not) (probe . D_j)| are ablated, and the probe is tested on balanced samples:
           (accuracy ablated - accuracy) / (accuracy of a probe trained on balanced samples - accuracy); 0 where that divisor is below .001
           Both directions of a pair are tried; the one whose biased probe is worse counts, as in SAEBench
    TPP    a probe a class against the rest; the N latents with the largest positive (mean z_j | class - mean z_j | rest) (probe . D_j) are ablated:
           loss of accuracy of that class's probe - mean loss of the other classes' probes

Floors: as many random live latents. Baseline: projecting out the difference of means, which ablates one direction and needs no SAE.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64
from sklearn.linear_model import LogisticRegression

N = (2, 5, 10, 20, 50, 100, 500)
LEAST = 0.001
"""SCR: where balanced training gains less than this there is nothing to recover."""


@dataclass(frozen=True)
class Images:
    """Means over the tokens of each image."""

    x: Float[np.ndarray, "images d"]
    z: Float[np.ndarray, "images n_latents"]
    truth: Bool[np.ndarray, "images attributes"]

    def some(self, rows: Int64[np.ndarray, "rows"]) -> "Images":
        return Images(self.x[rows], self.z[rows], self.truth[rows])


@dataclass(frozen=True)
class LinearProbe:
    """Yes where x . weight + bias > 0."""

    weight: Float[np.ndarray, "d"]
    bias: float

    @staticmethod
    def fit(x: Float[np.ndarray, "images d"], y: Bool[np.ndarray, "images"]) -> "LinearProbe":
        """Logistic regression on standardised dimensions. Raises ValueError for a class without a sample."""
        if y.all() or not y.any():
            raise ValueError("a probe needs samples with and without: one side is empty.")
        middle, spread = x.mean(0), x.std(0)
        spread = np.where(spread > 1e-12, spread, 1)
        linear = LogisticRegression(max_iter=500).fit((x - middle) / spread, y)
        weight = linear.coef_[0] / spread
        return LinearProbe(weight, float(linear.intercept_[0] - weight @ middle))

    def accuracy(self, x: Float[np.ndarray, "images d"], y: Bool[np.ndarray, "images"]) -> float:
        return float(((x @ self.weight + self.bias > 0) == y).mean())


@dataclass(frozen=True)
class Removal:
    """SCR of one pair, in the direction that counts."""

    target: str
    spurious: str
    biased: float
    """Balanced accuracy of the probe trained on confounded samples."""
    clean: float
    """Of one trained on balanced samples."""
    scores: dict[int, float]
    """By number of latents ablated to zero."""
    to_mean: dict[int, float]
    """Of those ablated to their mean."""
    random: dict[int, float]
    random_to_mean: dict[int, float]
    projection: float


@dataclass(frozen=True)
class Targeted:
    """TPP of one class."""

    name: str
    accuracy: float
    scores: dict[int, float]
    to_mean: dict[int, float]
    random: dict[int, float]
    random_to_mean: dict[int, float]
    projection: float


def ablated(
    images: Images,
    atoms: Float[np.ndarray, "n_latents d"],
    latents: Int64[np.ndarray, "some"],
    to: Float[np.ndarray, "n_latents"] | None = None,
) -> Float[np.ndarray, "images d"]:
    """x with these latents at zero, or at `to`, the error kept."""
    change = images.z[:, latents] if to is None else images.z[:, latents] - to[latents]
    return images.x - change @ atoms[latents]


def effects(
    images: Images, atoms: Float[np.ndarray, "n_latents d"], has: Bool[np.ndarray, "images"], probe: LinearProbe
) -> Float[np.ndarray, "n_latents"]:
    """(mean z | has - mean z | has not) (probe . D_j)."""
    return (images.z[has].mean(0) - images.z[~has].mean(0)) * (atoms @ probe.weight)


def without_direction(
    x: Float[np.ndarray, "images d"], direction: Float[np.ndarray, "d"], middle: Float[np.ndarray, "d"]
) -> Float[np.ndarray, "images d"]:
    """x with its component along the direction set to that of `middle`."""
    unit = direction / max(np.linalg.norm(direction), 1e-30)
    return x - np.outer((x - middle) @ unit, unit)


def removal(
    train: Images,
    test: Images,
    atoms: Float[np.ndarray, "n_latents d"],
    names: Sequence[str],
    pair: tuple[int, int],
    *,
    n: Sequence[int] = N,
    seed: int = 0,
) -> Removal | None:
    """SCR of a pair of attributes; None where some combination of the two has too few samples (4 to train on, 1 to test on)."""
    both = [one_way(train, test, atoms, names, each, n, seed) for each in (pair, pair[::-1])]
    found = [each for each in both if each is not None]
    return min(found, key=lambda each: each.biased) if found else None


def one_way(
    train: Images,
    test: Images,
    atoms: Float[np.ndarray, "n_latents d"],
    names: Sequence[str],
    pair: tuple[int, int],
    n: Sequence[int],
    seed: int,
) -> Removal | None:
    target, spurious = pair
    rng = np.random.default_rng([seed, target, spurious])
    cells = [
        balanced(part.truth[:, target], part.truth[:, spurious], least, rng) for part, least in ((train, 4), (test, 1))
    ]
    if cells[0] is None or cells[1] is None:
        return None
    fair, asked = train.some(np.concatenate(cells[0])), test.some(np.concatenate(cells[1]))
    confounded = np.flatnonzero(train.truth[:, target] == train.truth[:, spurious])
    probe = LinearProbe.fit(train.x[confounded], train.truth[confounded, target])
    ideal = LinearProbe.fit(fair.x, fair.truth[:, target])
    y, other = asked.truth[:, target], fair.truth[:, spurious]
    before, clean = probe.accuracy(asked.x, y), ideal.accuracy(asked.x, y)
    order = np.argsort(-np.abs(effects(fair, atoms, other, probe)), kind="stable")
    live = rng.permutation(np.flatnonzero((train.z != 0).any(0)))
    sizes = [size for size in n if size <= len(live)]

    def score(x: Float[np.ndarray, "images d"]) -> float:
        return (probe.accuracy(x, y) - before) / (clean - before) if abs(clean - before) >= LEAST else 0.0

    difference, middle = fair.x[other].mean(0) - fair.x[~other].mean(0), train.z.mean(0)

    def curve(latents: Int64[np.ndarray, "some"], to: Float[np.ndarray, "n_latents"] | None) -> dict[int, float]:
        return {size: score(ablated(asked, atoms, latents[:size], to)) for size in sizes}

    return Removal(
        names[target],
        names[spurious],
        before,
        clean,
        curve(order, None),
        curve(order, middle),
        curve(live, None),
        curve(live, middle),
        score(without_direction(asked.x, difference, fair.x.mean(0))),
    )


def balanced(
    first: Bool[np.ndarray, "images"], second: Bool[np.ndarray, "images"], least: int, rng: np.random.Generator
) -> list[Int64[np.ndarray, "cell"]] | None:
    """As many random images of each of the four combinations; None where one has fewer than `least`."""
    cells = [np.flatnonzero((first == a) & (second == b)) for a in (False, True) for b in (False, True)]
    size = min(map(len, cells))
    return [rng.permutation(cell)[:size] for cell in cells] if size >= least else None


def targeted(
    train: Images,
    test: Images,
    atoms: Float[np.ndarray, "n_latents d"],
    names: Sequence[str],
    *,
    n: Sequence[int] = N,
    seed: int = 0,
) -> tuple[Targeted, ...]:
    """TPP of every class. Raises ValueError for fewer than two, or one that all or no training images are of."""
    if len(names) < 2:
        raise ValueError(f"targeted perturbation compares classes with each other, and {len(names)} was given.")
    probes = [LinearProbe.fit(train.x, has) for has in train.truth.T]
    live = np.random.default_rng([seed, 3]).permutation(np.flatnonzero((train.z != 0).any(0)))
    sizes = [size for size in n if size <= len(live)]

    def accuracies(x: Float[np.ndarray, "images d"]) -> Float[np.ndarray, "classes"]:
        return np.array([probe.accuracy(x, has) for probe, has in zip(probes, test.truth.T, strict=True)])

    before, middle, found = accuracies(test.x), train.z.mean(0), []
    for at, name in enumerate(names):
        effect = effects(train, atoms, train.truth[:, at], probes[at])
        gained = train.z[train.truth[:, at]].mean(0) > train.z[~train.truth[:, at]].mean(0)
        usable = np.flatnonzero(gained & (effect > 0))
        order = usable[np.argsort(-effect[usable], kind="stable")]

        def score(x: Float[np.ndarray, "images d"], at: int = at) -> float:
            lost = before - accuracies(x)
            return float(lost[at] - np.delete(lost, at).mean())

        difference = train.x[train.truth[:, at]].mean(0) - train.x[~train.truth[:, at]].mean(0)
        to_zero, to_mean, random, random_to_mean = (
            {size: score(ablated(test, atoms, some[:size], to)) for size in sizes}
            for some in (order, live)
            for to in (None, middle)
        )
        projected = score(without_direction(test.x, difference, train.x.mean(0)))
        found.append(Targeted(name, float(before[at]), to_zero, to_mean, random, random_to_mean, projected))
    return tuple(found)


def mean_over(found: Iterable[Removal | Targeted], what: str) -> dict[int, float]:
    """Mean of `scores`, `to_mean` or their random floors at each number of latents that all have."""
    each = [getattr(one, what) for one in found]
    sizes = set(each[0]).intersection(*each) if each else set()
    return {size: float(np.mean([one[size] for one in each])) for size in sorted(sizes)}
