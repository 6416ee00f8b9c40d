"""Histograms, distances and posteriors by the definition; suppression that spares the other concepts."""

import numpy as np
import pytest
from scipy.sparse import csc_array
from scipy.spatial.distance import jensenshannon

from evals.separability import histograms, masked, members, separability, silhouette, speakers, suppressed


def planted(n=300, classes=3, seed=0):
    """Latent c fires for class c alone, latent 3 for all alike, latent 4 never, latent 5 always but larger for class 0."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    codes = np.zeros((n, 6))
    codes[np.arange(n), labels] = rng.uniform(1, 2, n)
    codes[:, 3] = rng.uniform(1, 2, n)
    codes[:, 5] = rng.uniform(0, 1, n) + (labels == 0)
    return codes, labels


def test_apart_alike_and_dead():
    codes, labels = planted()
    found = separability(histograms(codes, labels, 3))
    assert found[4] == 0 and found[3] < 0.3
    own = jsd([[1, 0], [0, 1], [0, 1]]) / np.log(3)  # fires in one of three classes, never in two
    assert found[0] == pytest.approx(np.sqrt(own), abs=0.05) and found[5] > 0.5
    two = np.array([0] * 50 + [1] * 50)
    assert separability(histograms((two * np.arange(1, 101))[:, None].astype(float), two, 2))[0] == pytest.approx(1)


def jsd(rows):
    rows = np.array(rows, float)

    def h(p):
        return -sum(x * np.log(x) for x in p if x > 0)

    return h(rows.mean(0)) - np.mean([h(row) for row in rows])


def test_two_classes_are_scipys_jensenshannon_and_sparse_is_dense():
    codes, labels = planted(200, 2)
    found = histograms(codes, labels, 2)
    slow = [jensenshannon(*found.density[j]) / np.sqrt(np.log(2)) for j in (0, 1, 3, 5)]
    np.testing.assert_allclose(separability(found)[[0, 1, 3, 5]], slow, atol=1e-7)
    np.testing.assert_allclose(histograms(csc_array(codes), labels, 2).density, found.density)
    np.testing.assert_allclose(found.density.sum(-1), 1)
    order = np.random.default_rng(1).permutation(200)
    np.testing.assert_allclose(separability(histograms(codes[order], labels[order], 2)), separability(found))


def test_posteriors_are_counted_shares():
    codes, labels = planted()
    found = histograms(codes, labels, 3)
    posterior = found.posterior(codes, 0)
    assert posterior[labels == 0, 0] == pytest.approx(1) and posterior[labels != 0, 0] == pytest.approx(0)
    zero = codes[:, 1] == 0
    assert posterior[zero, 1] == pytest.approx((labels[zero] == 0).mean())
    assert posterior[:, 4] == pytest.approx((labels == 0).mean())
    total = sum(found.posterior(codes, c) for c in range(3))
    np.testing.assert_allclose(total, 1)


def test_suppression_silences_the_concept_and_spares_the_others():
    codes, labels = planted()
    found = histograms(codes, labels, 3)
    new = suppressed(codes, found, 0)
    assert new[:, 0].max() == pytest.approx(0) and new[:, 1] == pytest.approx(codes[:, 1])
    assert np.abs(new[labels == 0, 3] / codes[labels == 0, 3] - (1 - (labels == 0).mean())).mean() < 0.15
    assert speakers(found, 0)[0] == 0 and speakers(found, 1)[0] == 1
    cut = masked(codes, found, 1, 1)
    assert not cut[:, 1].any() and (np.delete(cut, 1, 1) == np.delete(codes, 1, 1)).all()
    half = masked(codes, found, 1, 1, keep=0.5)
    np.testing.assert_array_equal(half, (codes + cut) / 2)  # partial suppression lies halfway


def test_a_class_without_samples_is_refused():
    codes, labels = planted()
    with pytest.raises(ValueError, match=r"classes \[3\] have no sample"):
        histograms(codes, labels, 4)


def test_silhouettes_are_a_loop_near_one_for_bundles_and_at_the_floor_for_chance():
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(3), 6)
    bundles = np.eye(8)[classes] + 0.05 * rng.standard_normal((18, 8))
    found = silhouette(bundles, classes, resamples=20)
    assert found.value > 0.9 > 0.1 > found.floor and found.interval[0] > 0.9
    chance = silhouette(rng.standard_normal((18, 8)), classes, resamples=0)
    assert abs(chance.value - chance.floor) < 0.15 and chance.interval is None
    distance = 1 - bundles @ bundles.T / np.linalg.norm(bundles, axis=1)[:, None] / np.linalg.norm(bundles, axis=1)
    slow = []
    for i in range(18):
        own = np.mean([distance[i, j] for j in range(18) if j != i and classes[j] == classes[i]])
        other = min(np.mean(distance[i, classes == c]) for c in range(3) if c != classes[i])
        slow.append((other - own) / max(own, other))
    assert found.value == pytest.approx(np.mean(slow))
    order = rng.permutation(18)
    again = silhouette(bundles[order] * rng.uniform(1, 9, (18, 1)), classes[order], resamples=0)
    assert again.value == pytest.approx(found.value)


def test_silhouettes_that_mean_nothing_are_none():
    assert silhouette(np.eye(3), np.zeros(3, np.int64)) is None
    assert silhouette(np.eye(3), np.arange(3)) is None
    assert silhouette(np.zeros((3, 2)), np.array([0, 0, 1])) is None


def test_members_speak_for_their_own_class_most():
    codes, labels = planted()
    latents, classes = members(histograms(codes, labels, 3), 2)
    told = dict(zip(latents.tolist(), classes.tolist(), strict=True))
    assert [told[k] for k in range(3)] == [0, 1, 2] and 4 not in told and len(told) == len(latents)
    assert max(np.bincount(classes)) <= 2 and members(histograms(codes, labels, 3), 1)[0].tolist() == [0, 1, 2]
