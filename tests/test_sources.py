"""Pairs, several models and several processes through `vsae extract`, as a person types it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import modalities
from modalities.data import pairs as lists
from vsae import cli
from vsae.activations import ActivationStore, Select, fingerprint
from vsae.segments import pooled

TOWER = {"width": 32, "layers": 2}
CLIP = {
    "embed_dim": 24,
    "vision_cfg": TOWER | {"image_size": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": TOWER | {"context_length": 77, "vocab_size": 49408, "heads": 2},
}
VIT = {"family": "vision", "name": "test_vit", "pretrained": False, "img_size": 64}
CAPTIONS = ["a red cat", "two dogs", None, "the sea", "a blue car on a road", "grass", "a cup", "night"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Eight photos in a list, one without caption and one without photo, and a small CLIP."""
    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    rows = []
    for number, caption in enumerate(CAPTIONS):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(home / f"{number}.png")
        rows.append({"image": f"{number}.png"} | ({"caption": caption} if caption else {}))
    rows.append({"key": "words", "caption": "no photo"})
    (home / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (home / "clip").mkdir()
    preprocess = {"size": 32, "mean": [0.5] * 3, "std": [0.25] * 3}
    (home / "clip/open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": preprocess}))
    torch.manual_seed(1)
    bare = open_clip.create_model(f"local-dir:{home / 'clip'}", load_weights=False)
    weights = {name: value.contiguous() for name, value in bare.state_dict().items()}
    save_file(weights, home / "clip/open_clip_model.safetensors")
    return home


def job(home, out, **fields):
    """A job in a YAML file, and what `vsae extract` gets."""
    common = {"data": str(home / "list.jsonl"), "batch_size": 3, "dtype": "float32", "max_bad_share": 0.5}
    (home / f"{out}.yaml").write_text(yaml.safe_dump(common | fields | {"out": str(home / out)}))
    return ["extract", "--config", str(home / f"{out}.yaml")]


def clip(home):
    return {"family": "clip", "name": str(home / "clip")}


def contents(folder):
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def test_photos_and_captions_become_a_paired_store(home):
    sites = ["image_embedding", "text_embedding", "transformer.resblocks.1"]
    cli.main(job(home, "pairs", model=clip(home), sites=sites))
    store = ActivationStore.open(home / "pairs")
    bad = {entry["key"]: entry["reason"] for entry in store.manifest["bad"]["samples"]}
    assert bad == {
        "2": "has no caption, which text_embedding needs",
        "words": "has no image",
    }
    model = modalities.load("clip", str(home / "clip"))
    captions = [text for text in CAPTIONS if text]
    assert store.samples.column("caption").to_pylist() == captions
    image, text = next(store.pairs("image_embedding", "text_embedding").sequential(7))
    expected = model.activations(model.texts(captions), ["text_embedding"])["text_embedding"].values[:, 0]
    torch.testing.assert_close(text.values, expected, atol=1e-5, rtol=1e-4)
    photos = [Image.open(home / f"{number}.png") for number, caption in enumerate(CAPTIONS) if caption]
    expected = model.activations(model.prepare(photos), ["image_embedding"])["image_embedding"].values[:, 0]
    torch.testing.assert_close(image.values, expected, atol=1e-5, rtol=1e-4)
    words = store.pairs("image_embedding", "transformer.resblocks.1", kinds=(None, ("text",)), tokens=True)
    image, tokens = next(words.batches(7, seed=0, epochs=1))
    lengths = [3, 2, 2, 6, 1, 2, 1]
    assert (tokens.samples[:, None] == image.samples).sum(0).tolist() == [lengths[s] for s in image.samples]


def test_a_site_of_one_tower_asks_for_no_more(home):
    cli.main(job(home, "images", model=clip(home), sites=["image_embedding"]))
    assert ActivationStore.open(home / "images").samples.column("key").to_pylist() == [str(n) for n in range(8)]


