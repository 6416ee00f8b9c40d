"""The whole job on stores whose classes are mixtures of known atoms: what is out, what the file says, and what a person can get wrong."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from evals.ood_dense import Head
from evals.ood_images import grouping, images, probe
from evals.ood_runs import evaluate
from evals.ood_shown import shift_table, table
from vsae import cli
from vsae.activations import write_store
from vsae.files import read_json
from vsae.run import Run, save_run
from vsae.sae import SAE
from vsae.sparsifiers import TopK

TOKENS, D, ATOMS = 4, 24, 24
MODEL = {"model": {"name": "planted", "weights": "abc", "preprocessing": {}}}


class Tokens(NamedTuple):
    values: torch.Tensor
    kinds: torch.Tensor
    grid: None = None


class Chunk(NamedTuple):
    batch: int
    samples: list
    bad: list
    activations: dict


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(sites, atoms): three classes, each of four atoms in proportions 8:4:2:1; `near` has the proportions the other way round, `far` random atoms."""
    home = tmp_path_factory.mktemp("ood")
    rng = np.random.default_rng(0)
    atoms = np.linalg.qr(rng.standard_normal((D, D)))[0]

    def site(name, n, how, named=True):
        rows, labels = np.zeros((n, TOKENS, D)), rng.integers(0, 3, n)
        for row, c in enumerate(labels):
            which = rng.permutation(ATOMS)[:4] if how == "far" else np.arange(4) + 4 * c
            shares = np.array([1, 2, 4, 8.0] if how == "near" else [8, 4, 2, 1.0])
            magnitudes = shares * rng.lognormal(0, 0.1, (TOKENS, 4)) * rng.lognormal(0, 0.3)
            rows[row] = magnitudes @ atoms[which]
        x = torch.from_numpy(rows + rng.normal(0, 0.02, rows.shape)).float()

        def chunks(start):
            for batch in range(start, n // 50):
                at = range(batch * 50, batch * 50 + 50)
                about = dict.fromkeys(("path", "caption", "label", "width", "height"))
                samples = [about | {"key": f"{name}{i}", "label": f"c{labels[i]}" if named else None} for i in at]
                tokens = Tokens(x[at.start : at.stop], torch.zeros(50, TOKENS, dtype=torch.uint8))
                yield Chunk(batch, samples, [], {"layer": tokens})

        request = MODEL | {"data": {"name": name}}
        return write_store(
            home / name, chunks, request, dtype="float32", kind_names=("patch", "pad"), rows_per_shard=300
        ).site()

    sites = {name: site(name, 200, name) for name in ("train", "in", "near", "far")}
    return sites | {"unnamed": site("unnamed", 200, "train", named=False)}, torch.from_numpy(atoms).float()


def run_of(site, atoms, path, seed=0):
    sae = SAE.from_weights(atoms.T.contiguous(), torch.zeros(len(atoms)), atoms, torch.zeros(D), TopK(4))
    about = {"select": {"kinds": ["patch"], "part": [0.0, 1.0]}, "normalisation": {"mode": "none"}}
    meta = {"recipe": {"name": "topk", "fields": {}}, "self_check": {"l0": 4.0}, "config": {"seed": seed}}
    return Run(path, sae, meta | {"fingerprint": site.fingerprint | about})


@pytest.fixture(scope="module")
def found(world, tmp_path_factory):
    sites, atoms = world
    out = tmp_path_factory.mktemp("out")
    runs = [run_of(sites["train"], atoms, out / f"run{seed}", seed) for seed in (0, 1)]
    sets = {name: sites[name] for name in ("near", "far")}
    return evaluate(runs, sites["train"], sites["in"], sets, out, near=["near"], resamples=20, top=0.2), out


def test_codes_find_what_is_out_and_the_file_says_so(found):
    comparison, out = found
    epd = [score for score in comparison.scores if score.name == "EPD"]
    assert [score.run for score in epd] == ["run0", "run1"] and comparison.classes == "linear probe on labels"
    for score in epd:
        assert score.near.auroc.value > 0.99 and score.far.auroc.value > 0.99 and score.mean.fpr95.value < 0.05
    by_name = {score.name: score for score in comparison.scores}
    assert by_name["Mahalanobis"].far.auroc.value > 0.99 and by_name["Mahalanobis"].run is None
    assert {"MSP", "energy", "ViM", "kNN", "relative Mahalanobis"} <= set(by_name)
    assert abs(by_name["-L1"].near.auroc.value - 0.5) < 0.1  # the same magnitudes
    written = read_json(out / "result.json")
    assert (
        written["value"] > 0.99
        and written["floor"] == 0.5
        and written["n"] == {"train": 200, "in": 200, "out": 400, "runs": 2}
    )
    assert len(written["details"]["scores"]) == len(comparison.scores) == 2 * 9 + 6
    assert written["details"]["scores"][0]["sets"]["near"]["drawn"] is None
    assert (out / "ood.png").read_bytes().startswith(b"\x89PNG")
    assert table(comparison).row_count == 9 + 6 + 1


def test_results_do_not_depend_on_the_batch_size(world, tmp_path):
    sites, atoms = world
    run, sets = run_of(sites["train"], atoms, tmp_path / "run"), {"far": sites["far"]}
    by_size = [
        evaluate([run], sites["train"], sites["in"], sets, tmp_path, resamples=5, batch_size=size)
        for size in (33, 5000)
    ]
    for a, b in zip(*(each.scores for each in by_size), strict=True):
        assert a.mean.auroc.value == pytest.approx(b.mean.auroc.value, abs=1e-6), a.name


def test_classes_come_from_clusters_the_nearest_profile_or_a_head(world, tmp_path):
    sites, atoms = world
    run, sets = run_of(sites["train"], atoms, tmp_path / "run"), {"far": sites["far"]}
    clusters = evaluate([run], sites["unnamed"], sites["in"], sets, tmp_path, resamples=0)
    assert clusters.classes == "linear probe on 10 k-means clusters, for want of labels"
    near = evaluate([run], sites["train"], sites["in"], sets, tmp_path, classes="nearest", resamples=0)
    assert near.classes == "nearest CAP of labels" and "MSP" not in {score.name for score in near.scores}
    assert near.scores[0].mean.auroc.value > 0.99
    weight = np.stack([atoms[4 * c : 4 * c + 4].numpy().sum(0) for c in range(3)] + [np.zeros(D)])
    head = Head(weight, np.array([0, 0, 0, -99.0]))
    headed = evaluate([run], sites["train"], sites["in"], sets, tmp_path, head=head, resamples=0)
    assert headed.classes.startswith("head") and headed.n_classes == 3 and headed.scores[0].mean.auroc.value > 0.99


def test_the_command_reads_runs_then_stores_and_a_head(world, tmp_path, capsys):
    sites, atoms = world
    run = run_of(sites["train"], atoms, tmp_path / "run")
    meta = {name: value for name, value in run.meta.items() if name != "self_check"}
    run.path.mkdir()
    save_run(run.path, run.sae, sites["train"].read(0, 100).values, meta)
    save_file({"fc.weight": torch.randn(3, D), "fc.bias": torch.zeros(3)}, tmp_path / "head.safetensors")
    stores = [str(sites[name].store.path) for name in ("train", "in", "near", "far")]
    given = [
        "eval",
        "ood",
        str(run.path),
        *stores,
        "--near",
        "near",
        "--resamples",
        "5",
        "--out",
        str(tmp_path / "out"),
    ]
    cli.main([*given, "--head", str(tmp_path / "head.safetensors"), "--head-name", "fc"])
    assert "Out of distribution" in capsys.readouterr().out
    written = read_json(tmp_path / "out" / "result.json")
    assert written["details"]["classes"]["source"].startswith("head")
    assert set(written["details"]["scores"][0]["sets"]) == {"near", "far"}
    for arguments, sentence in (
        ([*given[:2], *stores], "ood needs runs and then three stores"),
        ([*given, "--head", "nowhere.safetensors"], "there is no file nowhere.safetensors"),
        ([*given, "--head", str(tmp_path / "head.safetensors")], "has no tensor classifier.weight"),
    ):
        with pytest.raises(SystemExit):
            cli.main(arguments)
        assert sentence in " ".join(capsys.readouterr().err.split())


def test_rows_are_means_over_tokens_and_errors_ratios_of_sums(world, tmp_path):
    sites, atoms = world
    run, site = run_of(sites["train"], atoms, tmp_path / "run"), sites["far"]
    mean = torch.as_tensor(site.stats(None).mean)
    found = images(run, site, site.sequential(37), mean)
    batch = site.read(0, TOKENS)
    x, code = batch.values, run.sae.encode(batch.values)
    error = (x - run.sae.decode(code)).square().sum()
    np.testing.assert_allclose(found.features[0], x.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.codes[[0]].toarray()[0], code.dense(ATOMS).mean(0), rtol=1e-5)
    assert found.error[0] == pytest.approx(float(error) / TOKENS, rel=1e-4)
    assert found.relative_error[0] == pytest.approx(float(error / (x - mean).square().sum()), rel=1e-4)


def test_a_probe_of_two_classes_is_a_head_of_two_logits():
    rng = np.random.default_rng(0)
    groups = np.arange(60) % 2
    x = rng.normal(size=(60, 3)) + groups[:, None] * [4, 0, 0] + 50
    assert (probe(x, groups).logits(x).argmax(1) == groups).mean() > 0.9


def test_mistakes_are_named(world, tmp_path):
    sites, atoms = world
    run, sets = run_of(sites["train"], atoms, tmp_path / "run"), {"far": sites["far"]}
    with pytest.raises(ValueError, match="share images"):
        evaluate([run], sites["train"], sites["train"], sets, tmp_path)
    with pytest.raises(ValueError, match="near names 'fer'"):
        evaluate([run], sites["train"], sites["in"], sets, tmp_path, near=["fer"])
    other = Run(run.path, run.sae, run.meta | {"fingerprint": run.fingerprint | {"site": "elsewhere"}})
    with pytest.raises(ValueError, match="do not belong together"):
        evaluate([other], sites["train"], sites["in"], sets, tmp_path)
    mean = torch.zeros(D)
    with pytest.raises(ValueError, match="gives no class"):
        grouping(
            images(run, sites["in"], [sites["in"].read(0, TOKENS)], mean),
            Head(np.ones((2, D)), np.zeros(2)),
            "probe",
            0,
        )


def test_probes_on_codes_are_held_against_probes_on_features(found, tmp_path):
    """Three classes of disjoint atoms: codes tell them everywhere but in `far`, whose atoms have nothing to do with its labels."""
    comparison, out = found
    assert [(each.name, each.run) for each in comparison.probes] == [
        ("features", None),
        ("codes", "run0"),
        ("codes", "run1"),
    ]
    for each in comparison.probes:
        assert each.accuracy["in"].value == 1
        # on features, scaled column by column, atoms are no longer at right angles: the small ones, large in `near`, speak for other classes too
        assert each.accuracy["near"].value > (0.95 if each.run else each.accuracy["near"].floor)
        assert each.accuracy["far"].value < 0.75 and each.accuracy["far"].floor < 0.5
    assert comparison.probes[1].more["in"].value == 0
    written = read_json(out / "result.json")["details"]["generalisation"]
    assert written[0]["drop"]["far"]["value"] > 0.3
    assert shift_table(comparison).row_count == 4
