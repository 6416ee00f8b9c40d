"""Slots in the order of their latents, kept from one question to the next."""

import pytest
import torch

import vsae.ops.order
from vsae.code import Code
from vsae.dictionaries import Free
from vsae.encoders import Linear
from vsae.ops import sparse
from vsae.ops.order import by_latent
from vsae.sae import SAE
from vsae.sparsifiers import TopK

pytestmark = pytest.mark.usefixtures("one_thread")


def slow(indices, n):
    """One latent after another."""
    flat = indices.flatten().tolist()
    order, starts = [], []
    for latent in range(n):
        starts.append(len(order))
        order += [at for at, each in enumerate(flat) if each == latent]
    return order, starts


@pytest.mark.parametrize("n", [5, 2**15, 2**15 + 1])
def test_it_is_one_latent_after_another(n):
    indices = torch.randint(0, 5, (6, 4)) * (n // 5)
    order, starts = by_latent(indices, n)
    want = slow(indices, n) if n == 5 else ([*indices.flatten().sort(stable=True).indices.tolist()], None)
    assert order.tolist() == want[0]
    if want[1] is not None:
        assert starts.tolist() == want[1]
    assert int(starts[n // 5]) == int((indices == 0).sum())


def test_an_answer_is_not_kept_when_the_question_changes():
    indices = torch.tensor([[0, 2], [1, 2]])
    first = by_latent(indices, 3)
    assert by_latent(indices, 3)[0] is first[0]
    assert by_latent(indices.clone(), 3)[0] is not first[0]
    assert by_latent(indices, 4)[1].tolist() == [0, 1, 2, 4]
    by_latent(indices, 3)
    indices[0, 0] = 1
    assert by_latent(indices, 3)[1].tolist() == [0, 0, 2]


def test_a_backward_pass_sorts_once(monkeypatch):
    sorts, sort = [], torch.Tensor.sort
    monkeypatch.setattr(torch.Tensor, "sort", lambda self, **more: sorts.append(self) or sort(self, **more))
    monkeypatch.setattr(vsae.ops.order, "_last", None)
    sae = SAE(Linear(torch.randn(64, 5), torch.randn(64)), TopK(4), Free(torch.randn(64, 5)), torch.randn(5))
    sae(torch.randn(9, 5)).x_hat.square().sum().backward()
    assert len(sorts) == 1


def test_a_code_of_mostly_empty_slots_leaves_them_out():
    values = torch.zeros(30, 4, dtype=torch.float64)
    values[::5, 1] = torch.randn(6).double()
    code = Code(values, torch.randint(0, 64, (30, 4)))
    rows = torch.randn(30, 3).double()
    torch.testing.assert_close(sparse.transposed_sums(*code, rows, 64), code.dense(64).T @ rows)
