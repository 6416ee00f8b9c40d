"""Texts before a scripted judge: what is marked is where the latent is active, what is shown is what was read."""

import re

import numpy as np
import pytest
import torch

from evals import explaining_material
from evals.explaining_asked import mark
from evals.explaining_runs import ask
from vsae.activations import write_store

from .planted_store import KINDS, Chunk, Tokens, run_of

WORDS = ["red", "green", "blue", "cat", "dog", "sits", "here"]
READ = 6
"""Tokens that the model reads of a text."""


def words(text):
    """Spans of the first READ words, behind a mark that has none."""
    return [(0, 0), *((found.start(), found.end()) for found in re.finditer(r"\S+", text))][: READ + 1]


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    """Texts of eight words whose activations say which word a token is; batches are padded on the left by 3."""
    rng, home, n = np.random.default_rng(0), tmp_path_factory.mktemp("texts"), 240
    said = rng.integers(3, len(WORDS), (n, 8))
    said[np.arange(n), rng.integers(0, READ, n)] = np.arange(n) % 3
    texts = [" ".join(WORDS[word] for word in row) for row in said]

    def chunks(start):
        for batch in range(start, n // 40):
            rows = range(batch * 40, batch * 40 + 40)
            values, kinds = torch.zeros(40, 3 + 1 + READ, len(WORDS)), torch.full((40, 3 + 1 + READ), 3)
            values[:, 4:] = torch.eye(len(WORDS))[torch.from_numpy(said[rows.start : rows.stop, :READ])]
            kinds[:, 3:] = 2
            empty = dict.fromkeys(("path", "label", "width", "height"))
            samples = [empty | {"key": f"k{i}", "caption": texts[i]} for i in rows]
            yield Chunk(batch, samples, [], {"layer": Tokens(values, kinds.to(torch.uint8))})

    request = {"model": {"name": "planted", "weights": "abc", "preprocessing": {}}, "data": {"n": n}}
    site = write_store(home / "store", chunks, request, dtype="float32", kind_names=KINDS).site()
    run = run_of(home / "run", site, torch.eye(len(WORDS))[:3])
    return explaining_material.read(run, site, None, 512, lambda items, what, n: items)


class Reader:
    """Says what is marked, and that a text is about a word if the word is in it, or marked where anything is."""

    sees, provenance = False, {"name": "scripted"}

    def choose(self, asked, track=None):
        found = []
        for each in asked:
            if len(each.options) == 2:
                text, about = each.prompt.split("\n")[0], re.search(r"about (\w+)\?", each.prompt)[1]
                answer = int(about not in (re.findall(r"<<(.*?)>>", text) if "<<" in text else text.split()))
            else:
                lines = [set(line.split()) & {"red", "green", "blue"} for line in each.prompt.split("\n")[1:]]
                answer = min(range(5), key=lambda i: lines.count(lines[i]))
            found.append(np.where(np.arange(len(each.options)) == answer, -0.1, -3.0))
        return found

    def say(self, prompt, image=None, tokens=24):
        marked = {word for found in re.findall(r"<<(.*?)>>", prompt.split("\n", 1)[1]) for word in found.split()}
        return " ".join(sorted(marked))


def test_a_reader_explains_by_what_is_marked_and_is_right_about_all_of_it(codes, tmp_path):
    drawn = codes.draw(3, 4, 8, 0, None)
    material = codes.material(drawn, None, None, None, words)
    found = ask(drawn, material, Reader(), tmp_path, captions=True, about=codes.about(), resamples=0)
    assert found.explanations == {0: "red", 1: "green", 2: "blue"}
    assert set(found.scores) == {"detection", "fuzzing", "intruder"}
    assert all(each.score.value == 1 for each in found.scores.values())
    assert found.scores["fuzzing"].null.value == 0.5  # nothing of another latent is ever marked: it always says no


def test_only_what_was_read_is_shown_and_as_many_other_words_are_marked(codes):
    drawn = codes.draw(3, 4, 8, 0, None)
    material = codes.material(drawn, None, None, None, words)
    for each in drawn:
        for row in each.active.tolist():
            text, lit, elsewhere = material.text(row), *(material.marked(row, each.latent, s) for s in (None, 5))
            assert len(text.split()) == READ
            assert re.findall("<<(.*?)>>", lit) == [WORDS[each.latent]]
            assert len(re.findall("<<(.*?)>>", elsewhere)) == 1 and f"<<{WORDS[each.latent]}>>" not in elsewhere
            assert {re.sub("<<|>>", "", shown) for shown in (lit, elsewhere)} == {text}
    whole = codes.material(drawn, None, None, None)
    assert whole.marked is None and len(whole.text(int(drawn[0].active[0])).split()) == 8


@pytest.mark.parametrize(
    ("tokens", "marked"),
    [
        ([], "a hot, hot day"),
        ([0], "<<a>> hot, hot day"),
        ([1, 2], "a <<hot,>> hot day"),
        ([0, 1], "<<a hot>>, hot day"),
        ([3, 5], "a hot, <<hot>> day"),
        ([0, 1, 2, 3, 4, 5], "<<a hot, hot day>>"),
    ],
)
def test_marks_by_hand(tokens, marked):
    """Spans may have a blank before the word, and a mark of the tokenizer has none."""
    spans = [(0, 1), (1, 5), (5, 6), (6, 10), (10, 14), (0, 0)]
    assert mark("a hot, hot day", spans, tokens) == marked


def test_tokens_of_one_letter_are_marked_as_the_letter():
    assert mark("aé b", [(0, 1), (1, 2), (1, 2), (2, 4)], [2]) == "a<<é>> b"
