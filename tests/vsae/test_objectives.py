"""Losses against their equations, written out densely in float64."""

import pytest
import torch

from vsae.code import Code
from vsae.dictionaries import Free
from vsae.encoders import Linear
from vsae.objectives import Objective, Seen, Weighted, auxk, l1, magnitude, spread
from vsae.sae import SAE
from vsae.sparsifiers import AbsTopK, ReLU, TopK

D, N, K = 6, 40, 3
pytestmark = pytest.mark.usefixtures("one_thread")


def objective(auxk_coefficient=0.0, l1_coefficient=0.0):
    return Objective({"l1": Weighted(l1, l1_coefficient), "auxk": Weighted(auxk, auxk_coefficient)})


def autoencoder(sparsifier=None, unit_norm=True):
    sparsifier = sparsifier or TopK(K)
    encoder = Linear(torch.randn(N, D), torch.randn(N))
    return SAE(encoder, sparsifier, Free(torch.randn(N, D), unit_norm), torch.randn(D)).double()


def test_the_mean_scores_one_and_a_perfect_reconstruction_zero():
    x = torch.randn(50, D).double() + 3
    sae = autoencoder()
    with torch.no_grad():
        sae.encoder.bias.fill_(-1e3)
        sae.b_dec.copy_(x.mean(0))
    assert objective()(sae, x).total.item() == pytest.approx(1, abs=1e-12)
    perfect = SAE(Linear(torch.eye(D), torch.zeros(D)), ReLU(), Free(torch.eye(D)), torch.zeros(D)).double()
    assert objective()(perfect, x.abs()).total.item() == pytest.approx(0, abs=1e-12)


def test_no_term_depends_on_the_units_of_x():
    x, dead = torch.randn(64, D).double(), torch.arange(20, 40)
    sae, total = autoencoder(), objective(auxk_coefficient=0.1, l1_coefficient=0.1)
    before = total(sae, x, dead)
    with torch.no_grad():
        sae.encoder.bias.mul_(100)
        sae.b_dec.mul_(100)
    after = total(sae, 100 * x, dead)
    for name in ("mse", "l1", "auxk"):
        torch.testing.assert_close(before.terms[name], after.terms[name])


def test_total_is_the_weighted_sum_of_its_terms():
    x, dead = torch.randn(64, D).double(), torch.arange(20, 40)
    loss = objective(auxk_coefficient=0.25, l1_coefficient=0.5)(autoencoder(), x, dead)
    terms = loss.terms
    torch.testing.assert_close(loss.total.detach(), terms["mse"] + 0.5 * terms["l1"] + 0.25 * terms["auxk"])
    assert all(term > 0 and not term.requires_grad for term in terms.values())
    assert set(objective()(autoencoder(), x).terms) == {"mse"}


@pytest.mark.parametrize("sparsifier", [TopK(K), ReLU()])
def test_l1_counts_the_norm_of_each_atom(sparsifier):
    sae = autoencoder(sparsifier, unit_norm=False)
    code = sae.encode(torch.randn(9, D))
    want = (code.dense(N).abs() * sae.atoms.norm(dim=1)).sum(1).mean()
    torch.testing.assert_close(magnitude(code, sae.atoms), want)
    leaves = [sae.encoder.weight, sae.dictionary.weight]
    got = torch.autograd.grad(magnitude(code, sae.atoms), leaves, retain_graph=True)
    for g, w in zip(got, torch.autograd.grad(want, leaves), strict=True):
        torch.testing.assert_close(g, w)


def test_l1_of_a_signed_code_counts_magnitudes():
    code = Code(torch.tensor([[2.0, -3.0]]), torch.tensor([[0, 1]]))
    assert magnitude(code, torch.tensor([[1.0, 0], [0, 2]])).item() == 2 + 6


