"""The shipped CLIP and ViT, by directory and through the ordinary adapters: they see and read what they are said to, on scenes nothing was trained on."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import modalities
from modalities.base import KINDS
from modalities.microworld import World, draw, path, render, table
from modalities.microworld.captions import everything, say

LONE = World(counts=(1.0,))


class Sample:
    def __init__(self, image, caption):
        self.image, self.captions = Image.fromarray(image), (caption,)


def samples(scenes):
    images = render(scenes).images
    return [Sample(images[row], say(everything(table(scenes, row)))) for row in range(len(scenes))]


def probed(features):
    """Accuracy of linear probes for shape and colour, learnt on 500 scenes of one object and tested on 250 others."""
    train, test = draw(500, 20_000, world=LONE), draw(250, 20_001, world=LONE)
    seen, new = features(samples(train)), features(samples(test))
    accuracy = {}
    for name in ("shape", "colour"):
        fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
        fitted.fit(seen, getattr(train, name)[:, 0])
        accuracy[name] = float((fitted.predict(new) == getattr(test, name)[:, 0]).mean())
    return accuracy


def test_the_vit_sees_what_an_object_is():
    model = modalities.load("vision", str(path("vit")))

    def features(batch):
        tokens, kinds, grid = model.activations(model.prepare(batch), ["layernorm"])["layernorm"]
        assert grid == (8, 8)
        assert [int((kinds[0] == KINDS.index(kind)).sum()) for kind in ("cls", "register", "patch")] == [1, 4, 64]
        patches = tokens[:, kinds[0] == KINDS.index("patch")].mean(1)
        return torch.cat([tokens[:, 0], patches], 1).float().numpy()

    assert min(probed(features).values()) >= 0.9


def test_the_clip_sees_what_an_object_is():
    model = modalities.load("clip", str(path("clip")))

    def features(batch):
        return model.activations(model.prepare(batch), ["image_embedding"])["image_embedding"].values[:, 0].numpy()

    assert min(probed(features).values()) >= 0.9


def test_the_clip_finds_the_caption_of_a_scene_and_the_scene_of_a_caption():
    model = modalities.load("clip", str(path("clip")))
    named = {sample.captions[0]: sample for sample in samples(draw(140, 20_002))}
    batch = model.prepare(list(named.values())[:128])
    scores, own = model.logits(batch), torch.arange(128)
    assert scores.shape == (128, 128)
    assert (scores.argmax(1) == own).float().mean() >= 0.6
    assert (scores.argmax(0) == own).float().mean() >= 0.6


def test_the_clip_tells_a_caption_from_one_with_another_shape_or_colour():
    """An image is nearer to its caption than to the same caption with another shape or another colour."""
    model = modalities.load("clip", str(path("clip")))
    scenes = draw(100, 20_003, world=LONE)
    said = [table(scenes, row)["objects"][0] for row in range(100)]
    image = model.prepare(samples(scenes))["image"]
    for name, others in (("shape", ("circle", "star")), ("colour", ("red", "blue"))):
        right, wrong = [], []
        for facts in said:
            told = {key: facts[key] for key in ("shape", "colour")}
            right.append(f"a {told['colour']} {told['shape']}")
            told[name] = others[told[name] == others[0]]
            wrong.append(f"a {told['colour']} {told['shape']}")
        true, false = (model.logits({"image": image} | model.texts(texts)).diagonal() for texts in (right, wrong))
        assert (true > false).float().mean() >= 0.9


@pytest.mark.parametrize("name", ["vit", "clip"])
def test_what_is_shipped_is_small_and_half_precision_and_says_how_good_it_is(name):
    folder = path(name)
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            assert {tensors.get_tensor(key).dtype for key in tensors.keys()} == {torch.float16}  # noqa: SIM118
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 3.5e6
    metrics = json.loads((folder / "metrics.json").read_text())
    for attribute in ("shape", "colour"):
        assert metrics["probe"][attribute]["accuracy"] >= 0.9 > metrics["probe"][attribute]["floor"]
    if name == "clip":
        assert metrics["retrieval"]["n"] == 256
        assert min(metrics["retrieval"][way] for way in ("image_to_text_r1", "text_to_image_r1")) >= 0.5
    assert str(metrics["probe"]["shape"]["accuracy"]) in (folder / "README.md").read_text()


def test_the_floor_of_a_probe_is_far_below():
    """The same probe on raw pixels."""

    def features(batch):
        return np.stack([np.asarray(sample.image.resize((16, 16)), float).ravel() for sample in batch])

    assert probed(features)["shape"] < 0.5
