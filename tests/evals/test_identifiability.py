"""Soft identifiability: the floor, the ceiling, what choosing flatters, and every threshold against a loop."""

import numpy as np
import pytest
from scipy.sparse import csc_array

from evals.identifiability import best_of, identify
from evals.recovery import Labelled


def collages(n, c, seed):
    """4 of c objects in each."""
    rng = np.random.default_rng(seed)
    return np.argsort(rng.random((n, c)), axis=1).argsort(1) < 4


def split(scores, truth, start):
    return Labelled(csc_array(scores.astype(np.float32)), csc_array(truth), np.arange(start, start + len(truth)))


def identified(make, c=9, n=2000):
    truths = [collages(n, c, seed) for seed in (0, 1)]
    parts = [split(make(truth, seed), truth, seed * n) for seed, truth in enumerate(truths)]
    return identify(*parts, [f"o{j}" for j in range(c)], resamples=20)


def test_a_constant_code_has_the_floor_and_one_hot_codes_have_one():
    constant = identified(lambda truth, seed: np.ones((len(truth), 5)))
    assert constant.accuracy.value == pytest.approx(1 - 4 / 9) == constant.accuracy.floor
    dead = identified(lambda truth, seed: np.zeros((len(truth), 5)))
    assert dead.accuracy.value == pytest.approx(1 - 4 / 9)
    assert identified(lambda truth, seed: np.ones((len(truth), 5)), c=20).accuracy.floor == pytest.approx(0.8)
    perfect = identified(lambda truth, seed: truth * (1 + np.random.default_rng(seed).random(truth.shape)))
    assert perfect.accuracy.value == 1.0 and [each.latent for each in perfect.objects] == list(range(9))


def test_random_codes_are_flattered_where_they_were_chosen_and_nowhere_else():
    random = identified(lambda truth, seed: np.random.default_rng(10 + seed).random((len(truth), 300)))
    assert random.selection_accuracy > random.accuracy.floor + 0.008
    assert random.accuracy.value < random.accuracy.floor + 0.005
    assert random.accuracy.interval[0] < random.accuracy.value < random.accuracy.interval[1]


def test_every_threshold_of_every_candidate_is_tried():
    rng = np.random.default_rng(3)
    scores, truth = rng.integers(-2, 3, (40, 6)).astype(float), rng.random((40, 3)) < 0.4
    for has, (accuracy, latent, threshold) in zip(truth.T, best_of(scores, truth), strict=True):
        tried = [np.mean((scores[:, i] > t) == has) for i in range(6) for t in (-np.inf, *np.unique(scores))]
        assert accuracy == pytest.approx(max(tried))
        assert np.mean((scores[:, latent] > threshold) == has) == pytest.approx(accuracy)


def test_shared_samples_and_an_object_that_is_everywhere_are_refused():
    truth = collages(50, 9, 0)
    part = split(truth, truth, 0)
    with pytest.raises(ValueError, match="chosen on and reported on"):
        identify(part, part, list("abcdefghi"))
    truth[:, 2] = True
    with pytest.raises(ValueError, match="'c' is true of all"):
        identify(split(truth, truth, 0), split(truth, truth, 50), list("abcdefghi"))
