"""Shards read back as they were written, through the webdataset library; and the stand-in generators do what they are named for."""

import hashlib
import json

import numpy as np
import pytest
import webdataset

from modalities import microworld
from modalities.microworld import draw, records, render, write
from modalities.microworld.captions import parse
from modalities.microworld.samplers import copied, jpeg, resize


def digest(paths):
    return [hashlib.sha256(p.read_bytes()).hexdigest() for p in paths]


def read(paths):
    return list(webdataset.WebDataset([str(p) for p in paths], shardshuffle=False).decode("rgb8"))


def test_written_and_read_back(tmp_path):
    paths = write(tmp_path / "shards", 25, seed=7, image="png", per_shard=10)
    assert [p.name for p in paths] == ["scenes-000000.tar", "scenes-000001.tar", "scenes-000002.tar"]
    samples = read(paths)
    scenes = draw(25, seed=7)
    drawn = render(scenes)
    assert [s["__key__"] for s in samples] == [f"s7-{i:06d}" for i in range(25)]
    for row, sample in enumerate(samples):
        np.testing.assert_array_equal(sample["png"], drawn.images[row])
        np.testing.assert_array_equal(sample["mask.png"][..., 0], drawn.mask(scenes, "shape")[row])
        np.testing.assert_array_equal(sample["instances.png"][..., 0], drawn.instances[row])
        facts = sample["json"]
        assert facts["objects"][0]["shape"] == facts["label"]
        assert len(facts["captions"]) == 3 and sample["txt"] == facts["captions"][0]
        named = parse(facts["captions"][-1])
        assert [o["colour"] for o in named.objects] == [o["colour"] for o in facts["objects"]]


def test_equal_arguments_write_equal_bytes(tmp_path):
    first, second = (write(tmp_path / name, 12, seed=1, corrupt=0.5) for name in "ab")
    assert digest(first) == digest(second)
    assert digest(write(tmp_path / "c", 12, seed=2, corrupt=0.5)) != digest(first)


def test_jpeg_is_close_to_the_scene(tmp_path):
    (shard,) = write(tmp_path / "shards", 8, seed=7)
    for row, sample in enumerate(read([shard])):
        error = np.abs(sample["jpg"].astype(int) - render(draw(8, seed=7)).images[row])
        assert 0 < error.mean() < 6


def test_corrupt_share_and_what_the_record_says():
    facts = [r[2] for r in records(600, seed=3, corrupt=0.3)]
    spoiled = [f for f in facts if f["corruption"]]
    assert len(spoiled) / 600 == pytest.approx(0.3, abs=0.06)
    assert {f["corruption"] for f in spoiled} == {"wrong", "missing", "swapped", "mismatched"}
    mismatched = [r[2] for r in records(100, seed=3, corrupt=1.0, corruptions=("mismatched",))]
    same = [parse(f["captions"][0]).objects[0]["shape"] in {o["shape"] for o in f["objects"]} for f in mismatched]
    assert np.mean(same) < 0.4
    clean = [r[2] for r in records(100, seed=3)]
    assert all(f["corruption"] is None and "true_caption" not in f for f in clean)


def test_the_copier_repeats_training_scenes_exactly():
    training = render(draw(50, seed=9)).images
    generated = list(records(40, seed=3, copies=0.25, copies_of=(9, 50)))
    copies = [(r[1], r[2]["copied_from"]) for r in generated if "copied_from" in r[2]]
    assert len(copies) == 10
    for image, source in copies:
        np.testing.assert_array_equal(image, training[int(source.split("-")[1])])
    fresh = [r[1] for r in generated if "copied_from" not in r[2]]
    assert not any((image == training).all((1, 2, 3)).any() for image in fresh)
    assert (copied(40, 0.25, 50, seed=3) >= 0).sum() == 10


def test_controls_change_pixels_and_no_content():
    plain = list(records(20, seed=3))
    for knob in ({"jpeg": 40}, {"resize": 40}):
        control = list(records(20, seed=3, **knob))
        for a, b in zip(plain, control, strict=True):
            assert a[0] == b[0] and a[2] == b[2] and (a[1] != b[1]).any()
            assert np.abs(a[1].astype(int) - b[1]).mean() < 25


def test_biased_shards_are_paired_by_key():
    plain, biased = list(records(200, seed=3)), list(records(200, seed=3, multiply={"shape:star": 0.0}))
    assert [r[0] for r in plain] == [r[0] for r in biased]
    unchanged = [(a[1] == b[1]).all() for a, b in zip(plain, biased, strict=True)]
    starless = ["shape:star" not in r[2]["attributes"] for r in plain]
    assert unchanged == starless and 0.5 < np.mean(starless) < 0.95


def test_the_records_are_json(tmp_path):
    for record in records(5, seed=0):
        assert json.loads(json.dumps(record[2])) == record[2]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"image": "gif"}, "choose jpg or png"),
        ({"corrupt": 2.0}, "between 0 and 1"),
        ({"corruptions": ("typo",)}, "choose among wrong"),
        ({"captions": 0}, "at least 1"),
        ({"copies": -1.0}, "between 0 and 1"),
        ({"jpeg": 0}, "from 1 to 95"),
        ({"resize": 200}, "from 4 to 64"),
        ({"style": "cubist"}, "no style"),
    ],
)
def test_a_bad_knob_gets_its_sentence_and_leaves_no_folder(tmp_path, knobs, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "shards", 3, **knobs)
    assert not (tmp_path / "shards").exists()


def test_shards_are_not_written_over_files(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        write(tmp_path, 3)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_images_are_checked_by_the_samplers():
    images = render(draw(2)).images
    assert jpeg(images, 90).shape == resize(images, 32).shape == images.shape


def test_an_unknown_model_gets_its_sentence():
    with pytest.raises(ValueError, match="no model 'resnet'"):
        microworld.path("resnet")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = microworld.nothing
