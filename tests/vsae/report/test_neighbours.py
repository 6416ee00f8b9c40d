"""Neighbours by direction and by firing, and the hints, against what can be counted by hand."""

import numpy as np
import pytest
import torch
from scipy import sparse

from vsae.report import neighbours
from vsae.report.hints import hints
from vsae.report.neighbours import by_direction, by_firing
from vsae.report.picks import Picks


def test_nearest_atoms_by_hand():
    atoms = torch.tensor([[2.0, 0], [1, 1], [0, 3], [-1, 0], [0, 0]])
    found = by_direction(atoms, 2)
    assert found.latent[0].tolist()[0] == 1 and found.score[0, 0] == pytest.approx(2**-0.5)
    assert sorted(found.latent[1].tolist()) == [0, 2]
    assert found.score[4].tolist() == [0, 0]  # a zero atom points nowhere
    assert by_direction(torch.ones(1, 3), 5).latent.shape == (1, 0)


def test_chance_of_the_nearest_direction_is_what_random_atoms_show():
    found = by_direction(torch.randn(2000, 256), 1)
    assert found.score.mean() == pytest.approx(found.chance[0, 0], abs=0.01)


def test_cofiring_by_hand():
    active = np.zeros((10, 4))
    active[:6, 0] = active[2:8, 1] = 1  # together 4, either 8
    active[:2, 2] = 1  # only 2 together with latent 0: too few to say
    found = by_firing(sparse.csr_matrix(active), 3)
    assert found.latent[0].tolist() == [1, -1, -1] and found.latent[3].tolist() == [-1, -1, -1]
    assert found.score[0, 0] == pytest.approx(0.5)
    assert found.chance[0, 0] == pytest.approx(3.6 / (12 - 3.6))


@pytest.mark.parametrize("block", [3, 512])
def test_cofiring_equals_an_obvious_loop(monkeypatch, block):
    monkeypatch.setattr(neighbours, "BLOCK", block)
    active = np.random.default_rng(0).random((200, 10)) < 0.3
    found = by_firing(sparse.csr_matrix(active.astype(np.float32)), 4)
    for i in range(10):
        jaccard = [
            (active[:, i] & active[:, j]).sum() / (active[:, i] | active[:, j]).sum() * (i != j) for j in range(10)
        ]
        expected = sorted(range(10), key=lambda j: (-jaccard[j], j))[:4]
        assert found.latent[i].tolist() == expected
        np.testing.assert_allclose(found.score[i], [jaccard[j] for j in expected])
    assert (
        np.abs(found.score / found.chance - 1).mean() < 0.3
    )  # independent latents fire together as often as chance says


def test_hints_by_label_and_by_word():
    picked = Picks(np.array([0, 3, 3, 6]), np.array([0, 1, 2, 3, 4, 5]), np.ones(6))
    labels = ["cat", "cat", "dog", "dog", "ape", None]
    assert hints(picked, labels, [None] * 6) == ["cat 2/3", "", "ape 1/3"]
    captions = ["A red dog runs", "the red DOG!", "red dog <b>"] + ["a man runs in the city"] * 20
    assert hints(picked, [None] * 23, captions)[:2] == ["dog red", ""]
    assert hints(picked, [None] * 6, [None] * 6) == ["", "", ""]
