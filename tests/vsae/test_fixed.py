"""Dictionaries found without gradients: scikit-learn's own transforms, known answers, and the run directory."""

import pytest
import torch
from sklearn.decomposition import PCA, FastICA, MiniBatchSparsePCA

from vsae.fixed import OneHot, ica, kmeans, pca, sparse_pca
from vsae.run import Run, save_run

pytestmark = pytest.mark.usefixtures("one_thread")
D, N = 8, 5
FITS = {"pca": pca, "ica": ica, "sparse_pca": sparse_pca}


def rows(n=400):
    """Independent heavy-tailed sources in known directions, away from the origin."""
    sources = torch.distributions.Laplace(0.0, 1.0).sample((n, D)) * torch.linspace(3, 1, D)
    return sources @ torch.linalg.qr(torch.randn(D, D)).Q + 4


@pytest.mark.parametrize("name", FITS)
def test_with_all_codes_kept_it_is_scikit_learns_transform(name):
    x = rows()
    theirs = {
        "pca": PCA(N, random_state=0),
        "ica": FastICA(N, whiten="unit-variance", random_state=0, max_iter=1000),
        "sparse_pca": MiniBatchSparsePCA(N, alpha=1.0, random_state=0),
    }[name].fit(x.double().numpy())
    sae, fresh = FITS[name](x, N), rows(50)
    codes = theirs.transform(fresh.double().numpy())
    torch.testing.assert_close(sae.encode(fresh).dense(N), torch.from_numpy(codes).float(), rtol=1e-3, atol=1e-3)
    back = torch.from_numpy(theirs.inverse_transform(codes)).float()
    torch.testing.assert_close(sae(fresh).x_hat, back, rtol=1e-3, atol=1e-3)


def test_pca_keeps_the_energy_of_the_codes_it_keeps():
    x = rows()
    sae = pca(x, D, k=3)
    left = (x - sae(x).x_hat).square().sum(1)
    u = (x - sae.b_dec) @ sae.atoms.T
    dropped = u.square().sort(1).values[:, : D - 3].sum(1)
    torch.testing.assert_close(left, dropped, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(sae.atoms @ sae.atoms.T, torch.eye(D), atol=1e-5, rtol=0)


def test_ica_finds_sources_that_pca_cannot_tell_apart():
    sources = torch.distributions.Laplace(0.0, 1.0).sample((4000, 4))
    true = torch.linalg.qr(torch.randn(4, 4)).Q
    cosines = [
        (torch.nn.functional.normalize(fit(sources @ true, 4).atoms, dim=1) @ true.T).abs().amax(0).mean()
        for fit in (ica, pca)
    ]
    print(f"matched cosine: ICA {cosines[0]:.3f}, PCA {cosines[1]:.3f}")
    assert cosines[0] > 0.98 > cosines[1]


def test_a_larger_alpha_gives_sparser_atoms():
    x = rows()
    zeros = [int((sparse_pca(x, N, alpha=alpha).atoms == 0).sum()) for alpha in (0.1, 5.0)]
    assert zeros[1] > zeros[0]


@pytest.mark.parametrize("name", FITS)
def test_it_is_saved_and_loaded_and_rows_do_not_depend_on_each_other(name, tmp_path):
    x = rows()
    sae = FITS[name](x, N, k=2)
    save_run(tmp_path, sae, x, {"fingerprint": {}})
    loaded = Run.load(tmp_path).sae
    assert torch.equal(loaded(x).x_hat, sae(x).x_hat) and loaded.capabilities.signed
    assert (loaded.encode(x).values != 0).sum(1).max() == 2
    order = torch.randperm(len(x))
    torch.testing.assert_close(sae(x[order]).x_hat, sae(x).x_hat[order])
    torch.testing.assert_close(torch.cat([sae(part).x_hat for part in x.split(33)]), sae(x).x_hat)


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="n_latents is 9, but 400 rows of 8 dimensions have at most 8 components"):
        pca(rows(), 9)
    with pytest.raises(ValueError, match="k is 6, but there are 5 latents"):
        ica(rows(), N, k=6)


def test_kmeans_codes_are_the_nearest_centroids(tmp_path):
    x = rows()
    sae = kmeans(x, 12)
    centroids = sae.b_dec + sae.atoms
    nearest = (x[:, None] - centroids).norm(dim=2).argmin(1)
    code = sae.encode(x)
    assert torch.equal(code.indices[:, 0], nearest) and (code.values == 1).all() and isinstance(sae.sparsifier, OneHot)
    torch.testing.assert_close(sae(x).x_hat, centroids[nearest])
    save_run(tmp_path, sae, x, {"fingerprint": {}})
    loaded = Run.load(tmp_path).sae
    assert torch.equal(loaded(x).x_hat, sae(x).x_hat)
    assert not loaded.capabilities.signed and not (tmp_path / "cfg.json").exists()
    torch.testing.assert_close(sae.fuse(torch.ones(D), torch.tensor(2.0)).encode(2 * x + 1).indices, code.indices)
    errors = [float((x - kmeans(x, n)(x).x_hat).square().sum()) for n in (1, 12, 100)]
    assert errors[0] > errors[1] > errors[2] and errors[0] == pytest.approx(
        float((x - x.mean(0)).square().sum()), rel=1e-2
    )
