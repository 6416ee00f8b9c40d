"""vsae eval yes_no on the tiny LLaVA: against the library's own pass, edits that change nothing and ones that do, mistakes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from modalities import microworld
from modalities.data import open_dataset
from vsae import cli
from vsae.files import read_json

LLAVA, SITE = str(microworld.path("llava")), "model.language_model.layers.1"
MODEL = ["--model.family", "llava", "--model.name", LLAVA]
KIND = "log p(yes) - log p(no)"


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked") / "scenes"
    microworld.write(folder, 20, seed=93_000, image="png")
    return str(folder)


@pytest.fixture(scope="module")
def run(shard, tmp_path_factory):
    folder = tmp_path_factory.mktemp("edited")
    where = [
        "--data",
        shard,
        *MODEL,
        "--sites",
        SITE,
        "--batch-size",
        "10",
        "--model.options",
        "prompt=describe the picture.",
    ]
    cli.main(["extract", *where, "--out", str(folder / "store")])
    small = ["--sae.n-latents", "64", "--sae.k", "8", "--training.tokens", "4000", "--training.batch-size", "256"]
    store = ["--store", str(folder / "store"), "--recipe", "topk", "--training.tracker", "none"]
    cli.main(["train", *store, *small, "--out", str(folder / "run")])
    return str(folder / "run")


def test_the_rendered_world_is_known_and_answers_are_the_librarys(shard, tmp_path, capsys):
    cli.main(["eval", "yes_no", shard, "--out", str(tmp_path), *MODEL, "--resamples", "50"])
    found, rows = read_json(tmp_path / "result.json"), lines(tmp_path / "answers.jsonl")
    assert found["n"] == {"questions": 120, "images": 20} and len(rows) == 120
    assert found["value"] > found["floor"] + 0.2  # 0.94 on 400 questions when it was trained
    assert {"all", "colour", "shape"} <= set(found["details"]["answers"]["model"])
    assert "floors of all" in capsys.readouterr().out
    right = [(row[KIND]["model"] > 0) == (row["answer"] == "yes") for row in rows]
    assert found["value"] == pytest.approx(np.mean(right))
    model, processor = AutoModelForImageTextToText.from_pretrained(LLAVA).eval(), AutoProcessor.from_pretrained(LLAVA)
    data = open_dataset(shard)
    images = {key: data.read(at).image for at, key in enumerate(data.keys)}
    yes, no = (processor.tokenizer(f" {word}", add_special_tokens=False).input_ids[0] for word in ("yes", "no"))
    for row in rows[::17]:
        said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["question"]}]}]
        text = processor.apply_chat_template(said, add_generation_prompt=True)
        image: Image.Image = images[row["image"]]
        with torch.no_grad():
            logits = model(**processor(images=[image], text=[text], return_tensors="pt")).logits[0, -1].double()
        assert row[KIND]["model"] == pytest.approx(float(logits[yes] - logits[no]), abs=1e-3)


def test_a_file_of_questions_with_an_edit(shard, run, tmp_path):
    keys = open_dataset(shard).keys
    asked = [("is there a red star?", "no", "random"), ("is anything white?", "yes", "present")]
    rows = [{"image": key, "question": q, "answer": a, "kind": kind} for key in keys[:6] for q, a, kind in asked]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ["eval", "yes_no", shard, *MODEL, "--questions", str(tmp_path / "q.jsonl"), "--resamples", "50"]
    common += ["--run", run, "--latents", "3", "5"]
    cli.main([*common, "--out", str(tmp_path / "same"), "--operation", "scale", "--value", "1"])
    for row in lines(tmp_path / "same/answers.jsonl"):
        assert row[KIND]["edited"] == row[KIND]["model"] == row[KIND]["random"]  # to the bit
    assert read_json(tmp_path / "same/result.json")["value"] == 0
    cli.main([*common, "--out", str(tmp_path / "other"), "--value", "50", "--kinds", "text"])
    found, after = read_json(tmp_path / "other/result.json"), lines(tmp_path / "other/answers.jsonl")
    before = lines(tmp_path / "same/answers.jsonl")
    assert [row[KIND]["model"] for row in after] == [row[KIND]["model"] for row in before]
    assert all(abs(row[KIND]["edited"] - row[KIND]["model"]) > 0.01 for row in after)
    assert all(row[KIND]["edited"] != row[KIND]["random"] for row in after)
    share = {name: np.mean([row[KIND][name] > 0 for row in after]) for name in ("model", "edited")}
    assert found["details"]["change"]["edited"]["yes"]["value"] == pytest.approx(share["edited"] - share["model"])


def test_mistakes_are_sentences(shard, run, tmp_path, capsys):
    row = {"image": "none", "question": "is there a star?", "answer": "no"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    common = ["eval", "yes_no", shard, "--out", str(tmp_path / "out"), *MODEL]
    for wrong, said in (
        (["--questions", str(tmp_path / "q.jsonl")], "has no image 'none'"),
        (["--phrase", "what?"], "write {} once"),
        (["--answers", "yes", "yes"], "begin with the same token"),
        (["--run", run], "give --latents"),
        (["--run", run, "--latents", "64"], "64"),
        (["--latents", "3"], "give --run"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main([*common, *wrong])
        assert stopped.value.code not in (0, None)
        err = capsys.readouterr().err
        assert said in err or said in str(stopped.value.code)
        assert "Traceback" not in err and not (tmp_path / "out").exists()
