"""Non-negative least squares against scipy's; a factorisation that exists is found."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from evals.semi_nmf import fit_semi_nmf, nonnegative


def test_codes_are_the_non_negative_least_squares():
    generator = torch.Generator().manual_seed(0)
    x, atoms = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((20, 8), (5, 8)))
    found = nonnegative(x, atoms, 2000)
    for row, z in zip(x, found, strict=True):
        np.testing.assert_allclose(z, nnls(atoms.T.numpy(), row.numpy())[0], atol=1e-8)


def test_a_planted_factorisation_is_reconstructed():
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(6, 20, generator=generator), dim=1)
    z = torch.rand(500, 6, generator=generator) * (torch.rand(500, 6, generator=generator) < 0.4)
    x = z @ atoms
    codec = fit_semi_nmf(x, 6)
    code = codec.encode(x)
    assert (code.values >= 0).all() and codec.atoms.norm(dim=1).allclose(torch.ones(6), atol=1e-5)
    assert (x - codec.decode(code)).square().sum() / x.square().sum() < 0.02
    with pytest.raises(ValueError, match="needs as many rows"):
        fit_semi_nmf(x[:3], 6)
