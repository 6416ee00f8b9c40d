"""Tiny LLaVA-1.5, LLaVA-NeXT and Qwen2-VL in their native format, and a small FastVLM with real weights."""

import copy
import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

import modalities
from modalities import causal
from modalities.base import KINDS
from modalities.causal import LAYOUT, LAYOUT_COLUMNS, loss_by_kind, next_token_loss
from modalities.data import Sample, open_dataset
from modalities.extract import Chunk
from vsae.activations import write_store
from vsae.interventions import Direction, Where

SHARED = Path(__file__).resolve().parents[2] / "../shared"
LLAMA = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}  # fmt: skip
CLIP = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
        "num_attention_heads": 2, "image_size": 42, "patch_size": 14, "projection_dim": 16}  # fmt: skip
TILES = [[42, 84], [84, 42], [84, 84]]
MARKS = {"llava": ["<image>"], "next": ["<image>"],
         "qwen": ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]}  # fmt: skip
PLACE = {"llava": "<image>", "next": "<image>", "qwen": "<|vision_start|><|image_pad|><|vision_end|>"}
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} : {% for p in m.content %}{% if p.type == 'image' %}IMAGE {% else %}{{ p.text }} {% endif %}"
    "{% endfor %}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)
TOWER = {"llava": "model.vision_tower", "next": "model.vision_tower", "qwen": "model.visual"}


def llava(kind):
    config = {"llava": transformers.LlavaConfig, "next": transformers.LlavaNextConfig}[kind]
    model = {
        "llava": transformers.LlavaForConditionalGeneration,
        "next": transformers.LlavaNextForConditionalGeneration,
    }[kind]
    more = {"image_grid_pinpoints": TILES} if kind == "next" else {"image_seq_length": 9}
    vision = transformers.CLIPVisionConfig(**{name: value for name, value in CLIP.items() if name != "model_type"})
    return model(
        config(vision_config=vision, text_config=transformers.LlamaConfig(**LLAMA), image_token_index=4, **more)
    )


def qwen():
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    text = LLAMA | {"hidden_size": 32, "rope_parameters": rope, "rope_scaling": rope}
    ids = {"image_token_id": 4, "video_token_id": 5, "vision_start_token_id": 6, "vision_end_token_id": 7}
    return transformers.Qwen2VLForConditionalGeneration(
        transformers.Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
    )


def processor(kind, tokenizer):
    template = TEMPLATE.replace("IMAGE", PLACE[kind])
    if kind == "qwen":
        size = {"shortest_edge": 28 * 28, "longest_edge": 16 * 28 * 28}
        images, videos = transformers.Qwen2VLImageProcessor(size=size), transformers.Qwen2VLVideoProcessor()
        return transformers.Qwen2VLProcessor(images, tokenizer, videos, chat_template=template)
    size = {"size": {"shortest_edge": 42}, "crop_size": {"height": 42, "width": 42}}
    told = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    if kind == "next":
        images = transformers.LlavaNextImageProcessor(image_grid_pinpoints=TILES, **size)
        return transformers.LlavaNextProcessor(images, tokenizer, chat_template=template, **told)
    return transformers.LlavaProcessor(
        transformers.LlavaImageProcessor(**size), tokenizer, chat_template=template, **told
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory, tokenizer_of):
    root = tmp_path_factory.mktemp("llava")
    for kind in MARKS:
        torch.manual_seed(0)
        (qwen() if kind == "qwen" else llava(kind)).save_pretrained(root / kind)
        processor(kind, tokenizer_of(MARKS[kind])).save_pretrained(root / kind)
    return lambda kind: str(root / kind)


@pytest.fixture(scope="module")
def models(directory):
    return {kind: modalities.load("llava", directory(kind), padding="left") for kind in MARKS}


def photo(width, height, seed=0):
    noise = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray((noise * 255).byte().permute(1, 2, 0).numpy())


WIDE, TALL = photo(84, 14), photo(56, 84, 1)
TWO = Sample("two", "p", extra={"images": [WIDE, TALL], "prompt": "what is this ?", "answer": "a cat"})
ONE = Sample("one", "p", WIDE, extra={"prompt": "what is it ?"})
NONE = Sample("none", "p", extra={"prompt": "a cat", "answer": "yes"})
SAMPLES = [TWO, NONE, ONE]


