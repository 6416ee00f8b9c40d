"""Planted changes are found and nothing else is; delta is its formula; and what noise, scale and re-encoding do is said."""

import math

import numpy as np
import pytest
import torch
from scipy.sparse import csc_array
from scipy.special import expit, logit

from evals import permutation
from evals.blindspots import (
    by_concept,
    compare,
    correlation,
    delta,
    energy,
    merged,
    null,
    relative_difference,
    resampled,
    skewness,
)

CONCEPTS, RATE = 60, 0.2


def codes(n, seed, concepts=CONCEPTS, size=8.0):
    """Energies of n images: each concept is in one image of five."""
    rng = np.random.default_rng(seed)
    return rng.gamma(2.0, size / 2, (n, concepts)) * (rng.random((n, concepts)) < RATE)


def biased(real):
    """The same images with concept 0 gone and concept 1 four times as strong."""
    generated = real.copy()
    generated[:, 0] = 0
    generated[:, 1] *= 4
    return generated


def audit(real, generated, pairs, **options):
    options = {"temperature": 1.0} | options
    return compare(csc_array(real), csc_array(generated), pairs=pairs, **options)


# ------------------------------------------------------------ the biased generator of the spec


def test_a_biased_copy_has_exactly_the_planted_deltas():
    real = codes(200, 0)
    for temperature in (1.0, 0.8, 0.4):
        found = audit(real, biased(real), True, temperature=temperature)
        assert np.all(found.delta[2:] == 0.5) and np.all(found.relative[2:] == 0)
        assert found.delta[0] == pytest.approx(expit(-real[:, 0].mean() / temperature), abs=1e-15)
        assert found.delta[0] < 0.5 < found.delta[1]
        assert found.delta.argmin() == 0 and found.relative[0] == -1 and found.relative[1] == pytest.approx(0.6)
    swapped = audit(biased(real), real, True)
    np.testing.assert_allclose(swapped.delta, 1 - audit(real, biased(real), True).delta, atol=1e-15)
    assert np.flatnonzero(audit(real, biased(real), True).found(0.1)).tolist() == [0, 1]


def test_identical_sets_differ_in_nothing():
    real = codes(100, 0)
    for pairs in (True, False):
        found = audit(real, real, pairs)
        assert np.all(found.delta == 0.5) and np.all(found.p == 1) and not found.found(0.0).any()


def test_fresh_draws_show_the_planted_concepts_and_no_other():
    found = audit(codes(400, 1), biased(codes(400, 2)), False)
    assert np.flatnonzero(found.q < 0.05).tolist() == [0, 1]
    assert found.permutations == CONCEPTS / 0.05


def test_real_against_real_is_refused_as_often_as_alpha_says():
    rejected = [(audit(codes(100, 2 * i), codes(100, 2 * i + 1), False).q < 0.05).any() for i in range(30)]
    assert sum(rejected) <= 4  # 1.5 expected; 5 or more in 2 % of such tests


def test_the_sum_of_tokens_crosses_the_thresholds_in_the_null_and_the_null_says_so():
    real, generated = codes(200, 3, size=1.0), biased(codes(200, 4, size=1.0))
    mean = audit(real, generated, False)
    summed = audit(261 * real, 261 * generated, False)
    crossed = (summed.delta < 0.1) | (summed.delta > 0.9)
    assert crossed[2:].sum() > 30 and not ((mean.delta < 0.1) | (mean.delta > 0.9))[2:].any()
    np.testing.assert_allclose(summed.relative, mean.relative, atol=1e-12)
    np.testing.assert_array_equal(summed.p, mean.p)
    options = {"temperature": 1.0, "least_change": 0.1, "splits": 5}
    assert null(csc_array(261 * real), **options).crosses
    quiet = null(csc_array(real), **options)
    assert not quiet.crosses and quiet.found == 0.0
    assert 0.2 < quiet.correlation < 0.8  # one third of the real images is in both differences


def test_halves_of_the_same_images_move_delta_by_noise_alone_and_the_more_the_smaller_the_temperature():
    """spec/papers.md section 0: 200 images a half, 60 concepts; about .34 to .70 at T = 1 and .16 to .90 at T = .4. The range of the logits grows as 1 / T."""
    real = csc_array(codes(400, 8, size=4.0))
    ranges = {t: null(real, temperature=t, least_change=0.1, splits=5).delta_range for t in (1.0, 0.4, 0.1)}
    assert 0.28 < ranges[1.0][0] < 0.42 and 0.58 < ranges[1.0][1] < 0.72
    assert 0.1 < ranges[0.4][0] < 0.28 and 0.72 < ranges[0.4][1] < 0.9
    for t in (0.4, 0.1):
        np.testing.assert_allclose(t * logit(ranges[t]), logit(ranges[1.0]), rtol=1e-9)
    assert ranges[0.1][0] < 0.1 and null(real, temperature=0.1, least_change=0.1, splits=5).crosses


