"""Planted answers first, then slow references, then what must hold of any codes, then a person's mistakes."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.sparse import csc_array
from scipy.special import logit
from sklearn.metrics import average_precision_score

from evals.segmentation import RHO, align, best_iou_threshold, coverage, fit_probes

NAMES = ("a", "b", "c", "d")
PREVALENCE = np.array([0.6, 0.25, 0.1, 0.05])
PI = [7, 2, 9, 4]


def planted(n, seed):
    """12 latents of half-normal noise; class c adds 10 to latent PI[c], but class 3 takes latent 4 below what noise reaches."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, n, p=PREVALENCE)
    z = np.abs(rng.normal(size=(n, 12)))
    for c in range(3):
        z[labels == c, PI[c]] += 10
    z[labels == 3, PI[3]] -= 10
    return csc_array(z), labels


def test_planted_indicators_are_found_the_negative_one_too():
    found = align(*planted(3000, 0), *planted(2000, 1), NAMES)
    assert [each.latent for each in found.classes] == PI
    assert found.probe_r > 0.999 and found.probe_r_mean > 0.999
    assert (
        found.mean_ap == pytest.approx(1)
        and found.coverage == {"0.3": 1, "0.5": 1, "0.7": 1}
        and found.mean_iou > 0.999
    )
    assert [each.precision_matched for each in found.classes[:3]] == [1, 1, 1]
    assert found.classes[3].precision_matched == 0  # it is told by what its latent lacks


def test_shuffled_labels_give_the_floors():
    (codes, labels), (other, truth) = planted(3000, 0), planted(3000, 1)
    rng = np.random.default_rng(2)
    found = align(codes, rng.permutation(labels), other, rng.permutation(truth), NAMES)
    assert abs(found.probe_r) < 0.02 and abs(found.probe_r_mean) < 0.02
    for each in found.classes:
        assert each.ap == pytest.approx(each.prevalence, abs=0.03)
    assert found.mean_ap_floor == pytest.approx(0.25)


def test_the_purity_trap():
    """Majority purity praises a latent for a class it never fires on."""
    labels = (np.arange(400) % 10 == 0).astype(int)
    codes = csc_array((labels == 0).astype(float)[:, None])
    found = align(codes, labels, codes, labels, ("most", "few"))
    assert found.classes[1].purity_majority == 1 and found.classes[1].precision_matched == 0
    assert found.purity_floor == 0.9


def test_a_binary_latent_has_its_closed_form():
    rng = np.random.default_rng(0)
    labels = (rng.random(2000) < 0.3).astype(int)
    z = (rng.random(2000) < np.where(labels, 0.6, 0.2)).astype(float)
    found = fit_probes(csc_array(z[:, None]), labels, 2)
    for c in (0, 1):
        on, off = (labels[z == 1] == c).mean(), (labels[z == 0] == c).mean()
        assert found.bias[0, c] == pytest.approx(logit(off), abs=1e-6)
        assert found.weight[0, c] == pytest.approx(logit(on) - logit(off), abs=1e-6)


def test_probe_r_is_the_ratio_of_means_and_the_mean_of_ratios_beside_it():
    """One latent that is class a (50 %), and says of b (40 %) and c (10 %) only that they are not it: losses in closed form, and the two definitions differ."""
    labels = np.repeat([0, 1, 2], [500, 400, 100])
    codes = csc_array((labels == 0).astype(float)[:, None])
    found = align(codes, labels, codes, labels, ("a", "b", "c"))
    H = lambda p: -p * np.log(p) - (1 - p) * np.log(1 - p)  # noqa: E731
    losses, entropies = np.array([0, H(0.8) / 2, H(0.2) / 2]), np.array([H(0.5), H(0.4), H(0.1)])
    np.testing.assert_allclose([each.loss for each in found.classes], losses, atol=1e-4)
    assert found.probe_r == pytest.approx(1 - losses.mean() / entropies.mean(), abs=1e-3)  # the authors' code
    assert found.probe_r_mean == pytest.approx((1 - losses / entropies).mean(), abs=1e-3)  # the text of a draft
    assert found.probe_r > found.probe_r_mean + 0.05


def test_separable_data_do_not_diverge():
    labels = np.arange(200) % 2
    found = fit_probes(csc_array(np.c_[labels, 1 - labels, 1e6 * labels, 1e-6 * labels].astype(float)), labels, 2)
    assert np.isfinite(found.weight).all() and np.isfinite(found.bias).all()
    assert (found.loss[:3] < 1e-3).all() and (found.loss >= 0).all()


