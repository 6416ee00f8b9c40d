"""A dictionary that knows the attributes, and how near an SAE comes to it: approximation and control (2405.08366; spec A26). Interpretability, the F1 of
single latents, is `vsae eval recovery`.

    supervised dictionary    x ~ b + sum over attributes a of u[a, v(a)]        v(a): the sample's value of a; u by joint least squares, or conditional means
    approximation            R2 of x on test samples: supervised, SAE, and the latents that have the largest F1 for some value, alone
    task                     accuracy of a probe of a on the SAE's reconstruction, on the `n` latents of largest F1 for each of its values alone (sufficiency),
                             and on x without them (necessity), beside as many random live latents                  floor: the commonest value
    control of a             for a test sample s and another t with another value of a: take what stands for v_s(a) out, put what stands for v_t(a) in,
                             and ask a probe of a for its value
        supervised           x - u[a, v_s] + u[a, v_t]
        latents              of the `n` latents of largest F1 for v_s those that s has are taken out, of those for v_t those that t has are put in, with t's values
        random               as many random latents that s or t has
        success              share of pairs at which the probe says v_t        floor: what it says without an edit
        side effect          share of the other attributes' probes that change their mind
        weight               |x' - x| / |x|: how much of the activation the edit touched

Everything is done on means over an image's tokens, where taking latents out of every token is exact, with the error term kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64
from sklearn.linear_model import LogisticRegression

from evals.reconstruction import percentiles
from evals.result import Estimate
from evals.sums import draws

RIDGE = 1e-6
"""Of the joint least squares, which one-hot columns make singular."""


@dataclass(frozen=True)
class Valued:
    """Means over the tokens of each image, and the number of its value of each attribute."""

    x: Float[np.ndarray, "images d"]
    x_hat: Float[np.ndarray, "images d"]
    z: Float[np.ndarray, "images n_latents"]
    values: Int64[np.ndarray, "images attributes"]


@dataclass(frozen=True)
class Known:
    """The supervised dictionary: x ~ bias + sum_a vectors[a][value]."""

    bias: Float[np.ndarray, "d"]
    vectors: tuple[Float[np.ndarray, "_ d"], ...]

    @staticmethod
    def fit(train: Valued, joint: bool = True) -> "Known":
        """Vectors of an attribute have mean 0 over the training samples, so that the bias is their mean."""
        bias, centred = train.x.mean(0), train.x - train.x.mean(0)
        hot = [np.eye(int(column.max()) + 1)[column] for column in train.values.T]
        if joint:
            A = np.concatenate(hot, 1)
            solved = np.linalg.solve(A.T @ A + RIDGE * len(A) * np.eye(A.shape[1]), A.T @ centred)
            vectors = np.split(solved, np.cumsum([each.shape[1] for each in hot])[:-1])
        else:
            vectors = [each.T @ centred / np.maximum(each.sum(0), 1)[:, None] for each in hot]
        means = [each.mean(0) @ u for each, u in zip(hot, vectors, strict=True)]
        return Known(bias, tuple(u - mean for u, mean in zip(vectors, means, strict=True)))

    def __call__(self, values: Int64[np.ndarray, "images attributes"]) -> Float[np.ndarray, "images d"]:
        return self.bias + sum(u[column] for u, column in zip(self.vectors, values.T, strict=True))


@dataclass(frozen=True)
class Edit:
    """One way of editing one attribute."""

    attribute: str
    how: str
    success: Estimate
    side_effect: float | None
    """None for a single attribute."""
    weight: float


@dataclass(frozen=True)
class Kept:
    """What a probe of one attribute still reads where only some latents are left, or some are gone; what is left out is at its training mean."""

    attribute: str
    how: str
    accuracy: Estimate


@dataclass(frozen=True)
class Supervised:
    """The module's docstring has the definitions."""

    r2: dict[str, Estimate]
    kept: tuple[Kept, ...]
    edits: tuple[Edit, ...]
    probes: dict[str, float]
    """Test accuracy of the probe of each attribute."""
    majority: dict[str, float]
    latents: int