@pytest.mark.parametrize("sparsifier", [TopK(K), AbsTopK(K)], ids=repr)
@pytest.mark.parametrize("n_dead", [1, 2, 10, 40])
def test_auxk_is_its_equation_with_the_same_gradients(n_dead, sparsifier):
    sae, x = autoencoder(sparsifier), torch.randn(30, D).double()
    dead = torch.randperm(N)[:n_dead]
    output = sae(x)
    x_hat = output.x_hat
    got = auxk(Seen(sae, x, x, output, (x - output.x_hat).square().sum(), spread(x), dead))

    residual = (x - x_hat).detach()
    u = (x - sae.b_dec) @ sae.encoder.weight.T + sae.encoder.bias
    among, k = u[:, dead], min(512, D // 2, n_dead)
    at = (among.abs() if sparsifier.signed else among).topk(k).indices
    values = among.gather(1, at)
    aux = torch.zeros(30, N).double().scatter_add(1, dead[at], values if sparsifier.signed else values.relu())
    error = (residual - aux @ sae.dictionary.weight).square().sum()  # no b_dec
    want = error / (residual - residual.mean(0)).square().sum()

    torch.testing.assert_close(got, want)
    parameters = list(sae.parameters())
    for g, w in zip(
        torch.autograd.grad(got, parameters), torch.autograd.grad(want, parameters, retain_graph=True), strict=True
    ):
        torch.testing.assert_close(g, w)
    to_encoder, to_atoms = torch.autograd.grad(want, [sae.encoder.weight, sae.dictionary.weight])
    alive = torch.ones(N, dtype=torch.bool).index_fill(0, dead, False)
    for grad in (to_encoder, to_atoms):
        assert (grad[alive] == 0).all() and (grad[dead] != 0).any()


def test_without_dead_latents_there_is_no_auxiliary_loss():
    sae, x = autoencoder(), torch.randn(30, D).double()
    total = objective(auxk_coefficient=1 / 32)
    for dead in (None, torch.empty(0, dtype=torch.int64)):
        loss = total(sae, x, dead)
        assert loss.terms["auxk"] == 0 and torch.equal(loss.total.detach(), loss.terms["mse"])
        loss.total.backward()


def test_no_residual_and_no_variance_give_no_nan():
    x = torch.rand(20, D).double()
    sae = SAE(Linear(torch.eye(D), torch.zeros(D)), ReLU(), Free(torch.eye(D)), torch.zeros(D)).double()
    loss = objective(auxk_coefficient=1.0, l1_coefficient=1.0)(sae, x, torch.arange(3))
    assert loss.terms["auxk"] == 0
    loss.total.backward()
    for other in (sae, autoencoder()):
        for batch in (x[:1].repeat(4, 1), x[:1]):
            constant = objective(auxk_coefficient=1.0, l1_coefficient=1.0)(other, batch, torch.arange(3))
            constant.total.backward()
            assert constant.total.isfinite()
        assert all(parameter.grad.isfinite().all() for parameter in other.parameters())


def test_auxk_revives_what_the_main_loss_cannot_reach():
    x = torch.randn(512, D)
    sae = autoencoder().float()
    with torch.no_grad():
        sae.encoder.bias[10:].fill_(-2)
        sae.encoder.bias[:10].fill_(20)  # ten latents always win, thirty are dead
    dead = (sae.encode(x).counts(N) == 0).nonzero().squeeze(1)
    assert len(dead) == 30
    error = [objective(auxk_coefficient=1.0)(sae, x, dead).terms["auxk"]]
    optimiser = torch.optim.Adam(sae.parameters(), lr=0.03)
    for _ in range(50):
        optimiser.zero_grad()
        loss = objective(auxk_coefficient=1.0)(sae, x, dead)
        loss.total.backward()
        optimiser.step()
        sae.project_()
    assert loss.terms["auxk"] < 0.8 * error[0]


def test_a_penalty_rises_over_its_warmup():
    sae, x = autoencoder(ReLU()), torch.randn(64, D).double()
    rising = Objective({"l1": Weighted(l1, 2.0, warmup=0.5)})
    found = [rising(sae, x, progress=progress) for progress in (0.0, 0.125, 0.5, 1.0)]
    for loss, weight in zip(found, (0.0, 0.5, 2.0, 2.0), strict=True):
        torch.testing.assert_close(loss.total.detach(), loss.terms["mse"] + weight * loss.terms["l1"])


def test_another_reconstruction_takes_the_place_of_mse():
    sae, x = autoencoder(), torch.randn(64, D).double()
    doubled = Objective(reconstruction=lambda seen: 2 * (seen.target - seen.output.x_hat).square().sum() / seen.energy)
    torch.testing.assert_close(doubled(sae, x).total, 2 * Objective()(sae, x).total)
