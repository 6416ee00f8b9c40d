"""SCR and TPP on activations made of known atoms: latents that are the concepts erase them, random ones do not."""

import numpy as np
import pytest

from evals.erasure import Images, LinearProbe, ablated, balanced, mean_over, removal, targeted, without_direction

D, CONCEPTS = 10, 4
ATOMS = np.linalg.qr(np.random.default_rng(7).standard_normal((D, D)))[0]
NAMES = ["a", "b", "c", "d"]
LOUD = (1.5, 3.0, 1.0, 1.0)


def images(n=400, seed=0, strong=(1.0, 3.0, 1.0, 1.0)):
    """Concepts along their own orthonormal atoms, b stronger than the others, and noise along the other atoms, which is in the code, too."""
    rng = np.random.default_rng(seed)
    truth = rng.random((n, CONCEPTS)) < 0.5
    z = np.zeros((n, D))
    z[:, :CONCEPTS] = truth * np.array(strong)
    z[:, CONCEPTS:] = np.abs(rng.standard_normal((n, D - CONCEPTS))) * 0.5
    return Images(z @ ATOMS + 0.3 * rng.standard_normal((n, D)) + 2, z, truth)


def test_ablating_keeps_the_error_and_takes_the_atoms():
    part = images()
    x = ablated(part, ATOMS, np.array([0, 2]))
    error = part.x - part.z @ ATOMS
    kept = part.z.copy()
    kept[:, [0, 2]] = 0
    np.testing.assert_allclose(x, kept @ ATOMS + error)
    np.testing.assert_allclose(ablated(part, ATOMS, np.array([], np.int64)), part.x)
    centred = ablated(part, ATOMS, np.array([0, 2]), part.z.mean(0))
    np.testing.assert_allclose(centred.mean(0), part.x.mean(0))
    np.testing.assert_allclose(centred - centred.mean(0), x - x.mean(0))


def test_the_spurious_latent_is_found_and_its_removal_mends_the_probe():
    found = removal(images(seed=0, strong=LOUD), images(seed=1, strong=LOUD), ATOMS, NAMES, (0, 1), n=(1, 2))
    assert (found.target, found.spurious) == ("a", "b")  # the direction whose biased probe is worse: b shouts
    assert found.biased < found.clean - 0.1 and found.clean > 0.9
    assert found.to_mean[1] > 0.7 > 0.3 > found.random_to_mean[1]
    assert found.scores[1] < 0.3  # at zero the probe, which leant on b, says no to every image
    assert found.projection > 0.5
    again = removal(images(seed=0, strong=LOUD), images(seed=1, strong=LOUD), ATOMS, NAMES, (1, 0), n=(1, 2))
    assert (again.target, again.scores) == (found.target, found.scores)


def test_each_class_loses_its_own_probe_and_no_other():
    even = (1.5,) * 4
    found = targeted(images(seed=0, strong=even), images(seed=1, strong=even), ATOMS, NAMES, n=(1, 3))
    assert all(each.accuracy > 0.9 and each.scores[1] > 0.3 for each in found)
    assert mean_over(found, "scores")[1] > mean_over(found, "random")[1] + 0.2
    assert all(each.projection > 0.2 for each in found)
    with pytest.raises(ValueError, match="and 1 was given"):
        part = images()
        targeted(Images(part.x, part.z, part.truth[:, :1]), part, ATOMS, ["a"])


def test_order_of_images_and_dead_latents_do_not_matter():
    train, test = images(seed=0), images(seed=1)
    order = np.random.default_rng(3).permutation(400)
    again = targeted(train, test.some(order), ATOMS, NAMES, n=(1, 3))
    assert mean_over(again, "scores") == pytest.approx(
        mean_over(targeted(train, test, ATOMS, NAMES, n=(1, 3)), "scores")
    )
    wider = [Images(part.x, np.c_[part.z, np.zeros((400, 5))], part.truth) for part in (train, test)]
    more = targeted(*wider, np.concatenate([ATOMS, np.ones((5, D))]), NAMES, n=(1, 3, 12))
    assert set(more[0].scores) == {1, 3}  # there are ten live latents
    assert mean_over(more, "scores") == pytest.approx(mean_over(again, "scores"))


def test_parts():
    probe = LinearProbe.fit(images().x, images().truth[:, 1])
    assert probe.accuracy(images(seed=5).x, images(seed=5).truth[:, 1]) > 0.95
    with pytest.raises(ValueError, match="one side is empty"):
        LinearProbe.fit(np.ones((4, 2)), np.ones(4, bool))
    x = np.random.default_rng(0).standard_normal((20, D))
    flat = without_direction(x, 3 * ATOMS[0], np.zeros(D))
    np.testing.assert_allclose(flat @ ATOMS[0], 0, atol=1e-12)
    np.testing.assert_allclose(flat @ ATOMS[1], x @ ATOMS[1])
    first = np.array([True, True, False, False, True])
    second = np.array([True, False, True, False, True])
    assert [len(cell) for cell in balanced(first, second, 1, np.random.default_rng(0))] == [1, 1, 1, 1]
    assert balanced(first, first, 1, np.random.default_rng(0)) is None
    rare = images(seed=0)
    rare.truth[:, 1] = rare.truth[:, 0]
    assert removal(rare, images(seed=1), ATOMS, NAMES, (0, 1)) is None
