"""Group bias adaptation: the rule against a slow one, its start, and what it finds; and the target-L0 controller."""

import dataclasses

import pytest
import torch

import vsae
from evals.matching import match
from evals.planted import Planted
from vsae.adaptation import Gained, GroupBias, targets
from vsae.code import Code
from vsae.dictionaries import Free
from vsae.objectives import Loss
from vsae.recipes import GBA, ReLU
from vsae.recipes.selection import Gated
from vsae.sae import SAE, Output
from vsae.sparsifiers import Threshold, TopK
from vsae.targets import TargetL0
from vsae.training.dead import FiringClock
from vsae.training.gauge import Gauge
from vsae.training.state import Training

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = vsae.TrainConfig(epochs=4, batch_size=256, lr=5e-3, tracker="none", eval_every=0)


def step(controller, sae, code, number):
    """As the training loop does after its step `number`."""
    x, cpu = torch.zeros(len(code.values), sae.d_model), torch.device("cpu")
    loss = Loss(torch.zeros(()), {}, Output(x, code), x, torch.zeros(()))
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    clock, gauge = FiringClock(sae.n_latents, cpu), Gauge(5, 1.0, cpu)
    none = torch.zeros(0, dtype=torch.int64)
    controller(Training(sae, optimiser, clock, gauge, torch.nn.ModuleList(), dead=none, step=number), x, loss)


