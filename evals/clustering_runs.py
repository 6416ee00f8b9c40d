"""`vsae eval clustering`: groups of images or texts by the latents they activate, and samples found by latents or by a sample; see `evals.clustering`.

Beside the run: raw mean activations about their mean, by the same k-means and the same cosines.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from evals import clustering
from evals.attributes import Attributes
from evals.clustering import ByAttribute, Mark, Weighting
from evals.figures import ACCENT, save
from evals.label_reading import NONE, Track
from evals.pooling import candidates, pool
from evals.recovery_runs import Directions
from evals.result import Estimate, Result, write_result
from evals.supervised_runs import members_of
from vsae.activations import Select, fingerprint
from vsae.activations.store import SiteReader
from vsae.run import Run

FOUND = 10


@dataclass(frozen=True)
class Clustered:
    keys: tuple[str, ...]
    cluster: np.ndarray
    marks: list[list[Mark]]
    names: Mapping[int, str]
    rand: dict[str, dict[str, Estimate]]
    """Group of labels -> method -> adjusted Rand index."""
    precision: dict[str, dict[str, Estimate]]
    """Group of labels -> method -> precision@k by sample."""
    attribute: ByAttribute | None
    like: dict[str, list[str]]
    """Method -> keys of the samples most like the one that was asked for."""
    found: list[str]
    """Keys of the samples with most of the latents that were asked for."""
    empty: int
    """Samples that activate none of the latents."""

    def called(self, mark: Mark) -> str:
        return f"{mark.latent} {self.names.get(mark.latent, '')}".strip()


def evaluate(
    run: Run,
    site: SiteReader,
    out: Path,
    *,
    attributes: Attributes | None = None,
    groups: Sequence[str] = (),
    n: int | None = None,
    weighting: Weighting = "tf-idf",
    latents: Sequence[int] | None = None,
    like: str | None = None,
    find: Sequence[int] = (),
    k: int = 10,
    kinds: tuple[str, ...] | None = None,
    names: Mapping[int, str] | None = None,
    resamples: int = 200,
    seed: int = 0,
    batch_size: int = 4096,
    track: Track = NONE,
) -> Clustered:
    """Write result.json and clustering.png to `out`. Of the run's own store only held-out samples are read. n: as many as the first group has labels, else 8.

    latents: those to cluster by. like: key of a sample, to list those most like it. find: latents, to list the samples with most of them. Raises ValueError.
    """
    fingerprint.check(run.fingerprint, site.fingerprint)
    if attributes is not None and attributes.positions is not None:
        raise ValueError(
            "the table of attributes is one of tokens, and whole samples are clustered: give one of samples."
        )
    kinds = kinds or run.kinds
    select = Select(kinds, run.held_out(site), run.skip)

    def batches(what: str) -> Any:
        return track(site.sequential(batch_size, select), what, -(-site.n_rows // batch_size))

    codes = pool(candidates(run.sae), batches("codes"), "max")
    identity = Directions(torch.eye(run.sae.d_model), torch.zeros(run.sae.d_model))
    x = np.asarray(pool(identity, batches("activations"), "mean", dense=True).scores, np.float64)
    assert not isinstance(codes.scores, np.ndarray)
    keys = tuple(site.keys[at] for at in codes.samples.tolist())
    if like is not None and like not in keys:
        raise ValueError(f"no sample that was read has the key {like!r}: the first is {keys[0]!r}.")
    rows = {"latents": clustering.embedded(codes.scores, weighting, latents), "raw means": clustering.centred(x)}
    truth, known, members = np.zeros((len(keys), 0), bool), np.zeros(len(keys), bool), dict[str, list[int]]()
    if attributes is not None:
        at = attributes.rows_of(keys)
        known = at >= 0
        if not known.any():
            raise ValueError(f"the table of attributes knows none of the samples, whose first key is {keys[0]!r}.")
        truth = attributes.truth[np.maximum(at, 0)].toarray().astype(bool) & known[:, None]
        members = members_of(attributes.names, groups, truth)
    n = n or (len(next(iter(members.values()))) if members else 8)
    assigned = {name: clustering.clusters(each, n, seed) for name, each in rows.items()}
    rand, precision = dict[str, dict[str, Estimate]](), dict[str, dict[str, Estimate]]()
    for group, columns in members.items():
        one = np.flatnonzero(truth[:, columns].sum(1) == 1)
        label = truth[one][:, columns].argmax(1).astype(np.int64)
        if len(one) < 2:
            raise ValueError(f"{len(one)} samples have exactly one value of {group!r}, and two or more are needed.")
        rand[group] = {m: clustering.agreement(c[one], label, resamples, seed) for m, c in assigned.items()}
        precision[group] = {m: clustering.by_sample(r[one], label, k, resamples, seed) for m, r in rows.items()}
    some = np.flatnonzero(known)
    attribute = (
        clustering.by_attribute(
            codes.scores[some] if len(some) == len(keys) else codes.scores.tocsr()[some].tocsc(),
            rows["latents"][some],
            x[some],
            truth[some],
            attributes.names,
            k=k,
            resamples=resamples,
            seed=seed,
        )
        if attributes is not None
        else None
    )
    query = np.array([keys.index(like)] if like is not None else [], np.int64)
    everything = clustering.embedded(codes.scores, weighting)
    clustered = Clustered(
        keys,
        assigned["latents"],
        clustering.marks(codes.scores, assigned["latents"]),
        names or {},
        rand,
        precision,
        attribute,
        {m: [keys[i] for i in clustering.nearest(r, query, FOUND)[0]] for m, r in rows.items()} if len(query) else {},
        [keys[i] for i in clustering.by_latents(everything, find, FOUND)] if find else [],
        int((np.diff(rows["latents"].indptr) == 0).sum()),
    )
    write_result(out, to_result(clustered, run, site, select, kinds, seed, {"k": k, "weighting": weighting, "latents": latents}))  # fmt: skip
    draw(clustered, out / "clustering.png")
    return clustered


def to_result(
    found: Clustered,
    run: Run,
    site: SiteReader,
    select: Select,
    kinds: tuple[str, ...] | None,
    seed: int,
    asked: dict[str, Any],
) -> Result:
    headline = next(iter(found.rand.values()))["latents"] if found.rand else Estimate(None)
    return Result(
        metric="adjusted Rand index of clusters by latents and labels",
        value=headline.value,
        floor=headline.floor,
        interval=headline.interval,
        n={"samples": len(found.keys), "clusters": len(found.marks), "without a latent": found.empty},
        seeds={"k-means, halves, permuted labels and bootstrap": seed},
        splits={"report": select.describe()},
        normalisation=run.fingerprint["normalisation"]["mode"],
        token_kinds=list(kinds or site.kind_names),
        fingerprint={"sae": run.fingerprint, "store": site.fingerprint},
        details=asked
        | {
            "clusters": [
                {"samples": int((found.cluster == at).sum()), "marks": marks, "names": [found.called(m) for m in marks]}
                for at, marks in enumerate(found.marks)
            ],
            "cluster of": dict(zip(found.keys, found.cluster.tolist(), strict=True)),
            "adjusted Rand index": found.rand,
            "precision@k by sample": found.precision,
            "precision@k by attribute": found.attribute,
            "most like": found.like,
            "found by latents": found.found,
        },
    )


def table(found: Clustered) -> Table:
    shown = Table("cluster", "samples", "latents that mark it (inside, outside)")
    for at, marks in enumerate(found.marks):
        said = ", ".join(f"{found.called(m)} ({m.inside:.0%}, {m.outside:.0%})" for m in marks[:3])
        shown.add_row(str(at), f"{int((found.cluster == at).sum()):,}", said)
    shown.title = f"Clusters of {len(found.keys):,} samples by their latents"
    lines = [f"{found.empty:,} samples activate no latent"] if found.empty else []
    numbers = [(f"{group}: adjusted Rand index", each) for group, each in found.rand.items()]
    numbers += [(f"{group}: precision@k by sample", each) for group, each in found.precision.items()]
    numbers += [("precision@k by attribute", found.attribute.mean)] if found.attribute else []
    lines += [
        f"{what} (labels permuted): " + ", ".join(f"{m} {e.value:.2f} ({e.floor:.2f})" for m, e in each.items())
        for what, each in numbers
    ]
    lines += [f"most like it by {method}: {', '.join(keys)}" for method, keys in found.like.items()]
    lines += [f"found by latents: {', '.join(found.found)}"] if found.found else []
    shown.caption = "\n".join(lines) or None
    return shown


def draw(found: Clustered, path: Path) -> Path:
    """Samples of each cluster, with what marks it."""

    def on(axes: Any) -> None:
        sizes = np.bincount(found.cluster, minlength=len(found.marks))[:30]
        axes.barh(range(len(sizes)), sizes, color=ACCENT)
        for at, marks in enumerate(found.marks[:30]):
            label = ", ".join(found.called(m) for m in marks[:3]).replace("$", r"\$")
            axes.annotate(label, (0, at), fontsize=7, xytext=(3, 0), textcoords="offset points", va="center")
        axes.set(xlabel="samples", ylabel="cluster, and the latents that mark it", yticks=range(len(sizes)))
        axes.invert_yaxis()

    return save(on, path)
