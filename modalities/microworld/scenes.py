"""Which objects a scene holds: the table behind the pixels, drawn from a seed.

A value is chosen by an exponential race: value v of weight w wins when E_v / w is smallest, E_v ~ Exp(1), so that P(v) = w / sum w. The E_v
depend on nothing but (seed, scene), hence worlds of the same seed differ only where their knobs make them: drop a colour and just the objects
of that colour change. Scene i of a seed is the same scene however many are drawn with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from .attributes import DEFAULT, OBJECT_ATTRIBUTES, VALUES, number

MAX_OBJECTS = 4
BLOCK = 256
STYLES = ("plain", "dim", "noisy", "blurred", "inverted", "outline")
RADIUS = {"small": (0.11, 0.14), "large": (0.18, 0.225)}  # share of the image's side
CENTRES = (0.23, 0.50, 0.77)
JITTER = 0.05


@dataclass(frozen=True)
class World:
    """The knobs of a world. The default is what the shipped models were trained on."""

    shapes: tuple[str, ...] = DEFAULT["shape"]
    """Shapes that may appear. `hexagon` and `diamond` are held out."""
    colours: tuple[str, ...] = DEFAULT["colour"]
    """Colours that may appear. `pink` and `brown` are held out."""
    textures: tuple[str, ...] = DEFAULT["texture"]
    """Textures that may appear. `zigzag` is held out."""
    sizes: tuple[str, ...] = DEFAULT["size"]
    """Sizes that may appear."""
    backgrounds: tuple[str, ...] = DEFAULT["background"]
    """Backgrounds that may appear. `water` is held out."""
    counts: tuple[float, ...] = (0.45, 0.3, 0.15, 0.1)
    """Weight of scenes with one, two, three and four objects."""
    multiply: Mapping[str, float] = field(default_factory=dict)
    """How much more often a concept appears, as {"colour:red": 0.5}: 0 drops it, 1 leaves it alone."""
    background_bias: float = 0.0
    """First spurious correlation: share of scenes whose background is the one usual for their first object's shape."""
    colour_bias: float = 0.0
    """Second spurious correlation: share of objects whose colour is the one usual for their shape."""
    style: str = "plain"
    """`plain`, or a shift: near (`dim`, `noisy`, `blurred`) or far (`inverted`, `outline`)."""

    def __post_init__(self) -> None:
        for attribute in VALUES:
            allowed = self.allowed(attribute)
            if not allowed:
                raise ValueError(f"{attribute}s are empty: a world needs at least one {attribute}.")
            for value in allowed:
                number(attribute, value)
            if sum(self.weight(attribute, value) for value in allowed) <= 0:
                raise ValueError(f"`multiply` drops every {attribute} of this world: leave at least one.")
        for concept, factor in self.multiply.items():
            attribute, _, value = concept.partition(":")
            number(attribute, value)
            if not 0 <= factor < float("inf"):
                raise ValueError(f"`multiply` gives {concept} a factor of {factor}: it must be 0 or more.")
        if not 1 <= len(self.counts) <= MAX_OBJECTS or min(self.counts) < 0 or sum(self.counts) <= 0:
            raise ValueError(
                f"`counts` is {self.counts}: give one to {MAX_OBJECTS} weights, none negative, not all zero."
            )
        for name in ("background_bias", "colour_bias"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}: it is a share, between 0 and 1.")
        if self.style not in STYLES:
            raise ValueError(f"no style is called {self.style!r}: choose among {', '.join(STYLES)}.")

    def allowed(self, attribute: str) -> tuple[str, ...]:
        return getattr(self, f"{attribute}s")

    def weight(self, attribute: str, value: str) -> float:
        """Relative frequency of a value in this world."""
        return float(value in self.allowed(attribute)) * self.multiply.get(f"{attribute}:{value}", 1.0)

    def weights(self, attribute: str) -> Float[np.ndarray, "values"]:
        return np.array([self.weight(attribute, value) for value in VALUES[attribute]])


@dataclass(frozen=True)
class Scenes:
    """A batch of scene tables. Objects are listed from back to front; slots past `count` mean nothing."""

    index: Int[np.ndarray, "scenes"]
    count: Int[np.ndarray, "scenes"]
    shape: Int[np.ndarray, "scenes 4"]
    colour: Int[np.ndarray, "scenes 4"]
    texture: Int[np.ndarray, "scenes 4"]
    size: Int[np.ndarray, "scenes 4"]
    x: Float[np.ndarray, "scenes 4"]
    """Centre, as a share of the image's width, left to right."""
    y: Float[np.ndarray, "scenes 4"]
    """Centre, as a share of the image's height, top to bottom."""
    radius: Float[np.ndarray, "scenes 4"]
    """As a share of the image's side."""
    angle: Float[np.ndarray, "scenes 4"]
    """Radians."""
    shade: Float[np.ndarray, "scenes 4"]
    """Brightness of the paint."""
    phase: Float[np.ndarray, "scenes 4"]
    """Where the texture begins."""
    background: Int[np.ndarray, "scenes"]
    light: Float[np.ndarray, "scenes 3"]
    """Ambient brightness, and the change of brightness across the image along x and y."""
    offset: Int[np.ndarray, "scenes 4"]
    """Where the background tile (y, x) and the noise tile (y, x) are cut."""
    noise: Float[np.ndarray, "scenes"]
    """Standard deviation of the sensor noise, in units of full scale."""

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice | Int[np.ndarray, "rows"] | Bool[np.ndarray, "rows"]) -> "Scenes":
        return Scenes(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @property
    def present(self) -> Bool[np.ndarray, "scenes 4"]:
        """True for the slots that hold an object."""
        return np.arange(MAX_OBJECTS) < self.count[:, None]


def draw(n: int, seed: int = 0, start: int = 0, world: World | None = None) -> Scenes:
    """Scenes `start` to `start + n` of `seed`. Raises ValueError for a negative number."""
    if n < 1 or seed < 0 or start < 0:
        raise ValueError(
            f"cannot draw {n} scenes from {start} of seed {seed}: give a positive number, and no negative start or seed."
        )
    world = world or World()
    blocks = range(start // BLOCK, (start + n - 1) // BLOCK + 1)
    whole = concatenated([_block(seed, block, world) for block in blocks])
    return whole[start - blocks[0] * BLOCK :][:n]


def concatenated(parts: list[Scenes]) -> Scenes:
    return Scenes(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Scenes)})


