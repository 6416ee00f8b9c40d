"""Texts longer than a tower takes: cut as the library cuts them, and said once."""

import warnings

import open_clip
import pytest

import modalities
from modalities import microworld
from modalities.cut import TellOfCut


class Words:
    """A tokenizer that counts words and two marks, and remembers its last settings, as transformers' do."""

    def __init__(self):
        self.truncation = True

    def __call__(self, text, truncation, verbose):
        self.truncation = truncation
        return {"input_ids": [0, *text.split(), 0]}


def test_the_first_text_that_is_too_long_is_named_and_the_tokenizer_left_alone():
    tokenizer = Words()
    tell = TellOfCut(tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tell(["a", "one two three"], 5)
    with pytest.warns(UserWarning, match=r"more than 5 tokens.*the first has 6 and begins 'one two three four'"):
        tell(["a", "one two three", "one two three four", "a b c d e f g"], 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tell(["one two three four"], 5)
    assert tokenizer.truncation


def test_open_clips_own_tokenizer_is_counted_with_its_marks():
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    tell = TellOfCut(tokenizer)
    for text in ("a cat", "a photo of two dogs, running!", "z" * 40):
        ids = tokenizer([text])[0]
        assert tell.count(text) == int((ids != 0).sum())
    assert tell.count("cat " * 100) == 102


@pytest.mark.parametrize("name", ["clip", "diffusion"])
def test_a_caption_beyond_the_limit_is_said_once_and_read_as_cut(name):
    model = modalities.load(name, str(microworld.path(name)))
    long = " and ".join(["a red star"] * 60)
    sample = type("Sample", (), {"image": None, "captions": (long,)})()
    short = type("Sample", (), {"image": None, "captions": ("a red star",)})()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.prepare([short])
    with pytest.warns(UserWarning, match="are cut there; the first has"):
        batch = model.prepare([short, sample])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = model.prepare([short, sample])
    assert all((batch[key] == again[key]).all() for key in batch)
