"""Recall against a loop; projections of linear views of one scene find each other; clean pairs are worth more than a third of wrong ones."""

import numpy as np
import pytest
import torch

from evals.retraining import Training, recall, retrain, table, train

SMALL = Training(width=8, steps=60, batch_size=64, lr=1e-2)


def views(n, seed):
    """Two noisy linear views of 6 hidden numbers."""
    maps = torch.Generator().manual_seed(99)
    a, b = torch.randn(6, 20, generator=maps), torch.randn(6, 12, generator=maps)
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, 6, generator=generator)
    return tuple(hidden @ m + 0.3 * torch.randn(n, m.shape[1], generator=generator) for m in (a, b))


def test_recall_is_that_of_a_loop_and_ties_do_not_help():
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(30, 4, generator=generator), dim=1) for _ in range(2))
    found, similarity = recall(image, text), (image.double() @ text.double().T).numpy()
    for k in (1, 5, 10):
        hits = [i in np.argsort(-similarity[i])[:k] for i in range(30)]
        assert found[f"image to text R@{k}"] == pytest.approx(np.mean(hits))
    assert recall(image, image)["text to image R@1"] == 1
    same = torch.ones(30, 4) / 2
    assert set(recall(same, same).values()) == {0.0}


def test_projections_find_each_other_and_one_seed_gives_one_result():
    x, y = views(400, 0)
    projections, again = train(x, y, SMALL, 0), train(x, y, SMALL, 0)
    clean = views(100, 1)
    found = recall(projections(0, clean[0]), projections(1, clean[1]))
    assert found["image to text R@10"] > 0.9
    assert torch.equal(projections.sides[0][2], again.sides[0][2])
    with pytest.raises(ValueError, match="2 pairs or more"):
        train(x[:1], y[:1], SMALL, 0)


def test_what_a_good_filter_keeps_beats_random_and_a_bad_one_does_not():
    x, y = views(300, 0)
    matched = np.random.default_rng(0).random(300) > 0.4
    wrong = np.flatnonzero(~matched)
    order = np.arange(300)
    order[wrong] = np.roll(wrong, 1)
    y = y[torch.from_numpy(order)]
    scores = {"good": matched.astype(float), "bad": -matched.astype(float)}
    found = {each.name: each for each in retrain((x, y), views(100, 1), scores, matched, 0.5, (0, 1), SMALL)}
    assert list(found) == ["all", "good", "bad", "random", "matched"]
    assert [found[name].pairs for name in found] == [300, 150, 150, 150, 150]
    assert found["good"].matched == 1 and found["bad"].matched < 0.4
    assert found["good"].over_random.value > 0.05 > found["bad"].over_random.value
    assert found["all"].over_random is None and found["good"].mean_recall.floor == pytest.approx(16 / 300)
    assert abs(found["good"].mean_recall.value - found["matched"].mean_recall.value) < 0.1
    low, high = found["good"].mean_recall.interval
    assert low <= found["good"].mean_recall.value <= high
    assert table(list(found.values()), 100).row_count == 6
    with pytest.raises(ValueError, match="clean ones to search in"):
        retrain((x, y), views(5, 1), scores, matched, 0.5, (0,), SMALL)
