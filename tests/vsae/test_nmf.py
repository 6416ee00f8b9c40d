"""Semi-NMF, SNMF and convex NMF: slow references, planted factors, and codes by non-negative least squares."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from evals.matching import match
from vsae.nmf import NonNegative, coded, convex_nmf, non_negative, semi_nmf, start
from vsae.run import Run, save_run

pytestmark = pytest.mark.usefixtures("one_thread")
FITS = {"semi_nmf": semi_nmf, "convex_nmf": convex_nmf}


def planted(n=600, d=12, true=6, active=0.3, shift=0.0):
    """Non-negative mixtures of signed directions, pure rows among them."""
    atoms = torch.nn.functional.normalize(torch.randn(true, d) + shift, dim=1)
    z = torch.rand(n, true) * (torch.rand(n, true) < active)
    z = torch.cat([z, torch.eye(true).repeat(20, 1)])
    return z @ atoms, atoms


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codes_are_scipys_non_negative_least_squares(dtype):
    x, atoms = torch.randn(40, 10, dtype=dtype), torch.randn(24, 10, dtype=dtype)
    atoms[3] *= 100.0  # lengths must not matter
    atoms[5] = 0
    ours = non_negative(x, atoms, 2000)
    slow = np.stack([nnls(atoms.double().numpy().T, row, maxiter=1000)[0] for row in x.double().numpy()])
    assert (ours >= 0).all() and (ours[:, 5] == 0).all()
    residuals = [(x.double() - torch.as_tensor(u).double() @ atoms.double()).norm(dim=1) for u in (ours, slow)]
    torch.testing.assert_close(*residuals, rtol=1e-4, atol=1e-4)


def test_the_default_number_of_steps_is_enough_for_a_wide_dictionary():
    x, atoms = torch.randn(30, 32), torch.randn(128, 32)
    best = non_negative(x, atoms, 5000) @ atoms - x
    found = NonNegative()(x, coded(atoms, None).dictionary).u @ atoms - x
    assert float(found.square().sum()) <= 1.001 * float(best.square().sum()) + 1e-4 * float(x.square().sum())


def error(x, sae):
    return float((x - sae(x).x_hat).square().sum() / (x - x.mean(0)).square().sum())


@pytest.mark.parametrize(("name", "limit"), [("semi_nmf", 0.8), ("convex_nmf", 0.97)])
def test_planted_factors_are_found_from_mixtures_with_pure_rows(name, limit):
    """Atoms outside the rows' cone explain them as well: only convex NMF has to find its edges."""
    x, atoms = planted(300)
    sae = FITS[name](x, 6, seed=1)
    found = match(atoms, sae.atoms, False).matched
    print(f"{name}: matched cosine {found:.3f}, NMSE {error(x, sae):.4f}")
    assert found > limit and error(x, sae) < 0.02
    assert (sae.encode(x).values >= 0).all() and sae.capabilities == (True, False, False, 1)


@pytest.mark.parametrize("name", FITS)
def test_no_update_makes_it_worse_and_the_updates_are_ding_et_als(name):
    """Their formulas with loops over all entries, for two updates."""
    x = planted(30, 5, 3)[0]
    errors = [error(x, FITS[name](x, 3, iterations=n)) for n in (1, 3, 10, 40)]
    assert all(b <= a + 1e-6 for a, b in itertools.pairwise(errors))
    X, G = x.double().T.numpy(), start(x, 3, 0).numpy()  # their X is [d, n], their G is Z
    plus, minus = (lambda A: np.maximum(A, 0)), (lambda A: np.maximum(-A, 1e-12))
    W = G / G.sum(0)
    for _ in range(2):
        if name == "semi_nmf":
            F = X @ G @ np.linalg.inv(G.T @ G + 1e-6 * np.diag(G.T @ G).mean() * np.eye(3))
            A, B = X.T @ F, F.T @ F
            G = G * np.sqrt((plus(A) + G @ minus(B)) / (minus(A) + G @ plus(B)))
        else:
            Y = X.T @ X
            W = W * np.sqrt((plus(Y) @ G + minus(Y) @ W @ G.T @ G) / (minus(Y) @ G + plus(Y) @ W @ G.T @ G))
            G = G * np.sqrt((plus(Y) @ W + G @ W.T @ minus(Y) @ W) / (minus(Y) @ W + G @ W.T @ plus(Y) @ W))
            F = X @ W
    torch.testing.assert_close(
        FITS[name](x, 3, iterations=2).atoms, torch.from_numpy(F.T).float(), rtol=1e-4, atol=1e-5
    )


def test_convex_atoms_are_in_the_cone_of_the_rows_and_semi_ones_need_not_be():
    x = planted(200, 8, 4, shift=1.0)[0]
    for atoms, inside in ((convex_nmf(x, 3).atoms, True), (-x[:3], False)):
        residual = [nnls(x.double().numpy().T, atom)[1] / np.linalg.norm(atom) for atom in atoms.double().numpy()]
        assert bool(max(residual) < 1e-5) is inside


def test_sparse_atoms_keep_their_share_and_find_sparse_truth():
    atoms = torch.zeros(5, 50)
    for i in range(5):
        atoms[i, 10 * i : 10 * i + 5] = torch.randn(5)
    x = (torch.rand(500, 5) * (torch.rand(500, 5) < 0.4)) @ atoms + 0.01 * torch.randn(500, 50)
    sae = semi_nmf(x, 5, share=0.1)
    assert ((sae.atoms != 0).sum(1) <= 5).all() and match(atoms, sae.atoms, False).matched > 0.99
    assert (semi_nmf(x, 5).atoms != 0).all()


def test_k_keeps_the_largest_and_rows_are_on_their_own(tmp_path):
    x = planted()[0]
    sae, full = semi_nmf(x, 6, k=2), semi_nmf(x, 6)
    dense = full.encode(x[:50]).dense(6)
    kept = torch.zeros_like(dense).scatter(1, (top := dense.topk(2).indices), dense.gather(1, top))
    torch.testing.assert_close(sae.encode(x[:50]).dense(6), kept)
    changed = x[:50].clone()
    changed[7] = 100.0
    others = torch.arange(50) != 7
    torch.testing.assert_close(sae.encode(changed).dense(6)[others], kept[others])
    save_run(tmp_path, sae, x[:50], {"fingerprint": {}})
    loaded = Run.load(tmp_path).sae
    assert torch.equal(loaded(x[:50]).x_hat, sae(x[:50]).x_hat)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda x: semi_nmf(x, 6, share=0.0), "share is 0.0"),
        (lambda x: semi_nmf(x, 6, k=7), "k is 7"),
        (lambda x: convex_nmf(x[:4], 6), "6 anchors need as many distinct rows"),
    ],
)
def test_mistakes_are_sentences(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(planted()[0])
