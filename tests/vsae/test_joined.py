"""Dictionaries of rows that belong together: pairs of modalities, two ends of a layer, several sites."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import vsae
from vsae import alignment as alignments
from vsae.activations import JoinedSource
from vsae.dictionaries import Free
from vsae.paired import AlignedDistance, Distance, PairedDistance, TwoDecoders, closeness, mapped, view
from vsae.recipes import VLSAE, Crosscoder, TopK, TranscoderTopK
from vsae.recipes.joined import site_norms
from vsae.run import Run
from vsae.sae import SAE
from vsae.sparsifiers import TopK as TopKPart

D, N = 12, 30
NO_ATOMS = Free(torch.eye(1))
CONFIG = vsae.TrainConfig(epochs=2, batch_size=128, lr=3e-3, tracker="none", device="cpu", check_every=10, eval_every=0)
pytestmark = pytest.mark.usefixtures("one_thread")


def pairs(rows=4096, gap=0.0, seed=0, concepts=40, d=16):
    """spec/papers.md section 5: shared unit directions; x_v = sum + g, x_l = sum - g, 10 % noise. Also which concepts each row has."""
    draw = torch.Generator().manual_seed(seed)
    world = torch.Generator().manual_seed(99)
    atoms = F.normalize(torch.randn(concepts, d, generator=world), dim=1)
    g = gap * F.normalize(torch.randn(d, generator=world), dim=0)
    which = torch.rand(rows, concepts, generator=draw).topk(3).indices
    whole = atoms[which].sum(1)
    noise = 0.1 * torch.randn(2, rows, d, generator=draw)
    return whole + g + noise[0], whole - g + noise[1], which


def joined(first: Tensor, second: Tensor):
    return JoinedSource(vsae.TensorSource(first), vsae.TensorSource(second))


def test_rows_stay_together_through_shuffling_epochs_and_resuming():
    source = joined(torch.arange(50.0)[:, None].repeat(1, 2), 100 + torch.arange(50.0)[:, None])
    assert source.columns == (2, 1) and source.d_model == 3 and source.n_rows == 50
    batches = source.batches(16, seed=3)
    seen = [next(batches).values for _ in range(5)]
    state = batches.state()
    assert all(torch.equal(rows[:, 0] + 100, rows[:, 2]) for rows in seen)
    following = next(batches).values
    assert torch.equal(next(source.batches(16, 3, state)).values, following)
    assert torch.equal(source.sample_rows(20, 0)[:, 0] + 100, source.sample_rows(20, 0)[:, 2])
    assert sum(len(batch.values) for batch in source.batches(16, 3, epochs=2)) == 100
    moments = source.moments()
    torch.testing.assert_close(moments.mean, torch.tensor([24.5, 24.5, 124.5]).double())


def test_sources_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="source 2 has 40 rows and the first 50"):
        joined(torch.randn(50, 2), torch.randn(40, 2))
    with pytest.raises(ValueError, match="1 source was given"):
        JoinedSource(vsae.TensorSource(torch.randn(5, 2)))


# ---- the distance encoder


def test_known_distances():
    encoder = Distance(torch.eye(3, 4))
    x = torch.tensor([[3.0, 0, 0, 0], [-2.0, 0, 0, 0], [0, 0, 0, 0.1]])
    h = encoder(x, NO_ATOMS).at(torch.arange(3).expand(3, 3))
    orthogonal = 2 - math.sqrt(2)
    want = torch.tensor([[2, orthogonal, orthogonal], [0, orthogonal, orthogonal], [orthogonal] * 3])
    torch.testing.assert_close(h, want, atol=2e-6, rtol=0)
    torch.testing.assert_close(encoder(1e3 * x, NO_ATOMS).top(3).values, encoder(x, NO_ATOMS).top(3).values)


def test_the_triangle_bound_holds():
    encoder = Distance(torch.randn(N, D).double())
    a, b = torch.randn(200, D).double(), torch.randn(200, D).double()
    every = torch.arange(N).expand(200, N)
    apart = (encoder(a, NO_ATOMS).at(every) - encoder(b, NO_ATOMS).at(every)).abs().amax(1)
    assert (apart <= (F.normalize(a, dim=1) - F.normalize(b, dim=1)).norm(dim=1) + 1e-9).all()


@pytest.mark.parametrize("k", [1, 5, N])
def test_selection_is_the_slow_one_with_the_same_gradients(k):
    weight, x = torch.randn(N, D).double().requires_grad_(), torch.randn(20, D).double().requires_grad_()
    encoder = Distance(weight)
    code = encoder(x, NO_ATOMS).top(k)
    own = encoder.weight
    h = 2 - (F.normalize(x, dim=1)[:, None] - F.normalize(own, dim=1)).norm(dim=-1)
    values, indices = h.topk(k)
    want = torch.zeros(20, N).double().scatter(1, indices, values)
    torch.testing.assert_close(code.dense(N), want)
    weights = torch.randn(20, N).double()
    got = torch.autograd.grad((code.dense(N) * weights).sum(), [x, own])
    for g, w in zip(got, torch.autograd.grad((want * weights).sum(), [x, own]), strict=True):
        torch.testing.assert_close(g, w)
    above = encoder(x, NO_ATOMS).above(torch.tensor(0.7).double())
    torch.testing.assert_close(above.dense(N), h * (h > 0.7))
    torch.testing.assert_close(encoder(x, NO_ATOMS).pick(lambda u: u.topk(k).indices).dense(N), want)


def test_closeness_ignores_lengths_to_the_last_digits_and_ties_fill_the_k_places():
    """Where the authors' code keeps what is strictly above the k-th value, and so fewer than k."""
    x, encoder = torch.randn(20, D).double(), Distance(torch.randn(N, D).double())
    every = torch.arange(N).expand(20, N)
    torch.testing.assert_close(encoder(1e3 * x, NO_ATOMS).at(every), encoder(x, NO_ATOMS).at(every), atol=1e-14, rtol=0)
    twice = Distance(torch.eye(4).repeat(2, 1))
    code = twice(torch.eye(4)[:1], NO_ATOMS).top(5)  # two at 2, six at 2 - sqrt 2
    assert (code.values > 0).sum() == 5 == len(set(code.indices[0].tolist()))
    assert {0, 4} <= set(code.indices[0].tolist())


