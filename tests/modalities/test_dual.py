"""CLIP and SigLIP of transformers, SigLIP of open_clip: captured = the library's own, heads run from edited layers, kinds by hand."""

import json
import math
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

import modalities
from modalities.base import KINDS
from modalities.dual import IMAGE, TEXT
from modalities.gradients import Gradients

SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = SIZES | {"image_size": 32, "patch_size": 8}
HEADS = {"clip": ("visual_projection", "text_projection"), "siglip": ("vision_model.head", "text_model.head")}


def samples(*captions):
    pixels = np.random.default_rng(0).integers(0, 255, (len(captions), 50, 70, 3), dtype=np.uint8)
    return [
        SimpleNamespace(key=str(i), image=Image.fromarray(pixels[i]), captions=(text,))
        for i, text in enumerate(captions)
    ]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer_of):
    """Kind of model -> a directory as `save_pretrained` writes it: tokenizer, processor and random weights."""
    root = tmp_path_factory.mktemp("dual")
    tokenizer = tokenizer_of()
    text = SIZES | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 8,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24))
    siglip = SiglipModel(SiglipConfig(text_config=text | {"projection_size": 32}, vision_config=VISION))
    processors = (
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32),
        SiglipImageProcessor(size={"height": 32, "width": 32}),
    )
    for name, model, processor in zip(("clip", "siglip"), (clip, siglip), processors, strict=True):
        for part in (model, processor, tokenizer):
            part.save_pretrained(root / name)
    return lambda name: str(root / name)


@pytest.fixture(scope="module", params=["clip", "siglip"])
def pair(request, saved):
    """(kind, our model, transformers' own)"""
    kind = request.param
    bare = {"clip": CLIPModel, "siglip": SiglipModel}[kind].from_pretrained(saved(kind)).eval()
    return kind, modalities.load("clip", saved(kind)), bare


def inputs(batch):
    words = {"input_ids": batch["text"]} | {k: v for k, v in batch.items() if k == "attention_mask"}
    return {"pixel_values": batch["image"], **words}


def test_captured_is_transformers_own_and_reading_is_bit_transparent(pair):
    kind, model, bare = pair
    batch = model.prepare(samples("a red cat", "blue dog sits here"))
    with torch.no_grad():
        own = bare(**inputs(batch), output_hidden_states=True)
    ours = model.run(batch)
    assert torch.equal(ours.logits_per_image, own.logits_per_image)
    layers = [f"{tower}.encoder.layers.{i}" for tower in ("vision_model", "text_model") for i in (0, 1)]
    read = model.activations(batch, [*layers, "image_embedding", "text_embedding"])
    for i in (0, 1):
        assert torch.equal(
            read[f"vision_model.encoder.layers.{i}"].values, own.vision_model_output.hidden_states[i + 1]
        )
        assert torch.equal(read[f"text_model.encoder.layers.{i}"].values, own.text_model_output.hidden_states[i + 1])
    for site, features in (("image_embedding", own.image_embeds), ("text_embedding", own.text_embeds)):
        vectors = read[site].values[:, 0]
        torch.testing.assert_close(vectors / vectors.norm(dim=-1, keepdim=True), features)
    image = read["vision_model.encoder.layers.0"]
    assert image.grid == (4, 4)
    assert [KINDS[k] for k in image.kinds[0].tolist()] == ["cls"] * (kind == "clip") + ["patch"] * 16
    words = read["text_model.encoder.layers.0"]
    assert [KINDS[k] for k in words.kinds[0].tolist()] == ["special", "text", "text", "text"] + ["pad"] * 4
    assert model.provenance["library"] == "transformers" and model.provenance["preprocessing"]["mean"]


def test_the_head_runs_from_an_edited_layer_with_the_models_own_scale_and_bias(pair):
    kind, model, bare = pair
    batch = model.prepare(samples("a cat", "a dog", "a photo"))
    asked = {"image": batch["image"]} | model.texts(["a red cat", "a blue dog"])
    plain = model.logits(asked)
    assert plain.shape == (3, 2)
    with torch.no_grad():
        assert torch.equal(plain, bare(**inputs(asked)).logits_per_image)
        image = torch.nn.functional.normalize(read(model, asked, "image_embedding"), dim=-1).double()
        text = torch.nn.functional.normalize(read(model, asked, "text_embedding"), dim=-1).double()
        expected = bare.logit_scale.double().exp() * image @ text.T
        if kind == "siglip":
            expected = expected + bare.logit_bias.double()
    torch.testing.assert_close(plain.double(), expected, atol=1e-4, rtol=1e-4)
    for site in (
        "vision_model.encoder.layers.0",
        "text_model.encoder.layers.1",
        "vision_model.encoder.layers.1.self_attn.out_proj:input",
        "text_embedding",
    ):
        with model.edit(site, lambda values, kinds: values.clone()):
            assert torch.equal(model.logits(asked), plain), site
        with model.edit(site, lambda values, kinds: values * torch.linspace(0, 1, values.shape[-1])):
            assert not torch.equal(model.logits(asked), plain), site
    with model.edit("image_embedding", lambda values, kinds: values.roll(1, 0)):
        torch.testing.assert_close(model.logits(asked), plain.roll(1, 0))  # the rows of logits move with the images
    assert torch.equal(model.logits(asked), plain)


def read(model, batch, site):
    return model.activations(batch, [site])[site].values[:, 0]


