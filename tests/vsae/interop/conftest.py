"""Random weights in which nothing is right by being 0, and rows to try them on."""

import sys

import matplotlib
import matplotlib.cm
import pytest
import torch

# overcomplete imports its pictures, too, and they ask for what matplotlib 3.9 removed.
matplotlib.cm.get_cmap = matplotlib.colormaps.get_cmap
collect_ignore = (
    ["test_overcomplete.py"] if sys.version_info >= (3, 13) else []
)  # its release 0.3.0 wants a Python before that

D, N = 12, 48


@pytest.fixture
def x():
    return torch.randn(64, D, generator=torch.Generator().manual_seed(9))


@pytest.fixture
def weights():
    """W_enc [d, n], b_enc [n], W_dec [n, d] of unit rows, b_dec [d]."""
    draw = torch.Generator().manual_seed(4)
    W_enc, W_dec = torch.randn(D, N, generator=draw), torch.randn(N, D, generator=draw)
    b_enc, b_dec = torch.randn(N, generator=draw) / 3, torch.randn(D, generator=draw)
    return W_enc, b_enc, W_dec / W_dec.norm(dim=1, keepdim=True), b_dec


@pytest.fixture
def make(weights):
    """An SAE of ours with those weights and a sparsifier."""
    from vsae.sae import SAE

    return lambda sparsifier: SAE.from_weights(*weights, sparsifier)


@pytest.fixture
def agree(x):
    """Do two SAEs of ours compute the same?"""

    def compare(one, other):
        first, second = one(x), other(x)
        torch.testing.assert_close(first.code.dense(N), second.code.dense(N), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(first.x_hat, second.x_hat, atol=1e-5, rtol=1e-5)

    return compare
