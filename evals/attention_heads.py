"""Which attention head each latent reads, and how many unrelated latents a head has (Kissane et al. 2024, 2406.17759; vsae.attribution; spec A13).

    weight          share of a latent's atom norm in a head's slice
    contribution    mean over the tokens where the latent fires of the head's part of the pre-activation, (x - b_dec)[h] . W_enc[h, j]
    agreement       share of live latents that weight and contribution give to the same head                    floor: 1 / heads
    groups          of a head: groups of related latents among the `top` with the largest weight                floor: of random directions
    polysemantic    share of heads with more than one group

Latents are related whose slices in the head have a |cosine| above a threshold, directly or through others: this form is ours, the paper's authors read them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from rich.table import Table
from torch import Tensor

from evals.figures import ACCENT, QUIET, save
from evals.geometry import random_atoms
from evals.reconstruction import percentiles
from evals.result import Estimate, Result, write_result
from evals.sums import draws
from vsae.activations import Batch, Select, fingerprint
from vsae.activations.store import SiteReader
from vsae.attribution import head_latents, head_weights, polysemanticity, slices
from vsae.run import Run
from vsae.sae import SAE

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
ENTRIES = 1 << 14


@dataclass(frozen=True)
class Head:
    """The module's docstring has the definitions."""

    latents: int
    """Live latents of which it has the largest weight."""
    groups: int
    random_groups: int
    top: tuple[tuple[int, float], ...]
    """(latent, weight), largest first."""


@dataclass(frozen=True)
class Heads:
    heads: tuple[Head, ...]
    polysemantic: Estimate
    agreement: Estimate
    live: int
    rows: int


@torch.inference_mode()
def contributions(
    sae: SAE, batches: Iterable[Batch], heads: int
) -> tuple[Float[Tensor, "n_latents heads"], Int64[np.ndarray, "n_latents"], int]:
    """(mean part of each head where a latent fires, tokens it fires on, rows). Raises AttributeError for an encoder that is not linear."""
    size, n, rows = slices(sae, heads), sae.n_latents, 0
    weight = sae.linear.weight.view(n, heads, size)
    total, fired = torch.zeros(n, heads, dtype=torch.float64), torch.zeros(n, dtype=torch.int64)
    for batch in batches:
        x = batch.values.to(sae.b_dec)
        code, centred = sae.encode(x), (x - sae.b_dec).view(len(x), heads, size)
        for row, slot in zip(*(part.split(ENTRIES) for part in code.values.nonzero(as_tuple=True)), strict=True):
            latent = code.indices[row, slot]
            part = (centred[row] * weight[latent]).sum(2).double().cpu()
            total.index_add_(0, latent.cpu(), part)
            fired += latent.cpu().bincount(minlength=n)
        rows += len(x)
    return total / fired.clamp_min(1)[:, None], fired.numpy(), rows


def evaluate(
    run: Run,
    site: SiteReader,
    out: Path,
    heads: int,
    *,
    top: int = 10,
    cosine: float = 0.5,
    kinds: tuple[str, ...] | None = None,
    resamples: int = 200,
    seed: int = 0,
    batch_size: int = 4096,
    track: Track = lambda items, what, n: items,
) -> Heads:
    """Measure; write result.json and attention_heads.png to `out`. Of the run's own store only held-out samples are read. Raises ValueError."""
    fingerprint.check(run.fingerprint, site.fingerprint)
    kinds = kinds or run.kinds
    select = Select(kinds, run.held_out(site), run.skip)
    weights = head_weights(run.sae, heads).cpu()
    batches = track(site.sequential(batch_size, select), "codes", -(-site.n_rows // batch_size))
    mean, fired, rows = contributions(run.sae, batches, heads)
    live = torch.from_numpy(fired > 0)
    if int(live.sum()) < 2:
        raise ValueError(f"{int(live.sum())} latents of {run.path} fire on these {rows:,} tokens: give more of them.")
    atoms = run.sae.atoms.detach().cpu()
    random = random_atoms(int(live.sum()), atoms.shape[1], seed)
    groups, chance = polysemanticity(atoms, heads, top, cosine, live), polysemanticity(random, heads, top, cosine)
    main = weights.argmax(1)[live]
    same = (main == mean.abs().argmax(1)[live]).double().numpy()
    several = (groups > 1).double().numpy()
    found = Heads(
        tuple(
            Head(
                int((main == at).sum()),
                int(groups[at]),
                int(chance[at]),
                tuple((j, float(weights[j, at])) for j in mine),
            )
            for at, mine in enumerate(head_latents(atoms, heads, top, live).tolist())
        ),
        estimated(several, float((chance > 1).double().mean()), resamples, seed),
        estimated(same, 1 / heads, resamples, seed),
        int(live.sum()),
        rows,
    )
    write_result(
        out,
        Result(
            metric="share of heads with unrelated latents",
            value=found.polysemantic.value,
            floor=found.polysemantic.floor,
            interval=found.polysemantic.interval,
            n={"heads": heads, "live latents": found.live, "rows": rows},
            seeds={"random directions and bootstrap": seed},
            splits={"report": select.describe()},
            normalisation=run.fingerprint["normalisation"]["mode"],
            token_kinds=list(kinds or site.kind_names),
            fingerprint={"sae": run.fingerprint, "store": site.fingerprint},
            details={"heads": found, "top": top, "cosine": cosine},
        ),
    )
    draw(found, out / "attention_heads.png")
    return found


def estimated(values: Float[np.ndarray, "n"], floor: float, resamples: int, seed: int) -> Estimate:
    """A mean, with its bootstrap interval over what it is of."""
    drawn = draws(len(values), resamples, seed) @ values / len(values) if resamples and len(values) > 1 else None
    return Estimate(float(values.mean()), floor, None if drawn is None else percentiles(drawn))


def table(found: Heads) -> Table:
    shown = Table("head", "latents", "groups", "random", "most its own (weight)")
    for at, each in enumerate(found.heads):
        best = ", ".join(f"{latent} ({weight:.2f})" for latent, weight in each.top[:4])
        shown.add_row(str(at), f"{each.latents:,}", str(each.groups), str(each.random_groups), best)
    shown.title = f"Attention heads of {found.live:,} live latents"
    said = found.agreement
    shown.caption = (
        f"heads with unrelated latents {found.polysemantic.value:.2f} (random directions {found.polysemantic.floor:.2f}); "
        f"weight and contribution name the same head for {said.value:.2f} of latents (chance {said.floor:.2f})"
    )
    return shown


def draw(found: Heads, path: Path) -> Path:
    """Groups of each head beside those of random directions."""

    def on(axes: Any) -> None:
        at = np.arange(len(found.heads))
        axes.bar(at, [each.groups for each in found.heads], color=ACCENT, label="dictionary")
        axes.step(at, [each.random_groups for each in found.heads], where="mid", color=QUIET, label="random directions")
        axes.set(xlabel="head", ylabel="groups of unrelated latents", xticks=at)
        axes.legend(frameon=False)

    return save(on, path)
