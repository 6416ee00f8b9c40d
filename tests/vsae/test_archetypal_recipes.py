"""Archetypal dictionaries with any sparsifier and any source of anchors."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.optimize import nnls

import vsae
from vsae.activations.memory import TensorSource
from vsae.recipes.archetypal import ATopK, RABatchTopK, RATopK
from vsae.sparsifiers import BatchTopK, Threshold
from vsae.training.config import TrainConfig

pytestmark = pytest.mark.usefixtures("one_thread")
D, N = 8, 24
CONFIG = TrainConfig(epochs=2, batch_size=128, lr=0.01, tracker="none", device="cpu", eval_every=0, normalise="none")


def rows(n=600):
    return 2 + torch.randn(n, D)


def outside(points, hull):
    """Largest distance of a point to the hull, by NNLS with a heavy row that makes the weights sum to 1."""
    A = np.vstack([hull.T, 1e3 * np.ones(len(hull))])
    return max(float(np.linalg.norm(A @ nnls(A, np.append(point, 1e3))[0] - np.append(point, 1e3))) for point in points)


@pytest.mark.parametrize(
    "recipe", [ATopK(N, 3, anchors=40), RABatchTopK(N, 3, anchors=40, delta=0.5)], ids=lambda r: r.name
)
def test_trained_atoms_are_as_near_the_hull_as_they_may_be(recipe, tmp_path):
    x = rows()
    trained = vsae.train(TensorSource(x), recipe, tmp_path, CONFIG, progress=False)
    loaded = vsae.SAE.load(tmp_path)
    assert torch.equal(loaded(x).x_hat, trained.sae(x).x_hat)
    sae = recipe.build(x, x.mean(0), 0)
    optimiser = torch.optim.Adam(sae.parameters(), lr=0.05)
    for batch in x.split(100):
        recipe.objective()(sae, batch).total.backward()
        optimiser.step()
        sae.project_()
        optimiser.zero_grad()
    atoms = (sae.atoms / sae.dictionary.log_scale.exp()).detach().numpy()
    away = outside(atoms, sae.dictionary.C.numpy())
    assert away <= recipe.delta + 1e-4 and (recipe.delta == 0 or away > 0.01)
    assert sae.dictionary.Lambda.norm(dim=1).max() <= recipe.delta + 1e-6 and torch.equal(sae.b_dec, x.mean(0))


def test_the_recipe_brings_the_sparsifier_and_the_threshold():
    x = rows()
    sae = RABatchTopK(N, 3, anchors=40).build(x, x.mean(0), 0)
    assert isinstance(sae.sparsifier, BatchTopK) and sae.sparsifier.updates == 1
    assert isinstance(sae.fuse(torch.zeros(D), torch.ones(())).sparsifier, Threshold)
    assert ATopK(N, 3).delta == 0 and RATopK(N, 3).delta == 1 and RATopK(N, 5) == RATopK(n_latents=N, k=5)


def test_random_anchors_are_distinct_rows_of_the_data_and_another_seed_draws_others():
    x = rows(100).repeat(2, 1)
    recipe = ATopK(N, 3, anchors=30, anchors_from="random")
    points = recipe.build(x, x.mean(0), 0).dictionary.C + x.mean(0)
    nearest = (points[:, None] - x).norm(dim=2).amin(1)
    assert nearest.max() < 1e-5 and len(points.unique(dim=0)) == 30
    others = recipe.build(x, x.mean(0), 1).dictionary.C + x.mean(0)
    assert not torch.equal(points, others)
    centroids = ATopK(N, 3, anchors=30).build(x, x.mean(0), 0).dictionary.C + x.mean(0)
    assert torch.cdist(centroids, x).amin(1).max() > 0.1, "centroids of several rows are none of them"


def test_anchors_from_a_file_are_taken_as_they_are(tmp_path):
    anchors, x = rows(30), rows()
    save_file({"C": anchors}, tmp_path / "C.safetensors")
    sae = ATopK(N, 3, anchors_from=str(tmp_path / "C.safetensors")).build(x, x.mean(0), 0)
    torch.testing.assert_close(sae.dictionary.C + x.mean(0), anchors)
    assert outside((sae.b_dec + sae.atoms).detach().numpy(), anchors.numpy()) < 1e-4


@pytest.mark.parametrize(
    ("name", "tensors", "anchors", "sentence"),
    [
        ("C.safetensors", {"C": torch.randn(5, D + 1)}, None, r"has to hold one tensor \[anchors, 8\]"),
        ("C.safetensors", {"C": torch.randn(5, D), "more": torch.ones(1)}, None, "one tensor"),
        ("C.safetensors", {"C": torch.randn(5, D)}, 6, "holds 5 anchors, and 6 were asked for"),
        ("C.safetensors", {"C": 100 * torch.randn(50, D)}, None, "times as large as what training sees"),
        ("C.pt", {"C": torch.randn(5, D)}, None, "choose kmeans, random, or a .safetensors file"),
    ],
)
def test_a_file_that_cannot_be_the_anchors_is_said(tmp_path, name, tensors, anchors, sentence):
    save_file(tensors, tmp_path / name)
    x = rows()
    with pytest.raises(ValueError, match=sentence):
        ATopK(N, 3, anchors=anchors, anchors_from=str(tmp_path / name)).build(x, x.mean(0), 0)
