"""The CUDA path, in Triton's interpreter where there is no card: selection in two looks, sums by sorted slots, and a training through all of it."""

import pytest
import torch

import vsae
from vsae import ops
from vsae.code import Code
from vsae.objectives import Objective, Weighted, auxk
from vsae.ops import reference, sparse, triton_kernels, triton_path
from vsae.ops.largest import Magnitudes
from vsae.ops.triton_path import GROUP
from vsae.recipes import TopK

BATCH, D, N = 5, 20, 150  # no multiple of any block; the interpreter is slow
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _on_this_device(monkeypatch):
    monkeypatch.setattr(triton_path, "FORCED", DEVICE == "cpu")
    monkeypatch.setattr(triton_path, "finds", lambda k, n: True)


def problem(dtype=torch.float64, batch=BATCH, n=N):
    shapes = (batch, D), (n, D), (n,), (n, D)
    return [torch.randn(shape, dtype=dtype, device=DEVICE, requires_grad=True) for shape in shapes]


def agree(fast, slow, leaves, rtol, atol):
    """Same output, and the same gradients of a random projection of it."""
    torch.testing.assert_close(fast, slow, rtol=rtol, atol=atol)
    push = torch.randn_like(slow)
    for got, want in zip(
        *(torch.autograd.grad(out, leaves, push, retain_graph=True) for out in (fast, slow)), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


DTYPES = [torch.float32] if DEVICE == "cuda" else [torch.float64, torch.float32]
CLOSE = {torch.float64: {"rtol": 1e-9, "atol": 1e-11}, torch.float32: {"rtol": 1e-4, "atol": 1e-4}}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("signed", [False, True])
def test_group_maxima_are_those_of_the_full_product(dtype, signed):
    x, weight, bias, _ = (leaf.detach() for leaf in problem(dtype))
    u = reference.preactivations(x, weight, bias)
    u = torch.nn.functional.pad(u.abs() if signed else u, (0, -N % GROUP), value=-torch.inf)
    found = triton_kernels.group_maxima(x, weight, bias, signed)
    torch.testing.assert_close(found, u.view(BATCH, -1, GROUP).amax(2), **CLOSE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_autoencoder_selected_by_the_kernels_equals_the_reference(dtype):
    x, weight, bias, W_dec = leaves = problem(dtype)
    fast, slow = ops.encode_topk(x, weight, bias, 1), reference.encode_topk(x, weight, bias, 1)
    agree(fast.dense(N), slow.dense(N), [x, weight, bias], **CLOSE[dtype])
    agree(ops.decode(fast, W_dec), reference.decode(slow, W_dec), leaves, **CLOSE[dtype])


@pytest.mark.parametrize("k", [1, 5])
def test_the_k_largest_are_found_wherever_they_lie(k):
    x, weight, bias, _ = (leaf.detach() for leaf in problem(DTYPES[0]))
    bias[32 : 32 + k] += 50  # side by side, in one group or a few
    indices, values = triton_path.find(x, weight, bias, k)
    u = reference.preactivations(x, weight, bias)
    torch.testing.assert_close(values.sort(1).values, u.topk(k).values.sort(1).values, **CLOSE[DTYPES[0]])
    torch.testing.assert_close(u.gather(1, indices), values, **CLOSE[DTYPES[0]])
    assert all(len(set(row)) == k for row in indices.tolist())


def test_signed_codes_keep_their_sign_and_gradients():
    x, weight, bias, W_dec = leaves = problem(DTYPES[0])
    code = ops.pick(x, weight, bias, Magnitudes(1))
    u = reference.preactivations(x, weight, bias)
    assert torch.equal(code.indices, u.abs().topk(1).indices) and (code.values < 0).any()
    slow = Code(u.gather(1, code.indices), code.indices)
    agree(ops.decode(code, W_dec), reference.decode(slow, W_dec), leaves, **CLOSE[DTYPES[0]])


def test_ties_keep_k_different_ones():
    indices, values = triton_path.find(
        torch.ones(2, D, device=DEVICE), torch.ones(N, D, device=DEVICE), torch.zeros(N, device=DEVICE), 3
    )
    assert (values == D).all() and all(len(set(row)) == 3 for row in indices.tolist())


def test_autocast_looks_in_bfloat16_and_decides_in_full():
    x, weight, bias, _ = problem(torch.float32, n=600)  # 17 of 75 groups are looked at again
    with torch.autocast(DEVICE, torch.bfloat16):
        code = ops.encode_topk(x, weight, bias, 1)
    slow = reference.encode_topk(x, weight, bias, 1)
    assert code.values.dtype == torch.float32
    torch.testing.assert_close(code.dense(600), slow.dense(600), rtol=1e-4, atol=1e-4)
    exact = reference.preactivations(x, weight, bias).view(BATCH, -1, GROUP).amax(2)
    low = triton_kernels.group_maxima(x, weight, bias, low=True)
    torch.testing.assert_close(
        low, exact, rtol=0, atol=0.4
    )  # 2 ** -7 of factors' products: cards round, the interpreter cuts
    assert (low - exact).abs().max() > 1e-4


def test_everything_may_be_strided():
    x = torch.randn(D, BATCH, device=DEVICE, dtype=DTYPES[0]).T
    weight = torch.randn(D, N, device=DEVICE, dtype=DTYPES[0]).T
    bias = torch.randn(2 * N, device=DEVICE, dtype=DTYPES[0])[::2]
    fast, slow = ops.encode_topk(x, weight, bias, 1), reference.encode_topk(x, weight, bias, 1)
    torch.testing.assert_close(fast.dense(N), slow.dense(N), **CLOSE[DTYPES[0]])
    torch.testing.assert_close(ops.decode(fast, weight), reference.decode(slow, weight), **CLOSE[DTYPES[0]])


@pytest.mark.parametrize("slots", [1, 4])
def test_a_latent_that_every_row_has_is_summed_over_all_of_them(slots):
    indices = torch.randint(N, (BATCH, slots), device=DEVICE)
    indices[:, 0] = 7
    values, rows = torch.randn(BATCH, slots, device=DEVICE), torch.randn(BATCH, D, device=DEVICE)
    found = triton_path.transposed_sums(values, indices, rows, N)
    torch.testing.assert_close(found, Code(values, indices).dense(N).T @ rows, rtol=1e-4, atol=1e-4)
    assert torch.equal(found, triton_path.transposed_sums(values, indices, rows, N))


def test_sorting_is_done_once_and_again_when_the_indices_change():
    indices = torch.randint(N, (BATCH, 3), device=DEVICE)
    first = triton_path.by_latent(indices, N)
    assert triton_path.by_latent(indices, N) is first
    assert triton_path.by_latent(indices, N + 1) is not first
    indices.add_(1).remainder_(N)
    values, rows = torch.randn(BATCH, 3, device=DEVICE), torch.randn(BATCH, D, device=DEVICE)
    found = triton_path.transposed_sums(values, indices, rows, N)
    torch.testing.assert_close(found, Code(values, indices).dense(N).T @ rows, rtol=1e-4, atol=1e-4)


def test_a_training_step_with_auxk_has_the_gradients_of_the_other_path(monkeypatch):
    x = torch.randn(BATCH, D, device=DEVICE)
    dead = torch.arange(0, N, 2, device=DEVICE)
    gradients = []
    for forced in (True, False):
        monkeypatch.setattr(triton_path, "FORCED", forced and DEVICE == "cpu")
        monkeypatch.setattr(triton_path, "serves", triton_path.serves if forced else lambda like: False)
        sae = TopK(N, 1).build(x, x.mean(0), 0)
        loss = Objective({"auxk": Weighted(auxk, 1.0)})(sae, x, dead)
        assert loss.terms["auxk"] > 0
        loss.total.backward()
        gradients.append([p.grad for p in sae.parameters()])
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_kernels_are_taken_by_themselves_on_cuda_only(monkeypatch):
    monkeypatch.setattr(triton_path, "FORCED", False)
    like = torch.zeros(1, device=DEVICE)
    assert triton_path.serves(like) == (DEVICE == "cuda")
    assert not triton_path.serves(like.double())
    assert sparse.has_bags(torch.zeros(1)) and vsae.ops is ops
