"""vsae eval yes_no on the tiny LLaVA: against the library's own pass, edits that change nothing and ones that do, mistakes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from modalities import load, microworld
from modalities.base import KINDS
from modalities.data import Sample, open_dataset
from vsae import cli
from vsae.activations.select import shares_of
from vsae.enhancement import Enhanced, mixed
from vsae.evaluations.enhancing import answer
from vsae.files import read_json
from vsae.run import Run

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
    printed = capsys.readouterr().out
    assert "balanced" in printed and "accuracy, shape" in printed and "120 questions" in printed
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


@pytest.fixture(scope="module")
def paired(shard, tmp_path_factory):
    """A VL-SAE on the mean image token and the mean word of descriptions, at the input of the last layer."""
    folder, site = tmp_path_factory.mktemp("paired"), "model.language_model.layers.3:input"
    told = ["--model.options", "prompt=describe the picture."]
    pooled = ["--sites", site, "--pool", "mean", "--segments", "modality", "--batch-size", "10"]
    cli.main(["extract", "--data", shard, *MODEL, *told, *pooled, "--out", str(folder / "store")])
    small = ["--sae.n-latents", "64", "--sae.k", "8", "--sae.align-width", "32", "--training.epochs", "40"]
    small += ["--training.batch-size", "8", "--training.tracker", "none", "--val-share", "0"]
    where = ["--store", str(folder / "store"), "--site", f"{site}:image+{site}:text", "--recipe", "vl_sae"]
    cli.main(["train", *where, *small, "--out", str(folder / "run")])
    return folder / "run"


def test_a_vl_sae_enhances_the_answers_of_the_half_that_did_not_choose_alpha(shard, paired, tmp_path):
    out = tmp_path / "out"
    common = ["eval", "yes_no", shard, *MODEL, "--run", str(paired), "--resamples", "50", "--most", "60"]
    cli.main([*common, "--out", str(out), "--alphas", "0.5", "1", "--mix", "0.7", "--plausible", "1e-6"])
    found, rows = read_json(out / "result.json"), lines(out / "answers.jsonl")
    keys = open_dataset(shard).keys[:10]
    reported = [key for key, share in zip(keys, shares_of(keys), strict=True) if share >= 0.5]
    assert {row["image"] for row in rows} == set(reported) and len(rows) == 6 * len(reported)
    about = found["details"]
    assert about["validation: n"] == 60 - len(rows) and set(about["alphas"]) == {"enhanced", "exchanged"}
    for name, curve in about["validation: balanced"].items():
        top = max(curve.values())
        assert set(curve) == {"0.5", "1.0"} and about["alphas"][name] == min(float(a) for a in curve if curve[a] == top)
    by = {name: about["answers"][name]["all"]["balanced"]["value"] for name in ("model", "enhanced", "exchanged")}
    assert found["value"] == pytest.approx(by["enhanced"] - by["model"]) and found["floor"] == 0
    right = {yes: np.mean([(row[KIND]["enhanced"] > 0) == yes for row in rows if (row["answer"] == "yes") == yes]) for yes in (True, False)}  # fmt: skip
    assert by["enhanced"] == pytest.approx(sum(right.values()) / 2)
    assert np.mean([row[KIND]["enhanced"] != row[KIND]["exchanged"] for row in rows]) > 0.5  # some refuse an answer
    # one prompt at a time, without padding, by the parts
    run, model, data = Run.load(paired), load("llava", LLAVA), open_dataset(shard)
    yes, no = (model.tokenizer(f" {word}", add_special_tokens=False).input_ids[0] for word in ("yes", "no"))
    for row in rows[::11]:
        image = data.read(keys.index(row["image"])).image
        batch = model.prepare([Sample("0", "", image, extra={"prompt": row["question"]})])
        plain = model.run(batch).logits[:, -1].double()
        edit = Enhanced(run.side(0).sae, run.side(1).sae, alpha=about["alphas"]["enhanced"], kind_names=KINDS)
        with model.edit("model.language_model.layers.3:input", edit):
            moved = model.run(batch).logits[:, -1].double()
        logits = mixed(plain[:, [yes, no]], moved[:, [yes, no]], 0.7, 1e-6)[0]
        assert row[KIND]["model"] == pytest.approx(float(plain[0, yes] - plain[0, no]), abs=1e-3)
        difference = float(logits[0] - logits[1])
        assert row[KIND]["enhanced"] == pytest.approx(difference if np.isfinite(difference) else row[KIND]["model"], abs=1e-3)  # fmt: skip
    cli.main([*common, "--out", str(tmp_path / "same"), "--alphas", "0"])
    for row in lines(tmp_path / "same/answers.jsonl"):
        assert row[KIND]["enhanced"] == row[KIND]["exchanged"] == row[KIND]["model"]  # to the bit
    assert read_json(tmp_path / "same/result.json")["value"] == 0


def test_mixed_answers_by_hand():
    plain, moved = np.array([0.1, -0.1, 3.0, -3.0]), np.array([-2.0, 2.0, -9.0, 9.0])
    # log .8 = -.223: the first two answers are open, the last two are not
    assert answer(plain, moved, 0.6, 0.8) == pytest.approx([0.4 * 0.1 - 1.2, -0.04 + 1.2, 3.0, -3.0])
    assert answer(plain, moved, 1.0, 1e-9) == pytest.approx(moved)
    assert (answer(plain, moved, 0.0, 0.8) == plain).all()


def test_a_vl_sae_of_something_else_and_shares_that_are_none_are_sentences(shard, run, paired, tmp_path, capsys):
    q = tmp_path / "q.jsonl"
    key = open_dataset(shard).keys[0]
    q.write_text(json.dumps({"image": key, "question": "is there a star?", "answer": "no"}))
    common = ["eval", "yes_no", shard, "--out", str(tmp_path / "out"), *MODEL, "--run", str(paired)]
    for wrong, said in (
        (["--latents", "3"], "leave --latents and --kinds out"),
        (["--alphas", "2"], "from 0 to 1"),
        (["--plausible", "0"], "all are shares"),
        (["--questions", str(q)], "ask about more images"),
    ):
        with pytest.raises(SystemExit):
            cli.main([*common, *wrong])
        assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        cli.main(["extract", "--data", shard, *MODEL, "--sites", SITE, "--segments", "modality", "--out", str(tmp_path / "s")])  # fmt: skip
    assert "give --pool mean" in capsys.readouterr().err


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
