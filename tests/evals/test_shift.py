"""A probe under a shift that is known: a direction that only the training images' class goes with, and one that always does."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from evals.shift import probed

CLASSES = np.array(["a", "b", "c"])


def world(n, seed, spurious):
    """(spurious representation, true one, labels): in the first, a class's column is one further on in images that are shifted."""
    rng = np.random.default_rng(seed)
    c = rng.integers(0, 3, n)
    true = np.eye(3)[c] * rng.uniform(1, 2, (n, 1))
    other = np.eye(3)[(c + (0 if spurious else 1)) % 3] * rng.uniform(1, 2, (n, 1))
    return other, csr_array(true), tuple(CLASSES[c].tolist())


def test_what_carries_over_is_told_from_what_does_not():
    sets = {"train": world(150, 0, True), "in": world(90, 1, True), "shifted": world(80, 2, False)}
    dense, right = probed(
        sets["train"][::2], {name: of[::2] for name, of in list(sets.items())[1:]}, "features", resamples=50
    )
    sparse, _ = probed(
        sets["train"][1:], {name: of[1:] for name, of in list(sets.items())[1:]}, "codes", "run", right, resamples=50
    )
    assert dense.accuracy["in"].value == 1 and dense.accuracy["shifted"].value == 0
    assert dense.drop["shifted"].value == 1 and dense.more == {}
    assert sparse.accuracy["in"].value == 1 and sparse.accuracy["shifted"].value == 1
    assert sparse.more["shifted"].value == 1 and sparse.more["shifted"].interval == (1, 1)
    assert sparse.more["in"].value == 0 and sparse.drop["shifted"].value == 0
    labels = np.array(sets["train"][2])
    most = max(CLASSES, key=lambda name: (labels == name).sum())
    assert sparse.accuracy["in"].floor == pytest.approx((np.array(sets["in"][2]) == most).mean())


def test_shuffled_labels_give_the_floor():
    _, codes, labels = world(300, 0, True)
    shuffled = tuple(np.random.default_rng(0).permutation(labels).tolist())
    found, _ = probed((codes, shuffled), {"in": world(300, 1, True)[1:]}, "codes", resamples=50)
    assert found.accuracy["in"].value == pytest.approx(1 / 3, abs=0.17)


def test_classes_that_are_not_known_are_left_out_and_counted():
    _, codes, labels = world(60, 0, True)
    strange = (*labels[:50], *["d"] * 6, *[None] * 4)
    found, right = probed((codes, labels), {"in": (codes, strange), "far": (codes, ("z",) * 60)}, "codes", resamples=0)
    assert found.n == {"in": 50} and found.unknown == {"in": 10} and len(right["in"]) == 50
    assert found.accuracy["in"].interval is None
    assert probed((codes, (None,) * 60), {"in": (codes, labels)}, "codes") is None
    assert probed((codes, labels), {"in": (codes, (None,) * 60)}, "codes") is None
