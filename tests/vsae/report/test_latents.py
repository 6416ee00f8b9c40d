"""Evidence gathered in a stream, against codes one can write down and an obvious loop over them."""

import dataclasses

import numpy as np
import pytest
import torch
from known_codes import KINDS, identity_sae, images_site, texts_site

from vsae.report import latents, picks
from vsae.report.latents import BINS, Plan, gather


def look(site, sae, batch_size=4096, plan=None):
    return gather(sae, lambda what: site.sequential(batch_size), len(site.table), site.grid, KINDS, plan or Plan())


def tops(found, latent):
    mine = found.of(latent)
    return list(zip(found.sample[mine].tolist(), found.score[mine].tolist(), strict=True))


@pytest.fixture
def random_site():
    """30 images of a class token and 2 x 3 patches, 8 latents; latent 6 is silent, latent 7 fires in ties only."""
    torch.manual_seed(3)
    codes = (torch.randn(30, 7, 8) - 0.8).relu()
    codes[:, :, 6] = 0
    codes[:, :, 7] = (torch.rand(30, 7) < 0.2).float()
    return images_site(codes, (2, 3)), codes.numpy().astype(np.float64)


def test_two_images_by_hand():
    codes = torch.zeros(2, 3, 3)  # tokens: class, left patch, right patch
    codes[0, 1, 0], codes[0, 2, 0] = 2, 1  # latent 0: image 0 left 2, right 1
    codes[1, 2, 0] = 4  # image 1 right 4
    codes[1, 0, 1] = 3  # latent 1: class token of image 1
    found = look(images_site(codes, (1, 2)), identity_sae(3))
    assert (found.n_rows, found.n_samples, found.n_tokens, found.kinds) == (6, 2, 3, ("cls", "patch"))
    assert found.tokens.tolist() == [3, 1, 0] and found.samples.tolist() == [2, 1, 0]
    np.testing.assert_allclose(found.mean, [7 / 3, 3, 0])
    assert found.high.tolist() == [4, 3, 0] and found.low.tolist() == [1, 3, 0]
    assert tops(found.top, 0) == [(1, 4), (0, 2)] and tops(found.top, 1) == [(1, 3)] and tops(found.top, 2) == []
    painted = found.paint.of(0 * 2 + 0)
    assert found.paint.cell[painted].tolist() == [0, 1] and found.paint.value[painted].tolist() == [2, 1]
    beside = found.paint.of(1 * 2 + 1)
    assert found.paint.cell[beside].tolist() == [2 + KINDS.index("cls")]  # on no grid: after its two cells
    assert found.histogram.sum(1).tolist() == [3, 1, 0]
    assert found.histogram[0, [BINS // 4, BINS // 2, BINS - 1]].tolist() == [1, 1, 1]


@pytest.mark.parametrize("batch_size", [1, 5, 64, 1000])
def test_equals_an_obvious_loop_however_rows_are_batched(random_site, batch_size, monkeypatch):
    monkeypatch.setattr(picks, "PENDING", 20)  # forgetting on the way changes nothing
    site, codes = random_site
    found = look(site, identity_sae(8), batch_size, Plan(top=5, random=4))
    for latent in range(8):
        peaks = codes[:, :, latent].max(1)
        expected = sorted([i for i in range(30) if peaks[i] > 0], key=lambda i: (-peaks[i], i))[:5]
        assert tops(found.top, latent) == [(i, peaks[i]) for i in expected]
        active = codes[:, :, latent][codes[:, :, latent] > 0]
        assert found.tokens[latent] == len(active) and found.samples[latent] == (peaks > 0).sum()
        if len(active):
            np.testing.assert_allclose([found.mean[latent], found.high[latent]], [active.mean(), active.max()])
            counts = np.histogram(active, BINS, (0, active.max()))[0]
            assert found.histogram[latent].tolist() == counts.tolist()
        for sample, _ in tops(found.top, latent) + tops(found.random, latent):
            painted = found.paint.of(latent * 30 + sample)
            patches = np.zeros(6)
            for cell, value in zip(found.paint.cell[painted], found.paint.value[painted], strict=True):
                if cell < 6:
                    patches[cell] = value
            np.testing.assert_allclose(patches, codes[sample, 1:, latent])


def test_gathering_does_not_depend_on_batches_to_the_last_bit(random_site):
    site, _ = random_site
    plan = Plan(top=3, random=3, cofiring_rows=50)
    whole = look(site, identity_sae(8), 1000, plan)
    for batch_size in (1, 16):
        split = look(site, identity_sae(8), batch_size, plan)
        assert (whole.firing != split.firing).nnz == 0 and whole.firing.shape == (50, 8)
        for field in ("top", "bottom", "random", "paint"):
            for a, b in zip(*(dataclasses.astuple(getattr(e, field)) for e in (whole, split)), strict=True):
                np.testing.assert_array_equal(a, b)


def test_random_images_are_active_not_shown_already_and_evenly_drawn():
    codes = torch.zeros(20, 2, 1)
    codes[:16, 1, 0] = torch.arange(16) + 1.0
    seen = np.zeros(20)
    for seed in range(100):
        found = look(images_site(codes, (1, 1)), identity_sae(1), plan=Plan(top=4, random=3, seed=seed))
        drawn = [sample for sample, _ in tops(found.random, 0)]
        assert len(set(drawn)) == 3
        seen[drawn] += 1
    assert not seen[12:].any()  # 12 to 15 are the top, 16 to 19 are silent
    assert seen[:12].min() > 5 and seen[:12].max() < 45  # 25 expected, 4.5 standard deviations either way


def test_both_poles_of_a_signed_code():
    codes = torch.zeros(3, 2, 1)
    codes[:, 1, 0] = torch.tensor([-5.0, 2, -1])
    found = look(images_site(codes, (1, 1)), identity_sae(1, signed=True))
    assert tops(found.top, 0) == [(1, 2)] and tops(found.bottom, 0) == [(0, 5), (2, 1)]
    assert (found.low[0], found.high[0], found.tokens[0]) == (-5, 2, 3)
    assert found.paint.value[found.paint.of(0)].tolist() == [-5]
    assert found.histogram[0, 0] == 1 and found.histogram[0, -1] == 1 and found.histogram.sum() == 3


def test_an_image_counts_once_and_ties_go_to_the_earlier_one():
    codes = torch.zeros(4, 5, 1)
    codes[1, 1:, 0] = 1
    codes[3, 2, 0] = 1
    codes[0, 1, 0] = 0.5
    found = look(images_site(codes, (2, 2)), identity_sae(1), plan=Plan(top=3))
    assert tops(found.top, 0) == [(1, 1), (3, 1), (0, 0.5)]


def test_tokens_without_a_grid_are_painted_by_position():
    codes = torch.zeros(2, 4, 2)
    codes[1, 2, 1] = 3
    found = look(texts_site(codes), identity_sae(2))
    assert found.paint.cell[found.paint.of(1 * 2 + 1)].tolist() == [2] and found.n_tokens == 4


def test_a_silent_dictionary_still_has_evidence():
    found = look(images_site(torch.zeros(2, 2, 3), (1, 1)), identity_sae(3))
    assert found.tokens.tolist() == [0, 0, 0] and len(found.paint.pairs) == 0 and found.firing.nnz == 0


def test_no_rows_and_shuffled_rows_are_refused():
    site = images_site(torch.ones(3, 2, 2), (1, 1))
    with pytest.raises(ValueError, match="no activation to look at"):
        gather(identity_sae(2), lambda what: iter(()), 3, (1, 1), KINDS)
    site.batch = type(site.batch)(*(column.flip(0) for column in site.batch))
    for batch_size in (2, 100):
        with pytest.raises(ValueError, match="order of their samples"):
            look(site, identity_sae(2), batch_size)


def test_half_precision_activations():
    codes = torch.zeros(2, 2, 2)
    codes[1, 1, 1] = 2
    site = images_site(codes.to(torch.bfloat16), (1, 1))
    assert tops(look(site, identity_sae(2)).top, 1) == [(1, 2)]


def test_memory_of_cofiring_stays_bounded(random_site, monkeypatch):
    site, _ = random_site
    sizes = []
    add = latents.Firing.add
    monkeypatch.setattr(latents.Firing, "add", lambda self, *a: (add(self, *a), sizes.append(self.rows))[0])
    look(site, identity_sae(8), 7, Plan(cofiring_rows=20))
    assert max(sizes) <= 40
