"""`vsae eval probing`: what a few of a run's latents know of labels, beside raw neurons and dense probes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from evals.attributes import Attributes
from evals.figures import QUIET, save
from evals.label_reading import NONE, Track, read, write
from evals.pooling import Pool
from evals.probes import LATENTS, Labels
from evals.probing import REGIMES, K, Probing, Regimes, probe
from vsae.activations.store import SiteReader
from vsae.run import Run


def probing_of(
    run: Run,
    site: SiteReader,
    attributes: Attributes,
    out: Path,
    *,
    k: Sequence[int] = K,
    regimes: Regimes = Regimes(),  # noqa: B008 (frozen)
    kinds: tuple[str, ...] | None = None,
    pooling: Pool = "max",
    min_positives: int = 10,
    nonlinear: bool = False,
    resamples: int = 200,
    seed: int = 0,
    batch_size: int = 4096,
    track: Track = NONE,
) -> Probing:
    """Probe a run's latents for every attribute; write result.json and probing.png to `out`."""
    found = read(run, site, attributes, kinds, pooling, batch_size, track)
    train, test = (
        Labels(codes.scores, np.asarray(dense.scores, np.float64), codes.truth.toarray().astype(bool), codes.samples)
        for codes, dense in zip(found.codes, found.dense, strict=True)
    )
    if not (k := [size for size in k if 1 <= size <= train.codes.shape[1]]):
        raise ValueError(f"this SAE has {train.codes.shape[1]} latents: probe 1 to so many with --k.")
    own: dict[str, Any] = {"regimes": regimes, "min_positives": min_positives, "resamples": resamples, "seed": seed}
    probed = probe(train, test, attributes.names, k=k, nonlinear=nonlinear, track=track, **own)
    headline = probed.methods["normal"][f"{LATENTS} {max(k)}"].auc
    counts = {"training samples": probed.n_train, "test samples": probed.n_test, "attributes": len(probed.attributes)}
    details = {"probing": probed, "regimes": regimes, "pooling": pooling}
    write(out, f"mean AUC of {max(k)} latents", headline, counts, run, site, found, details, seed)
    draw_probing(probed, out / "probing.png")
    return probed


def probing_table(found: Probing) -> Table:
    shown = Table("method", *REGIMES, "labels permuted")
    shown.title = f"Test AUC of probes, mean over {len(found.attributes)} attributes (floor 0.5)"
    for name, method in found.methods["normal"].items():
        values = [found.methods[regime][name].auc.value for regime in REGIMES]
        shown.add_row(name, *(f"{value:.3f}" for value in values), f"{method.shuffled:.3f}")
    gained = ", ".join(f"{regime} {found.toolkit[regime].value:+.3f}" for regime in REGIMES)
    shown.caption = f"what the best method by validation gains where latents are among the methods: {gained}"
    return shown


def draw_probing(found: Probing, path: Path) -> Path:
    """Test AUC by method, a colour a regime."""

    def on(axes: Any) -> None:
        names = list(found.methods["normal"])[::-1]
        for regime in REGIMES:
            each = [found.methods[regime][name].auc for name in names]
            axes.plot([one.value for one in each], range(len(names)), "o", ms=5, label=regime)
        axes.axvline(0.5, color=QUIET, lw=1, ls="--")
        axes.set(xlabel="test AUC (0.5: knows nothing)", yticks=range(len(names)), yticklabels=names)
        axes.legend(frameon=False, fontsize=8)

    return save(on, path)
