"""The evaluations against labels as a person types them, on a store whose directions are the attributes."""

import json
import shlex

import numpy as np
import pytest
import torch

from evals.supervised_runs import members_of, numbered
from vsae import cli
from vsae.activations import ActivationStore, Select
from vsae.run import save_run

from .planted_store import run_of, store_of

N, TOKENS, D = 320, 3, 14
SHAPES, COLOURS = ("star", "ring", "heart", "cross"), ("red", "blue", "green")
TREE = {"pointed": ["shape:star", "shape:cross"], "round": ["shape:ring", "shape:heart"]}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run whose latents are the attributes, its store, the table and a taxonomy."""
    home, rng = tmp_path_factory.mktemp("home"), np.random.default_rng(0)
    atoms = np.linalg.qr(rng.standard_normal((D, D)))[0][:8]
    shape, colour = rng.integers(0, 4, N), rng.integers(0, 3, N)
    x = np.zeros((N, TOKENS, D))
    x += (atoms[shape] + 0.8 * atoms[4 + colour])[:, None] * rng.uniform(0.8, 1.2, (N, TOKENS, 1))
    x += 0.05 * rng.standard_normal(x.shape)
    store = store_of(home / "store", {"layer": (torch.from_numpy(x), [0] * TOKENS)})
    run = run_of(home / "run", store.site(), torch.from_numpy(atoms).float(), k=2, kinds=["patch"])
    (home / "run").mkdir()
    save_run(home / "run", run.sae, store.site().read(0, 64).values, run.meta)
    table = {f"k{i}": [f"shape:{SHAPES[shape[i]]}", f"colour:{COLOURS[colour[i]]}"] for i in range(N)}
    (home / "truth.json").write_text(json.dumps(table))
    (home / "tree.json").write_text(json.dumps(TREE))
    return home


def evaluated(home, name, more=""):
    told = [
        "eval",
        name,
        str(home / "run"),
        str(home / "store"),
        "--attributes",
        str(home / "truth.json"),
        "--resamples",
        "10",
        "--batch-size",
        "100",
    ]
    cli.main([*told, *shlex.split(more)])
    folder = home / "run/eval" / name
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((folder / "result.json").read_text())
    assert set(written["splits"]) == {"train", "test"} and written["token_kinds"] == ["patch"]
    return written


def test_probing(home, capsys):
    written = evaluated(home, "probing", "--k 1 --scarce 16 --imbalanced 0.1 --min-positives 45")
    methods = written["details"]["probing"]["methods"]
    assert written["value"] > 0.95 and written["floor"] == 0.5 and 1 <= written["n"]["attributes"] <= 7
    assert methods["normal"]["latents 1"]["auc"]["value"] > methods["normal"]["neurons 1"]["auc"]["value"]
    assert set(methods) == {"normal", "scarce", "imbalanced", "noisy"} and "dense" in methods["noisy"]
    assert "where latents are among the methods" in " ".join(capsys.readouterr().out.split())


def test_separability(home):
    written = evaluated(home, "separability", "--group shape --top 1")
    found = written["details"]["separability"]
    assert written["value"] > written["floor"] + 0.1 and written["n"]["classes"] == 4
    one_of_four = np.sqrt(
        (0.25 * np.log(4) + 0.75 * np.log(4 / 3)) / np.log(4)
    )  # fires for one class in four, and for none else
    assert found["top_latents"] == pytest.approx(one_of_four, abs=0.02)
    for how in ("APP", "masking 1"):
        assert found["means"][how]["loss on the class"] > 0.5 > abs(found["means"][how]["loss on the others"])
    assert found["means"]["random 1"]["loss on the class"] < 0.6
    assert found["means"]["halving 1"]["loss on the class"] <= found["means"]["masking 1"]["loss on the class"]


def test_erasure(home):
    written = evaluated(home, "erasure", "--n 1 2 --most-pairs 4")
    erased = written["details"]["erasure"]
    assert written["value"] > written["floor"] and len(erased["classes"]) == 7 and erased["absorbed"]["value"] < 0.2
    assert np.mean([each["scores"]["1"] for each in erased["classes"]]) > np.mean(
        [each["random"]["1"] for each in erased["classes"]]
    )


def test_supervised(home):
    written = evaluated(home, "supervised", "--n 1 --pairs 40")
    found = written["details"]["supervised"]
    assert written["value"] > 0.9 > 0.2 > written["floor"] and set(found["probes"]) == {"shape", "colour"}
    assert found["r2"]["SAE"]["value"] > 0.5 and found["r2"]["supervised (joint)"]["value"] > 0.8


def test_ontology(home, capsys):
    written = evaluated(home, "ontology", f"--hierarchy {home / 'tree.json'} --top 8")
    found = written["details"]["ontology"]
    assert written["value"] > written["floor"] and found["topk"]["best_f1"]["shape:star"] == 1
    assert found["topk"]["coverage"]["0.9"]["value"] >= 4 / 6 > found["topk"]["coverage"]["0.9"]["floor"]
    assert set(found) == {"topk", "random dictionary", "neurons", "PCA"}
    # four latents of shapes, each its leaf, and three of colours, each the root
    assert found["topk"]["depth"]["value"] == pytest.approx(4 * 2 / 7) and found["topk"]["depth"]["floor"] == 0
    table = json.loads((home / "truth.json").read_text())
    site = ActivationStore.open(home / "store").site()
    fit, report = (np.concatenate([b.values.double().numpy() for b in site.sequential(999, Select(("patch",), part))]) for part in ((0.0, 0.5), (0.5, 1.0)))  # fmt: skip
    rows = np.concatenate([b.samples.numpy() for b in site.sequential(999, Select(("patch",), (0.5, 1.0)))])[::TOKENS]
    above = {leaf: parent for parent, leaves in TREE.items() for leaf in leaves}
    leaves = [next(a for a in table[f"k{i}"] if a in above) for i in rows]
    mean = report.reshape(-1, TOKENS, D).mean(1)
    components = np.linalg.eigh(np.cov(fit.T))[1].T
    atoms = torch.nn.functional.normalize(torch.randn(8, D, generator=torch.Generator().manual_seed(0))).double()
    along = (report - fit.mean(0)) @ atoms.numpy().T
    kept = np.where(along >= np.sort(along, 1)[:, [-2]], np.maximum(along, 0), 0)
    scored = {
        "random dictionary": kept.reshape(-1, TOKENS, 8).max(1).T,
        "neurons": [s * w for w in (mean - mean.mean(0)).T for s in (1, -1)],
        "PCA": [s * w for w in ((mean - mean.mean(0)) @ components.T).T for s in (1, -1)],
    }
    for name, each in scored.items():
        depths = []
        for z in each:
            best = [leaves[i] for i in sorted(range(len(z)), key=lambda i: -z[i])[:8]]
            depths.append(2 if len(set(best)) == 1 else 1 if len({above[leaf] for leaf in best}) == 1 else 0)
        assert found[name]["depth"]["value"] == pytest.approx(np.mean(depths)), name
    with pytest.raises(SystemExit):
        evaluated(home, "ontology")
    assert "give --hierarchy" in capsys.readouterr().err


def test_groups_are_found_numbered_or_refused():
    names = ["shape:a", "shape:b", "loud", "tag:x", "tag:y"]
    truth = np.array([[1, 0, 1, 1, 1], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0]], bool)
    assert members_of(names, (), truth) == {"shape": [0, 1]}
    assert members_of(names, ("tag",), truth) == {"tag": [3, 4]}
    with pytest.raises(ValueError, match="no attribute 'size' with two values"):
        members_of(names, ("size",), truth)
    with pytest.raises(ValueError, match="no attribute has exclusive values"):
        members_of(["loud", "x"], (), truth[:, :2])
    train, test = numbered(truth[:2], truth, [0, 1])
    assert train.tolist() == [0, 1] and test.tolist() == [0, 1, 2]
    assert numbered(truth, truth, [3, 4])[0].tolist() == [1, 0, 1]
