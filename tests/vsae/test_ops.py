"""Everything in `vsae.ops` against `vsae.ops.reference` in float64: values and all gradients."""

import pytest
import torch
from torch.autograd import gradcheck

from vsae import ops
from vsae.code import Code
from vsae.ops import reference, sparse, triton_path

BATCH, D, N = 7, 5, 64
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=["bags", "gathers", "dense", "triton"])
def products(request, monkeypatch):
    """The four ways a product can be computed, forced; chunks of two rows, so that there are several. Triton's kernels in its interpreter."""
    monkeypatch.setattr(sparse, "CHUNK", {"cpu": 2 * N})
    monkeypatch.setattr(sparse, "WIDE", 10**6 if request.param == "dense" else 1)
    if request.param == "gathers":
        monkeypatch.setattr(sparse, "has_bags", lambda like: False)
    if request.param == "triton" and not torch.cuda.is_available():
        monkeypatch.setattr(triton_path, "FORCED", True)
    return request.param


def problem(dtype=torch.float64, batch=BATCH, n=N):
    """x, weight, bias and W_dec, all leaves that want gradients."""
    shapes = (batch, D), (n, D), (n,), (n, D)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def agree(fast, slow, leaves, rtol=1e-9, atol=1e-11):
    """Same output, and the same gradients of a random projection of it."""
    torch.testing.assert_close(fast, slow, rtol=rtol, atol=atol)
    push = torch.randn_like(slow)
    got = torch.autograd.grad(fast, leaves, push, retain_graph=True)
    want = torch.autograd.grad(slow, leaves, push, retain_graph=True)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=rtol, atol=atol)


def test_a_code_one_can_check_by_hand():
    weight = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [1, 1]])
    code = ops.encode_topk(torch.tensor([[2.0, 1], [-3, 0]]), weight, torch.tensor([0.0, 0, 0, -0.5]), 2)
    torch.testing.assert_close(code.dense(4), torch.tensor([[2.0, 0, 0, 2.5], [0, 0, 3, 0]]))
    torch.testing.assert_close(ops.decode(code, weight), torch.tensor([[4.5, 2.5], [-3, 0]]))


@pytest.mark.parametrize("k", [1, 3, 20, N])
def test_topk_autoencoder_equals_the_reference(products, k):
    x, weight, bias, W_dec = leaves = problem()
    fast, slow = ops.encode_topk(x, weight, bias, k), reference.encode_topk(x, weight, bias, k)
    agree(fast.dense(N), slow.dense(N), [x, weight, bias])
    agree(ops.decode(fast, W_dec), reference.decode(slow, W_dec), leaves)


@pytest.mark.parametrize("shift", [-3.0, -1.0, 0.0])
def test_thresholds_equal_the_reference_for_few_and_for_many_active_latents(products, shift):
    x, weight, bias, W_dec = leaves = problem()
    bias = (bias + shift).detach().requires_grad_()
    leaves[2] = bias
    for threshold in (torch.tensor(0.0).double(), torch.randn(N).double()):
        fast, slow = (f.encode_above(x, weight, bias, threshold) for f in (ops, reference))
        agree(ops.decode(fast, W_dec), reference.decode(slow, W_dec), leaves)
        torch.testing.assert_close(fast.dense(N), slow.dense(N))


def test_few_active_latents_make_a_narrow_code_and_many_a_full_one():
    x, weight, bias, _ = problem()
    zero = torch.zeros((), dtype=torch.float64)
    assert ops.encode_above(x, weight, bias - 4, zero).values.shape[1] <= N // sparse.WIDE
    assert ops.encode_above(x, weight, bias, zero).is_full(N)


def test_picked_entries_keep_their_sign(products):
    x, weight, bias, W_dec = leaves = problem()
    code = ops.pick(x, weight, bias, lambda u: u.abs().topk(3).indices)
    assert (code.values < 0).any()
    slow = Code(reference.entries(x, weight, bias, code.indices), code.indices)
    agree(code.values, slow.values, [x, weight, bias])
    agree(ops.decode(code, W_dec), reference.decode(slow, W_dec), leaves)


def test_entries_are_the_same_given_or_computed(products):
    x, weight, bias, _ = problem()
    indices = torch.randint(N, (BATCH, 4))
    known = reference.entries(x, weight, bias, indices)
    agree(ops.entries(x, weight, bias, indices, known.detach()), known, [x, weight, bias])
    agree(
        ops.entries(x, weight, bias, indices), reference.entries(x, weight, bias, indices), [x, weight, bias], atol=1e-9
    )


def test_gradients_by_finite_differences(products):
    x, weight, bias, W_dec = problem(batch=3, n=16)
    indices = torch.randint(16, (3, 2))
    assert gradcheck(lambda *a: ops.entries(*a, indices), (x, weight, bias))
    assert gradcheck(lambda v, W: ops.decode(Code(v, indices), W), (torch.randn(3, 2).double().requires_grad_(), W_dec))


def test_rows_without_a_positive_latent_are_empty_and_push_nothing(products):
    x, weight, bias, W_dec = leaves = problem()
    bias = (bias - 1e3).detach().requires_grad_()
    code = ops.encode_topk(x, weight, bias, 3)
    assert (code.values == 0).all()
    out = ops.decode(code, W_dec)
    assert (out == 0).all()
    for grad in torch.autograd.grad(out.sum(), [x, weight, bias, leaves[3]]):
        assert (grad == 0).all()
    assert (ops.encode_above(x, weight, bias, torch.zeros(()).double()).dense(N) == 0).all()