def test_thresholds_move_as_the_rule_says():
    """Latent by latent, from dense codes kept in a list."""
    n, every, rate = 12, 3, 0.1
    controller = GroupBias(n, 3, 0.3, 0.003, every, rate, 0.01)
    start = 0.2 * torch.rand(n)
    sae = SAE(Gained(torch.ones(n)), Threshold(start), Free(torch.randn(n, 5)), torch.zeros(5))
    seen, expected = [], start.clone()
    for number in range(1, 7):
        u = torch.randn(20, n) - torch.linspace(0, 3, n)
        z = torch.where(u > sae.sparsifier.threshold, u, 0)
        seen.append(z)
        step(controller, sae, Code.full(z), number)
        if number % every:
            continue
        rows, expected = torch.cat(seen), expected.clone()
        r = [float((rows[:, m].max() - expected[m]).clamp(min=0)) if (rows[:, m] != 0).any() else 0.0 for m in range(n)]
        new = expected.clone()
        for m in range(n):
            k = m * 3 // n
            share = float((rows[:, m] != 0).float().mean())
            mean = sum(r[j] for j in range(n) if j * 3 // n == k) / 4
            if share > (0.3, 0.03, 0.003)[k]:
                new[m] += rate * r[m]
            if share < 0.01:
                new[m] = max(float(new[m]) - rate * mean, 0.0)
        expected, seen = new, []
        torch.testing.assert_close(sae.sparsifier.threshold, expected)
    assert not torch.equal(expected, start) and (controller.fired == 0).all() and controller.rows == 0


def test_no_threshold_leaves_its_bounds():
    controller = GroupBias(4, 1, 0.5, 0.5, 1, 1.0, 0.5)
    sae = SAE(Gained(torch.ones(4)), Threshold(torch.full((4,), 0.1)), Free(torch.randn(4, 3)), torch.zeros(3))
    for number in range(1, 20):
        z = torch.zeros(10, 4)
        z[:, 0] = 5.0  # always, and far above: rises to what was seen, and no further
        step(controller, sae, Code.full(torch.where(z > sae.sparsifier.threshold, z, 0)), number)
    assert sae.sparsifier.threshold[0] == 5 and (sae.sparsifier.threshold[1:] == 0).all()


def test_targets_fall_geometrically():
    torch.testing.assert_close(targets(4, 0.1, 1e-4), torch.tensor([0.1, 0.01, 0.001, 0.0001]))
    assert targets(1, 0.1, 1e-4).tolist() == pytest.approx([0.1])


def test_latents_start_at_the_frequencies_of_their_groups():
    x = torch.randn(4096, 16) + 3
    sae = GBA(40, groups=4, highest_frequency=0.2, lowest_frequency=0.002).build(x, x.mean(0), 0)
    share = sae.encode(x).counts(40).view(4, 10) / len(x)
    for group, wanted in zip(share, targets(4, 0.2, 0.002).tolist(), strict=True):
        torch.testing.assert_close(group, torch.full((10,), round(wanted * len(x)) / len(x)), atol=2 / len(x), rtol=0)
    error = [float((x - s(x).x_hat).square().sum().detach()) for s in (sae, scaled(sae, 1.1), scaled(sae, 1 / 1.1))]
    assert error[0] < min(error[1:])


def scaled(sae, factor):
    """The same with all gains and thresholds multiplied."""
    gain, threshold = sae.encoder.gain * factor, sae.sparsifier.threshold * factor
    return SAE(Gained(gain), Threshold(threshold), Free(sae.atoms), sae.b_dec)


def test_gains_and_tied_atoms_have_the_dense_gradients():
    x, gain, atoms = torch.randn(6, 5).double(), torch.rand(7).double() + 0.5, torch.randn(7, 5).double()
    sae = SAE(Gained(gain), Threshold(torch.full((7,), 0.1).double()), Free(atoms, unit_norm=False), torch.randn(5))
    sae = sae.double()
    (sae(x).x_hat - x).square().sum().backward()
    gain, atoms, b = (p.detach().clone().requires_grad_() for p in (sae.encoder.gain, sae.atoms, sae.b_dec))
    u = gain * ((x - b) @ atoms.T)
    ((u * (u > 0.1)) @ atoms + b - x).square().sum().backward()
    for mine, slow in ((sae.encoder.gain, gain), (sae.dictionary.weight, atoms), (sae.b_dec, b)):
        torch.testing.assert_close(mine.grad, slow.grad)


@pytest.fixture(scope="module")
def world():
    return Planted(d_model=32, n_features=48, active=2.0)


def test_gba_finds_planted_atoms_that_its_frequencies_allow(world, tmp_path):
    true, found = 2 / 48, {}
    for name, highest in (("right", 1.5 * true), ("far too low", true / 50)):
        recipe = GBA(48, groups=1, highest_frequency=highest)
        run = vsae.train(world.source(16_384, 0), recipe, tmp_path / name, CONFIG, progress=False)
        found[name] = match(world.atoms, run.sae.atoms, False).matched
        assert run.sae.W_enc.shape == (32, 48) and isinstance(run.sae.sparsifier, Threshold)
    print(f"matched cosine by frequency: {found}")
    assert found["right"] > 0.85 and found["far too low"] < found["right"] - 0.1


@pytest.mark.parametrize(("recipe", "start", "target"), [(ReLU, 0.3, 2.0), (Gated, 0.02, 4.0)])
def test_l0_comes_to_its_target_whatever_the_coefficient(world, tmp_path, recipe, start, target):
    val, made = world.source(4096, 1), recipe(48, l1_coefficient=start, target_l0=target)
    config = dataclasses.replace(CONFIG, epochs=10, batch_size=128)
    run = vsae.train(world.source(6400, 0), made, tmp_path, config, val, progress=False)
    l0 = run.meta["metrics"]["val"]["l0"]
    print(f"{recipe.name}, target {target}, lambda from {start}: L0 {l0:.2f}")
    assert l0 == pytest.approx(target, rel=0.2)


def test_a_penalty_is_multiplied_by_what_the_controller_says():
    recipe, x = ReLU(20, l1_coefficient=0.1, target_l0=3.0), torch.randn(50, 8)
    sae, objective = recipe.build(x, x.mean(0), 0), recipe.objective()
    (controller,) = recipe.controllers()
    plain = objective(sae, x)
    step(controller, sae, plain.output.code, 1)
    l0 = float((plain.output.code.values != 0).sum()) / 50
    factor = controller.factors()["l1"]
    assert float(factor) == pytest.approx((l0 / 3.0) ** 0.01 if l0 / 3 < 2.7 else 2.7182818**0.01, rel=1e-4)
    more = objective(sae, x, factors={"l1": torch.tensor(3.0)})
    assert float(more.total) == pytest.approx(float(plain.terms["mse"] + 0.3 * plain.terms["l1"]), rel=1e-5)
    for _ in range(100):  # an empty code is no reason for an infinite factor
        step(controller, sae, Code(torch.zeros(5, 1), torch.zeros(5, 1, dtype=torch.int64)), 1)
    assert float(controller.factors()["l1"]) == pytest.approx(2.7182818 ** (-1) * float(factor), rel=1e-3)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: GBA(groups=0), "groups is 0"),
        (lambda: GBA(lowest_frequency=0.5), "frequencies run from 0.1 to 0.5"),
        (lambda: GBA(adapt_rate=0.0), "adapt_rate 0.0"),
        (lambda: ReLU(target_l0=0.0), "target_l0 is 0.0"),
        (lambda: Gated(target_l0=8.0, l1_coefficient=0.0), "l1_coefficient is 0"),
        (lambda: TargetL0("l1", -1.0), "target_l0 is -1"),
    ],
)
def test_what_cannot_be_is_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_adaptation_needs_thresholds():
    sae = SAE(Gained(torch.ones(4)), TopK(2), Free(torch.randn(4, 3)), torch.zeros(3))
    with pytest.raises(TypeError, match="TopK has none"):
        step(GroupBias(4, 1, 0.5, 0.5, 1, 1.0, 0.5), sae, Code.full(torch.zeros(2, 4)), 1)
