"""Captured = open_clip's own intermediates, to the bit, in both towers; kinds of text tokens counted by hand."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import modalities
from modalities.base import KINDS
from modalities.clip import ClipModel

REAL = Path(__file__).resolve().parents[2] / "../shared/models/clip_effnet_minilm"
VISION = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CUSTOM = {"block_type": "custom", "qk_norm": True}
CONFIGS = {
    "clip": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT},
    "custom_text": {"embed_dim": 24, "custom_text": True, "vision_cfg": VISION | CUSTOM, "text_cfg": TEXT | CUSTOM},
    "wide": {"embed_dim": 24, "vision_cfg": VISION | {"image_size": [16, 40]}, "text_cfg": TEXT | {"proj_bias": True}},
}
COCA = {
    "embed_dim": 32,
    "custom_text": True,
    "vision_cfg": VISION
    | {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 17, "output_tokens": True},
    "text_cfg": TEXT | {"context_length": 76, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": TEXT | {"context_length": 76},
}
RESNET = {"embed_dim": 32, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}, "text_cfg": TEXT}
LONG = "a photo of " + "very " * 100 + "long cats"


def clip_dir(folder, config):
    """A model with random weights in open_clip's own directory format."""
    folder.mkdir(exist_ok=True)
    preprocess = {
        "size": config["vision_cfg"]["image_size"],
        "resize_mode": "squash",
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    torch.manual_seed(1)
    bare = open_clip.create_model(f"local-dir:{folder}", load_weights=False).eval()
    save_file(
        {name: value.contiguous() for name, value in bare.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return bare


def samples(*captions):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (len(captions), 50, 70, 3), dtype=np.uint8)
    return [
        SimpleNamespace(key=str(i), image=Image.fromarray(pixels[i]), captions=(text,))
        for i, text in enumerate(captions)
    ]


def names(kinds):
    return [KINDS[kind] for kind in kinds.tolist()]


@pytest.mark.parametrize("name", CONFIGS)
def test_both_towers_equal_open_clips_own_intermediates(tmp_path, name):
    bare = clip_dir(tmp_path, CONFIGS[name])
    model = modalities.load("clip", str(tmp_path))
    batch = model.prepare(samples("a red cube", "two cats!"))
    text = "text.transformer" if name == "custom_text" else "transformer"
    with torch.no_grad():
        said = bare.forward_intermediates(
            batch["image"], batch["text"], normalize=False, image_output_fmt="NLC", image_output_extra_tokens=True
        )
        output = bare(batch["image"], batch["text"])
    for ours, theirs in zip(model.run(batch), output, strict=True):
        assert torch.equal(ours, theirs)
    sites = [f"{tower}.resblocks.{i}" for tower in ("visual.transformer", text) for i in (0, 1)]
    read = model.activations(batch, [*sites, "image_embedding", "text_embedding"])
    for i in (0, 1):
        image = torch.cat([said["image_intermediates_prefix"][i], said["image_intermediates"][i]], dim=1)
        assert torch.equal(read[f"visual.transformer.resblocks.{i}"].values, image)
        assert torch.equal(read[f"{text}.resblocks.{i}"].values, said["text_intermediates"][i])
    assert torch.equal(read["image_embedding"].values[:, 0], said["image_features"])
    assert torch.equal(read["text_embedding"].values[:, 0], said["text_features"])
    image = read["visual.transformer.resblocks.1"]
    grid = (2, 5) if name == "wide" else (4, 4)
    assert image.grid == grid and names(image.kinds[0]) == ["cls"] + ["patch"] * (grid[0] * grid[1])
    assert names(read["image_embedding"].kinds[0]) == ["cls"]
    assert {
        "image_embedding": (1, 24),
        "text_embedding": (1, 24),
        f"{text}.resblocks.0": (77, 32),
    }.items() <= model.sites().items()


@pytest.mark.parametrize("name", CONFIGS)
def test_identity_edits_are_identical_and_zeroing_ones_are_not(tmp_path, name):
    clip_dir(tmp_path, CONFIGS[name])
    model = modalities.load("clip", str(tmp_path))
    batch = model.prepare(samples("a red cube", "two cats"))
    image, text, *_ = model.run(batch)
    tower = "text.transformer" if name == "custom_text" else "transformer"
    for site in [
        f"{tower}.resblocks.0",
        f"{tower}.resblocks.1.attn.out_proj:input",
        f"{tower}.resblocks.0.attn:input",
        "text_embedding",
    ]:
        with model.edit(site, lambda v, k: v.clone()):
            assert torch.equal(model.run(batch)[1], text), site
        with model.edit(site, lambda v, k: v * torch.linspace(0, 1, v.shape[-1])):
            assert not torch.equal(model.run(batch)[1], text), site
    for site in [
        "visual.transformer.resblocks.0.attn.out_proj:input",
        "visual.transformer.resblocks.1:input",
        "image_embedding",
    ]:
        with model.edit(site, lambda v, k: v.clone()):
            assert torch.equal(model.run(batch)[0], image), site
        with model.edit(site, lambda v, k: v * torch.linspace(0, 1, v.shape[-1])):
            assert not torch.equal(model.run(batch)[0], image), site


def test_sequence_first_towers_are_read_the_same(tmp_path):
    clip_dir(tmp_path, CONFIGS["clip"])
    model = modalities.load("clip", str(tmp_path))
    turned = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    for transformer in (turned.transformer, turned.visual.transformer):
        transformer.batch_first = False
        for block in transformer.resblocks:
            block.attn.batch_first = False
    turned = ClipModel(turned, {}, model._transform, model.tokenizer)
    batch = model.prepare(samples("a red cube", "two cats", "three"))
    sites = [
        f"{t}resblocks.1{s}"
        for t in ("transformer.", "visual.transformer.")
        for s in ("", ".attn", ".attn.out_proj:input", ".mlp:input")
    ]
    ours, theirs = model.activations(batch, sites), turned.activations(batch, sites)
    for site in sites:
        assert ours[site].values.shape[0] == 3
        assert torch.equal(ours[site].kinds, theirs[site].kinds) and ours[site].grid == theirs[site].grid
        torch.testing.assert_close(ours[site].values, theirs[site].values, atol=1e-5, rtol=1e-4)
        with turned.edit(site, lambda v, k: v.clone()):
            edited = turned.run(batch)[:2]
        for one, other in zip(edited, turned.run(batch)[:2], strict=True):
            assert torch.equal(one, other)
    assert turned.sites() == model.sites()


def test_text_kinds_by_hand(tmp_path):
    clip_dir(tmp_path, CONFIGS["clip"])
    model = modalities.load("clip", str(tmp_path))
    batch = model.prepare(samples("hello!", "", LONG))
    kinds = model.activations({"text": batch["text"]}, ["ln_final"])["ln_final"].kinds
    # "!" has id 0, which is also the filling.
    assert batch["text"][0, 1:4].tolist() == [3306, 256, 49407]
    assert names(kinds[0]) == ["special", "text", "text", "special"] + ["pad"] * 73
    assert names(kinds[1]) == ["special", "special"] + ["pad"] * 75
    assert names(kinds[2]) == ["special"] + ["text"] * 75 + ["special"]
    bang = model.activations({"text": model.tokenizer(["! !"])}, ["ln_final"])["ln_final"].kinds
    assert names(bang[0][:6]) == ["special", "text", "text", "special", "pad", "pad"]


def test_a_tower_that_is_not_asked_for_does_not_run(tmp_path):
    clip_dir(tmp_path, CONFIGS["clip"])
    model = modalities.load("clip", str(tmp_path))
    fired = []
    model.module.visual.conv1.register_forward_hook(lambda *_: fired.append("image"))
    model.module.token_embedding.register_forward_hook(lambda *_: fired.append("text"))
    batch = model.prepare(samples("a red cube"))
    model.activations(batch, ["transformer.resblocks.0"])
    assert fired == ["text"]
    model.activations(batch, ["visual.transformer.resblocks.0"])
    assert fired == ["text", "image"]
    with pytest.raises(ValueError, match="never passed for a batch of text"):
        model.activations({"text": batch["text"]}, ["visual.conv1"])


def test_cocas_appended_class_token_and_learned_queries(tmp_path):
    clip_dir(tmp_path, COCA)
    model = modalities.load("clip", str(tmp_path))
    batch = model.prepare(samples("a red cube", "two"))
    read = model.activations(
        batch, ["text.transformer.resblocks.0", "visual.attn_pool", "visual.transformer", "text_embedding"]
    )
    assert names(read["text.transformer.resblocks.0"].kinds[0]) == ["special"] + ["text"] * 3 + ["special"] + [
        "pad"
    ] * 71 + ["cls"]
    assert names(read["visual.transformer"].kinds[0]) == ["cls"] + ["patch"] * 16
    assert set(names(read["visual.attn_pool"].kinds[0])) == {"special"} and read["visual.attn_pool"].grid is None
    assert torch.equal(read["text_embedding"].values[:, 0], model.module.encode_text(batch["text"], normalize=False))
    assert torch.equal(model.run({"text": batch["text"]})["text_features"], model.module.encode_text(batch["text"]))


def test_clips_resnet_gives_feature_maps(tmp_path):
    bare = clip_dir(tmp_path, RESNET)
    model = modalities.load("clip", str(tmp_path))
    batch = model.prepare(samples("x", "y"))
    seen = {}
    bare.visual.layer3.register_forward_hook(lambda _m, _i, out: seen.update(out=out))
    with torch.no_grad():
        features = bare.encode_image(batch["image"])
    read = model.activations(batch, ["visual.layer3", "image_embedding"])
    assert read["visual.layer3"].grid == (4, 4) and torch.equal(read["visual.layer3"].values, seen["out"].flatten(2).mT)
    assert torch.equal(read["image_embedding"].values[:, 0], features)


def test_the_real_model_loads_by_path_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(REAL)
    bare = open_clip.create_model("local-dir:.").eval()
    _, _, transform = open_clip.create_model_and_transforms("local-dir:.")
    monkeypatch.chdir(tmp_path)
    model = modalities.load("clip", os.path.relpath(REAL, tmp_path))
    batch = model.prepare(samples("a dog runs on grass", LONG))
    assert torch.equal(batch["image"][1], transform(samples("a", "b")[1].image))
    with torch.no_grad():
        image, text = bare.encode_image(batch["image"]), bare.encode_text(batch["text"])
        layers = bare.text.transformer(
            batch["text"], (batch["text"] != 0).long(), output_hidden_states=True
        ).hidden_states
        maps = bare.visual.forward_intermediates(batch["image"])["image_intermediates"]
    layer = "text.transformer.encoder.layer.{}"
    read = model.activations(
        batch, [layer.format(0), layer.format(5), "visual.trunk.blocks.6", "image_embedding", "text_embedding"]
    )
    assert torch.equal(read["image_embedding"].values[:, 0], image) and torch.equal(
        read["text_embedding"].values[:, 0], text
    )
    assert torch.equal(read[layer.format(0)].values, layers[1]) and torch.equal(read[layer.format(5)].values, layers[6])
    assert torch.equal(read["visual.trunk.blocks.6"].values, maps[-1].flatten(2).mT) and read[
        "visual.trunk.blocks.6"
    ].grid == (7, 7)
    kinds = read[layer.format(5)].kinds
    assert names(kinds[0]) == ["special"] + ["text"] * 5 + ["special"] + ["pad"] * 57
    assert names(kinds[1]) == ["special"] + ["text"] * 62 + ["special"]
    record = model.provenance["preprocessing"]
    assert (record["resize"], record["resize_mode"], record["crop"]) == ([224, 224], "exact", None)
    assert modalities.load("clip", f"local-dir:{REAL}").provenance == model.provenance


def test_mistakes_get_one_sentence(tmp_path):
    clip_dir(tmp_path / "good", CONFIGS["clip"])
    shutil.copytree(tmp_path / "good", tmp_path / "bare")
    (tmp_path / "bare/open_clip_model.safetensors").unlink()
    (tmp_path / "empty").mkdir()
    cases = [
        ("ViT-B-23", {}, ValueError, "ViT-B-32"),
        ("ViT-B-32", {}, ValueError, r"say pretrained=\.\.\. one of openai"),
        (str(tmp_path / "empty"), {}, FileNotFoundError, r"no open_clip_config\.json"),
        (f"local-dir:{tmp_path}/nowhere", {}, FileNotFoundError, "there is no directory"),
        (str(tmp_path / "bare"), {}, OSError, "could not be loaded"),
    ]
    for name, options, kind, sentence in cases:
        with pytest.raises(kind, match=sentence) as error:
            modalities.load("clip", name, **options)
        assert "\n" not in str(error.value), name
    model = modalities.load("clip", str(tmp_path / "bare"), pretrained=False, seed=5)
    assert model.provenance["pretrained"] is False and model.provenance["seed"] == 5
    with pytest.raises(ValueError, match=r"nearest are 'visual\.transformer\.resblocks\.1"):
        model.activations(model.prepare(samples("a")), ["visual.transformer.resblocks.11"])
    with pytest.raises(ValueError, match="some samples have no image"):
        model.prepare([SimpleNamespace(key="a", image=None, captions=())])
