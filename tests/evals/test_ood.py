"""Known answers first, then slow references, then what must hold of any codes, then what a person can get wrong."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.spatial.distance import cdist
from scipy.stats import entropy, spearmanr
from sklearn.covariance import LedoitWolf
from sklearn.metrics import average_precision_score, roc_auc_score

from evals import detection as detecting
from evals.detection import detection, mean_of
from evals.ood import class_profiles, cosine_cap, epd, nearest_cap, silence_l0, silence_l1, spearman_cap
from evals.ood_dense import Gaussians, Head, Neighbours, ViM, energy, msp, relative

N_CLASSES, N_LATENTS, ACTIVE = 10, 400, 20
SHARE = ACTIVE / N_LATENTS


@pytest.fixture(scope="module")
def world():
    """Ten classes, each with 20 of 400 latents in fixed, head-heavy proportions: train, fresh, near (the same latents and magnitudes, permuted), far."""
    rng = np.random.default_rng(0)
    support = [rng.permutation(N_LATENTS)[:ACTIVE] for _ in range(N_CLASSES)]
    shape = [np.sort(rng.gamma(0.5, 1, ACTIVE))[::-1] + 0.05 for _ in range(N_CLASSES)]
    labels = np.repeat(np.arange(N_CLASSES), 100)

    def draw(permute=False, anywhere=False):
        codes = np.zeros((len(labels), N_LATENTS))
        for row, c in enumerate(labels):
            magnitudes = shape[c] * rng.lognormal(0, 0.15, ACTIVE) * rng.lognormal(0, 0.5)
            where = rng.permutation(N_LATENTS)[:ACTIVE] if anywhere else support[c]
            codes[row, where] = rng.permutation(magnitudes) if permute else magnitudes
        return csr_array(codes)

    return labels, draw(), draw(), draw(permute=True), draw(anywhere=True)


def auroc(inside, outside):
    return detection(inside, outside, resamples=0).auroc.value


def test_epd_and_spearman_tell_planted_sets_apart_and_sums_do_not(world):
    labels, train, fresh, near, far = world
    profiles = class_profiles(train, labels, N_CLASSES, top=SHARE)
    assert (nearest_cap(fresh, profiles) == labels).mean() > 0.99
    inside = epd(fresh, labels, profiles)
    for out in (near, far):
        found = detection(inside, epd(out, labels, profiles), resamples=50)
        assert found.auroc.value > 0.999 and found.fpr95.value == 0 and found.auroc.interval[0] > 0.999
        assert auroc(-inside, -epd(out, labels, profiles)) < 0.001  # the sign
        assert auroc(spearman_cap(fresh, profiles), spearman_cap(out, profiles)) > 0.999
        assert auroc(cosine_cap(fresh, profiles), cosine_cap(out, profiles)) > 0.99
        assert abs(auroc(silence_l1(fresh), silence_l1(out)) - 0.5) < 0.04
        assert auroc(silence_l0(fresh), silence_l0(out)) == 0.5  # all tied
    again = detection(
        inside[::2], inside[1::2]
    )  # fresh against fresh: the training samples fit their own profile too well
    assert abs(again.auroc.value - 0.5) < 0.04 and again.auroc.interval[0] < 0.5 < again.auroc.interval[1]


def test_fpr95_on_a_list_one_can_check_by_hand():
    inside = np.arange(1.0, 21)
    assert detection(inside, np.array([0.0, 5, 19])).fpr95.value == 1.0
    assert detection(inside, np.array([20.5, 30])).fpr95.value == 0.0
    assert detection(inside, np.array([19.0, 19.5, 20, 21])).fpr95.value == 0.25  # 19 of the 20 are at most 19


@pytest.mark.parametrize("ties", [3, 1000])
def test_the_measures_are_scikit_learns(ties, monkeypatch):
    monkeypatch.setattr(detecting, "ENTRIES", 3000)
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, ties, 80).astype(float), rng.integers(0, ties, 50) + ties / 4
    found, all_of_them = detection(inside, outside, resamples=20), np.r_[inside, outside]
    is_out = np.arange(130) >= 80
    assert found.auroc.value == pytest.approx(roc_auc_score(is_out, all_of_them))
    assert found.aupr_out.value == pytest.approx(average_precision_score(is_out, all_of_them))
    assert found.aupr_in.value == pytest.approx(average_precision_score(~is_out, -all_of_them))
    for side, sign in ((found.auroc, 1), (found.aupr_out, 1), (found.aupr_in, 1), (found.fpr95, 1)):
        assert sign * side.interval[0] <= side.value <= side.interval[1]


def test_a_constant_score_has_the_floors_and_accepts_everything():
    found = detection(np.ones(30), np.ones(10), resamples=50)
    for estimate in (found.auroc, found.aupr_out, found.aupr_in):
        assert estimate.value == pytest.approx(estimate.floor) and estimate.interval == pytest.approx(
            (estimate.floor,) * 2
        )
    assert found.fpr95.value == 1 and found.fpr95.floor == 0.95


def test_resamples_are_those_of_the_samples_themselves():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(size=12), rng.normal(size=9) + 1
    found = detection(inside, outside, resamples=30, seed=5)
    for draw in range(30):
        sides = []
        for side, values in enumerate((inside, outside)):
            n = len(values)
            times = np.random.default_rng([5, side]).multinomial(n, np.full(n, 1 / n), 30)[draw]
            sides.append(np.repeat(values, times))
        truth = np.r_[np.zeros(12), np.ones(9)]
        assert found.drawn[draw, 0] == pytest.approx(roc_auc_score(truth, np.concatenate(sides)))
    both = mean_of([found, detection(inside, outside + 1, resamples=30, seed=5)])
    assert both.auroc.value > found.auroc.value and both.n_out == 18 and both.auroc.interval


def test_codes_scores_are_their_definitions(world):
    labels, train, _, _, far = world
    profiles = class_profiles(train, labels, N_CLASSES)
    h, z = profiles.mean, far.toarray()[::97]
    np.testing.assert_allclose(h, [train.toarray()[labels == c].mean(0) for c in range(N_CLASSES)])
    some, own = csr_array(z), labels[::97]
    mask = [np.argsort(-h[c], kind="stable")[:60] for c in own]
    expected = [
        entropy(row[m], h[c][m]) if row[m].sum() > 0 and (h[c][m] > 0).all() else np.nan
        for row, m, c in zip(z, mask, own, strict=True)
    ]
    found, known = epd(some, own, profiles), ~np.isnan(expected)
    np.testing.assert_allclose(found[known], np.array(expected)[known], rtol=1e-6)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(cosine_cap(some, profiles), cdist(z, h, "cosine").min(1))
    slow = [1 - max(spearmanr(row, each).statistic for each in h) for row in z]
    np.testing.assert_allclose(spearman_cap(some, profiles), slow)
    assert silence_l0(some).tolist() == [-20] * len(z)
    np.testing.assert_allclose(silence_l1(some), -z.sum(1))


def test_epd_is_the_divergence_on_positive_profiles():
    rng = np.random.default_rng(0)
    codes = rng.gamma(1, 1, (60, 12)) * (rng.random((60, 12)) < 0.8)
    labels = np.arange(60) % 3
    profiles = class_profiles(csr_array(codes), labels, 3, top=0.5)
    mask = np.argsort(-profiles.mean, 1)[:, :6]
    slow = [entropy(row[mask[c]], profiles.mean[c][mask[c]]) for row, c in zip(codes, labels, strict=True)]
    np.testing.assert_allclose(epd(csr_array(codes), labels, profiles), slow, rtol=1e-9)


def test_scores_ignore_the_scale_of_a_code_the_order_of_latents_and_batches(world, monkeypatch):
    labels, train, fresh, _, _ = world
    profiles = class_profiles(train, labels, N_CLASSES)
    order = np.random.default_rng(1).permutation(N_LATENTS)
    moved = class_profiles(csr_array(train.toarray()[:, order]), labels, N_CLASSES)
    for score in (lambda z, p: epd(z, labels, p), cosine_cap, spearman_cap):
        whole = score(fresh, profiles)
        np.testing.assert_allclose(score(3 * fresh, profiles), whole, atol=1e-12)
        np.testing.assert_allclose(score(csr_array(fresh.toarray()[:, order]), moved), whole, atol=1e-9)
        monkeypatch.setattr("evals.ood.BLOCK_ROWS", 130)
        np.testing.assert_allclose(score(fresh, profiles), whole, atol=1e-12)


def test_a_silent_code_gets_the_largest_score_not_nan(world):
    labels, train, _, near, far = world
    profiles = class_profiles(train, labels, N_CLASSES, top=SHARE)
    silent = csr_array(np.zeros((N_CLASSES, N_LATENTS)))
    found = epd(silent, np.arange(N_CLASSES), profiles)
    assert np.isfinite(found).all()
    for other in (train, near, far):
        largest = [epd(other, labels, profiles)[labels == c].max() for c in range(N_CLASSES)]
        assert (found >= np.array(largest) - 1e-12).all()
    assert cosine_cap(silent, profiles).tolist() == spearman_cap(silent, profiles).tolist() == [1.0] * N_CLASSES


@pytest.mark.parametrize("n", [25, 400])
def test_mahalanobis_is_that_of_scikit_learns_covariance_with_few_samples_and_many(n):
    rng = np.random.default_rng(0)
    mix, labels = rng.normal(size=(30, 30)), np.arange(n) % 3
    x = rng.normal(size=(n, 30)) @ mix + labels[:, None] * 4 + 100
    fitted = Gaussians.fit(x.astype(np.float32), labels, 3)
    means = np.stack([x[labels == c].mean(0) for c in range(3)])
    precision = LedoitWolf(assume_centered=True).fit(x - means[labels]).precision_
    new = rng.normal(size=(11, 30)) @ mix + 100
    slow = np.array([[(row - m) @ precision @ (row - m) for m in means] for row in new])
    np.testing.assert_allclose(fitted.distances(new), slow, rtol=1e-3)
    np.testing.assert_allclose(fitted.score(new), slow.min(1), rtol=1e-3)
    everything = Gaussians.fit(x, np.zeros(n, int), 1, fitted.shrinkage)
    assert everything.shrinkage == fitted.shrinkage
    np.testing.assert_allclose(
        relative(fitted, everything, new), slow.min(1) - everything.distances(new)[:, 0], rtol=1e-2, atol=1e-2
    )


def test_relative_mahalanobis_does_not_take_what_is_out_for_what_is_in_where_covariances_are_shrunk():
    """Each shrunk by its own amount, the covariance of all is the smaller one where the training data do not vary, and what is out comes out as in."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 8
    means, shared = 3 * rng.normal(size=(8, 300)), 0.2 * rng.normal(size=(40, 300))

    def drawn(centres):
        return centres + rng.normal(size=(len(centres), 40)) @ shared + rng.normal(size=centres.shape)

    train, inside = drawn(means[labels]), drawn(means[labels])
    anywhere = inside + rng.normal(size=inside.shape)
    between_classes = drawn(-2 * means[labels])
    classes = Gaussians.fit(train, labels, 8)
    alike = Gaussians.fit(train, np.zeros(400, int), 1, classes.shrinkage)
    own = Gaussians.fit(train, np.zeros(400, int), 1)

    def found(everything, outside):
        return auroc(relative(classes, everything, inside), relative(classes, everything, outside))

    assert found(alike, between_classes) > 0.99
    assert found(alike, anywhere) > 0.7 and found(own, anywhere) < 0.1


