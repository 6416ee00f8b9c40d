"""Scene tables to pixels, masks included: a pure function, the same for a scene whatever batch it is in.

    canvas = background tile, cut at the scene's offset
    for each object, back to front:  canvas <- (1 - a) canvas + a paint,   a = clip(1/2 - distance in pixels, 0, 1)
    image  = canvas * light + noise

Objects are drawn in tiles around their centre, all objects of one size in one go; that is what makes it thousands of scenes a second.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, UInt8
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import gaussian_filter, map_coordinates

from .attributes import COLOURS, VALUES
from .scenes import MAX_OBJECTS, RADIUS, Scenes
from .shapes import DISTANCE, PATTERN

SIZES = (64, 96)
TILE = 256
DARK = 0.45
CHUNK = 32  # scenes drawn at once: the canvases then fit in the second-level cache
REACH = 1.25  # a tile's half side over its object's radius

PALETTE = np.array(list(COLOURS.values()), np.float32)


@dataclass(frozen=True)
class Rendered:
    images: UInt8[np.ndarray, "scenes rows columns 3"]
    instances: UInt8[np.ndarray, "scenes rows columns"]
    """0 where the background shows, else 1 + the slot of the foremost object."""

    def mask(self, scenes: Scenes, attribute: str) -> UInt8[np.ndarray, "scenes rows columns"]:
        """Per pixel, 1 + the number of the attribute's value at the object seen there, 0 on the background.

        For `background` it is the other way round: 1 + its number where the background shows, 0 on objects.
        """
        table = np.zeros((len(scenes), 1 + MAX_OBJECTS), np.uint8)
        if attribute == "background":
            table[:, 0] = 1 + scenes.background
        else:
            table[:, 1:] = 1 + getattr(scenes, attribute)
        return table[np.arange(len(scenes))[:, None, None], self.instances]


def render(scenes: Scenes, size: int = 64, style: str = "plain", paint_only: bool = False) -> Rendered:
    """Draw every scene at `size` x `size` pixels. `paint_only` leaves out light and noise. Raises ValueError for a size outside 64 to 96."""
    if not SIZES[0] <= size <= SIZES[1]:
        raise ValueError(f"scenes of {size} pixels are not drawn: choose a size from {SIZES[0]} to {SIZES[1]}.")
    images = np.empty((len(scenes), size, size, 3), np.uint8)
    instances = np.empty((len(scenes), size, size), np.uint8)
    for start in range(0, len(scenes), CHUNK):
        part = scenes[start : start + CHUNK]
        canvas, instances[start : start + CHUNK] = _drawn(part, size, outline=style == "outline")
        if not paint_only:
            _light(canvas, part, size, style)
        images[start : start + CHUNK] = np.clip(canvas * 255 + 0.5, 0, 255)
    return Rendered(images, instances)


def _drawn(
    scenes: Scenes, size: int, outline: bool
) -> tuple[Float[np.ndarray, "scenes rows columns 3"], UInt8[np.ndarray, "scenes rows columns"]]:
    margin = int(np.ceil(max(high for _, high in RADIUS.values()) * REACH * size)) + 1
    inner = slice(margin, margin + size)
    canvas = np.zeros((len(scenes), size + 2 * margin, size + 2 * margin, 3), np.float32)
    canvas[:, inner, inner] = _cut(_backgrounds(), scenes.offset[:, 0], scenes.offset[:, 1], size, scenes.background)
    instances = np.zeros(canvas.shape[:3], np.uint8)
    for slot in range(MAX_OBJECTS):
        for number, name in enumerate(VALUES["size"]):
            rows = np.flatnonzero(scenes.present[:, slot] & (scenes.size[:, slot] == number))
            if len(rows):
                half = int(np.ceil(RADIUS[name][1] * REACH * size))
                _stamp(canvas, instances, scenes, rows, slot, size, half, margin, outline)
    return canvas[:, inner, inner].copy(), instances[:, inner, inner]


def _stamp(
    canvas: np.ndarray,
    instances: np.ndarray,
    scenes: Scenes,
    rows: np.ndarray,
    slot: int,
    size: int,
    half: int,
    margin: int,
    outline: bool,
) -> None:
    """Paint object `slot` of the scenes `rows` in place, in tiles of 2 * half + 1 pixels."""

    def column(name: str) -> np.ndarray:
        return getattr(scenes, name)[rows, slot].astype(np.float32)[:, None, None]

    x, y, radius, angle = (column(name) for name in ("x", "y", "radius", "angle"))
    reach = np.arange(-half, half + 1)
    left, top = np.floor(x * size).astype(int), np.floor(y * size).astype(int)
    dx = ((left + reach + 0.5).astype(np.float32) - x * size) / (radius * size)
    dy = ((top + reach[:, None] + 0.5).astype(np.float32) - y * size) / (radius * size)
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = cos * dx + sin * dy, cos * dy - sin * dx

    distance, pattern = np.empty_like(u), np.empty_like(u)
    cycles = np.maximum(9.0, 6.3 * radius * size / 5.5).astype(np.float32)
    phase = column("phase") * (6.2832 / cycles)
    for number in np.unique(scenes.shape[rows, slot]):
        members = scenes.shape[rows, slot] == number
        distance[members] = DISTANCE[VALUES["shape"][number]](u[members], v[members])
    for number in np.unique(scenes.texture[rows, slot]):
        members = scenes.texture[rows, slot] == number
        paint = PATTERN[VALUES["texture"][number]]
        pattern[members] = paint(u[members] + phase[members], v[members] + phase[members], cycles[members])
    if outline:
        distance, pattern = np.abs(distance + 0.08) - 0.08, np.ones_like(pattern)

    alpha = np.clip(0.5 - distance * (radius * size), 0, 1)
    bright = np.clip(0.5 + pattern * 1.6, 0, 1) * (1 - DARK) + DARK
    colour = PALETTE[scenes.colour[rows, slot]][:, None, None] * (column("shade") * bright)[..., None]
    where = (rows[:, None, None], top + reach[:, None] + margin, left + reach + margin)
    under = canvas[where]
    under += alpha[..., None] * (colour - under)
    canvas[where] = under
    seen = instances[where]
    seen[alpha > 0.5] = slot + 1
    instances[where] = seen


def _light(canvas: np.ndarray, scenes: Scenes, size: int, style: str) -> None:
    """Light, sensor noise and style, in place."""
    along = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
    ambient, across, down = scenes.light.astype(np.float32).T[:, :, None, None]
    light = ambient + across * along + down * along[:, None]
    if style == "dim":
        light = light * np.float32(0.35)
    canvas *= light[..., None]
    if style == "blurred":
        canvas[:] = gaussian_filter(canvas, (0, 1.5, 1.5, 0))
    if style == "inverted":
        np.subtract(1, canvas, out=canvas)
    strength = scenes.noise.astype(np.float32) * np.float32(5 if style == "noisy" else 1)
    grain = _cut(_grain()[None], scenes.offset[:, 2], scenes.offset[:, 3], size, np.zeros(len(scenes), int))
    canvas += grain * strength[:, None, None, None]


def _cut(
    tiles: np.ndarray, y: np.ndarray, x: np.ndarray, size: int, which: np.ndarray
) -> Float[np.ndarray, "scenes rows columns 3"]:
    """A window of each scene's tile; the tiles are stored wide enough that any offset in [0, TILE) fits."""
    windows = sliding_window_view(tiles, (size, size), axis=(1, 2))[which, y % TILE, x % TILE]
    return np.moveaxis(windows, 1, -1)