def test_the_size_a_concept_needs_to_be_suppressed():
    least = math.log(9)
    assert delta(np.array([0.0]), np.array([2.197 * 0.8]), 0.8) == pytest.approx(0.1, abs=1e-4)
    assert (delta(np.zeros(2), np.array([least - 1e-6, least + 1e-6]), 1.0) < 0.1).tolist() == [False, True]
    with pytest.raises(ValueError, match="temperature is 0"):
        delta(np.zeros(1), np.zeros(1), 0.0)


# ------------------------------------------------------------ p-values


def slow_sign_flips(d):
    """All 2^n of them."""
    n = len(d)
    signs = 1 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    return np.mean(np.abs(signs @ d) >= abs(d.sum()) * (1 - 1e-12))


def test_sign_flip_p_values_are_those_of_all_signs():
    rng = np.random.default_rng(0)
    d = rng.standard_normal((10, 40)) + np.linspace(0, 1, 40)
    exact = np.array([slow_sign_flips(d[:, j]) for j in range(40)])
    p = permutation.paired(csc_array(d), csc_array(np.zeros_like(d)), 20_000)
    assert np.all(np.abs(p - exact) < 5 * exact / np.sqrt(permutation.ENOUGH) + 2e-4)
    assert exact.min() < 0.02  # so that small ones are among them


def test_tied_sums_count_as_exceedances_however_they_are_added_up():
    d = np.zeros((6, 1))
    d[:3, 0] = [0.1, 0.2, 0.3]  # all signs of three: 2 of 8 are as extreme
    p = permutation.paired(csc_array(d), csc_array((6, 1)), 50_000)
    assert p[0] == pytest.approx(0.25, rel=5 / np.sqrt(permutation.ENOUGH))
    d[:, 0] = 1.0
    assert permutation.paired(csc_array(d), csc_array((6, 1)), 50_000)[0] == pytest.approx(2 / 64, rel=1.1)


def test_label_permutations_are_those_of_all_choices():
    from itertools import combinations

    rng = np.random.default_rng(1)
    a, b = rng.standard_normal(4) + 1.5, rng.standard_normal(5)
    every, n = np.r_[a, b], 4
    gaps = [every[list(c)].mean() - np.delete(every, c).mean() for c in combinations(range(9), n)]
    exact = np.mean(np.abs(gaps) >= abs(a.mean() - b.mean()) - 1e-12)
    p = permutation.unpaired(csc_array(a[:, None]), csc_array(b[:, None]), 50_000)[0]
    assert p == pytest.approx(exact, rel=5 / np.sqrt(permutation.ENOUGH))


def test_p_values_are_uniform_under_the_null_and_keep_to_their_columns(monkeypatch):
    rng = np.random.default_rng(2)
    d = csc_array(rng.standard_normal((50, 1000)))
    zero = csc_array((50, 1000))
    p = permutation.paired(d, zero, 2000)
    for level in (0.01, 0.05, 0.5):
        assert np.mean(p <= level) == pytest.approx(level, abs=4 * np.sqrt(level / 1000))
    order = rng.permutation(1000)
    np.testing.assert_array_equal(permutation.paired(d[:, order], zero, 2000), p[order])
    np.testing.assert_array_equal(permutation.paired(zero, d, 2000), p)  # the sign of a difference means nothing
    monkeypatch.setattr(permutation, "ENTRIES", 60 * 1024)  # 60 columns at a time, in as large blocks of reshufflings
    np.testing.assert_array_equal(permutation.paired(d, zero, 2000), p)


def test_a_lone_change_among_thousands_passes():
    rng = np.random.default_rng(3)
    real = rng.random((60, 4000)) * (rng.random((60, 4000)) < 0.3)
    generated = real + rng.normal(0, 0.1, real.shape) * (real > 0)
    generated[:, 7] = 0
    found = audit(real, generated, True)
    assert found.permutations == 80_000
    assert found.q[7] < 0.05 and (np.delete(found.q, 7) < 0.05).sum() <= 1


