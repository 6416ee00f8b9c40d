"""A world whose dictionary is known: its options do what they say, its scores are right on dictionaries one can check, and training finds it."""

import dataclasses

import numpy as np
import pytest
import torch

import vsae
from evals.matching import match
from evals.planted import CHUNK, Planted
from evals.planted_runs import CONFIG, RECIPES, compare, run, sized, suited, table
from evals.stability import structureless
from vsae import recipes
from vsae.recipes import ITDA, VLSAE, AbsTopK, Crosscoder, RATopK, ReLU, TopAFA, TopK, TranscoderTopK
from vsae.recipes.fixed import PCA, KMeans
from vsae.recipes.selection import JumpReLU


def codes(world, n=CHUNK, seed=0):
    x, code = world.draw(n, seed)
    return x, code.dense(world.n_features)


def test_rows_are_the_codes_times_the_atoms_plus_the_offset():
    world = Planted(d_model=16, n_features=24, active=3, offset=5)
    x, z = codes(world)
    torch.testing.assert_close(x, z @ world.atoms + world.shift)
    assert world.shift.norm() == pytest.approx(5)
    torch.testing.assert_close(world.atoms.norm(dim=1), torch.ones(24))
    assert float((z != 0).sum(1).float().mean()) == pytest.approx(3, rel=0.03)
    assert float(z[z != 0].mean()) == pytest.approx(1, abs=0.01)


def test_equal_seeds_are_equal_worlds_and_a_shorter_draw_is_a_prefix():
    world = Planted(exponent=1, noise=0.1)
    x, z = codes(world, 9000, seed=3)
    again, shorter = codes(Planted(exponent=1, noise=0.1), 9000, seed=3)
    assert torch.equal(x, again) and torch.equal(z, shorter)
    assert torch.equal(codes(world, 100, seed=3)[0], x[:100])
    assert not torch.equal(codes(world, 100, seed=4)[0], x[:100])
    assert not torch.equal(dataclasses.replace(world, seed=1).atoms, world.atoms)


def test_frequencies_follow_the_power_law_up_to_a_cap():
    world = Planted(n_features=200, active=5, exponent=1)
    law = np.sort(world.frequencies)[::-1]
    assert law.sum() == pytest.approx(5) and law.max() <= 0.5
    free = law < 0.5
    rank = np.arange(1, 201)[free]
    np.testing.assert_allclose(np.log(law[free]), np.log(law[-1]) + np.log(200) - np.log(rank), atol=1e-9)
    seen = (codes(world)[1] != 0).float().mean(0).numpy()
    np.testing.assert_allclose(seen, world.frequencies, atol=5 * np.sqrt(0.25 / CHUNK))


def test_a_child_is_there_only_with_its_parent_and_alone():
    world = Planted(n_features=40, children=3, active=4)
    there = codes(world)[1] != 0
    parents = [world.parent(feature) for feature in range(40)]
    assert parents[:10] == [None] * 10 and parents.count(0) == 3
    for feature in range(10, 40):
        assert not (there[:, feature] & ~there[:, parents[feature]]).any()
    of_first = [feature for feature in range(40) if parents[feature] == 0]
    assert there[:, of_first].sum(1).max() == 1
    given = there[:, of_first].any(1)[there[:, 0]].float().mean()
    assert float(given) == pytest.approx(0.8, abs=0.05)
    assert float(there.sum(1).float().mean()) == pytest.approx(4, rel=0.05)
    np.testing.assert_allclose(there.float().mean(0), world.frequencies, atol=0.02)


def test_opposites_are_negatives_and_never_both_there():
    world = Planted(n_features=20, antipodal=0.5, active=6)
    assert torch.equal(world.atoms[0:10:2], -world.atoms[1:10:2])
    there = codes(world)[1] != 0
    assert not (there[:, 0:10:2] & there[:, 1:10:2]).any() and there[:, :10].any(0).all()


