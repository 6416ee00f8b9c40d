"""The shipped LLaVA: loads as its relatives do, answers questions about scenes and describes them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor

import modalities
from modalities.base import KINDS
from modalities.microworld import World, draw, path, render, table
from modalities.microworld.captions import parse
from modalities.microworld.questions import KINDS as QUESTION_KINDS
from modalities.microworld.questions import ask
from modalities.microworld.train import llava


class Asked:
    def __init__(self, name, image, question):
        self.key, self.image = name, Image.fromarray(image)
        self.captions, self.extra = (), {"conversations": [{"from": "human", "value": f"<image>\n{question}"}]}


@pytest.fixture(scope="module")
def scenes():
    return draw(60, 20_020)


@pytest.fixture(scope="module")
def questions(scenes):
    rng = np.random.default_rng(20_020)
    return [ask(table(scenes, row), rng, QUESTION_KINDS[row % len(QUESTION_KINDS)]) for row in range(60)]


@pytest.fixture(scope="module")
def library():
    model = AutoModelForImageTextToText.from_pretrained(path("llava"), dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(path("llava"))


def replies(library, images, questions, tokens):
    """Through the library alone: its processor, its chat template, its generation."""
    model, processor = library
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}], add_generation_prompt=True
        )
        for question in questions
    ]  # fmt: skip
    inputs = processor(
        images=[Image.fromarray(image) for image in images],
        text=texts,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    with torch.no_grad():
        made = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    words = processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [word.strip() for word in words]


def test_yes_and_no_are_mostly_right_and_depend_on_the_image(library, scenes, questions):
    images, texts = render(scenes).images, [question.text for question in questions]
    truth = ["yes" if question.answer else "no" for question in questions]

    def right(answers):
        return np.mean([a == b for a, b in zip(answers, truth, strict=True)])

    assert right(replies(library, images, texts, 3)) >= 0.75  # by chance a half
    assert right(replies(library, images[::-1], texts, 3)) <= 0.68


def test_a_lone_object_is_described(library):
    scenes = draw(24, 20_021, world=World(counts=(1.0,)))
    said = [parse(text) for text in replies(library, render(scenes).images, [llava.DESCRIBE] * 24, 40)]
    facts = [table(scenes, row)["objects"][0] for row in range(24)]
    for name, bar in (("shape", 15), ("colour", 20)):  # by chance 3
        assert (
            sum(bool(s.objects) and s.objects[0].get(name) == f[name] for s, f in zip(said, facts, strict=True)) >= bar
        )


def test_the_adapter_asks_as_the_library_does(library, scenes, questions):
    _, processor = library
    adapter = modalities.load("llava", str(path("llava")), padding="left")
    images = render(scenes).images[:6]
    batch = adapter.prepare([Asked(str(row), images[row], questions[row].text) for row in range(6)])
    said = processor.batch_decode(
        adapter.generate(batch, max_new_tokens=3, do_sample=False)[:, batch["input_ids"].shape[1] :],
        skip_special_tokens=True,
    )
    assert [word.strip() for word in said] == replies(library, images, [question.text for question in questions[:6]], 3)
    site = "model.language_model.layers.1"
    values, kinds, _ = adapter.activations(batch, [site])[site]
    assert values.shape[-1] == 128 and int((kinds[0] == KINDS.index("image")).sum()) == 64


def test_what_is_shipped_is_small_and_half_precision_and_beats_its_bars():
    folder = path("llava")
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            assert {tensors.get_tensor(key).dtype for key in tensors.keys()} <= {torch.float16, torch.int64}  # noqa: SIM118
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 4e6
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["yes_no"]["accuracy"] >= 0.85 and metrics["yes_no"]["floor"] < 0.6
    for name in ("shape", "colour"):
        assert metrics["description"][name]["accuracy"] >= 0.7 and metrics["description"][name]["floor"] < 0.25
    assert str(metrics["yes_no"]["accuracy"]) in (folder / "README.md").read_text()
