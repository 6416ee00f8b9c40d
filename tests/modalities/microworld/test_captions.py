"""What a caption says is what was meant; what it gets wrong is wrong in the way it claims."""

import numpy as np
import pytest

from modalities.microworld.captions import Mention, choose, everything, parse, say, turned, without
from modalities.microworld.corruption import KINDS, corrupted, missing, swapped, wrong
from modalities.microworld.questions import KINDS as QUESTION_KINDS
from modalities.microworld.questions import ask
from modalities.microworld.scenes import World, draw
from modalities.microworld.shards import records
from modalities.microworld.tables import relation, table

SCENES = draw(1500, seed=21)
FACTS = [table(SCENES, row) for row in range(len(SCENES))]
RED_STAR = {"shape": "star", "colour": "red", "size": "small"}
BLUE_RING = {"shape": "ring", "colour": "blue"}


def true_of(mention, facts):
    """Whether every named object can be matched to an object of the scene with those attributes, and the rest holds."""
    named = [
        next((o for o in facts["objects"] if all(o[k] == v for k, v in told.items())), None) for told in mention.objects
    ]
    if None in named or mention.background not in (None, facts["background"]):
        return False
    if mention.position and mention.position != named[0]["position"]:
        return False
    return mention.relation is None or any(
        relation(a, b) == mention.relation
        for a in facts["objects"]
        for b in facts["objects"]
        if a is not b
        and all(a[k] == v for k, v in mention.objects[0].items())
        and all(b[k] == v for k, v in mention.objects[1].items())
    )


@pytest.mark.parametrize(
    ("mention", "plain"),
    [
        (Mention((RED_STAR,), "sand"), "a small red star on sand"),
        (Mention((RED_STAR, BLUE_RING), None, "left of"), "a small red star to the left of a blue ring"),
        (Mention(({"shape": "cross", "colour": "orange"},), None, None, "top left"), "an orange cross at the top left"),
    ],
)
def test_plain_sentences_by_hand(mention, plain):
    ordered = Mention(
        tuple({k: o[k] for k in ("shape", "colour", "texture", "size") if k in o} for o in mention.objects),
        mention.background,
        mention.relation,
        mention.position,
    )
    assert say(mention) == plain
    assert parse(plain) == ordered


@pytest.mark.parametrize(
    "caption",
    [
        "on the beach, there is a tiny crimson star",
        "a picture of a star that is little and red on sand",
        "A tiny RED star, on sand!",
    ],
)
def test_other_orders_and_synonyms_say_the_same(caption):
    assert parse(caption) == Mention(({"shape": "star", "colour": "red", "size": "small"},), "sand")


def test_every_caption_is_read_back_and_true():
    rng = np.random.default_rng(0)
    seen = set()
    for facts in FACTS:
        for mention in (choose(facts, rng), everything(facts)):
            caption = say(mention, rng)
            assert parse(caption) == mention, caption
            assert true_of(mention, facts), caption
            seen.add(caption)
    assert len(seen) > 2000


def test_some_captions_are_incomplete_and_all_differ_in_order():
    rng = np.random.default_rng(1)
    mentions = [choose(facts, rng) for facts in FACTS]
    without_colour = np.mean(["colour" not in o for m in mentions for o in m.objects])
    assert 0.1 < without_colour < 0.4
    assert 0.15 < np.mean([m.background is None for m in mentions]) < 0.35
    starts = [say(m, rng).split()[0] for m in mentions]
    assert {"a", "on", "there", "this"} <= set(starts)


def test_a_relation_turned_round_is_still_true():
    rng = np.random.default_rng(2)
    for facts in FACTS:
        mention = choose(facts, rng, detail=1.0)
        assert true_of(turned(mention), facts)


