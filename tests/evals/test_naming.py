"""Names of planted latents, the arithmetic against a slow one, and the command on the microworld's CLIP, where the right names are known."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_array

from evals import naming, vocabulary
from evals.naming_runs import by_atoms, by_images
from modalities import microworld
from modalities.microworld.attributes import WORDS
from vsae import cli, jobs
from vsae.activations import ActivationStore
from vsae.run import save_run

from .planted_store import run_of


def slow_name(scores, embeddings, words):
    """Latent -> [(cosine, word)], best first, by loops."""
    E = [e / np.linalg.norm(e) for e in embeddings.astype(float)]
    middle = sum(E) / len(E)
    T = [t - sum(words) / len(words) for t in words]
    found = {}
    for k in range(scores.shape[1]):
        active = [(max(scores[i, k], 0), E[i]) for i in range(len(E))]
        if not sum(a for a, _ in active):
            continue
        v = sum(a * e for a, e in active) / sum(a for a, _ in active) - middle
        cosines = [v @ t / (np.linalg.norm(v) * np.linalg.norm(t)) for t in T]
        found[k] = sorted(((c, w) for w, c in enumerate(cosines)), key=lambda each: (-each[0], each[1]))
    return found


def planted(n=300, words=12, d=16, seed=0):
    """Each image shows one thing; latent k speaks for thing k, and one latent for nothing."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((words, d))
    shown = rng.integers(0, words, n)
    images = directions[shown] + 4.0 + 0.3 * rng.standard_normal((n, d))  # a cone of their own
    scores = np.eye(words)[shown] * rng.uniform(0.5, 1.5, (n, 1))
    return np.c_[scores, np.zeros(n)], images, directions - 7.0, shown


def test_names_are_those_of_a_slow_loop():
    scores, images, words, _ = planted(60)
    scores[:, 3] -= 0.2  # negative activations say nothing
    expected = slow_name(scores, images, words)
    got = naming.name(*naming.means_of_images(csc_array(scores), images), words)
    assert got.latent.tolist() == sorted(expected)
    for at, latent in enumerate(got.latent.tolist()):
        assert got.words[at].tolist() == [w for _, w in expected[latent][:5]]
        np.testing.assert_allclose(got.cosine[at], [c for c, _ in expected[latent][:5]])
        assert got.margin[at] == pytest.approx(expected[latent][0][0] - expected[latent][1][0])


def test_planted_things_are_called_by_their_words_and_exchanged_images_are_not():
    scores, images, words, _ = planted()
    names, floor = by_images(csc_array(scores), images, words)
    assert names.latent.tolist() == list(range(12)) and names.words[:, 0].tolist() == list(range(12))
    assert (floor.words[:, 0] == np.arange(12)).mean() < 0.5 and naming.above_chance(names, floor).value > 0.5
    right = naming.right(names, floor, np.arange(12), np.arange(12))
    assert right.first.value == right.among.value == 1 and right.first.interval == (1, 1)
    assert right.first.floor == pytest.approx(1 / 12) and right.among.floor == pytest.approx(5 / 12)
    atoms, _ = by_atoms(words + 7, np.array([2, 7]), images, words)
    assert atoms.latent.tolist() == [2, 7] and atoms.words[:, 0].tolist() == [2, 7]


def test_the_floor_is_the_mean_over_all_permutations_of_the_names():
    from itertools import permutations

    words = np.array([0, 0, 1, 2, 3])
    names = naming.Names(np.arange(5), np.array([[0, 1], [1, 0], [1, 2], [3, 0], [2, 3]]), np.ones((5, 2)), np.zeros(5))
    found = naming.right(names, names, np.arange(5), words)
    for shown, floor in ((names.words[:, :1], found.first.floor), (names.words, found.among.floor)):
        every = [(shown[list(order)] == words[:, None]).any(1).mean() for order in permutations(range(5))]
        assert floor == pytest.approx(np.mean(every))
    assert found.first.value == 0.4 and found.among.value == 0.8


def test_silent_latents_equal_words_and_permuted_images():
    scores, images, words, _ = planted(80)
    scores = np.c_[scores, np.ones(80)]  # as active on all images: about nothing
    own = by_images(csc_array(scores), images, words).names
    assert own.latent.tolist() == list(range(12))
    order = np.random.default_rng(5).permutation(80)
    again = by_images(csc_array(scores[order]), images[order], words).names
    np.testing.assert_allclose(own.cosine, again.cosine)
    louder = by_images(csc_array(scores * 7), images * 3, words).names
    np.testing.assert_allclose(own.cosine, louder.cosine)
    twice = naming.name(own.latent, (words + 7)[:12], np.concatenate([words, words]))
    assert (
        twice.words[:, 0].tolist() == list(range(12)) and np.abs(twice.margin).max() < 1e-9
    )  # of equal words the first
    with pytest.raises(ValueError, match="two or more"):
        naming.name(own.latent, words[:12], words[:1])
    with pytest.raises(ValueError, match="80 images have activations and 79"):
        naming.means_of_images(csc_array(scores), images[1:])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_labels_that_mean_nothing_give_the_floor(seed):
    rng = np.random.default_rng(seed)
    names = naming.Names(np.arange(400), rng.integers(0, 8, (400, 1)), np.ones((400, 1)), np.zeros(400))
    found = naming.right(names, names, np.arange(400), rng.integers(0, 8, 400), resamples=0)
    assert abs(found.first.value - found.first.floor) < 0.08 and abs(found.first.floor - 1 / 8) < 0.02


