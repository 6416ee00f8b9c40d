"""Captions that do not match their image, of a known kind: what a data filter should find.

`wrong` replaces the value of one attribute, `missing` leaves an object out (or, of a single one, all but its shape), `swapped` exchanges the
colours of two objects (or, where that says the same, shapes or textures), `mismatched` is the caption of another scene.
"""

from dataclasses import replace

import numpy as np

from .attributes import DEFAULT
from .captions import Mention

KINDS = ("wrong", "missing", "swapped", "mismatched")


def wrong(mention: Mention, rng: np.random.Generator) -> Mention:
    """One attribute of one object gets another value of the default world."""
    objects = [dict(o) for o in mention.objects]
    chosen = objects[int(rng.integers(len(objects)))]
    name = str(rng.choice(sorted(chosen)))
    others = [value for value in DEFAULT[name] if value != chosen[name]]
    chosen[name] = str(rng.choice(others))
    return replace(mention, objects=tuple(objects))


def missing(mention: Mention, rng: np.random.Generator) -> Mention:
    """One object fewer; a single object keeps only its shape, and the rest goes unsaid."""
    if len(mention.objects) == 1:
        return Mention(({"shape": mention.objects[0]["shape"]},))
    gone = int(rng.integers(len(mention.objects)))
    return replace(mention, objects=mention.objects[:gone] + mention.objects[gone + 1 :], relation=None)


def swapped(mention: Mention, rng: np.random.Generator) -> Mention | None:
    """Two objects exchange colour, shape or texture; None if no exchange would say something else."""
    for name in ("colour", "shape", "texture"):
        pairs = [
            (i, j)
            for i, a in enumerate(mention.objects)
            for j, b in enumerate(mention.objects)
            if i < j and a.get(name, b.get(name)) != b.get(name, a.get(name)) and {**a, name: 0} != {**b, name: 0}
        ]
        if pairs:
            i, j = pairs[int(rng.integers(len(pairs)))]
            objects = [dict(o) for o in mention.objects]
            objects[i][name], objects[j][name] = objects[j][name], objects[i][name]
            return replace(mention, objects=tuple(objects))
    return None


def corrupted(mention: Mention, other: Mention, kind: str, rng: np.random.Generator) -> tuple[Mention, str]:
    """The mention spoiled as `kind` says, and the kind it became: where nothing can be swapped, `wrong`.

    `other` is a mention of another scene. Raises ValueError for an unknown kind.
    """
    if kind == "mismatched":
        return other, kind
    if kind == "missing":
        return missing(mention, rng), kind
    if kind == "swapped" and (exchanged := swapped(mention, rng)) is not None:
        return exchanged, kind
    if kind in ("swapped", "wrong"):
        return wrong(mention, rng), "wrong"
    raise ValueError(f"no corruption is called {kind!r}: choose among {', '.join(KINDS)}.")
