"""A world that is a supervised dictionary: joint least squares finds it, an SAE with its atoms controls it, one without does not."""

import numpy as np
import pytest

from evals.supervised import Known, Valued, compare, f1s

D = 12
VECTORS = np.linalg.qr(np.random.default_rng(3).standard_normal((D, D)))[0][:5]
NAMES = ["colour", "shape"]


def world(n=240, seed=0, atoms=VECTORS, noise=0.05):
    """colour has 3 values and shape 2, which agree more often than not; latent v is value v, counted through both."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(0, 2, n)
    colour = np.where(rng.random(n) < 0.6, shape, rng.integers(0, 3, n))
    truth = np.zeros((n, 5))
    truth[np.arange(n), colour] = truth[np.arange(n), 3 + shape] = 1
    x = truth @ VECTORS + noise * rng.standard_normal((n, D))
    z = np.maximum(x @ atoms.T - 0.3, 0) if atoms is not VECTORS else truth
    return Valued(x, z @ atoms, z, np.stack([colour, shape], 1))


def test_joint_least_squares_finds_the_dictionary_and_means_do_not():
    train, test = world(800, noise=0.0), world(seed=1, noise=0.0)
    joint, means = Known.fit(train), Known.fit(train, joint=False)
    np.testing.assert_allclose(joint(test.values), test.x, atol=1e-3)
    assert np.square(means(test.values) - test.x).sum() > 10 * np.square(joint(test.values) - test.x).sum()
    gap = joint.vectors[0][1] - joint.vectors[0][0]
    np.testing.assert_allclose(gap, VECTORS[1] - VECTORS[0], atol=1e-3)
    np.testing.assert_allclose(joint.bias, train.x.mean(0))
    # of one attribute alone, the two are the same
    alone = Valued(train.x, train.x_hat, train.z, train.values[:, :1])
    np.testing.assert_allclose(Known.fit(alone)(alone.values), Known.fit(alone, joint=False)(alone.values), atol=1e-3)


def test_an_sae_with_the_atoms_controls_as_supervision_does():
    found = compare(world(), world(seed=1), VECTORS, NAMES, n=1, pairs=80, resamples=20)
    edits = {(each.attribute, each.how): each for each in found.edits}
    for name in NAMES:
        latents, supervised, nothing = (edits[name, how] for how in ("1 latents", "supervised", "no edit"))
        assert latents.success.value > 0.95 and supervised.success.value > 0.95
        assert nothing.success.value == nothing.success.floor < 0.1 and nothing.weight == 0
        assert edits[name, "1 random latents"].success.value < 0.8
        assert latents.side_effect < 0.05 and 0 < latents.weight < 1.5
    assert found.r2["supervised (joint)"].value > 0.95 and found.r2["SAE"].value > 0.95
    assert found.r2["supervised (joint)"].interval[0] < found.r2["supervised (joint)"].value
    assert found.probes["colour"] > 0.95 > found.majority["colour"] and found.latents == 5


def test_its_latents_are_enough_for_an_attribute_and_needed_for_it_and_random_ones_are_neither():
    found = compare(world(600), world(600, seed=1), VECTORS, NAMES, n=1, pairs=20, resamples=30)
    kept = {(each.attribute, each.how): each.accuracy for each in found.kept}
    for name, own, random in (("colour", 3, 2), ("shape", 2, 2)):
        truth = {how: kept[name, how] for of, how in kept if of == name}
        assert truth["reconstruction"].value > 0.95 < truth[f"its {own} latents alone"].value
        without = truth[f"without its {own} latents"]
        assert without.value < 0.78 and truth[f"without {random} random latents"].value > 0.95
        assert (
            truth[f"{random} random latents alone"].value < 0.85
        )  # the other attribute, which agrees in 73 %, tells this much
        assert without.interval[0] <= without.value <= without.interval[1]


def test_an_sae_without_them_does_not():
    atoms = np.linalg.qr(np.random.default_rng(8).standard_normal((D, D)))[0]
    found = compare(world(atoms=atoms), world(seed=1, atoms=atoms), atoms, NAMES, n=1, pairs=80, resamples=5)
    success = {each.how: each.success.value for each in found.edits if each.attribute == "colour"}
    assert success["1 latents"] < success["supervised"] - 0.3
    assert found.r2["SAE"].value < found.r2["supervised (joint)"].value


def test_f1_is_counted():
    part = world(60)
    fires, is_two = part.z[:, 3] != 0, part.values[:, 0] == 2
    assert f1s(part, 0)[2, 3] == pytest.approx(2 * (fires & is_two).sum() / (fires.sum() + is_two.sum()))
    assert f1s(part, 1)[0, 3] == 1


def test_values_that_training_lacks_are_refused():
    train, test = world(), world(seed=1)
    train.values[:, 1] = 0
    with pytest.raises(ValueError, match="1 values of 'shape'"):
        compare(train, test, VECTORS, NAMES)
