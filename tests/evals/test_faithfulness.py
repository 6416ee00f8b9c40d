"""What substitution costs: by hand, by a loop, and through tiny real models, where a perfect SAE recovers all and a constant one nothing."""

import json

import numpy as np
import pytest
import torch

import modalities
from evals.faithful_data import without_first
from evals.faithful_tasks import MatchingTask, PaintingTask, divergence
from evals.faithfulness import MEAN, MODEL, ZERO, Outcome, compare
from evals.faithfulness_runs import AfterFirst, Constant, Settings, evaluate
from modalities import microworld
from modalities.data import open_dataset
from vsae import cli
from vsae.run import Run, save_run
from vsae.sae import SAE
from vsae.sparsifiers import TopK

from ..modalities.tiny_pipelines import save


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Models this small gain nothing from a second thread, and wait for it on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def outcome(loss, change, right=None):
    loss = np.asarray(loss, float)
    return Outcome(loss, np.zeros_like(loss) if right is None else np.asarray(right, float), np.asarray(change, float))


def four(n=4):
    return {
        MODEL: outcome([1.0] * n, [0.0] * n, [1] * n),
        "sae": outcome([2.0] * n, [0.5] * n, [1, 0] * (n // 2)),
        MEAN: outcome([5.0] * n, [2.0] * n),
        ZERO: outcome([9.0] * n, [4.0] * n),
    }


def test_recovered_is_what_it_says_by_hand():
    found = compare(four(), np.arange(4))
    sae = found["sae"]
    assert sae.loss_recovered[MEAN].value == 3 / 4 and sae.loss_recovered[ZERO].value == 7 / 8
    assert sae.change_recovered[MEAN].value == 3 / 4 and sae.change_recovered[ZERO].value == 7 / 8
    assert sae.loss.value == 2 and sae.loss.floor == 5 and sae.accuracy.value == 0.5 and sae.accuracy.floor == 0
    assert found[MODEL].loss_recovered[MEAN].value == found[MODEL].change_recovered[ZERO].value == 1
    assert found[MEAN].loss_recovered[MEAN].value == found[MEAN].change_recovered[MEAN].value == 0
    assert sae.loss_recovered[MEAN].floor == 0 and sae.loss_recovered[MEAN].interval == (0.75, 0.75)


def drawn(seed=0, n=200):
    rng = np.random.default_rng(seed)
    clean, samples = rng.exponential(1, n), rng.integers(0, 30, n)
    found = {MODEL: outcome(clean, np.zeros(n), rng.integers(0, 2, n))}
    for name, cost in (("sae", 0.3), (MEAN, 2.0), (ZERO, 3.0)):
        loss = clean + cost * rng.exponential(1, n)
        loss[::7] = np.nan
        found[name] = outcome(loss, cost * rng.exponential(1, n), rng.integers(0, 2, n))
    found[MODEL].loss[::7] = np.nan
    return found, samples


def test_the_same_as_a_loop_over_units_whatever_their_order():
    found, samples = drawn()
    among = np.random.default_rng(1).random(200) < 0.6
    fast = compare(found, samples, among, resamples=50)
    loss = {
        name: np.mean([x for x, m in zip(each.loss, among, strict=True) if m and x == x])
        for name, each in found.items()
    }
    assert fast["sae"].loss_recovered[MEAN].value == pytest.approx(
        (loss[MEAN] - loss["sae"]) / (loss[MEAN] - loss[MODEL])
    )
    order = np.random.default_rng(2).permutation(200)
    mixed = {name: Outcome(each.loss[order], each.right[order], each.change[order]) for name, each in found.items()}
    again = compare(mixed, samples[order], among[order], resamples=50)
    for a, b in zip(fast["sae"].change_recovered.values(), again["sae"].change_recovered.values(), strict=True):
        assert a.value == pytest.approx(b.value) and a.interval == pytest.approx(b.interval)
    low, high = fast["sae"].loss_recovered[MEAN].interval
    assert low < fast["sae"].loss_recovered[MEAN].value < high


def test_nothing_to_recover_is_none_and_what_is_missing_is_a_sentence():
    harmless = four() | {MEAN: outcome([1.0] * 4, [0.0] * 4)}
    found = compare(harmless, np.arange(4))["sae"]
    assert found.loss_recovered[MEAN].value is None and found.change_recovered[MEAN].value is None
    assert found.loss_recovered[ZERO].value == 7 / 8
    with pytest.raises(ValueError, match="no outcome of 'mean ablation'"):
        compare({name: each for name, each in four().items() if name != MEAN}, np.arange(4))
    with pytest.raises(ValueError, match="other units than the 5"):
        compare(four(), np.arange(5))
    with pytest.raises(ValueError, match="no unit is left"):
        compare(four(), np.arange(4), np.zeros(4, bool))
    assert compare(four(), np.zeros(4, int))["sae"].loss.interval is None


def test_divergence_is_kl_from_the_models_own():
    own, said = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, np.log(3.0)]])
    assert float(divergence(said, own)) == pytest.approx(0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75))
    assert float(divergence(own + 7, own)) == pytest.approx(0, abs=1e-7)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    microworld.write(folder, 160, 31_000)
    return folder