def test_distances_and_logits_are_their_definitions():
    rng = np.random.default_rng(0)
    x, new = rng.normal(size=(40, 6)), rng.normal(size=(9, 6))
    u, v = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, new))
    np.testing.assert_allclose(Neighbours.fit(x, 3).score(new), np.sort(cdist(v, u), 1)[:, 2])
    np.testing.assert_allclose(Neighbours.fit(x, 99).score(new), np.sort(cdist(v, u), 1)[:, -1])
    logits = rng.normal(size=(9, 4)) * 3
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(msp(logits), -p.max(1))
    np.testing.assert_allclose(energy(logits), -np.log(np.exp(logits).sum(1)))
    assert np.isfinite(energy(logits + 1e4)).all()


def test_vim_sees_what_the_head_does_not():
    """In distribution only the first 3 of 8 dimensions vary; the head reads these alone."""
    rng = np.random.default_rng(0)
    weight, bias = np.zeros((4, 8)), rng.normal(size=4)
    weight[:, :3] = rng.normal(size=(4, 3))
    head = Head(weight, bias)

    def draw(noise):
        x = rng.normal(size=(300, 8))
        x[:, 3:] *= noise
        return x

    train, fresh, odd = draw(0.1), draw(0.1), draw(0.5)
    fitted = ViM.fit(train, head, principal=3)
    origin = -np.linalg.pinv(weight) @ bias
    residual = np.linalg.norm(
        (fresh - origin) - (fresh - origin) @ (np.eye(8) - fitted.outside @ fitted.outside.T), axis=1
    )
    alpha = head.logits(train).max(1).mean() / np.linalg.norm((train - origin) @ fitted.outside, axis=1).mean()
    np.testing.assert_allclose(fitted.score(fresh), alpha * residual + energy(head.logits(fresh)))
    assert auroc(fitted.score(fresh), fitted.score(odd)) > 0.9
    assert abs(auroc(energy(head.logits(fresh)), energy(head.logits(odd))) - 0.5) < 0.1


def test_mistakes_are_named():
    codes = csr_array(np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"classes \[1\] have no training sample"):
        class_profiles(codes, np.array([0, 2]), 3)
    with pytest.raises(ValueError, match="negative values"):
        class_profiles(-codes, np.array([0, 0]), 1)
    with pytest.raises(ValueError, match="at most 1"):
        class_profiles(codes, np.array([0, 0]), 1, top=0.0)
    with pytest.raises(ValueError, match="got 0 and 2"):
        detection(np.ones(0), np.ones(2))
    with pytest.raises(ValueError, match="NaN"):
        detection(np.ones(2), np.array([1, np.nan]))
    with pytest.raises(ValueError, match="all equal"):
        Gaussians.fit(np.ones((4, 3)), np.zeros(4, int), 1)
    with pytest.raises(ValueError, match="head reads 2 features and the store has 3"):
        Head(np.ones((2, 2)), np.zeros(2)).logits(np.ones((1, 3)))
