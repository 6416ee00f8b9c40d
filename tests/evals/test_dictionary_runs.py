"""stability, geometry, monosemanticity and dark_matter as whole jobs on planted stores, and as a person types them."""

import json
import shlex

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.sparse import csc_array

from evals.attributes import of_records
from evals.geometry_runs import geometry_of, geometry_table
from evals.monosemanticity_runs import evaluate, table, uniqueness
from evals.stability_runs import untrained_atoms
from vsae import cli
from vsae.run import Run

from .planted_store import run_of, store_of

N, TOKENS, D, FEATURES = 300, 4, 12, 12


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(store, site, atoms, feature of each token): each token is one of 12 orthonormal directions, times 1 to 2, and a little noise."""
    rng = np.random.default_rng(0)
    atoms = np.linalg.qr(rng.standard_normal((D, D)))[0][:FEATURES]
    feature = rng.integers(0, FEATURES, (N, TOKENS))
    feature[:, 1:] = feature[:, :1]
    x = atoms[feature] * rng.uniform(1, 2, (N, TOKENS, 1)) + 0.02 * rng.standard_normal((N, TOKENS, D))
    store = store_of(tmp_path_factory.mktemp("world") / "store", {"layer": (torch.from_numpy(x), [0] * TOKENS)})
    return store, store.site(), torch.from_numpy(atoms).float(), feature


def test_stability_as_a_person_types_it(world, tmp_path, capsys):
    store, site, _, _ = world
    train = shlex.split(
        "--recipe ra_topk --val-share 0.3 --sae.n-latents 16 --sae.k 1 --training.tokens 2000 "
        "--training.batch-size 200 --training.lr 1e-3"
    )
    for seed in (0, 1):
        cli.main(
            [
                "train",
                "--store",
                str(store.path),
                "--out",
                str(tmp_path / f"run{seed}"),
                "--training.seed",
                str(seed),
                *train,
            ]
        )
    cli.main(["eval", "stability", str(tmp_path / "run0"), str(tmp_path / "run1"), str(store.path)])
    written = json.loads((tmp_path / "run0/eval/stability/result.json").read_text())
    assert (
        0 < written["floor"] <= 1
        and 0 < written["value"] <= 1.0001
        and written["n"] == {"runs": 2, "pairs": 1, "latents": 16}
    )
    assert 0 < written["details"]["random"] < 1 and (tmp_path / "run0/eval/stability/stability.png").is_file()
    first, again = (untrained_atoms(Run.load(tmp_path / "run0"), site) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, untrained_atoms(Run.load(tmp_path / "run1"), site))
    cli.main(["eval", "dark_matter", str(tmp_path / "run0"), str(store.path), "--resamples", "10"])
    written = json.loads((tmp_path / "run0/eval/dark_matter/result.json").read_text())
    assert written["splits"]["fit"]["part"][0] == 0.7 and written["floor"] < 0.3 and written["interval"]
    capsys.readouterr()
    for wrong, sentence in (
        ([tmp_path / "run0", store.path], "two runs or more"),
        ([tmp_path / "run0", tmp_path / "run0", store.path], "train them with different ones"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["eval", "stability", *map(str, wrong)])
        assert sentence in capsys.readouterr().err


def test_geometry_of_orthonormal_atoms_is_known(world, tmp_path):
    _, site, atoms, feature = world
    run = run_of(tmp_path / "run", site, atoms, kinds=["patch"])
    objects = of_records([(f"k{i}", -1, {f"f{feature[i, 0]}"}) for i in range(N)])
    found = geometry_of(
        run, site, tmp_path / "out", directions=atoms.double(), attributes=objects, resamples=10, batch_size=70
    )
    assert found.shape.stable_rank == pytest.approx(D, rel=1e-4) and found.shape.effective_rank == pytest.approx(
        D, rel=1e-4
    )
    assert found.shape.coherence < 1e-5 and found.random_shape.coherence > 0.1
    assert found.shape.ood < 0.01 < found.random_shape.ood and found.plausibility == pytest.approx(1)
    assert found.together.connectivity == 0 and found.together.interference == 0 and found.together.live == FEATURES
    assert found.random_plausibility < 0.9
    assert 0.45 < found.data_plausibility < 0.9  # twelve random rows are of 12 (1 - (11/12)^12) = 7.8 directions
    assert found.identifiability.accuracy.value == 1 and found.identifiability.accuracy.floor == pytest.approx(
        1 - 1 / 12, abs=0.02
    )
    written = json.loads((tmp_path / "out/result.json").read_text())
    assert written["value"] == pytest.approx(D, rel=1e-4) and written["floor"] < D
    assert (tmp_path / "out/geometry.png").read_bytes().startswith(b"\x89PNG") and geometry_table(found).row_count == 15
    assert found.norms.gap.value < 0.05 < found.norms.gap.floor and found.norms.correlation.value > 0.99
    assert found.mean_cosine < 1e-5 < found.random_mean_cosine and (tmp_path / "out/zf.png").is_file()
    with pytest.raises(ValueError, match="the directions have 3 dimensions"):
        geometry_of(run, site, tmp_path / "out", directions=torch.ones(2, 3, dtype=torch.float64))


def test_monosemanticity_by_another_encoder(world, tmp_path):
    _, site, atoms, feature = world
    other = torch.eye(20, dtype=torch.float64)[feature[:, 0]][:, None]
    encoder = store_of(tmp_path / "encoder", {"embedding": (other[:250], [0])}, weights="other").site()
    silent = torch.cat([atoms, -torch.ones(3, D) / D])
    run = run_of(tmp_path / "run", site, silent)
    found = evaluate(run, site, encoder, tmp_path / "out", resamples=20, batch_size=64)
    assert found.sae.images == 250
    assert np.nanmin(found.sae.scores[:FEATURES]) == pytest.approx(1)  # a latent's images are all of one feature
    assert found.sae.undefined == 3 and np.isnan(found.sae.scores[FEATURES:]).all()
    counts = np.bincount(feature[:250, 0], minlength=FEATURES)
    same = (counts * (counts - 1)).sum() / (250 * 249)
    assert found.sae.floor == pytest.approx(same) and found.neurons.mean < 0.9 < found.mean.value
    again = evaluate(run, site, encoder, tmp_path / "again", resamples=20, batch_size=1000)
    np.testing.assert_allclose(found.sae.scores, again.sae.scores, atol=1e-6)
    assert found.uniqueness == 1 and table(found).row_count == 2
    written = json.loads((tmp_path / "out/result.json").read_text())
    assert written["value"] == pytest.approx(1) and written["n"]["without a score"] == 3
    assert (tmp_path / "out/monosemanticity.png").is_file()
    few = store_of(tmp_path / "few", {"embedding": (other[:1], [0])}, weights="other").site()
    with pytest.raises(ValueError, match="has 1 of the 300 samples"):
        evaluate(run, site, few, tmp_path / "out")


def test_uniqueness_is_zero_for_copies():
    scores = np.random.default_rng(0).random((40, 2))
    scores[:, 1] = scores[:, 0]
    assert uniqueness(csc_array(scores), np.arange(40)) == 0
    assert uniqueness(csc_array(scores[:, :1]), np.arange(40)) is None


def test_directions_come_from_a_file(world, tmp_path, capsys):
    store, site, atoms, _ = world
    from vsae.run import save_run

    run = run_of(tmp_path / "run", site, atoms, kinds=["patch"])
    (tmp_path / "run").mkdir()
    save_run(tmp_path / "run", run.sae, site.read(0, 64).values, run.meta)
    save_file({"head.weight": atoms.contiguous(), "head.bias": torch.zeros(len(atoms))}, tmp_path / "head.safetensors")
    told = [
        "eval",
        "geometry",
        str(tmp_path / "run"),
        str(store.path),
        "--directions",
        str(tmp_path / "head.safetensors"),
    ]
    cli.main([*told, "--directions-name", "head"])
    assert "plausibility" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(told)
    assert "no tensor classifier.weight" in capsys.readouterr().err
