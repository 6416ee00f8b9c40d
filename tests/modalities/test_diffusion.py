"""Text encoders of tiny pipelines of diffusers' own classes: alone, and edited inside whole pipeline calls."""

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from transformers import CLIPTextModel

import modalities
from modalities.base import KINDS
from modalities.data import Sample
from modalities.layout import kinds_of

from .tiny_pipelines import CALLS, clip_tokenizer, t5_tokenizer

CAPTIONS = ["a red cat", "Photo", "a blue dog on a red cat on a photo"]
LAST = {"sd": "text_encoder.final_layer_norm", "pixart": "text_encoder.encoder.final_layer_norm"}


def layer(model, encoder, number):
    """CLIP's layers are at another path in each version of transformers."""
    return next(s for s in model.sites() if s.startswith(f"{encoder}.") and s.endswith(f"layers.{number}"))


def images(model, prompt="a red cat", negative="blurry", name="sd", **more):
    options = CALLS[name] | {"num_inference_steps": 1, "output_type": "np", "seeds": [7]} | more
    return model.pipeline()(prompt, negative, **options).images


def same(a, b):
    return (a == b).all()


def names(kinds):
    return [[KINDS[kind] for kind in row] for row in kinds.tolist()]


def test_text_encoders_load_and_run_without_the_rest(pipeline_dir, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(pipeline_dir("sd"), alone)
    shutil.rmtree(alone / "unet")
    shutil.rmtree(alone / "vae")
    model = modalities.load("diffusion", str(alone))
    assert {site.split(".")[0] for site in model.sites()} == {"text_encoder"}
    with torch.no_grad():
        ids = clip_tokenizer()(CAPTIONS, padding="max_length", truncation=True, return_tensors="pt").input_ids
        told = CLIPTextModel.from_pretrained(alone / "text_encoder")(ids, output_hidden_states=True)
    batch = model.prepare([Sample(str(number), "", captions=(caption, "x")) for number, caption in enumerate(CAPTIONS)])
    assert torch.equal(batch["text_encoder"], ids)
    first = layer(model, "text_encoder", 0)
    sites = [f"{first}:input", first, layer(model, "text_encoder", 1), layer(model, "text_encoder", 2)]
    got = model.activations(batch, sites)
    for site, hidden in zip(sites, told.hidden_states, strict=True):
        assert torch.equal(got[site].values, hidden), site
    assert torch.equal(model.run(batch)["text_encoder"].last_hidden_state, told.last_hidden_state)
    with pytest.raises(FileNotFoundError, match=r"no folder (unet|vae), which its model_index.json names"):
        model.pipeline()


def test_captured_is_what_each_pipeline_takes(pipelines):
    def pipe(name):
        return pipelines(name).pipeline().library

    def got(name, *sites):
        found = pipelines(name).activations(pipelines(name).prepare(CAPTIONS), sites)
        return [found[site].values for site in sites]

    with torch.no_grad():
        assert torch.equal(got("sd", LAST["sd"])[0], pipe("sd").encode_prompt(CAPTIONS, "cpu", 1, False)[0])
        told = pipe("pixart").encode_prompt(CAPTIONS, do_classifier_free_guidance=False)
        assert torch.equal(got("pixart", LAST["pixart"])[0], told[0])
        assert torch.equal(pipelines("pixart").prepare(CAPTIONS)["text_encoder.attention_mask"], told[1])

        two = [layer(pipelines("sdxl"), name, 1) for name in ("text_encoder", "text_encoder_2")]
        told = pipe("sdxl").encode_prompt(CAPTIONS, do_classifier_free_guidance=False)
        assert torch.equal(torch.cat(got("sdxl", *two), -1), told[0])
        pooled = pipelines("sdxl").run(pipelines("sdxl").prepare(CAPTIONS))["text_encoder_2"].text_embeds
        assert torch.equal(pooled, told[2])

        two = [layer(pipelines("sd3"), name, 1) for name in ("text_encoder", "text_encoder_2")]
        told = pipe("sd3").encode_prompt(CAPTIONS, None, None, do_classifier_free_guidance=False)[0]
        one, other, t5 = got("sd3", *two, "text_encoder_3.encoder.final_layer_norm")
        assert torch.equal(told[:, :8], torch.cat([one, other], -1)) and torch.equal(told[:, 8:], t5)
        told = pipe("flux").encode_prompt(CAPTIONS)[0]
        assert torch.equal(got("flux", "text_encoder_2.encoder.final_layer_norm")[0], told)


def test_kinds_by_hand(pipelines):
    special, text, pad = "special", "text", "pad"
    model = pipelines("sd")
    site = layer(model, "text_encoder", 0)
    kinds = model.activations(model.prepare(CAPTIONS), [site])[site].kinds
    assert names(kinds) == [
        [special, text, text, text, special, pad, pad, pad],  # the first end mark; the others fill
        [special, text, special, pad, pad, pad, pad, pad],
        [special, *[text] * 6, special],  # cut
    ]
    other = clip_tokenizer("!")
    ids = other(["a ! cat"], padding="max_length", return_tensors="pt").input_ids
    ids[0, 2] = 0
    assert names(kinds_of(ids, other)) == [[special, text, text, text, special, pad, pad, pad]]
    ids = t5_tokenizer()(["a cat", ""], padding="max_length", max_length=5, return_tensors="pt").input_ids
    assert names(kinds_of(ids, t5_tokenizer())) == [[text, text, special, pad, pad], [special, pad, pad, pad, pad]]


def test_only_the_encoder_that_is_asked_for_runs_and_stops_early(pipelines):
    model, ran = pipelines("sdxl"), []
    site = layer(model, "text_encoder_2", 0)
    hooks = [
        model.module.get_submodule(path).register_forward_hook(lambda *_, path=path: ran.append(path))
        for path in ("text_encoder", layer(model, "text_encoder_2", 1), site)
    ]
    try:
        model.activations(model.prepare(CAPTIONS), [site])
    finally:
        for hook in hooks:
            hook.remove()
    assert ran == [site]


@pytest.mark.parametrize("name", CALLS)
def test_identity_is_bit_identical_and_zeros_are_seen(pipelines, name):
    model = pipelines(name)
    bare = images(model, name=name)
    for encoder in model.module:
        t5 = f"{encoder}.encoder.block.0"
        site = t5 if t5 in model.sites() else layer(model, encoder, 0)
        with model.edit(site, lambda values, kinds: values, prompt="both"):
            assert same(bare, images(model, name=name)), site
        for prompt in ("conditional", "negative"):
            with model.edit(site, lambda values, kinds: torch.zeros_like(values), prompt=prompt):
                assert not same(bare, images(model, name=name)), (site, prompt)


@pytest.mark.parametrize("name", LAST)
def test_an_edit_of_one_prompt_is_that_prompt_said_otherwise(pipelines, name):
    model, other, site = pipelines(name), "blue dog on", LAST[name]
    values = model.activations(model.prepare([other]), [site])[site].values

    def say_other(_values, _kinds):
        return values

    # Of as many words as the others: PixArt's denoiser gets the prompt's mask too, which is no hidden state.
    with model.edit(site, say_other, prompt="negative"):
        edited = images(model, "a red cat", "red cat on", name)
    assert same(edited, images(model, "a red cat", other, name))
    assert not same(edited, images(model, "a red cat", "red cat on", name))
    with model.edit(site, say_other, prompt="conditional"):
        edited = images(model, "a red cat", "blurry", name)
    assert same(edited, images(model, other, "blurry", name))


def test_without_guidance_there_is_no_negative_prompt_to_edit(pipelines):
    model, seen = pipelines("sd"), []

    def see(values, kinds):
        seen.append(tuple(values.shape))
        return torch.zeros_like(values)

    bare = images(model, guidance_scale=1.0)
    with model.edit(LAST["sd"], see, prompt="negative"):
        assert same(bare, images(model, guidance_scale=1.0)) and not seen
    with model.edit(LAST["sd"], see, prompt="both"):
        images(model, ["a cat", "a dog"], num_images_per_prompt=2, seeds=[1, 2, 3, 4])
    assert seen == [(2, 8, 16)] * 2


def test_kinds_reach_an_edit_in_a_pipeline(pipelines):
    model, seen = pipelines("sd"), []
    with model.edit(LAST["sd"], lambda values, kinds: seen.append(names(kinds)[0]) or values):
        images(model, "red cat")
    assert seen == [["special", "text", "text", "special", "pad", "pad", "pad", "pad"]]


def test_an_edit_ends_with_its_context_even_after_an_error(pipelines):
    model = pipelines("sd")
    bare = images(model)

    def fail(values, kinds):
        raise RuntimeError("in the edit")

    with pytest.raises(RuntimeError, match="in the edit"), model.edit(LAST["sd"], fail):
        images(model)
    assert model.pipeline().now is None and model.parts == ("conditional",)
    assert "step" not in vars(model.pipeline().library.scheduler)
    assert same(bare, images(model))
    with pytest.raises(ValueError, match="keep the shape"), model.edit(LAST["sd"], lambda v, k: v[:, 1:]):
        images(model)
    assert same(bare, images(model))
    with model.edit(LAST["sd"], lambda v, k: v), pytest.raises(ValueError, match="did not start"):
        model.pipeline().library("a cat", num_inference_steps=1)


def test_what_a_person_can_get_wrong(pipelines, pipeline_dir, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(pipeline_dir("sdxl"), broken, ignore=shutil.ignore_patterns("text_encoder_2", "unet", "vae"))
    with pytest.raises(FileNotFoundError, match=r"no folder text_encoder_2, which its model_index.json names"):
        modalities.load("diffusion", str(broken))
    with pytest.raises(FileNotFoundError, match=r"holds no model_index.json"):
        modalities.load("diffusion", str(tmp_path))
    (tmp_path / "model_index.json").write_text(json.dumps({"hidden_size": 3}))
    with pytest.raises(ValueError, match="is no diffusers pipeline"):
        modalities.load("diffusion", str(tmp_path))
    (tmp_path / "model_index.json").write_text(
        json.dumps({"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]})
    )
    with pytest.raises(ValueError, match="is a DDPMPipeline, which has no text encoder"):
        modalities.load("diffusion", str(tmp_path))
    with pytest.raises(ValueError, match="part is 'vae'"):
        modalities.load("diffusion", pipeline_dir("sd"), part="vae")
    model = pipelines("sd")
    with pytest.raises(ValueError, match="sample 'k' has no caption"):
        model.prepare([Sample("k", "k.png")])
    with (
        pytest.raises(ValueError, match="prompt is 'unconditional'"),
        model.edit(LAST["sd"], lambda v, k: v, "unconditional"),
    ):
        pass
    with pytest.raises(ValueError, match=r"takes no 'guidance'; the nearest are 'guidance_scale'"):
        images(model, guidance=3.0)
    with pytest.raises(ValueError, match="2 seeds for 1 images"):
        images(model, seeds=[1, 2])
    with pytest.raises(ValueError, match=r"no site 'unet.mid_block'"), model.edit("unet.mid_block", lambda v, k: v):
        pass


def test_provenance_tells_weights_and_how_prompts_are_read(pipelines, pipeline_dir):
    record = json.loads(json.dumps(pipelines("pixart").provenance))
    assert record["pipeline"] == "PixArtAlphaPipeline" and record["family"] == "diffusion"
    read = record["preprocessing"]["text_encoder"]
    assert (read["length"], read["masked"]) == (120, True)
    read = pipelines("sd3").provenance["preprocessing"]
    assert [(one["length"], one["masked"]) for one in read.values()] == [(8, False), (8, False), (256, False)]
    whole = DiffusionPipeline.from_pretrained(pipeline_dir("sd"))
    assert whole.text_encoder is not None and record["weights"] != pipelines("sd").provenance["weights"]
