"""`vsae eval ontology`: how deep in a taxonomy the nodes are that a run's latents stand for, beside those of what must be beaten.

    random dictionary    random unit atoms, the run's number of latents and L0: an SAE that learnt nothing, pooled as the run is
    neurons, PCA         mean activations along the coordinates, and along the components of the fit half; either sign of each is a candidate

All report on the same samples, by the same code.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.table import Table

from evals import baselines
from evals.attributes import Attributes
from evals.figures import ACCENT, QUIET, save
from evals.label_reading import NONE, Track, read, write
from evals.labelled import labelled
from evals.ontology import TOP, Ontology, TooFew, Tree, ontology
from evals.pooling import Pool, Scores
from evals.recovery_runs import baselines_of, parts
from vsae.activations import Select
from vsae.activations.store import SiteReader
from vsae.run import Run


def ontology_of(
    run: Run,
    site: SiteReader,
    attributes: Attributes,
    hierarchy: Mapping[str, Sequence[str]],
    out: Path,
    *,
    top: int = TOP,
    pooling: Pool = "max",
    resamples: int = 200,
    seed: int = 0,
    batch_size: int = 4096,
    kinds: tuple[str, ...] | None = None,
    track: Track = NONE,
) -> dict[str, Ontology]:
    """Of samples that have one leaf of the hierarchy; the run beside its baselines. Write result.json and ontology.png to `out`. Raises ValueError."""
    found = read(run, site, attributes, kinds, pooling, batch_size, track)
    known = set(attributes.names)
    inner = set(hierarchy)
    leaves = sorted({child for children in hierarchy.values() for child in children if child not in inner})
    if lost := [leaf for leaf in leaves if leaf not in known]:
        raise ValueError(f"the hierarchy names {lost[0]!r}, which is no attribute of these samples.")
    tree = Tree.of(hierarchy)
    columns = [attributes.names.index(leaf) for leaf in leaves]
    nodes = np.array([tree.names.index(leaf) for leaf in leaves], np.int64)
    codes, dense = found.codes[1], found.dense[1]
    truth = codes.truth.toarray().astype(bool)[:, columns]
    one = np.flatnonzero(truth.sum(1) == 1)
    if len(one) < 2:
        raise ValueError(f"{len(one)} samples have exactly one leaf of the hierarchy, and two or more are needed.")
    leaf = nodes[truth[one].argmax(1)]
    selects = [Select(found.kinds, part, run.skip) for part in parts([run], site, site, None, None)[1:]]
    pca = baselines.fit_pca(track(site.sequential(batch_size, selects[0]), "fit PCA", -(-site.n_rows // batch_size)))
    random = baselines_of(run, pca, seed)["random dictionary"]
    learnt_nothing = labelled(random, site, attributes, selects[1], pooling, batch_size, track).scores
    x = np.asarray(dense.scores, np.float64)[one]
    x = x - x.mean(0)
    candidates: dict[str, Scores] = {
        "random dictionary": rows_of(learnt_nothing, one),
        "neurons": either_sign(x),
        "PCA": either_sign(x @ pca.atoms.double().numpy().T),
    }
    measured = {
        run.meta["recipe"]["name"]: ontology(
            rows_of(codes.scores, one), leaf, tree, top=top, resamples=resamples, seed=seed
        )
    }
    for name, each in candidates.items():
        # a random dictionary may spread over so many latents that none is active enough: a finding, and no reason to stop
        with suppress(TooFew):
            measured[name] = ontology(each, leaf, tree, top=top, resamples=resamples, seed=seed)
    first = next(iter(measured.values()))
    counts = {
        "samples": len(one),
        "leaves": len(leaves),
        "latents": len(first.latents.latent),
        "latents left out": first.left_out,
    }
    write(
        out,
        "mean depth of the lowest common ancestor",
        first.depth,
        counts,
        run,
        site,
        found,
        {"ontology": measured, "tree": tree, "top": top},
        seed,
    )
    draw_ontology(first, tree, out / "ontology.png")
    return measured


def rows_of(scores: Scores, rows: np.ndarray) -> Scores:
    return scores[rows] if isinstance(scores, np.ndarray) else scores.tocsr()[rows].tocsc()


def either_sign(x: Float[np.ndarray, "samples n"]) -> Float[np.ndarray, "samples 2*n"]:
    """Each column and its opposite, where they are positive."""
    return np.maximum(np.concatenate([x, -x], 1), 0)


def ontology_table(found: Mapping[str, Ontology]) -> Table:
    first = next(iter(found.values()))
    shown = Table(
        "directions",
        "LCA depth",
        "90 % LCA depth",
        "LCH height",
        "pair LCA depth",
        *(f"coverage, F1 >= {at}" for at in first.coverage),
        "left out",
    )
    for name, each in found.items():
        estimates = [each.depth, each.robust_depth, each.height, each.pair_depth, *each.coverage.values()]
        shown.add_row(name, *(f"{one.value:.2f} ({one.floor:.2f})" for one in estimates), f"{each.left_out:,}")
    shown.title = "Ontology (in brackets: labels permuted)"
    if "random dictionary" not in found:
        shown.caption = "random dictionary: no latent is active enough"
    return shown


def draw_ontology(found: Ontology, tree: Tree, path: Path) -> Path:
    """Latents by the depth of their lowest common ancestor."""

    def on(axes: Any) -> None:
        depths = range(int(tree.depth.max()) + 1)
        counts = np.bincount(tree.depth[found.latents.lca], minlength=len(depths))
        robust = np.bincount(tree.depth[found.latents.robust], minlength=len(depths))
        axes.bar([d - 0.2 for d in depths], counts, 0.4, color=ACCENT, label="all of the top samples")
        axes.bar([d + 0.2 for d in depths], robust, 0.4, color=QUIET, label="90 % of them")
        axes.set(xlabel="depth of the lowest common ancestor (0: root)", ylabel="latents", xticks=list(depths))
        axes.legend(frameon=False)

    return save(on, path)
