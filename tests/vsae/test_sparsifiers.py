"""Who speaks: known codes, then what holds for any batch, then what a person can get wrong."""

from functools import partial

import pytest
import torch

from vsae.ops import reference
from vsae.preactivations import Affine
from vsae.sparsifiers import AbsTopK, BatchTopK, GroupMax, ReLU, Threshold, TopK

N = 40
pytestmark = pytest.mark.usefixtures("one_thread")


def given(u):
    """Pre-activations that are just u."""
    u = torch.as_tensor(u, dtype=torch.float32)
    return Affine(u, torch.eye(u.shape[1]), torch.zeros(u.shape[1]))


def test_codes_one_can_check_by_hand():
    u = [[3.0, -1, 2, 1], [0.5, -2, -3, -4], [-1, -3, -2, 0]]
    wants = {
        ReLU(): [[3.0, 0, 2, 1], [0.5, 0, 0, 0], [0, 0, 0, 0]],
        TopK(2): [[3.0, 0, 2, 0], [0.5, 0, 0, 0], [0, 0, 0, 0]],
        AbsTopK(1): [[3.0, 0, 0, 0], [0, 0, 0, -4], [0, -3, 0, 0]],
        AbsTopK(4): [[3.0, -1, 2, 1], [0.5, -2, -3, -4], [-1, -3, -2, 0]],
        BatchTopK(1): [[3.0, 0, 2, 1], [0, 0, 0, 0], [0, 0, 0, 0]],
        GroupMax(2): [[3.0, 0, 2, 0], [0.5, 0, 0, 0], [0, 0, 0, 0]],
        GroupMax(3): [[3.0, 0, 2, 0], [0.5, 0, 0, 0], [0, 0, 0, 0]],  # groups of two
        Threshold(torch.tensor(1.0)): [[3.0, 0, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        Threshold(torch.tensor([5.0, 0, 0, 1])): [[0, 0, 2.0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
    }
    for sparsifier, want in wants.items():
        assert sparsifier(given(u)).dense(4).tolist() == want, sparsifier


def same_values_and_gradients(sparsifier, mask, sign=torch.relu):
    """A sparsifier's code is sign(u) where `mask(u)`, with the gradients of the dense form, in float64."""
    leaves = [each.double().requires_grad_() for each in (torch.randn(24, 8), torch.randn(N, 8), torch.randn(N))]
    fast, u = sparsifier(Affine(*leaves)).dense(N), leaves[0] @ leaves[1].T + leaves[2]
    slow = sign(u) * mask(u.detach())
    torch.testing.assert_close(fast, slow)
    push = torch.randn_like(slow)
    for got, want in zip(torch.autograd.grad(fast, leaves, push), torch.autograd.grad(slow, leaves, push), strict=True):
        torch.testing.assert_close(got, want)


def top(score, k):
    """1 at the k largest of each row."""
    return torch.zeros_like(score).scatter(1, score.topk(k, dim=1).indices, 1)


@pytest.mark.parametrize("k", [1, 3, N])
def test_abstopk_is_its_dense_form(k):
    same_values_and_gradients(AbsTopK(k), lambda u: top(u.abs(), k), sign=lambda u: u)


@pytest.mark.parametrize("k", [1, 4, 9, N])
def test_groupmax_is_its_dense_form(k):
    groups = torch.arange(N) // -(-N // k)

    def mask(u):
        best = torch.stack([u[:, groups == group].amax(1) for group in range(int(groups.max()) + 1)], 1)
        return u == best[:, groups]

    same_values_and_gradients(GroupMax(k), mask)
    tied = GroupMax(1)(given([[2.0, 2.0, 1.0]]))
    assert tied.dense(3).tolist() == [[2, 0, 0]]


def test_abstopk_turned_round_is_its_negative_and_positive_ones_are_topk():
    u = torch.randn(6, N)
    assert torch.equal(AbsTopK(5)(given(-u)).dense(N), -AbsTopK(5)(given(u)).dense(N))
    assert torch.equal(AbsTopK(5)(given(u.abs())).dense(N), TopK(5)(given(u.abs())).dense(N))
    tied = AbsTopK(2)(given([[1.0, -1, 1, -1]])).dense(4)
    assert int((tied != 0).sum()) == 2 and AbsTopK(2).signed and not TopK(2).signed


def test_batchtopk_keeps_the_largest_of_the_batch_however_they_are_spread():
    u = torch.randn(16, N)
    u[3] += 100  # one row that all latents speak for: its candidates must be widened, twice
    u[5] += 20
    x, weight, bias = u.double().requires_grad_(), torch.eye(N).double().requires_grad_(), torch.zeros(N).double()
    bias.requires_grad_()
    fast = BatchTopK(5)(Affine(x, weight, bias))
    slow = reference.encode_batchtopk(x, weight, bias, 5)
    assert int((fast.values != 0).sum()) == 16 * 5
    torch.testing.assert_close(fast.dense(N), slow.dense(N))
    push = torch.randn(16, N).double()
    for leaf in (x, weight, bias):
        got, want = (torch.autograd.grad(c.dense(N), leaf, push, retain_graph=True)[0] for c in (fast, slow))
        torch.testing.assert_close(got, want)


def test_batchtopk_of_one_row_is_topk():
    for _ in range(10):
        pre = given(torch.randn(1, N))
        assert torch.equal(BatchTopK(6)(pre).dense(N), TopK(6)(pre).dense(N))


def test_batchtopk_with_too_few_positive_entries_keeps_just_those():
    u = -torch.rand(4, N)
    u[1, 7] = 2.0
    code = BatchTopK(3)(given(u))
    assert code.dense(N).nonzero().tolist() == [[1, 7]]
    silent = BatchTopK(3)
    assert (silent(given(-torch.rand(4, N))).values == 0).all()
    assert silent.threshold == 0 and silent.updates == 0


def test_threshold_is_a_mean_without_bias_at_the_start_and_a_running_one_later():
    sparsifier = BatchTopK(1, momentum=0.75)
    smallest = [2.0, 4.0, 6.0, 8.0, 16.0]
    for value in smallest:
        sparsifier(given([[value, -1.0], [value + 1, -1.0]]))
    assert sparsifier.threshold.item() == pytest.approx(0.75 * 5.0 + 0.25 * 16.0)
    sparsifier.eval()(given([[100.0, 90.0]]))
    assert sparsifier.threshold.item() == pytest.approx(7.75)


def test_inference_is_as_sparse_as_training_and_survives_saving():
    encoder = partial(Affine, weight=torch.randn(256, 16) / 4, bias=-torch.rand(256))
    sparsifier = BatchTopK(12)
    train = [sparsifier(encoder(torch.randn(512, 16))) for _ in range(60)]
    l0_train = sum(int((code.values != 0).sum()) for code in train) / (60 * 512)
    loaded = BatchTopK(12)
    loaded.load_state_dict(sparsifier.state_dict())
    fresh = encoder(torch.randn(4096, 16))
    code = loaded.eval()(fresh)
    l0_eval = int((code.values != 0).sum()) / 4096
    assert l0_train == 12 and abs(l0_eval / l0_train - 1) < 0.05
    fixed = sparsifier.inference()
    assert isinstance(fixed, Threshold) and torch.equal(fixed(fresh).dense(256), code.dense(256))


@pytest.mark.parametrize(
    "sparsifier",
    [ReLU(), TopK(4), AbsTopK(4), GroupMax(4), Threshold(torch.tensor(0.3)), BatchTopK(4).eval(), BatchTopK(4)],
    ids=repr,
)
def test_a_row_hears_of_the_others_only_where_it_says_so(sparsifier):
    encoder = partial(Affine, weight=torch.randn(N, 8), bias=torch.zeros(N))
    x = torch.randn(6, 8)
    other = torch.cat([x[:1], 50 * torch.randn(5, 8)])
    same = torch.equal(sparsifier(encoder(x)).dense(N)[0], sparsifier(encoder(other)).dense(N)[0])
    assert same is not sparsifier.batch_dependent


def test_eval_and_no_grad_leave_the_state_alone():
    sparsifier = BatchTopK(2).eval()
    before = {name: value.clone() for name, value in sparsifier.state_dict().items()}
    sparsifier(given(torch.randn(8, N)))
    assert all(torch.equal(before[name], value) for name, value in sparsifier.state_dict().items())


@pytest.mark.parametrize("sparsifier", [TopK(N + 1), TopK(0), AbsTopK(N + 1), GroupMax(0), BatchTopK(N + 1)], ids=repr)
def test_a_k_that_cannot_be_is_answered_with_the_range(sparsifier):
    with pytest.raises(ValueError, match=rf"this SAE has {N} latents: choose 1 <= k <= {N}"):
        sparsifier(given(torch.randn(2, N)))
