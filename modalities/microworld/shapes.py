"""Shapes and textures as functions of the plane: distance to an outline, and where the paint is dark.

Coordinates are the object's own: origin at its centre, unit length its radius, y downwards. A distance is negative inside; it is exact near
the outline and a bound elsewhere, which is all that antialiasing needs.
"""

import numpy as np
from jaxtyping import Float

Plane = Float[np.ndarray, "objects rows columns"]
Cycles = Float[np.ndarray, "objects 1 1"]


def circle(x: Plane, y: Plane) -> Plane:
    return np.sqrt(x * x + y * y) - 0.95


def square(x: Plane, y: Plane) -> Plane:
    return np.maximum(np.abs(x), np.abs(y)) - 0.82


def triangle(x: Plane, y: Plane) -> Plane:
    return np.maximum(np.abs(x) * 0.866 - (y - 0.15) * 0.5, y - 0.15) - 0.57


def star(x: Plane, y: Plane) -> Plane:
    """Five points: the plane folded onto one of them, as in Quilez' `sdStar5`."""
    sharp = 0.45
    x, y = np.abs(x), -y
    for kx, ky in ((0.809017, -0.587785), (-0.809017, -0.587785)):
        fold = 2 * np.maximum(kx * x + ky * y, 0)
        x, y = x - fold * kx, y - fold * ky
    x, y = np.abs(x), y - 1.1
    bx, by = sharp * 0.587785, sharp * 0.809017 - 1
    along = np.clip((x * bx + y * by) / (bx * bx + by * by), 0, 1.1)
    return np.hypot(x - bx * along, y - by * along) * np.sign(y * bx - x * by)


def cross(x: Plane, y: Plane) -> Plane:
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - 0.98, y - 0.32), np.maximum(x - 0.32, y - 0.98))


def ring(x: Plane, y: Plane) -> Plane:
    return np.abs(np.sqrt(x * x + y * y) - 0.72) - 0.25


def crescent(x: Plane, y: Plane) -> Plane:
    x = x + 0.15
    return np.maximum(np.sqrt(x * x + y * y) - 1.0, 0.82 - np.sqrt((x - 0.5) ** 2 + y * y))


def heart(x: Plane, y: Plane) -> Plane:
    x = np.abs(x)
    lobe = np.hypot(x - 0.46, y + 0.32) - 0.52
    point = np.maximum(0.77 * x + 0.64 * y - 0.6, -y - 0.25)
    return np.minimum(lobe, point)


def hexagon(x: Plane, y: Plane) -> Plane:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(0.866 * x + 0.5 * y, y) - 0.86


def diamond(x: Plane, y: Plane) -> Plane:
    return 0.85 * np.abs(x) + 0.53 * np.abs(y) - 0.6


DISTANCE = {f.__name__: f for f in (circle, square, triangle, star, cross, ring, crescent, heart, hexagon, diamond)}


def solid(x: Plane, y: Plane, cycles: Cycles) -> Plane:
    return np.ones_like(x)


def striped(x: Plane, y: Plane, cycles: Cycles) -> Plane:
    return np.sin((0.8 * x + 0.6 * y) * cycles)


def dotted(x: Plane, y: Plane, cycles: Cycles) -> Plane:
    return 0.6 - np.sin(x * cycles) * np.sin(y * cycles) * 1.9


def checkered(x: Plane, y: Plane, cycles: Cycles) -> Plane:
    return np.sin(x * cycles * 0.75) * np.sin(y * cycles * 0.75) * 1.6


def zigzag(x: Plane, y: Plane, cycles: Cycles) -> Plane:
    return np.sin(y * cycles * 1.2 + 2.4 * np.abs((x * cycles * 0.4) % 2 - 1))


PATTERN = {f.__name__: f for f in (solid, striped, dotted, checkered, zigzag)}
"""Texture name -> a signed pattern: the paint is full where it is positive and dark where it is negative. `cycles` is radians per radius."""
