"""The whole job on a store whose attributes are directions: an SAE that has them, one that has not, and what a person can get wrong."""

import dataclasses
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.sparse import csc_array

from evals.attributes import of_records
from evals.recovery import Labelled
from evals.recovery_runs import evaluate, parts, some_live, unit
from evals.recovery_shown import table
from vsae.activations import write_store
from vsae.files import read_json
from vsae.run import Run
from vsae.sae import SAE
from vsae.sparsifiers import TopK

N, TOKENS, D, FEATURES = 600, 4, 12, 24
REQUEST = {"model": {"name": "planted", "weights": "abc", "preprocessing": {}}, "data": {"n": N}}


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
    """(site, atoms, records): nine tokens in ten are one of 24 unit directions in 12 dimensions, the others nothing; a sample has what its tokens have."""
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((FEATURES, D))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    feature, some = rng.integers(0, FEATURES, (N, TOKENS)), rng.random((N, TOKENS)) < 0.9
    values = atoms[feature] * some[..., None]
    there = np.zeros((N, FEATURES), bool)
    sample, token = np.nonzero(some)
    there[sample, feature[sample, token]] = True
    x = torch.from_numpy(values).float() + 1

    def chunks(start):
        for batch in range(start, N // 50):
            rows = range(batch * 50, batch * 50 + 50)
            samples = [dict.fromkeys(("path", "caption", "label", "width", "height")) | {"key": f"k{i}"} for i in rows]
            tokens = Tokens(x[rows.start : rows.stop], torch.zeros(50, TOKENS, dtype=torch.uint8))
            yield Chunk(batch, samples, [], {"layer": tokens})

    path = tmp_path_factory.mktemp("world") / "store"
    site = write_store(path, chunks, REQUEST, dtype="float32", kind_names=("patch", "pad"), rows_per_shard=700).site()
    names = [f"f{feature}" for feature in range(FEATURES)]
    records = [(f"k{i}", -1, {names[at] for at in np.flatnonzero(there[i])}) for i in range(N)]
    return site, torch.from_numpy(atoms).float(), records


def run_of(site, atoms, path, store=None, part=(0.0, 1.0), seed=0, k=1):
    sae = SAE.from_weights(atoms.T.contiguous(), torch.zeros(len(atoms)), atoms, torch.ones(D), TopK(k))
    select = {"kinds": ["patch"], "part": list(part)}
    about = {"select": select, "normalisation": {"mode": "none"}, "store": store or "another"}
    meta = {"recipe": {"name": "topk", "fields": {}}, "self_check": {"l0": 1.0}, "config": {"seed": seed}}
    return Run(path, sae, meta | {"fingerprint": site.fingerprint | about})


def test_an_sae_with_the_attributes_beats_every_baseline_and_the_file_says_so(world, tmp_path):
    site, atoms, records = world
    attributes = of_records(records[:-100])
    hierarchy = {"low": ["f0", "f1", "f2"]}
    silent = torch.cat([atoms, unit(torch.ones(40, D))])  # shorter in every feature's direction than the feature: dead
    runs = [run_of(site, silent, tmp_path / f"run{seed}", seed=seed) for seed in (0, 1)]
    found = evaluate(runs, site, attributes, tmp_path, hierarchy=hierarchy, resamples=20, batch_size=130)
    first = found.methods[0]
    names = [each.name for each in first.recovery.attributes]
    assert names[-1] == "low" and set(names[:-1]) == {f"f{i}" for i in range(FEATURES)}
    own = first.recovery.attributes[:-1]
    assert all(each.latent == int(each.name[1:]) and each.ap.value == each.f1.value == 1 for each in own)
    for other in found.methods[1:]:
        if other.name in ("random dictionary", "random directions", "neurons", "PCA"):
            assert found.over_baselines["run0"][other.name]["mean_ap"].interval[0] > 0
    assert first.shuffled.mean_ap.value == pytest.approx(first.shuffled.mean_ap.floor, abs=0.06)
    split = next(each for each in first.splitting if each.name == "low")
    assert set(split.latents) == {0, 1, 2} and split.f1_gain > 0.2
    assert {(each.parent, each.child) for each in first.absorption} == {("low", f"f{i}") for i in range(3)}
    over = found.over_seeds["topk"]["mean_ap"]
    assert over.value == pytest.approx(first.recovery.mean_ap.value)
    assert over.interval == pytest.approx((over.value, over.value))
    assert found.unlabelled > 0
    written = read_json(tmp_path / "result.json")
    assert written["value"] == pytest.approx(found.over_seeds["topk"]["share_ap_0.7"].value)
    assert written["n"]["runs"] == 2 and written["details"]["methods"][0]["recovery"]["ap_draws"] is None
    assert (tmp_path / "recovery.png").read_bytes().startswith(b"\x89PNG")
    assert table(found).row_count == len(found.methods) + 1


def test_signed_latents_and_tokens_are_asked_as_they_are(world, tmp_path):
    site, atoms, _ = world
    run = run_of(site, atoms, tmp_path / "run", k=FEATURES)
    batch = site.read(0, site.n_rows)
    near = ((batch.values - 1) @ atoms.T) > 0.99
    keys = [site.keys[at] for at in batch.samples.tolist()]
    rows = zip(keys, batch.positions.tolist(), near.numpy(), strict=True)
    tokens = of_records([(key, at, {f"f{i}" for i in np.flatnonzero(row)}) for key, at, row in rows])
    run.sae.sparsifier.signed = True
    found = evaluate([run], site, tokens, tmp_path, resamples=5)
    assert found.methods[0].recovery.candidates == 2 * FEATURES
    assert all(each.latent == int(each.name[1:]) for each in found.methods[0].recovery.attributes)
    assert found.methods[0].recovery.mean_ap.value == 1
    assert found.methods[0].recovery.n_rows > 4 * 200 > found.methods[0].recovery.n_samples


def test_as_many_tickets_are_drawn_among_live_latents_only():
    scores = np.zeros((5, 10), np.float32)
    scores[:, [1, 4, 7, 8]] = 1
    split = Labelled(csc_array(scores), csc_array(np.ones((5, 1), bool)), np.arange(5))
    drawn = some_live(split, 3, seed=0)
    assert len(set(drawn.tolist())) == 3 and set(drawn.tolist()) < {1, 4, 7, 8}
    assert some_live(split, 4, seed=0) is None


def test_parts_never_overlap_and_leave_the_training_part_alone(world, tmp_path):
    site, atoms, _ = world
    own = run_of(site, atoms, tmp_path / "run", site.fingerprint["store"], (0.0, 0.6))
    other = run_of(site, atoms, tmp_path / "run")
    assert parts([own], site, None, None, None) == ((0.0, 0.6), (0.6, 0.8), (0.8, 1.0))
    assert parts([other], site, None, None, None) == ((0.0, 0.2), (0.2, 0.6), (0.6, 1.0))
    assert parts([other], site, site, None, None) == ((0.0, 1.0), (0.0, 0.5), (0.5, 1.0))
    with pytest.raises(ValueError, match="overlap: keep them apart"):
        parts([other], site, None, (0.2, 0.7), (0.6, 1.0))
    with pytest.raises(ValueError, match=r"holds training samples: begin at 0\.6"):
        parts([own], site, None, (0.8, 1.0), (0.4, 0.8))
    whole = run_of(site, atoms, tmp_path / "run", site.fingerprint["store"], (0.0, 1.0))
    with pytest.raises(ValueError, match="trained on all of"):
        parts([whole], site, None, None, None)


def test_a_table_of_other_samples_and_an_sae_of_another_model_are_sentences(world, tmp_path):
    site, atoms, records = world
    run = run_of(site, atoms, tmp_path / "run")
    with pytest.raises(ValueError, match=r"knows none of the .* samples .* 'k0'"):
        evaluate([run], site, of_records([(f"other {key}", at, true) for key, at, true in records]), tmp_path)
    meta = run.meta | {"fingerprint": run.fingerprint | {"model": {"weights": "other"}}}
    with pytest.raises(ValueError, match="do not belong together"):
        evaluate([dataclasses.replace(run, meta=meta)], site, of_records(records), tmp_path)
