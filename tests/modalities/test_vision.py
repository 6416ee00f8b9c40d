"""Captured = what timm and transformers say themselves, to the bit; kinds and grid as one counts them; one sentence for mistakes."""

import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from timm.models import save_for_hf
from torch import nn

import modalities
from modalities.base import KINDS
from modalities.images import ImageTokens, grid_of
from modalities.loading import weights_digest
from modalities.sites import Site

MODELS = Path(__file__).resolve().parents[2] / "../shared/models"
TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}
TRANSFORMER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}


def photo(width=90, height=70, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return SimpleNamespace(key=str(seed), image=Image.fromarray(pixels).resize((width * 3, height * 3)), captions=())


def timm_dir(folder, name, **args):
    """A timm model with random weights in timm's own format, and the bare model."""
    torch.manual_seed(1)
    bare = timm.create_model(name, **args).eval()
    save_for_hf(bare, folder, model_args=args, safe_serialization=True)
    return bare


def transformers_dir(folder, config, processor):
    torch.manual_seed(1)
    bare = transformers.AutoModel.from_config(config).eval()
    bare.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return bare


def counted(kinds):
    return {KINDS[kind]: int(count) for kind, count in zip(*np.unique(kinds.numpy(), return_counts=True), strict=True)}


TIMM_VITS = {
    "vit_small_patch14_reg4_dinov2": ({"img_size": 56}, {"cls": 1, "register": 4, "patch": 16}, (4, 4)),
    "vit_small_patch14_dinov2": ({"img_size": (42, 70)}, {"cls": 1, "patch": 15}, (3, 5)),
    "deit_tiny_distilled_patch16_224": ({"img_size": (64, 32)}, {"cls": 1, "special": 1, "patch": 8}, (4, 2)),
    "vit_base_patch16_siglip_224": ({"img_size": 64}, {"patch": 16}, (4, 4)),
    "eva02_tiny_patch14_224": ({"img_size": 56}, {"cls": 1, "patch": 16}, (4, 4)),
}


@pytest.mark.parametrize("name", TIMM_VITS)
def test_timm_transformers_equal_forward_intermediates(tmp_path, name):
    args, kinds, grid = TIMM_VITS[name]
    bare = timm_dir(tmp_path, name, **TINY, **args)
    model = modalities.load("vision", str(tmp_path))
    edges = args["img_size"] if isinstance(args["img_size"], tuple) else (args["img_size"],) * 2
    batch = {"image": torch.randn(3, 3, *edges)}
    with torch.no_grad():
        _, layers = bare.forward_intermediates(batch["image"], output_fmt="NLC", return_prefix_tokens=True)
        assert torch.equal(model.run(batch), bare(batch["image"]))
    read = model.activations(batch, ["blocks.0", "blocks.1", "blocks.1:input"])
    for block, layer in enumerate(layers):
        patches, prefix = layer if isinstance(layer, tuple) else (layer, layer[:, :0])
        assert torch.equal(read[f"blocks.{block}"].values, torch.cat([prefix, patches], dim=1))
    assert torch.equal(read["blocks.1:input"].values, read["blocks.0"].values)
    assert counted(read["blocks.1"].kinds[0]) == kinds and read["blocks.1"].grid == grid
    # The prefix stands in front, in timm's order.
    assert counted(read["blocks.1"].kinds[0][-grid[0] * grid[1] :]) == {"patch": grid[0] * grid[1]}
    assert model.sites()["blocks.1"] == tuple(read["blocks.1"].values.shape[1:])


SWIN = {"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "img_size": 56, "num_classes": 0}


@pytest.mark.parametrize(
    ("name", "args", "stages"),
    [
        ("test_resnet", {}, ["layer1", "layer4"]),
        ("test_convnext", {}, ["stages.0", "stages.3"]),
        ("test_efficientnet", {}, ["blocks.1", "blocks.3"]),
        ("swin_tiny_patch4_window7_224", SWIN, ["layers.0", "layers.1"]),  # channels last
    ],
)
def test_feature_maps_become_tokens_row_by_row(tmp_path, name, args, stages):
    bare = timm_dir(tmp_path, name, **args)
    model = modalities.load("vision", str(tmp_path), img_size=None if args else (64, 96))
    batch = {"image": torch.randn(2, 3, *((56, 56) if args else (64, 96)))}
    read = model.activations(batch, stages)
    with torch.no_grad():
        output = bare(batch["image"])
        maps = bare.forward_intermediates(batch["image"], intermediates_only=True)  # all [batch, d, rows, columns]
    assert torch.equal(model.run(batch), output)
    for stage in stages:
        values, kinds, grid = read[stage]
        assert any(one.shape[2:] == grid and torch.equal(values, one.flatten(2).mT) for one in maps)
        assert counted(kinds[0]) == {"patch": grid[0] * grid[1]}
        with model.edit(stage, lambda v, k: v.clone()):
            assert torch.equal(model.run(batch), output)


def test_channels_are_found_on_either_side():
    """As many channels as rows and columns, so that the shape alone does not tell."""
    tokens = ImageTokens(nn.Identity())
    image, hidden = torch.zeros(1, 3, 64, 64), torch.randn(1, 16, 16, 16)
    site = Site("here", "output")
    first, last = hidden.flatten(2).mT, hidden.flatten(1, 2)
    for place in (nn.Conv2d(16, 16, 1), timm.layers.LayerNorm2d(16), nn.BatchNorm2d(16), nn.Identity()):
        assert torch.equal(tokens(site, hidden, image, place).values, first), place
    for place in (nn.Linear(16, 16), nn.LayerNorm(16), nn.Sequential(nn.Linear(16, 16), nn.GELU())):
        assert torch.equal(tokens(site, hidden, image, place).values, last), place
    for place in (nn.Identity(), nn.Linear(16, 16)):
        seen = tokens(site, hidden, image, place)
        assert torch.equal(seen.restore(seen.values), hidden)


CONFIGS = {
    "dinov2": (transformers.Dinov2Config(**TRANSFORMER, mlp_ratio=2), "encoder.layer", {"cls": 1, "patch": 16}),
    "dinov2_registers": (
        transformers.Dinov2WithRegistersConfig(**TRANSFORMER, mlp_ratio=2, num_register_tokens=4),
        "encoder.layer",
        {"cls": 1, "register": 4, "patch": 16},
    ),
    "vit": (transformers.ViTConfig(**TRANSFORMER, intermediate_size=64), None, {"cls": 1, "patch": 16}),
    "deit": (transformers.DeiTConfig(**TRANSFORMER, intermediate_size=64), None, {"cls": 1, "special": 1, "patch": 16}),
    "siglip": (transformers.SiglipVisionConfig(**TRANSFORMER, intermediate_size=64), None, {"patch": 16}),
    "clip": (transformers.CLIPVisionConfig(**TRANSFORMER, intermediate_size=64), None, {"cls": 1, "patch": 16}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_backbones_equal_output_hidden_states(tmp_path, name):
    config, _, kinds = CONFIGS[name]
    processor = transformers.ViTImageProcessor(size={"height": 56, "width": 56})
    bare = transformers_dir(tmp_path, config, processor)
    model = modalities.load("vision", str(tmp_path))
    batch = model.prepare([photo(), photo(seed=1)])
    with torch.no_grad():
        output = bare(batch["image"], output_hidden_states=True)
    layers = [site for site in model.sites() if site.split(".")[-1] in "01" and site.count("layer")]
    assert len(layers) == 2
    read = model.activations(batch, [*layers, f"{layers[0]}:input"])
    assert torch.equal(read[f"{layers[0]}:input"].values, output.hidden_states[0])
    assert torch.equal(read[layers[0]].values, output.hidden_states[1])
    assert torch.equal(read[layers[1]].values, output.hidden_states[2])
    assert torch.equal(model.run(batch).last_hidden_state, output.last_hidden_state)
    assert counted(read[layers[1]].kinds[1]) == kinds and read[layers[1]].grid == (4, 4)
    with model.edit(layers[0], lambda v, k: v.clone()):
        assert torch.equal(model.run(batch).last_hidden_state, output.last_hidden_state)
    with model.edit(layers[0], lambda v, k: v.masked_fill((k == KINDS.index("patch")).unsqueeze(-1), 0)):
        changed = model.activations(batch, [layers[0]])[layers[0]].values
    patches = read[layers[0]].kinds == KINDS.index("patch")
    assert (changed[patches] == 0).all() and torch.equal(changed[~patches], read[layers[0]].values[~patches])


@pytest.mark.parametrize(
    ("config", "site"),
    [
        (
            transformers.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], image_size=64),
            "encoder.stages.2",
        ),
        (
            transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]),
            "encoder.stages.2",
        ),
    ],
)
def test_transformers_feature_maps_become_tokens(tmp_path, config, site):
    bare = transformers_dir(tmp_path, config, transformers.ViTImageProcessor(size={"height": 64, "width": 96}))
    model = modalities.load("vision", str(tmp_path))
    batch = model.prepare([photo()])
    with torch.no_grad():
        maps = bare(batch["image"], output_hidden_states=True).hidden_states
    values, kinds, grid = model.activations(batch, [site])[site]
    assert grid == (4, 6) and counted(kinds[0]) == {"patch": 24}
    assert torch.equal(values, maps[3].flatten(2).mT)


