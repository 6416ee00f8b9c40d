"""Denoisers of tiny pipelines: read at a step, edited at a step, with the time step known."""

import json

import numpy as np
import pytest
import torch

import modalities
from modalities.base import KINDS
from modalities.data import Sample
from modalities.loading import weights_digest
from modalities.pipeline import Step, seed_of

from .tiny_pipelines import CALLS

SAMPLES = [Sample("one", "", captions=("a red cat",)), Sample("two", "", captions=("a blue dog",))]
BLOCK = {
    "sd": "unet.mid_block",
    "sdxl": "unet.down_blocks.0.attentions.0",
    "pixart": "transformer.transformer_blocks.0",
    "sd3": "transformer.transformer_blocks.0",
    "flux": "transformer.transformer_blocks.0",
}
GRID = {"sd": (4, 4), "sdxl": (8, 8), "pixart": (4, 4), "sd3": (4, 4), "flux": (4, 4)}


@pytest.fixture(scope="module")
def denoisers(pipelines):
    found = {}

    def one(name, **more):
        if (name, *more.items()) not in found:
            options = CALLS[name] | {"num_inference_steps": 2, "output_type": "np"} | more
            found[name, *more.items()] = pipelines(name).denoiser(seed=3, negative_prompt="blurry", **options)
        return found[name, *more.items()]

    return one


def images(model, batch=None):
    return model.run(model.prepare(SAMPLES) if batch is None else batch).images


def test_a_step_is_the_schedulers_step_between_what_was_read(denoisers):
    """x_1 = scheduler.step(eps(x_0), t_0, x_0): input and output of the denoiser, at both steps."""
    model = denoisers("sd", guidance_scale=1.0)
    got = model.activations(model.prepare(SAMPLES), ["unet@0:input", "unet@0", "unet@1:input"])
    maps = {site: one.values.movedim(2, 1).reshape(2, 4, 8, 8) for site, one in got.items()}
    scheduler = model.pipe.library.scheduler
    scheduler.set_timesteps(2)
    after = scheduler.step(maps["unet@0"], scheduler.timesteps[0], maps["unet@0:input"]).prev_sample
    assert torch.equal(after, maps["unet@1:input"])
    noise = [torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed_of(3, s.key))) for s in SAMPLES]
    assert torch.equal(maps["unet@0:input"], torch.cat(noise))
    assert all(one.grid == (8, 8) for one in got.values())
    assert {KINDS[kind] for kind in got["unet@0"].kinds.unique()} == {"patch"}


@pytest.mark.parametrize("name", BLOCK)
def test_captured_is_what_the_librarys_own_pipeline_passes(denoisers, name):
    """Against a plain hook on diffusers' own pipeline; rows of the prompt alone, the image's stream of two."""
    model, site, kept = denoisers(name), BLOCK[name], []
    batch = model.prepare(SAMPLES)
    got = model.activations(batch, [f"{site}@0", f"{site}@1", site])

    def keep(_module, _args, output):
        several = output if isinstance(output, tuple) else (output,)
        kept.append(several[1] if name in ("sd3", "flux") else several[0])

    handle = model.module.get_submodule(site).register_forward_hook(keep)
    generator = [torch.Generator().manual_seed(seed) for seed in batch["seeds"]]
    try:
        options = model.options | {"negative_prompt": ["blurry"] * 2}
        model.pipe.library(list(batch["prompt"]), generator=generator, **options)
    finally:
        handle.remove()
    kept = kept[::2] if name == "flux" else kept  # which asks for each prompt by itself, the negative one second
    assert len(kept) == 2
    for step, one in enumerate(kept):
        one = one[-2:]
        one = one.flatten(2).transpose(1, 2) if one.ndim == 4 else one
        assert torch.equal(got[f"{site}@{step}"].values, one)
        assert got[f"{site}@{step}"].grid == GRID[name]
    assert torch.equal(got[site].values, torch.cat([got[f"{site}@0"].values, got[f"{site}@1"].values], 1))
    assert got[site].grid is None and site in model.sites()


@pytest.mark.parametrize("name", BLOCK)
def test_identity_is_bit_identical_and_each_prompt_is_edited_alone(denoisers, name):
    model, site = denoisers(name), BLOCK[name]
    bare, seen = images(model), []

    def same(values, kinds, step):
        seen.append((step.index, len(values)))
        return values

    for prompt, rows in (("conditional", [2]), ("negative", [2]), ("both", [2, 2] if name == "flux" else [4])):
        seen.clear()
        with model.edit(site, same, prompt=prompt):
            assert np.array_equal(bare, images(model))
        assert seen == [(step, count) for step in (0, 1) for count in rows]
    with model.edit(site, lambda values, kinds: values * 0, prompt="negative"):
        assert not np.array_equal(bare, images(model))


