"""Names of latents: planted ones are found and verified, random ones no oftener than promised."""

import numpy as np
import pytest
from scipy.stats import binom

from evals.discovery import adjusted, evaluate, picked

WORDS = ("red", "round", "striped", "night")


def world(n=24, seed=0):
    rng = np.random.default_rng(seed)
    bare = rng.standard_normal((n, 4)) * 0.1

    def moved(word, by):
        after = bare + rng.standard_normal((n, 4)) * 0.02
        if word is not None:
            after[:, WORDS.index(word)] += by
        return after

    return bare, moved


def test_planted_names_are_proposed_and_verified():
    bare, moved = world()
    latents = {f"latent_{at}": moved(word, 0.2) for at, word in enumerate(WORDS)}
    found = evaluate(bare, latents, {"random_1": moved(None, 0)}, WORDS)
    assert all(one.beyond for one in found.named[:4])
    assert [one.name for one in found.named[:4]] == list(WORDS)
    assert all(one.accuracy.value == 1 and one.accuracy.floor == 0.5 and one.n == 12 for one in found.named[:4])
    assert all(one.p == pytest.approx(0.5**12) and one.q < 0.05 for one in found.named[:4])
    assert found.found.value == 1 and found.found.floor == 0 and found.found.interval == (1, 1)


def test_proposing_prompts_do_not_verify():
    """A word that grows on the first, third, ... prompts only is proposed, and picked as by a coin."""
    bare, _ = world(40)
    after = bare.copy()
    after[::2, 1] += 1.0
    after[1::2, 1] += np.where(np.arange(20) % 2, 0.1, -0.1)
    (one,) = evaluate(bare, {"latent_0": after}, {}, WORDS).named
    assert one.name == "round" and one.growth == pytest.approx(1.0) and one.accuracy.value == 0.5
    assert one.p == pytest.approx(binom.sf(9, 20, 0.5))


def test_noise_is_found_no_oftener_than_alpha():
    hits = []
    for seed in range(40):
        bare, moved = world(24, seed)
        found = evaluate(bare, {f"latent_{at}": moved(None, 0) for at in range(10)}, {}, WORDS, resamples=2)
        hits.append(found.found.value > 0)
    assert np.mean(hits) <= 0.15  # 5 % of the draws, and 2 standard errors


def test_equal_pictures_count_half_and_lost_ones_not_at_all():
    np.testing.assert_array_equal(picked(np.array([0.1, 0.0, -0.1, np.nan])), [1, 0.5, 0, np.nan])
    bare, moved = world()
    same = evaluate(bare, {"latent_0": bare.copy()}, {}, WORDS).named[0]
    assert same.accuracy.value == 0.5 and same.p == 1 and same.q == 1
    after = moved("red", 0.3)
    after[[3, 5]] = np.nan
    one = evaluate(bare, {"latent_0": after}, {}, WORDS).named[0]
    assert one.n == 10 and one.accuracy.value == 1
    lost = evaluate(bare, {"latent_0": np.full_like(bare, np.nan)}, {}, WORDS).named[0]
    assert lost.name is None and lost.accuracy.value is None and lost.n == 0 and lost.p == 1


def test_what_random_directions_do_as_well_is_not_found():
    """A little of the same on every picture beats the coin, whoever does it; only what grows more than that is a find."""
    bare, _ = world()

    def shifted(word, by):
        after = bare.copy()
        after[:, WORDS.index(word)] += by
        return after

    latents = {"latent_0": shifted("red", 0.2), "latent_1": shifted("round", 0.01), "latent_2": shifted("night", 0.02)}
    random = {"random_1": shifted("round", 0.015), "random_2": shifted("striped", 0.02)}
    found = evaluate(bare, latents, random, WORDS)
    assert all(one.accuracy.value == 1 and one.q < 0.05 for one in found.named)
    # as much as a random direction is not more; of the random ones the second outdoes the first
    assert [one.beyond for one in found.named] == [True, False, False, False, True]
    assert found.found.value == pytest.approx(1 / 3) and found.found.floor == 0.5
    alone = evaluate(bare, latents, {}, WORDS)
    assert all(one.beyond for one in alone.named) and alone.found.value == 1 and alone.found.floor is None


def test_beyond_keeps_no_order_of_directions():
    rng = np.random.default_rng(5)
    bare = rng.standard_normal((20, 4))
    seen = {f"latent_{at}": bare + rng.standard_normal((20, 4)) for at in range(6)}
    random = {f"random_{at}": bare + rng.standard_normal((20, 4)) for at in range(5)}
    once = {one.direction: one for one in evaluate(bare, seen, random, WORDS).named}
    turned = evaluate(bare, dict(reversed(seen.items())), dict(reversed(random.items())), WORDS)
    assert {one.direction: one.beyond for one in turned.named} == {name: one.beyond for name, one in once.items()}
    for name, one in once.items():
        assert one.beyond == (one.growth > max(once[other].growth for other in random if other != name))


def test_p_values_are_adjusted_by_hand():
    p = [0.01, 0.04, 0.03, 0.2]
    np.testing.assert_allclose(adjusted(p), [0.04, 0.16 / 3, 0.16 / 3, 0.2])
    assert len(adjusted([])) == 0


def test_it_needs_words_and_prompts():
    bare, _ = world()
    with pytest.raises(ValueError, match="0 words and 24 prompts"):
        evaluate(bare[:, :0], {}, {}, ())
    with pytest.raises(ValueError, match="4 words and 1 prompts"):
        evaluate(bare[:1], {"latent_0": bare[:1]}, {}, WORDS)