def test_an_empty_batch_is_an_empty_code(products):
    x, weight, bias, W_dec = problem(batch=0)
    for code in (
        ops.encode_topk(x, weight, bias, 3),
        ops.encode_above(x, weight, bias, torch.zeros(()).double()),
    ):
        assert len(code.values) == len(code.indices) == 0
        out = ops.decode(code, W_dec)
        assert out.shape == (0, D)
        assert (torch.autograd.grad(out.sum(), W_dec)[0] == 0).all()


def test_dead_latents_get_exactly_zero_gradients(products):
    x, weight, bias, W_dec = problem()
    dead = torch.arange(0, N, 2)
    bias = bias.detach().index_fill(0, dead, -1e3).requires_grad_()
    code = ops.encode_topk(x, weight, bias, 3)
    assert (code.counts(N)[dead] == 0).all() and code.counts(N).sum() == (code.values != 0).sum() > 0
    for grad in torch.autograd.grad(ops.decode(code, W_dec).square().sum(), [weight, bias, W_dec]):
        assert (grad[dead] == 0).all() and (grad != 0).any()


def test_ties_keep_k_of_the_equal_ones():
    x = torch.ones(1, D)
    code = ops.encode_topk(x, torch.ones(N, D), torch.zeros(N), 3)
    assert code.values.tolist() == [[D, D, D]] and len(set(code.indices[0].tolist())) == 3


@pytest.mark.parametrize("rows", [0, 1, 6])
def test_counts_are_those_of_the_matrix(rows):
    values = torch.randn(rows, N) * (torch.rand(rows, N) < 0.3)
    order = torch.randperm(N)
    for code in (
        Code.full(values),
        Code(values, order.expand(rows, N)),
        Code(values[:, :4], order[:4].repeat(rows, 1)),
    ):
        assert torch.equal(code.counts(N), (code.dense(N) != 0).sum(0))


def test_an_index_twice_in_a_row_counts_twice(products):
    W_dec = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    values = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    code = Code(values, torch.tensor([[4, 4, 9], [0, 0, 0]]))
    agree(ops.decode(code, W_dec), reference.decode(code, W_dec), [values, W_dec])


def test_non_contiguous_inputs(products):
    x = torch.randn(D, BATCH).double().T.requires_grad_()
    weight = torch.randn(D, N).double().T.requires_grad_()
    bias = torch.randn(2 * N).double()[::2].requires_grad_()
    W_dec = torch.randn(D, N).double().T.requires_grad_()
    fast, slow = ops.encode_topk(x, weight, bias, 3), reference.encode_topk(x, weight, bias, 3)
    agree(ops.decode(fast, W_dec), reference.decode(slow, W_dec), [x, weight, bias, W_dec])
    transposed = Code(fast.values.T.contiguous().T, fast.indices.T.contiguous().T)
    agree(ops.decode(transposed, W_dec), reference.decode(slow, W_dec), [x, weight, bias, W_dec])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
def test_lower_precision_stays_near_float64(products, dtype, tolerance):
    leaves = problem()
    low = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
    exact = [leaf.detach().double().requires_grad_() for leaf in low]
    code = ops.encode_topk(*low[:3], 3)
    assert code.values.dtype == dtype
    slow = Code(reference.entries(*exact[:3], code.indices).relu(), code.indices)
    fast, slow = ops.decode(code, low[3]), reference.decode(slow, exact[3])
    torch.testing.assert_close(fast.double(), slow, rtol=tolerance, atol=tolerance * 5)
    push = torch.randn_like(slow).to(dtype)
    for got, want in zip(
        torch.autograd.grad(fast, low, push), torch.autograd.grad(slow, exact, push.double()), strict=True
    ):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance * 20)


def test_autocast_selects_in_low_precision_and_computes_in_full():
    x, weight, bias, W_dec = problem(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        codes = [ops.encode_topk(x, weight, bias, 3), ops.encode_above(x, weight, bias - 4, torch.tensor(0.0))]
        outputs = [ops.decode(code, W_dec) for code in codes]
    for code, out in zip(codes, outputs, strict=True):
        assert code.values.dtype == out.dtype == torch.float32
    exact = reference.entries(x, weight, bias, codes[0].indices).relu()
    torch.testing.assert_close(codes[0].values, exact, rtol=1e-5, atol=1e-5)


def test_backward_keeps_nothing_of_size_batch_times_latents():
    x, weight, bias, W_dec = problem(torch.float32, batch=64, n=1024)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        ops.decode(ops.encode_topk(x, weight, bias, 4), W_dec).square().sum()
    assert max(kept) <= weight.numel() < 64 * 1024


def test_a_full_code_is_recognised_only_when_it_is_one():
    values = torch.randn(3, 4)
    assert Code.full(values).is_full(4)
    permuted = Code(values, torch.tensor([1, 0, 2, 3]).expand(3, 4))
    assert not permuted.is_full(4) and not Code(values, torch.arange(4).repeat(3, 1)).is_full(4)
    torch.testing.assert_close(permuted.dense(4), values[:, [1, 0, 2, 3]])
    torch.testing.assert_close(ops.decode(permuted, torch.eye(4)), values[:, [1, 0, 2, 3]])
