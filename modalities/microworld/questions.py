"""Yes/no questions about a scene, half of them answered no, and the no's not easy: what they ask for is there, only not together.

The kinds: `shape`, `colour`, `pair` (a colour on a shape), `texture`, `background`, `relation`.
"""

from typing import Any, NamedTuple

import numpy as np

from .attributes import DEFAULT
from .tables import OPPOSITE, relation

KINDS = ("shape", "colour", "pair", "texture", "background", "relation")


class Question(NamedTuple):
    text: str
    answer: bool
    kind: str


def ask(facts: dict[str, Any], rng: np.random.Generator, kind: str | None = None) -> Question:
    """A question of `kind` (any, by default) about a scene's facts. A scene where no two objects can be told apart gets `pair` for `relation`.

    Raises ValueError for an unknown kind.
    """
    kind = kind or KINDS[int(rng.integers(len(KINDS)))]
    if kind not in KINDS:
        raise ValueError(f"no kind of question is called {kind!r}: choose among {', '.join(KINDS)}.")
    yes = bool(rng.random() < 0.5)
    if kind == "relation":
        if (question := _relation(facts, rng, yes)) is not None:
            return question
        kind = "pair"
    if kind == "pair":
        return _pair(facts, rng, yes)
    there = {facts["background"]} if kind == "background" else {o[kind] for o in facts["objects"]}
    absent = [value for value in DEFAULT[kind] if value not in there]
    value = str(rng.choice(sorted(there) if yes or not absent else absent))
    text = {
        "shape": f"is there {_article(value)} {value}?",
        "colour": f"is anything {value}?",
        "texture": f"is anything {value}?",
        "background": f"is the background {value}?",
    }[kind]
    return Question(text, value in there, kind)


def _pair(facts: dict[str, Any], rng: np.random.Generator, yes: bool) -> Question:
    objects = facts["objects"]
    there = {(o["colour"], o["shape"]) for o in objects}
    if yes:
        colour, shape = sorted(there)[int(rng.integers(len(there)))]
    else:
        crossed = sorted({(a["colour"], b["shape"]) for a in objects for b in objects} - there)
        if not crossed or rng.random() < 0.4:
            one = objects[int(rng.integers(len(objects)))]
            crossed = [(colour, one["shape"]) for colour in DEFAULT["colour"]]
            crossed += [(one["colour"], shape) for shape in DEFAULT["shape"]]
            crossed = [pair for pair in crossed if pair not in there]
        colour, shape = crossed[int(rng.integers(len(crossed)))]
    return Question(f"is there {_article(colour)} {colour} {shape}?", (colour, shape) in there, "pair")


def _relation(facts: dict[str, Any], rng: np.random.Generator, yes: bool) -> Question | None:
    shapes = [o["shape"] for o in facts["objects"]]
    single = [o for o in facts["objects"] if shapes.count(o["shape"]) == 1]
    if len(single) < 2:
        return None
    i, j = (int(v) for v in rng.permutation(len(single))[:2])
    a, b = single[i], single[j]
    word = relation(a, b)
    asked = word if yes else OPPOSITE[word]
    return Question(f"is the {a['shape']} {asked} the {b['shape']}?", yes, "relation")


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