def compare(
    train: Valued,
    test: Valued,
    atoms: Float[np.ndarray, "n_latents d"],
    names: Sequence[str],
    *,
    n: int = 4,
    pairs: int = 200,
    resamples: int = 200,
    seed: int = 0,
) -> Supervised:
    """names: of attributes. Raises ValueError for an attribute with one value only in the training samples, or a value that only test samples have."""
    for at, name in enumerate(names):
        seen = set(train.values[:, at].tolist())
        if len(seen) < 2 or not set(test.values[:, at].tolist()) <= seen:
            raise ValueError(
                f"the training samples have {len(seen)} values of {name!r}: they must have two or more, and all that test samples have."
            )
    known = {"supervised (joint)": Known.fit(train), "supervised (means)": Known.fit(train, joint=False)}
    best = [f1s(train, at) for at in range(len(names))]
    chosen = np.unique(np.concatenate([order_of(each)[:, :1].ravel() for each in best]))
    few = test.z[:, chosen] @ atoms[chosen]
    few = few - (train.z[:, chosen] @ atoms[chosen]).mean(0) + train.x.mean(0)
    guesses = {name: each(test.values) for name, each in known.items()}
    guesses |= {"SAE": test.x_hat, f"{len(chosen)} latents of the SAE": few}
    weights = np.concatenate([np.ones((1, len(test.x))), draws(len(test.x), resamples, seed)])
    spread = weights @ np.square(test.x - train.x.mean(0)).sum(1)
    r2 = {}
    for name, guess in guesses.items():
        drawn = 1 - weights @ np.square(test.x - guess).sum(1) / spread
        r2[name] = Estimate(float(drawn[0]), 0.0, percentiles(drawn[1:]) if resamples else None)
    middle, width = train.x.mean(0), np.where(train.x.std(0) > 1e-12, train.x.std(0), 1)
    probes = [LogisticRegression(max_iter=500).fit((train.x - middle) / width, column) for column in train.values.T]

    def says(x: Float[np.ndarray, "images d"]) -> Int64[np.ndarray, "images attributes"]:
        return np.stack([probe.predict((x - middle) / width) for probe in probes], 1)

    kept, edits = [], []
    for at, name in enumerate(names):
        kept += kept_of(train, test, atoms, best[at], at, name, says, n, weights, seed)
        edits += list(
            controlled(test, atoms, known["supervised (joint)"], best[at], at, name, says, n, pairs, resamples, seed)
        )
    right = (says(test.x) == test.values).mean(0)
    common = [np.bincount(column).max() / len(column) for column in test.values.T]
    return Supervised(
        r2,
        tuple(kept),
        tuple(edits),
        dict(zip(names, right.tolist(), strict=True)),
        dict(zip(names, map(float, common), strict=True)),
        len(chosen),
    )


def kept_of(
    train: Valued,
    test: Valued,
    atoms: Float[np.ndarray, "n_latents d"],
    f1: Float[np.ndarray, "values n_latents"],
    at: int,
    name: str,
    says: Callable[[np.ndarray], np.ndarray],
    n: int,
    weights: Float[np.ndarray, "draws images"],
    seed: int,
) -> list[Kept]:
    """Approximation by the task. The first row of `weights` is of ones, the others are bootstrap draws."""
    own = np.unique(order_of(f1)[:, :n])
    others = np.setdiff1d(np.flatnonzero((train.z != 0).any(0)), own)
    random = np.random.default_rng([seed, at, 19]).permutation(others)[: len(own)]

    def part(latents: Int64[np.ndarray, "some"]) -> Float[np.ndarray, "images d"]:
        return (test.z[:, latents] - train.z[:, latents].mean(0)) @ atoms[latents]

    mean, count = train.x.mean(0), len(own)
    read = {
        "reconstruction": test.x_hat,
        f"its {count} latents alone": mean + part(own),
        f"without its {count} latents": test.x - part(own),
        f"{len(random)} random latents alone": mean + part(random),
        f"without {len(random)} random latents": test.x - part(random),
    }
    common = float(np.bincount(test.values[:, at]).max() / len(test.values))
    found = []
    for how, x in read.items():
        drawn = weights @ (says(x)[:, at] == test.values[:, at]) / weights.sum(1)
        spread = percentiles(drawn[1:]) if len(drawn) > 1 else None
        found.append(Kept(name, how, Estimate(float(drawn[0]), common, spread)))
    return found


