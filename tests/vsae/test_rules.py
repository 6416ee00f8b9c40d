"""Rules over concepts: by hand, against all orders of the rules, and on a planted code."""

import itertools

import numpy as np
import pytest
import torch

from vsae.rules import Concept, Push, Relation, Rule, best_threshold, chained, detected
from vsae.sae import SAE
from vsae.sparsifiers import TopK


@pytest.fixture
def planted():
    """Latent 3 is red, 5 round, 7 and 8 together a wheel; others are noise. What is large on samples is there."""
    rng = np.random.default_rng(0)
    truth = {name: rng.random(400) < 0.4 for name in ("red", "round")}
    codes = rng.random((400, 12)) * 0.4
    codes[:, 3] += truth["red"] * 2.0
    codes[:, 5] += truth["round"] * 2.0
    seven, eight = rng.random(400) < 0.5, rng.random(400) < 0.5
    codes[:, 7] += seven * 1.0
    codes[:, 8] += eight * 1.0
    return codes, truth | {"wheel": seven & eight}


def test_single_finds_the_latent_and_a_threshold_between(planted):
    codes, truth = planted
    for name, latent in (("red", 3), ("round", 5)):
        concept = Concept.fit(name, codes, truth[name])
        assert concept.latents == (latent,) and concept.weights == (1.0,) and 0.4 < concept.threshold < 2.0
        assert ((concept.local(codes) > 0) == truth[name]).all()
        np.testing.assert_allclose(concept.local(codes), np.clip(codes[:, latent] - concept.threshold, 0, None))


def test_multi_weighs_by_the_gap_and_a_relation_hears_both(planted):
    codes, truth = planted
    multi = Concept.fit("wheel", codes, truth["wheel"], n=2)
    assert set(multi.latents) == {7, 8} and sum(multi.weights) == pytest.approx(1)
    single, relation = (
        Concept.fit("wheel", codes, truth["wheel"]),
        Relation.fit("wheel", codes, truth["wheel"], depth=2),
    )
    right = {each: ((each.local(codes) > 0) == truth["wheel"]).mean() for each in (single, multi)}
    assert right[single] < 0.8 and right[multi] > 0.97
    assert set(relation.latents) <= {7, 8} and ((relation.local(codes) > 0) == truth["wheel"]).all()


def test_a_sample_is_its_tokens(planted):
    codes, truth = planted
    concept = Concept.fit("red", codes, truth["red"])
    tokens = codes[:5]
    assert concept.whole(tokens) == pytest.approx(max(codes[:5, 3].max() - concept.threshold, 0))
    assert concept.whole(tokens, "mean") == pytest.approx(max(codes[:5, 3].mean() - concept.threshold, 0))


def test_what_follows_is_the_same_in_any_order_and_for_any_row():
    rules = [
        Rule.parse(text)
        for text in ("wheel & windshield -> car", "car & !dry -> wet car", "wet car -> slow", "slow -> late")
    ]
    names = ("wheel", "windshield", "dry", "late")
    rows = list(itertools.product([False, True], repeat=4))
    facts = {name: np.array([row[at] for row in rows]) for at, name in enumerate(names)}

    def slow(row):
        known = {name for name, there in zip(names, row, strict=True) if there}
        for _ in range(9):
            known |= {r.then for r in rules if set(r.has) <= known and not set(r.lacks) & known}
        return known

    for order in itertools.permutations(rules):
        found = chained(facts, order)
        for at, row in enumerate(rows):
            assert {name for name, there in found.items() if there[at]} == slow(row)
    assert facts["late"].tolist() == [row[3] for row in rows]  # what was given is not written to
    assert chained({}, []) == {}


def test_rules_say_what_is_wrong_with_them():
    assert Rule.parse("a & !b&c ->d") == Rule(("a", "c"), "d", ("b",))
    for text in ("a & b", "-> c", "a & -> c", "a -> ", "a -> b -> c"):
        with pytest.raises(ValueError, match="is no rule"):
            Rule.parse(text)
    facts = {"a": np.array([True])}
    with pytest.raises(ValueError, match="'b', which is no concept"):
        chained(facts, [Rule.parse("a & b -> c")])
    with pytest.raises(ValueError, match="'c' is absent, which rules conclude"):
        chained(facts, [Rule.parse("a & !c -> d"), Rule.parse("a -> c")])


def test_concepts_and_rules_together(planted):
    codes, truth = planted
    concepts = [Concept.fit("red", codes, truth["red"]), Relation.fit("wheel", codes, truth["wheel"])]
    found = chained(detected(concepts, codes), [Rule.parse("red & wheel -> toy"), Rule.parse("toy -> thing")])
    assert (found["thing"] == truth["red"] & truth["wheel"]).all()


def test_a_push_is_a_share_of_what_is_there():
    atoms = torch.nn.functional.normalize(torch.randn(12, 6, dtype=torch.float64), dim=1)
    sae = SAE.from_weights(
        atoms.T.contiguous(), torch.zeros(12).double(), atoms, torch.zeros(6).double(), TopK(2)
    ).double()
    concept = Concept("c", (2, 4), (0.75, 0.25), 0.0)
    d = 0.75 * atoms[2] + 0.25 * atoms[4]
    torch.testing.assert_close(concept.direction(sae), d)
    x, kinds = torch.randn(2, 3, 6, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.uint8)
    new = Push(concept.direction(sae), 0.5, 2.0)(x, kinds)
    torch.testing.assert_close(new, x + x.norm(dim=-1, keepdim=True) * d / d.norm(), atol=1e-12, rtol=0)
    assert torch.equal(Push(d, 0.0)(x, kinds), x)
    with pytest.raises(ValueError, match="no length"):
        Push(torch.zeros(6), 1.0)


def test_the_threshold_is_best_of_all_cuts_with_ties_and_constants():
    rng = np.random.default_rng(2)
    for _ in range(50):
        a, y = rng.integers(0, 5, 30) / 4, rng.random(30) < 0.5
        if y.all() or not y.any():
            continue
        cut = best_threshold(a, y)

        def balanced(c, a=a, y=y):
            return (a[y] > c).mean() + (a[~y] <= c).mean()

        assert balanced(cut) == pytest.approx(max(balanced(c) for c in (np.unique(a)[1:] + np.unique(a)[:-1]) / 2))
    assert best_threshold(np.full(4, 3.0), np.array([True, False, True, False])) == 1.5
    with pytest.raises(ValueError, match="0 of 3 samples have 'c'"):
        Concept.fit("c", np.zeros((3, 2)), np.zeros(3, bool))
    with pytest.raises(ValueError, match="no latent is larger"):
        Concept.fit("c", np.zeros((3, 2)), np.array([True, False, False]))
