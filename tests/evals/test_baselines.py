"""PCA against its own eigenvalues, k-means against an obvious search, and the frontier they make."""

import io

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.decomposition import PCA as SklearnPCA

from evals.baselines import fit_kmeans, fit_pca, frontier, table
from evals.figures import draw_density, draw_frontier
from evals.reconstruction import measure
from vsae.activations import Batch

KINDS = ("patch",)


def batches(data, size=None):
    size = size or len(data)
    zeros = torch.zeros(len(data), dtype=torch.uint8)
    whole = Batch(data, zeros, torch.arange(len(data)), zeros.int())
    return [Batch(*(column[at : at + size] for column in whole)) for at in range(0, len(data), size)]


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(500, 10, generator=generator) * torch.arange(1, 11) + 50


@pytest.mark.parametrize("k", [1, 4, 10])
def test_nmse_of_pca_is_the_variance_left(data, k):
    pca = fit_pca(batches(data, 64))
    left = float(1 - pca.variance[:k].sum() / pca.variance.sum())
    measured = measure(pca.first(k), batches(data), KINDS, resamples=0).total
    assert measured.nmse.value == pytest.approx(left, abs=1e-6)
    assert measured.l0.value == k


def test_pca_is_scikit_learns(data):
    ours, theirs = fit_pca(batches(data, 7)), SklearnPCA().fit(data.numpy().astype(np.float64))
    np.testing.assert_allclose(ours.variance, theirs.explained_variance_ * 499 / 500, rtol=1e-6)
    np.testing.assert_allclose(np.abs((ours.atoms.numpy() * theirs.components_).sum(1)), 1, atol=1e-4)
    np.testing.assert_allclose(ours.mean, data.double().mean(0), rtol=1e-6)


def test_pca_survives_a_mean_far_larger_than_the_spread(data):
    moved = data.double() + 1e6
    np.testing.assert_allclose(fit_pca(batches(moved)).variance, fit_pca(batches(data)).variance, rtol=1e-5)


def test_pca_of_rank_0_and_of_too_few_rows(data):
    pca = fit_pca(batches(data))
    for k in (0, 11):
        with pytest.raises(ValueError, match=f"rank {k} was asked for, but there are 10 components"):
            pca.first(k)
    with pytest.raises(ValueError, match="at least 2 rows to fit, but got none"):
        fit_pca([])


def test_separate_clusters_are_found_and_cost_only_their_spread():
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(6) * 100
    data = centres.repeat_interleave(50, 0) + torch.randn(300, 6, generator=generator)
    kmeans = fit_kmeans(data, 6)
    found = kmeans.atoms + kmeans.mean
    assert torch.cdist(centres, found).min(1).values.max() < 1
    measured = measure(kmeans, batches(data), KINDS, resamples=0).total
    assert measured.nmse.value == pytest.approx(1 / (1 + 100**2 / 6 - 100**2 / 36), rel=0.1)
    assert (measured.l0.value, measured.dead.value) == (1, 0)


def test_code_is_the_nearest_centroid_and_the_first_of_equals():
    kmeans = fit_kmeans(torch.randn(200, 4), 20)
    x = torch.randn(50, 4)
    distances = ((x[:, None] - kmeans.mean - kmeans.atoms[None]) ** 2).sum(2)
    assert torch.equal(kmeans.encode(x).indices[:, 0], distances.argmin(1))
    twins = type(kmeans)(torch.zeros(2), torch.tensor([[1.0, 0], [1, 0]]))
    assert twins.encode(torch.tensor([[1.0, 0]])).indices.tolist() == [[0]]


def test_each_level_of_residual_kmeans_codes_what_the_last_one_left(data):
    kmeans = fit_kmeans(data, 24, levels=3)
    code = kmeans.encode(data)
    assert kmeans.n_latents == 24 and (code.indices // 8 == torch.arange(3)).all()
    left = data - kmeans.mean
    for level in range(3):
        atoms = kmeans.atoms[level * 8 : level * 8 + 8]
        nearest = ((left[:, None] - atoms) ** 2).sum(2).argmin(1)
        assert torch.equal(code.indices[:, level], nearest + 8 * level)
        left = left - atoms[nearest]
    torch.testing.assert_close(kmeans.decode(code), data - left)


def test_fewer_rows_than_centroids_is_a_sentence():
    with pytest.raises(ValueError, match="30 centroids a level and 20 rows"):
        fit_kmeans(torch.randn(20, 4), 30)
    with pytest.raises(ValueError, match="0 centroids a level"):
        fit_kmeans(torch.randn(20, 4), 2, levels=3)


def test_same_seed_same_centroids(data):
    assert torch.equal(fit_kmeans(data, 20, seed=3).atoms, fit_kmeans(data, 20, seed=3).atoms)


def test_frontier_table_and_figures(data, tmp_path):
    pca = fit_pca(batches(data))
    codecs = {"PCA 2": pca.first(2), "PCA 5": pca.first(5), "k-means": fit_kmeans(data, 20)}
    points = frontier(codecs, lambda: batches(data, 100), KINDS)
    assert [(p.name, p.n_latents, p.l0) for p in points] == [("PCA 2", 2, 2), ("PCA 5", 5, 5), ("k-means", 20, 1)]
    assert points[1].nmse.value < points[0].nmse.value < 1
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table(points))
    text = console.export_text()
    assert f"{points[0].nmse.value:.3f}" in text and text.index("k-means") < text.index("PCA 5")
    for path in (
        draw_frontier(points, tmp_path / "figures/frontier.png", "PCA"),
        draw_density(measure(pca, batches(data), KINDS), tmp_path / "figures/density.png"),
    ):
        assert path.read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "figures").iterdir())) == 2
