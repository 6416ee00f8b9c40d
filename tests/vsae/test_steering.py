"""What to steer with, against slow references; edits of the same size at every token."""

import numpy as np
import pytest
import torch

from vsae.interventions import Add, Clamp, Intervention, Scale
from vsae.sae import SAE
from vsae.sparsifiers import TopK
from vsae.steering import Along, examples, summed

D, N, K = 12, 30, 4


@pytest.fixture
def sae():
    atoms = torch.nn.functional.normalize(torch.randn(N, D, dtype=torch.float64), dim=1)
    return SAE.from_weights(
        atoms.T.contiguous(), torch.zeros(N).double(), atoms, torch.randn(D).double(), TopK(K)
    ).double()


@pytest.fixture
def data():
    """Values of 20 samples of 7 tokens, which of them count, which samples have the concept."""
    values = torch.randn(20, 7, D, dtype=torch.float64)
    mask = torch.rand(20, 7) < 0.7
    mask[:, 0] = True
    return values, mask, [bool(at % 3 == 0) for at in range(20)]


def read(sae, data, size):
    values, mask, has = data
    parts = ((values[at : at + size], mask[at : at + size]) for at in range(0, len(values), size))
    return examples(sae, parts, has)


def dense(sae, x):
    code = sae.encode(x)
    return torch.zeros(len(x), N, dtype=x.dtype).scatter_add_(1, code.indices, code.values)


def test_examples_agree_with_the_dense_and_slow_way(sae, data):
    values, mask, has = data
    found = read(sae, data, 20)
    for at in range(20):
        slow = dense(sae, values[at][mask[at]]).clamp(min=0).max(0).values
        np.testing.assert_allclose(found.strongest[at], slow.numpy(), atol=1e-12)
    z = dense(sae, values[mask])
    np.testing.assert_allclose(found.fires, (z > 0).double().mean(0).numpy())
    side = torch.tensor(has)[mask.nonzero()[:, 0]]
    means = values[mask][side].mean(0) - values[mask][~side].mean(0)
    torch.testing.assert_close(found.means, means, atol=1e-12, rtol=0)
    s = found.strongest[np.array(has)].mean(0) - found.strongest[~np.array(has)].mean(0)
    assert found.best(3) == np.argsort(-s)[:3].tolist()


def test_batches_make_no_difference(sae, data):
    whole, parts = read(sae, data, 20), read(sae, data, 3)
    np.testing.assert_allclose(whole.strongest, parts.strongest, atol=1e-12)
    torch.testing.assert_close(whole.means, parts.means, atol=1e-12, rtol=0)
    np.testing.assert_array_equal(whole.fires, parts.fires)


def test_a_planted_concept_is_the_latent_that_separates_best(sae, data):
    values, mask, has = data
    planted = values.clone()
    planted[torch.tensor(has), 0] = 9 * sae.atoms[17] + sae.bias
    found = read(sae, (planted, mask, has), 20)
    assert found.best(1) == [17]
    assert found.sizes([17]) == pytest.approx([float(found.strongest[found.having, 17].mean())])


@pytest.mark.parametrize(
    "operation", [Add([3, 5], [2.0, 0.5]), Clamp([3], 4.0), Scale([3, 8], 0.0)], ids=["add", "clamp", "scale"]
)
def test_another_direction_goes_as_far_at_every_token(sae, operation):
    x, kinds = torch.randn(2, 9, D, dtype=torch.float64), torch.zeros(2, 9, dtype=torch.uint8)
    v = torch.randn(D, dtype=torch.float64)
    ours = Intervention(sae, operation, strength=0.7)(x, kinds) - x
    theirs = Intervention(sae, Along(v, operation), strength=0.7)(x, kinds) - x
    torch.testing.assert_close(theirs.norm(dim=-1), ours.norm(dim=-1), atol=1e-12, rtol=0)
    moved = theirs.norm(dim=-1) > 1e-9
    torch.testing.assert_close(
        theirs[moved] / theirs[moved].norm(dim=-1, keepdim=True), (v / v.norm()).expand(int(moved.sum()), -1)
    )
    assert torch.equal(Intervention(sae, Along(v, operation), strength=0.0)(x, kinds), x)


def test_latents_push_together_as_they_are_summed(sae):
    x, kinds = torch.randn(1, 5, D, dtype=torch.float64), torch.zeros(1, 5, dtype=torch.uint8)
    step = Intervention(sae, Add([3, 5], [2.0, 0.5]))(x, kinds) - x
    torch.testing.assert_close(step[0], summed(sae, [3, 5], [2.0, 0.5]).expand(5, -1), atol=1e-12, rtol=0)
    torch.testing.assert_close(summed(sae, [3, 5], [2.0, 0.5]), 2 * sae.atoms[3] + 0.5 * sae.atoms[5])


def test_controls_are_other_latents_that_fire_about_as_often(sae, data):
    found = read(sae, data, 20)
    chosen = found.best(2)
    for seed in range(20):
        control = found.matched(chosen, seed)
        assert len(set(control)) == 2 and not set(control) & set(chosen) and (found.fires[control] > 0).all()
    assert found.matched(chosen, 4) == found.matched(chosen, 4)


def test_both_kinds_of_examples_are_needed(sae, data):
    values, mask, has = data
    with pytest.raises(ValueError, match="0 of 20 examples have the concept"):
        read(sae, (values, mask, [False] * 20), 20)
    with pytest.raises(ValueError, match="in none of the examples"):
        read(sae, (values, torch.zeros_like(mask), has), 20)
    silent = read(sae, data, 20)
    silent.strongest[:, 4] = 0
    with pytest.raises(ValueError, match="latent 4 fires on none"):
        silent.sizes([4])