def test_one_tower_runs_alone_and_says_what_it_needs(pair):
    _, model, _ = pair
    batch = model.prepare(samples("a cat"))
    fired = []
    handles = [
        model.module.vision_model.embeddings.register_forward_hook(lambda *_: fired.append("image")),
        model.module.text_model.embeddings.register_forward_hook(lambda *_: fired.append("text")),
    ]
    model.activations(batch, ["text_embedding"])
    model.activations(batch, ["vision_model.encoder.layers.0"])
    for handle in handles:
        handle.remove()
    assert fired == ["text", "image"]
    assert model.needs(["text_embedding", "vision_model.encoder.layers.0", "image_embedding"]) == {
        "caption": "text_embedding",
        "image": "vision_model.encoder.layers.0",
    }
    with pytest.raises(ValueError, match="the batch has no 'text'"):
        model.logits({"image": batch["image"]})


SIGLIP = {
    "embed_dim": 64,
    "init_logit_bias": -10.0,
    "init_logit_scale": math.log(20.0),
    "custom_text": True,
    "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 64,
        "hf_tokenizer_name": "beside the weights",
        "width": 32,
        "heads": 2,
        "layers": 2,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
    },
}


def test_siglip_of_open_clip_has_its_bias_in_the_logits(tmp_path, tokenizer_of):
    preprocess = {"size": 160, "resize_mode": "squash", "mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": SIGLIP, "preprocess_cfg": preprocess}))
    tokenizer_of().save_pretrained(tmp_path)
    torch.manual_seed(0)
    bare = open_clip.create_model(f"local-dir:{tmp_path}", load_weights=False).eval()
    save_file(
        {name: value.contiguous() for name, value in bare.state_dict().items()},
        tmp_path / "open_clip_model.safetensors",
    )
    model = modalities.load("clip", str(tmp_path))
    batch = model.prepare(samples("a red cat", "a blue dog"))
    asked = {"image": batch["image"]} | model.texts(["a cat", "a dog", "a photo"])
    with torch.no_grad():
        expected = bare.get_logits(asked["image"], asked["text"])[0]
        own = bare.visual.trunk.forward_intermediates(
            batch["image"], norm=False, output_fmt="NLC", return_prefix_tokens=False
        )[1]
    plain = model.logits(asked)
    assert torch.equal(plain, expected) and plain.mean() < -5
    seen = model.activations(batch, ["visual.trunk.blocks.0", "visual.trunk.attn_pool", "text.transformer.resblocks.0"])
    blocks = seen["visual.trunk.blocks.0"]
    patches = blocks.kinds[0] == KINDS.index("patch")
    assert torch.equal(blocks.values[:, patches], own[0]) and blocks.grid == (10, 10)
    assert seen["visual.trunk.attn_pool"].values.shape == (2, 1, 64)
    assert [KINDS[k] for k in seen["text.transformer.resblocks.0"].kinds[0, :5].tolist()] == [
        "special",
        "text",
        "text",
        "text",
        "pad",
    ]
    with model.edit("visual.trunk.blocks.0", lambda values, kinds: values * 0):
        edited = model.logits(asked)
    assert torch.equal(edited[0], edited[1]) and not torch.equal(edited, plain)
    batch = {name: value.clone() for name, value in asked.items()}
    with model.edit("image_embedding", lambda values, kinds: values.requires_grad_(True)):
        assert model.logits(batch, gradients=True).requires_grad


def test_mistakes_get_one_sentence(saved, tmp_path):
    with pytest.raises(ValueError, match="neither img_size"):
        modalities.load("clip", saved("clip"), img_size=64)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 8}))
    with pytest.raises(ValueError, match="is a bert, no CLIP or SigLIP"):
        modalities.load("clip", str(tmp_path))
    CLIPModel.from_pretrained(saved("clip")).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="lacks its image processor or tokenizer") as error:
        modalities.load("clip", str(tmp_path))
    assert "\n" not in str(error.value)
    model = modalities.load("clip", saved("siglip"), pretrained=False, seed=3)
    assert model.provenance["seed"] == 3 and not model.provenance["pretrained"]


def test_gradients_of_the_contrastive_loss_are_the_bare_models(pair):
    kind, model, bare = pair
    batch = model.prepare(samples("a cat", "a dog sits here"))
    reader = Gradients(model, "contrastive")
    sites = [IMAGE, f"{IMAGE}:gradient", f"{TEXT}:gradient"]
    assert reader.needs(sites) == {"image": IMAGE, "caption": IMAGE}
    found = reader.activations(batch, sites)
    image_side, text_side = (model.activations(batch, [site])[site].values[:, 0] for site in (IMAGE, TEXT))
    assert torch.equal(found[IMAGE].values[:, 0], image_side)
    v, t = (side.clone().requires_grad_() for side in (image_side, text_side))
    logits = (
        bare.logit_scale.exp() * torch.nn.functional.normalize(t, dim=1) @ torch.nn.functional.normalize(v, dim=1).T
    )
    logits = logits.T + (bare.logit_bias if kind == "siglip" else 0)
    own = torch.arange(2)
    cross = torch.nn.functional.cross_entropy
    ((cross(logits, own, reduction="sum") + cross(logits.T, own, reduction="sum")) / 2).backward()
    torch.testing.assert_close(found[f"{IMAGE}:gradient"].values[:, 0], v.grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found[f"{TEXT}:gradient"].values[:, 0], t.grad, rtol=1e-3, atol=1e-5)
