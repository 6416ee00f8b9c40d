"""What resampling does to dead latents and to nothing else, and what it is good for."""

import pytest
import torch
import torch.nn.functional as F

import vsae
from vsae.dictionaries import Free
from vsae.encoders import Tied
from vsae.objectives import Objective
from vsae.recipes import ReLU
from vsae.resampling import SHARE, Resample
from vsae.sae import SAE
from vsae.sparsifiers import TopK
from vsae.training.dead import FiringClock
from vsae.training.gauge import Gauge
from vsae.training.state import Training

D, N = 6, 12
pytestmark = pytest.mark.usefixtures("one_thread")


def training(sae, x, step=10):
    """One Adam step made, latents 3 and 7 dead."""
    optimiser = torch.optim.Adam(sae.parameters(), lr=1e-3)
    loss = Objective()(sae, x)
    loss.total.backward()
    optimiser.step()
    device = torch.device("cpu")
    clock = FiringClock(sae.n_latents, device)
    clock.since += 100
    gauge = Gauge(5, 1.0, device)
    state = Training(sae, optimiser, clock, gauge, torch.nn.ModuleList(), dead=torch.tensor([3, 7]), step=step)
    return state, Objective()(sae, x)


def test_dead_latents_point_at_the_rows_with_the_largest_errors_and_others_stay():
    x = torch.randn(40, D)
    x[11] *= 1e4  # nearly all of the squared loss is here
    x[23] *= 1e4
    sae = ReLU(N).build(x[:10], torch.zeros(D), 0)
    state, loss = training(sae, x)
    weight, bias = sae.encoder.weight, sae.encoder.bias
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    Resample(5)(state, x, loss)
    directions = F.normalize(x[[11, 23]] - sae.b_dec, dim=1)
    found = sae.atoms[[3, 7]] @ directions.T
    assert sorted(found.argmax(1).tolist()) == [0, 1]
    torch.testing.assert_close(found.amax(1), torch.ones(2))
    alive = [i for i in range(N) if i not in (3, 7)]
    length = SHARE * before["encoder.weight"][alive].norm(dim=1).mean()
    torch.testing.assert_close(weight[[3, 7]], length * sae.atoms[[3, 7]])
    assert (bias[[3, 7]] == 0).all()
    for name in ("encoder.weight", "encoder.bias", "dictionary.weight"):
        assert torch.equal(sae.state_dict()[name][alive], before[name][alive])
    for parameter in (weight, bias, sae.dictionary.weight):
        for name in ("exp_avg", "exp_avg_sq"):
            moments = state.optimiser.state[parameter][name]
            assert (moments[[3, 7]] == 0).all() and (moments[alive] != 0).any()
    assert len(state.dead) == 0 and state.clock.since[[3, 7]].tolist() == [0, 0] and state.clock.since[0] == 100


def test_between_its_steps_and_without_dead_latents_nothing_happens():
    x = torch.randn(40, D)
    sae = ReLU(N).build(x, x.mean(0), 0)
    state, loss = training(sae, x, step=11)
    before = sae.atoms.clone()
    Resample(5)(state, x, loss)
    state.step, state.dead = 10, state.dead[:0]
    Resample(5)(state, x, loss)
    assert torch.equal(sae.atoms, before)


def test_parts_without_rows_of_their_own_are_refused():
    x = torch.randn(40, D)
    sae = SAE(Tied(torch.zeros(N)), TopK(3), Free(torch.randn(N, D)), torch.zeros(D))
    state, loss = training(sae, x)
    with pytest.raises(TypeError, match=r"a Tied encoder .* cannot be resampled"):
        Resample(5)(state, x, loss)


class HalfDead(ReLU):
    """Every other latent starts where no gradient reaches it."""

    def build(self, sample, mean, seed):
        sae = super().build(sample, mean, seed)
        with torch.no_grad():
            sae.encoder.bias[::2] = -100
        return sae


def test_a_training_with_resampling_revives_what_gradients_cannot(tmp_path):
    x = torch.randn(4000, 8).relu() @ torch.randn(8, 16) + 0.1 * torch.randn(4000, 16)
    config = vsae.TrainConfig(epochs=20, batch_size=200, lr=3e-3, check_every=20, dead_tokens=2000, tracker="none")
    dead = []
    for every in (0, 60):
        recipe = HalfDead(64, l1_coefficient=0.1, resample_every=every)
        run = vsae.train(
            vsae.TensorSource(x), recipe, tmp_path / str(every), config, vsae.TensorSource(x), progress=False
        )
        dead.append(run.meta["metrics"]["val"]["dead_share"])
    print(f"dead share {dead[0]:.2f} without resampling, {dead[1]:.2f} with it")
    assert dead[0] >= 0.5 and dead[1] < 0.1
