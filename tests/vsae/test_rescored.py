"""Selection at low precision: exact values and gradients, and trusted only as long as it finds the same latents."""

import pytest
import torch
import torch.nn.functional as F

import vsae
from vsae import ops
from vsae.dictionaries import Free
from vsae.encoders import Linear
from vsae.ops import rescored
from vsae.ops.largest import largest
from vsae.ops.rescored import Trust
from vsae.preactivations import Affine
from vsae.recipes import TopK

D, N, K = 32, 1024, 8
pytestmark = pytest.mark.usefixtures("one_thread")


def structured(rows=600, seed=0):
    """Rows that are sparse sums of the encoder's own directions, as activations are."""
    draw = torch.Generator().manual_seed(seed)
    weight = F.normalize(torch.randn(N, D, generator=draw), dim=1)
    which = torch.rand(rows, N, generator=draw).topk(4).indices
    return (
        (weight[which] * (1 + torch.rand(rows, 4, 1, generator=draw))).sum(1),
        weight,
        0.01 * torch.randn(N, generator=draw),
    )


@pytest.mark.parametrize(("n", "k"), [(1024, 8), (1024, 63), (1024, 64), (1000, 8), (48, 48), (16, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_are_those_of_topk(n, k, dtype):
    u = torch.randn(50, n).to(dtype)
    u[:10] = u[:10].round()  # many ties
    u[10:20, ::16] += 5  # the largest lie in neighbouring groups
    u[20:30, :: max(1, n // 16)] += 5  # in one group
    found = largest(u, k)
    assert all(len(set(row)) == k for row in found.tolist())
    assert torch.equal(u.gather(1, found).sort(1).values, u.topk(k).values.sort(1).values)


def test_values_and_gradients_are_the_exact_selections():
    tensors = [tensor.requires_grad_() for tensor in structured()]
    slow, fast = ops.encode_topk(*tensors, K), rescored.encode_topk(*tensors, K)
    torch.testing.assert_close(fast.dense(N), slow.dense(N))
    weights = torch.randn(600, N)
    got, want = (torch.autograd.grad((code.dense(N) * weights).sum(), tensors) for code in (fast, slow))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


def test_what_bfloat16_cannot_tell_apart_is_told_apart_by_rescoring():
    weight = torch.ones(N, D) + 1e-4 * torch.arange(N)[:, None]  # all equal in bfloat16 but for three steps
    x = torch.full((3, D), 0.5)
    best = rescored.encode_topk(x, weight, torch.zeros(N), K, extra=N - K)
    assert set(best.indices[0].tolist()) == set(range(N - K, N))
    few = rescored.encode_topk(x, weight, torch.zeros(N), K, extra=0)
    assert set(few.indices[0].tolist()) != set(range(N - K, N))


def test_trust_is_kept_on_structured_rows_and_lost_where_entries_are_too_close():
    x, weight, bias = structured()
    good = Trust(every=1)
    for _ in range(5):
        assert good.select(x, weight, bias, K) is not None
    assert good.recall > 0.9995
    close = torch.ones(N, D) + 1e-4 * torch.randperm(N)[:, None]
    bad = Trust(every=1)
    assert bad.select(torch.full((64, D), 0.5), close, torch.zeros(N), K) is None
    assert bad.recall < 0.9995 and int(bad.calls) == 1
    assert bad.select(x, weight, bias, K) is None  # once lost, lost
    pre = Affine(torch.full((64, D), 0.5), close, torch.zeros(N), bad)
    assert set(pre.top(K).indices[0].tolist()) == set(close[:, 0].topk(K).indices.tolist())


def test_it_is_not_asked_where_k_is_no_small_part():
    x, weight, bias = structured()
    assert Trust().select(x, weight[:128], bias[:128], K) is None
    assert Trust().recall == 1


def test_only_training_selects_so():
    x, weight, bias = structured()
    encoder = Linear(weight, bias)
    encoder.trust = Trust()
    atoms = Free(weight)
    assert isinstance(encoder(x, atoms).trust, Trust) and encoder.eval()(x, atoms).trust is None
    assert encoder.fold(torch.ones(D), atoms).trust is None
    assert set(encoder.state_dict()) == {"weight", "bias", "trust.found", "trust.wanted", "trust.calls"}


def test_training_ends_where_exact_selection_ends(tmp_path):
    x, _, _ = structured(4096)
    found = {}
    for selection in ("exact", "rescored"):
        config = vsae.TrainConfig(epochs=20, batch_size=512, lr=2e-3, tracker="none", device="cpu", selection=selection)
        source = vsae.TensorSource(x[:3584])
        run = vsae.train(source, TopK(N, K), tmp_path / selection, config, vsae.TensorSource(x[3584:]), progress=False)
        found[selection] = run.meta["metrics"]["val"]["nmse"]
        assert ("selection_recall" in run.meta["training"]["last_window"]) == (selection == "rescored")
    assert found["rescored"] == pytest.approx(found["exact"], rel=1e-3)
