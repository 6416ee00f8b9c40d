"""The whole job on stores whose energies follow the microworld's attribute tables: what was planted comes out, and mistakes are sentences."""

from typing import NamedTuple

import numpy as np
import pytest
import torch

from evals.blindspots import Difference
from evals.blindspots_found import by_change, either_way
from evals.blindspots_runs import by_name, evaluate, names
from evals.blindspots_shown import names_table, table
from modalities.microworld.attributes import DEFAULT
from modalities.microworld.scenes import World, draw
from modalities.microworld.tables import table as facts
from vsae.activations import write_store
from vsae.files import read_json
from vsae.run import Run
from vsae.sae import SAE
from vsae.sparsifiers import TopK

CONCEPTS = tuple(f"{name}:{value}" for name, values in DEFAULT.items() for value in values)
N, TOKENS, D = 400, 4, len(CONCEPTS)
REQUEST = {"model": {"name": "planted", "weights": "abc", "preprocessing": {}}}


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
def store(tmp_path_factory):
    """store(name, seed, noise, **world): each scene's four tokens hold its attributes as unit directions; `noise` dims them all, image by image."""

    def make(name, seed, change=1.0, copy=None, keys=range(N), **world):
        scenes = draw(N, seed, world=World(**world))
        values = np.zeros((N, TOKENS, D), np.float32)
        rng = np.random.default_rng(seed)
        for i in range(N):
            for concept in facts(scenes, i)["attributes"]:
                values[i, :, CONCEPTS.index(concept)] = 1 + 0.2 * rng.random(TOKENS)
        values *= np.float32(change)
        if copy is not None:
            values[: len(copy)] = copy

        def chunks(start):
            for batch in range(start, len(keys) // 50):
                rows = keys[batch * 50 : batch * 50 + 50]
                columns = dict.fromkeys(("path", "caption", "label", "width", "height"))
                samples = [columns | {"key": f"s{seed}-{i}"} for i in rows]
                tokens = Tokens(
                    torch.from_numpy(values[rows.start : rows.stop]), torch.zeros(50, TOKENS, dtype=torch.uint8)
                )
                yield Chunk(batch, samples, [], {"layer": tokens})

        path = tmp_path_factory.mktemp(name) / name
        request = REQUEST | {"data": {"name": name, "seed": seed}}
        return write_store(path, chunks, request, dtype="float32", kind_names=("patch", "pad")).site(), values

    return make


@pytest.fixture(scope="module")
def world(store):
    real, values = store("real", 1)
    return {
        "real": real,
        "dropped": store("dropped", 1, multiply={"shape:triangle": 0.0})[0],
        "halved": store("halved", 1, multiply={"colour:red": 0.4})[0],
        "fresh": store("fresh", 2)[0],
        "more": store("more", 3, multiply={"background:night": 4.0})[0],
        "dimmed": store("dimmed", 1, change=0.7)[0],
        "copier": store("copier", 4, copy=values[100:120])[0],
    }


def run_of(site, path, store=None, part=(0.0, 1.0)):
    atoms = torch.eye(D)
    sae = SAE.from_weights(atoms, torch.zeros(D), atoms, torch.zeros(D), TopK(D))
    about = {
        "select": {"kinds": None, "part": list(part)},
        "normalisation": {"mode": "none"},
        "store": store or "another",
    }
    return Run(path, sae, {"fingerprint": site.fingerprint | about})


def concept(name):
    return CONCEPTS.index(name)


def test_what_was_planted_comes_out_and_nothing_of_a_fresh_draw(world, tmp_path):
    order = ["dropped", "halved", "fresh", "more"]
    run = run_of(world["real"], tmp_path)
    found = evaluate(run, world["real"], [world[name] for name in order], tmp_path, resamples=50, batch_size=130)
    dropped, halved, fresh, more = found.generators
    assert dropped.difference.paired and halved.difference.paired and not fresh.difference.paired
    triangle = concept("shape:triangle")
    assert dropped.difference.delta.argmin() == triangle and dropped.difference.relative[triangle] == -1
    assert np.flatnonzero(dropped.blindspots & (dropped.difference.relative < 0)).tolist() == [triangle]
    assert halved.difference.delta.argmin() == concept("colour:red") and halved.blindspots[concept("colour:red")]
    low, high = halved.interval[:, concept("colour:red")]
    assert low < halved.difference.relative[concept("colour:red")] < high < 0
    assert not fresh.blindspots.any() and found.null.found == 0
    night = concept("background:night")
    assert more.difference.delta.argmax() == night and more.blindspots[night]
    assert set(np.flatnonzero(more.blindspots)) <= {concept(f"background:{value}") for value in DEFAULT["background"]}
    assert set(found.correlations) == {f"{a} and {b}" for i, b in enumerate(order) for a in order[:i]}
    written = read_json(tmp_path / "result.json")
    assert written["value"] == pytest.approx(dropped.blindspots.sum() / D) and written["floor"] == 0
    told = written["details"]["generators"]["dropped"]
    assert told["blindspots"][0]["latents"] == [triangle] and told["smallest_delta"][0]["latents"] == [triangle]
    assert told["suppressed_by_delta"] == 0  # at T = 1 no concept of these has the 2.197 it takes, gone or not
    assert told["could_be_suppressed_by_delta"] == 0
    assert (tmp_path / "dropped.png").read_bytes().startswith(b"\x89PNG")
    assert table(found).row_count > 4


def test_by_name_is_the_audit_of_the_summed_energies(world, tmp_path):
    """The slow reference: sums by hand, and each mean of them; a name of one concept is that concept, and what no name is given to does not count."""
    run = run_of(world["real"], tmp_path)
    found = evaluate(run, world["real"], [world["dropped"], world["more"]], tmp_path, resamples=20)
    shapes = {concept(f"shape:{value}"): "any shape" for value in DEFAULT["shape"]}
    called = shapes | {concept("colour:red"): "red", concept("background:night"): "night"}
    named = by_name(found, called)
    assert named.names == ("any shape", "night", "red")
    assert named.concepts == (tuple(sorted(shapes)), (concept("background:night"),), (concept("colour:red"),))
    for each, whole in zip(named.generators, found.generators, strict=True):
        for energy, scores in (("real", found.real.scores), ("generated", whole.energies.scores)):
            dense, got = scores.toarray(), getattr(each.difference, energy)
            assert got[0] == pytest.approx(np.mean([sum(row[k] for k in shapes) for row in dense]), rel=1e-12)
        for at, one in ((1, concept("background:night")), (2, concept("colour:red"))):
            assert each.difference.relative[at] == whole.difference.relative[one]
            assert each.interval[:, at].tolist() == whole.interval[:, one].tolist()
    assert named.floor == 0 and "0.0%" in str(names_table(named).caption)
    dropped, more = named.generators
    assert abs(dropped.difference.relative[0]) < 0.02 and not dropped.blindspots.any()  # other shapes took its place
    assert np.flatnonzero(more.blindspots).tolist() == [1] and more.difference.q[1] < 0.05
    assert names_table(named).row_count == 3
    apart = by_name(found, {concept("shape:triangle"): "triangle", concept("shape:star"): "star"})
    first = apart.generators[0]
    assert apart.names[by_change(first.difference, first.blindspots)[0]] == "triangle"
    assert by_name(found, {}).generators == () and names_table(by_name(found, {})).row_count == 0


def test_either_way_shows_both_sorts_and_fills_up_with_one():
    relative = np.array([-1.0, -0.9, -0.8, -0.7, -0.6, 0.3, 0.2, 0.1, 0.0])
    ones = np.ones(9)
    d = Difference(ones, ones, ones, relative, ones, ones, ones, 1.0, 0.05, True, 10, 5, 5)
    every = relative != 0
    assert either_way(d, every, 4) == [0, 1, 5, 6] and either_way(d, every, 5) == [0, 1, 2, 5, 6]
    assert either_way(d, every, 8) == by_change(d, every) and either_way(d, every, 7) == [0, 1, 2, 3, 5, 6, 7]
    assert either_way(d, relative < 0, 4) == [0, 1, 2, 3] and either_way(d, relative > 0, 2) == [5, 6]
    assert either_way(d, relative > 1, 4) == []


def test_by_name_keeps_to_the_control(world, tmp_path):
    run = run_of(world["real"], tmp_path)
    found = evaluate(run, world["real"], [world["dimmed"]], tmp_path, control=world["dimmed"], resamples=5)
    named = by_name(found, {k: "all" for k in range(D)})
    assert named.generators[0].low_level.all() and not named.generators[0].blindspots.any()


def test_the_pairs_of_some_real_images_are_listed_with_their_own_keys(world, store, tmp_path):
    """The generator has images of the last 100 real ones only: the pair of each is its own key, whatever place that has among all."""
    part = store("part", 1, keys=range(N - 100, N))[0]
    evaluate(run_of(world["real"], tmp_path), world["real"], [part], tmp_path, resamples=5)
    told = read_json(tmp_path / "result.json")["details"]["generators"]["part"]
    listed = told["memorised"]["pairs"]["nearest"]
    assert told["paired"] and told["n_generated"] == 100 and len(listed) == 50
    assert all(each["key"] == each["real"] for each in listed)


def test_what_the_control_does_too_is_low_level(world, tmp_path):
    run = run_of(world["real"], tmp_path)
    bare = evaluate(run, world["real"], [world["dimmed"]], tmp_path, resamples=5)
    assert bare.generators[0].blindspots.all()
    both = [world["dimmed"], world["dropped"]]
    found = evaluate(run, world["real"], both, tmp_path, control=world["dimmed"], resamples=5)
    assert not found.generators[0].blindspots.any() and found.generators[0].low_level.all()
    assert found.generators[1].blindspots[concept("shape:triangle")]


def test_copies_are_found_by_key_or_by_neighbour(world, tmp_path):
    run = run_of(world["real"], tmp_path)
    found = evaluate(run, world["real"], [world["copier"], world["dropped"]], tmp_path, resamples=5)
    copier, dropped = found.generators
    assert copier.pairs is None and dropped.pairs is not None
    assert set(copier.nearest.candidates) >= set(range(20))
    assert copier.nearest.real[:20].tolist() == list(range(100, 120))
    told = read_json(tmp_path / "result.json")["details"]["generators"]["copier"]["memorised"]["nearest"]
    assert {f"s4-{i}": f"s1-{100 + i}" for i in range(20)}.items() <= {
        x["key"]: x["real"] for x in told["nearest"]
    }.items()


def test_the_sum_is_the_mean_times_the_tokens_and_batches_do_not_matter(world, tmp_path):
    run = run_of(world["real"], tmp_path)
    options = {"resamples": 5, "seed": 3}
    mean = evaluate(run, world["real"], [world["fresh"]], tmp_path, **options).generators[0].difference
    summed = evaluate(run, world["real"], [world["fresh"]], tmp_path, energy="paper_sum", **options)
    again = evaluate(run, world["real"], [world["fresh"]], tmp_path, batch_size=7, **options).generators[0].difference
    np.testing.assert_allclose(summed.generators[0].difference.real, TOKENS * mean.real, rtol=1e-6)
    for name in ("real", "delta", "relative", "p", "limit"):
        np.testing.assert_allclose(getattr(again, name), getattr(mean, name), rtol=1e-6)


def test_training_images_and_other_models_are_refused(world, tmp_path):
    real, own = world["real"], world["real"].fingerprint["store"]
    with pytest.raises(ValueError, match="was trained on all of"):
        evaluate(run_of(real, tmp_path, own), real, [world["fresh"]], tmp_path)
    part = evaluate(run_of(real, tmp_path, own, (0.0, 0.5)), real, [world["dropped"]], tmp_path, resamples=5)
    assert part.generators[0].difference.n_real < 0.6 * N and part.generators[0].difference.paired
    other = run_of(real, tmp_path)
    other.meta["fingerprint"]["model"] = {"weights": "other"}
    with pytest.raises(ValueError, match="do not belong together"):
        evaluate(other, real, [world["fresh"]], tmp_path)
    paths = [tmp_path / "a" / "x", tmp_path / "b" / "x", tmp_path / "y"]
    assert names(paths) == ["x-1", "x-2", "y"]


def test_the_largest_change_comes_first_and_of_equal_ones_the_largest_energy():
    real, generated = np.array([1.0, 3.0, 2.0, 5.0, 0.0]), np.array([0.0, 0.0, 1.0, 0.0, 4.0])
    nothing = np.zeros(5)
    d = Difference(
        real,
        generated,
        nothing,
        (generated - real) / (generated + real),
        nothing,
        nothing,
        nothing,
        1.0,
        0.05,
        True,
        9,
        2,
        2,
    )
    assert by_change(d, np.ones(5, bool)) == [3, 4, 1, 0, 2]
    assert by_change(d, np.array([True, False, True, False, False])) == [0, 2]