def test_the_image_tower_of_a_whole_clip_is_loaded_from_its_directory(tmp_path):
    text = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 100,
    }
    config = transformers.CLIPConfig(vision_config={**TRANSFORMER, "intermediate_size": 64}, text_config=text)
    bare = transformers_dir(tmp_path, config, transformers.ViTImageProcessor(size={"height": 56, "width": 56}))
    model = modalities.load("vision", str(tmp_path))
    batch = model.prepare([photo()])
    with torch.no_grad():
        wanted = bare.vision_model(batch["image"]).last_hidden_state
    assert torch.equal(model.run(batch).last_hidden_state, wanted)


def test_heads_concatenated_are_the_input_of_the_out_projection(tmp_path):
    timm_dir(tmp_path, "vit_small_patch14_dinov2", **TINY, img_size=56)
    model = modalities.load("dinov2", str(tmp_path))
    batch = {"image": torch.randn(2, 3, 56, 56)}
    read = model.activations(batch, ["blocks.1.attn.proj:input", "blocks.1.attn.proj", "blocks.1.attn:input"])
    attn = model.module.blocks[1].attn
    q, k, v = attn.qkv(read["blocks.1.attn:input"].values).reshape(2, 17, 3, 2, 16).permute(2, 0, 3, 1, 4)
    by_hand = (q @ k.mT / 4).softmax(-1) @ v
    torch.testing.assert_close(
        read["blocks.1.attn.proj:input"].values, by_hand.transpose(1, 2).flatten(2), atol=1e-5, rtol=1e-4
    )
    assert not any(site.endswith(("q_norm", "k_norm")) for site in model.sites())


