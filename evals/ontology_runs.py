"""`vsae eval ontology`: how deep in a taxonomy the nodes are that a run's latents stand for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from evals.attributes import Attributes
from evals.figures import ACCENT, QUIET, save
from evals.label_reading import NONE, Track, read, write
from evals.ontology import TOP, Ontology, Tree, ontology
from evals.pooling import Pool
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
    """Of samples that have one leaf of the hierarchy; the run beside raw neurons of either sign. Write result.json and ontology.png to `out`. Raises ValueError."""
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
    scores = codes.scores[one] if isinstance(codes.scores, np.ndarray) else codes.scores.tocsr()[one].tocsc()
    x = np.asarray(dense.scores, np.float64)[one]
    x = x - x.mean(0)
    neurons = np.maximum(np.concatenate([x, -x], 1), 0)
    measured = {
        name: ontology(each, leaf, tree, top=top, resamples=resamples, seed=seed)
        for name, each in ((run.meta["recipe"]["name"], scores), ("neurons", neurons))
    }
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


def ontology_table(found: Mapping[str, Ontology]) -> Table:
    first = next(iter(found.values()))
    shown = Table(
        "directions",
        "LCA depth",
        "90 % LCA depth",
        "pair LCA depth",
        *(f"coverage, F1 >= {at}" for at in first.coverage),
        "left out",
    )
    for name, each in found.items():
        estimates = [each.depth, each.robust_depth, each.pair_depth, *each.coverage.values()]
        shown.add_row(name, *(f"{one.value:.2f} ({one.floor:.2f})" for one in estimates), f"{each.left_out:,}")
    shown.title = "Ontology (in brackets: labels permuted)"
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
