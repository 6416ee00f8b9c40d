"""Known answers of what steering does: lines that can be worked out by hand, thresholds of known functions, floors by counting."""

import itertools

import numpy as np
import pytest

from evals.steering import Seen, at_equal_reach, evaluate, interval, mean, shared, threshold, weights, when_passed
from evals.steering_shown import verdict

N = 40


def made(reach, kept):
    return Seen(np.full(N, reach), {"shape": np.full(N, kept)})


BARE = made(0.0, 1.0)


def test_what_is_kept_where_the_reach_is_first_passed():
    reach, kept = np.array([0.0, 0.5, 0.3, 1.0]), np.array([1.0, 0.8, 0.1, 0.4])
    levels = np.array([0.0, 0.25, 0.5, 0.65, 1.0])
    rows = (np.stack([each, each]) for each in (reach, kept, levels))
    # From .5 on the line goes back to (.3, .1) and from there up to (1, .4): .65 is half of the way.
    np.testing.assert_allclose(when_passed(*rows), [[1.0, 0.9, 0.8, 0.25, 0.4]] * 2)
    assert np.isnan(when_passed(reach[None], kept[None], np.array([[1.1]]))).all()
    lost = np.array([[0.0, np.nan, 1.0]])  # a step without pictures is passed over
    np.testing.assert_allclose(when_passed(lost, lost, np.array([[0.5]])), [[0.5]])


def test_equal_reach_of_two_straight_lines_is_their_mean_gap():
    reach = np.array([[0.0, 0.5, 1.0]])
    # kept 1 - .2 r against 1 - .6 r: gap .4 r, on average .2 over all reaches, .1 over those up to .5.
    assert at_equal_reach(reach, 1 - 0.2 * reach, reach, 1 - 0.6 * reach) == pytest.approx(0.2)
    assert at_equal_reach(reach, 1 - 0.2 * reach, reach[:, :2], 1 - 0.6 * reach[:, :2]) == pytest.approx(0.1)
    assert np.isnan(
        at_equal_reach(reach, reach, np.zeros((1, 3)), np.ones((1, 3)))
    )  # a direction that does nothing wins nothing


def test_size_alone_decides_nothing():
    """The same trade-off at half the strength: less is changed, and less is kept; at equal reach they are one."""
    strong = {s: made(0.2 * s, 1 - 0.1 * s) for s in (1.0, 2.0, 4.0)}
    weak = {s: made(0.1 * s, 1 - 0.05 * s) for s in (1.0, 2.0, 4.0)}
    found = evaluate(BARE, {"latents": weak, "means": strong}, {"shape": 0.1})
    assert found.equal["means"]["shape"].value == pytest.approx(0, abs=1e-12)
    worse = {s: made(0.2 * s, 1 - 0.2 * s) for s in (1.0, 2.0, 4.0)}
    found = evaluate(BARE, {"latents": strong, "means": worse}, {"shape": 0.1})
    assert found.equal["means"]["shape"].value == pytest.approx(0.5 * 0.4, abs=1e-9)
    assert found.equal["means"]["shape"].floor == 0 and found.equal["means"]["shape"].interval == pytest.approx(
        (0.2, 0.2)
    )


def test_effects_are_means_with_their_floors_and_bootstrap_intervals():
    rng = np.random.default_rng(0)
    bare = Seen(rng.random(N) * 0.1, {"shape": np.ones(N)})
    seen = Seen(rng.random(N), {"shape": (rng.random(N) < 0.7).astype(float)})
    found = evaluate(bare, {"latents": {2.0: seen}}, {"shape": 0.125}, resamples=300, seed=3)
    (effect,) = found.effects
    assert effect.reach.value == pytest.approx(seen.reach.mean()) and effect.reach.floor == pytest.approx(
        bare.reach.mean()
    )
    assert effect.kept["shape"].value == seen.kept["shape"].mean() and effect.kept["shape"].floor == 0.125
    counts = np.random.default_rng(3).multinomial(N, np.full(N, 1 / N), 300)  # the slow way
    slow = [np.repeat(seen.reach, row).mean() for row in counts]
    assert effect.reach.interval == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])))
    assert found.equal == {} and effect.n == N


def test_prompts_in_any_order_and_those_without_a_picture_change_nothing():
    rng = np.random.default_rng(1)
    bare = Seen(rng.random(N), {"shape": np.ones(N)})
    sets = {s: Seen(rng.random(N), {"shape": rng.random(N)}) for s in (1.0, 2.0)}
    turned = rng.permutation(N)

    def shuffled(seen):
        return Seen(seen.reach[turned], {of: values[turned] for of, values in seen.kept.items()})

    def longer(seen):
        more = np.full(3, np.nan)
        return Seen(np.append(seen.reach, more), {of: np.append(values, more) for of, values in seen.kept.items()})

    plain = evaluate(bare, {"latents": sets}, {"shape": 0.5}, resamples=2)
    for change in (shuffled, longer):
        other = evaluate(
            change(bare), {"latents": {s: change(x) for s, x in sets.items()}}, {"shape": 0.5}, resamples=2
        )
        for a, b in zip(plain.effects, other.effects, strict=True):
            assert a.reach.value == pytest.approx(b.reach.value) and a.n == b.n
            assert a.kept["shape"].value == pytest.approx(b.kept["shape"].value)


