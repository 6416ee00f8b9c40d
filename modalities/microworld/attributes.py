"""What the microworld is made of: the values of each attribute, the words for them, and the tree above them.

The last values of an attribute (`HELD_OUT`) are never drawn by default: a world that asks for them is out of distribution for every model
trained on the default one.
"""

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "crescent", "heart")
TEXTURES = ("solid", "striped", "dotted", "checkered")
SIZES = ("small", "large")
BACKGROUNDS = ("sand", "grass", "night", "stone")

COLOURS = {
    "red": (0.86, 0.10, 0.12),
    "orange": (0.97, 0.53, 0.06),
    "yellow": (0.98, 0.90, 0.12),
    "green": (0.10, 0.68, 0.18),
    "cyan": (0.10, 0.82, 0.86),
    "blue": (0.12, 0.24, 0.88),
    "purple": (0.56, 0.14, 0.78),
    "white": (0.97, 0.97, 0.97),
    "pink": (0.99, 0.55, 0.75),
    "brown": (0.45, 0.26, 0.10),
}
"""Colour name -> RGB in [0, 1] before lighting. The last two are held out."""

HELD_OUT = {
    "shape": ("hexagon", "diamond"),
    "colour": ("pink", "brown"),
    "texture": ("zigzag",),
    "size": (),
    "background": ("water",),
}

VALUES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES + HELD_OUT["shape"],
    "colour": tuple(COLOURS),
    "texture": TEXTURES + HELD_OUT["texture"],
    "size": SIZES,
    "background": BACKGROUNDS + HELD_OUT["background"],
}
"""Attribute -> every value it can have; a value's number anywhere in the microworld is its place here."""

OBJECT_ATTRIBUTES = ("shape", "colour", "texture", "size")
DEFAULT: dict[str, tuple[str, ...]] = {
    name: tuple(v for v in values if v not in HELD_OUT[name]) for name, values in VALUES.items()
}

WORDS = {
    "shape": {
        "circle": ("circle", "disc"),
        "square": ("square", "box"),
        "triangle": ("triangle", "pyramid"),
        "star": ("star",),
        "cross": ("cross", "plus"),
        "ring": ("ring", "hoop"),
        "crescent": ("crescent", "moon"),
        "heart": ("heart",),
        "hexagon": ("hexagon",),
        "diamond": ("diamond",),
    },
    "colour": {
        "red": ("red", "crimson"),
        "orange": ("orange",),
        "yellow": ("yellow",),
        "green": ("green",),
        "cyan": ("cyan", "turquoise"),
        "blue": ("blue",),
        "purple": ("purple", "violet"),
        "white": ("white",),
        "pink": ("pink",),
        "brown": ("brown",),
    },
    "texture": {
        "solid": ("solid", "plain"),
        "striped": ("striped",),
        "dotted": ("dotted", "spotted"),
        "checkered": ("checkered", "chequered"),
        "zigzag": ("zigzag",),
    },
    "size": {"small": ("small", "little", "tiny"), "large": ("large", "big")},
    "background": {
        "sand": ("sand", "beach"),
        "grass": ("grass", "lawn"),
        "night": ("night", "darkness"),
        "stone": ("stone", "rock"),
        "water": ("water",),
    },
}
"""Attribute -> value -> the words a caption may use for it, the first being the value's own name. No word is used twice."""

TAXONOMY = {
    "round": ("circle", "ring", "crescent", "heart"),
    "angular": ("square", "triangle", "star", "cross", "hexagon", "diamond"),
    "warm": ("red", "orange", "yellow", "pink", "brown"),
    "cool": ("green", "cyan", "blue", "purple"),
    "neutral": ("white",),
    "patterned": ("striped", "dotted", "checkered", "zigzag"),
    "even": ("solid",),
    "dry": ("sand", "stone"),
    "living": ("grass",),
    "dark": ("night",),
    "wet": ("water",),
    "shape": ("round", "angular"),
    "colour": ("warm", "cool", "neutral"),
    "texture": ("patterned", "even"),
    "size": SIZES,
    "background": ("dry", "living", "dark", "wet"),
    "attribute": ("shape", "colour", "texture", "size", "background"),
}
"""Parent -> children: a tree with `attribute` at its root and every value as a leaf."""


def parents() -> dict[str, str]:
    """Child -> parent over the whole taxonomy; the root is no child."""
    return {child: parent for parent, children in TAXONOMY.items() for child in children}


def concepts(held_out: bool = False) -> tuple[str, ...]:
    """Every attribute and value as `attribute:value`, the form attribute tables use."""
    values = VALUES if held_out else DEFAULT
    return tuple(f"{attribute}:{value}" for attribute in values for value in values[attribute])


def number(attribute: str, value: str) -> int:
    """Place of `value` in `VALUES[attribute]`. Raises ValueError, naming the known ones."""
    if attribute not in VALUES:
        raise ValueError(f"the microworld has no attribute {attribute!r}: choose one of {', '.join(VALUES)}.")
    if value not in VALUES[attribute]:
        raise ValueError(f"no {attribute} is called {value!r}: choose among {', '.join(VALUES[attribute])}.")
    return VALUES[attribute].index(value)