def test_a_row_along_an_atom_gives_no_nan():
    weight = torch.eye(3)
    encoder = Distance(weight)
    encoder(weight.clone().requires_grad_(), NO_ATOMS).top(2).values.sum().backward()
    assert encoder.weight.grad.isfinite().all()
    assert closeness(torch.tensor(2.0)) == pytest.approx(2, abs=1e-5)


# ---- VL-SAE


def vl_sae():
    weight = torch.randn(N, D)
    parts = PairedDistance(weight), TopKPart(4), TwoDecoders(torch.randn(N, 2 * D))
    return SAE(*parts, torch.randn(2 * D))


def test_both_sides_go_through_one_encoder_and_their_own_decoder():
    sae = vl_sae()
    v, t = torch.randn(7, D), torch.randn(7, D)
    x_hat, code = sae(torch.cat([v, t], 1))
    assert x_hat.shape == (7, 2 * D) and len(code.values) == 14 and sae.capabilities.modalities == 2
    for side, (x, part) in enumerate([(v, slice(0, D)), (t, slice(D, 2 * D))]):
        alone = view(sae, side)
        torch.testing.assert_close(alone(x).x_hat, x_hat[:, part])
        torch.testing.assert_close(alone.encode(x).dense(N), code.dense(N)[7 * side : 7 * side + 7])
    with pytest.raises(ValueError, match="no side 2"):
        view(sae, 2)


