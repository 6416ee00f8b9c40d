"""The main job through the roof, as a person types it: photos -> store -> run -> numbers -> page; then what a person gets wrong."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.table import Table
from safetensors.torch import load_file

from evals import attributes, recovery_runs
from vsae import cli
from vsae.activations import ActivationStore
from vsae.evaluations import shown
from vsae.files import read_json
from vsae.recipes import FIXED, RECIPES
from vsae.run import Run
from vsae.tables import read_origins

from .evals.planted_store import store_of

MODEL = shlex.split("--model.family vision --model.name vit_tiny_patch16_224 --model.no-pretrained --model.img-size 64")
TRAINING = shlex.split("--sae.n-latents 64 --sae.k 4 --training.tokens 6000 --training.batch-size 256")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A hundred pictures in two classes, extracted and trained on once."""
    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    for number in range(100):
        folder = home / "photos" / ("stripes" if number % 2 else "noise")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        if number % 2:
            pixels[:, :: 2 + number % 5] = rng.integers(0, 255, 3)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    cli.main(extract(home))
    cli.main(train(home, "run"))
    return home


def extract(home):
    sites = ["--sites", "blocks.1", "blocks.2:input"]
    return ["extract", "--data", str(home / "photos"), *MODEL, *sites, "--out", str(home / "store")]


def train(home, out, *more):
    where = ["--store", str(home / "store"), "--site", "blocks.1", "--out", str(home / out)]
    return ["train", *where, *shlex.split("--recipe topk --kinds patch --val-share 0.3"), *TRAINING, *more]


