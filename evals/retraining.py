"""Is what a filter keeps worth training on? Two linear projections are retrained on the kept pairs and searched with on clean pairs they have not seen.

    e_v = x W_v     e_t = y W_t     L = InfoNCE, both ways, of cos(e_v, e_t) times a learnt scale       (2103.00020; encoders stay frozen)

    all            every pair, the planted mismatches too          random      as many as a filter keeps, at random
    NAME           the best share by that score                    matched     as many of the pairs that were left alone: the best a filter could do

    R@k            share of images whose own caption is among the k nearest of the held-out ones, and of captions their image; floor: k / pairs
    mean recall    mean of R@1, R@5 and R@10 both ways: the headline

Trained for the same number of steps, whatever the number of pairs, from the same initial weights for each seed. Intervals are Student's over seeds, which
also draw the random subsets: they are about training, not about the held-out pairs. Rows are centred and scaled by the training pairs' own statistics.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from rich.table import Table
from torch import Tensor

from evals.filtering import keep
from evals.recovery_runs import over
from evals.result import Estimate

AT = (1, 5, 10)
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


@dataclass(frozen=True)
class Training:
    """How the projections are trained."""

    width: int = 128
    steps: int = 200
    batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.1


@dataclass(frozen=True)
class Retrained:
    """One way to choose pairs."""

    name: str
    pairs: int
    matched: float
    """Share of its pairs that were left alone, mean over seeds."""
    mean_recall: Estimate
    recall: dict[str, Estimate]
    """"image to text R@1" and so on."""
    over_random: Estimate | None
    """Mean recall less that of a random subset of equal size, seed by seed; None for random, and for all."""


@dataclass(frozen=True)
class Projections:
    """Unit rows of either side: normalise(((x - mean) / scale) W)."""

    sides: tuple[tuple[Tensor, Tensor, Tensor], ...]

    def __call__(self, side: int, x: Float[Tensor, "rows d"]) -> Float[Tensor, "rows width"]:
        mean, scale, weight = self.sides[side]
        return F.normalize(((x - mean) / scale) @ weight, dim=1)


def train(x: Float[Tensor, "pairs d"], y: Float[Tensor, "pairs e"], config: Training, seed: int) -> Projections:
    """Projections trained on pairs of rows. Raises ValueError for fewer than 2 pairs."""
    if len(x) < 2 or len(x) != len(y):
        raise ValueError(f"{len(x)} images and {len(y)} captions: projections are trained on 2 pairs or more.")
    generator = torch.Generator().manual_seed(seed)
    scaled, weights, about = [], [], []
    for rows in (x.float(), y.float()):
        mean, scale = rows.mean(0), rows.std(0).clamp_min(1e-6)
        scaled.append((rows - mean) / scale)
        weights.append(torch.randn(rows.shape[1], config.width, generator=generator) / rows.shape[1] ** 0.5)
        about.append((mean, scale))
    log_scale = torch.tensor(np.log(1 / 0.07), dtype=torch.float32)
    parameters = [each.requires_grad_() for each in (*weights, log_scale)]
    groups: list[dict[str, Any]] = [{"params": parameters[:2]}, {"params": parameters[2:], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    size, order = min(config.batch_size, len(x)), torch.empty(0, dtype=torch.long)
    for _ in range(config.steps):
        if len(order) < size:
            order = torch.randperm(len(x), generator=generator)
        rows, order = order[:size], order[size:]
        image, text = (F.normalize(of[rows] @ weight, dim=1) for of, weight in zip(scaled, weights, strict=True))
        logits = log_scale.exp().clamp(max=100) * image @ text.T
        own = torch.arange(size)
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return Projections(tuple((*of, weight.detach()) for of, weight in zip(about, weights, strict=True)))


def recall(image: Float[Tensor, "pairs width"], text: Float[Tensor, "pairs width"]) -> dict[str, float]:
    """R@k both ways; of equal similarities the own one counts as the last."""
    similarity = (image.double() @ text.double().T).numpy()
    found: dict[str, float] = {}
    for name, of in (("image to text", similarity), ("text to image", similarity.T)):
        rank = (of >= np.diag(of)[:, None]).sum(1)
        found |= {f"{name} R@{k}": float((rank <= k).mean()) for k in AT}
    return found


def retrain(
    train_rows: tuple[Float[Tensor, "pairs d"], Float[Tensor, "pairs e"]],
    held_out: tuple[Float[Tensor, "clean d"], Float[Tensor, "clean e"]],
    scores: Mapping[str, Float[np.ndarray, "pairs"]],
    matched: Bool[np.ndarray, "pairs"],
    share: float = 0.7,
    seeds: Sequence[int] = (0, 1, 2),
    config: Training | None = None,
    track: Track = lambda items, what, n: items,
) -> tuple[Retrained, ...]:
    """Retrain on what each score keeps, and on what it must beat. Rows are those of the pairs as they are, mismatches and all; larger scores: keep.

    Raises ValueError where a share of the pairs is fewer than 2, or the held-out pairs are fewer than AT[-1].
    """
    config, n, clean = config or Training(), len(matched), len(held_out[0])
    kept = round(share * n)
    if kept < 2 or clean < AT[-1]:
        raise ValueError(
            f"{kept} pairs to retrain on and {clean} clean ones to search in: give 2 and {AT[-1]} at least."
        )
    fixed: dict[str, Int[np.ndarray, "kept"]] = {name: keep(each, share) for name, each in scores.items()}
    found: dict[str, list[dict[str, float]]] = {}
    purity: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    for seed in track(seeds, "retrain", len(seeds)):
        rng = np.random.default_rng([seed, 8])
        own = np.flatnonzero(matched)
        subsets = {
            "all": np.arange(n),
            **fixed,
            "random": np.sort(rng.permutation(n)[:kept]),
            "matched": np.sort(rng.permutation(own)[:kept]),
        }
        for name, rows in subsets.items():
            at = torch.from_numpy(rows)
            projections = train(train_rows[0][at], train_rows[1][at], config, seed)
            measured = recall(projections(0, held_out[0].float()), projections(1, held_out[1].float()))
            found.setdefault(name, []).append(measured | {"mean": float(np.mean(list(measured.values())))})
            purity.setdefault(name, []).append(float(matched[rows].mean()))
            sizes[name] = len(rows)
    floors = {key: min(int(key.rpartition("@")[2]) / clean, 1.0) for key in found["all"][0] if key != "mean"}
    floors["mean"] = float(np.mean(list(floors.values())))

    def estimate(name: str, key: str) -> Estimate:
        return over(np.array([each[key] for each in found[name]]), floors[key])

    def beyond(name: str) -> Estimate | None:
        if name in ("all", "random"):
            return None
        pairs = zip(found[name], found["random"], strict=True)
        return over(np.array([mine["mean"] - theirs["mean"] for mine, theirs in pairs]), 0.0)

    return tuple(
        Retrained(
            name,
            sizes[name],
            float(np.mean(purity[name])),
            estimate(name, "mean"),
            {key: estimate(name, key) for key in floors if key != "mean"},
            beyond(name),
        )
        for name in found
    )


def table(found: Sequence[Retrained], held_out: int) -> Table:
    """All, each filter, random and matched."""
    shown = Table(
        "trained on",
        "pairs",
        "matched",
        "mean recall",
        "95 % (seeds)",
        "I to T R@1/5/10",
        "T to I R@1/5/10",
        "over random",
    )
    shown.title = f"Projections retrained on what is kept, searched with on {held_out:,} held-out pairs"

    def between(each: Estimate) -> str:
        return f"{each.interval[0]:.3f} to {each.interval[1]:.3f}" if each.interval else "-"

    for each in found:
        r = [f"{value.value:.2f}" for value in each.recall.values()]
        shown.add_row(
            each.name,
            f"{each.pairs:,}",
            f"{each.matched:.1%}",
            f"{each.mean_recall.value:.3f}",
            between(each.mean_recall),
            "/".join(r[: len(AT)]),
            "/".join(r[len(AT) :]),
            f"{each.over_random.value:+.3f} ({between(each.over_random)})" if each.over_random else "",
        )
    floors = [f"{value.floor:.2f}" for value in found[0].recall.values()]
    shown.add_row(
        "floor",
        "",
        "",
        f"{found[0].mean_recall.floor:.3f}",
        "",
        "/".join(floors[: len(AT)]),
        "/".join(floors[len(AT) :]),
        "",
    )
    return shown
