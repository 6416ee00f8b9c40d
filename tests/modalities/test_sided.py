"""Image and text side of a site: against means by a loop over tokens, whatever the padding, and in a store row by row."""

import numpy as np
import pytest
import torch
from PIL import Image

import modalities
from modalities import microworld
from modalities.base import KINDS
from modalities.data import Sample
from modalities.several import Several
from modalities.sided import Sided, sides, split

SITE = "model.language_model.layers.2:input"


@pytest.fixture(scope="module")
def llava():
    return modalities.load("llava", str(microworld.path("llava")), prompt="describe the picture.")


def samples(*captions):
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)) for _ in captions]
    return [Sample(str(at), "", image, captions=(text,)) for at, (image, text) in enumerate(zip(pictures, captions, strict=True))]  # fmt: skip


def test_each_side_is_the_mean_of_its_tokens(llava):
    batch = llava.prepare(samples("a red star on sand", "a blue ring"))
    found = Sided(llava, "mean").activations(batch, sides(SITE))
    whole = llava.activations(batch, [SITE])[SITE]
    assert KINDS.index("pad") in whole.kinds[1]
    for kind in ("image", "text"):
        values, kinds, grid = found[f"{SITE}:{kind}"]
        assert values.shape == (2, 1, 128) and (kinds == KINDS.index("cls")).all() and grid is None
        for row in range(2):
            own = [x.double() for x, k in zip(whole.values[row], whole.kinds[row], strict=True) if KINDS[k] == kind]
            torch.testing.assert_close(values[row, 0].double(), sum(own) / len(own), atol=1e-5, rtol=1e-5)
            alone = Sided(llava, "mean").activations(
                llava.prepare(samples("a red star on sand", "a blue ring")[row : row + 1]), sides(SITE)
            )
            torch.testing.assert_close(alone[f"{SITE}:{kind}"].values[0], values[row], atol=1e-4, rtol=1e-4)
    last = Sided(llava, "last").activations(batch, [f"{SITE}:text"])[f"{SITE}:text"]
    assert not torch.equal(last.values, found[f"{SITE}:text"].values)


def test_edits_are_of_the_site_itself(llava):
    batch = llava.prepare(samples("a ring"))
    with Sided(llava, "mean").edit(f"{SITE}:text", lambda values, kinds: values + 1):
        moved = llava.run(batch).logits
    assert not torch.equal(moved, llava.run(batch).logits)


def test_mistakes_are_sentences(llava):
    with pytest.raises(ValueError, match="holds no text tokens"):
        Sided(llava, "mean").activations(llava.prepare(samples("a ring")), sides("model.multi_modal_projector"))
    with pytest.raises(ValueError, match="write layer:image or layer:text"):
        split("layer")
    with pytest.raises(ValueError, match="one model at a time"):
        Sided(Several({"": llava}), "mean")
    assert split("a.b:input:image") == ("a.b:input", "image") and Sided(llava, "mean").needs(["x"]) == {"image": "x"}
