"""A 3 x 3 x 3 taxonomy with latents planted at every depth: their depths are known, and permuted labels lead to the root."""

import numpy as np
import pytest
from scipy.sparse import csc_array

from evals.ontology import Tree, best_f1, lowest, of_latents, ontology, pair_depth

HIERARCHY = {f"a{i}": [f"a{i}b{j}" for j in range(3)] for i in range(3)} | {
    f"a{i}b{j}": [f"a{i}b{j}c{k}" for k in range(3)] for i in range(3) for j in range(3)
}
TREE = Tree.of(HIERARCHY)
LEAF = np.repeat([TREE.names.index(f"a{i}b{j}c{k}") for i in range(3) for j in range(3) for k in range(3)], 20)
PLANTED = ["(root)", "a1", "a1b2", "a1b2c0"]


def scores(seed=0):
    """Latent i fires for what is at or below PLANTED[i], the last one for one sample only."""
    rng = np.random.default_rng(seed)
    paths = TREE.paths()[LEAF]
    found = np.zeros((len(LEAF), 5))
    for at, name in enumerate(PLANTED):
        node = TREE.names.index(name)
        below = paths[:, TREE.depth[node]] == node
        found[below, at] = rng.uniform(1, 2, below.sum())
    found[7, 4] = 1
    return csc_array(found)


def test_planted_latents_have_their_depth():
    found = ontology(scores(), LEAF, TREE)
    assert [TREE.names[node] for node in found.latents.lca] == PLANTED
    assert TREE.depth[found.latents.lca].tolist() == [0, 1, 2, 3] and found.left_out == 1
    assert found.depth.value == 1.5 and found.depth.floor < 0.3
    assert found.height.value == 1.5 and found.height.floor > 2.7 and found.height.interval[0] < 1.5
    first, *rising = found.latents.pair_depth
    assert 0.2 < first < 0.8 and (np.diff([first, *rising]) > 0.3).all() and rising[-1] == 3
    assert found.latents.pair_depth[1] == pytest.approx(1.39, abs=0.35) and found.latents.pair_depth[
        2
    ] == pytest.approx(2.31, abs=0.3)
    assert found.best_f1["a1"] == found.best_f1["a1b2"] == found.best_f1["a1b2c0"] == 1 > found.best_f1["a0"]
    assert found.coverage["0.9"].value == pytest.approx(3 / 39) and found.coverage["0.9"].floor == 0
    assert found.depth.interval[0] < 1.5 < found.depth.interval[1]


def test_permuted_labels_lead_to_the_root():
    rng = np.random.default_rng(1)
    for _ in range(200):
        null = of_latents(scores(), rng.permutation(LEAF), TREE, 16, 1.0)
        assert (null.lca == 0).all()


def test_pairs_and_f1_are_loops():
    rng = np.random.default_rng(2)
    paths = TREE.paths()[rng.choice(LEAF, 9)]
    slow = [max(d for d in range(4) if a[d] == b[d] >= 0) for i, a in enumerate(paths) for b in paths[i + 1 :]]
    assert pair_depth(paths) == pytest.approx(np.mean(slow))
    some = rng.permutation(len(LEAF))[:60]
    dense = rng.integers(0, 4, (60, 3)).astype(float)
    found = best_f1(csc_array(dense), LEAF[some], TREE)
    has = TREE.paths()[LEAF[some]][:, 1] == TREE.names.index("a2")
    tried = [2 * ((z >= t) & has).sum() / ((z >= t).sum() + has.sum()) for z in dense.T for t in np.unique(z)]
    assert found["a2"] == pytest.approx(max(tried))


def test_heights_are_the_longest_way_down():
    """A tree whose branches are not equally long, against a walk from every leaf up."""
    tree = Tree.of({"a": ["b", "c"], "c": ["d"], "d": ["e", "f"], "z": []}, leaves=["y"])
    slow = [0] * len(tree.names)
    for leaf in range(len(tree.names)):
        node, steps = leaf, 0
        while node >= 0:
            slow[node] = max(slow[node], steps)
            node, steps = tree.parent[node], steps + 1
    assert tree.heights().tolist() == slow
    want = {"(root)": 4, "a": 3, "b": 0, "c": 2, "d": 1, "e": 0, "f": 0, "y": 0, "z": 0}
    assert dict(zip(tree.names, tree.heights().tolist(), strict=True)) == want
    assert (TREE.heights() == 3 - TREE.depth).all()


def test_robust_forgives_a_few():
    paths = TREE.paths()[[TREE.names.index("a1b2c0")] * 15 + [TREE.names.index("a0b0c0")]]
    assert lowest(paths, 1.0) == 0 and TREE.names[lowest(paths, 0.9)] == "a1b2c0"


def test_trees_that_are_none_are_refused():
    with pytest.raises(ValueError, match="'x' is below 'a' and 'b'"):
        Tree.of({"a": ["x"], "b": ["x"]})
    with pytest.raises(ValueError, match="in a circle at 'a'"):
        Tree.of({"a": ["b"], "b": ["a"], "c": ["d"]})
    assert Tree.of({"a": ["b"]}, leaves=["b", "z"]).names == ("(root)", "a", "z", "b")
    with pytest.raises(ValueError, match="no latent is activated by 2000"):
        ontology(scores(), LEAF, TREE, top=2000)
