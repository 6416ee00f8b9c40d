"""Latents that choose their rows: against the dense rule, and what budgets and thresholds must add up to."""

import pytest
import torch

import vsae
from evals.planted import Planted
from vsae.dictionaries import Free
from vsae.encoders import Linear
from vsae.objectives import Seen, ZipfAux, auxk, spread
from vsae.preactivations import Affine, Dense
from vsae.recipes.columns import FeatureChoice as FeatureChoice_
from vsae.sae import SAE
from vsae.sparsifiers import BatchTopK, FeatureChoice, Threshold, TopK
from vsae.sparsifiers.columns import law_of
from vsae.training.checkpoint import newest

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


@pytest.mark.parametrize(("exponent", "offset"), [(0.0, 1.0), (1.0, 1.0), (0.7, 8.0), (2.0, 30.0)])
def test_the_law_of_counts_is_the_one_they_were_made_by(exponent, offset):
    order = torch.randperm(200)
    counts = torch.zeros(200)
    counts[order] = 1e4 * (torch.arange(200) + offset) ** -exponent
    torch.testing.assert_close(law_of(counts).float(), counts / counts.sum(), rtol=0.02, atol=1e-6)
    counts[order[150:]] = 0  # silent ones get what their rank would have
    law = law_of(counts)
    assert float(law.sum()) == pytest.approx(1) and float(law.min()) > 0
    rest = law[order[150:]].sort(descending=True).values
    want = (torch.arange(150, 200) + offset) ** -exponent
    torch.testing.assert_close((rest / rest.sum()).float(), want / want.sum(), rtol=0.05, atol=1e-6)


def test_few_counts_have_no_law():
    assert law_of(torch.tensor([3.0, 0, 0, 0])).tolist() == [0.25] * 4
    assert law_of(torch.zeros(5)).tolist() == [0.2] * 5
    rising = law_of(torch.full((6,), 7.0))  # all alike: no slope
    torch.testing.assert_close(rising, torch.full((6,), 1 / 6).double())


def test_choice_is_mutual_until_the_budgets_are_known_and_then_by_them():
    x, weight = torch.randn(512, D), torch.randn(N, D)
    sparsifier, mutual = FeatureChoice(N, 4, mutual=True), BatchTopK(4)
    pre = Affine(x, weight, torch.zeros(N))
    first = sparsifier(pre)
    assert torch.equal(first.dense(N), mutual(pre).dense(N))
    law = law_of(first.counts(N))
    sparsifier.take(law)
    second = sparsifier(pre)
    assert int(sparsifier.updates.max()) == 1  # thresholds are followed anew
    want = (law * 512 * 4).clamp(max=512)
    there = (pre.x @ weight.T > 0).sum(0)
    budgets = sparsifier.budgets(512)
    assert (budgets - want).abs().max() < 2 and torch.equal(second.counts(N), torch.minimum(budgets, there))
    again = FeatureChoice(N, 4, mutual=True)
    again(pre)  # looks at its law, and must forget what it saw
    again.load_state_dict(sparsifier.state_dict())
    assert torch.equal(again.budgets(512), budgets)


def test_a_training_changes_from_mutual_to_feature_choice(tmp_path):
    """On features of which some are frequent: the budgets that training ends with fall as their frequencies do."""
    world = Planted(d_model=16, n_features=24, active=2, exponent=1)
    recipe = FeatureChoice_(n_latents=24, k=2, mutual_steps=40)
    config = vsae.TrainConfig(tokens=80 * 256, batch_size=256, lr=1e-2, tracker="none", checkpoint_every=60)
    run = vsae.train(world.source(4096, 0), recipe, tmp_path / "run", config, progress=False)
    kept = newest(tmp_path / "run" / "checkpoint").tensors
    (law,) = (tensor for name, tensor in kept.items() if name.endswith("sparsifier.law"))
    assert float(law.sum()) == pytest.approx(1) and float(law.max()) > 3 * float(law.min()) > 0
    assert isinstance(run.sae.sparsifier, Threshold)
    alike = FeatureChoice_(n_latents=24, k=2)
    assert alike.controllers() == [] and len(recipe.controllers()) == 1
    with pytest.raises(ValueError, match="mutual_steps is -1"):
        FeatureChoice_(mutual_steps=-1)


def test_zipf_aux_is_auxk_of_the_under_used():
    sae = SAE(Linear(torch.randn(N, D), torch.randn(N)), TopK(3), Free(torch.randn(N, D)), torch.randn(D)).double()
    x = torch.randn(200, D).double()
    output = sae(x)
    counts = output.code.counts(N).double()
    ranks = counts.argsort(descending=True, stable=True).argsort()
    expected = counts.sum() / (1 + ranks) / (1 / torch.arange(1, N + 1)).sum()
    under = (counts < 0.5 * expected).nonzero().squeeze(1)
    assert 0 < len(under) < N
    got, want = (
        term(Seen(sae, x, x, output, (x - output.x_hat).square().sum(), spread(x), dead))
        for term, dead in ((ZipfAux(1.0), None), (auxk, under))
    )
    torch.testing.assert_close(got, want)
    assert got > 0