def run_of(path, model, site, d, exact=True, kinds=None):
    """An SAE of two signs a dimension, which reconstructs exactly, or one that always gives its bias."""
    eye = torch.cat([torch.eye(d), -torch.eye(d)])
    sae = SAE.from_weights(eye.T.contiguous() * exact, torch.zeros(2 * d), eye * exact, torch.zeros(d), TopK(2 * d))
    fingerprint = {
        "model": model.provenance, "site": site, "side": "output", "preprocessing": model.provenance["preprocessing"],
        "data": {"digest": "other"}, "store": "s", "select": {"kinds": kinds, "part": [0.0, 0.9]}, "normalisation": {"mode": "none"},
    }  # fmt: skip
    path.mkdir()
    save_run(
        path,
        sae,
        torch.randn(64, d),
        {"recipe": {"name": "topk", "fields": {}}, "fingerprint": fingerprint, "config": {}},
    )
    return Run.load(path)


CASES = {
    "vit": ("vision", "encoder.layer.1", "probe"),
    "timm": ("vision", "blocks.1", "own"),
    "clip": ("clip", "visual.transformer.resblocks.1", "auto"),
    "llava": ("llava", None, "auto"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_perfect_sae_recovers_all_and_a_constant_one_nothing(case, scenes, tmp_path):
    family, site, head = CASES[case]
    if case == "timm":
        model = modalities.load("vision", "vit_tiny_patch16_224", pretrained=False, img_size=64)
    else:
        model = modalities.load(family, str(microworld.path(case)))
    site = site or next(name for name in model.sites() if name.endswith("language_model.layers.1"))
    data = open_dataset(scenes)
    d = model.sites()[site][1]
    settings = Settings(samples=24, fit_samples=80, batch_size=8, head=head, resamples=20)
    exact = evaluate(run_of(tmp_path / "exact", model, site, d), model, data, tmp_path / "out", settings)
    sae = exact.total["topk"]
    for ablation in (MEAN, ZERO):
        assert sae.change_recovered[ablation].value == pytest.approx(1, abs=1e-3)
        if exact.total[ablation].loss.value > exact.total[MODEL].loss.value:
            assert sae.loss_recovered[ablation].value == pytest.approx(1, abs=1e-2)
        else:  # the tiny image-text model was trained on answers alone, and predicts a caption no worse without its middle
            assert case == "llava" and sae.loss_recovered[ablation].value is None
    assert exact.total[MODEL].change.value == pytest.approx(0, abs=1e-9) and exact.total[MEAN].change.value > 1e-3
    dead = evaluate(
        run_of(tmp_path / "dead", model, site, d, exact=False), model, data, tmp_path / "dead-out", settings
    )
    assert dead.total["topk"].change.value == pytest.approx(dead.total[ZERO].change.value, rel=1e-4)
    assert dead.total["topk"].loss.value == pytest.approx(dead.total[ZERO].loss.value, rel=1e-4)
    written = json.loads((tmp_path / "out/result.json").read_text())
    assert written["value"] == sae.loss_recovered[MEAN].value and written["floor"] == 0
    assert written["n"]["samples"] == 24
    assert (tmp_path / "out/faithfulness.png").read_bytes().startswith(b"\x89PNG")
    if case == "llava":
        assert {"image", "text"} <= set(exact.alone) and {"image", "text"} <= set(exact.kinds)
        assert exact.kinds["image"][MODEL].loss.value is None and exact.kinds["image"][MEAN].change.value > 0
        assert exact.alone["text"][MEAN].change.value <= exact.total[MEAN].change.value
    if case != "clip":
        return
    other = evaluate(
        run_of(tmp_path / "again", model, site, d), model, data, tmp_path / "again-out",
        Settings(samples=24, fit_samples=80, batch_size=5, head=head, resamples=20),
    )  # fmt: skip
    assert other.total[MEAN].loss.value == pytest.approx(exact.total[MEAN].loss.value, rel=1e-4)


def test_matching_gives_the_models_own_logits(scenes):
    model = modalities.load("clip", str(microworld.path("clip")))
    data = open_dataset(scenes)
    samples = [data.read(at) for at in range(4)]
    texts = ["a red star", "a cat", "two circles"]
    task = MatchingTask(model, texts, {}, "image", per_pass=2)
    batch = model.prepare(samples)
    own = model.logits({"image": batch["image"], **model.texts(texts)})
    torch.testing.assert_close(task.answer(batch, samples, MODEL), own, rtol=1e-4, atol=1e-4)


def test_painted_images_change_by_their_squared_difference():
    task = PaintingTask(None)
    own, other = np.zeros((2, 4, 4, 3)), np.full((2, 4, 4, 3), 0.5)
    found = task.outcome({}, [0, 1], other, own)
    assert found.change.tolist() == [0.25, 0.25] and np.isnan(found.loss).all()


def test_a_pipelines_images_change_by_what_its_prompt_loses(tmp_path):
    model = modalities.load("diffusion", save("sd", tmp_path / "sd"))
    site = next(name for name in model.sites() if name.endswith("layers.0"))
    rows = [{"key": f"k{i}", "caption": f"a {word} cat"} for i, word in enumerate(("red", "blue") * 6)]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data, options = open_dataset(tmp_path / "captions.jsonl"), {"num_inference_steps": 1, "guidance_scale": 2.0}
    settings = Settings(samples=2, fit_samples=8, batch_size=2, painting=options, resamples=5)
    run = run_of(tmp_path / "run", model, site, model.sites()[site][1])
    found = evaluate(run, model, data, tmp_path / "out", settings)
    sae = found.total["topk"]
    assert found.total[ZERO].change.value > 0 and found.total[MODEL].change.value == 0
    assert sae.change_recovered[ZERO].value == pytest.approx(1, abs=0.02) and sae.loss.value is None
    written = json.loads((tmp_path / "out/result.json").read_text())
    assert written["metric"].startswith("change recovered") and found.task == "PaintingTask"


def test_the_command_finds_the_model_and_says_what_is_wrong(scenes, tmp_path, capsys):
    model = modalities.load("vision", str(microworld.path("vit")))
    run_of(tmp_path / "run", model, "encoder.layer.0", model.sites()["encoder.layer.0"][1], kinds=["patch"])
    told = ["eval", "faithfulness", str(tmp_path / "run"), str(scenes), "--samples", "16", "--fit-samples", "80"]
    cli.main([*told, "--name", str(microworld.path("vit"))])
    assert json.loads((tmp_path / "run/eval/faithfulness/result.json").read_text())["token_kinds"] == ["patch"]
    with pytest.raises(SystemExit):
        cli.main(told)
    assert "give --name" in capsys.readouterr().err
    other = modalities.load("vision", "vit_tiny_patch16_224", pretrained=False, img_size=64)
    with pytest.raises(ValueError, match="do not belong together"):
        evaluate(Run.load(tmp_path / "run"), other, open_dataset(scenes), tmp_path / "x", Settings())
    with pytest.raises(ValueError, match="no classifier of its own"):
        evaluate(
            Run.load(tmp_path / "run"), model, open_dataset(scenes), tmp_path / "x", Settings(head="own", fit_samples=8)
        )


def test_tokens_that_the_sae_was_trained_without_are_neither_counted_nor_substituted():
    """With skip 1 the first token of each row that is no padding stays as the model made it."""
    kinds = torch.tensor([[6, 5, 4, 4], [5, 4, 4, 6]], dtype=torch.uint8)  # KINDS: 4 text, 5 special, 6 pad
    values = torch.arange(8.0).view(2, 4, 1).expand(2, 4, 3) + 1
    assert without_first(kinds, 0) is kinds
    assert without_first(kinds, 2).tolist() == [[6, 6, 6, 4], [6, 6, 4, 6]]
    zero = Constant({4: torch.zeros(3), 5: torch.zeros(3)})
    assert AfterFirst(zero, 0)(values, kinds)[..., 0].tolist() == [[1, 0, 0, 0], [0, 0, 0, 8]]
    assert AfterFirst(zero, 1)(values, kinds)[..., 0].tolist() == [[1, 2, 0, 0], [5, 0, 0, 8]]
