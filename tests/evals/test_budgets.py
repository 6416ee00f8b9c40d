"""Budgets of a filter."""

import numpy as np
import pytest

from evals.filtering import budgeted, length_strata, rank_within


def test_each_budget_on_a_list_one_can_check_by_hand():
    scores = np.array([0.1, 0.9, np.nan, 0.5, 0.9, 0.2])
    assert np.flatnonzero(budgeted(scores, share=0.5)).tolist() == [1, 3, 4]
    assert np.flatnonzero(budgeted(scores, count=2)).tolist() == [1, 4]
    assert np.flatnonzero(budgeted(scores, threshold=0.5)).tolist() == [1, 3, 4]
    assert np.flatnonzero(budgeted(scores, share=1.0)).tolist() == [0, 1, 3, 4, 5]  # NaN is never kept
    assert np.flatnonzero(budgeted(scores, count=10**9)).tolist() == [0, 1, 3, 4, 5]
    assert not budgeted(scores, count=0).any()


def test_of_equal_scores_the_first_are_kept_as_many_as_asked_for():
    assert np.flatnonzero(budgeted(np.ones(7), count=3)).tolist() == [0, 1, 2]


def test_strata_each_keep_their_own_best():
    rng = np.random.default_rng(0)
    source = np.repeat([0, 1], [300, 100])
    scores = rng.normal(size=400) + 100 * source
    assert budgeted(scores, share=0.25)[source == 0].sum() == 0
    kept = budgeted(scores, share=0.25, strata=source)
    assert [kept[source == s].sum() for s in (0, 1)] == [75, 25]
    for s in (0, 1):
        mine = scores[source == s]
        assert mine[kept[source == s]].min() > mine[~kept[source == s]].max()


def test_length_strata_take_the_length_out():
    rng = np.random.default_rng(1)
    length = rng.integers(1, 50, 2000).astype(float)
    scores = length + rng.normal(size=2000)
    plain, within = (budgeted(scores, share=0.3, strata=s) for s in (None, length_strata(length)))
    assert length[plain].mean() - length[~plain].mean() > 20
    assert abs(length[within].mean() - length[~within].mean()) < 5


def test_permuting_samples_permutes_what_is_kept():
    rng = np.random.default_rng(2)
    scores, strata, order = rng.normal(size=200), rng.integers(0, 4, 200), rng.permutation(200)
    assert (
        budgeted(scores, share=0.4, strata=strata)[order] == budgeted(scores[order], share=0.4, strata=strata[order])
    ).all()
    assert np.allclose(rank_within(scores, strata)[order], rank_within(scores[order], strata[order]))


def test_contradictions_are_one_sentence():
    scores = np.ones(3)
    for wrong in ({}, {"share": 0.5, "count": 1}):
        with pytest.raises(ValueError, match="give one of a share, a count and a threshold"):
            budgeted(scores, **wrong)
    with pytest.raises(ValueError, match="a threshold is on the score itself"):
        budgeted(scores, threshold=0.1, strata=np.zeros(3, int))
    with pytest.raises(ValueError, match="between 0 and 1"):
        budgeted(scores, share=1.5)
    with pytest.raises(ValueError, match="0 or more"):
        budgeted(scores, count=-1)
