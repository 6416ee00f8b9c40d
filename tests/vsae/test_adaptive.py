"""top-AFA against its definition, row by row and in float64."""

import pytest
import torch
import torch.nn.functional as F

import vsae
from vsae.dictionaries import Free
from vsae.objectives import Objective, Weighted
from vsae.preactivations import Affine, Dense
from vsae.recipes.adaptive import TopAFA as TopAFARecipe
from vsae.recipes.adaptive import Unfolded, afa
from vsae.run import Run
from vsae.sae import SAE
from vsae.sparsifiers.norms import TopAFA

D, N = 12, 200
pytestmark = pytest.mark.usefixtures("one_thread")


def tensors(rows=40):
    draw = torch.Generator().manual_seed(0)
    shapes = ((rows, D), (N, D), (N,))
    x, weight, bias = (torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes)
    return x, weight, 0.1 * bias


def same_gradients(code, want, leaves):
    weights = torch.randn(want.shape, dtype=torch.float64)
    got, slow = (
        torch.autograd.grad((dense * weights).sum(), leaves, retain_graph=True) for dense in (code.dense(N), want)
    )
    for g, w in zip(got, slow, strict=True):
        torch.testing.assert_close(g, w)


def slow_afa(x, u):
    """Row by row, as the rule says."""
    want = torch.zeros_like(u)
    for row in range(len(u)):
        values, order = u[row].relu().sort(descending=True)
        k = int((values.square().cumsum(0).sqrt() - x[row].norm()).abs().argmin()) + 1
        want[row, order[:k]] = values[:k]
    return want


@pytest.mark.parametrize("scale", [0.01, 0.1, 1.0, 30.0])
def test_top_afa_keeps_what_makes_the_code_as_long_as_the_row(scale):
    """Small scales need every positive entry, more than are looked at first; large ones need one."""
    x, weight, bias = tensors()
    weight = scale * weight
    want = slow_afa(x.detach(), (x @ weight.T + bias).detach())
    code = TopAFA()(Affine(x, weight, bias))
    torch.testing.assert_close(code.dense(N), want.detach(), check_dtype=False)
    u = x @ weight.T + bias
    same_gradients(code, u * (want > 0), [x])
    l0 = (want != 0).sum(1)
    assert bool((l0 == 1).all()) if scale == 30 else l0.float().mean() > (64 if scale == 0.01 else 0)


def test_a_row_in_an_orthonormal_dictionary_gets_as_many_latents_as_it_is_made_of():
    x = torch.zeros(2, 6)
    x[0, 2], x[1, :3] = 4.0, torch.tensor([3.0, 2.0, 1.0])
    code = TopAFA()(Affine(x, torch.eye(6), torch.zeros(6)))
    assert torch.equal(code.dense(6), x)


def test_a_row_does_not_hear_of_the_others():
    x, weight, bias = tensors()
    alone = TopAFA()(Affine(x[:1], weight, bias)).dense(N)
    among = TopAFA()(Affine(torch.cat([x[:1], 50 * x[1:]]), weight, bias)).dense(N)[:1]
    torch.testing.assert_close(alone, among)


def test_what_does_not_know_its_input_is_refused():
    with pytest.raises(TypeError, match="top-AFA compares codes with the input, which Dense does not know"):
        TopAFA()(Dense(torch.randn(3, 4)))


def test_the_afa_loss_is_its_definition_with_finite_gradients():
    x, weight, _ = tensors()
    sae = SAE(
        Unfolded(weight.detach(), torch.full((N,), -3.0).double()),
        TopAFA(),
        Free(weight.detach()),
        torch.ones(D).double(),
    ).double()
    loss = Objective({"afa": Weighted(afa, 1.0)})(sae, x.detach())
    dense = loss.output.code.dense(N)
    gaps = dense.norm(dim=1) - (x - 1).norm(dim=1)
    torch.testing.assert_close(loss.terms["afa"], (gaps.square().sum() / (x - x.mean(0)).square().sum()).detach())
    with torch.no_grad():
        sae.encoder.bias.fill_(-1e3)
    silent = Objective({"afa": Weighted(afa, 1.0)})(sae, x.detach())
    silent.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in sae.parameters())


def test_runs_in_other_units_give_the_codes_that_were_trained(tmp_path):
    recipe = TopAFARecipe(n_latents=64, afa_coefficient=0.1)
    draw = torch.Generator().manual_seed(0)
    atoms = F.normalize(torch.randn(32, 16, generator=draw), dim=1)
    rows = 50 * (torch.rand(4096, 32, generator=draw) < 0.1).float() @ atoms + 7
    config = vsae.TrainConfig(epochs=4, batch_size=256, lr=3e-3, tracker="none", device="cpu", eval_every=0)
    run = vsae.train(vsae.TensorSource(rows), recipe, tmp_path, config, vsae.TensorSource(rows[:512]), progress=False)
    found = run.meta["metrics"]["val"]
    assert found["nmse"] < 0.5 and found["l0"] <= 64
    assert abs(found["l0"] / run.meta["training"]["last_window"]["l0"] - 1) < 0.25
    assert torch.equal(Run.load(tmp_path).sae(rows).x_hat, run.sae(rows).x_hat)
