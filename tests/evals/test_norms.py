"""Lengths of codes: equal to those of activations for orthonormal atoms, shorter by a known factor for a pair of twins, and against loops."""

import numpy as np
import pytest
import torch

from evals.norms import lengths, mean_cosine, norms
from vsae.sae import SAE
from vsae.sparsifiers import TopK

D = 6


def sae(atoms, k, bias=None, scale=1.0):
    """Looks along unit atoms; decodes by atoms that are `scale` times as long, codes being shorter by it."""
    n = len(atoms)
    encoder = atoms.T.contiguous() / scale
    return SAE.from_weights(encoder, torch.zeros(n), atoms * scale, torch.zeros(D) if bias is None else bias, TopK(k))


def rows(n=200, seed=0):
    """Positive parts along two of the axes each."""
    rng = np.random.default_rng(seed)
    x = np.zeros((n, D))
    for row in x:
        row[rng.permutation(D)[:2]] = rng.uniform(0.5, 3, 2)
    return torch.from_numpy(x).float()


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_orthonormal_atoms_keep_lengths_in_whatever_unit_their_codes_are(scale):
    bias = torch.full((D,), 0.3)
    z, x = lengths(sae(torch.eye(D), 2, bias, scale), (rows() + bias).split(70), bias)
    found = norms(z, x, resamples=20)
    assert found.gap.value == pytest.approx(0, abs=1e-5) and found.correlation.value == pytest.approx(1)
    assert found.gap.floor > 0.1 and abs(found.correlation.floor) < 0.25
    assert found.rows == 200 and found.on_bias == 0 and found.gap.interval[1] < 1e-5


def test_twins_that_share_an_activation_are_shorter_by_the_square_root_of_two():
    """x = 1/2 D_0 x + 1/2 D_0 x: a code of two halves is 1/sqrt(2) as long."""
    halves = torch.eye(D)[[0, 0]]
    whole = SAE.from_weights(halves.T / 2, torch.zeros(2), halves, torch.zeros(D), TopK(2))
    x = torch.zeros(50, D)
    x[:, 0] = torch.linspace(1, 2, 50)
    found = norms(*lengths(whole, [x], torch.zeros(D)), resamples=0)
    assert found.gap.value == pytest.approx(1 - 1 / np.sqrt(2), rel=1e-6) and found.gap.interval is None


def test_lengths_are_a_loop_and_no_batch_or_order_of_latents_changes_them():
    torch.manual_seed(0)
    atoms = torch.randn(9, D)
    bias = torch.randn(D)
    x = torch.randn(31, D)
    one = SAE.from_weights(atoms.T.contiguous(), torch.zeros(9), atoms, bias, TopK(3))
    z, long = lengths(one, [x], bias)
    dense = one.encode(x).dense(9).detach().double()
    slow = [float(sum((v * a.double().norm()) ** 2 for v, a in zip(row, atoms, strict=True)).sqrt()) for row in dense]
    np.testing.assert_allclose(z, slow, rtol=1e-6)
    np.testing.assert_allclose(long, [float((row - bias).norm()) for row in x], rtol=1e-5)
    np.testing.assert_allclose(lengths(one, x.split(7), bias)[0], z, rtol=1e-5)
    order = torch.randperm(9)
    mixed = SAE.from_weights(atoms[order].T.contiguous(), torch.zeros(9), atoms[order], bias, TopK(3))
    np.testing.assert_allclose(lengths(mixed, [x], bias)[0], z, rtol=1e-5)


def test_rows_on_the_bias_and_silent_codes():
    found = norms(np.array([0.0, 0.0, 0.0]), np.array([0.0, 2.0, 3.0]), resamples=0)
    assert found.on_bias == 1 and found.rows == 2 and found.gap.value == 1 and found.correlation.value is None
    with pytest.raises(ValueError, match="1 rows have a length"):
        norms(np.ones(2), np.array([0.0, 1.0]))


def test_mean_cosine_is_a_loop_without_dead_atoms():
    torch.manual_seed(1)
    atoms = torch.cat([torch.randn(7, D, dtype=torch.float64), torch.zeros(2, D, dtype=torch.float64)])
    live = torch.nn.functional.normalize(atoms[:7], dim=1)
    slow = [abs(float(live[i] @ live[j])) for i in range(7) for j in range(7) if i != j]
    assert mean_cosine(3 * atoms) == pytest.approx(np.mean(slow))
    assert mean_cosine(torch.eye(D)) == pytest.approx(0, abs=1e-12) and np.isnan(mean_cosine(atoms[6:]))
