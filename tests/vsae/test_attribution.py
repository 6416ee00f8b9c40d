"""Heads add up to the pre-activation, and a latent that reads one head is said to."""

import pytest
import torch

from vsae.attribution import head_contributions, head_weights, source_contributions
from vsae.sae import SAE
from vsae.sparsifiers import TopK

D, N, HEADS = 12, 20, 3


def random_sae():
    return SAE.from_weights(torch.randn(D, N), torch.randn(N), torch.randn(N, D), torch.randn(D), TopK(4)).double()


def test_heads_add_up_to_the_pre_activation():
    sae, x = random_sae(), torch.randn(9, D).double()
    code = sae.encode(x)
    parts = head_contributions(sae, x, code.indices, HEADS)
    u = (x - sae.b_dec) @ sae.W_enc
    torch.testing.assert_close(parts.sum(2), u.gather(1, code.indices))
    silenced = x.clone()
    silenced[:, 4:8] = sae.b_dec[4:8]
    without = (silenced - sae.b_dec) @ sae.W_enc
    torch.testing.assert_close(parts[:, :, 1], (u - without).gather(1, code.indices))


def test_a_latent_of_one_head_is_all_that_heads():
    atoms = torch.zeros(3, D)
    atoms[0, :4], atoms[1, 8:], atoms[2] = 2.0, -1.0, 1.0
    sae = SAE.from_weights(atoms.T, torch.zeros(3), atoms, torch.zeros(D), TopK(1))
    want = torch.tensor([[1.0, 0, 0], [0, 0, 1], [1 / 3] * 3])
    torch.testing.assert_close(head_weights(sae, HEADS), want)


@pytest.mark.parametrize("heads", [5, 0])
def test_heads_that_do_not_divide_the_dimensions_are_refused(heads):
    with pytest.raises(ValueError, match=f"12 dimensions cannot be cut into {heads} heads"):
        head_weights(random_sae(), heads)


def test_tokens_parts_add_up_to_the_heads_and_are_the_slow_sum():
    heads, tokens, size, n = 3, 5, 4, 10
    sae = SAE.from_weights(torch.randn(12, n), torch.randn(n), torch.randn(n, 12), torch.randn(12), TopK(2))
    pattern, values = torch.rand(heads, tokens, tokens).softmax(2), torch.randn(heads, tokens, size)
    x = (pattern @ values).transpose(0, 1).reshape(tokens, 12)
    indices = sae.encode(x).indices
    found = source_contributions(sae, pattern, values, indices)
    by_head = head_contributions(sae, x, indices, heads)
    offset = torch.einsum("hd,hdn->hn", sae.b_dec.view(heads, size), sae.W_enc.view(heads, size, n))
    torch.testing.assert_close(found.sum(3), by_head + offset.T[indices], rtol=1e-4, atol=1e-4)
    t, slot, h, s = 3, 1, 2, 4
    j = int(indices[t, slot])
    slow = sum(float(pattern[h, t, s] * values[h, s, i] * sae.W_enc[h * size + i, j]) for i in range(size))
    assert float(found[t, slot, h, s]) == pytest.approx(slow, rel=1e-4)
    with pytest.raises(ValueError, match="3 heads of 2"):
        source_contributions(sae, pattern, values[:, :, :2], indices)