def test_fits_are_those_of_a_general_optimiser_with_zeros_and_negatives():
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 300, p=[0.7, 0.2, 0.1])
    z = rng.normal(size=(300, 4)) * (rng.random((300, 4)) < 0.4) * [0.01, 1, 5, 100] + (labels == 1)[:, None] * [
        0,
        1,
        0,
        9,
    ]
    found = fit_probes(csc_array(z), labels, 3)
    for latent in range(4):
        for c in range(3):
            y, b0, scale = labels == c, logit((labels == c).mean()), [0.01, 1, 5, 100][latent]

            def objective(at, column=z[:, latent], y=y, b0=b0, scale=scale):
                w, b = at[0] / scale, at[1]
                s = w * column + b
                return (np.logaddexp(0, s) - y * s).mean() + RHO / 2 * (w**2 + (b - b0) ** 2)

            best = minimize(objective, [0, b0], method="BFGS", options={"gtol": 1e-9})
            ours = [found.weight[latent, c] * scale, found.bias[latent, c]]
            assert objective(ours) == pytest.approx(best.fun, abs=1e-9)
            penalty = RHO / 2 * (found.weight[latent, c] ** 2 + (found.bias[latent, c] - b0) ** 2)
            assert found.loss[latent, c] == pytest.approx(best.fun - penalty, abs=1e-9)


def test_a_dead_latent_has_the_prevalence_and_nothing_more():
    labels = np.arange(100) % 4
    found = fit_probes(csc_array((100, 1)), labels, 4)
    np.testing.assert_allclose(found.weight, 0)
    np.testing.assert_allclose(found.bias, logit(0.25))
    np.testing.assert_allclose(found.loss, -(0.25 * np.log(0.25) + 0.75 * np.log(0.75)))
    alone = align(csc_array((100, 1)), labels, csc_array((100, 1)), labels, NAMES)
    assert [each.ap for each in alone.classes] == [0.25] * 4 and alone.probe_r == pytest.approx(0)
    assert [each.iou for each in alone.classes] == [0.25] * 4  # always yes


def test_the_latent_is_never_chosen_on_the_report_split():
    """Of 500 random latents the one chosen on the fit split is near the prevalence on the other; the best of the other is not."""
    rng = np.random.default_rng(0)
    labels, truth = (rng.random((2, 1500)) < 0.045).astype(int)
    codes, other = rng.random((2, 1500, 500))
    found = align(csc_array(codes), labels, csc_array(other), truth, ("no", "yes")).classes[1]
    flattered = max(average_precision_score(truth, sign * other[:, j]) for j in range(500) for sign in (1, -1))
    assert found.ap < 0.07 < flattered


def test_latents_and_patches_in_another_order_change_nothing():
    (codes, labels), report = planted(800, 0), planted(700, 1)
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(800), rng.permutation(12)
    one = align(codes, labels, *report, NAMES)
    other = align(csc_array(codes[rows][:, columns]), labels[rows], csc_array(report[0][:, columns]), report[1], NAMES)
    assert [columns[each.latent] for each in other.classes] == [each.latent for each in one.classes]
    assert other.probe_r == pytest.approx(one.probe_r, abs=1e-9) and other.mean_ap == pytest.approx(one.mean_ap)


def test_coverage_is_strict():
    assert coverage(np.array([0.31, 0.30, 0.29]))["0.3"] == pytest.approx(1 / 3)


def test_the_threshold_of_the_best_iou_is_that_of_trying_all():
    rng = np.random.default_rng(0)
    score, has = rng.integers(0, 9, 120).astype(float), rng.random(120) < 0.3
    iou = {t: ((score > t) & has).sum() / ((score > t) | has).sum() for t in (-np.inf, *np.arange(9) + 0.5)}
    assert iou[best_iou_threshold(score, has)] == max(iou.values())


def test_a_class_that_a_split_lacks_is_left_out_and_mistakes_are_named():
    (codes, labels), (other, truth) = planted(500, 0), planted(500, 1)
    found = align(codes, labels, csc_array(other[truth != 1]), truth[truth != 1], NAMES)
    assert found.left_out == ("b",) and [each.latent for each in found.classes] == [7, 9, 4]
    found = align(csc_array(codes[labels != 1]), labels[labels != 1], other, truth, NAMES)
    assert found.left_out == ("b",) and [each.latent for each in found.classes] == [7, 9, 4]
    with pytest.raises(ValueError, match="of two SAEs"):
        align(codes, labels, csc_array(other[:, :5]), truth, NAMES)
    with pytest.raises(ValueError, match="fewer than two classes"):
        align(codes, labels, other, np.zeros(500, int), NAMES)
    with pytest.raises(ValueError, match=r"classes \[4\] are on no patch"):
        fit_probes(codes, labels, 5)
