"""Thresholds and gates that learn: their gradients against derivatives that can be computed otherwise, and their losses written out densely."""

import pytest
import torch

from vsae.dictionaries import Free
from vsae.encoders import Linear
from vsae.objectives import L0, Objective, Weighted, gate_l1, gate_mse
from vsae.preactivations import Affine, Dense
from vsae.recipes.selection import JumpReLU as Recipe
from vsae.sae import SAE
from vsae.sparsifiers import Gated, JumpReLU, ReLU, Threshold, TopK

D, N, ROWS, EPS = 6, 40, 50, 0.2
pytestmark = pytest.mark.usefixtures("one_thread")


def autoencoder(sparsifier):
    return SAE(Linear(torch.randn(N, D), torch.randn(N)), sparsifier, Free(torch.randn(N, D)), torch.randn(D)).double()


def jump(n=N, scale=3.0):
    return JumpReLU(scale * torch.rand(n), EPS).double()


def dense_u(sae, x):
    return (x - sae.b_dec) @ sae.encoder.weight.T + sae.encoder.bias


@pytest.mark.parametrize("scale", [6.0, 0.5, 0.05])
def test_jumprelu_is_its_equation_with_its_gradients_as_defined(scale):
    sae, x = (
        autoencoder(jump(scale=scale)),
        torch.randn(ROWS, D).double(),
    )  # from sparse to full codes, thresholds below eps / 2
    theta = sae.sparsifier.threshold
    code, u = sae.encode(x), dense_u(sae, x)
    torch.testing.assert_close(code.dense(N), u * (u > theta))
    push, count = torch.randn(ROWS, N).double(), torch.rand(N).double()
    u0, t0 = u.detach(), theta.detach()
    near = ((u0 - t0).abs() < EPS / 2).double() / EPS
    to_theta, to_bias = torch.autograd.grad((code.dense(N) * push).sum(), [theta, sae.encoder.bias], retain_graph=True)
    torch.testing.assert_close(to_theta, -(push * t0 * near).sum(0))
    torch.testing.assert_close(to_bias, (push * (u0 > t0)).sum(0))
    weighted = (code.gate * count[code.indices]).sum()
    to_theta, to_bias = torch.autograd.grad(weighted, [theta, sae.encoder.bias], allow_unused=True)
    torch.testing.assert_close(to_theta, -count * near.sum(0))
    assert to_bias is None or (to_bias == 0).all()


def test_the_penalty_on_thresholds_is_the_slope_of_the_smoothed_count():
    u, theta = torch.randn(2000, 3).double() + 1, torch.tensor([0.5, 1.0, 1.5]).double()

    def smoothed(theta):
        return ((u - theta) / EPS + 0.5).clamp(0, 1).sum()

    sparsifier = JumpReLU(theta, EPS)
    sparsifier(Dense(u)).gate.sum().backward()
    for latent in range(3):
        step = 1e-7 * torch.eye(3).double()[latent]
        slope = (smoothed(theta + step) - smoothed(theta - step)) / 2e-7
        assert sparsifier.threshold.grad[latent].item() == pytest.approx(slope.item(), rel=1e-5)


@pytest.mark.parametrize("theta", [0.3, 1.0, 2.0])
def test_on_average_a_threshold_follows_the_true_slope_of_the_expected_loss(theta):
    """E over u ~ N(0, 1) of (t - z)^2 + c 1[u > theta], whose slope is p(theta) (t^2 - (theta - t)^2 - c). A kernel that integrates to anything but 1 fails."""
    target, cost, eps = 1.3, 0.4, 0.02
    normal = torch.distributions.Normal(0.0, 1.0)
    u = normal.icdf((torch.arange(400_000).double() + 0.5) / 400_000)[:, None]
    sparsifier = JumpReLU(torch.tensor([theta]).double(), eps)
    code = sparsifier(Dense(u))
    z = code.dense(1)
    ((target - z).square() + cost * code.gate.sum(1, keepdim=True)).mean().backward()
    density = normal.log_prob(torch.tensor(theta)).exp().item()
    want = density * (target**2 - (theta - target) ** 2 - cost)
    assert sparsifier.threshold.grad.item() == pytest.approx(want, abs=0.003)


