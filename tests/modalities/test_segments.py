"""Sentences, regions and whole samples by hand; pooled at extraction = pooled afterwards."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from modalities.base import KINDS, Activations
from modalities.data import Sample
from modalities.extract import stream
from modalities.segments import Pool, majority, numbered, reduced, whole

PLAIN = {"resize": None, "crop": None}


def kinds(*names):
    return torch.tensor([KINDS.index(name) for name in names], dtype=torch.uint8)


def test_sentences_end_with_their_marks():
    assert numbered(["A", " cat", ".", " It", " sleeps", "!"]) == [0, 0, 0, 1, 1, 1]
    assert numbered([None, "Who", "?", "!", '"', " Me", ".", None]) == [-1, 0, 0, 0, 0, 1, 1, -1]
    assert numbered(["one", "\n", "two", "...", "three"]) == [0, 0, 1, 1, 2]
    assert numbered([]) == []


def test_a_region_is_what_most_of_a_patch_shows():
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 3:] = 7  # left cells: 12 pixels of 0 and 4 of 7
    mask[4:, 4:] = 2
    assert majority(Image.fromarray(mask), (2, 2), PLAIN).tolist() == [[0, 7], [0, 2]]
    squeezed = PLAIN | {"resize": [16, 16], "resize_mode": "exact", "interpolation": "bicubic"}
    assert majority(Image.fromarray(mask), (2, 2), squeezed).tolist() == [[0, 7], [0, 2]], "classes are never mixed"
    assert majority(Image.fromarray(mask), (1, 1), PLAIN | {"crop": [4, 4]}).tolist() == [[7]]
    padded = majority(Image.fromarray(mask), (3, 3), PLAIN | {"crop": [24, 24]})
    assert padded[1, 1] == 0 or padded[1, 1] == 7
    assert (padded.flatten()[[0, 2, 6, 8]] == -1).all()


def test_pooling_by_hand():
    values = torch.tensor([[[9.0], [1], [3], [5]], [[9], [2], [4], [6]]])
    found = Activations(values, torch.stack([kinds("cls", "patch", "patch", "patch")] * 2), (1, 3))
    assert whole(found).tolist() == [[-1, 0, 0, 0]] * 2
    assert reduced(found, whole(found), "mean").values.tolist() == [[[3]], [[4]]]
    segments = torch.tensor([[-1, 0, 2, 2], [-1, -1, 1, -1]])
    mean, top = reduced(found, segments, "mean"), reduced(found, segments, "max")
    assert mean.values[..., 0].tolist() == [[1, 0, 4], [0, 4, 0]] and top.values[..., 0].tolist() == [
        [1, 0, 5],
        [0, 4, 0],
    ]
    assert reduced(found, segments, "last").values[..., 0].tolist() == [[1, 0, 5], [0, 4, 0]]
    falling = reduced(found._replace(values=-values), torch.tensor([[0, 1, 0, 1], [-1, -1, -1, -1]]), "last")
    assert falling.values[..., 0].tolist() == [[-3, -5], [0, 0]]
    assert torch.equal(mean.kinds, torch.stack([kinds("cls", "pad", "cls"), kinds("pad", "cls", "pad")]))
    vector = Activations(values[:, :1], torch.stack([kinds("cls")] * 2), None)
    assert torch.equal(reduced(vector, whole(vector), "max").values, vector.values)


class Fake:
    """A model of four patches behind a class token, and of words."""

    tokenizer = SimpleNamespace(decode=lambda ids: ["<s>", "A", "cat", ".", "It", "sleeps", ".", "<pad>"][ids[0]])

    def __init__(self):
        self.provenance = {"preprocessing": PLAIN}

    def prepare(self, samples):
        return {"n": len(samples), "text": torch.arange(8).repeat(len(samples), 1)}

    def activations(self, batch, sites):
        n = batch["n"]
        image = torch.arange(5.0)[None, :, None].expand(n, 5, 3)
        text = torch.arange(8.0)[None, :, None].expand(n, 8, 2)
        known = {
            "blocks.0": Activations(image, kinds("cls", *["patch"] * 4).repeat(n, 1), (2, 2)),
            "text.0": Activations(text, kinds("special", *["text"] * 6, "pad").repeat(n, 1), None),
        }
        return {site: known[site] for site in sites}


class Data:
    def __init__(self, mask):
        self.mask = mask

    def __len__(self):
        return 3

    keys = ("0", "1", "2")

    def read(self, index):
        return Sample(str(index), str(index), Image.new("RGB", (4, 4)), ("A cat. It sleeps.",), mask=self.mask)

    def identity(self):
        return {}

    def classes(self):
        return ()


def test_extraction_pools_samples_sentences_and_regions():
    mask = Image.fromarray(np.array([[1, 1, 0, 0]] * 2 + [[1, 1, 3, 3]] * 2, np.uint8))

    def pooled(site, how, by):
        chunks = list(stream(Fake(), Data(mask), [site], 2, pool=Pool(how, by)))
        assert [len(chunk.samples) for chunk in chunks] == [2, 1]
        found = chunks[0].activations[site]
        keep = found.kinds[0] == KINDS.index("cls")
        return {int(at): found.values[0, at, 0].item() for at in keep.nonzero()}

    assert pooled("blocks.0", "mean", "sample") == {0: 2.5}
    assert pooled("blocks.0", "mean", "region") == {0: 2, 1: 2, 3: 4}
    assert pooled("text.0", "mean", "sentence") == {0: 2, 1: 5}
    assert pooled("text.0", "max", "sentence") == {0: 3, 1: 6}
    with pytest.raises(ValueError, match="has no grid of patches"):
        pooled("text.0", "mean", "region")
    with pytest.raises(ValueError, match="holds no tokens of text"):
        pooled("blocks.0", "mean", "sentence")
    with pytest.raises(ValueError, match="sample '0' has no mask"):
        list(stream(Fake(), Data(None), ["blocks.0"], 2, pool=Pool("mean", "region")))
    with pytest.raises(ValueError, match="choose mean, max or last, by sample"):
        Pool("sum")


def test_of_mixed_samples_the_caption_and_each_image_are_pooled_alone():
    """Row 0: a mark, two images of two tokens, three words. Row 1: two words."""

    class Mixed:
        def layout(self, batch):
            return SimpleNamespace(kinds=of, image=torch.tensor([[-1, 0, 0, 1, 1, -1, -1, -1], [-1] * 8]))

    of = torch.stack([kinds("special", *["image"] * 4, *["text"] * 3), kinds(*["pad"] * 5, "special", *["text"] * 2)])
    found = Activations(torch.arange(16.0).view(2, 8, 1), of, (1, 2))
    for by, mean, top in (
        ("image", [[1.5, 3.5], []], [[2.0, 4.0], []]),
        ("caption", [[6.0], [14.5]], [[7.0], [15.0]]),
        ("sample", [[4.0], [14.5]], [[7.0], [15.0]]),
    ):
        for how, expected in (("mean", mean), ("max", top)):
            pooled = Pool(how, by)(Mixed(), [None] * 2, {}, "model.layers.0", found)
            there = pooled.kinds == KINDS.index("cls")
            assert [row[mark].flatten().tolist() for row, mark in zip(pooled.values, there, strict=True)] == expected
    tower = Activations(torch.arange(8.0).view(2, 4, 1), kinds("cls", *["patch"] * 3).repeat(2, 1), (1, 3))
    assert Pool("mean", "image")(Mixed(), [None] * 2, {}, "tower", tower).values.flatten().tolist() == [2.0, 6.0]
    sample = Sample("s", "s", mask=Image.new("L", (2, 2)))
    with pytest.raises(ValueError, match="not the patches of one image in each sample"):
        Mixed.provenance = {"preprocessing": PLAIN}
        Pool("mean", "region")(Mixed(), [sample] * 2, {}, "model.layers.0", found)
