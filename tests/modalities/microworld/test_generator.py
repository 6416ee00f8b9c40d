"""The shipped diffusion pipeline: loads as its relatives do, and draws what it is asked to draw."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForText2Image, StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open

import modalities
from modalities.microworld import World, draw, path, render, table
from modalities.microworld.attributes import DEFAULT
from modalities.microworld.captions import parse
from modalities.microworld.train import diffusion, vae
from modalities.microworld.train.__main__ import main
from modalities.microworld.train.common import pixels

LONE = World(counts=(1.0,))
# Each shape and each colour twice, in pairs that differ.
PAIRS = [
    (DEFAULT["colour"][(i + 3 * turn) % 8], shape) for turn in range(2) for i, shape in enumerate(DEFAULT["shape"])
]


class Picture:
    def __init__(self, image):
        self.image, self.captions = Image.fromarray(image), ("",)


@pytest.fixture(scope="module")
def made():
    """One picture for each pair, by the adapter's own pipeline."""
    pipe = modalities.load("diffusion", str(path("diffusion"))).pipeline()
    prompts = [
        f"a large {colour} {shape} on {ground}"
        for (colour, shape), ground in zip(PAIRS, itertools.cycle(("sand", "stone")))
    ]
    images = pipe(prompts, seeds=range(16), num_inference_steps=20, guidance_scale=3.0, output_type="np").images
    return (images * 255).round().astype(np.uint8)


def chosen(images, texts):
    """The text that the shipped CLIP finds nearest to each image."""
    clip = modalities.load("clip", str(path("clip")))
    image = clip.prepare([Picture(one) for one in images])["image"]
    return clip.logits({"image": image} | clip.texts(texts)).argmax(1).tolist()


def test_most_pictures_show_the_colour_and_shape_asked_for(made):
    colours, shapes = DEFAULT["colour"], DEFAULT["shape"]
    colour = [colours[i] for i in chosen(made, [f"a {name} square" for name in colours])]
    assert sum(found == asked for found, (asked, _) in zip(colour, PAIRS, strict=True)) >= 12  # by chance 2
    shape = []
    for image, (asked, _) in zip(made, PAIRS, strict=True):
        shape += [shapes[i] for i in chosen([image], [f"a {asked} {name}" for name in shapes])]
    assert sum(found == asked for found, (_, asked) in zip(shape, PAIRS, strict=True)) >= 8  # by chance 2


def test_the_judge_of_this_test_is_not_fooled_by_pictures_of_something_else(made):
    colours = DEFAULT["colour"]
    found = [colours[i] for i in chosen(made, [f"a {name} square" for name in colours])]
    asked = [colour for colour, _ in PAIRS]
    assert sum(a == b for a, b in zip(found, asked[1:] + asked[:1], strict=True)) <= 5


def test_the_library_loads_it_without_help_and_draws_the_same(made):
    pipe = AutoPipelineForText2Image.from_pretrained(path("diffusion"))
    assert isinstance(pipe, StableDiffusionPipeline)
    pipe.set_progress_bar_config(disable=True)
    colour, shape = PAIRS[0]
    image = pipe(
        f"a large {colour} {shape} on sand", generator=torch.Generator().manual_seed(0), num_inference_steps=20, guidance_scale=3.0, output_type="np"
    ).images[0]  # fmt: skip
    assert np.abs((image * 255).round() - made[0]).max() <= 1


def test_the_codec_keeps_scenes_and_its_encoder_is_the_mean_of_two_by_two_pixels():
    codec = diffusion.load().vae
    images = pixels(render(draw(50, 20_010, world=LONE)).images)
    coarse = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(images, 2), scale_factor=2)
    floor = float(10 * torch.log10(4 / (coarse - images).square().mean()))
    assert vae.psnr(codec, images) > floor + 0.3
    with torch.no_grad():
        latents = codec.encoder(images)
        again = codec.encoder(coarse)
    torch.testing.assert_close(latents, again, atol=5e-3, rtol=1e-3)
    assert float(latents.square().mean().sqrt()) == pytest.approx(vae.SPREAD, rel=0.1)


def test_an_untrained_decoder_gives_each_patch_its_mean_colour():
    codec = vae.build()
    images = pixels(render(draw(20, 20_011)).images)
    coarse = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(images, 2), scale_factor=2)
    with torch.no_grad():
        squashed = codec.encoder(images).tanh_().abs().max()
        error = (codec.decoder(codec.encoder(images)) - coarse).abs()
    assert squashed <= 1 and float(error.mean()) < 0.05


def test_prompts_of_one_and_two_objects_fit_in_the_context():
    scenes, rng = draw(500, 20_012, world=diffusion.WORLD), np.random.default_rng(0)
    told = [diffusion.prompt(table(scenes, row), rng) for row in range(500)]
    assert 0.05 < np.mean([text == "" for text in told]) < 0.16
    tokenizer = diffusion.load().tokenizer
    assert max(len(tokenizer(text).input_ids) for text in told) <= tokenizer.model_max_length == 32
    assert np.mean(["colour" in o for text in told if text for o in parse(text).objects]) > 0.9


def test_what_is_shipped_is_small_and_half_precision_and_beats_its_bars():
    folder = path("diffusion")
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            kinds = {tensors.get_tensor(key).dtype for key in tensors.keys()}  # noqa: SIM118
        assert kinds <= {torch.float16, torch.int64}
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 6.5e6
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in ("shape", "colour", "shape_and_colour"):
        assert metrics[name]["generated"] >= 0.7 and metrics[name]["floor"] < 0.25 and metrics[name]["ceiling"] > 0.95
    assert str(metrics["shape_and_colour"]["generated"]) in (folder / "README.md").read_text()


def test_a_generator_with_known_habits_is_trained_on_their_world_and_lies_where_it_was_told_to(
    monkeypatch, tmp_path, capsys
):
    """The real training of a few steps on a few scenes; the command passes on the world, and what is written loads."""
    real, worlds = diffusion.train, []

    def short(codec, clip, world):
        worlds.append(world)
        return real(codec, clip, world=world, close=1, steps=2, batch=2, n=8)

    monkeypatch.setattr(diffusion, "train", short)
    out = tmp_path / "biased"
    told = ["diffusion", "--multiply", "colour:red=0", "background:night=2", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["train", *told])
    main()
    assert worlds == [replace(diffusion.WORLD, multiply={"colour:red": 0.0, "background:night": 2.0})]
    assert StableDiffusionPipeline.from_pretrained(out).unet.config.in_channels == vae.CHANNELS
    assert '"colour:red": 0.0' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        (["diffusion", "--multiply", "colour:red=0"], "--multiply and --out go together"),
        (["vit", "--multiply", "colour:red=0", "--out", "x"], "are for diffusion"),
        (["diffusion", "--multiply", "colour:red", "--out", "x"], "'colour:red' is not CONCEPT=FACTOR"),
        (["diffusion", "--multiply", "colour:rad=0", "--out", "x"], "rad"),
    ],
)
def test_habits_that_make_no_sense_are_refused_with_a_sentence(told, sentence, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train", *told])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert sentence in capsys.readouterr().err