def test_benjamini_hochberg_by_hand_and_around_what_was_not_tested():
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.9])
    np.testing.assert_allclose(permutation.adjusted(p), [0.04, np.nan, 0.04 * 4 / 3, 0.04 * 4 / 3, 0.9])
    assert np.isnan(permutation.adjusted(np.full(3, np.nan))).all()


# ------------------------------------------------------------ limits, groups, floors


def test_a_change_of_the_size_of_the_limit_is_found_at_the_power_it_names():
    rng, found = np.random.default_rng(4), []
    for trial in range(40):
        real = rng.gamma(2, 1, (200, 5))
        generated = rng.gamma(2, 1, (200, 5))
        generated[:, 0] += 3.417 * math.sqrt(2 * 2 / 200)  # what the limit is in expectation, for m = 5
        one = audit(real, generated, False, permutations=2000, seed=trial)
        assert one.limit[0] == pytest.approx(3.417 * math.sqrt(4 / 200), rel=0.25)
        found.append(one.p[0] < 0.05 / 5)
    assert 0.55 < np.mean(found) < 0.95


def test_dead_and_rare_concepts_are_not_tested():
    real, generated = codes(100, 5), codes(100, 6)
    real[:, 3] = generated[:, 3] = 0
    real[:, 4] = generated[:, 4] = 0
    real[:5, 4] = 1
    found = audit(real, generated, False)
    assert not found.live[3] and np.isnan(found.delta[3]) and not found.tested[[3, 4]].any()
    assert found.live[4] and found.relative[4] == -1 and found.tested.sum() == CONCEPTS - 2


def test_near_duplicates_are_one_concept():
    atoms = torch.eye(6)
    atoms[4] = atoms[0] + 0.1 * atoms[1]  # nearly 0
    atoms[5] = -3 * atoms[2]  # the opposite is another concept
    groups = merged(atoms)
    assert groups.tolist() == [0, 1, 2, 3, 0, 4]
    scores = np.arange(12.0).reshape(2, 6)
    summed = by_concept(csc_array(scores), groups).toarray()
    np.testing.assert_array_equal(summed, np.stack([scores[:, groups == g].sum(1) for g in range(5)], 1))
    # split over two latents that trade places, a concept that did not change looks suppressed and exaggerated at once
    real, generated = np.zeros((100, 6)), np.zeros((100, 6))
    real[:, 0], generated[:, 4] = 1, 1
    assert audit(real, generated, True).found(0.1).sum() == 2
    joined = [by_concept(csc_array(each), groups) for each in (real, generated)]
    assert compare(*joined, temperature=1.0, pairs=True).found(0.0).sum() == 0


def test_correlation_and_skew_by_hand():
    a = np.array([0.0, 1, 2, np.nan, 5])
    assert correlation(a, 2 * a + 1) == pytest.approx(1) and correlation(a, -a) == pytest.approx(-1)
    assert math.isnan(correlation(a, np.full(5, 0.3)))
    assert skewness(np.array([0.5, 0.5, 0.5, 0.1])) < 0 < skewness(np.array([0.5, 0.5, 0.5, 0.9]))
    assert skewness(np.full(9, 0.5)) == 0


def test_resampled_energies_are_those_of_the_repeated_images():
    scores = csc_array(codes(6, 7))
    drawn = np.array([[2, 0, 1, 1, 2, 0], [1.0, 1, 1, 1, 1, 1]])
    again = scores.toarray()[[0, 0, 2, 3, 4, 4]].mean(0)
    np.testing.assert_allclose(resampled(scores, drawn), [again, energy(scores)], atol=1e-12)


def test_relative_differences_and_mistakes():
    np.testing.assert_allclose(
        relative_difference(np.array([0.0, 3, 1, 0]), np.array([2.0, 1, 1, 0])), [-1, 0.5, 0, np.nan]
    )
    with pytest.raises(ValueError, match="encode both with one SAE"):
        audit(np.ones((3, 4)), np.ones((3, 5)), False)
    with pytest.raises(ValueError, match="there is no generated image"):
        audit(np.ones((3, 4)), np.ones((0, 4)), False)
    with pytest.raises(ValueError, match="compare them unpaired"):
        audit(np.ones((30, 4)), np.ones((31, 4)), True)
    with pytest.raises(ValueError, match="at least six"):
        null(csc_array(np.ones((5, 2))), temperature=1.0, least_change=0.1)