def test_signed_magnitudes_have_both_signs_and_noise_its_size():
    z = codes(Planted(signed=True))[1]
    assert float((z[z != 0] > 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    quiet, loud = codes(Planted())[0], codes(Planted(noise=0.5))[0]
    ratio = (loud - quiet).square().sum(1).mean() / quiet.square().sum(1).mean()
    assert float(ratio.sqrt()) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("coherence", [0.0, 0.5, 0.9])
def test_atoms_of_a_group_have_about_the_cosine_asked_for(coherence):
    atoms = Planted(d_model=256, n_features=64, coherence=coherence).atoms
    nearest = (atoms @ atoms.T - 2 * torch.eye(64)).topk(3, dim=1).values
    if coherence:
        assert float(nearest.mean()) == pytest.approx(coherence, abs=0.04)
    else:
        assert float(nearest.max()) < 0.4


def test_a_permuted_rescaled_dictionary_is_all_there_and_a_random_one_is_not():
    atoms = Planted(d_model=32, n_features=40).atoms
    order = torch.randperm(40)
    found = match(atoms, 3 * atoms[order])
    assert found.matched == pytest.approx(1) and found.recovered == 1 and found.nearest == pytest.approx(1)
    assert torch.equal(order[found.pairs], torch.arange(40))
    luck = match(atoms, torch.randn(40, 32))
    assert luck.recovered == 0 and luck.matched < 0.5 and abs(luck.unmatched) < 0.05


def test_pairing_is_one_to_one_and_best_in_sum():
    known = torch.tensor([[1.0, 0], [0.8, 0.6]])
    atoms = torch.tensor([[1.0, 0], [0.6, -0.8], [0, 0]])
    found = match(known, atoms)
    # the first gives its twin away, for 0.6 + 0.8 is more than 1 + 0
    assert found.cosines.tolist() == pytest.approx([0.6, 0.8]) and found.pairs.tolist() == [1, 0]
    assert found.matched == pytest.approx(0.7) and found.nearest == pytest.approx(0.9)
    assert found.unmatched == pytest.approx((1 + 0.6 + 0 + 0.8 + 0 + 0) / 6)


def test_a_negative_matches_in_signed_mode_only_and_fewer_atoms_leave_some_unmatched():
    atoms = Planted(d_model=32, n_features=10).atoms
    assert match(atoms, -atoms, signed=True).matched == pytest.approx(1)
    assert match(atoms, -atoms).matched < 0.5
    few = match(atoms, atoms[:4])
    assert few.recovered == 0.4 and (few.pairs[4:] == -1).all() and few.matched == pytest.approx(0.4)


SMALL = Planted(d_model=16, n_features=12, active=1.5)
QUICK = dataclasses.replace(CONFIG, epochs=10, batch_size=128, lr=1e-2)


def test_training_recovers_what_was_planted_and_an_untrained_dictionary_does_not(tmp_path):
    recipes = {"topk": suited(TopK(), SMALL)}
    (found,) = compare(recipes, SMALL, tmp_path, seeds=(0,), rows=2048, config=QUICK)
    assert found.recipe["n_latents"] == 12 and found.recipe["k"] == 2
    assert found.matched.value > 0.8 > 0.5 > found.matched.floor
    assert found.recovered.value > 0.5 and found.dead.value < 0.1 and found.matched.interval is None
    assert (tmp_path / "result.json").is_file() and (tmp_path / "runs/topk-0/run.json").is_file()
    assert found.dead.floor < 0.2 and found.l0.floor == pytest.approx(2, abs=0.1) and found.nmse.floor > 0.3
    assert found.nmse.value < 0.3
    assert table([found]).row_count == 1
    head, _, row = (tmp_path / "table.md").read_text("utf-8").splitlines()
    assert "| recipe | matched cosine" in " ".join(head.split())
    assert row.split() == f"| topk | {' | '.join(cells(found))} |".split()

    # the same call again trains nothing, and says the same
    weights = tmp_path / "runs/topk-0/sae_weights.safetensors"
    written, result = weights.stat().st_mtime_ns, (tmp_path / "result.json").read_bytes()
    compare(recipes, SMALL, tmp_path, seeds=(0,), rows=2048, config=QUICK)
    assert weights.stat().st_mtime_ns == written and (tmp_path / "result.json").read_bytes() == result


def cells(found):
    scores = (found.matched, found.recovered, found.unmatched, found.dead)
    shown = [f"{each.value:.3f} ({each.floor:.3f})" for each in scores]
    return [*shown, f"{found.l0.value:.1f} ({found.l0.floor:.1f})", f"{found.nmse.value:.3f} ({found.nmse.floor:.3f})"]


def test_a_training_that_does_nothing_scores_its_floor(tmp_path):
    """So the floor is where the training starts: the same rows, seed and normalisation. Offset: what is not centred must not be centred there."""
    world = Planted(d_model=16, n_features=24, active=2, offset=1)
    for recipe in (TopK(), RATopK(anchors=32), VLSAE()):
        still = dataclasses.replace(CONFIG, epochs=1, batch_size=256, lr=1e-12)
        found = run(suited(recipe, world), world, tmp_path, seeds=(1,), rows=512, config=still)
        for score in (found.matched, found.nearest, found.unmatched, found.dead, found.l0, found.nmse):
            assert score.value == pytest.approx(score.floor, abs=1e-5)


def test_signed_codes_leave_the_sign_of_an_atom_open(tmp_path):
    world = Planted(d_model=16, n_features=24, active=2)
    config = dataclasses.replace(CONFIG, epochs=1, batch_size=256)
    found = run(suited(AbsTopK(), world), world, tmp_path, seeds=(0, 1), rows=1024, config=config)
    worlds = [dataclasses.replace(world, seed=seed) for seed in (0, 1)]
    pairs = [(each.atoms, vsae.SAE.load(tmp_path / f"abs_topk-{each.seed}").atoms) for each in worlds]
    a, b = (match(*pair, signed=True).matched for pair in pairs)
    assert found.matched.value == pytest.approx((a + b) / 2) and a > match(*pairs[0]).matched
    half = 12.706 * abs(a - b) / 2  # Student's quantile for two, times the standard error
    assert found.matched.interval == pytest.approx(((a + b) / 2 - half, (a + b) / 2 + half), abs=1e-4)


def test_a_twin_shows_the_same_features_by_atoms_of_its_own():
    world = Planted(d_model=32, n_features=24, active=2, antipodal=0.5, offset=2)
    (x, z), (y, same) = codes(world), codes(world.twin)
    assert torch.equal(z, same) and not torch.equal(x, y)
    cosines = (world.atoms * world.twin.atoms).sum(1)
    assert float(cosines.mean()) == pytest.approx(0.7, abs=0.05)
    torch.testing.assert_close(y, z @ world.twin.atoms + world.shift)
    joined = world.joined(100, 0)
    assert torch.equal(joined.sources[0].rows, x[:100]) and torch.equal(joined.sources[1].rows, y[:100])


@pytest.mark.parametrize("recipe", [Crosscoder(), TranscoderTopK()])
def test_joined_recipes_find_the_atoms_of_both_ends_or_of_the_second(tmp_path, recipe):
    found = run(suited(recipe, SMALL), SMALL, tmp_path, seeds=(0,), rows=2048, config=QUICK)
    assert found.matched.value > 0.8 > 0.5 > found.matched.floor
    width = vsae.SAE.load(tmp_path / f"{recipe.name}-0").atoms.shape[1]
    assert width == (32 if isinstance(recipe, Crosscoder) else 16)


def test_a_recipe_is_sized_where_it_says_how_many():
    assert sized(JumpReLU(), 64, 4, 16) == JumpReLU(n_latents=64, target_l0=4.0)
    assert sized(TopK(), 64, 2.6, 16) == TopK(n_latents=64, k=3)
    assert sized(ReLU(), 64, 4, 16) == ReLU(n_latents=64, target_l0=4.0)
    assert sized(TopAFA(), 64, 4, 16) == TopAFA(n_latents=64)
    assert sized(PCA(), 64, 4, 16) == PCA(n_latents=16, k=4) and sized(KMeans(), 64, 4, 16) == KMeans(n_latents=64)
    assert sized(ITDA(), 64, 4, 16) == ITDA(n_latents=64, k=4)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"active": 100}, "cannot be active"),
        ({"coherence": 2}, "coherence is 2: choose 0 to 1"),
        ({"noise": -1}, "noise is -1: choose 0 or more"),
        ({"antipodal": 0.5, "signed": True}, "choose antipodal or signed"),
    ],
)
def test_what_cannot_be_planted_is_a_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        Planted(**fields)


