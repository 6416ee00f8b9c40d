"""What holds for every recipe: rows are on their own, runs give back what was saved, gradients are those of the loss."""

import pytest
import torch

from vsae.activations.memory import TensorSource
from vsae.fitted import Fitted
from vsae.objectives import Objective
from vsae.recipes import FIXED, JOINED, RECIPES
from vsae.run import Run, save_run
from vsae.training.config import TrainConfig

pytestmark = pytest.mark.usefixtures("one_thread")
D, N, ROWS = 8, 24, 60
ALL = {**RECIPES, **JOINED}


def data(name, n=300, seed=0):
    """Rows of a few directions, away from the origin; of joined sites, two of them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 6, generator=generator) @ torch.randn(6, D, generator=torch.Generator().manual_seed(5)) + 1
    return torch.cat([x, x.flip(1) + 0.1 * torch.randn(n, D, generator=generator)], 1) if name in JOINED else x


def made(name, dtype=torch.float32):
    sizes = {"k": 3} if "k" in ALL[name].__dataclass_fields__ else {}
    sizes |= {"groups": 3, "lowest_frequency": 0.05} if name == "gba" else {}
    x = data(name)
    return ALL[name](N, **sizes).build(x, x.mean(0), 0).to(dtype)


def fixed(name):
    sizes = {"n_latents": 5} | ({"k": 2} if name != "kmeans" else {})
    sizes |= {"iterations": 5} if "iterations" in FIXED[name].__dataclass_fields__ else {}
    config = TrainConfig(init_rows=100, batch_size=50)
    found = FIXED[name](**sizes).fit(TensorSource(data(name)), config, lambda batches, total: iter(batches))
    assert isinstance(found, Fitted)
    return found.sae


def codes(sae, rows):
    """Dense codes of each row: of two modalities, of both side by side."""
    torch.manual_seed(0)
    dense = sae.encode(sae.ends(rows).x).dense(sae.n_latents)
    return torch.cat(dense.split(len(rows)), 1)


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("name", [*ALL, *FIXED])
def test_a_row_hears_of_the_others_only_where_it_says_so(name, training):
    sae = (fixed(name) if name in FIXED else made(name)).train(training)
    x = data(name, ROWS, 1)
    changed = x.clone()
    changed[7] = 50 * changed[11]  # far outside, so that it takes what there is to take
    others = torch.arange(ROWS) != 7
    with torch.no_grad():
        before, after = codes(sae, x), codes(sae, changed)
    assert not torch.equal(before[7], after[7]) or name in (
        "vl_sae",
        "kmeans",
    )  # these two look at directions, or at one number
    if sae.capabilities.batch_dependent:
        assert training and not torch.allclose(before[others], after[others])
    else:
        torch.testing.assert_close(before[others], after[others], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_a_saved_one_gives_the_same_and_says_what_it_is(name, tmp_path):
    sae, x = made(name), data(name, ROWS, 1)
    shift, scale = torch.zeros(x.shape[1]), torch.full((x.shape[1],), 2.0)
    fused = sae.fuse(shift, scale)
    save_run(tmp_path, fused, 2 * x, {"fingerprint": {}})
    loaded = Run.load(tmp_path).sae
    assert torch.equal(loaded(fused.ends(2 * x).x).x_hat, fused(fused.ends(2 * x).x).x_hat)
    assert loaded.capabilities == fused.capabilities and not loaded.training
    sae.eval()
    with torch.no_grad():
        ends = sae.ends(x)
        torch.testing.assert_close(loaded(2 * ends.x).x_hat, 2 * sae(ends.x).x_hat, rtol=1e-3, atol=1e-3)
    flags = loaded.capabilities
    assert flags.linear_decoder == (name != "poly") and flags.signed == (name in ("abs_topk", "omp"))
    assert flags.modalities == (2 if name == "vl_sae" else 1) and not flags.batch_dependent


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_the_losses_slope_in_double_precision(name):
    """Along random directions, by central differences: selections stay as they are for so small a step. Learnt thresholds have pseudo-gradients, tested in test_gates."""
    sae, x = made(name, torch.float64), data(name, ROWS, 1).double()
    objective = Objective()

    def loss():
        torch.manual_seed(0)
        return objective(sae, x).total

    loss().backward()
    moved = {n: p for n, p in sae.named_parameters() if p.grad is not None and not n.endswith("threshold")}
    assert moved
    directions = {n: torch.randn_like(p) for n, p in moved.items()}
    slope = sum(float((p.grad * directions[n]).sum()) for n, p in moved.items())
    step, values = 1e-7, []
    for sign in (1, -1):
        with torch.no_grad():
            for n, p in moved.items():
                p.add_(directions[n], alpha=sign * step)
            values.append(float(loss()))
            for n, p in moved.items():
                p.add_(directions[n], alpha=-sign * step)
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=1e-3, abs=1e-5)