def names(kinds):
    return [[KINDS[kind] for kind in row] for row in kinds.tolist()]


@pytest.mark.parametrize("kind", MARKS)
def test_batch_is_the_processors_own(models, kind):
    model = models[kind]
    texts = [
        f"user : {PLACE[kind]} {PLACE[kind]} what is this ? assistant : a cat </s>",
        "user : a cat assistant : yes </s>",
        f"user : {PLACE[kind]} what is it ? assistant :",
    ]
    told = model.processor(
        text=texts, images=[WIDE, TALL, WIDE], padding=True, padding_side="left", return_tensors="pt"
    )
    batch = model.prepare(SAMPLES)
    for name, value in told.items():
        assert torch.equal(batch[name], value), name


@pytest.mark.parametrize("kind", MARKS)
@pytest.mark.parametrize("padding", ["left", "right"])
def test_captured_is_the_librarys_own_hidden_states(models, directory, kind, padding):
    model = models[kind] if padding == "left" else modalities.load("llava", directory(kind))
    batch = model.prepare(SAMPLES)
    with torch.no_grad():
        told = model.module(**model.inputs(batch), output_hidden_states=True)
    at = "model.language_model"
    sites = [f"{at}.layers.0", f"{at}.layers.1:input", f"{at}.layers.1", f"{at}.norm"]
    got = model.activations(batch, [*sites, "lm_head"])
    for site, hidden in zip(sites, [1, 1, 2, 3], strict=True):
        assert torch.equal(got[site].values, told.hidden_states[hidden]), site
    assert torch.equal(got["lm_head"].values, told.logits)
    heads, attention = f"{at}.layers.1.self_attn.o_proj:input", f"{at}.layers.1.self_attn"
    inside = model.activations(batch, [heads, attention])
    assert torch.equal(
        model.module.model.language_model.layers[1].self_attn.o_proj(inside[heads].values), inside[attention].values
    )


def test_tower_and_projector_are_the_librarys_in_the_rows_of_the_prompts(models):
    model = models["llava"]
    batch = model.prepare(SAMPLES)
    with torch.no_grad():
        hidden = model.module.model.vision_tower(batch["pixel_values"], output_hidden_states=True).hidden_states
        features = model.module.model.multi_modal_projector(hidden[-2][:, 1:])
    layer = next(site for site in model.sites() if site.endswith("encoder.layers.1"))
    got = model.activations(batch, [layer, "model.multi_modal_projector", "model.language_model.layers.0:input"])
    tower, projector, first = got.values()
    assert torch.equal(tower.values[0], hidden[2][:2].flatten(0, 1)) and torch.equal(tower.values[2, :10], hidden[2][2])
    assert not tower.values[1].any() and names(tower.kinds)[1] == ["pad"] * 20 and tower.grid == (3, 3)
    assert names(tower.kinds)[2] == ["cls"] + ["patch"] * 9 + ["pad"] * 10
    assert torch.equal(projector.values[0], features[:2].flatten(0, 1)) and torch.equal(
        projector.values[2, :9], features[2]
    )
    assert names(projector.kinds)[2] == ["image"] * 9 + ["pad"] * 9
    image = first.kinds == KINDS.index("image")
    assert torch.equal(first.values[image], features.flatten(0, 1)) and first.grid == (3, 3)


