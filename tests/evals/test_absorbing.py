"""A parent whose latent is silent on one child, whose own latent carries the parent's direction: the share of that child is the rate."""

import numpy as np
import pytest

from evals.absorbing import absorbed, absorption, main_latents
from evals.erasure import Images, LinearProbe

D = 8
BASIS = np.linalg.qr(np.random.default_rng(2).standard_normal((D, D)))[0]


def world(n=1000, seed=0, absorbing=True):
    """Child 0 is rare, so that it is not worth a main latent of its own. Latent 0 is the parent, 1 and 2 its children; child 1's atom holds the parent's direction where `absorbing`, and latent 0 is then silent on it."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(4, n, p=[0.02, 0.48, 0.25, 0.25])  # 0, 1: the children; 2, 3: neither
    z = np.zeros((n, 5))
    z[kind < 2, 0] = 1
    z[kind == 0, 1] = z[kind == 1, 2] = z[kind == 2, 3] = z[kind == 3, 4] = 1
    atoms = BASIS[:5].copy()
    x = z @ atoms
    if absorbing:
        z[kind == 0, 0] = 0
        atoms[1] = BASIS[1] + BASIS[0]
    return Images(x + 0.02 * rng.standard_normal((n, D)), z, np.stack([kind < 2, kind == 0], 1)), atoms, kind


def test_the_absorbed_share_is_that_of_the_child():
    (train, atoms, _), (test, _, kind) = world(), world(seed=1)
    found, left_out = absorption(train, test, atoms, ["parent", "child"], resamples=50)
    parent, child = found
    share = (kind == 0).sum() / (kind < 2).sum()
    assert left_out == () and parent.main == (0,) and child.main == (1,)
    assert (
        parent.full.value == pytest.approx(share, abs=0.003)
        and parent.full.interval[0] < share < parent.full.interval[1]
    )
    assert child.full.value == 0 and parent.samples == pytest.approx((kind < 2).sum(), abs=3)


def test_the_rate_given_the_main_latent_is_exact_and_zero_without_absorption():
    test, atoms, kind = world(seed=1)
    probe = LinearProbe.fit(test.x, test.truth[:, 0])
    seen = np.flatnonzero(test.truth[:, 0])
    full, fraction = absorbed(test.some(seen), atoms, probe, np.array([0]))
    np.testing.assert_array_equal(full, (kind[seen] == 0).astype(float))
    assert fraction[kind[seen] == 0].min() > 0.9
    honest, own, kind = world(seed=1, absorbing=False)
    probe = LinearProbe.fit(honest.x, honest.truth[:, 0])
    seen = np.flatnonzero(honest.truth[:, 0])
    assert absorbed(honest.some(seen), own, probe, np.array([0]))[0].sum() == 0
    found, _ = absorption(*(world(seed=s, absorbing=False)[0] for s in (0, 1)), own, ["parent", "child"], resamples=5)
    assert found[0].full.value == 0 and found[0].main == (0,)


def test_main_latents_stop_where_f1_does():
    train, _, _ = world(absorbing=False)
    assert main_latents(train.z, train.truth[:, 0]).tolist() == [0]
    several = train.z.copy()
    several[:, 0] = 0
    assert main_latents(several, train.truth[:, 0]).tolist() == [2]  # the rare child is not worth another
    halves = np.c_[train.z[:, 0] * (np.arange(1000) % 2), train.z[:, 0] * (np.arange(1000) % 2 == 0)]
    assert sorted(main_latents(halves, train.truth[:, 0]).tolist()) == [0, 1]


def test_weak_probes_and_one_sided_concepts_are_left_out():
    train, atoms, _ = world()
    blind = Images(train.x, train.z, np.random.default_rng(0).random(train.truth.shape) < [0.5, 0.01])
    blind.truth[:, 1] = False
    found, left_out = absorption(
        blind, Images(train.x[::-1], train.z[::-1], blind.truth), atoms, ["x", "never"], resamples=5
    )
    assert "never" in left_out and {each.name for each in found} | set(left_out) == {"x", "never"}
