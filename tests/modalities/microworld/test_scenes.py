"""The same scene for the same seed, pixels that agree with the table, knobs that change what they say and nothing else."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from modalities.microworld.attributes import COLOURS, DEFAULT, TAXONOMY, VALUES, WORDS, concepts, parents
from modalities.microworld.renderer import render
from modalities.microworld.scenes import STYLES, World, draw, redrawn, repainted, usual_background, usual_colour
from modalities.microworld.tables import OPPOSITE, position, relation, table

DIGEST = """
import hashlib
from modalities.microworld import draw, render
scenes = draw(40, seed=5)
print(hashlib.sha256(render(scenes).images.tobytes()).hexdigest())
"""


def test_another_process_draws_the_same_bytes():
    here = hashlib.sha256(render(draw(40, seed=5)).images.tobytes()).hexdigest()
    there = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True).stdout.strip()
    assert here == there
    assert here != hashlib.sha256(render(draw(40, seed=6)).images.tobytes()).hexdigest()


def test_a_scene_is_the_same_in_any_batch():
    whole = render(draw(600, seed=1))
    np.testing.assert_array_equal(render(draw(1, seed=1, start=517)).images[0], whole.images[517])
    np.testing.assert_array_equal(render(draw(90, seed=1, start=250)).instances, whole.instances[250:340])


def test_paint_has_the_objects_colour():
    """Before lighting, a pixel well inside a red object is red, darkened at most: its direction in RGB is the colour's."""
    scenes = draw(400, seed=2)
    drawn = render(scenes, paint_only=True)
    colour = drawn.mask(scenes, "colour")
    inner = colour.copy()
    for shift in (-1, 1):  # a pixel whose neighbours are the same object is free of its antialiased edge
        for axis in (1, 2):
            inner[drawn.instances != np.roll(drawn.instances, shift, axis)] = 0
    for number, (name, rgb) in enumerate(COLOURS.items()):
        pixels = drawn.images[inner == number + 1].astype(float)
        if name not in DEFAULT["colour"]:
            assert len(pixels) == 0
            continue
        cosine = pixels @ np.array(rgb) / np.linalg.norm(pixels, axis=1) / np.linalg.norm(rgb)
        assert (
            len(pixels) > 1000 and (cosine > 0.99).mean() > 0.998
        )  # the rest: tips of other objects, thinner than a pixel
        brightness = pixels.max(1) / 255 / max(rgb)
        assert brightness.min() > 0.25 and brightness.max() <= 1.01


def test_areas_are_those_of_the_shapes():
    """One large circle and one ring, far from the border: pixel counts against geometry, in units of radius squared."""
    for shape, area in (("circle", np.pi * 0.95**2), ("square", 4 * 0.82**2), ("ring", np.pi * (0.97**2 - 0.47**2))):
        scenes = draw(200, seed=3, world=World(shapes=(shape,), sizes=("large",), counts=(1.0,)))
        central = np.flatnonzero((abs(scenes.x[:, 0] - 0.5) < 0.1) & (abs(scenes.y[:, 0] - 0.5) < 0.1))
        seen = (render(scenes[central]).instances > 0).sum((1, 2))
        np.testing.assert_allclose(seen, area * (scenes.radius[central, 0] * 64) ** 2, rtol=0.05)


def test_masks_follow_the_table():
    scenes = draw(64, seed=4)
    drawn = render(scenes)
    for attribute in VALUES:
        mask = drawn.mask(scenes, attribute)
        assert ((mask > 0) == ((drawn.instances == 0) if attribute == "background" else (drawn.instances > 0))).all()
    row, slot = 0, 0
    where = drawn.instances[row] == slot + 1
    assert (drawn.mask(scenes, "shape")[row][where] == scenes.shape[row, slot] + 1).all()
    facts = table(scenes, row, drawn.instances[row])
    assert facts["objects"][slot]["pixels"] == where.sum() > 0


def test_the_front_object_hides_the_one_behind():
    scenes = draw(2000, seed=8, world=World(counts=(0.0, 1.0)))
    near = np.flatnonzero(np.hypot(np.diff(scenes.x[:, :2]), np.diff(scenes.y[:, :2]))[:, 0] < 0.2)
    alone = render(scenes[near])
    assert len(near) > 10
    assert ((alone.instances == 2).sum((1, 2)) > 20).all()  # the front one is seen
    assert (scenes.size[:, 0] >= scenes.size[:, 1]).all()  # and it is never the larger


def test_at_96_pixels_the_same_scene_is_larger():
    scenes = draw(50, seed=1)
    small, large = render(scenes, 64).instances, render(scenes, 96).instances
    np.testing.assert_allclose((small > 0).mean((1, 2)), (large > 0).mean((1, 2)), atol=0.02)


def test_frequencies_are_the_weights():
    scenes = draw(20_000, seed=0, world=World(multiply={"colour:red": 3.0, "colour:blue": 0.0, "shape:star": 0.5}))
    colour = np.bincount(scenes.colour[scenes.present], minlength=10) / scenes.present.sum()
    assert colour[list(COLOURS).index("blue")] == 0
    assert colour[0] == pytest.approx(3 / 9, abs=0.01)
    star = (scenes.shape[scenes.present] == VALUES["shape"].index("star")).mean()
    assert star == pytest.approx(0.5 / 7.5, abs=0.01)
    assert np.bincount(scenes.count)[1:] / 20_000 == pytest.approx([0.45, 0.3, 0.15, 0.1], abs=0.015)


