"""What is true of a scene, as plain JSON: objects with their attributes, positions and relations."""

from typing import Any

import numpy as np
from jaxtyping import UInt8

from .attributes import OBJECT_ATTRIBUTES, VALUES
from .scenes import Scenes

RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
SIDE = 0.365, 0.635  # between them an object is in the middle


def position(x: float, y: float) -> str:
    """One of nine names, `top left` to `bottom right`, with `centre` in the middle."""
    across = "left" if x < SIDE[0] else "right" if x > SIDE[1] else ""
    down = "top" if y < SIDE[0] else "bottom" if y > SIDE[1] else ""
    return f"{down} {across}".strip() or "centre"


def relation(a: dict[str, Any], b: dict[str, Any]) -> str:
    """Where object `a` is, seen from object `b`: along the axis on which their centres differ more."""
    dx, dy = a["x"] - b["x"], a["y"] - b["y"]
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def table(scenes: Scenes, row: int, instances: UInt8[np.ndarray, "rows columns"] | None = None) -> dict[str, Any]:
    """The facts of scene `row`: `label` (shape of the main, hindmost object), `background`, `objects`, `relations`, `attributes`, `light`.

    With its instance mask each object also gets `pixels`, the number of pixels at which it is seen.
    """
    objects: list[dict[str, Any]] = []
    for slot in range(int(scenes.count[row])):
        facts: dict[str, Any] = {name: VALUES[name][getattr(scenes, name)[row, slot]] for name in OBJECT_ATTRIBUTES}
        facts |= {name: round(float(getattr(scenes, name)[row, slot]), 4) for name in ("x", "y", "radius", "angle")}
        facts["position"] = position(facts["x"], facts["y"])
        if instances is not None:
            facts["pixels"] = int((instances == slot + 1).sum())
        objects.append(facts)
    background = VALUES["background"][scenes.background[row]]
    seen = {f"{name}:{facts[name]}" for facts in objects for name in OBJECT_ATTRIBUTES} | {f"background:{background}"}
    return {
        "label": objects[0]["shape"],
        "background": background,
        "objects": objects,
        "relations": [[i, relation(a, b), j] for i, a in enumerate(objects) for j, b in enumerate(objects) if i != j],
        "attributes": sorted(seen),
        "light": [round(float(v), 4) for v in scenes.light[row]],
    }