def test_pooling_at_extraction_is_pooling_afterwards_and_another_fingerprint(home):
    sites = ["visual.transformer.resblocks.1", "transformer.resblocks.1"]
    cli.main(job(home, "tokens", model=clip(home), sites=sites))
    cli.main(job(home, "means", model=clip(home), sites=sites, pool="mean"))
    tokens, means = ActivationStore.open(home / "tokens"), ActivationStore.open(home / "means")
    for site, kind in zip(sites, ("patch", "text"), strict=True):
        after = torch.cat([found.values for found in pooled(tokens.site(site).sequential(20, Select((kind,))))])
        ours = means.site(site)
        torch.testing.assert_close(ours.read(0, ours.n_rows).values, after, atol=1e-5, rtol=1e-5)
        assert ours.tokens == 1 and ours.kind_names[int(ours.read(0, 1).kinds)] == "cls"
        with pytest.raises(ValueError, match="pooling differ"):
            fingerprint.check(ours.fingerprint, tokens.site(site).fingerprint)
    assert next(means.pairs(*sites).batches(7, seed=0)).first.values.shape == (7, 32)


def test_several_models_read_each_photo_once_into_one_store(home, monkeypatch):
    read = []
    own = lists.Pairs.read
    monkeypatch.setattr(lists.Pairs, "read", lambda self, index: read.append(index) or own(self, index))
    sites = ["blocks.1", "clip/image_embedding", "clip/visual.transformer.resblocks.0:input"]
    cli.main(job(home, "both", model=VIT, more={"clip": clip(home)}, sites=sites))
    assert sorted(read) == list(range(9))
    both = ActivationStore.open(home / "both")
    assert both.sites == sorted(sites)
    cli.main(job(home, "vit", model=VIT, sites=["blocks.1"]))
    cli.main(job(home, "alone", model=clip(home), sites=[site.removeprefix("clip/") for site in sites[1:]]))
    for site in sites:
        alone = ActivationStore.open(home / ("alone" if "/" in site else "vit")).site(site.removeprefix("clip/"))
        ours = both.site(site)
        assert torch.equal(ours.read(0, ours.n_rows).values, alone.read(0, alone.n_rows).values), site
        fingerprint.check(ours.fingerprint, alone.fingerprint)
        assert (
            ours.fingerprint["model"] == alone.fingerprint["model"] and ours.fingerprint["side"] == alone.entry["side"]
        )
    with pytest.raises(ValueError, match="do not belong together"):
        fingerprint.check(both.site("blocks.1").fingerprint, both.site("clip/image_embedding").fingerprint)
    assert len(both.pairs("clip/image_embedding", "blocks.1", kinds=(None, ("cls",))).samples) == 8


def test_accelerate_launch_of_two_processes_writes_the_bytes_of_one(home, monkeypatch):
    """--multi_gpu is what makes `accelerate launch` start several processes on processors too."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sites = ["image_embedding", "text_embedding", "visual.transformer.resblocks.0"]
    arguments = [
        job(home, out, model=clip(home) | {"device": "cpu"}, sites=sites, rows_per_shard=20) for out in ("one", "two")
    ]
    vsae = ["-m", "vsae.cli"]
    launched = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
    ]
    for command in ([sys.executable, *vsae, *arguments[0]], [*launched, *vsae, *arguments[1]]):
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ, cwd=Path(__file__).parents[1], timeout=500
        )
        assert done.returncode == 0, done.stderr
    assert contents(home / "two") == contents(home / "one")
    assert done.stdout.count("samples") == 1, "one process speaks"


def test_a_site_of_no_model_is_refused(home, capsys):
    arguments = job(home, "wrong", model=VIT, more={"clip": clip(home)}, sites=["clap/image_embedding"])
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert "is of no model here: write a site of the main model, or clip/..." in capsys.readouterr().err
    assert not (home / "wrong").exists()
