"""Nested reconstructions against full decodes of every prefix, in float64."""

import dataclasses

import pytest
import torch

from vsae.code import Code
from vsae.dictionaries import Free
from vsae.encoders import Linear
from vsae.objectives import Objective
from vsae.ops.prefixes import decode_prefixes
from vsae.prefixes import Prefixes, RandomPrefixes
from vsae.recipes import BatchTopK
from vsae.recipes.nested import Matryoshka
from vsae.sae import SAE
from vsae.sparsifiers import ReLU, TopK

D, N, ROWS = 6, 40, 30
pytestmark = pytest.mark.usefixtures("one_thread")


def autoencoder(sparsifier):
    return SAE(Linear(torch.randn(N, D), torch.randn(N)), sparsifier, Free(torch.randn(N, D)), torch.randn(D)).double()


@pytest.mark.parametrize("ends", [[1], [N], [3, 4, 20], [1, 2, 39, 40]])
@pytest.mark.parametrize("k", [1, 3, 20])
def test_every_prefix_is_the_decode_of_its_latents(ends, k):
    values = torch.randn(ROWS, k).double() * (torch.rand(ROWS, k) > 0.3)
    values[0] = 0
    values.requires_grad_()
    indices, atoms = torch.rand(ROWS, N).topk(k).indices, torch.randn(N, D).double().requires_grad_()
    got = decode_prefixes(Code(values, indices), atoms, ends)
    want = torch.stack([Code(values * (indices < end), indices).dense(N) @ atoms for end in ends], 1)
    torch.testing.assert_close(got, want)
    push, active = torch.randn_like(want), values.detach() != 0
    (to_values, to_atoms), (v, a) = (torch.autograd.grad(out, [values, atoms], push) for out in (got, want))
    torch.testing.assert_close(to_values * active, v * active)
    torch.testing.assert_close(to_atoms, a)


@pytest.mark.parametrize("sparsifier", [TopK(4), ReLU()], ids=repr)
def test_the_loss_is_the_mean_over_prefixes_with_the_same_gradients(sparsifier):
    sae, x = autoencoder(sparsifier), torch.randn(ROWS, D).double()
    got = Objective(reconstruction=Prefixes((0.1, 0.5, 1.0)))(sae, x).total
    z, energy = sae.encode(x).dense(N), (x - x.mean(0)).square().sum()
    errors = [(x - z[:, :m] @ sae.atoms[:m] - sae.b_dec).square().sum() / energy for m in (4, 20, 40)]
    want = sum(errors) / 3
    torch.testing.assert_close(got, want)
    leaves = list(sae.parameters())
    for g, w in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), strict=True):
        torch.testing.assert_close(g, w)


def test_one_prefix_is_the_plain_loss_bit_for_bit():
    x = torch.randn(200, D)
    plain, nested = BatchTopK(N, 4), Matryoshka(N, 4, prefixes=(1.0,))
    found = []
    for recipe in (plain, nested, dataclasses.replace(nested, random_prefixes=1)):
        sae = recipe.build(x, x.mean(0), 0)
        loss = recipe.objective()(sae, x, torch.arange(5))
        loss.total.backward()
        found.append([loss.total.detach(), *(parameter.grad for parameter in sae.parameters())])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_random_prefixes_are_drawn_by_the_law_and_again_after_a_resume():
    term = RandomPrefixes(count=10)
    draws = [term.ends(1000, step / 3000) for step in range(3000)]
    assert draws[7] == term.ends(1000, 7 / 3000) != draws[8]
    assert all(len(set(draw)) == 10 and draw == sorted(draw) and draw[-1] == 1000 for draw in draws)
    first = torch.tensor([float(1 in draw) for draw in draws]).mean()
    single = torch.tensor([RandomPrefixes(count=2).ends(1000, step / 3000)[0] == 1 for step in range(3000)])
    want = (1 - 2**-0.5) / (1 - 1000**-0.5)
    assert float(single.float().mean()) == pytest.approx(want, abs=0.03) and first > 0.9
    assert RandomPrefixes(count=10).ends(3, 0.5) == [1, 2, 3]


def test_few_latents_make_few_prefixes():
    assert Prefixes((0.002, 0.011, 0.046, 0.235, 1.0)).ends(48, 0.0) == [1, 2, 11, 48]


@pytest.mark.parametrize("prefixes", [(), (0.5,), (0.5, 0.2, 1.0), (0.0, 1.0), (0.5, 1.0, 2.0)])
def test_prefixes_that_cannot_be_are_named(prefixes):
    with pytest.raises(ValueError, match="choose rising shares of the latents, the last being 1"):
        Matryoshka(N, 4, prefixes=prefixes)