def f1s(train: Valued, attribute: int) -> Float[np.ndarray, "values n_latents"]:
    """F1 of z_j != 0 for each value of an attribute."""
    hot = np.eye(int(train.values[:, attribute].max()) + 1)[train.values[:, attribute]]
    fires = (train.z != 0).astype(np.float64)
    return 2 * hot.T @ fires / np.maximum(hot.sum(0)[:, None] + fires.sum(0), 1)


def order_of(f1: Float[np.ndarray, "values n_latents"]) -> Int64[np.ndarray, "values n_latents"]:
    return np.argsort(-f1, axis=1, kind="stable")


def controlled(
    test: Valued,
    atoms: Float[np.ndarray, "n_latents d"],
    known: Known,
    f1: Float[np.ndarray, "values n_latents"],
    at: int,
    name: str,
    says: Callable[[np.ndarray], np.ndarray],
    n: int,
    pairs: int,
    resamples: int,
    seed: int,
) -> list[Edit]:
    """Every way of editing one attribute, on the same random pairs."""
    rng = np.random.default_rng([seed, at, 17])
    s, t = rng.integers(0, len(test.x), (2, 8 * pairs))
    differ = test.values[s, at] != test.values[t, at]
    s, t = s[differ][:pairs], t[differ][:pairs]
    if not len(s):
        return []
    source, goal = test.values[s, at], test.values[t, at]
    order, x = order_of(f1)[:, :n], test.x[s]
    u = known.vectors[at]
    changed = {
        "no edit": x,
        "supervised": x - u[source] + u[goal],
        f"{n} latents": x.copy(),
        f"{n} random latents": x.copy(),
    }
    for row in range(len(s)):
        for how, out, into in (
            (f"{n} latents", order[source[row]], order[goal[row]]),
            (f"{n} random latents", some(rng, test.z[s[row]], n), some(rng, test.z[t[row]], n)),
        ):
            changed[how][row] += test.z[t[row], into] @ atoms[into] - test.z[s[row], out] @ atoms[out]
    before = says(x)
    groups = np.unique(s, return_inverse=True)[1]
    weights = np.concatenate([np.ones((1, groups.max() + 1)), draws(int(groups.max()) + 1, resamples, seed)])[:, groups]
    found = []
    floor = float((before[:, at] == goal).mean())
    for how, new in changed.items():
        after = says(new)
        drawn = weights @ (after[:, at] == goal) / np.maximum(weights.sum(1), 1)
        others = np.delete(after != before, at, 1)
        weight = float((np.linalg.norm(new - x, axis=1) / np.maximum(np.linalg.norm(x, axis=1), 1e-30)).mean())
        spread = percentiles(drawn[1:]) if resamples and groups.max() else None
        found.append(
            Edit(
                name,
                how,
                Estimate(float(drawn[0]), floor, spread),
                float(others.mean()) if others.size else None,
                weight,
            )
        )
    return found


def some(rng: np.random.Generator, z: Float[np.ndarray, "n_latents"], n: int) -> Int64[np.ndarray, "some"]:
    """At most n random latents that fire."""
    return rng.permutation(np.flatnonzero(z))[:n].astype(np.int64)
