"""The variational encoder: noise in training alone, its KL against the Gaussians' own, and collapse that is seen."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

import vsae
from vsae.activations.memory import TensorSource
from vsae.dictionaries import Free
from vsae.encoders import Linear
from vsae.objectives import Objective, Weighted
from vsae.recipes.variational import VSAE
from vsae.run import Run, save_run
from vsae.sae import SAE
from vsae.sparsifiers import TopK
from vsae.training.config import TrainConfig
from vsae.variational import Variational, collapse, divergence, kl

pytestmark = pytest.mark.usefixtures("one_thread")
B, N, D = 50, 12, 5


def sae(learned, dtype=torch.float64):
    draw = [torch.randn(N, D, dtype=dtype), torch.randn(N, dtype=dtype)]
    more = [0.3 * torch.randn(N, D, dtype=dtype), 0.3 * torch.randn(N, dtype=dtype)] if learned else []
    return SAE(Variational(*draw, *more), TopK(3), Free(torch.randn(N, D, dtype=dtype)), torch.randn(D, dtype=dtype))


def slow_kl(part, x):
    mu = (x - part.b_dec) @ part.encoder.weight.T + part.encoder.bias
    if part.encoder.logvar_weight is None:
        return mu.square() / 2
    logvar = (x - part.b_dec) @ part.encoder.logvar_weight.T + part.encoder.logvar_bias
    return kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(torch.zeros_like(mu), torch.ones_like(mu)))


@pytest.mark.parametrize("learned", [False, True])
def test_the_divergence_and_its_gradients_are_the_gaussians_own(learned):
    part, x = sae(learned), torch.randn(B, D).double()
    torch.testing.assert_close(divergence(*part.encoder.posterior(x - part.b_dec)), slow_kl(part, x))
    objective = Objective({"kl": Weighted(kl, 0.3)})
    loss = objective(part.eval(), x)
    loss.total.backward()
    ours = {name: parameter.grad.clone() for name, parameter in part.named_parameters()}
    part.zero_grad()
    energy = (x - x.mean(0)).square().sum()
    (((x - part(x).x_hat).square().sum() + 0.3 * slow_kl(part, x).sum()) / energy).backward()
    for name, parameter in part.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad)
    assert float(objective(part, x, progress=1.0).terms["kl"]) == pytest.approx(
        float(slow_kl(part, x).detach().sum() / energy)
    )


def test_its_weight_rises():
    part, x = sae(False).eval(), torch.randn(B, D).double()
    objective = Objective({"kl": Weighted(kl, 0.3, warmup=0.2)})
    totals = [float(objective(part, x, progress=p).total.detach()) for p in (0.0, 0.1, 0.2, 1.0)]
    assert totals[0] < totals[1] < totals[2] == totals[3]
    assert totals[1] - totals[0] == pytest.approx((totals[2] - totals[0]) / 2)


@pytest.mark.parametrize("learned", [False, True])
def test_noise_has_the_posteriors_moments_in_training_and_is_gone_after_it(learned):
    part, x = sae(learned), torch.randn(1, D).double()
    mu, logvar = part.encoder.posterior(x)
    draws = torch.stack([part.encoder(x, part.dictionary).top(N).dense(N) for _ in range(1)])
    assert not torch.equal(draws[0], mu.relu())
    many = part.encoder(x.expand(40_000, D), part.dictionary).u
    torch.testing.assert_close(many.mean(0), mu[0], atol=0.05, rtol=0)
    torch.testing.assert_close(many.var(0), logvar[0].exp(), rtol=0.05, atol=0)
    part.eval()
    torch.testing.assert_close(part.encoder(x, part.dictionary).top(N).dense(N), mu.relu())


@pytest.mark.parametrize("learned", [False, True])
def test_a_fused_and_saved_one_encodes_by_its_means(learned, tmp_path):
    part, x = sae(learned, torch.float32), torch.randn(B, D)
    shift, scale = torch.randn(D), 0.5 + torch.rand(D)
    fused, raw = part.fuse(shift, scale), x * scale + shift
    part.eval()
    torch.testing.assert_close(fused(raw).x_hat, part(x).x_hat * scale + shift, rtol=1e-4, atol=1e-4)
    assert (type(fused.encoder) is Linear) == (not learned)
    save_run(tmp_path, fused, raw, {"fingerprint": {}})
    loaded = Run.load(tmp_path).sae
    assert torch.equal(loaded(raw).x_hat, fused(raw).x_hat)
    before, after = collapse(part, [x]), collapse(loaded, [raw])
    torch.testing.assert_close(after.kl, before.kl, rtol=1e-3, atol=1e-4)
    assert after.active_units == before.active_units


def test_collapse_is_seen_and_does_not_depend_on_batches():
    part, x = sae(True), torch.randn(B, D).double()
    with torch.no_grad():
        part.encoder.weight[:3] = 0
        part.encoder.bias[:3] = 0
        part.encoder.logvar_weight[:3] = 0
        part.encoder.logvar_bias[:3] = 0
    part.eval()
    found = collapse(part, x.split(7))
    torch.testing.assert_close(found.kl, slow_kl(part, x).mean(0).detach())
    mu = part.encoder.posterior(x - part.b_dec)[0].detach()
    torch.testing.assert_close(found.variance, mu.var(0, correction=0))
    assert (found.kl[:3] == 0).all() and found.active_units == 9 / 12
    alive = (part.encode(x).dense(N) != 0).any(0).double()
    assert torch.equal(found.alive, alive) and found.alive_share == float(alive.mean())


def test_a_large_beta_collapses_most_latents_and_none_at_all_does_not(tmp_path):
    x = torch.randn(2000, 3) @ torch.randn(3, D)
    config = TrainConfig(epochs=15, batch_size=100, lr=0.02, tracker="none", device="cpu", eval_every=0)
    shares = []
    for beta in (0.0, 5.0):
        recipe = VSAE(N, 3, kl_coefficient=beta, learn_variance=True)
        run = vsae.train(TensorSource(x), recipe, tmp_path / str(beta), config, progress=False)
        shares.append(collapse(run.sae, [x]).active_units)
    assert shares[0] > 0.9 and shares[1] < 0.5


def test_what_it_is_not_for_is_said():
    with pytest.raises(ValueError, match="give both, or neither"):
        Variational(torch.randn(N, D), torch.zeros(N), torch.randn(N, D))
    with pytest.raises(ValueError, match="on no rows"):
        collapse(sae(False), [])
    with pytest.raises(ValueError, match="kl_coefficient is -1"):
        VSAE(N, 3, kl_coefficient=-1.0)