@cache
def _grain() -> Float[np.ndarray, "side side 3"]:
    return np.random.default_rng(1).standard_normal((TILE + SIZES[1], TILE + SIZES[1], 3), np.float32)


@cache
def _backgrounds() -> Float[np.ndarray, "backgrounds side side 3"]:
    """One large tile for each background, from smoothed noise: rough sand, streaks of grass, a night with stars, blocks of stone, waves."""
    side = TILE + SIZES[1]
    rng = np.random.default_rng(0)

    def smooth(*sigma: float) -> np.ndarray:
        field = gaussian_filter(rng.standard_normal((side, side)), sigma, mode="wrap")
        return field / field.std()

    def coloured(rgb: tuple[float, float, float], field: np.ndarray, depth: float) -> np.ndarray:
        return np.array(rgb) * (1 + depth * field)[..., None]

    down, across = np.mgrid[:side, :side].astype(float)
    sand = coloured((0.78, 0.68, 0.50), 0.6 * smooth(0.8, 0.8) + 0.6 * smooth(6.0, 6.0), 0.07)
    grass = coloured((0.30, 0.42, 0.22), smooth(3.0, 0.6), 0.22)
    stars = gaussian_filter((rng.random((side, side)) < 0.008).astype(float), 0.5)
    night = coloured((0.08, 0.09, 0.20), smooth(8.0, 8.0), 0.25) + np.clip(stars * 1.5, 0, 0.8)[..., None]
    bent = map_coordinates(
        smooth(1.2, 1.2), [down // 9 * 9 % side, (across + down // 9 * 4) // 12 * 12 % side], order=0
    )
    joints = ((down % 9 < 1) | ((across + down // 9 * 4) % 12 < 1)).astype(float)
    stone = coloured((0.48, 0.46, 0.46), 0.5 * bent - 1.6 * joints + 0.3 * smooth(0.7, 0.7), 0.14)
    waves = np.sin(down * 0.7 + 1.5 * smooth(7.0, 7.0) + np.sin(across * 0.15))
    water = coloured((0.16, 0.42, 0.55), waves, 0.18)
    return np.clip(np.stack([sand, grass, night, stone, water]), 0, 1).astype(np.float32)
