"""Captions: what is said of a scene (a `Mention`), how it is put (`say`), and back from the words to what was said (`parse`).

`parse(say(mention, rng)) == mention` for every mention: that is what makes a caption's attributes known.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .attributes import OBJECT_ATTRIBUTES, WORDS
from .tables import OPPOSITE, relation

READ = {
    word: (attribute, value) for attribute in WORDS for value in WORDS[attribute] for word in WORDS[attribute][value]
}
RELATION_WORDS = {
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
GROUND = {
    "sand": ("on sand", "on the beach"),
    "grass": ("on grass", "on a lawn"),
    "night": ("at night", "in darkness"),
    "stone": ("on stone", "on rock"),
    "water": ("on water",),
}
OPENINGS = ("", "", "a picture of ", "there is ", "this shows ")


@dataclass(frozen=True)
class Mention:
    """What a caption says. Only what is in it is said; a scene may hold more."""

    objects: tuple[dict[str, str], ...]
    """Attribute -> value of each object named, in the order they are named; every one has a shape."""
    background: str | None = None
    relation: str | None = None
    """How the first object stands to the second."""
    position: str | None = None
    """Where the only object is."""


def choose(facts: dict[str, Any], rng: np.random.Generator, detail: float = 0.75) -> Mention:
    """Something true to say of a scene: every fact but the shapes is told with probability `detail`."""
    objects = list(facts["objects"])
    named = [objects[i] for i in rng.permutation(len(objects))]
    if len(named) > 1 and rng.random() > detail:
        named = named[: 1 + int(rng.integers(len(named) - 1))]
    keep = ("shape", "colour") if rng.random() < detail else ("shape",)
    told = tuple(
        {name: o[name] for name in OBJECT_ATTRIBUTES if name in keep or rng.random() < detail * 0.8} for o in named
    )
    return Mention(
        objects=told,
        background=facts["background"] if rng.random() < detail else None,
        relation=relation(named[0], named[1]) if len(named) == 2 and rng.random() < detail else None,
        position=named[0]["position"] if len(objects) == 1 and rng.random() < detail * 0.6 else None,
    )


def everything(facts: dict[str, Any]) -> Mention:
    """All objects with all their attributes, from back to front."""
    objects = tuple({name: o[name] for name in OBJECT_ATTRIBUTES} for o in facts["objects"])
    where = relation(facts["objects"][0], facts["objects"][1]) if len(objects) == 2 else None
    return Mention(objects, facts["background"], where, facts["objects"][0]["position"] if len(objects) == 1 else None)


def say(mention: Mention, rng: np.random.Generator | None = None) -> str:
    """A sentence for a mention; without `rng` the plainest one, always the same."""
    phrases = [_object(o, rng) for o in mention.objects]
    if mention.relation and len(phrases) == 2:
        first, second, word = phrases[0], phrases[1], mention.relation
        body = f"{first} {_pick(RELATION_WORDS[word], rng)} {second}"
    else:
        body = ", ".join(phrases[:-1]) + " and " * (len(phrases) > 1) + phrases[-1]
    if mention.position:
        name = mention.position
        body += f" {'in' if name == 'centre' else 'at'} the {name}"
    opening = _pick(OPENINGS, rng)
    if mention.background is None:
        return opening + body
    ground = _pick(GROUND[mention.background], rng)
    if rng is not None and rng.random() < 0.25:
        return f"{ground}, {body}"
    return f"{opening}{body} {ground}"


def parse(caption: str) -> Mention:
    """What a caption says; words it does not know are passed over."""
    words = re.findall(r"[a-z]+", caption.lower())
    objects: list[dict[str, str]] = []
    pending: dict[str, str] = {}
    background = where = None
    place: list[str] = []
    tail = False
    for i, word in enumerate(words):
        following = words[i + 1] if i + 1 < len(words) else ""
        attribute, value = READ.get(word, ("", ""))
        if word in ("a", "an", "the", "one"):
            tail = False
        elif word == "that" and objects:
            tail = True
        elif attribute == "shape":
            objects.append({"shape": value} | pending)
            pending = {}
        elif attribute == "background":
            background = value
        elif attribute:
            (objects[-1] if tail else pending)[attribute] = value
        elif word in ("left", "right") and following == "of":
            where = f"{word} of"
        elif word in ("above", "over", "below", "under"):
            where = "above" if word in ("above", "over") else "below"
        elif word in ("top", "bottom", "left", "right", "centre"):
            place.append(word)
    ordered = tuple({name: o[name] for name in OBJECT_ATTRIBUTES if name in o} for o in objects)
    return Mention(ordered, background, where, " ".join(place) or None)


def without(mention: Mention, untold: Collection[str]) -> Mention:
    """The same, but for some attributes. Raises ValueError for a shape, without which there is nothing to say, and for what is no attribute."""
    if wrong := sorted(set(untold) - (set(WORDS) - {"shape"})):
        raise ValueError(
            f"captions cannot leave out {', '.join(wrong)}: choose among {', '.join(a for a in WORDS if a != 'shape')}."
        )
    told = tuple({name: value for name, value in each.items() if name not in untold} for each in mention.objects)
    return replace(mention, objects=told, background=None if "background" in untold else mention.background)


def turned(mention: Mention) -> Mention:
    """The same fact told from the other object: `a left of b` becomes `b right of a`."""
    if mention.relation is None:
        return mention
    return Mention(mention.objects[::-1], mention.background, OPPOSITE[mention.relation], mention.position)


def _object(told: dict[str, str], rng: np.random.Generator | None) -> str:
    shape = _pick(WORDS["shape"][told["shape"]], rng)
    words = {name: _pick(WORDS[name][told[name]], rng) for name in ("size", "colour", "texture") if name in told}
    order = list(words)
    if rng is not None and rng.random() < 0.3:
        order = [name for name in ("size", "texture", "colour") if name in words]
    if rng is not None and order and rng.random() < 0.15:
        return f"{_article(shape)} {shape} that is {' and '.join(words[name] for name in order)}"
    phrase = " ".join([*(words[name] for name in order), shape])
    return f"{_article(phrase)} {phrase}"


def _article(phrase: str) -> str:
    return "an" if phrase[0] in "aeiou" else "a"


def _pick(options: tuple[str, ...], rng: np.random.Generator | None) -> str:
    """The first option is as likely as all others together: synonyms are the exception, as they are in life."""
    if rng is None or len(options) == 1 or rng.random() < 0.5:
        return options[0]
    return options[int(rng.integers(len(options)))]