def fails(capsys, *arguments):
    """Exit code 2 and one sentence, without a traceback."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("vsae: ") and error.count("\n") == 1, error
    return error


def test_photos_to_numbers_and_a_page(home, capsys):
    cli.main(["eval", "reconstruction", str(home / "run"), str(home / "store")])
    result = json.loads((home / "run/eval/reconstruction/result.json").read_text())
    assert 0 < result["value"] < result["floor"] == 1.0
    assert result["token_kinds"] == ["patch"] and result["n"]["latents"] == 64
    low, high = result["splits"]["report"]["select"]["part"]
    assert (low, high) == (0.7, 1.0) and result["splits"]["fit"]["select"]["part"] == [0.0, 0.7]
    points = {point["name"]: point["nmse"]["value"] for point in result["details"]["baselines"]}
    assert {"topk", "PCA 4", "k-means 64"} <= set(points) and points["topk"] == result["value"]

    cli.main(["explore", str(home / "run"), str(home / "store")])
    page = home / "run/explorer"
    assert (page / "index.html").is_file() and any(page.glob("images/**/*.jpg"))

    capsys.readouterr()
    cli.main(["info", str(home / "run")])
    cli.main(["info", str(home / "store"), "--verify"])
    said = capsys.readouterr().out
    assert "topk SAE of vit_tiny_patch16_224, blocks.1 output: 64 latents" in said and "floor 1" in said
    assert (
        "RANDOM from seed 0" in said
        and "100 samples" in said
        and "grid 4 x 4" in said
        and "Every checksum agrees." in said
    )


def test_attributes_of_the_photos_to_what_single_latents_recover(home, tmp_path, capsys):
    truth = {
        f"{kind}/{path.stem}": [kind] for kind in ("stripes", "noise") for path in (home / "photos" / kind).iterdir()
    }
    keys = set(ActivationStore.open(home / "store").samples.column("key").to_pylist())
    assert keys == set(truth)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "tree.json").write_text('{"photo": ["stripes", "noise"]}')
    given = ["--attributes", str(tmp_path / "truth.json"), "--hierarchy", str(tmp_path / "tree.json")]
    options = ["--min-positives", "2", "--resamples", "20", "--out", str(tmp_path / "found")]
    cli.main(["eval", "recovery", str(home / "run"), str(home / "store"), *given, *options])
    result = json.loads((tmp_path / "found/result.json").read_text())
    site = ActivationStore.open(home / "store").site("blocks.1")
    run, table = Run.load(home / "run"), attributes.read(tmp_path / "truth.json")
    direct = recovery_runs.evaluate([run], site, table, tmp_path / "direct", min_positives=2, resamples=20)
    ours, theirs = result["details"]["methods"][0], direct.methods[0]
    assert [each["ap"]["value"] for each in ours["recovery"]["attributes"]] == [
        each.ap.value for each in theirs.recovery.attributes
    ]
    assert {each["name"] for each in ours["recovery"]["attributes"]} == {"stripes", "noise"}
    assert ours["recovery"]["left_out"] == ["photo"], "what is true of all is no attribute"
    assert result["splits"]["selection"]["select"] == {"kinds": ["patch"], "part": [0.7, 0.85]}
    assert (tmp_path / "found/recovery.png").is_file() and "PCA" in capsys.readouterr().out

    error = fails(capsys, "eval", "recovery", home / "run", home / "store")
    assert "no sample has a field 'attributes'" in error
    error = fails(capsys, "eval", "recovery", home / "run", home / "store", "--attributes", "nowhere.json")
    assert "nowhere.json" in error


def test_two_runs_are_summed_up_over_their_seeds(home, tmp_path):
    cli.main(train(home, "other", "--training.seed", "1"))
    lines = (
        {"key": f"{kind}/{p.stem}", "kind": [kind]}
        for kind in ("stripes", "noise")
        for p in (home / "photos" / kind).iterdir()
    )
    (tmp_path / "truth.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = [
        "--attributes",
        str(tmp_path / "truth.jsonl"),
        "--field",
        "kind",
        "--min-positives",
        "2",
        "--resamples",
        "5",
    ]
    cli.main(["eval", "recovery", str(home / "run"), str(home / "other"), str(home / "store"), *given])
    result = json.loads((home / "run/eval/recovery/result.json").read_text())
    runs = [method for method in result["details"]["methods"] if method["run"]]
    assert [Path(method["run"]).name for method in runs] == ["run", "other"] and result["n"]["runs"] == 2
    mean = np.mean([method["recovery"]["mean_ap"]["value"] for method in runs])
    assert result["details"]["over_seeds"]["topk"]["mean_ap"]["value"] == pytest.approx(mean)


def test_every_recipe_is_scored_on_planted_features(tmp_path, capsys):
    world = shlex.split("--world.d-model 16 --world.n-features 12 --world.active 1.5")
    budget = shlex.split("--seeds 1 --rows 1024 --training.epochs 1 --training.batch-size 256")
    cli.main(["eval", "recovery", "--all", "--out", str(tmp_path), *world, *budget])
    result = json.loads((tmp_path / "result.json").read_text())
    names = [*RECIPES, "random_matryoshka", "transcoder", "crosscoder", "vl_sae", *FIXED]
    assert [each["name"] for each in result["details"]["recipes"]] == names
    assert all(len(each["trials"]) == 1 and each["world"]["n_features"] == 12 for each in result["details"]["recipes"])
    said = capsys.readouterr().out
    assert all(name in said for name in names)


def test_a_repeated_command_changes_nothing(home):
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*.safetensors")}
    cli.main(extract(home))
    cli.main(train(home, "run"))
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*.safetensors")} == before


def test_one_seed_one_result(home):
    cli.main(train(home, "again"))
    first, second = (load_file(home / run / "sae_weights.safetensors") for run in ("run", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_stream_trains_without_a_store(home, tmp_path):
    (tmp_path / "extract.yaml").write_text(
        f"data: {home / 'photos'}\nsites: [blocks.1]\nmodel: {{family: vision, name: vit_tiny_patch16_224, pretrained: false, img_size: 64}}\n"
    )
    where = ["--stream", str(tmp_path / "extract.yaml"), "--out", str(tmp_path / "run")]
    cli.main(["train", *where, "--kinds", "patch", *TRAINING])
    meta = json.loads((tmp_path / "run/run.json").read_text())
    assert meta["training"]["tokens"] >= 6000 and meta["fingerprint"]["store"] is None
    cli.main(["eval", "reconstruction", str(tmp_path / "run"), str(home / "store")])
    assert json.loads((tmp_path / "run/eval/reconstruction/result.json").read_text())["value"] < 1


def test_gradients_are_extracted_beside_the_activations_and_trained_on(home, tmp_path, capsys):
    store, run = tmp_path / "store", tmp_path / "run"
    asked = [*extract(home)[:-2], "--out", str(store), "--gradient", "logit"]
    cli.main([word if word != "blocks.2:input" else "blocks.2" for word in asked])
    held = ActivationStore.open(store)
    assert set(held.sites) == {f"blocks.{i}{end}" for i in (1, 2) for end in ("", ":gradient")}
    assert held.site("blocks.1:gradient").fingerprint["gradient"] == {"scalar": "logit"}
    assert "gradient" not in held.site("blocks.1").fingerprint
    where = ["--store", str(store), "--site", "blocks.1+blocks.1:gradient", "--out", str(run)]
    cli.main(["train", *where, *shlex.split("--recipe gradient_topk --kinds patch --val-share 0.3"), *TRAINING])
    cli.main(["eval", "reconstruction", str(run), str(store)])
    result = json.loads((run / "eval/reconstruction/result.json").read_text())
    assert 0 < result["value"] < 1
    capsys.readouterr()
    error = fails(capsys, *asked, "--pool", "mean", "--out", tmp_path / "other")
    assert "without --pool" in error


def test_atoms_that_are_patches_say_which(home, tmp_path):
    run = tmp_path / "run"
    where = ["--store", str(home / "store"), "--site", "blocks.1", "--out", str(run), "--kinds", "patch"]
    cli.main(
        [
            "train",
            *where,
            "--recipe",
            "itda",
            "--sae.tau",
            "0.001",
            "--sae.n-latents",
            "64",
            "--training.tracker",
            "none",
        ]
    )
    site = ActivationStore.open(home / "store").site("blocks.1")
    atoms, origins = Run.load(run).sae.atoms, read_origins(run)
    assert len(atoms) == len(origins) == 64
    key, position, sample = origins[40]
    assert site.keys[sample] == key
    rows = site.gather(np.arange(site.n_rows))
    here = (rows.samples == site.keys.index(key)) & (rows.positions == position)
    row = rows.values[here].float()
    torch.testing.assert_close(atoms[40], row[0] / row.norm())


def test_a_wrong_site_lists_the_nearest_and_writes_nothing(home, tmp_path, capsys):
    error = fails(
        capsys, "extract", "--data", home / "photos", *MODEL, "--sites", "block.1", "--out", tmp_path / "store"
    )
    assert "'block.1'" in error and "blocks.1" in error
    assert not (tmp_path / "store").exists()


def test_sae_and_store_that_do_not_belong_together_are_refused_with_both(home, tmp_path, capsys):
    other = [*MODEL, "--model.seed", "1"]
    cli.main(
        ["extract", "--data", str(home / "photos"), *other, "--sites", "blocks.1", "--out", str(tmp_path / "other")]
    )
    for command in (["eval", "reconstruction"], ["explore"]):
        error = fails(capsys, *command, home / "run", tmp_path / "other")
        assert "do not belong together" in error and error.count("blocks.1 output") == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["extrat"], "no command 'extrat': did you mean 'extract'?"),
        (["eval", "reconstructoin"], "no evaluation 'reconstructoin': did you mean 'reconstruction'?"),
        (["eval", "recovery", "--all", "--recipes", "topq"], "no recipe 'topq': did you mean 'topk'?"),
        (["eval", "recovery", "run"], "vsae eval recovery RUN... STORE"),
        (["train", "--out", "x", "--recipe", "topq"], "no recipe 'topq': did you mean 'topk'?"),
        (["train", "--out", "x"], "give --store DIR, or --stream FILE.yaml"),
        (["info", "nowhere"], "no directory nowhere"),
        (
            ["train", "--sae.n-latent", "64", "--out", "x"],
            "no option '--sae.n-latent': did you mean '--sae.n-latents'?",
        ),
        (["extract", "--data", "nowhere", *MODEL, "--sites", "blocks.1", "--out", "x"], "nowhere"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, sentence, capsys):
    assert sentence in fails(capsys, *arguments)


def test_a_folder_without_images_is_one_sentence(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "empty" in fails(
        capsys, "extract", "--data", tmp_path / "empty", *MODEL, "--sites", "blocks.1", "--out", tmp_path / "x"
    )
    (tmp_path / "empty/notes.txt").write_text("no image")
    assert "image" in fails(
        capsys, "extract", "--data", tmp_path / "empty", *MODEL, "--sites", "blocks.1", "--out", tmp_path / "x"
    )
    assert not (tmp_path / "x").exists()


def test_a_full_disk_is_one_sentence_and_nothing_half_written_is_taken_for_whole(
    home, tmp_path, capsys, disk_that_takes
):
    (tmp_path / "there").mkdir()
    run, store, there = home / "run", home / "store", tmp_path / "there"
    with disk_that_takes(3000):
        for command in (["explore", run, store], ["eval", "reconstruction", run, store]):
            assert "the disk is full" in fails(capsys, *command, "--out", there / command[0])
        assert "the disk is full while writing" in fails(capsys, "convert", run, there / "saelens", "--to", "saelens")
        assert "the disk is full while writing" in fails(capsys, *train(home, there / "run"))
    assert "not finished" in fails(capsys, "info", there / "run")
    assert [path.name for path in there.rglob("*") if "partial" in path.name] == []
    assert not (there / "explore").exists() and not (there / "eval/result.json").exists()
    cli.main([str(word) for word in ["convert", run, there / "saelens", "--to", "saelens"]])
    cli.main(train(home, there / "run"))
    assert Run.load(there / "run").meta["weights"] == Run.load(run).meta["weights"]


def test_training_says_what_came_of_it_and_leaves_other_folders_alone(home, capsys):
    cli.main(train(home, "run"))
    said = capsys.readouterr().out
    assert "topk SAE of vit_tiny_patch16_224" in said and "NMSE" in said and "floor 1" in said
    assert "already holds other files, such as noise" in fails(capsys, *train(home, "photos"))
    assert sorted(path.name for path in (home / "photos").iterdir()) == ["noise", "stripes"]


def test_a_damaged_store_names_the_shard(home, tmp_path, capsys):
    import shutil

    shutil.copytree(home / "store", tmp_path / "store")
    shard = tmp_path / "store/blocks.1/part-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert "part-00000.safetensors" in fails(
        capsys, "train", "--store", tmp_path / "store", "--site", "blocks.1", "--out", tmp_path / "run"
    )


def test_help_is_quick_and_loads_no_large_library():
    script = (
        "import sys, vsae, vsae.cli\ntry: vsae.cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'diffusers', 'timm', 'matplotlib') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.endswith("[]\n") and "extract" in said


def test_first_tokens_left_out_of_a_training_are_left_out_wherever_its_run_goes(tmp_path, capsys):
    """Documents whose first token is 300 times as long as the others, as a language model's attention sink is: with it, its direction is nearly all there is."""
    rng = torch.Generator().manual_seed(0)
    atoms = torch.linalg.qr(torch.randn(8, 8, generator=rng))[0]
    x = atoms[torch.randint(0, 7, (300, 6), generator=rng)] + 0.02 * torch.randn(300, 6, 8, generator=rng)
    x[:, 0] = 300 * atoms[7] * (1 + 0.1 * torch.randn(300, 1, generator=rng))
    store = store_of(tmp_path / "store", {"layers.1": (x, [2] * 6)})
    words = ["train", "--store", str(store.path), *shlex.split("--recipe topk --kinds text --val-share 0.3")]
    words += shlex.split(
        "--sae.n-latents 8 --sae.k 1 --training.tokens 12000 --training.batch-size 128 --training.lr 5e-3"
    )
    words += shlex.split("--training.tracker none")
    others, lost = x[:, 1:].flatten(0, 1), []
    for name, more in (("with", []), ("without", ["--skip", "1"])):
        cli.main([*words, *more, "--out", str(tmp_path / name)])
        run = Run.load(tmp_path / name)
        assert run.meta["metrics"]["val"]["nmse"] < 0.1, (
            "of all tokens: the loud direction hides that nothing else is learnt"
        )
        lost.append(float((others - run.sae(others).x_hat).square().sum() / (others - others.mean(0)).square().sum()))
    assert run.skip == 1 and lost[1] < 0.1 and lost[0] > 0.9
    cli.main(["eval", "reconstruction", str(tmp_path / "without"), str(store.path), "--kmeans", "4"])
    result = read_json(tmp_path / "without/eval/reconstruction/result.json")
    assert result["n"]["rows"] == 5 * result["n"]["samples"] and result["value"] < 0.1
    assert result["splits"]["report"]["select"] == {"kinds": ["text"], "part": [0.7, 1.0], "skip": 1}
    capsys.readouterr()
    cli.main(["info", str(tmp_path / "without")])
    assert "tokens: text, without the first 1 of each sample;" in capsys.readouterr().out
    assert "skip is -2" in fails(capsys, *words, "--skip", "-2", "--out", tmp_path / "wrong")