@pytest.mark.parametrize("kind", KINDS)
def test_corruption_is_of_its_kind(kind):
    rng = np.random.default_rng(3)
    became = []
    for facts, other in zip(FACTS[:500], FACTS[500:1000], strict=True):
        mention = everything(facts)
        spoiled, name = corrupted(mention, everything(other), kind, rng)
        became.append(name)
        assert parse(say(spoiled, rng)) == spoiled
        if name == "wrong":
            changed = [
                (a[k], b[k]) for a, b in zip(mention.objects, spoiled.objects, strict=True) for k in a if a[k] != b[k]
            ]
            assert len(changed) == 1
        if name == "swapped":
            assert (spoiled != mention and not true_of(spoiled, facts)) or len(spoiled.objects) > 1
            for attribute in ("colour", "shape", "texture"):
                values = [sorted(o[attribute] for o in m.objects) for m in (mention, spoiled)]
                assert values[0] == values[1]
        if name == "missing":
            assert len(spoiled.objects) == max(1, len(mention.objects) - 1)
    assert set(became) <= {kind, "wrong"}
    assert np.mean([name == kind for name in became]) > (0.4 if kind == "swapped" else 0.99)


def test_corruptions_by_hand():
    rng = np.random.default_rng(0)
    pair = Mention((RED_STAR, BLUE_RING), "sand", "left of")
    exchanged = swapped(pair, rng)
    assert [o["colour"] for o in exchanged.objects] == ["blue", "red"]
    assert swapped(Mention((RED_STAR,)), rng) is None
    assert missing(Mention((RED_STAR,), "sand"), rng) == Mention(({"shape": "star"},))
    assert wrong(Mention(({"shape": "star"},)), rng).objects[0]["shape"] != "star"
    with pytest.raises(ValueError, match="no corruption is called 'typo'"):
        corrupted(pair, pair, "typo", rng)


@pytest.mark.parametrize("kind", QUESTION_KINDS)
def test_questions_are_answered_by_the_facts_and_balanced(kind):
    rng = np.random.default_rng(4)
    questions = [(ask(facts, rng, kind), facts) for facts in FACTS]
    for question, facts in questions:
        words = question.text.rstrip("?").split()
        if question.kind in ("shape", "colour", "texture"):
            assert question.answer == any(o[question.kind] == words[-1] for o in facts["objects"])
        if question.kind == "background":
            assert question.answer == (words[-1] == facts["background"])
        if question.kind == "pair":
            assert question.answer == any((o["colour"], o["shape"]) == tuple(words[-2:]) for o in facts["objects"])
    assert 0.45 < np.mean([question.answer for question, _ in questions]) < 0.57


def test_relation_questions_by_hand():
    scenes = draw(200, seed=0, world=World(shapes=("star", "ring"), counts=(0.0, 1.0)))
    rng = np.random.default_rng(0)
    checked = 0
    for row in range(200):
        facts = table(scenes, row)
        question = ask(facts, rng, "relation")
        if question.kind == "relation":
            first = next(o for o in facts["objects"] if o["shape"] == question.text.split()[2])
            second = next(o for o in facts["objects"] if o is not first)
            assert question.answer == (relation(first, second) in question.text)
            checked += 1
    assert checked > 50


def test_an_unknown_question_gets_its_sentence():
    with pytest.raises(ValueError, match="no kind of question is called 'why'"):
        ask(FACTS[0], np.random.default_rng(0), "why")


def test_what_is_untold_is_in_no_caption_and_the_rest_is_as_it_was():
    mention = Mention((RED_STAR, BLUE_RING), "sand", "left of")
    assert without(mention, ()) == mention
    bare = Mention(({"shape": "star", "size": "small"}, {"shape": "ring"}), None, "left of")
    assert without(mention, ("colour", "background")) == bare
    for wrong_one in ("shape", "smell"):
        with pytest.raises(ValueError, match=f"cannot leave out {wrong_one}"):
            without(mention, (wrong_one,))
    plain, open_ones = (
        [r[2] for r in records(60, 5, corrupt=0.5, **knobs)] for knobs in ({}, {"untold": ("background",)})
    )
    told = [parse(caption).background for facts in plain for caption in facts["captions"]]
    assert any(told) and len(told) == 180
    assert not any(parse(caption).background for facts in open_ones for caption in facts["captions"])
    assert [facts["background"] for facts in plain] == [facts["background"] for facts in open_ones]
