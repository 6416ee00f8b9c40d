"""An image set from captions: the same whatever the batch, completed after a kill, its bad images named."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from modalities.data import open_dataset
from modalities.generate import generate
from modalities.pipeline import seed_of

ROWS = [
    {"key": "a/../1", "caption": "a red cat"},
    {"key": "b", "caption": "a blue dog"},
    {"key": "c", "caption": ""},
    {"key": "d", "caption": "a photo"},
    {"key": "e", "caption": "a red dog"},
]
OPTIONS = {"num_inference_steps": 1, "guidance_scale": 2.0}


@pytest.fixture
def captions(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return open_dataset(path)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(out):
    return {path.name: path.read_bytes() for path in sorted((out / "images").iterdir())}


def test_a_set_has_an_image_and_a_row_for_each_caption(pipelines, captions, tmp_path):
    told = []
    made = generate(
        pipelines("sd"), captions, tmp_path / "out", seed=5, batch_size=2, progress=lambda *n: told.append(n), **OPTIONS
    )
    assert made.images == 4 and [(bad.key, bad.reason) for bad in made.bad] == [("c", "has no caption")]
    assert told == [(2, 5), (4, 5), (5, 5)]
    listed = rows(made.path)
    assert [row["key"] for row in listed] == ["a/../1", "b", "d", "e"]
    assert [row["seed"] for row in listed] == [seed_of(5, row["key"]) for row in listed]
    assert list(files(tmp_path / "out")) == ["00000000.png", "00000001.png", "00000003.png", "00000004.png"]
    assert listed[0]["settings"]["guidance_scale"] == 2.0 and listed[0]["settings"]["seed"] == 5
    again = open_dataset(made.path)
    assert again.read(1).captions == ("a blue dog",) and again.read(1).image.size == (8, 8)
    bare = pipelines("sd").pipeline()("a red dog", seeds=[seed_of(5, "e")], output_type="np", **OPTIONS).images[0]
    image = np.asarray(Image.open(tmp_path / "out" / listed[3]["image"])).astype(int)
    assert np.abs(image - np.round(bare * 255)).max() <= 1  # another number of rows may round otherwise


def test_batch_size_does_not_change_an_image_but_for_rounding(pipelines, captions, tmp_path):
    for size in (1, 4):
        generate(pipelines("sd"), captions, tmp_path / str(size), batch_size=size, **OPTIONS)
    for row, other in zip(*(rows(tmp_path / str(size) / "images.jsonl") for size in (1, 4)), strict=True):
        assert row == other
        one, four = (np.asarray(Image.open(tmp_path / size / row["image"])).astype(int) for size in ("1", "4"))
        assert np.abs(one - four).max() <= 1


def test_a_job_that_was_killed_goes_on_to_the_same_bits(pipelines, captions, tmp_path):
    model, out = pipelines("sd"), tmp_path / "out"
    whole = generate(model, captions, tmp_path / "whole", batch_size=2, **OPTIONS)

    class Killed(BaseException):
        pass

    def kill(done, _total):
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        generate(model, captions, out, batch_size=2, progress=kill, **OPTIONS)
    (out / "images/00000001.png").unlink()
    with (out / "images.jsonl").open("a") as file:
        file.write('{"key": "d", "capt')
    (out / "images/00000003.png").write_bytes(b"what another process left")
    generate(model, captions, out, batch_size=2, **OPTIONS)
    assert files(out) == files(tmp_path / "whole")
    listed = sorted(rows(out / "images.jsonl"), key=lambda row: row["key"])
    assert listed == rows(whole.path)
    before = (out / "images.jsonl").read_bytes()
    counted = []
    with model.edit("text_encoder.final_layer_norm", lambda values, kinds: counted.append(1) or values):
        assert generate(model, captions, out, batch_size=2, **OPTIONS).images == 4
    assert not counted and (out / "images.jsonl").read_bytes() == before


def test_edited_and_bare_sets_compare_pair_by_pair(pipelines, captions, tmp_path):
    model = pipelines("sd")
    bare = generate(model, captions, tmp_path / "bare", **OPTIONS)
    with model.edit("text_encoder.final_layer_norm", lambda values, kinds: values):
        same = generate(model, captions, tmp_path / "same", note={"edit": "none"}, **OPTIONS)
    with model.edit("text_encoder.final_layer_norm", lambda values, kinds: -values):
        other = generate(model, captions, tmp_path / "other", note={"edit": "minus"}, **OPTIONS)
    assert files(tmp_path / "bare") == files(tmp_path / "same") != files(tmp_path / "other")
    for one, two in zip(rows(bare.path), rows(other.path), strict=True):
        assert {**one, "settings": 0} == {**two, "settings": 0}
    assert rows(same.path)[0]["settings"]["note"] == {"edit": "none"}
    with pytest.raises(ValueError, match="made with another note: choose another folder"):
        generate(model, captions, tmp_path / "same", **OPTIONS)


@pytest.mark.parametrize("value, reason", [(-100.0, "came out black"), (torch.nan, "came out not finite")])
def test_black_and_broken_images_are_named_and_not_written(pipelines, captions, tmp_path, value, reason):
    model = pipelines("sd")
    vae = model.pipeline().library.vae

    def spoil(_module, _args, output):
        output = output.clone()
        output[1] = value
        return output

    hook = vae.decoder.register_forward_hook(spoil)
    try:
        made = generate(model, captions, tmp_path / "out", batch_size=3, **OPTIONS)
    finally:
        hook.remove()
    assert made.images == 2
    assert [(bad.key, bad.reason.split(":")[0]) for bad in made.bad[1:]] == [("b", reason), ("e", reason)]
    assert list(files(tmp_path / "out")) == ["00000000.png", "00000003.png"]
    assert generate(model, captions, tmp_path / "out", batch_size=3, **OPTIONS) == made


def test_what_a_person_can_get_wrong(pipelines, captions, tmp_path):
    model = pipelines("sd")
    with pytest.raises(ValueError, match="takes no 'steps'"):
        generate(model, captions, tmp_path / "out", steps=3)
    with pytest.raises(ValueError, match="batch_size is 0"):
        generate(model, captions, tmp_path / "out", batch_size=0)
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "photos/x.png")
    with pytest.raises(ValueError, match="none of the 1 samples has a caption"):
        generate(model, open_dataset(tmp_path / "photos"), tmp_path / "out")
    (tmp_path / "out/images.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match="is no list of generated images"):
        generate(model, captions, tmp_path / "out")