def test_dictionaries_of_other_widths_are_a_sentence():
    with pytest.raises(ValueError, match="24 dimensions and the dictionary's 3"):
        match(torch.randn(2, 24), torch.randn(2, 3))


def test_the_floor_of_a_fit_knows_the_covariance_and_no_more(tmp_path):
    """PCA sees nothing else, so its floor is itself; k-means sees the clusters, and its floor does not."""
    world = Planted(d_model=8, n_features=8, active=1, spread=0.05, exponent=1)
    pca, kmeans = (
        run(suited(recipe, world), world, tmp_path, seeds=(0,), rows=8192, config=QUICK) for recipe in (PCA(), KMeans())
    )
    assert pca.nmse.value == pytest.approx(pca.nmse.floor, abs=0.02)
    assert pca.matched.value == pytest.approx(pca.matched.floor, abs=0.1)
    assert kmeans.matched.value > kmeans.matched.floor + 0.15
    rows = structureless(world.source(8192, 0), QUICK).rows
    known = world.draw(8192, 0)[0]
    torch.testing.assert_close(rows.mean(0), known.mean(0), atol=0.03, rtol=0)
    torch.testing.assert_close(rows.T.cov(), known.T.cov(), atol=0.03, rtol=0)


def test_every_recipe_of_the_table_fits_a_small_world():
    for name, recipe in RECIPES.items():
        found = suited(recipe(), SMALL)
        assert found.name in name and (found.n_latents == 12)
    assert set(RECIPES) >= (set(recipes.RECIPES) | set(recipes.FIXED) | set(recipes.JOINED)) - {"gradient_topk"}