def test_qwens_patches_are_in_the_rows_of_the_prompts_before_and_after_merging(models):
    model = models["qwen"]
    batch = model.prepare(SAMPLES)
    patches, merged = [84 // 14 * 2, 4 * 6, 84 // 14 * 2], [3, 6, 3]
    assert batch["image_grid_thw"].prod(1).tolist() == patches
    with torch.no_grad():
        told = model.module.model.visual(batch["pixel_values"], batch["image_grid_thw"])
    got = model.activations(
        batch, ["model.visual.blocks.1", "model.visual.merger", "model.language_model.layers.0:input"]
    )
    block, merger, first = got.values()
    assert torch.equal(block.values[0], told.last_hidden_state[:36]) and torch.equal(
        block.values[2, :12], told.last_hidden_state[36:]
    )
    assert names(block.kinds)[1:] == [["pad"] * 36, ["patch"] * 12 + ["pad"] * 24]
    assert (
        torch.equal(merger.values[0], told.pooler_output[:9]) and names(merger.kinds)[2] == ["image"] * 3 + ["pad"] * 6
    )
    assert sum(merged) == 12
    assert torch.equal(first.values[first.kinds == KINDS.index("image")], told.pooler_output)


def test_qwen_2_5_is_read_as_qwen_2_though_its_tower_sees_windows(models, tmp_path, tokenizer_of):
    torch.manual_seed(0)
    like = models["qwen"].module.config
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"window_size": 56, "fullatt_block_indexes": [1]}  # two by two merged patches
    ids = {
        name: getattr(like, name)
        for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    }
    text = {name: value for name, value in like.text_config.to_dict().items() if name != "model_type"}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    transformers.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(tmp_path)
    parts = [getattr(models["qwen"].processor, part) for part in ("image_processor", "tokenizer", "video_processor")]
    template = models["qwen"].processor.chat_template
    transformers.Qwen2_5_VLProcessor(*parts, chat_template=template).save_pretrained(tmp_path)
    model = modalities.load("llava", str(tmp_path), padding="left")
    batch = model.prepare(SAMPLES)
    for mine, theirs in zip(model.layout(batch), models["qwen"].layout(models["qwen"].prepare(SAMPLES)), strict=True):
        assert torch.equal(mine, theirs)
    with torch.no_grad():
        told = model.module(**model.inputs(batch), output_hidden_states=True)
        images = model.module.model.visual(batch["pixel_values"], batch["image_grid_thw"]).pooler_output
    sites = ["model.visual.blocks.0", "model.visual.merger", "model.language_model.layers.0:input", LANGUAGE[0]]
    block, merger, first, layer = model.activations(batch, sites).values()
    assert [(kinds != KINDS.index("pad")).sum(1).tolist() for kinds in (block.kinds, merger.kinds)] == [
        [36, 0, 12],
        [9, 0, 3],
    ]
    assert torch.equal(first.values[first.kinds == KINDS.index("image")], images)
    assert torch.equal(layer.values, told.hidden_states[2])
    # A window after the other, but the images of a prompt keep their order: WIDE is one row of windows, TALL is not.
    assert torch.equal(merger.values[0, :3], images[:3]) and torch.equal(merger.values[2, :3], images[9:])
    assert torch.equal(merger.values[0, 3:9].sort(0).values, images[3:9].sort(0).values)
    with model.edit(sites[1], lambda values, kinds: values):
        assert torch.equal(model.run(batch).logits, told.logits)