def test_which_image_goes_with_which_text_does_not_matter_to_the_loss():
    """The authors' code shuffles both sides apart; the two reconstructions are summed, so that it is the same loss, with the same gradients."""
    sae, v, t, order = vl_sae(), torch.randn(30, D), torch.randn(30, D), torch.randperm(30)
    objective = VLSAE(N, 4).objective()
    found = []
    for texts in (t, t[order]):
        sae.zero_grad()
        loss = objective(sae, torch.cat([v, texts], 1)).total
        loss.backward()
        found.append([loss.detach(), *(parameter.grad.clone() for parameter in sae.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def jaccard(first, second):
    """Mean over rows of the overlap of the active latents."""
    a, b = (first != 0).double(), (second != 0).double()
    return float(((a * b).sum(1) / (a + b).clamp(max=1).sum(1)).mean())


def share(tmp_path, gap, alignment=None):
    """How far codes of the two sides of new pairs agree: of matched pairs, of mismatched ones, and of matched ones by one linear SAE for both."""
    v, t, _ = pairs(gap=gap)
    source = joined(v, t) if alignment is None else alignments.aligned(joined(v, t), alignment)
    sae = vsae.train(source, VLSAE(n_latents=64, k=6), tmp_path / "vl_sae", CONFIG, progress=False).sae
    single = vsae.train(
        vsae.TensorSource(torch.cat([v, t])), TopK(64, 6), tmp_path / "topk", CONFIG, progress=False
    ).sae
    v, t, _ = pairs(512, gap, seed=1)
    rows = torch.cat([v, t], 1)
    image, text = sae.encode(rows if alignment is None else alignment(rows)).dense(64).chunk(2)
    found = (
        jaccard(image, text),
        jaccard(image, text.roll(1, 0)),
        jaccard(single.encode(v).dense(64), single.encode(t).dense(64)),
    )
    print(
        f"gap {gap}{' aligned' if alignment else ''}: matched {found[0]:.3f}, mismatched {found[1]:.3f}, linear SAE {found[2]:.3f}"
    )
    return found


def test_matched_pairs_share_a_code_that_mismatched_ones_do_not(tmp_path):
    matched, mismatched, linear = share(tmp_path, gap=0.0)
    assert matched > mismatched + 0.3 and abs(matched - linear) < 0.15


def test_a_modality_gap_parts_the_codes_and_an_alignment_joins_them_again(tmp_path):
    matched, _, _ = share(tmp_path / "raw", gap=2.0)
    assert (
        matched < 0.1
    )  # spec/papers.md asks for more of raw rows: they point apart, and so the codes have nothing in common
    alignment = alignments.fit(joined(*pairs(gap=2.0)[:2]), 16, epochs=60, batch_size=256, lr=3e-3)
    matched, mismatched, linear = share(tmp_path / "aligned", 2.0, alignment)
    assert matched > mismatched + 0.3 and matched > linear + 0.3


# ---- alignment


def test_infonce_has_its_known_values():
    eye = torch.eye(8).double()
    torch.testing.assert_close(alignments.infonce(eye, eye), torch.tensor(math.log1p(7 * math.exp(-1 / 0.07))).double())
    assert float(alignments.infonce(eye, eye)) == pytest.approx(4.3741e-06, rel=1e-4)
    same = torch.ones(8, 4).double()
    assert float(alignments.infonce(same, same)) == pytest.approx(math.log(8))
    a, b = torch.randn(9, 5).double(), torch.randn(9, 5).double()
    torch.testing.assert_close(alignments.infonce(a, b), alignments.infonce(b, a))
    torch.testing.assert_close(alignments.infonce(a, b), alignments.infonce(7 * a, b))
    assert alignments.infonce(a, b, normalize=False) != alignments.infonce(7 * a, b, normalize=False)


def test_an_alignment_finds_pairs_among_new_rows_and_survives_saving(tmp_path):
    v, t, _ = pairs(gap=4.0)
    alignment = alignments.fit(joined(v, t[:, :10]), 12, epochs=40, batch_size=256, lr=3e-3)
    alignments.save(alignment, tmp_path)
    v, t, _ = pairs(256, 4.0, seed=1)
    e = alignments.load(tmp_path).encode(alignments.Halves(v, t[:, :10]))
    found = (F.normalize(e.first, dim=1) @ F.normalize(e.second, dim=1).T).argmax(1)
    recall = float((found == torch.arange(256)).double().mean())
    assert recall > 0.5, recall  # floor 1 / 256
    with pytest.raises(FileNotFoundError, match="holds no alignment"):
        alignments.load(tmp_path / "nowhere")


@pytest.mark.parametrize("narrow", [16, 10])
def test_a_vl_sae_aligns_sites_of_two_widths_by_itself(tmp_path, narrow):
    """The second modality's rows are cut to `narrow` dimensions, and point elsewhere (gap): raw codes of pairs have nothing in common."""
    v, t, _ = pairs(gap=2.0)
    recipe = VLSAE(n_latents=64, k=6, align_width=12, align_epochs=60, align_batch_size=256, align_lr=3e-3)
    config = dataclasses.replace(CONFIG, epochs=6)
    val = joined(*(x[:, :width] for x, width in zip(pairs(512, 2.0, seed=1), (16, narrow), strict=False)))
    run = vsae.train(joined(v, t[:, :narrow]), recipe, tmp_path / "run", config, val, progress=False)
    again = Run.load(run.path)
    rows = val.sample_rows(512, 0)
    assert torch.equal(again.sae(rows).x_hat, run.sae(rows).x_hat) and run.meta["metrics"]["val"]["nmse"] < 0.9
    image, text = again.sae.encode(rows).dense(64).chunk(2)
    matched, mismatched = jaccard(image, text), jaccard(image, text.roll(1, 0))
    print(
        f"{narrow}: matched {matched:.3f}, mismatched {mismatched:.3f}, NMSE {run.meta['metrics']['val']['nmse']:.3f}"
    )
    assert matched > mismatched + 0.2
    for side, (half, code) in enumerate(zip(rows.split([16, narrow], 1), (image, text), strict=True)):
        alone = view(again.sae, side)
        torch.testing.assert_close(alone.encode(half).dense(64), code)
        torch.testing.assert_close(alone(half).x_hat, again.sae(rows).x_hat.split([16, narrow], 1)[side])
    e, f = (mapped(view(again.sae, side), half) for side, half in enumerate(rows.split([16, narrow], 1)))
    recall = (F.normalize(e, dim=1) @ F.normalize(f, dim=1).T).argmax(1) == torch.arange(512)
    assert float(recall.double().mean()) > 0.3  # floor 1 / 512
    plain = SAE(PairedDistance(torch.eye(2)), TopKPart(1), TwoDecoders(torch.randn(2, 4)), torch.zeros(4))
    assert mapped(view(plain, 0), torch.randn(3, 2)) is None


def test_an_aligned_encoder_is_the_plain_one_on_aligned_rows():
    alignment = alignments.fit(joined(torch.randn(64, 5), torch.randn(64, 3)), 4, epochs=1)
    maps = [tensor.double() for each in alignment.encoders for tensor in (each.weight, each.bias)]
    weight, x = torch.randn(N, 4).double(), torch.randn(7, 8).double()
    got = AlignedDistance(weight, *maps)(x, NO_ATOMS).pick(lambda u: u.argsort(1))
    want = PairedDistance(weight)(alignment.double()(x), NO_ATOMS).pick(lambda u: u.argsort(1))
    torch.testing.assert_close(got.values, want.values)
    with pytest.raises(ValueError, match="align_lr is 0"):
        VLSAE(align_lr=0.0)


# ---- transcoders and crosscoders


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_learns_a_map_and_survives_saving(tmp_path, skip):
    x = torch.randn(4096, 10, generator=torch.Generator().manual_seed(0)) + 2
    y = 5 * (x @ torch.randn(10, 6, generator=torch.Generator().manual_seed(1))).relu() - 3
    recipe = TranscoderTopK(n_latents=64, k=16, skip=skip)
    run = vsae.train(
        joined(x, y),
        recipe,
        tmp_path,
        vsae.TrainConfig(epochs=10, batch_size=256, lr=3e-3, tracker="none", device="cpu"),
        progress=False,
    )
    assert run.meta["recipe"]["fields"]["columns"] == [10, 6]
    error = float((run.sae(x).x_hat - y).square().sum() / (y - y.mean(0)).square().sum())
    assert run.sae.ends(torch.cat([x, y], 1)).target.equal(y) and run.sae.atoms.shape == (64, 6)
    assert error < 0.2, error
    assert Run.load(tmp_path).sae(x).x_hat.equal(run.sae(x).x_hat)


@pytest.mark.parametrize("per_dimension", [False, True])
def test_a_fused_transcoder_reads_raw_rows(per_dimension):
    sae = TranscoderTopK(n_latents=N, k=4, skip=True, columns=(D, 5)).build(
        torch.randn(100, D + 5), torch.randn(D + 5), 0
    )
    with torch.no_grad():
        sae.skip.normal_()
    shift, scale = torch.randn(D + 5), 0.5 + torch.rand(D + 5) if per_dimension else torch.tensor(3.0)
    rows = torch.randn(40, D + 5) * scale + shift
    trained, fused = sae(sae.ends((rows - shift) / scale).x), sae.fuse(shift, scale)(rows[:, :D])
    torch.testing.assert_close(fused.code.dense(N), trained.code.dense(N), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fused.x_hat, trained.x_hat * scale.expand(D + 5)[D:] + shift[D:], atol=1e-4, rtol=1e-4)


def test_a_crosscoder_weighs_its_sites_alike_and_says_where_a_latent_lives(tmp_path):
    shared, mine = torch.randn(4, 8), torch.randn(4, 8)
    draw = torch.Generator().manual_seed(0)
    active = (torch.rand(4096, 8, generator=draw) < 0.15) * (0.5 + torch.rand(4096, 8, generator=draw))
    first = active @ torch.cat([shared, mine]) + 0.01 * torch.randn(4096, 8, generator=draw)
    second = 1000 * (active[:, :4] @ shared) + torch.randn(4096, 8, generator=draw)
    run = vsae.train(joined(first, second), Crosscoder(n_latents=16, k=3), tmp_path, CONFIG, progress=False)
    both = torch.cat([first, second], 1)
    x_hat = run.sae(both).x_hat
    errors = [
        float((both - x_hat)[:, cut].square().sum() / (both - both.mean(0))[:, cut].square().sum())
        for cut in (slice(8), slice(8, 16))
    ]
    assert max(errors) < 0.6, errors
    norms = site_norms(run.sae, (8, 8))
    torch.testing.assert_close(norms.sum(1), torch.ones(16))


def test_codes_of_pairs_survive_the_run_directory(tmp_path):
    v, t, _ = pairs(1024)
    run = vsae.train(joined(v, 3 * t + 1), VLSAE(n_latents=32, k=4), tmp_path, CONFIG, progress=False)
    rows = torch.cat([v, 3 * t + 1], 1)
    assert Run.load(tmp_path).sae(rows).x_hat.equal(run.sae(rows).x_hat)
    assert run.meta["sae"]["encoder"]["class"] == "PairedDistance" and not (tmp_path / "cfg.json").exists()
    assert run.meta["self_check"]["l0"] == 4


def test_one_site_is_not_enough_for_a_recipe_on_joined_rows(tmp_path):
    with pytest.raises(ValueError, match="vl_sae reads several sites side by side, and this is one"):
        vsae.train(vsae.TensorSource(torch.randn(64, 8)), VLSAE(n_latents=8, k=2), tmp_path, CONFIG, progress=False)


def test_a_run_of_one_code_for_all_sites_has_no_side(tmp_path):
    v, t, _ = pairs(512)
    run = vsae.train(joined(v, t), Crosscoder(n_latents=32, k=4), tmp_path / "run", CONFIG, progress=False)
    with pytest.raises(ValueError, match="at once, row by row: this job is for SAEs of one site"):
        run.side(0)