def test_a_set_without_anything_to_see_is_undefined_and_not_zero():
    lost = Seen(np.full(N, np.nan), {"shape": np.full(N, np.nan)})
    found = evaluate(
        BARE, {"latents": {1.0: made(0.5, 0.5), 2.0: lost}, "means": {1.0: lost, 2.0: lost}}, {"shape": 0.1}
    )
    assert found.effects[1].reach.value is None and found.effects[1].n == 0 and found.effects[1].reach.interval is None
    assert found.monotone["latents"] and found.equal["means"]["shape"].value is None
    with pytest.raises(ValueError, match="without an edit"):
        evaluate(lost, {"latents": {1.0: BARE}}, {"shape": 0.1})
    with pytest.raises(ValueError, match="same strengths"):
        evaluate(BARE, {"latents": {1.0: BARE}, "means": {2.0: BARE}}, {"shape": 0.1})


def test_monotone_says_whether_the_mean_ever_falls():
    rising = {s: made(0.1 * s, 1.0) for s in (1.0, 2.0, 4.0)}
    falling = {**rising, 3.0: made(0.05, 1.0)}
    negative = {-1.0: made(0.0, 1.0), 1.0: made(0.4, 1.0)}
    for sets, is_so in ((rising, True), (falling, False), (negative, True), ({1.0: made(0.0, 1.0)}, True)):
        found = evaluate(BARE, {"latents": sets}, {"shape": 0.1})
        assert found.monotone["latents"] is is_so and found.monotone_share["latents"] == float(is_so)


def test_means_and_intervals_leave_out_what_is_not_there():
    values = np.array([1.0, np.nan, 3.0])
    assert mean(values)[0] == 2 and mean(values, np.array([[0.0, 5.0, 1.0], [0.0, 3.0, 0.0]])).tolist()[0] == 3
    assert np.isnan(mean(values, np.array([[0.0, 3.0, 0.0]]))[0])
    assert interval(np.array([1.0])) is None and interval(np.array([1.0, np.nan])) is None
    assert weights(5, 7, 0).sum(1).tolist() == [5.0] * 7


@pytest.mark.parametrize("crossing", [0.03, 0.7, 1.0, 5.5])
def test_the_threshold_of_a_step_is_found_from_above(crossing):
    asked = []

    def score(strength):
        asked.append(strength)
        return float(strength >= crossing)

    found = threshold(score, 0.3, 2.0, steps=8)
    assert crossing <= found <= crossing + (2 if crossing < 2 else 8) / 2**8 and len(asked) <= 12
    assert score(found) >= 0.3


def test_a_score_that_never_comes_there_has_no_threshold():
    assert threshold(lambda s: 0.29, 0.3, 4.0) is None
    assert threshold(lambda s: min(1.0, s / 10), 0.5, 4.0, steps=12) == pytest.approx(5.0, abs=4 / 2**10)


def test_what_two_prompts_share_by_counting_pairs():
    values = np.array([0, 0, 1, 2, 1, 1])
    pairs = list(itertools.permutations(values, 2))
    assert shared(values) == pytest.approx(np.mean([a == b for a, b in pairs]))
    assert shared([1]) is None and shared([1, 1]) == 1 and shared([1, 2]) == 0


def test_the_verdict_says_both_ways():
    """Of latents that win, that lose, that rise and that do not, by the numbers of two straight lines."""
    good = {s: made(0.2 * s, 1 - 0.1 * s) for s in (1.0, 2.0, 4.0)}
    bad = {s: made(0.2 * s, 1 - 0.2 * s) for s in (1.0, 2.0, 4.0)}
    words = verdict(evaluate(BARE, {"latents": good, "means": bad}, {"shape": 0.1}), "red")
    assert words[0] == (
        "'red' rises with the strength of the latents: 0 at 0, 0.2 at 1, 0.4 at 2, 0.8 at 4; it never falls in 100% of the bootstrap's draws."
    )
    assert words[2] == (
        "At equal 'red' the latents change shape less than the difference of means: they keep 0.20 (0.20 to 0.20) more of it."
    )
    words = verdict(evaluate(BARE, {"latents": bad, "random1": good}, {"shape": 0.1}), "red")
    assert words[2] == (
        "At equal 'red' the latents do not change shape less than random latents 1: they keep -0.20 (-0.20 to -0.20) more of it, which is less."
    )
    words = verdict(evaluate(BARE, {"latents": good, "means": good}, {"shape": 0.1}), "red")
    assert "do not change shape less" in words[2] and "no difference, is in the interval" in words[2]
    down = {1.0: made(0.5, 1.0), 2.0: made(0.3, 1.0)}
    still = {1.0: made(0.0, 1.0), 2.0: made(0.0, 1.0)}
    words = verdict(evaluate(BARE, {"latents": down, "means": still}, {"shape": 0.1}), "red")
    assert words[0].startswith("'red' does not rise at every step with the strength of the latents: 0 at 0, 0.5 at 1")
    assert words[1].startswith("'red' does not rise with the strength of the difference of means: 0 at 0, 0 at 1")
    assert words[2].startswith("Whether the latents change shape less than the difference of means is not known")