def test_next_tiles_are_in_the_rows_of_the_prompts(models):
    model = models["next"]
    batch = model.prepare(SAMPLES)
    layer = next(site for site in model.sites() if site.endswith("encoder.layers.1"))
    got = model.activations(batch, [layer, "model.multi_modal_projector", "model.language_model.layers.0:input"])
    tower, projector, first = got.values()
    assert (tower.kinds != KINDS.index("pad")).sum(1).tolist() == [
        (3 + 5) * 10,
        0,
        3 * 10,
    ]  # the whole and two or four tiles
    layout = model.layout(batch)
    base = layout.copy[0] == 0
    # Cell (r, c) of the whole image is patch 3 r + c of the tower's first picture of that image.
    for image, start in ((0, 0), (1, 27)):
        there = base & (layout.image[0] == image)
        assert torch.equal(first.values[0, there], projector.values[0, start : start + 9])
    fine = (layout.copy[0] == 1) & (layout.image[0] == 0) & (layout.column[0] >= 0)
    rows, columns = (
        layout.row[0, fine] + 1,
        layout.column[0, fine],
    )  # of three rows of patches, padding took the first and the last
    patch = 9 + 9 * (columns // 3) + 3 * rows + columns % 3
    assert torch.equal(first.values[0, fine], projector.values[0, patch])
    newline = (layout.copy[0] == 1) & (layout.column[0] < 0)
    assert torch.equal(first.values[0, newline][0], model.module.model.image_newline)


GRIDS = {"llava": ([(3, 3)], [(3, 3)]), "next": ([(3, 3), (1, 6)], [(3, 3), (6, 4)]), "qwen": ([(1, 3)], [(3, 2)])}
"""(rows, columns) of the copies of WIDE and TALL: 84 x 14 in a 84 x 42 canvas leaves one row; 56 x 84 in 42 x 84 or 84 x 84."""


def by_hand(kind, images):
    """image, copy, row, column of all tokens that stand for the images of a prompt, one after the other."""
    cells = []
    for number, grids in enumerate(images):
        for copy_, (rows, columns) in enumerate(grids):
            for row in range(rows):
                cells += [(number, copy_, row, column) for column in range(columns)]
                cells += [(number, copy_, row, -1)] if copy_ == 1 else []
    return cells


@pytest.mark.parametrize("kind", MARKS)
def test_every_token_is_known(models, kind):
    model = models[kind]
    layout = model.layout(model.prepare(SAMPLES))
    wide, tall = (by_hand(kind, [grids]) for grids in GRIDS[kind])
    around = ["special"] if kind == "qwen" else []

    def told(cells):
        return [*around, *("image" if cell[3] >= 0 else "special" for cell in cells), *around]

    text = ["text"]
    rows = [
        ["special", *text * 2, *told(wide), *told(tall), *text * 4, *text * 2, *text * 2, "special"],
        ["special", *text * 4, *text * 2, *text, "special"],
        ["special", *text * 2, *told(wide), *text * 4, *text * 2],
    ]
    length = max(map(len, rows))
    assert names(layout.kinds) == [["pad"] * (length - len(row)) + row for row in rows]
    for number, images in ((0, list(GRIDS[kind])), (1, []), (2, list(GRIDS[kind][:1]))):
        cells = [cell for cell in zip(*(mark[number].tolist() for mark in layout[3:7]), strict=True) if cell[0] >= 0]
        assert cells == by_hand(kind, images)
    tokens = [
        model.tokenizer.convert_ids_to_tokens(row[mark]) for row, mark in zip(layout.ids, layout.answer, strict=True)
    ]
    assert tokens == [["a", "cat"], ["yes"], []]
    assert layout.ids[1, 0] == -1 and layout.kinds.shape == model.prepare(SAMPLES)["input_ids"].shape


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", MARKS)
def test_a_store_keeps_the_layout_beside_the_tokens(models, kind, dtype, tmp_path):
    """Answer, image, copy, row and column of each stored token, also where the images of a batch differ."""
    model, site = models[kind], "model.language_model.layers.1"
    batches = [SAMPLES, [NONE, NONE], [ONE, TWO]]

    def chunks(start):
        for number, samples in enumerate(batches[start:], start):
            rows = [{"key": f"{number}-{i}"} for i in range(len(samples))]
            yield Chunk(number, rows, [], model.activations(model.prepare(samples), [site, LAYOUT]))

    store = write_store(tmp_path / "store", chunks, {"model": {}}, kind_names=KINDS, dtype=dtype, rows_per_shard=20)
    told, tokens = (store.site(name) for name in (LAYOUT, site))
    told, tokens = told.read(0, told.n_rows), tokens.read(0, tokens.n_rows)
    for name in ("kinds", "samples", "positions"):
        assert torch.equal(getattr(told, name), getattr(tokens, name)), name
    expected = []
    for samples in batches:
        layout = model.layout(model.prepare(samples))
        marks = torch.stack([getattr(layout, name).long() for name in LAYOUT_COLUMNS], -1)
        expected.append(marks[layout.kinds != KINDS.index("pad")])
    assert LAYOUT_COLUMNS == ("answer", "image", "copy", "row", "column")
    assert torch.equal(told.values.long(), torch.cat(expected))
    assert told.values[:, 0].sum() == 2 + 1 + 1 + 1 + 2  # "a cat" and "yes"


def test_the_layout_is_read_and_never_in_the_way(models, monkeypatch):
    model = models["next"]
    assert LAYOUT not in model.sites()
    batch = model.prepare(SAMPLES)
    monkeypatch.setattr(causal, "EXACT", 2)
    model.run(batch)  # nobody asked
    with pytest.raises(ValueError, match="site 'layout': a prompt has more than 2 images or cells a side of one"):
        model.activations(batch, [LAYOUT])


def test_padding_on_the_right_and_a_cut_prompt(directory):
    model = modalities.load("llava", directory("llava"), length=14)
    layout = model.layout(model.prepare([NONE, ONE]))
    assert names(layout.kinds) == [
        ["special", *["text"] * 7, "special", *["pad"] * 5],
        ["special", "text", "text", *["image"] * 9, "text", "text"],
    ]
    assert layout.answer[0].nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize("kind", MARKS)
def test_reading_is_transparent_and_stops_early(models, kind):
    model = models[kind]
    batch = model.prepare(SAMPLES)
    with torch.no_grad():
        bare = model.module(**model.inputs(batch)).logits
    ran = []
    hooks = [
        layer.register_forward_hook(lambda *_: ran.append(1)) for layer in model.module.model.language_model.layers
    ]
    tower = next(site for site in model.sites() if site.startswith(TOWER[kind]) and site.endswith(".mlp"))
    model.activations(batch, ["model.language_model.layers.0.mlp", tower])
    assert not ran
    model.activations(batch, ["model.language_model.layers.1:input"])
    assert len(ran) == 1
    for hook in hooks:
        hook.remove()
    assert torch.equal(model.run(batch).logits, bare)


SITES = {
    "llava": [
        "model.vision_tower.encoder.layers.0",
        "model.vision_tower.encoder.layers.1",
        "model.multi_modal_projector:input",
    ],
    "next": ["model.vision_tower.encoder.layers.1", "model.multi_modal_projector"],
    "qwen": ["model.visual.blocks.0", "model.visual.blocks.1.attn.proj:input", "model.visual.merger"],
}
LANGUAGE = ["model.language_model.layers.1", "model.language_model.layers.1.self_attn.o_proj:input"]


@pytest.mark.parametrize(("kind", "site"), [(kind, site) for kind in MARKS for site in [*SITES[kind], *LANGUAGE]])
def test_identity_is_bit_identical_and_zero_is_not_in_forward_and_generate(models, kind, site):
    model = models[kind]
    if site not in model.sites():  # where transformers has one more module around the tower
        site = site.replace("vision_tower.", "vision_tower.vision_model.")
    batch = model.prepare([TWO, ONE])
    options = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    inputs = {name: value for name, value in model.inputs(batch).items() if name != "position_ids"}
    with torch.no_grad():
        bare, logits = model.module.generate(**inputs, **options), model.module(**model.inputs(batch)).logits
    seen = []

    def same(values, kinds):
        seen.append(kinds.shape[1])
        return values

    with model.edit(site, same):
        assert torch.equal(model.run(batch).logits, logits)
        edited = model.generate(batch, **options)
    assert torch.equal(edited.sequences, bare.sequences)
    assert all(torch.equal(a, b) for a, b in zip(edited.logits, bare.logits, strict=True))
    assert seen[2:] == ([1, 1] if site in LANGUAGE else [])  # images are seen once, tokens one by one
    with model.edit(site, lambda values, kinds: torch.zeros_like(values)):
        assert not torch.equal(model.run(batch).logits, logits)
        assert not torch.equal(model.generate(batch, **options).logits[-1], bare.logits[-1])


@pytest.mark.parametrize("kind", MARKS)
def test_an_edit_of_one_prompts_images_leaves_the_others(models, kind):
    model = models[kind]
    batch = model.prepare([TWO, NONE, ONE])
    bare = model.run(batch).logits

    def last(values, kinds):
        new = values.clone()
        new[2] += 1
        return new

    with model.edit(f"{TOWER[kind]}.merger" if kind == "qwen" else "model.multi_modal_projector", last):
        changed = (model.run(batch).logits != bare).flatten(1).any(1)
    assert changed.tolist() == [False, False, True]
    with pytest.raises(RuntimeError, match="as planned"), model.edit(LANGUAGE[0], _broken):
        model.run(batch)
    assert torch.equal(model.run(batch).logits, bare)


@pytest.mark.parametrize("kind", MARKS)
@pytest.mark.parametrize("where", [Where(images=(1,)), Where(cells=((0, 1),), copies=(0,)), Where(answer=True)])
def test_images_cells_and_answers_are_edited_alone(models, kind, where):
    model = models[kind]
    batch, site, reached = model.prepare([TWO, NONE]), LANGUAGE[0], []
    direction = Direction(torch.ones(model.sites()[site][1]), where=where, kind_names=KINDS)

    def watch(values, kinds, layout):
        new = direction(values, kinds, layout)
        reached.append((new != values).any(-1))
        return new

    layout = model.layout(batch)
    with model.edit(site, watch):
        model.run(batch)
    if where.images:
        expected = layout.image == 1
    elif where.cells:
        expected = (layout.row == 0) & (layout.column == 1) & (layout.copy == 0)
        assert expected.sum(1).tolist() == [2, 0]  # one of each image
    else:
        expected = layout.answer
    assert torch.equal(reached[0], expected) and expected.any()


def test_an_image_tower_has_no_layout_to_choose_by(models):
    model = models["llava"]
    batch, where = model.prepare([TWO]), Where(images=(0,))
    with (
        pytest.raises(ValueError, match="layers of a language model only"),
        model.edit("model.multi_modal_projector", Direction(torch.ones(16), where=where, kind_names=KINDS)),
    ):
        model.run(batch)


def _broken(values, kinds):
    raise RuntimeError("as planned")


def test_captions_answer_the_prompt_and_cannot_pass_for_images(directory):
    model = modalities.load("llava", directory("llava"), prompt="what ?")
    batch = model.prepare([Sample("k", "p", WIDE, ("a <image> cat </s>",))])
    assert (batch["input_ids"] == 4).sum() == 9 and batch["n_images"].tolist() == [1]
    assert model.tokenizer.decode(batch["input_ids"][0, batch["answer"][0]]).startswith("a")
    assert int((batch["input_ids"] == 3).sum()) == 1  # the template's own


def test_llavas_own_format_places_images(models):
    said = [{"from": "human", "value": "is <image> a cat or <image>"}, {"from": "gpt", "value": "no"}]
    batch = models["llava"].prepare([Sample("k", "p", extra={"images": [WIDE, TALL], "conversations": said})])
    tokens = models["llava"].tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    assert " ".join(dict.fromkeys(tokens)) == "<s> user : is <image> a cat <unk> assistant no </s>"
    assert models["llava"].layout(batch).image.max() == 1


def test_mistakes(directory, models, tmp_path):
    model = models["llava"]
    placed = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}]
    with pytest.raises(ValueError, match="sample 'k' has 2 images for 1 places in its messages"):
        model.prepare([Sample("k", "p", extra={"images": [WIDE, TALL], "messages": placed})])
    with pytest.raises(ValueError, match="the conversation has 0 images for 1 places"):
        model.prepare([placed])
    batch = {name: value for name, value in model.inputs(model.prepare([ONE])).items()}
    with pytest.raises(ValueError, match="there are 2 images, but the prompts have places for 1"):
        model.run(batch | {"pixel_values": batch["pixel_values"].repeat(2, 1, 1, 1)})
    with pytest.raises(ValueError, match="prompt 0 has 9 places for image tokens, but its images fill 0"):
        model.run({name: batch[name] for name in ("input_ids", "attention_mask")})
    with pytest.raises(ValueError, match="sample 'one' has image tokens after the first 8: give a larger length"):
        modalities.load("llava", directory("llava"), length=8).prepare([ONE])
    of_language = modalities.load(
        "llava", directory("llava"), chat_template="{{ messages[0].role + messages[0].content }}"
    )
    with pytest.raises(
        ValueError,
        match=r"sample 'one' does not suit the model's chat template \(.+\): mend it, or give another .* chat_template\.$",
    ):
        of_language.prepare([ONE])
    with pytest.raises(ValueError, match="sample 'k' has 206 tokens, more than the model's 128"):
        model.prepare([Sample("k", "p", extra={"prompt": "cat " * 200, "answer": ""})])
    with pytest.raises(ValueError, match=r"no site 'visual\.transformer\.resblocks\.1'"):
        model.activations(batch, ["visual.transformer.resblocks.1"])
    with pytest.raises(ValueError, match="is never passed for a batch of"):
        model.activations(model.prepare([NONE]), ["model.multi_modal_projector:input"])
    with pytest.raises(ValueError, match="length is 129: choose 1 to 128"):
        modalities.load("llava", directory("llava"), length=129)
    with pytest.raises(OSError, match=r"cannot load nobody/nothing \(no connection to the hub"):
        modalities.load("llava", "nobody/nothing")
    with pytest.raises(ValueError, match="is a llava, no causal language model: load it with its own family"):
        modalities.load("llm", directory("llava"))
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(directory("llava")) / name, tmp_path)
    with pytest.raises(FileNotFoundError, match="no image-text processor"):
        modalities.load("llava", str(tmp_path))
    shutil.copytree(Path(directory("llava")), tmp_path / "text", ignore=shutil.ignore_patterns("*processor*"))
    with pytest.raises(FileNotFoundError, match="no image-text processor"):
        modalities.load("llava", str(tmp_path / "text"))


