"""A planted copy ranks first, two empty images do not, and other captions' images are no copies."""

import numpy as np
import pytest
from scipy.sparse import csc_array

from evals.memorisation import nearest, pairs, relative_distance

N, LATENTS = 400, 60


def codes(seed, n=N):
    rng = np.random.default_rng(seed)
    return rng.gamma(2, 4, (n, LATENTS)) * (rng.random((n, LATENTS)) < 0.2)


def similar(real, seed):
    """Of the same concepts, in other strengths: what a generator makes of a caption."""
    return real * np.random.default_rng(seed).lognormal(0, 1, real.shape)


def slow(a, b):
    return np.linalg.norm(a - b) / (np.linalg.norm(a) + np.linalg.norm(b))


def test_the_planted_copy_ranks_first_and_beats_every_repaired_one():
    real, generated = codes(0), codes(1)
    generated[17] = real[17]
    found = pairs(csc_array(generated), csc_array(real))
    assert found.distance[17] == 0 and np.delete(found.distance, 17).min() > 0.3
    assert found.candidates[0] == 17 and found.control.min() > 0.3
    assert found.distance[5] == pytest.approx(slow(generated[5], real[5]))
    assert len(found.control) == 10 * N


def test_two_empty_images_are_left_out_though_their_distance_is_nothing():
    real, generated = codes(0), codes(1)
    real[3] = generated[3] = 0
    real[4], generated[4] = 0.01 * real[4], 0.01 * real[4]  # next to nothing, and equal
    found = pairs(csc_array(generated), csc_array(real))
    assert np.isnan(found.distance[[3, 4]]).all() and found.left_out == 2
    assert not {3, 4} & set(found.candidates.tolist())
    with pytest.raises(ValueError, match="choose a positive one"):
        pairs(csc_array(generated), csc_array(real), min_energy=0.0)


def test_a_copy_of_another_captions_image_is_found_by_its_neighbour_only():
    real, generated = codes(0), codes(1)
    generated[8] = real[301]
    assert 8 not in pairs(csc_array(generated), csc_array(real)).candidates[:1]
    found = nearest(csc_array(generated), csc_array(real))
    assert found.candidates.tolist()[0] == 8 and found.real[8] == 301 and found.distance[8] == 0
    brute = np.array([[slow(a, b) for b in real] for a in generated[:5]])
    np.testing.assert_array_equal(found.real[:5], brute.argmin(1))
    np.testing.assert_allclose(found.distance[:5], brute.min(1))
    apart = np.array([[slow(a, b) for b in real] for a in real[:5]])
    apart[np.arange(5), np.arange(5)] = np.inf
    np.testing.assert_allclose(found.control[:5], apart.min(1))


def test_a_generator_that_follows_its_captions_is_no_copier():
    real = codes(2)
    found = nearest(csc_array(similar(real, 3)), csc_array(codes(4)))
    assert len(found.candidates) <= 8  # as good as any real image is, 1 in 400 is nearer than all of them
    matched = pairs(csc_array(similar(real, 3)), csc_array(real))
    assert np.nanmedian(matched.distance) < np.median(matched.control)
    assert np.nanmin(matched.distance) > 0.05


def test_scale_order_and_mistakes():
    a, b = csc_array(codes(0)).tocsr(), csc_array(codes(1)).tocsr()
    np.testing.assert_allclose(relative_distance(3 * a, 3 * b), relative_distance(a, b))
    np.testing.assert_array_equal(relative_distance(a, b), relative_distance(b, a))
    np.testing.assert_allclose(relative_distance(a, -1 * a), 1)
    assert np.isnan(relative_distance(0 * a, 0 * a)).all()
    with pytest.raises(ValueError, match="look for the nearest"):
        pairs(csc_array(codes(0, 5)), csc_array(codes(0, 6)))
    with pytest.raises(ValueError, match="need two or more"):
        nearest(csc_array(codes(0, 5)), csc_array(codes(0, 1)))