def test_thresholds_stay_above_zero_and_are_all_that_is_left_for_inference():
    sae = autoencoder(JumpReLU(torch.linspace(-1, 1, N), EPS))
    sae.project_()
    assert sae.sparsifier.threshold.min() == 0 and sae.sparsifier.threshold.max() == 1
    x = torch.randn(ROWS, D).double()
    fixed = sae.sparsifier.inference()
    assert isinstance(fixed, Threshold)
    assert torch.equal(fixed(sae.preactivations(x)).dense(N), sae.encode(x).dense(N))


@pytest.mark.parametrize("target", [None, 5.0])
def test_l0_counts_who_speaks(target):
    sae, x = autoencoder(jump()), torch.randn(ROWS, D).double()
    count = (sae.encode(x).values != 0).sum() / ROWS
    loss = Objective({"l0": Weighted(L0(target), 1.0)})(sae, x)
    want = count if target is None else (count / target - 1) ** 2
    assert loss.terms["l0"].item() == pytest.approx(want.item())
    loss.total.backward()
    assert (sae.sparsifier.threshold.grad != 0).any()


@pytest.mark.parametrize("target", [8.0, 16.0])
def test_a_target_is_met(target):
    x = torch.randn(2000, 16)
    recipe = Recipe(64, target_l0=target, bandwidth=0.03)
    sae, objective = recipe.build(x, x.mean(0), 0), recipe.objective()
    optimiser = torch.optim.Adam(sae.parameters(), lr=0.01)
    before = float((sae.encode(x).values != 0).sum()) / len(x)
    for _ in range(400):
        optimiser.zero_grad()
        objective(sae, x[torch.randint(2000, (256,))]).total.backward()
        optimiser.step()
        sae.project_()
    l0 = float((sae.encode(x).values != 0).sum()) / len(x)
    print(f"JumpReLU: L0 {l0:.2f} for a target of {target}, from {before:.1f}")
    assert before > 20 and l0 == pytest.approx(target, rel=0.15)


def gated():
    return Gated(0.3 * torch.randn(N), torch.randn(N))


def test_gated_is_its_equation_with_its_losses_and_gradients():
    sae, x = autoencoder(gated()), torch.randn(ROWS, D).double()
    pi, gate = dense_u(sae, x), sae.sparsifier
    z = (pi > 0) * (gate.r.exp() * (pi - sae.encoder.bias) + gate.b_mag).relu()
    torch.testing.assert_close(sae.encode(x).dense(N), z)
    energy = (x - x.mean(0)).square().sum()
    mse = (x - z @ sae.atoms - sae.b_dec).square().sum() / energy
    frozen = (x - pi.relu() @ sae.atoms.detach() - sae.b_dec.detach()).square().sum() / energy
    penalty = (pi.relu() @ sae.atoms.norm(dim=1)).mean() / (energy / ROWS).sqrt()
    got = Objective({"gate_l1": Weighted(gate_l1, 0.3), "gate_mse": Weighted(gate_mse, 0.7)})(sae, x)
    want = mse + 0.3 * penalty + 0.7 * frozen
    torch.testing.assert_close(got.total, want)
    leaves = list(sae.parameters())
    for g, w in zip(torch.autograd.grad(got.total, leaves), torch.autograd.grad(want, leaves), strict=True):
        torch.testing.assert_close(g, w)


def test_wide_open_gates_leave_a_relu_sae():
    x, weight, b_mag = torch.randn(ROWS, D), torch.randn(N, D), torch.randn(N)
    code = Gated(torch.zeros(N), b_mag)(Affine(x, weight, torch.full((N,), 100.0)))
    torch.testing.assert_close(code.dense(N), ReLU()(Affine(x, weight, b_mag)).dense(N), atol=1e-4, rtol=1e-4)


def test_rows_are_on_their_own():
    for sparsifier in (jump(), gated().double()):
        sae, x = autoencoder(sparsifier), torch.randn(8, D).double()
        other = torch.cat([x[:1], 9 * torch.randn(7, D).double()])
        torch.testing.assert_close(sae.encode(x).dense(N)[0], sae.encode(other).dense(N)[0], atol=0, rtol=1e-12)


def test_what_has_no_gate_is_told_so():
    with pytest.raises(TypeError, match="TopK has no gate"):
        Objective({"l0": Weighted(L0(), 1.0)})(autoencoder(TopK(3)), torch.randn(9, D).double())
    with pytest.raises(TypeError, match="needs a linear encoder"):
        gated()(Dense(torch.randn(3, N)))