def test_the_real_network_reads_as_timm_says():
    folder = MODELS / "efficientnet_lite0"
    model = modalities.load("vision", str(folder))
    bare = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    batch = model.prepare([photo(), photo(seed=1)])
    with torch.no_grad():
        maps = bare.forward_intermediates(batch["image"], intermediates_only=True)
        assert torch.equal(model.run(batch), bare(batch["image"]))
    read = model.activations(batch, ["blocks.4", "blocks.6", "bn2", "global_pool"])
    assert torch.equal(read["blocks.4"].values, maps[3].flatten(2).mT) and read["blocks.4"].grid == (14, 14)
    assert torch.equal(read["blocks.6"].values, maps[4].flatten(2).mT) and read["blocks.6"].grid == (7, 7)
    torch.testing.assert_close(read["global_pool"].values[:, 0], read["bn2"].values.mean(1))
    assert counted(read["global_pool"].kinds) == {"cls": 2} and read["global_pool"].grid is None
    preprocessing = model.provenance["preprocessing"]
    assert {**preprocessing, "library": ""} == {
        "resize": 256, "resize_mode": "shortest", "interpolation": "bicubic", "crop": [224, 224],
        "mean": [0.5] * 3, "std": [0.5] * 3, "library": "",
    }  # fmt: skip
    assert model.provenance["weights"] == weights_digest(bare) and model.provenance["name"] == "efficientnet_lite0"
    json.dumps(model.provenance, allow_nan=False)


def test_preprocessing_is_the_librarys_own(tmp_path):
    timm_dir(tmp_path / "timm", "vit_small_patch14_dinov2", **TINY, img_size=56)
    model = modalities.load("vision", str(tmp_path / "timm"))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model.module))
    assert torch.equal(model.prepare([photo()])["image"][0], transform(photo().image))

    processor = transformers.BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56})
    transformers_dir(tmp_path / "hf", CONFIGS["dinov2"][0], processor)
    model = modalities.load("vision", str(tmp_path / "hf"))
    wanted = processor(images=photo().image, return_tensors="pt")["pixel_values"]
    assert torch.equal(model.prepare([photo()])["image"], wanted)
    record = model.provenance["preprocessing"]
    assert (record["resize"], record["resize_mode"], record["crop"]) == (64, "shortest", [56, 56])


def test_another_image_size_changes_the_grid(tmp_path):
    processor = transformers.ViTImageProcessor(size={"height": 56, "width": 56})
    transformers_dir(tmp_path / "hf", CONFIGS["vit"][0], processor)
    model = modalities.load("vision", str(tmp_path / "hf"), img_size=(28, 70))
    read = model.activations(model.prepare([photo()]), ["layers.1"])
    assert read["layers.1"].grid == (2, 5) and counted(read["layers.1"].kinds[0]) == {"cls": 1, "patch": 10}
    timm_dir(tmp_path / "timm", "vit_small_patch14_reg4_dinov2", **TINY)
    model = modalities.load("vision", str(tmp_path / "timm"), img_size=[28, 70])
    assert model.activations(model.prepare([photo()]), ["blocks.1"])["blocks.1"].grid == (2, 5)
    assert model.provenance["preprocessing"]["crop"] == [28, 70]


