"""Proposals that image labels make, against planted latents; pooled maxima against the obvious loop; yields against the hypergeometric."""

import numpy as np
import pytest
from scipy.sparse import csc_array

from evals.propose import audit, image_max, presence, propose, ranking


def test_image_maxima_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(50, 7)) * (rng.random((50, 7)) < 0.3)
    samples = np.sort(rng.integers(3, 12, 50))
    found = image_max(csc_array(dense), samples).toarray()
    for row, image in enumerate(np.unique(samples)):
        np.testing.assert_array_equal(found[row], np.maximum(dense[samples == image].max(0), 0))
    assert (image_max(csc_array((4, 2)), np.array([0, 0, 1, 1])).toarray() == np.zeros((2, 2))).all()


def test_presence_is_any_patch():
    found = presence(np.array([0, 2, 2, 1]), np.array([5, 5, 8, 8]), 3)
    assert found.tolist() == [[True, False, True], [False, True, True]]


def test_labels_point_at_the_latents_that_follow_them():
    rng = np.random.default_rng(0)
    labels = rng.random((300, 2)) < 0.4
    images = np.abs(rng.normal(size=(300, 30))) * (rng.random((300, 30)) < 0.5)
    images[:, 4] += 3 * labels[:, 0]
    images[:, 9] += 3 * labels[:, 1]
    s, strengths = propose(csc_array(images).tocsr(), labels)
    assert set(np.argsort(-s)[:2].tolist()) == {4, 9} and set(strengths) <= {0.001, 0.01, 0.1, 1.0}
    with pytest.raises(ValueError, match="3 must have it"):
        propose(csc_array(images).tocsr(), np.zeros((300, 1), bool))


def test_yield_counts_the_grounded_and_a_random_order_has_its_floor():
    rng = np.random.default_rng(1)
    labels, samples = rng.integers(0, 4, 2000), np.repeat(np.arange(100), 20)
    codes = np.abs(rng.normal(size=(2000, 40)))
    for latent in range(10):  # the first ten stand for class 1 or 3
        codes[:, latent] += 5 * (labels == (1 if latent % 2 else 3))
    codes = csc_array(codes)
    yields, share = audit(np.arange(40), codes, labels, samples, np.array([1, 3]), resamples=20)
    assert share == 0.25 and [each.grounded.value for each in yields] == [10, 10, 10, 10]
    assert yields[0].grounded.floor == 2.5 and yields[-1].grounded.floor == 10
    assert yields[0].grounded.interval == (10, 10) and yields[0].random[1] < 10
    drawn = [(ranking(np.zeros(40), np.ones(40, bool), seed)[:10] < 10).sum() for seed in range(400)]
    assert np.mean(drawn) == pytest.approx(2.5, abs=0.2)
    low, high = yields[0].random
    assert np.mean(np.array(drawn) < low) <= 0.025 + 0.02 and np.mean(np.array(drawn) > high) <= 0.025 + 0.02
    with pytest.raises(ValueError, match="needs one of each"):
        audit(np.zeros(0, np.int64), codes, labels, samples, np.array([1]))


def test_ranking_is_by_weight_and_leaves_the_dead_out():
    s = np.array([0.0, 2.0, 1.0, 0.0, 3.0])
    assert ranking(s, np.array([True, True, True, True, False])).tolist()[:2] == [1, 2]
    assert set(ranking(s, np.ones(5, bool)).tolist()) == set(range(5))
