"""Selection at low precision: exact values and gradients, and trusted only as long as it finds the same latents."""

from threading import Thread

import pytest
import torch
import torch.nn.functional as F

import vsae
from vsae import ops
from vsae.dictionaries import Free
from vsae.encoders import Linear
from vsae.ops import coarse as forms
from vsae.ops import rescored
from vsae.ops.coarse import coarse
from vsae.ops.largest import MOST_PLACES, Magnitudes, largest, roughly
from vsae.ops.rescored import Trust
from vsae.ops.scratch import scratch
from vsae.preactivations import Affine
from vsae.recipes import TopK
from vsae.sae import SAE
from vsae.sparsifiers import TopK as TopKRule

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


@pytest.mark.parametrize(("n", "k"), [(1024, 8), (1000, 8), (48, 48), (16, 1), (MOST_PLACES, 64), (MOST_PLACES + 1, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
def test_a_rough_look_finds_all_that_are_larger_by_a_thousandth_and_every_positive_number(n, k, dtype):
    u = torch.randn(50, n, generator=torch.Generator().manual_seed(n))
    u[:10, ::16] += 5
    u[10:20] -= 3  # fewer above zero than are looked for, mostly
    u = (1e6 * u).to(dtype)
    before = u.clone()
    found = largest(u, k, roughly)
    assert torch.equal(u, before)
    assert all(len(set(row)) == k for row in found.tolist())
    got, least = u.double().gather(1, found), u.double().topk(k).values[:, -1:]
    assert ((got >= 0.998 * least) | (least <= 0)).all()
    positive = (u > 0).sum(1).clamp(max=k)
    assert torch.equal((got > 0).sum(1), positive)


FORMS = ("int8", "bf16")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_the_exact_selections(form, dtype):
    tensors = [tensor.to(dtype).requires_grad_() for tensor in structured()]
    slow, fast = ops.encode_topk(*tensors, K), rescored.encode_topk(*tensors, K, form)
    torch.testing.assert_close(fast.dense(N), slow.dense(N))
    weights = torch.randn(600, N, dtype=dtype)
    got, want = (torch.autograd.grad((code.dense(N) * weights).sum(), tensors) for code in (fast, slow))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("form", FORMS)
def test_what_low_precision_cannot_tell_apart_is_told_apart_by_rescoring(form):
    weight = torch.ones(N, D) + 1e-4 * torch.arange(N).flip(0)[:, None]  # a few steps of bfloat16, a dozen of int8
    x = torch.full((3, D), 0.5)
    best = rescored.encode_topk(x, weight, torch.zeros(N), K, form, extra=N - K)
    assert set(best.indices[0].tolist()) == set(range(K))
    few = rescored.encode_topk(x, weight, torch.zeros(N), K, form, extra=0)
    assert set(few.indices[0].tolist()) != set(range(K))


def test_int8_numbers_are_those_of_the_formula():
    x, weight, bias = structured(700)  # two chunks, the second not full
    x = x * torch.logspace(-3, 3, 700)[:, None]  # each row has its own scale
    bias = 3 * bias
    got = torch.cat([u.clone() for u in coarse(x, weight, bias, "int8")])
    s_x, s_W = x.abs().amax(1, keepdim=True).double() / 127, weight.abs().max().double() / 127
    q_x, q_W = ((t.double() / s).round() for t, s in ((x, s_x), (weight, s_W)))
    exact = q_x @ q_W.T + bias.double() / (s_x * s_W)
    middle = slice(300, 400)  # where a row's scale is near the batch's
    assert (got - exact)[middle].abs().max() < 0.02 * exact[middle].abs().max()
    spoken = (x.double() @ weight.double().T + bias)[middle]
    assert (got * s_x * s_W)[middle].sub(spoken).abs().max() < 0.03 * spoken.abs().max()


@pytest.mark.parametrize("form", FORMS)
def test_the_largest_in_magnitude_keep_their_signs(form):
    tensors = [tensor.requires_grad_() for tensor in structured()]
    choose = Magnitudes(K)
    slow, fast = ops.pick(*tensors, choose), rescored.encode_topk(*tensors, K, form, signed=True)
    assert (fast.values < 0).any()
    torch.testing.assert_close(fast.dense(N), slow.dense(N))
    weights = torch.randn(600, N)
    got, want = (torch.autograd.grad((code.dense(N) * weights).sum(), tensors) for code in (fast, slow))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)
    trust = Trust((form,), every=1)
    torch.testing.assert_close(Affine(*tensors, trust).pick(choose).dense(N), slow.dense(N))
    assert int(trust.calls) == 1 and trust.form == form


@pytest.mark.parametrize("form", FORMS)
def test_edges(form):
    x, weight, bias = structured(5)
    ordered = torch.arange(N) / N
    silent = rescored.encode_topk(torch.zeros(3, D), weight, ordered, K, form)  # the bias alone decides
    assert set(silent.indices[0].tolist()) == set(range(N - K, N))
    assert rescored.encode_topk(x[:0], weight, bias, K, form).values.shape == (0, K)
    assert not rescored.encode_topk(x, torch.zeros(N, D), torch.zeros(N), K, form).values.any()
    loud = bias.index_fill(0, torch.tensor([7]), 1e9)  # no overflow turns the loudest into the faintest
    assert (rescored.encode_topk(x, weight, loud, K, form).indices == 7).any(1).all()
    turned = rescored.encode_topk(x.T.contiguous().T, weight.T.contiguous().T, bias, K, form)
    torch.testing.assert_close(turned.dense(N), rescored.encode_topk(x, weight, bias, K, form).dense(N))
    ties = rescored.encode_topk(torch.ones(2, D), torch.ones(N, D), torch.zeros(N), K, form)
    assert all(len(set(row)) == K for row in ties.indices.tolist()) and (ties.values == D).all()


def test_trust_is_kept_on_structured_rows_and_lost_where_entries_are_too_close():
    x, weight, bias = structured()
    good = Trust(FORMS, every=1)
    for _ in range(5):
        assert good.select(x, weight, bias, K) is not None
    assert good.recall > 0.9995 and good.form == "int8"
    close = torch.ones(N, D) + 1e-4 * torch.randperm(N)[:, None]
    bad = Trust(FORMS, every=1)
    assert bad.select(torch.full((64, D), 0.5), close, torch.zeros(N), K) is None
    assert bad.form is None and int(bad.lost) == 2
    assert bad.select(x, weight, bias, K) is None  # once lost, lost
    pre = Affine(torch.full((64, D), 0.5), close, torch.zeros(N), bad)
    assert set(pre.top(K).indices[0].tolist()) == set(close[:, 0].topk(K).indices.tolist())


def test_a_form_that_misses_gives_way_to_the_next():
    """One dimension a hundred times as large as the others takes all of int8's steps, and none of bfloat16's."""
    x, weight, bias = structured()
    weight, x = weight.clone(), x.clone()
    weight[:, 0], x[:, 0] = 0, 100 * x.abs().max()
    trust = Trust(FORMS, every=1)
    code = trust.select(x, weight, bias, K)
    assert trust.form == "bf16" and trust.recall > 0.9995
    torch.testing.assert_close(code.dense(N), ops.encode_topk(x, weight, bias, K).dense(N))
    restored = Trust(FORMS, every=1)
    restored.load_state_dict(trust.state_dict())
    assert restored.form == "bf16"


def test_what_is_fast_is_decided_by_the_processor(monkeypatch):
    def on(vnni, tiles, vectors, maker):
        for name, has in (
            ("_is_vnni_supported", vnni),
            ("_is_amx_tile_supported", tiles),
            ("_is_avx512_bf16_supported", vectors),
        ):
            monkeypatch.setattr(torch.cpu, name, lambda has=has: has)
        monkeypatch.setattr(forms, "processor", lambda: f"vendor_id : {maker}")
        return forms.fast_forms(torch.device("cpu"))

    assert on(False, False, False, "GenuineIntel") == ()
    assert on(True, False, True, "GenuineIntel") == ("int8",)
    assert on(True, True, True, "GenuineIntel") == on(True, False, True, "AuthenticAMD") == ("int8", "bf16")
    assert forms.fast_forms(torch.device("meta")) == ()


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
    assert set(encoder.state_dict()) == {"weight", "bias", "trust.found", "trust.wanted", "trust.calls", "trust.lost"}


def test_a_quick_sae_selects_so_outside_of_training_where_that_is_fast(monkeypatch):
    x, weight, bias = structured()
    sae = SAE.from_weights(weight.T, bias, weight, torch.zeros(D), TopKRule(K))
    exact = sae.encode(x)
    monkeypatch.setattr("vsae.sae.fast_forms", lambda device: ())
    assert sae.quick().encoder.trust is None
    monkeypatch.setattr("vsae.sae.fast_forms", lambda device: FORMS)
    torch.testing.assert_close(sae.quick().encode(x).dense(N), exact.dense(N))
    assert int(sae.encoder.trust.calls) == 1


def test_working_memory_is_used_again_but_never_twice_at_once():
    def block(rows, dtype=torch.float32):
        return scratch((rows, 8), dtype, torch.device("cpu"))

    with block(4) as outer:
        outer.fill_(1)
        with block(4) as inner:
            inner.fill_(2)
        assert (outer == 1).all() and outer.shape == (4, 8)
    kept = outer.data_ptr()
    with pytest.raises(RuntimeError), block(2, torch.int32) as smaller:
        assert smaller.data_ptr() == kept and smaller.dtype == torch.int32
        raise RuntimeError
    with block(2) as again:
        assert again.data_ptr() == kept
    with block(400) as larger:
        assert larger.shape == (400, 8)
    found = []
    thread = Thread(target=lambda: found.append(ops.encode_topk(*structured(), K)))
    with block(400) as mine:
        mine.fill_(3)
        thread.start()
        thread.join()
        assert (mine == 3).all() and len(found) == 1


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