@pytest.fixture(scope="module")
def fastvlm(smollm2, tmp_path_factory):
    """../shared's model, assembled by its own script around the language model that is loaded already."""
    out = tmp_path_factory.mktemp("fastvlm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: smollm2.module)
        patch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: copy.deepcopy(smollm2.tokenizer))
        patch.setattr(sys, "argv", ["assemble.py", "", str(out)])
        runpy.run_path(str(SHARED / "models/llava_effnet_smollm2/assemble.py"))
    template = (
        "<|im_start|>{% for m in messages %}{% for p in m.content %}{% if p.type == 'image' %}<empty_output>{{ '\n' }}"
        "{% else %}{{ ' ' if m.role == 'assistant' }}{{ p.text }}{% endif %}{% endfor %}{% endfor %}"
    )
    return modalities.load("llava", str(out), prompt="Describe the photo:", chat_template=template)


def test_a_real_model_uses_the_photo_and_is_read_without_a_trace(fastvlm):
    dataset = open_dataset(SHARED / "data/flickr8k/flickr8k-val-000.tar")
    samples = [dataset.read(index) for index in range(8)]
    batch = fastvlm.prepare(samples)
    layout = fastvlm.layout(batch)
    assert (layout.kinds == KINDS.index("image")).sum(1).tolist() == [49] * len(samples)
    assert (layout.row.max(), layout.column.max(), layout.copy.max()) == (6, 6, 0)
    told = fastvlm.module(**fastvlm.inputs(batch), output_hidden_states=True)
    tower = next(site for site in fastvlm.sites() if site.startswith("model.vision_tower") and "blocks.5" in site)
    site = "model.language_model.layers.10"
    got = fastvlm.activations(batch, [site, tower, "model.multi_modal_projector"])
    assert torch.equal(got[site].values, told.hidden_states[11]) and got[site].grid == (7, 7)
    image = got[site].kinds == KINDS.index("image")
    with fastvlm.edit(site, lambda values, kinds: values):
        assert torch.equal(fastvlm.run(batch).logits, told.logits)
    first = fastvlm.activations(batch, [site.replace("10", "0:input")])[site.replace("10", "0:input")]
    assert torch.equal(first.values[image], got["model.multi_modal_projector"].values.flatten(0, 1))

    def answer_loss(batch):
        return loss_by_kind(next_token_loss(fastvlm.run(batch).logits, batch), batch["kinds"], batch["answer"])[
            "answer"
        ].mean

    shuffled = batch | {"pixel_values": batch["pixel_values"].roll(1, 0)}
    assert answer_loss(batch) + 0.2 < answer_loss(shuffled)  # its README: 2.71 against 3.24 on held-out photos
    json.dumps(fastvlm.provenance)


@pytest.mark.parametrize("kind", MARKS)
def test_where_no_prompt_has_an_image_towers_hold_filling(models, kind):
    """So that a batch of text alone, among others, leaves no rows at a tower's site, and stops nothing."""
    model, at = models[kind], "model.language_model.layers.0"
    tower = next(name for name in model.sites() if name.startswith(("model.vision_tower.", "model.visual.blocks.")))
    batch = model.prepare([NONE, NONE])
    found = model.activations(batch, [tower, at])
    assert names(found[tower].kinds) == [["pad"], ["pad"]] and not found[tower].values.any()
    assert found[tower].values.shape[-1] == model.activations(model.prepare(SAMPLES), [tower])[tower].values.shape[-1]
    assert torch.equal(found[at].values, model.activations(batch, [at])[at].values)
