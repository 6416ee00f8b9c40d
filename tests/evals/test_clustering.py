"""Planted groups come back as clusters, with their latents; what is not planted does not, and ranks are those of slow loops."""

import json

import numpy as np
import pytest
import torch
from scipy.sparse import csc_array
from sklearn.metrics import pair_confusion_matrix

from evals import clustering
from evals.clustering_runs import evaluate
from vsae import cli
from vsae.reading import opened
from vsae.run import save_run

from .planted_store import run_of, store_of


def planted(n=240, seed=0):
    """Four groups: group g activates latents g and g + 4 nearly always; 8 to 27 are noise, 28 fires always, 29 never."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 4, n)
    z = rng.uniform(0.5, 1.5, (n, 30)) * (rng.random((n, 30)) < 0.1)
    for at in (0, 4):
        z[:, at : at + 4] = 0
        z[np.arange(n), group + at] = rng.uniform(1, 2, n) * (rng.random(n) < 0.95)
    z[:, 28], z[:, 29] = rng.uniform(1, 2, n), 0
    return z, group


@pytest.mark.parametrize("weighting", ["binary", "tf-idf", "activation"])
def test_planted_groups_come_back_with_their_latents(weighting):
    z, group = planted()
    rows = clustering.embedded(csc_array(z), weighting)
    found = clustering.clusters(rows, 4)
    rand = clustering.agreement(found, group)
    assert rand.value > 0.9 and abs(rand.floor) < 0.02 and rand.interval[0] <= rand.value <= rand.interval[1]
    assert (np.diff(np.bincount(found)) <= 0).all()
    for at, each in enumerate(clustering.marks(csc_array(z), found, 2)):
        of = np.bincount(group[found == at]).argmax()
        assert {mark.latent for mark in each} == {of, of + 4}
        mark = each[0]
        assert mark.inside == (z[found == at, mark.latent] > 0).mean() > 0.85
        assert mark.outside == (z[found != at, mark.latent] > 0).mean() < 0.1
    precision = clustering.by_sample(rows, group, 5)
    assert precision.value > 0.9 and precision.floor == pytest.approx(0.25, abs=0.06)


def test_chosen_latents_say_what_alike_means():
    """Two crossed groupings: by the latents of one, that one is found and the other is not."""
    rng, n = np.random.default_rng(0), 200
    shape, colour = rng.integers(0, 2, n), rng.integers(0, 2, n)
    z = np.zeros((n, 4))
    z[np.arange(n), shape] = z[np.arange(n), 2 + colour] = 1
    for latents, known, other in (([0, 1], shape, colour), ([2, 3], colour, shape)):
        rows = clustering.embedded(csc_array(z), "binary", latents)
        found = clustering.clusters(rows, 2)
        assert clustering.agreement(found, known).value == 1 and abs(clustering.agreement(found, other).value) < 0.05
    with pytest.raises(ValueError, match="no latent 4"):
        clustering.embedded(csc_array(z), "binary", [4])
    with pytest.raises(ValueError, match="cannot be put into 1 clusters"):
        clustering.clusters(rows, 1)


def test_noise_agrees_with_nothing():
    rng = np.random.default_rng(1)
    z, truth = (rng.random((300, 30)) < 0.2).astype(float), rng.integers(0, 4, 300)
    rows = clustering.embedded(csc_array(z))
    assert abs(clustering.agreement(clustering.clusters(rows, 4), truth).value) < 0.03
    assert clustering.by_sample(rows, truth).value == pytest.approx(0.25, abs=0.05)


def test_weights_ranks_and_agreement_are_slow_loops():
    z, group = planted(40)
    z[0], z[3] = 0, z[2]
    z[5, 1] = -2
    n, slow = len(z), np.maximum(z, 0)
    idf = np.log((1 + n) / (1 + (slow > 0).sum(0))) + 1
    for weighting, weighted in (("binary", (slow > 0) * 1.0), ("tf-idf", slow * idf), ("activation", slow)):
        expected = [row / max(np.sqrt((row**2).sum()), 1e-300) for row in weighted]
        np.testing.assert_allclose(clustering.embedded(csc_array(z), weighting).toarray(), expected, atol=1e-12)
    rows = clustering.embedded(csc_array(z), "binary")
    dense = rows.toarray()
    found = clustering.nearest(rows, np.arange(n), 6)
    for i in range(n):
        alike = [round(float(dense[i] @ dense[j]), 10) for j in range(n)]
        assert found[i].tolist() == sorted((j for j in range(n) if j != i), key=lambda j: (-alike[j], j))[:6]
    assert found.tolist() == clustering.nearest(dense, np.arange(n), 6).tolist()
    summed = dense[:, [0, 3]].sum(1)
    listed = clustering.by_latents(rows, [0, 3], 8).tolist()
    assert listed == sorted((i for i in range(n) if summed[i] > 0), key=lambda i: (-summed[i], i))[:8]
    precise = np.mean([np.mean([group[j] == group[i] for j in found[i]]) for i in range(n)])
    assert clustering.by_sample(rows, group, 6).value == pytest.approx(precise)
    made = clustering.clusters(rows, 4)
    (tn, fp), (fn, tp) = pair_confusion_matrix(group, made).tolist()
    expected = (tp + fp) * (tp + fn) / (tp + fp + fn + tn)
    rand = (tp - expected) / ((2 * tp + fp + fn) / 2 - expected)
    assert clustering.agreement(made, group, 0).value == pytest.approx(rand)


def test_attributes_are_found_by_latents_chosen_on_the_other_half():
    z, group = planted(400)
    truth = np.stack([group == 0, group == 3, np.random.default_rng(2).random(400) < 0.3, group == 9], 1)
    noise = np.random.default_rng(3).standard_normal((400, 6))
    scores = csc_array(z)
    rows = clustering.embedded(scores)
    found = clustering.by_attribute(scores, rows, noise, truth, ["zero", "three", "chance", "never"], most=2)
    assert found.names == ("zero", "three", "chance")
    assert found.precision["latents"][:2] == [1, 1] and found.precision["latents"][2] < 0.8
    assert found.mean["latents"].value > found.mean["latents"].floor + 0.2
    assert found.mean["raw means"].value < 0.7  # noise knows nothing
    x = np.eye(4)[group]
    assert clustering.by_attribute(scores, rows, x, truth[:, :2], ["zero", "three"]).precision["raw means"] == [1, 1]
    assert clustering.by_attribute(scores, rows, x, truth[:, 3:], ["never"]) is None


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Three groups of samples, of 4 directions each, two tokens a sample, so that only most of a group share a latent."""
    home, rng = tmp_path_factory.mktemp("clustering"), np.random.default_rng(0)
    group = rng.integers(0, 3, 150)
    x = torch.zeros(150, 2, 8)
    for token, base in ((0, 0), (1, 3)):
        x[torch.arange(150), token, torch.from_numpy(group + base)] = 1.0
    x += 0.05 * torch.from_numpy(rng.standard_normal(x.shape)).float()
    store = store_of(home / "store", {"layer": (x, [2, 2])})
    run = run_of(home / "run", store.site(), torch.eye(8), kinds=["text"])
    (home / "run").mkdir()
    save_run(home / "run", run.sae, store.site().read(0, 64).values, run.meta)
    table = {f"k{i}": [f"topic:{'abc'[g]}"] for i, g in enumerate(group)}
    (home / "truth.json").write_text(json.dumps(table))
    (home / "names.json").write_text(json.dumps({"2": "moustache"}))
    return home, group


