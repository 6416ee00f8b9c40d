"""Heads add up to the pre-activation, and a latent that reads one head is said to."""

import pytest
import torch

from vsae.attribution import (
    head_contributions,
    head_latents,
    head_weights,
    polysemanticity,
    source_contributions,
    upstream_contributions,
)
from vsae.code import Code
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


def planted_heads():
    """Three heads of four dimensions, ten latents each: head 0 writes one direction, head 1 three of them, head 2 one and its opposite."""
    directions = [torch.eye(4)[[0] * 10], torch.eye(4)[[0, 1, 2] * 3 + [0]], torch.eye(4)[[1] * 10]]
    directions[2][5:] *= -1
    atoms = torch.zeros(30, D)
    for head, rows in enumerate(directions):
        atoms[10 * head : 10 * head + 10, 4 * head : 4 * head + 4] = rows + 0.05 * torch.randn(10, 4)
        atoms[10 * head : 10 * head + 10] += 0.02 * torch.randn(10, D)  # a little of every other head
    order = torch.randperm(30)
    return SAE.from_weights(atoms[order].T, torch.zeros(30), atoms[order], torch.zeros(D), TopK(1)), order


def test_heads_of_one_feature_are_told_from_heads_of_several():
    sae, order = planted_heads()
    mine = head_latents(sae.atoms, HEADS)
    assert [sorted(order[row].tolist()) for row in mine] == [
        list(range(10 * head, 10 * head + 10)) for head in range(3)
    ]
    weights = head_weights(sae, HEADS)
    for head, row in enumerate(mine):
        assert (weights[row, head].diff() <= 0).all() and weights[row[0], head] == weights[:, head].max()
    assert polysemanticity(sae.atoms, HEADS).tolist() == [1, 3, 1]
    assert polysemanticity(sae.atoms, HEADS, top=1).tolist() == [1, 1, 1]
    live = order < 20  # the last head's own latents are dead: what is left of the others is all it has
    assert (order[head_latents(sae.atoms, HEADS, live=live)] < 20).all()
    assert polysemanticity(sae.atoms, HEADS, cosine=0.9999)[1] == 10, "no two slices are the same to the last digit"


def test_random_directions_are_unrelated_where_heads_are_wide():
    atoms = torch.randn(400, 3 * 64)
    assert polysemanticity(atoms, 3).tolist() == [10, 10, 10]


def test_upstream_latents_add_up_to_what_is_attributed_to_their_tokens():
    heads, tokens, size, d, n = 3, 5, 4, 7, 10
    sae = SAE.from_weights(torch.randn(12, n), torch.randn(n), torch.randn(n, 12), torch.randn(12), TopK(2)).double()
    code = Code(torch.randn(tokens, 6).double(), torch.rand(tokens, 20).topk(6).indices)
    atoms, value = torch.randn(20, d).double(), torch.randn(heads, d, size).double()
    pattern, scale = torch.rand(heads, tokens, tokens).double().softmax(2), 0.5 + torch.rand(tokens).double()
    residual = code.dense(20) @ atoms
    values = torch.einsum("sd,hde->hse", residual / scale[:, None], value)
    x = (pattern @ values).transpose(0, 1).reshape(tokens, 12)
    indices = sae.encode(x).indices
    found = upstream_contributions(sae, pattern, value, atoms, code, indices, scale)
    torch.testing.assert_close(found.sum(3), source_contributions(sae, pattern, values, indices).sum(2))
    t, slot, s, i = 2, 1, 4, 3  # one entry, by what taking the latent away changes
    less = Code(code.values.clone(), code.indices)
    less.values[s, i] = 0
    gone = torch.einsum("sd,hde->hse", less.dense(20) @ atoms / scale[:, None], value)
    change = ((pattern @ values - pattern @ gone).transpose(0, 1).reshape(tokens, 12) @ sae.W_enc)[t, indices[t, slot]]
    assert float(found[t, slot, s, i]) == pytest.approx(float(change))
    with pytest.raises(ValueError, match="3 heads of 2"):
        upstream_contributions(sae, pattern, value[:, :, :2], atoms, code, indices)
