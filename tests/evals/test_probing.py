"""Sparse probes where the answer is known: one latent is the label; labels that nothing knows; and AUC, regimes and ranking against the slow way."""

import numpy as np
import pytest
from scipy.sparse import csc_array
from sklearn.metrics import roc_auc_score

from evals.probes import Column, Labels, area, areas, methods, ranked, validation
from evals.probing import Regimes, altered, gain, probe


def labels(n, seed, attributes=2, latents=30, d=8, start=0):
    """Latent j is attribute j, with some noise; the dense features mix two attributes with stronger nuisances."""
    rng = np.random.default_rng(seed)
    truth = rng.random((n, attributes)) < 0.4
    codes = rng.random((n, latents)) * (rng.random((n, latents)) < 0.2)
    codes[:, :attributes] = truth * rng.uniform(0.5, 1.5, truth.shape) + 0.4 * (rng.random(truth.shape) < 0.1)
    mix = np.random.default_rng(99).standard_normal((attributes, d))
    dense = truth @ mix + 2.0 * rng.standard_normal((n, d))
    return Labels(csc_array(codes), dense, truth, np.arange(start, start + n))


SMALL = Regimes(scarce=16, imbalanced=0.1, noisy=0.3)


def test_one_latent_is_enough_where_it_is_the_label():
    found = probe(labels(160, 0), labels(160, 1, start=1000), ["a", "b"], k=(1, 5), regimes=SMALL, resamples=20)
    normal = found.methods["normal"]
    assert normal["latents 1"].auc.value > 0.97 > normal["dense"].auc.value > 0.55
    assert normal["latents 1"].auc.interval[0] > normal["kNN"].auc.value > 0.5
    assert all(abs(each.shuffled - 0.5) < 0.2 for each in normal.values())
    assert found.methods["scarce"]["latents 1"].auc.value > found.methods["scarce"]["dense"].auc.value
    assert found.methods["noisy"]["latents 1"].auc.value > 0.9
    assert found.toolkit["normal"].value > 0.05 and found.toolkit["normal"].floor == 0
    assert found.attributes == ("a", "b") and set(normal["dense"].by_attribute) == {"a", "b"}


def test_nothing_is_found_where_nothing_is():
    train, test = labels(120, 0), labels(120, 1, start=1000)
    blind = np.random.default_rng(5).random((120, 1)) < 0.5
    found = probe(
        Labels(train.codes, train.dense, blind, train.samples), Labels(test.codes, test.dense, blind[::-1], test.samples), ["x"],
        k=(2,), regimes=SMALL, resamples=10,
    )  # fmt: skip
    assert all(abs(method.auc.value - 0.5) < 0.2 for each in found.methods.values() for method in each.values())


def test_trees_and_an_mlp_say_what_no_linear_probe_can():
    """The label is whether two coordinates agree in sign. Without being asked for, neither is there."""

    def agree(seed, start):
        rng = np.random.default_rng(seed)
        dense = rng.standard_normal((300, 3))
        truth = (dense[:, :1] > 0) == (dense[:, 1:2] > 0)
        return Labels(csc_array(np.abs(dense) * (dense > 1)), dense, truth, np.arange(start, start + 300))

    train, test, rng = agree(0, 0), agree(1, 1000), np.random.default_rng(0)
    said = train.truth[:, 0]
    found = methods(train, np.arange(300), said, test, (1,), rng, nonlinear=True)
    aucs = {name: area(column.test, test.truth[:, 0]) for name, column in found.items()}
    assert aucs["trees"] > 0.9 and aucs["MLP"] > 0.9 and abs(aucs["dense"] - 0.5) < 0.12
    again = methods(train, np.arange(300), said, test, (1,), np.random.default_rng(0))
    assert set(found) - set(again) == {"trees", "MLP"}
    blind = methods(train, np.arange(300), rng.permutation(said), test, (1,), rng, nonlinear=True)
    assert all(abs(area(blind[name].test, test.truth[:, 0]) - 0.5) < 0.15 for name in ("trees", "MLP"))
    few = methods(train, np.arange(24), said[:24], test, (1,), rng, nonlinear=True)
    assert all(np.isfinite(few[name].test).all() for name in ("trees", "MLP"))


def test_areas_are_scikit_learns_with_ties_and_weights():
    rng = np.random.default_rng(0)
    score, has = rng.integers(0, 5, 60).astype(float), rng.random(60) < 0.3
    weights = rng.integers(0, 3, (4, 60)).astype(float)
    for row, found in zip(weights, areas(score, has, weights), strict=True):
        assert found == pytest.approx(roc_auc_score(has, score, sample_weight=row))
    assert areas(np.zeros(60), has, np.ones((1, 60)))[0] == 0.5
    assert areas(score, np.ones(60, bool), np.ones((1, 60)))[0] == 0.5


def test_latents_are_ranked_by_their_difference_of_means():
    part = labels(80, 3)
    rows, said = np.arange(10, 70), part.truth[10:70, 0]
    dense = part.codes.toarray()[rows]
    slow = np.abs(dense[said].mean(0) - dense[~said].mean(0))
    np.testing.assert_allclose(slow[ranked(part.codes, rows, said)], np.sort(slow)[::-1])
    assert ranked(part.codes, rows, said).tolist()[0] == 0
    assert ranked(np.zeros((80, 3)), rows, said).tolist() == [0, 1, 2]


def test_regimes_do_what_they_say():
    has, rng = np.random.default_rng(0).random(1000) < 0.4, np.random.default_rng(1)
    rows, said = altered(has, "normal", Regimes(most=600), rng)
    assert len(set(rows.tolist())) == 600 and (said == has[rows]).all()
    rows, said = altered(has, "scarce", Regimes(scarce=20), rng)
    assert len(rows) == 20 and said.sum() == 10
    rows, said = altered(has, "imbalanced", Regimes(imbalanced=0.05), rng)
    assert said.mean() == pytest.approx(0.05, abs=0.002) and (said == has[rows]).all()
    rows, said = altered(has, "noisy", Regimes(noisy=0.25), rng)
    assert (said != has[rows]).mean() == pytest.approx(0.25, abs=0.05)
    held = validation(np.array([True, True, False, False, False, False, False, False]), rng)
    assert held.tolist().count(True) == 2


def test_the_toolkit_gains_nothing_from_latents_it_does_not_choose():
    def C(validation):
        return Column(np.zeros(1), validation)

    aucs = {"latents 1": np.array([0.9]), "dense": np.array([0.7]), "kNN": np.array([0.6])}
    assert gain({"latents 1": C(0.6), "dense": C(0.8), "kNN": C(0.1)}, aucs) == 0
    assert gain({"latents 1": C(0.9), "dense": C(0.8), "kNN": C(0.1)}, aucs) == pytest.approx(0.2)
    assert gain({"latents 1": C(0.8), "dense": C(0.8), "kNN": C(0.1)}, aucs) == 0  # of equals, what one already has


def test_wrong_splits_and_rare_attributes_are_sentences():
    part = labels(60, 0)
    with pytest.raises(ValueError, match="60 samples are both trained and tested on"):
        probe(part, part, ["a", "b"])
    with pytest.raises(ValueError, match="no attribute is true of 40"):
        probe(part, labels(60, 1, start=100), ["a", "b"], min_positives=40)
