"""Does a latent stand for a node of a taxonomy, and how deep a one? (Companion of 2508.11277 and Pach et al.'s inat_depth.py; the definitions are ours, spec 1c.)

Of a latent's `top` samples by activation, each with one leaf of the tree; latents that fewer samples activate are left out:

    LCA depth        depth of the lowest node that covers all of their leaves (root 0); robust: at least a share q of them
    LCH height       longest way down from that lowest node to a leaf below it (0 for a leaf): Pach et al.'s lowest common hypernym, in a tree of any shape
    pair LCA depth   mean over pairs of samples of the depth of the lowest node that covers both
    coverage(t)      share of the nodes below the root for which some latent and threshold reach F1 >= t of "the sample's leaf is at or below the node"

Floors: the same with the samples' labels permuted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64
from scipy.sparse import csc_array

from evals.pooling import Scores
from evals.ranking import blocks
from evals.reconstruction import percentiles
from evals.result import Estimate
from evals.sums import draws

TOP, ROBUST = 16, 0.9
THRESHOLDS = (0.3, 0.5, 0.7, 0.9)


class TooFew(ValueError):
    """No candidate is activated by enough samples."""


@dataclass(frozen=True)
class Tree:
    """Nodes by number, parents before children; node 0 is the root."""

    names: tuple[str, ...]
    parent: Int64[np.ndarray, "nodes"]
    """-1 for the root."""
    depth: Int64[np.ndarray, "nodes"]

    @staticmethod
    def of(hierarchy: Mapping[str, Sequence[str]], leaves: Sequence[str] = ()) -> "Tree":
        """From parent -> [children]. Leaves in no parent hang from the root. Raises ValueError for a child of two parents, or a circle."""
        above: dict[str, str] = {}
        for parent, children in hierarchy.items():
            for child in children:
                if child in above:
                    raise ValueError(
                        f"{child!r} is below {above[child]!r} and {parent!r}: a tree has one parent for each."
                    )
                above[child] = parent
        tops = [name for name in dict.fromkeys([*hierarchy, *leaves]) if name not in above]
        names, parents, depth, queue = ["(root)"], [-1], [0], [(top, 0) for top in tops]
        while queue:
            name, of = queue.pop(0)
            names.append(name)
            parents.append(of)
            depth.append(depth[of] + 1)
            queue += [(child, len(names) - 1) for child in hierarchy.get(name, ())]
        if lost := sorted(set(above) - set(names)):
            raise ValueError(f"the hierarchy goes in a circle at {lost[0]!r}: take one step out.")
        return Tree(tuple(names), np.array(parents, np.int64), np.array(depth, np.int64))

    def heights(self) -> Int64[np.ndarray, "nodes"]:
        """Steps from each node to the farthest leaf below it."""
        found = np.zeros(len(self.names), np.int64)
        for node in range(len(self.names) - 1, 0, -1):  # children before their parents
            found[self.parent[node]] = max(found[self.parent[node]], found[node] + 1)
        return found

    def paths(self) -> Int64[np.ndarray, "nodes depth"]:
        """Ancestor of each node at each depth, itself included; -1 below it."""
        found = np.full((len(self.names), int(self.depth.max()) + 1), -1, np.int64)
        for node in range(len(self.names)):
            if node:
                found[node] = found[self.parent[node]]
            found[node, self.depth[node]] = node
        return found


@dataclass(frozen=True)
class Latents:
    """One entry a latent that at least `top` samples activate."""

    latent: Int64[np.ndarray, "latents"]
    lca: Int64[np.ndarray, "latents"]
    """Node."""
    robust: Int64[np.ndarray, "latents"]
    pair_depth: Float[np.ndarray, "latents"]


@dataclass(frozen=True)
class Ontology:
    """The module's docstring has the definitions."""

    depth: Estimate
    """Mean LCA depth; the interval is over latents."""
    robust_depth: Estimate
    height: Estimate
    """Mean LCH height; the smaller the more particular."""
    pair_depth: Estimate
    coverage: dict[str, Estimate]
    latents: Latents
    best_f1: dict[str, float]
    """Of each node below the root that some and not all samples are at or below."""
    left_out: int
    """Latents that too few samples activate."""