def repainted(scenes: Scenes, attribute: str, value: str, slot: int = 0) -> Scenes:
    """The same scenes with one attribute of object `slot` set: a counterfactual pair with the input."""
    column = getattr(scenes, attribute).copy()
    if attribute == "background":
        column[:] = number(attribute, value)
    else:
        column[:, slot] = number(attribute, value)
    return replace(scenes, **{attribute: column})


def redrawn(scenes: Scenes, other: Scenes) -> Scenes:
    """What `scenes` hold in the circumstances of `other`: same objects and background, elsewhere, turned, in another light."""
    low, high = np.array([RADIUS[name] for name in VALUES["size"]]).T
    stretch = (other.radius - low[other.size]) / (high - low)[other.size]
    content = {name: getattr(scenes, name) for name in ("index", "count", "background", *OBJECT_ATTRIBUTES)}
    return replace(other, **content, radius=low[scenes.size] + (high - low)[scenes.size] * stretch)


def _block(seed: int, block: int, world: World) -> Scenes:
    """256 scenes. Every draw is made whatever the knobs say, so that knobs never shift each other's randomness."""
    rng = np.random.default_rng([seed, block])
    slots = (BLOCK, MAX_OBJECTS)
    race = {name: rng.exponential(size=(*slots, len(VALUES[name]))) for name in OBJECT_ATTRIBUTES}
    race_background = rng.exponential(size=(BLOCK, len(VALUES["background"])))
    race_count = rng.exponential(size=(BLOCK, MAX_OBJECTS))
    cell = np.argsort(rng.random((BLOCK, 9)), axis=1)[:, :MAX_OBJECTS]
    jitter = rng.uniform(-JITTER, JITTER, (2, *slots))
    stretch, angle, shade, phase = rng.random((4, *slots))
    light, offset, noise = rng.random((BLOCK, 3)), rng.integers(0, 1 << 30, (BLOCK, 4)), rng.random(BLOCK)
    coin_background, coin_colour = rng.random(BLOCK), rng.random(slots)

    chosen = {name: _winner(race[name], world.weights(name)) for name in OBJECT_ATTRIBUTES}
    count = 1 + _winner(race_count, np.array([*world.counts, *[0.0] * (MAX_OBJECTS - len(world.counts))]))
    background = _winner(race_background, world.weights("background"))
    # Large objects stand behind small ones, so that none is hidden whole.
    behind = np.argsort(np.where(np.arange(MAX_OBJECTS) < count[:, None], -chosen["size"], 1), axis=1, kind="stable")
    chosen = {name: np.take_along_axis(values, behind, 1) for name, values in chosen.items()}
    usual = usual_colour(chosen["shape"])
    swayed = (coin_colour < world.colour_bias) & (world.weights("colour")[usual] > 0)
    chosen["colour"] = np.where(swayed, usual, chosen["colour"])
    usual = usual_background(chosen["shape"][:, 0])
    swayed = (coin_background < world.background_bias) & (world.weights("background")[usual] > 0)
    background = np.where(swayed, usual, background)

    low, high = np.array([RADIUS[name] for name in VALUES["size"]]).T
    radius = low[chosen["size"]] + (high - low)[chosen["size"]] * stretch
    centres = np.array(CENTRES)
    return Scenes(
        index=np.arange(block * BLOCK, (block + 1) * BLOCK),
        count=count,
        **chosen,
        x=centres[cell % 3] + jitter[0],
        y=centres[cell // 3] + jitter[1],
        radius=radius,
        angle=(angle - 0.5) * 0.6,
        shade=0.85 + 0.15 * shade,
        phase=phase,
        background=background,
        light=np.stack([0.8 + 0.25 * light[:, 0], 0.4 * (light[:, 1] - 0.5), 0.4 * (light[:, 2] - 0.5)], 1),
        offset=offset,
        noise=0.01 + 0.03 * noise,
    )


def usual_background(shape: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """The background that `background_bias` ties to a shape."""
    return shape % len(DEFAULT["background"])


def usual_colour(shape: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """The colour that `colour_bias` ties to a shape."""
    return shape % len(DEFAULT["colour"])


def _winner(race: Float[np.ndarray, "... values"], weights: Float[np.ndarray, "values"]) -> Int[np.ndarray, "..."]:
    with np.errstate(divide="ignore"):
        return np.argmin(race * (1 / weights), axis=-1)
