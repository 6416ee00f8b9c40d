"""Image-text models beyond LLaVA and Qwen-VL, tiny and in their native format: which token is of which cell of which image."""

import pytest
import torch
import transformers
from PIL import Image

import modalities
from modalities.base import KINDS
from modalities.data import Sample

TEXT = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}  # fmt: skip
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 14,
}
TILES = [[42, 84], [84, 42], [84, 84]]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} : {% for p in m.content %}{% if p.type == 'image' %}IMAGE {% else %}{{ p.text }} {% endif %}"
    "{% endfor %}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)


def onevision(tokenizer_of):
    vision = transformers.SiglipVisionConfig(**VISION, image_size=42, vision_use_head=False)
    config = transformers.LlavaOnevisionConfig(
        vision_config=vision,
        text_config=transformers.Qwen2Config(**TEXT),
        image_token_index=4,
        video_token_index=5,
        image_grid_pinpoints=TILES,
        vision_aspect_ratio="anyres_max_1",
    )
    images = transformers.LlavaOnevisionImageProcessor(size={"height": 42, "width": 42}, image_grid_pinpoints=TILES)
    told = {
        "num_image_tokens": 9,
        "vision_feature_select_strategy": "full",
        "chat_template": TEMPLATE.replace("IMAGE", "<image>"),
        "vision_aspect_ratio": "anyres_max_1",
    }
    videos, tokenizer = transformers.LlavaOnevisionVideoProcessor(), tokenizer_of(["<image>", "<video>"])
    processor = transformers.LlavaOnevisionProcessor(images, tokenizer, videos, **told)
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


def gemma(tokenizer_of):
    config = transformers.Gemma3Config(
        vision_config=transformers.SiglipVisionConfig(**VISION, image_size=56, vision_use_head=False),
        text_config=transformers.Gemma3TextConfig(**TEXT, head_dim=8, sliding_window=32),
        image_token_index=4,
        boi_token_index=5,
        eoi_token_index=6,
        mm_tokens_per_image=4,
    )
    tokenizer = tokenizer_of(["<soft>", "<boi>", "<eoi>"])
    for name, mark in (("image_token", "<soft>"), ("boi_token", "<boi>"), ("eoi_token", "<eoi>")):
        tokenizer._set_model_specific_special_tokens({name: mark})
    images = transformers.Gemma3ImageProcessor(size={"height": 56, "width": 56}, image_seq_length=4)
    template = TEMPLATE.replace("IMAGE", "<boi>")
    processor = transformers.Gemma3Processor(images, tokenizer, image_seq_length=4, chat_template=template)
    return transformers.Gemma3ForConditionalGeneration(config), processor