def test_pairs_of_two_widths_to_one_code(tmp_path, capsys):
    """Images in 16 dimensions and texts in 10, of the same concepts: aligned, coded by one encoder, and each side readable alone."""
    rng = torch.Generator().manual_seed(0)
    which = torch.rand(1000, 12, generator=rng).topk(2).indices
    image, text = (
        torch.randn(12, d, generator=rng)[which].sum(1) + 0.05 * torch.randn(1000, d, generator=rng) for d in (16, 10)
    )
    sites = {"image_embedding": (image[:, None], [1]), "text_embedding": (text[:, None], [2])}
    store = store_of(tmp_path / "store", sites, size=500)
    words = ["train", "--store", str(store.path), "--site", "image_embedding+text_embedding", "--recipe", "vl_sae"]
    words += shlex.split(
        "--sae.n-latents 24 --sae.k 3 --sae.align-epochs 30 --sae.align-batch-size 256 --sae.align-lr 1e-2"
    )
    words += shlex.split(
        "--val-share 0.2 --training.epochs 6 --training.batch-size 128 --training.lr 3e-3 --training.tracker none"
    )
    cli.main([*words, "--out", str(tmp_path / "run")])
    run = Run.load(tmp_path / "run")
    assert run.meta["recipe"]["fields"]["columns"] == [16, 10] and run.fingerprint["columns"] == [16, 10]
    assert run.meta["metrics"]["val"]["nmse"] < 0.7 and run.sae.capabilities.modalities == 2
    codes = [run.side(side).sae.encode(rows).dense(24) != 0 for side, rows in enumerate((image, text))]
    shared = (codes[0] & codes[1]).sum(1) / (codes[0] | codes[1]).sum(1)
    others = (codes[0] & codes[1].roll(1, 0)).sum(1) / (codes[0] | codes[1].roll(1, 0)).sum(1)
    assert shared.mean() > others.mean() + 0.2
    assert [run.side(side).sae.atoms.shape[1] for side in (0, 1)] == [16, 10]
    cli.main(["eval", "modality", str(tmp_path / "run"), str(store.path)])
    found = read_json(tmp_path / "run/eval/modality/result.json")
    assert found["value"] > 0.3 > found["floor"] and found["n"]["samples"] < 400
    capsys.readouterr()
    wrong = [*words, "--sae.columns", "13", "13", "--out", tmp_path / "wrong"]
    assert "columns are (13, 13), but the sites that are read together are (16, 10) wide" in fails(capsys, *wrong)


def test_stability_of_runs_from_another_library_is_refused(home, tmp_path, capsys):
    """Its untrained floor needs to know how a run was started, which no other library's files say."""
    cli.main(["convert", str(home / "run"), str(tmp_path / "theirs"), "--to", "sparsify"])
    for name in ("a", "b"):
        told = ["--store", str(home / "store"), "--site", "blocks.1"]
        cli.main(["convert", str(tmp_path / "theirs"), str(tmp_path / name), *told])
    for runs in ((tmp_path / "a", tmp_path / "b"), (home / "run", tmp_path / "b")):
        error = fails(capsys, "eval", "stability", *runs, home / "store")
        assert "comes from another library, which does not say how to start it anew" in error


def test_a_table_in_a_pipe_loses_no_number(capsys):
    table = Table(*(f"column {i}" for i in range(14)))
    table.add_row(*(f"0.{i:03} (0.100 to 0.200)" for i in range(14)))
    shown(table)
    printed = capsys.readouterr().out
    assert all(f"0.{i:03} (0.100 to 0.200)" in printed for i in range(14)) and "…" not in printed