def ontology(
    scores: Scores,
    leaf: Int64[np.ndarray, "samples"],
    tree: Tree,
    *,
    top: int = TOP,
    q: float = ROBUST,
    resamples: int = 200,
    seed: int = 0,
) -> Ontology:
    """scores: [samples, candidates], of which only positive ones count; leaf: node of each sample. Raises TooFew where no latent is active enough."""
    found = of_latents(scores, leaf, tree, top, q)
    if not len(found.latent):
        raise TooFew(f"no latent is activated by {top} samples or more: give more samples, or a smaller --top.")
    mixed = np.random.default_rng([seed, 13]).permutation(leaf)
    null = of_latents(scores, mixed, tree, top, q)
    weights = draws(len(found.latent), resamples, seed) / len(found.latent)

    def mean(values: np.ndarray, floor: np.ndarray) -> Estimate:
        return Estimate(
            float(values.mean()),
            float(floor.mean()),
            percentiles(weights @ values) if len(values) > 1 and resamples else None,
        )

    heights = tree.heights()
    f1, null_f1 = best_f1(scores, leaf, tree), best_f1(scores, mixed, tree)
    return Ontology(
        depth=mean(tree.depth[found.lca], tree.depth[null.lca]),
        robust_depth=mean(tree.depth[found.robust], tree.depth[null.robust]),
        height=mean(heights[found.lca], heights[null.lca]),
        pair_depth=mean(found.pair_depth, null.pair_depth),
        coverage={
            str(at): Estimate(
                float(np.mean([f >= at for f in f1.values()])), float(np.mean([f >= at for f in null_f1.values()]))
            )
            for at in THRESHOLDS
        },
        latents=found,
        best_f1=f1,
        left_out=scores.shape[1] - len(found.latent),
    )


def of_latents(scores: Scores, leaf: Int64[np.ndarray, "samples"], tree: Tree, top: int, q: float) -> Latents:
    """Of equal activations the first samples are taken."""
    columns = csc_array(scores)
    columns.sum_duplicates()
    paths = tree.paths()
    latents, lca, robust, pairs = [], [], [], []
    for latent in range(columns.shape[1]):
        entries = slice(columns.indptr[latent], columns.indptr[latent + 1])
        values, rows = columns.data[entries], columns.indices[entries]
        positive = values > 0
        if positive.sum() < top:
            continue
        values, rows = values[positive], rows[positive]
        best = rows[np.lexsort((rows, -values))[:top]]
        mine = paths[leaf[best]]
        latents.append(latent)
        lca.append(lowest(mine, 1.0))
        robust.append(lowest(mine, q))
        pairs.append(pair_depth(mine))
    found = [np.array(each, np.int64) for each in (latents, lca, robust)]
    return Latents(found[0], found[1], found[2], np.array(pairs, np.float64))


def lowest(paths: Int64[np.ndarray, "top depth"], share: float) -> int:
    """The deepest node that at least this share of the paths go through; of equally deep ones the most frequent, then the first."""
    for depth in range(paths.shape[1] - 1, -1, -1):
        nodes, counts = np.unique(paths[paths[:, depth] >= 0, depth], return_counts=True)
        if len(nodes) and counts.max() >= share * len(paths) - 1e-9:
            return int(nodes[counts.argmax()])
    return 0


def pair_depth(paths: Int64[np.ndarray, "top depth"]) -> float:
    """Mean over pairs of the depth of the lowest common ancestor: the number of levels below the root on which they agree."""
    n, agreed = len(paths), 0
    for depth in range(1, paths.shape[1]):
        counts = np.unique(paths[paths[:, depth] >= 0, depth], return_counts=True)[1]
        agreed += int((counts * (counts - 1)).sum())
    return agreed / (n * (n - 1))


def best_f1(scores: Scores, leaf: Int64[np.ndarray, "samples"], tree: Tree) -> dict[str, float]:
    """Largest F1 over candidates and thresholds of every node that some samples, and not all, are at or below."""
    paths = tree.paths()[leaf]
    truth = {node: paths[:, tree.depth[node]] == node for node in range(1, len(tree.names))}
    truth = {node: has for node, has in truth.items() if has.any() and not has.all()}
    best = dict.fromkeys(truth, 0.0)
    for block in blocks(scores):
        dense = block.toarray()
        order = np.argsort(-dense, axis=0, kind="stable")
        values = np.take_along_axis(dense, order, 0)
        last = np.r_[values[1:] != values[:-1], np.ones((1, dense.shape[1]), bool)]
        above = np.arange(1, len(dense) + 1)[:, None]
        for node, has in truth.items():
            f1 = np.where(last, 2 * np.cumsum(has[order], 0) / (above + has.sum()), 0)
            best[node] = max(best[node], float(f1.max()))
    return {tree.names[node]: value for node, value in best.items()}
