"""The same weights in two libraries' formats compute the same; conversations are encoded as the processor encodes them."""

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from modalities.microworld.attributes import WORDS
from modalities.microworld.scenes import draw
from modalities.microworld.tables import table
from modalities.microworld.train import clip, common, diffusion, llava, tokens


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    return open_clip.CLIP(**clip.config()).eval()


def test_every_word_is_one_token():
    for tokenizer in (tokens.clip_tokenizer(48), tokens.chat_tokenizer()):
        for values in WORDS.values():
            for word in (word for words in values.values() for word in words):
                assert len(tokenizer(f"a {word}", add_special_tokens=False).input_ids) == 2, word
        assert tokenizer.unk_token_id not in tokenizer("xylophone żółw", add_special_tokens=False).input_ids


def test_saved_clip_tokenizer_reads_the_same_and_ends_with_its_largest_id(tmp_path):
    tokenizer = tokens.clip_tokenizer(48)
    tokens.save_clip_tokenizer(tokenizer, tmp_path)
    (tmp_path / "open_clip_config.json").write_text(
        '{"model_cfg": {"text_cfg": {"context_length": 48, "hf_tokenizer_name": "."}}}'
    )
    ids = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(["a red star", "a tiny violet hoop on a lawn"])
    assert ids.shape == (2, 48)
    assert (ids.max(1).values == tokenizer.eos_token_id).all() and tokenizer.eos_token_id == len(tokenizer) - 1
    np.testing.assert_array_equal(ids[0, :5], tokenizer("a red star").input_ids)
    assert (ids[0, 5:] == tokenizer.pad_token_id).all()


def test_llavas_tower_is_clips(tower):
    model, _ = llava.build(tower.state_dict())
    images = torch.randn(2, 3, 64, 64)
    ours = model.model.vision_tower(images)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.pooler_output @ tower.visual.proj, tower.encode_image(images), atol=1e-5, rtol=1e-4
        )


def test_diffusions_text_encoder_is_clips(tower):
    """Its context is shorter; attention is causal, so what follows the end of a text makes no difference."""
    texts = ["a red star", "on sand, a blue ring"]
    long, short = (
        tokens.clip_tokenizer(n)(texts, padding="max_length", return_tensors="pt").input_ids
        for n in (clip.CONTEXT, diffusion.CONTEXT)
    )
    encoder = diffusion.text_encoder(tokens.clip_tokenizer(diffusion.CONTEXT), tower.state_dict())
    with torch.no_grad():
        pooled = encoder(short).pooler_output
        torch.testing.assert_close(pooled @ tower.text_projection, tower.encode_text(long), atol=1e-5, rtol=1e-4)


def test_training_text_is_what_the_processor_makes(tower):
    _, processor = llava.build(tower.state_dict())
    turns = [("is there a red star?", "yes"), ("is anything blue?", "no")]
    row = llava.encoded([turns, turns[:1]], processor.tokenizer)
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": turns[0][0]}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
    ]
    text = processor.apply_chat_template(messages[:1], add_generation_prompt=True)
    assert text == "USER: <image> is there a red star? ASSISTANT:"
    ids = processor(images=Image.new("RGB", (64, 64)), text=text, return_tensors="pt").input_ids[0]
    assert row["input_ids"][0, : len(ids)].tolist() == ids.tolist()
    assert processor.apply_chat_template(messages) == "USER: <image> is there a red star? ASSISTANT: yes</s>"
    answered = row["labels"][0][row["labels"][0] >= 0]
    assert processor.tokenizer.decode(answered) == " yes</s> no</s>"
    assert row["attention_mask"][1].sum() == len(ids) + 2 and (row["labels"][1] >= 0).sum() == 2


def test_description_names_objects_from_left_to_right():
    scenes = draw(200, seed=0)
    for row in range(200):
        facts = table(scenes, row)
        shapes = [o["shape"] for o in sorted(facts["objects"], key=lambda o: o["x"])]
        assert [o["shape"] for o in llava.parse(llava.description(facts)).objects] == shapes


def test_description_slots_by_hand():
    truth = [llava.parse("a red star and a blue ring on sand"), llava.parse("a red star on grass")]
    said = [llava.parse("a red star on sand"), llava.parse("a green star")]
    assert llava.slots(truth, said, "shape") == pytest.approx(2 / 3, abs=1e-3)
    assert llava.slots(truth, said, "colour") == pytest.approx(1 / 3, abs=1e-3)
    assert llava.slots(truth, said, "background") == 0.5


def test_halving_keeps_integers_and_values(tmp_path):
    save_file({"a": torch.arange(3), "b": torch.randn(4, 4)}, tmp_path / "model.safetensors")
    before = load_file(tmp_path / "model.safetensors")
    common.halve(tmp_path)
    after = load_file(tmp_path / "model.safetensors")
    assert after["a"].dtype == torch.int64 and after["b"].dtype == torch.float16
    torch.testing.assert_close(after["b"].float(), before["b"], atol=2e-3, rtol=1e-3)


def test_a_probe_finds_what_is_there_and_chance_where_nothing_is():
    def colours(images):  # mean colour of the most saturated pixels: knows colour, and nothing of shape
        saturation = images.amax(1) - images.amin(1)
        weight = (saturation / 0.05).flatten(1).softmax(1)
        return (images.flatten(2) * weight[:, None]).sum(-1)

    found = common.probe(colours, 600, 300)
    assert found["colour"]["accuracy"] > 0.6
    assert found["shape"]["accuracy"] < 0.25 and found["shape"]["floor"] < 0.2
