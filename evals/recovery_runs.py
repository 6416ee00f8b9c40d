"""`vsae eval recovery`: which known attributes single latents stand for, in runs and in what they must beat.

    runs                    several of one recipe (seeds) are summed up
    part of RUN             so many of its latents, at random, as the dense baselines have candidates: an equal number of tickets
    random dictionary       random unit atoms, the run's number of latents and L0: an SAE that learnt nothing
    random directions       dense; as PCA and neurons, both signs of each, at most as many candidates as the SAE has latents
    neurons                 the activation's own coordinates
    PCA                     fitted on the fit split

All choose on the selection split and report on the report split, by the same code.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import t as student
from torch import Tensor

from evals import baselines
from evals.attributes import Attributes
from evals.labelled import beside
from evals.pooling import Pool, candidates, pool
from evals.reconstruction import Codec
from evals.recovery import HEADLINE, MIN_POSITIVES, THRESHOLDS, Labelled, Recovery, difference, recover, shuffled
from evals.recovery_shown import Comparison, Method, draw_recovery
from evals.result import Estimate, Result, write_result
from evals.splitting import absorption, splitting
from vsae.activations import Select, fingerprint
from vsae.activations.store import SiteReader
from vsae.code import Code
from vsae.run import Run
from vsae.sae import SAE
from vsae.sparsifiers import TopK

Part = tuple[float, float]
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


@dataclass(frozen=True)
class Directions:
    """Scores along given directions and their opposites, (x - mean) . w and -(x - mean) . w: the sign of a direction means nothing."""

    atoms: Float[Tensor, "n_latents d_model"]
    mean: Float[Tensor, "d_model"]

    @staticmethod
    def both(atoms: Float[Tensor, "n d_model"], mean: Float[Tensor, "d_model"]) -> "Directions":
        return Directions(torch.cat([atoms, -atoms]), mean)

    @property
    def n_latents(self) -> int:
        return len(self.atoms)

    def encode(self, x: Float[Tensor, "batch d_model"]) -> Code:
        return Code.full((x - self.mean) @ self.atoms.T)

    def decode(self, code: Code) -> Float[Tensor, "batch d_model"]:
        return self.mean + code.dense(self.n_latents) @ self.atoms


def evaluate(
    runs: Sequence[Run],
    site: SiteReader,
    attributes: Attributes,
    out: Path,
    *,
    hierarchy: Mapping[str, Sequence[str]] | None = None,
    pooling: Pool = "max",
    kinds: tuple[str, ...] | None = None,
    selection: Part | None = None,
    report: Part | None = None,
    fit_site: SiteReader | None = None,
    min_positives: int = MIN_POSITIVES,
    resamples: int = 200,
    seed: int = 0,
    batch_size: int = 4096,
    track: Track = lambda items, what, n: items,
) -> Comparison:
    """Measure runs and baselines; write result.json and recovery.png to `out`.

    Parts are shares of the samples by hash of their key. Left out: of a store that a run was trained on, the two halves of what was held out; of another,
    (0.2, 0.6) and (0.6, 1), the first fifth being for PCA, or two halves with `fit_site`. A table of tokens is read token by token, whatever `pooling`.
    Raises ValueError for parts that overlap or were trained on, and for a table that knows none of the samples.
    """
    for run in runs:
        fingerprint.check(run.fingerprint, site.fingerprint)
    kinds, skip = kinds or runs[0].kinds, runs[0].skip
    fit, selection, report = parts(runs, site, fit_site, selection, report)
    table, hierarchy = attributes.with_parents(hierarchy or {}), hierarchy or {}
    how: Pool = "token" if table.positions is not None else pooling
    unlabelled = 0

    def labelled(codec: Codec, part: Part, what: str) -> Labelled:
        nonlocal unlabelled
        batches = track(site.sequential(batch_size, Select(kinds, part, skip)), what, -(-site.n_rows // batch_size))
        pooled = pool(codec, batches, how, dense=isinstance(codec, Directions))
        found, unknown = beside(pooled, site, table)
        unlabelled = max(unlabelled, unknown)
        return found

    def measured(name: str, splits: tuple[Labelled, Labelled], run: Run | None = None) -> Method:
        found = recover(*splits, table.names, resamples=resamples, seed=seed, min_positives=min_positives)
        return Method(
            name,
            found,
            shuffled(*splits, table.names, seed, min_positives),
            splitting(found, *splits, table.names),
            absorption(found, splits[1], table.names, hierarchy, resamples=resamples, seed=seed),
            str(run.path) if run else None,
            run.meta["recipe"]["name"] if run else None,
        )

    fit_from = fit_site or site
    pca = baselines.fit_pca(
        track(fit_from.sequential(batch_size, Select(kinds, fit, skip)), "fit PCA", -(-fit_from.n_rows // batch_size))
    )
    codecs = baselines_of(runs[0], pca, seed)
    tickets, methods = codecs["PCA"].n_latents, []
    for run in runs:
        name = run.path.name if len(runs) > 1 else run.meta["recipe"]["name"]
        codec = candidates(run.sae)
        splits = labelled(codec, selection, f"choose, {name}"), labelled(codec, report, f"report, {name}")
        methods.append(measured(name, splits, run))
        if (part := some_live(splits[0], tickets, seed)) is not None:
            fewer = [dataclasses.replace(split, scores=split.scores[:, part]) for split in splits]
            methods.append(measured(f"{tickets} of {name}", (fewer[0], fewer[1])))
    for name, codec in codecs.items():
        splits = labelled(codec, selection, f"choose, {name}"), labelled(codec, report, f"report, {name}")
        methods.append(measured(name, splits))
    described = {"fit": (fit_from, fit), "selection": (site, selection), "report": (site, report)}
    comparison = Comparison(
        tuple(methods),
        over_baselines(methods),
        over_seeds(methods),
        {
            name: where.fingerprint | {"select": Select(kinds, part, skip).describe()}
            for name, (where, part) in described.items()
        },
        unlabelled,
    )
    write_result(out, to_result(comparison, runs, site, how, kinds, seed))
    draw_recovery(comparison.methods, out / "recovery.png")
    return comparison


def parts(
    runs: Sequence[Run], site: SiteReader, fit_site: SiteReader | None, selection: Part | None, report: Part | None
) -> tuple[Part, Part, Part]:
    """(fit, selection, report) as `evaluate` says. Raises ValueError."""
    own = [run for run in runs if run.fingerprint["store"] == site.fingerprint["store"]]
    border = max((run.fingerprint["select"]["part"][1] for run in own), default=0.0 if fit_site else 0.2)
    if border == 1:
        raise ValueError(
            f"{own[0].path} was trained on all of {site.store.path}: measure it on another store, or train with --val-share."
        )
    fit = (0.0, 1.0) if fit_site else (0.0, border)
    middle = (border + 1) / 2 if own or fit_site else 0.6
    selection, report = selection or (border, middle), report or (middle, 1.0)
    if selection[1] > report[0] and report[1] > selection[0]:
        raise ValueError(
            f"selection {selection[0]:g} to {selection[1]:g} and report {report[0]:g} to {report[1]:g} overlap: keep them apart."
        )
    if own and report[0] < border:
        raise ValueError(f"report {report[0]:g} to {report[1]:g} holds training samples: begin at {border:g} or later.")
    return fit, selection, report


def baselines_of(run: Run, pca: baselines.PCA, seed: int) -> dict[str, Codec]:
    """The baselines of one run, by name."""
    d, n = pca.n_latents, run.sae.n_latents
    m = max(1, min(d, n // 2))
    generator = torch.Generator().manual_seed(seed)
    atoms = unit(torch.randn(n, d, generator=generator))
    k = min(n, max(1, round(run.meta["self_check"]["l0"])))
    neurons = torch.eye(d)[torch.randperm(d, generator=generator)[:m]]
    return {
        "random dictionary": SAE.from_weights(atoms.T.contiguous(), torch.zeros(n), atoms, pca.mean, TopK(k)),
        "random directions": Directions.both(unit(torch.randn(m, d, generator=generator)), pca.mean),
        "neurons": Directions.both(neurons, pca.mean),
        "PCA": Directions.both(pca.first(m).atoms, pca.mean),
    }


def some_live(split: Labelled, n: int, seed: int) -> np.ndarray | None:
    """`n` random candidates among those that speak in the selection split; None when there are no more than that."""
    assert not isinstance(split.scores, np.ndarray)
    live = np.flatnonzero(np.diff(split.scores.indptr))
    return np.sort(np.random.default_rng([seed, 2]).choice(live, n, replace=False)) if len(live) > n else None


def over_baselines(methods: Sequence[Method]) -> dict[str, dict[str, dict[str, Estimate]]]:
    runs, others = [m for m in methods if m.run], [m for m in methods if not m.run]
    return {
        run.name: {
            other.name: {
                "mean_ap": difference(run.recovery, other.recovery),
                f"share_ap_{HEADLINE}": difference(run.recovery, other.recovery, HEADLINE),
            }
            for other in others
        }
        for run in runs
    }


def over_seeds(methods: Sequence[Method]) -> dict[str, dict[str, Estimate]]:
    """Mean over the runs of each recipe."""
    found: dict[str, dict[str, Estimate]] = {}
    for recipe in sorted({method.recipe for method in methods if method.recipe}):
        mine = [method.recovery for method in methods if method.recipe == recipe]
        numbers = {
            "mean_ap": [each.mean_ap for each in mine],
            "mean_f1": [each.mean_f1 for each in mine],
            **{f"share_ap_{at}": [each.share_ap[str(at)] for each in mine] for at in THRESHOLDS},
            **{f"share_f1_{at}": [each.share_f1[str(at)] for each in mine] for at in THRESHOLDS},
        }
        found[recipe] = {
            name: over(np.array([e.value for e in each], np.float64), each[0].floor) for name, each in numbers.items()
        }
    return found


def over(values: Float[np.ndarray, "seeds"], floor: float | None) -> Estimate:
    """Mean, with Student's 95 % interval where there are at least two."""
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return Estimate(mean, floor)
    half = float(student.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return Estimate(mean, floor, (mean - half, mean + half))


def to_result(
    found: Comparison, runs: Sequence[Run], site: SiteReader, how: Pool, kinds: Sequence[str] | None, seed: int
) -> Result:
    """The share of attributes with AP above HEADLINE is the headline: of the run, or of the first recipe's runs."""
    first = found.methods[0]
    several = sum(method.recipe == first.recipe for method in found.methods) > 1
    own = first.recovery.share_ap[str(HEADLINE)]
    headline = found.over_seeds[str(first.recipe)][f"share_ap_{HEADLINE}"] if several else own

    def bare(recovery: Recovery) -> Recovery:
        return dataclasses.replace(recovery, ap_draws=None)

    methods = [dataclasses.replace(m, recovery=bare(m.recovery), shuffled=bare(m.shuffled)) for m in found.methods]
    return Result(
        metric=f"share of attributes with AP > {HEADLINE}",
        value=headline.value,
        floor=headline.floor,
        interval=headline.interval,
        n={
            "rows": first.recovery.n_rows,
            "samples": first.recovery.n_samples,
            "attributes": len(first.recovery.attributes),
            "runs": len(runs),
            "unlabelled": found.unlabelled,
        },
        seeds={"bootstrap, baselines and shuffle": seed}
        | {f"training, {run.path.name}": run.meta.get("config", {}).get("seed", 0) for run in runs},
        splits=found.splits,
        normalisation=runs[0].fingerprint["normalisation"]["mode"],
        token_kinds=list(kinds or site.kind_names),
        fingerprint={"saes": [run.fingerprint for run in runs], "store": site.fingerprint},
        details=dataclasses.replace(found, methods=tuple(methods)).__dict__ | {"pooling": how},
    )


def unit(rows: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
    return torch.nn.functional.normalize(rows, dim=1)