def test_the_step_is_known_and_can_be_chosen(denoisers):
    model, seen = denoisers("sd"), []
    site, times = BLOCK["sd"], [float(time) for time in model.pipe.library.scheduler.timesteps]

    def note(values, kinds, step):
        seen.append(step)
        return values

    with model.edit(site, note), model.edit(f"{site}@1", note):
        images(model)
    assert seen == [Step(0, times[0]), Step(1, times[1]), Step(1, times[1])] and times[0] > times[1]
    batch = model.prepare(SAMPLES)
    sites = [f"{site}@0", f"{site}@1"]
    bare = model.activations(batch, sites)
    with model.edit("unet.conv_in@0", lambda values, kinds: values * 0):
        edited = model.activations(batch, sites)
    assert not torch.equal(bare[sites[0]].values, edited[sites[0]].values)
    with model.edit("unet.conv_in@1", lambda values, kinds: values * 0):
        edited = model.activations(batch, sites)
    assert torch.equal(bare[sites[0]].values, edited[sites[0]].values)
    assert not torch.equal(bare[sites[1]].values, edited[sites[1]].values)


def test_an_image_is_its_samples_own_whatever_the_batch(denoisers):
    model = denoisers("sd")
    both = model.activations(model.prepare(SAMPLES), ["unet@0:input"])["unet@0:input"].values
    alone = model.activations(model.prepare(SAMPLES[1:]), ["unet@0:input"])["unet@0:input"].values
    assert torch.equal(both[1:], alone)
    np.testing.assert_allclose(images(model)[1:], images(model, model.prepare(SAMPLES[1:])), atol=1e-4)


def test_reading_stops_at_the_last_step_asked_for(denoisers):
    model, ran = denoisers("sd"), []
    library = model.pipe.library
    hooks = [
        library.unet.register_forward_pre_hook(lambda *_: ran.append("unet")),
        library.unet.conv_out.register_forward_pre_hook(lambda *_: ran.append("conv_out")),
    ]
    try:
        model.activations(model.prepare(SAMPLES), ["unet.mid_block@1"])
    finally:
        for hook in hooks:
            hook.remove()
    assert ran == ["unet", "conv_out", "unet"]
    assert model.pipe.now is None


def test_an_edit_of_the_text_is_felt_in_the_denoiser(pipelines, denoisers):
    text, model, site = pipelines("sd"), denoisers("sd"), "unet.mid_block@1"
    batch = model.prepare(SAMPLES)
    bare = model.activations(batch, [site])[site].values
    with text.edit("text_encoder.final_layer_norm", lambda values, kinds: values * 0, prompt="negative"):
        later = model.activations(batch, [site])[site].values
        first = model.activations(batch, ["unet.mid_block@0"])["unet.mid_block@0"].values
    assert not torch.equal(bare, later)  # through the guided latents
    assert torch.equal(first, model.activations(batch, ["unet.mid_block@0"])["unet.mid_block@0"].values)


def test_a_denoiser_is_loaded_by_name_and_says_what_it_does(pipeline_dir):
    model = modalities.load("diffusion", pipeline_dir("sd"), part="denoiser", seed=9, num_inference_steps=1)
    assert model.steps == 1 and model.sites()["unet.mid_block"] == (16, 16)
    record = json.loads(json.dumps(model.provenance))
    assert record["generation"] == {"seed": 9, "num_inference_steps": 1} and record["part"] == "unet"
    assert record["scheduler"]["class"] == "DDIMScheduler" and record["weights"] != record["text"]
    from diffusers import UNet2DConditionModel

    plain = UNet2DConditionModel.from_pretrained(f"{pipeline_dir('sd')}/unet")
    assert record["weights"] == weights_digest(plain)  # however its numbers lie in memory


def test_streams_that_nothing_tells_apart_are_refused(denoisers):
    model = denoisers("flux", max_sequence_length=16)  # as many words as cells
    assert BLOCK["flux"] not in model.sites() and f"{BLOCK['flux']}.ff" in model.sites()
    with pytest.raises(ValueError, match="no tensor known to be the image's"):
        model.activations(model.prepare(SAMPLES), [f"{BLOCK['flux']}@0"])


def test_what_a_person_can_get_wrong(denoisers, pipeline_dir):
    model = denoisers("sd")
    batch = model.prepare(SAMPLES)
    with pytest.raises(ValueError, match=r"is at step 2: this pipeline has 0 to 1"):
        model.activations(batch, ["unet.mid_block@2"])
    with pytest.raises(ValueError, match="names no step"), model.edit("unet.mid_block@last", lambda v, k: v):
        pass
    with pytest.raises(ValueError, match=r"no site 'unet.midblock'; the nearest are 'unet.mid_block'"):
        model.activations(batch, ["unet.midblock@0"])
    with pytest.raises(ValueError, match="has no caption"):
        model.prepare([Sample("k", "k.png")])
    with pytest.raises(ValueError, match="takes no 'steps'"):
        modalities.load("diffusion", pipeline_dir("sd"), part="denoiser", steps=2)
    with pytest.raises(ValueError, match="text encoders take no option 'num_inference_steps'"):
        modalities.load("diffusion", pipeline_dir("sd"), num_inference_steps=2)
    with model.edit(BLOCK["sd"], lambda v, k: v), pytest.raises(ValueError, match="that no Pipeline started"):
        model.pipe.library("a cat", num_inference_steps=1)