def test_as_a_person_types_it(home, capsys):
    home, group = home
    told = ["--attributes", str(home / "truth.json"), "--names", str(home / "names.json"), "--resamples", "20"]
    cli.main(["eval", "clustering", str(home / "run"), str(home / "store"), *told, "--like", "k0", "--find", "2"])
    out = home / "run/eval/clustering"
    written = json.loads((out / "result.json").read_text())
    assert written["value"] == 1 and abs(written["floor"]) < 0.05 and written["n"]["clusters"] == 3
    details = written["details"]
    assert {m["latent"] for each in details["clusters"] for m in each["marks"][:2]} == set(range(6))
    assert any("2 moustache" in each["names"] for each in details["clusters"])
    place = [details["cluster of"][f"k{i}"] for i in range(150)]
    assert len({(a, b) for a, b in zip(place, group.tolist(), strict=True)}) == 3
    assert all(group[int(key[1:])] == group[0] for keys in details["most like"].values() for key in keys)
    assert len(details["found by latents"]) == 10 and all(group[int(k[1:])] == 2 for k in details["found by latents"])
    for each in (details["precision@k by sample"]["topic"], details["precision@k by attribute"]["mean"]):
        assert each["latents"]["value"] == each["raw means"]["value"] == 1 > each["latents"]["floor"]
    printed = " ".join(capsys.readouterr().out.split())
    assert "moustache" in printed and (out / "clustering.png").read_bytes().startswith(b"\x89PNG")


def test_without_labels_batches_do_not_matter_and_mistakes_are_sentences(home, tmp_path, capsys):
    home, _ = home
    run, site = opened(home / "run", home / "store")
    made = [evaluate(run, site, tmp_path / str(size), n=3, batch_size=size) for size in (7, 4096)]
    np.testing.assert_array_equal(made[0].cluster, made[1].cluster)
    assert json.loads((tmp_path / "7/result.json").read_text())["value"] is None and not made[0].rand
    for more, said in (
        (["--like", "nobody"], "has the key 'nobody'"),
        (["--find", "99"], "no latent 99"),
        (["--clusters", "1"], "into 1 clusters"),
        (["--attributes", str(home / "truth.json"), "--groups", "size"], "no attribute 'size'"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["eval", "clustering", str(home / "run"), str(home / "store"), *more])
        assert said in " ".join(capsys.readouterr().err.split())
