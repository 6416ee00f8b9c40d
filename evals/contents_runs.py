"""`vsae eval contents`: what one collection of images or texts holds more of than another, and which latents go together in the first; see `evals.contents`."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.table import Table
from scipy.sparse import csc_array, csr_array

from evals import contents
from evals.contents import ALPHA, MIN_SAMPLES, Differences, Together
from evals.figures import ACCENT, QUIET, save
from evals.pooling import candidates, pool
from evals.result import Result, write_result
from evals.sums import draws
from vsae.activations import Select, fingerprint
from vsae.activations.store import SiteReader
from vsae.run import Run

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


@dataclass(frozen=True)
class Found:
    differences: Differences
    interval: Float[np.ndarray, "2 latents"]
    """95 % bootstrap interval of each difference, over samples of both collections."""
    together: Together
    floor: float
    """Share of tested latents that differ between random parts of both."""
    names: Mapping[int, str]
    alpha: float

    @property
    def share(self) -> float | None:
        """Of the tested latents, those that differ."""
        tested = int((~np.isnan(self.differences.q)).sum())
        return float(self.differences.found(self.alpha).sum() / tested) if tested else None

    def called(self, latent: int) -> str:
        return self.names.get(latent, "")


def evaluate(
    run: Run,
    first: SiteReader,
    second: SiteReader,
    out: Path,
    *,
    kinds: tuple[str, ...] | None = None,
    names: Mapping[int, str] | None = None,
    alpha: float = ALPHA,
    min_samples: int = MIN_SAMPLES,
    pairs: int = 50,
    resamples: int = 200,
    seed: int = 0,
    batch_size: int = 4096,
    track: Track = lambda items, what, n: items,
) -> Found:
    """Compare; write result.json and contents.png to `out`. Of the run's own store only held-out samples are read. Raises ValueError."""
    kinds = kinds or run.kinds
    codec = candidates(run.sae)
    scores, splits = list[csc_array](), dict[str, Any]()
    for name, site in (("first", first), ("second", second)):
        fingerprint.check(run.fingerprint, site.fingerprint)
        select = Select(kinds, run.held_out(site), run.skip)
        splits[name] = select.describe()
        found = pool(codec, track(site.sequential(batch_size, select), name, -(-site.n_rows // batch_size)), "max")
        assert not isinstance(found.scores, np.ndarray)
        scores.append(found.scores)
    compared = Found(
        contents.differences(scores[0], scores[1], min_samples),
        intervals(scores[0], scores[1], resamples, seed),
        contents.together(scores[0], pairs, min_samples, seed),
        contents.halves(scores[0], scores[1], min_samples, seed=seed, alpha=alpha),
        names or {},
        alpha,
    )
    d, t = compared.differences, compared.together
    write_result(
        out,
        Result(
            metric="share of tested latents that differ between the collections",
            value=compared.share,
            floor=compared.floor,
            interval=None,
            n={
                "first": d.samples[0],
                "second": d.samples[1],
                "tested": int((~np.isnan(d.q)).sum()),
                "latents": len(d.p),
            },
            seeds={"floors and bootstrap over samples": seed},
            splits=splits,
            normalisation=run.fingerprint["normalisation"]["mode"],
            token_kinds=list(kinds or first.kind_names),
            fingerprint={"sae": run.fingerprint, "stores": [first.fingerprint, second.fingerprint]},
            details={
                "alpha": alpha,
                "min_samples": min_samples,
                "differences": [row(compared, latent) for latent in d.order().tolist() if not np.isnan(d.p[latent])],
                "together": [
                    {"latents": pair, "names": [compared.called(k) for k in pair], "npmi": value, "samples": n}
                    for pair, value, n in zip(t.pairs.tolist(), t.npmi.tolist(), t.samples.tolist(), strict=True)
                ],
                "together floor": t.floor,
            },
        ),
    )
    draw(compared, out / "contents.png")
    return compared


def intervals(first: csc_array, second: csc_array, resamples: int, seed: int) -> Float[np.ndarray, "2 latents"]:
    """NaN without resamples."""
    if not resamples:
        return np.full((2, first.shape[1]), np.nan)
    shares = []
    for at, scores in enumerate((first, second)):
        fired, n = csr_array(contents.active(scores)), scores.shape[0]
        shares.append(draws(n, resamples, seed + at) @ fired / n)
    return np.quantile(shares[0] - shares[1], [0.025, 0.975], axis=0)


def row(found: Found, latent: int) -> dict[str, Any]:
    d = found.differences
    numbers = {name: float(getattr(d, name)[latent]) for name in ("first", "second", "difference", "p", "q")}
    low, high = found.interval[:, latent].tolist()
    return {"latent": latent, "name": found.called(latent), **numbers, "low": low, "high": high}


def table(found: Found, most: int = 20) -> Table:
    d = found.differences
    shown = Table("latent", "name", "first", "second", "difference", "95 % interval", "q")
    listed = [k for k in d.order().tolist() if d.found(found.alpha)[k]]
    for k in listed[:most]:
        low, high = found.interval[:, k]
        shown.add_row(str(k), found.called(k), f"{d.first[k]:.1%}", f"{d.second[k]:.1%}", f"{d.difference[k]:+.3f}", f"{low:+.3f} to {high:+.3f}", f"{d.q[k]:.1e}")  # fmt: skip
    shown.title = (
        f"{len(listed):,} latents differ: share of {d.samples[0]:,} and of {d.samples[1]:,} samples that activate them"
    )
    shown.caption = f"floor: {found.floor:.1%} of the latents differ between random parts of both"
    if len(found.together.npmi):
        (i, j), value = found.together.pairs[0].tolist(), found.together.npmi[0]
        both = " and ".join(f"{k} {found.called(k)}".strip() for k in (i, j))
        shown.caption += (
            f"; most together in the first: {both} (NPMI {value:.2f}, permuted at most {found.together.floor:.2f})"
        )
    return shown


def draw(found: Found, path: Path) -> Path:
    """Share in the one collection against share in the other."""

    def on(axes: Any) -> None:
        d, differs = found.differences, found.differences.found(found.alpha)
        for which, color, name in ((~differs, QUIET, "others"), (differs, ACCENT, f"q < {found.alpha:g}")):
            axes.scatter(d.second[which], d.first[which], s=9, color=color, label=f"{name} ({which.sum():,})")
        top = max(float(d.first.max(initial=0)), float(d.second.max(initial=0)), 1e-3)
        axes.plot([0, top], [0, top], color=QUIET, lw=1, ls="--")
        for k in [k for k in d.order().tolist() if differs[k] and found.called(k)][:8]:
            label = found.called(k).replace("$", r"\$")
            axes.annotate(label, (d.second[k], d.first[k]), fontsize=7, xytext=(3, 3), textcoords="offset points")
        axes.set(xlabel="share of the second collection's samples", ylabel="share of the first's")
        axes.legend(frameon=False, fontsize=8)

    return save(on, path)