def test_random_weights_come_from_the_seed_and_say_so():
    one, same, other = (modalities.load("vision", "test_vit", pretrained=False, seed=s) for s in (3, 3, 4))
    assert one.provenance == same.provenance and one.provenance["weights"] != other.provenance["weights"]
    assert one.provenance["pretrained"] is False and one.provenance["seed"] == 3


def test_dtype_is_the_one_asked_for_and_does_not_change_the_identity(tmp_path):
    timm_dir(tmp_path, "vit_small_patch14_dinov2", **TINY, img_size=56)
    whole, half = modalities.load("vision", str(tmp_path)), modalities.load("vision", str(tmp_path), dtype="bfloat16")
    values = half.activations(half.prepare([photo()]), ["blocks.0"])["blocks.0"].values
    assert values.dtype == torch.bfloat16 and half.provenance["dtype"] == "bfloat16"
    assert whole.provenance["weights"] == half.provenance["weights"]
    bare = half.run(half.prepare([photo()]))
    with half.edit("blocks.0", lambda v, k: v.float()):  # an SAE may answer in another precision
        assert torch.equal(half.run(half.prepare([photo()])), bare)


def test_a_directory_without_a_processor_is_warned_about(tmp_path):
    transformers_dir(tmp_path, CONFIGS["dinov2"][0], None)
    with pytest.warns(UserWarning, match=r"no preprocessor_config\.json"):
        model = modalities.load("vision", str(tmp_path))
    assert model.provenance["preprocessing"]["crop"] == [56, 56]


def test_grids_are_found_by_stride():
    assert grid_of(1369, (518, 518)) == (37, 37)
    assert grid_of(512, (224, 448)) == (16, 32)
    assert grid_of(64, (225, 225)) == (8, 8)  # padded: 225 / 32 rounds up
    assert grid_of(23, (224, 224)) is None


def test_mistakes_get_one_sentence(tmp_path):
    timm_dir(tmp_path / "good", "vit_small_patch14_dinov2", **TINY, img_size=56)
    (tmp_path / "empty").mkdir()
    shutil.copytree(tmp_path / "good", tmp_path / "no_weights")
    (tmp_path / "no_weights/model.safetensors").unlink()
    shutil.copytree(tmp_path / "good", tmp_path / "cut")
    weights = tmp_path / "cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange/config.json").write_text("{}")
    shutil.copytree(tmp_path / "strange", tmp_path / "torn")
    (tmp_path / "torn/config.json").write_text("{")
    transformers_dir(tmp_path / "other", CONFIGS["dinov2"][0], transformers.ViTImageProcessor())
    config = json.loads((tmp_path / "other/config.json").read_text())
    (tmp_path / "other/config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    cases = [
        ("vit_tiny_patch16_22", {}, ValueError, "vit_tiny_patch16_224"),
        (str(tmp_path / "nowhere"), {}, FileNotFoundError, "there is no directory"),
        (str(tmp_path / "empty"), {}, FileNotFoundError, r"no config\.json"),
        (str(tmp_path / "good/config.json"), {}, FileNotFoundError, "is a file"),
        (str(tmp_path / "no_weights"), {}, OSError, "cannot load"),
        (str(tmp_path / "cut"), {}, OSError, "cannot load"),
        (str(tmp_path / "strange"), {}, ValueError, "neither timm's nor transformers'"),
        (str(tmp_path / "torn"), {}, ValueError, "not readable JSON"),
        (str(tmp_path / "other"), {}, OSError, "lack"),
        (str(tmp_path / "good"), {"library": "keras"}, ValueError, "choose 'timm' or 'transformers'"),
        (str(tmp_path / "good"), {"img_size": (1, 2, 3)}, ValueError, "an edge or"),
        (str(tmp_path / "good"), {"dtype": "int3"}, ValueError, "choose one of float32"),
        (str(tmp_path / "good"), {"device": "cuda:99"}, ValueError, "cannot put the model on device 'cuda:99'"),
    ]
    for name, options, kind, sentence in cases:
        with warnings.catch_warnings(), pytest.raises(kind, match=sentence) as error:
            warnings.simplefilter("ignore")
            modalities.load("vision", name, **options)
        assert "\n" not in str(error.value), name
    with pytest.raises(ValueError, match="choose one of vision, dinov2, clip"):
        modalities.load("visoin", "x")
    model = modalities.load("vision", str(tmp_path / "good"))
    with pytest.raises(ValueError, match=r"the nearest are 'blocks\.1'"):
        model.activations({"image": torch.zeros(1, 3, 56, 56)}, ["blocks.11"])
    with pytest.raises(ValueError, match="sample 'k' has no image"):
        model.prepare([SimpleNamespace(key="k", image=None)])