def test_a_knob_changes_only_its_concept():
    plain, biased = draw(1000, seed=0), draw(1000, seed=0, world=World(multiply={"colour:red": 0.0}))
    was_red = plain.colour == 0
    np.testing.assert_array_equal(plain.colour[~was_red], biased.colour[~was_red])
    assert not (biased.colour[biased.present] == 0).any()
    for name in ("shape", "texture", "size", "x", "y", "background", "noise"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(biased, name))
    untouched = ~(was_red & plain.present).any(1)
    np.testing.assert_array_equal(render(plain[untouched]).images, render(biased[untouched]).images)


def test_held_out_values_appear_only_when_asked_for():
    scenes = draw(3000, seed=0)
    for attribute in ("shape", "colour", "texture"):
        assert set(getattr(scenes, attribute)[scenes.present]) == set(range(len(DEFAULT[attribute])))
    odd = draw(
        300, seed=0, world=World(shapes=("hexagon",), colours=("pink",), textures=("zigzag",), backgrounds=("water",))
    )
    assert table(odd, 0)["attributes"][:3] == ["background:water", "colour:pink", "shape:hexagon"]


def test_spurious_correlations_have_the_strength_asked_for():
    scenes = draw(4000, seed=0, world=World(background_bias=0.9, colour_bias=0.8))
    agree = (scenes.background == usual_background(scenes.shape[:, 0])).mean()
    assert agree == pytest.approx(0.9 + 0.1 / 4, abs=0.02)
    agree = (scenes.colour == usual_colour(scenes.shape))[scenes.present].mean()
    assert agree == pytest.approx(0.8 + 0.2 / 8, abs=0.02)


def test_views_share_content_and_nothing_else():
    scenes, other = draw(200, seed=0), draw(200, seed=1)
    view = redrawn(scenes, other)
    for name in ("shape", "colour", "texture", "size", "count", "background"):
        np.testing.assert_array_equal(getattr(view, name), getattr(scenes, name))
    np.testing.assert_array_equal(view.x, other.x)
    large = view.size == 1
    assert view.radius[large].min() > 0.17 > view.radius[~large].max()


def test_repainting_touches_one_object():
    scenes = draw(100, seed=0, world=World(counts=(0.0, 1.0)))
    blue = repainted(scenes, "colour", "blue", slot=1)
    changed = (render(scenes).images != render(blue).images).any(-1)
    beside = (render(scenes).instances != 2) & ~near(render(scenes).instances == 2)
    assert changed.any() and not changed[beside].any()


def near(mask):
    """Pixels within three of a mask: the antialiased edge, and tips too thin to be in the mask."""
    return sum(np.roll(np.roll(mask, i, 1), j, 2) for i in range(-3, 4) for j in range(-3, 4)) > 0


@pytest.mark.parametrize("style", STYLES)
def test_styles_keep_the_masks(style):
    scenes = draw(20, seed=0)
    styled = render(scenes, style=style)
    if style != "outline":
        np.testing.assert_array_equal(styled.instances, render(scenes).instances)
    assert (style == "plain") == np.array_equal(styled.images, render(scenes).images)


def test_relations_and_positions_by_hand():
    a, b = {"x": 0.2, "y": 0.5}, {"x": 0.8, "y": 0.6}
    assert relation(a, b) == "left of" and relation(b, a) == "right of"
    assert relation({"x": 0.5, "y": 0.2}, {"x": 0.6, "y": 0.8}) == "above"
    assert position(0.2, 0.2) == "top left" and position(0.5, 0.5) == "centre" and position(0.5, 0.8) == "bottom"
    scenes = draw(300, seed=0)
    for row in range(300):
        for i, word, j in table(scenes, row)["relations"]:
            assert [j, OPPOSITE[word], i] in table(scenes, row)["relations"]


def test_the_taxonomy_is_a_tree_over_every_value():
    up = parents()
    assert len(up) == sum(len(children) for children in TAXONOMY.values())  # no child has two parents
    for attribute, values in VALUES.items():
        for value in values:
            path = [value]
            while path[-1] in up:
                path.append(up[path[-1]])
            assert path[-2:] == [attribute, "attribute"]
    assert len(concepts()) == 8 + 8 + 4 + 2 + 4
    words = [word for attribute in WORDS for value in WORDS[attribute] for word in WORDS[attribute][value]]
    assert len(words) == len(set(words))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"shapes": ("blob",)}, "no shape is called 'blob'"),
        ({"colours": ()}, "at least one colour"),
        ({"counts": (0.0, 0.0)}, "one to 4 weights"),
        ({"multiply": {"color:red": 2.0}}, "no attribute 'color'"),
        ({"multiply": {"colour:red": -1.0}}, "must be 0 or more"),
        ({"colours": ("red",), "multiply": {"colour:red": 0.0}}, "drops every colour"),
        ({"colour_bias": 1.5}, "between 0 and 1"),
        ({"style": "cubist"}, "no style is called 'cubist'"),
    ],
)
def test_a_bad_knob_gets_its_sentence(knobs, message):
    with pytest.raises(ValueError, match=message):
        World(**knobs)


def test_bad_sizes_and_numbers_get_their_sentence():
    with pytest.raises(ValueError, match="choose a size from 64 to 96"):
        render(draw(1), size=32)
    with pytest.raises(ValueError, match="cannot draw 0 scenes"):
        draw(0)