def internvl(tokenizer_of):
    config = transformers.InternVLConfig(
        vision_config=transformers.InternVLVisionConfig(**VISION, image_size=56),
        text_config=transformers.Qwen2Config(**TEXT),
        image_token_id=4,
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    tokenizer = tokenizer_of(["<ctx>", "<img>", "</img>", "<video>"])
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<ctx>",
        "video_token": "<video>",
    }
    tokenizer._set_model_specific_special_tokens(names)
    images = transformers.GotOcr2ImageProcessor(
        size={"height": 56, "width": 56}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    videos, template = transformers.InternVLVideoProcessor(), TEMPLATE.replace("IMAGE", "<ctx>")
    processor = transformers.InternVLProcessor(images, tokenizer, videos, image_seq_length=4, chat_template=template)
    return transformers.InternVLForConditionalGeneration(config), processor


def pixtral(tokenizer_of):
    config = transformers.LlavaConfig(
        vision_config=transformers.PixtralVisionConfig(**VISION, image_size=84),
        text_config=transformers.MistralConfig(**TEXT),
        image_token_index=4,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    images = transformers.PixtralImageProcessor(size={"longest_edge": 84}, patch_size={"height": 14, "width": 14})
    tokenizer = tokenizer_of(["[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    processor = transformers.PixtralProcessor(
        images, tokenizer, patch_size=14, chat_template=TEMPLATE.replace("IMAGE", "[IMG]")
    )
    return transformers.LlavaForConditionalGeneration(config), processor


BUILD = {"onevision": onevision, "gemma": gemma, "internvl": internvl, "pixtral": pixtral}
LAYER = "model.language_model.layers.0"


def photo(width, height):
    noise = torch.rand(3, height, width, generator=torch.Generator().manual_seed(width))
    return Image.fromarray((noise * 255).byte().permute(1, 2, 0).numpy())


WIDE, TALL = photo(84, 28), photo(28, 42)
SAMPLES = [
    Sample("two", "p", extra={"images": [WIDE, TALL], "prompt": "what is this ?", "answer": "a cat"}),
    Sample("none", "p", extra={"prompt": "a cat", "answer": "yes"}),
    Sample("one", "p", WIDE, extra={"prompt": "what is it ?"}),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer_of):
    """Name -> the model, loaded from its directory."""
    from functools import cache

    root = tmp_path_factory.mktemp("image_text")

    def load(name):
        torch.manual_seed(0)
        module, processor = BUILD[name](tokenizer_of)
        module.save_pretrained(root / name)
        processor.save_pretrained(root / name)
        return modalities.load("llava", str(root / name), padding="left")

    return cache(load)


def cells(rows, columns, copy=0):
    return [(copy, row, column) for row in range(rows) for column in range(columns)]


UNKNOWN = (-1, -1, -1)
BY_HAND = {
    # of two, the whole of each and a mark; alone, the whole and 3 x 6 patches of its tiles, shrunk by sqrt(18 / 9), a mark after each row
    "onevision": (
        [[*cells(3, 3), (1, 0, -1)], [*cells(3, 3), (1, 0, -1)]],
        [*cells(3, 3), *[(1, row, column) for row in range(2) for column in (0, 1, 2, 3, -1)]],
    ),
    "gemma": ([cells(2, 2), cells(2, 2)], cells(2, 2)),
    "internvl": ([[UNKNOWN] * 16, [UNKNOWN] * 12], [UNKNOWN] * 16),
    "pixtral": ([cells(2, 6), cells(3, 2)], cells(2, 6)),
}


@pytest.mark.parametrize("name", BUILD)
def test_every_token_is_known(models, name):
    model = models(name)
    layout = model.layout(model.prepare(SAMPLES))
    of_two, of_one = BY_HAND[name]
    marks = [layout.copy, layout.row, layout.column]
    for row, images in ((0, of_two), (1, []), (2, [of_one])):
        for number, expected in enumerate(images):
            here = layout.image[row] == number
            assert list(zip(*(mark[row][here].tolist() for mark in marks), strict=True)) == expected
        assert int((layout.image[row] >= 0).sum()) == sum(map(len, images))
    text = [
        [
            model.tokenizer.convert_ids_to_tokens(int(number))
            for number, kind in zip(ids, kinds, strict=True)
            if KINDS[kind] == "text"
        ]
        for ids, kinds in zip(layout.ids, layout.kinds, strict=True)
    ]
    assert text[0] == ["user", ":", "what", "is", "this", "?", "assistant", ":", "a", "cat"]
    assert text[2] == ["user", ":", "what", "is", "it", "?", "assistant", ":"]
    answers = [
        model.tokenizer.convert_ids_to_tokens(row[mark]) for row, mark in zip(layout.ids, layout.answer, strict=True)
    ]
    assert answers == [["a", "cat"], ["yes"], []]
    image = layout.kinds == KINDS.index("image")
    known = layout.column >= 0 if name != "internvl" else layout.image >= 0
    assert torch.equal(image, known)


@pytest.mark.parametrize("name", BUILD)
def test_captured_is_the_librarys_own_and_an_identity_edit_is_bit_identical(models, name):
    model = models(name)
    batch = model.prepare(SAMPLES)
    with torch.no_grad():
        own = model.module(**model.inputs(batch), output_hidden_states=True)
    read = model.activations(batch, [LAYER])[LAYER]
    assert torch.equal(read.values, own.hidden_states[1])
    with model.edit(LAYER, lambda values, kinds: values):
        assert torch.equal(model.run(batch).logits, own.logits)
        assert model.generate(model.prepare(SAMPLES[:1]), max_new_tokens=2, do_sample=False).shape[0] == 1
    with model.edit(LAYER, lambda values, kinds: torch.zeros_like(values)):
        assert not torch.equal(model.run(batch).logits, own.logits)


@pytest.mark.parametrize(
    ("name", "tokens"), [("onevision", [18, 0, 27]), ("gemma", [32, 0, 16]), ("internvl", [28, 0, 16])]
)
def test_a_towers_pictures_are_in_the_rows_of_their_prompts(models, name, tokens):
    model = models(name)
    site = "model.multi_modal_projector"
    if site not in model.sites():
        site = "model.multi_modal_projector.linear_2"
    found = model.activations(model.prepare(SAMPLES), [site])[site]
    pad = KINDS.index("pad")
    if name == "gemma":
        tokens = [count // 4 for count in tokens]
    assert (found.kinds != pad).sum(1).tolist() == tokens
    alone = model.activations(model.prepare(SAMPLES[2:]), [site])[site].values
    torch.testing.assert_close(found.values[2, : tokens[2]], alone[0], rtol=0, atol=1e-5)


def test_an_answer_is_marked_where_it_is_after_images_before_and_between_it(models):
    said = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it ?"}]},
        {"role": "assistant", "content": "a red dog"},
        {"role": "user", "content": [{"type": "text", "text": "and this"}, {"type": "image"}]},
        {"role": "assistant", "content": "a cat"},
    ]
    for name in BUILD:
        model = models(name)
        layout = model.layout(model.prepare([Sample("s", "p", extra={"images": [TALL, WIDE], "messages": said})]))
        assert model.tokenizer.convert_ids_to_tokens(layout.ids[0][layout.answer[0]]) == ["a", "red", "dog", "a", "cat"]