def test_what_latents_stand_for_is_told_by_ap_above_prevalence():
    """A constant latent has the AP of the commonest attribute, and stands for nothing."""
    rng = np.random.default_rng(0)
    truth = rng.random((200, 3)) < [0.9, 0.3, 0.3]
    scores = np.c_[np.ones(200), truth[:, 1] * rng.uniform(1, 2, 200), truth[:, 2]].astype(float)
    latents, word = naming.known(csc_array(scores), csc_array(truth), np.array([5, 6, -1]))
    assert latents.tolist() == [1] and word.tolist() == [6]
    assert naming.words_of(
        ("shape:Star", "dotted", "a_b", "x:none"), (("star",), ("spotted", "dotted"), ("a b",))
    ).tolist() == [0, 1, 2, -1]


def test_vocabularies_are_read_and_mistakes_are_sentences(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("# no word\n\nred, crimson\n  polka   dots ,spotted\n", "utf-8")
    assert vocabulary.read(path) == (("red", "crimson"), ("polka dots", "spotted"))
    own = {word for words in vocabulary.read() for word in words}
    assert len(vocabulary.read()) == 517 and {w for a in WORDS.values() for ws in a.values() for w in ws} <= own
    for content, said in (("red\n", "has 1 names"), ("red\nblue, RED\n", "'RED' in lines 1 and 2"), ("", "0 names")):
        path.write_text(content, "utf-8")
        with pytest.raises(ValueError, match=said):
            vocabulary.read(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no UTF-8"):
        vocabulary.read(path)
    with pytest.raises(FileNotFoundError, match="is no file"):
        vocabulary.read(tmp_path / "none.txt")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Scenes with CLIP's embeddings, and an SAE on them whose atoms are the attributes' mean embeddings: what each latent stands for is known."""
    from evals import attributes
    from evals.embedded import embedded

    home = tmp_path_factory.mktemp("naming")
    microworld.write(home / "scenes", 300, 77_000)
    clip = jobs.Model("clip", str(microworld.path("clip")))
    cli.extract(jobs.Extract(str(home / "scenes"), clip, ("image_embedding", "text_embedding"), home / "store"))
    site = ActivationStore.open(home / "store").site("image_embedding")
    table = attributes.read(home / "scenes")
    rows, E = embedded(site, table.keys)
    truth = table.truth.toarray()[rows].astype(float)
    kept = [at for at, name in enumerate(table.names) if name.split(":")[0] in ("shape", "colour", "background")]
    fit = np.linalg.lstsq(np.c_[truth, np.ones(len(E))], E, rcond=None)[0]
    atoms = torch.nn.functional.normalize(torch.from_numpy(fit[kept]).float(), dim=1)
    run = run_of(home / "run", site, atoms, k=4, bias=torch.from_numpy(E.mean(0)).float())
    (home / "run").mkdir()
    save_run(home / "run", run.sae, torch.from_numpy(E[:32]), run.meta)
    (home / "words.txt").write_text("\n".join(", ".join(ws) for a in WORDS.values() for ws in a.values()), "utf-8")
    return home, [table.names[at].split(":")[1] for at in kept]


def evaluated(world, *more):
    home, _ = world
    store, words = str(home / "store"), ["--words", str(home / "words.txt")]
    clip = ["--name", str(microworld.path("clip"))]
    cli.main(["eval", "naming", str(home / "run"), store, store, *words, *clip, "--resamples", "20", *more])


def test_the_microworld_s_attributes_are_called_by_their_names(world, capsys):
    home, known = world
    evaluated(world, "--attributes", "own", "--least", "0.2")
    written = json.loads((home / "run/eval/naming/result.json").read_text())
    named = {row["latent"]: row for row in pq.read_table(home / "run/eval/naming/names.parquet").to_pylist()}
    right = [named[at]["name"] == name for at, name in enumerate(known) if at in named]
    assert len(right) == len(known) == 20 and np.mean(right) >= 0.9
    assert written["value"] >= 0.9 and written["floor"] < 0.15 and written["details"]["by"] == "atoms"
    assert written["metric"] == "share of known latents whose first name is right" and written["n"]["known"] >= 10
    assert all(row["stands_for"] in (None, known[latent]) for latent, row in named.items())
    assert (home / "run/eval/naming/naming.png").read_bytes().startswith(b"\x89PNG")
    assert "first name right" in capsys.readouterr().out


def test_by_images_batches_do_not_matter(world):
    home, known = world
    evaluated(world, "--by", "images", "--out", str(home / "a"), "--batch-size", "37")
    evaluated(world, "--by", "images", "--out", str(home / "b"))
    first, second = (pq.read_table(home / name / "names.parquet").to_pylist() for name in ("a", "b"))
    for one, other in zip(first, second, strict=True):
        assert one["names"] == other["names"] and one["cosine"] == pytest.approx(other["cosine"], abs=1e-6)
    right = [row["name"] == known[row["latent"]] for row in first]
    assert len(right) == 20 and np.mean(right) >= 0.8
    written = json.loads((home / "a/result.json").read_text())
    assert written["metric"] == "share of names above chance" and written["floor"] == pytest.approx(0.05, abs=0.05)


def test_mistakes_are_sentences(world, tmp_path, capsys):
    none = tmp_path / "words.txt"
    none.write_text("banjo\nkazoo\n")
    for more, said in (
        (["--encoder-site", "text_embedding"], "this needs a CLIP's image_embedding"),
        (["--attributes", "own", "--words", str(none)], "a word for none of the attributes"),
        (["--template", "a photo"], "no place for the word"),
        (["--name", str(microworld.path("vit"))], "vit"),
    ):
        with pytest.raises(SystemExit):
            evaluated(world, *more)
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
