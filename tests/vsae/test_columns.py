"""Latents that choose their rows: against the dense rule, and what budgets and thresholds must add up to."""

import pytest
import torch

from vsae.dictionaries import Free
from vsae.encoders import Linear
from vsae.objectives import Seen, ZipfAux, auxk, spread
from vsae.preactivations import Affine, Dense
from vsae.sae import SAE
from vsae.sparsifiers import FeatureChoice, Threshold, TopK

B, D, N = 24, 8, 40
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("exponent", [0.0, 1.0])
@pytest.mark.parametrize("k", [1, 5, N])
def test_a_column_keeps_its_largest_with_the_gradients_of_the_dense_form(k, exponent):
    leaves = [each.double().requires_grad_() for each in (torch.randn(B, D), torch.randn(N, D), torch.randn(N))]
    sparsifier = FeatureChoice(N, k, exponent)
    budgets, u = sparsifier.budgets(B).tolist(), leaves[0] @ leaves[1].T + leaves[2]
    mask = torch.zeros(B, N)
    for latent, budget in enumerate(budgets):
        mask[u[:, latent].topk(budget).indices, latent] = 1
    fast, slow = sparsifier(Affine(*leaves)).dense(N), u.relu() * mask
    torch.testing.assert_close(fast, slow)
    push = torch.randn_like(slow)
    for got, want in zip(torch.autograd.grad(fast, leaves, push), torch.autograd.grad(slow, leaves, push), strict=True):
        torch.testing.assert_close(got, want)
    smallest = torch.where(slow > 0, slow, torch.inf).amin(0)
    want = torch.where(smallest.isfinite(), smallest, 0).float()
    torch.testing.assert_close(sparsifier.threshold, want)


def test_a_column_one_can_check_by_hand():
    u = torch.tensor([[3.0, 1.0], [2.0, 5.0], [4.0, -1.0], [1.0, -2.0]])
    affine = Affine(u, torch.eye(2), torch.zeros(2))
    sparsifier = FeatureChoice(2, 1)  # four slots, two each
    assert sparsifier(affine).dense(2).tolist() == [[3, 1], [0, 5], [4, 0], [0, 0]]
    assert sparsifier.threshold.tolist() == [3, 1]


def test_budgets_fill_the_batch():
    assert FeatureChoice(N, 5).budgets(B).tolist() == [3] * N
    falling = FeatureChoice(N, 5, exponent=0.5).budgets(B)
    assert int(falling.sum()) == B * 5 and int(falling.min()) >= 1 and falling[0] > falling[-1]
    assert int(FeatureChoice(N, 1).budgets(B).sum()) == B
    assert int(FeatureChoice(N, 20, exponent=2.0).budgets(B).max()) == B


def test_permuted_rows_give_permuted_codes_and_inference_looks_at_one_row():
    x, weight, order = torch.randn(B, D), torch.randn(N, D), torch.randperm(B)
    sparsifier = FeatureChoice(N, 4)
    code = sparsifier(Affine(x, weight, torch.zeros(N))).dense(N)
    permuted = sparsifier(Affine(x[order], weight, torch.zeros(N))).dense(N)
    torch.testing.assert_close(permuted, code[order])
    assert sparsifier.batch_dependent and not sparsifier.eval().batch_dependent
    fixed = sparsifier.inference()
    assert isinstance(fixed, Threshold)
    affine = Affine(x, weight, torch.zeros(N))
    assert torch.equal(fixed(affine).dense(N), sparsifier(affine).dense(N))
    with pytest.raises(TypeError, match="Feature Choice needs a linear encoder"):
        FeatureChoice(N, 4)(Dense(torch.randn(B, N)))


def test_inference_is_about_as_sparse_as_training():
    weight, sparsifier = torch.randn(N, D), FeatureChoice(N, 4)
    for _ in range(60):
        sparsifier(Affine(torch.randn(512, D), weight, torch.zeros(N)))
    code = sparsifier.eval()(Affine(torch.randn(4096, D), weight, torch.zeros(N)))
    assert int((code.values != 0).sum()) / 4096 == pytest.approx(4, rel=0.05)


def test_zipf_aux_is_auxk_of_the_under_used():
    sae = SAE(Linear(torch.randn(N, D), torch.randn(N)), TopK(3), Free(torch.randn(N, D)), torch.randn(D)).double()
    x = torch.randn(200, D).double()
    output = sae(x)
    counts = output.code.counts(N).double()
    ranks = counts.argsort(descending=True, stable=True).argsort()
    expected = counts.sum() / (1 + ranks) / (1 / torch.arange(1, N + 1)).sum()
    under = (counts < 0.5 * expected).nonzero().squeeze(1)
    assert 0 < len(under) < N
    got, want = (term(Seen(sae, x, x, output, spread(x), dead)) for term, dead in ((ZipfAux(1.0), None), (auxk, under)))
    torch.testing.assert_close(got, want)
    assert got > 0
