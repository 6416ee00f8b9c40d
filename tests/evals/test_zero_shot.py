"""Known answers of the notes: alpha 0 is the plain score to the bit; one-hot codes of the true class win; random codes are not chosen."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from evals.zero_shot import ALPHAS, Side, accuracy, best, code_cosines, cosines, deranged, evaluate, hits, scores

C, D = 6, 16


def images(n, code, seed, noise=0.55):
    """Embeddings near their class's, and codes: "true" one-hot in the class, "random" one-hot anywhere."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, C, n)
    x = np.eye(C, D)[truth] + noise * rng.standard_normal((n, D))
    hot = truth if code == "true" else rng.integers(0, C, n)
    return Side(x, csr_array((np.ones(n), (np.arange(n), hot)), shape=(n, C))), truth


CLASSES = Side(np.eye(C, D), csr_array(np.eye(C)))


def test_alpha_0_is_the_plain_score_to_the_bit():
    side, _ = images(50, "true", 0)
    assert np.array_equal(scores(side, CLASSES, 0.0), cosines(side.x, CLASSES.x))


def test_codes_of_the_true_class_are_right_at_a_large_alpha():
    side, truth = images(300, "true", 1)
    assert accuracy(scores(side, CLASSES, 1e6), truth) == 1
    val, test = images(300, "true", 2), images(300, "true", 3)
    found = evaluate(CLASSES, *val, *test)
    assert found.alpha >= 0.5 and found.enhanced.value > 0.99 > found.plain.value and found.gain.interval[0] > 0
    assert found.gain.value == pytest.approx(found.enhanced.value - found.plain.value)
    assert found.codes_alone.value == 1 and found.plain.floor == pytest.approx(np.bincount(test[1]).max() / 300)
    assert found.control.value <= 0.02  # exchanged codes help nobody


def test_random_codes_get_a_small_alpha_and_no_gain():
    found = evaluate(CLASSES, *images(4000, "random", 4), *images(2000, "random", 5))
    assert found.alpha <= 0.05 and abs(found.gain.value) < 0.02
    assert found.codes_alone.value == pytest.approx(1 / C, abs=0.03)


def test_the_test_images_do_not_choose_alpha():
    val, test = images(200, "random", 6), images(200, "true", 7)
    assert evaluate(CLASSES, *val, *test).alpha == evaluate(CLASSES, *val, *images(50, "random", 8)).alpha
    assert set(evaluate(CLASSES, *val, *test).curve) == set(ALPHAS)


def test_ties_share_a_hit_and_empty_codes_say_nothing():
    s = np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    np.testing.assert_allclose(hits(s, np.array([0, 0, 2])), [0.5, 0, 1 / 3])
    assert accuracy(np.zeros((30, 5)), np.arange(30) % 5) == pytest.approx(0.2)
    a = csr_array(np.array([[0.0, 0.0], [3.0, 4.0]]))
    np.testing.assert_allclose(code_cosines(a, a), [[0, 0], [0, 1]])
    assert best({0.0: 0.5, 0.1: 0.7, 1.0: 0.7}) == 0.1


def test_exchanged_classes_leave_none_in_place():
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(7)
        found = deranged(order)
        assert sorted(found) == list(range(7)) and (found != np.arange(7)).all()


def test_it_needs_classes_and_images():
    side, truth = images(5, "true", 0)
    with pytest.raises(ValueError, match="1 classes, 5 validation and 5 test images"):
        evaluate(Side(CLASSES.x[:1], CLASSES.h[:1]), side, truth, side, truth)


def test_the_command_on_the_rendered_world(tmp_path, capsys):
    from modalities import microworld
    from vsae import cli
    from vsae.files import read_json

    microworld.write(tmp_path / "scenes", 160, 61_000, counts=(1.0,))
    model = ["--model.family", "clip", "--model.name", str(microworld.path("clip"))]
    pair = ("image_embedding", "text_embedding")
    data, store, run = str(tmp_path / "scenes"), str(tmp_path / "store"), str(tmp_path / "run")
    cli.main(["extract", "--data", data, *model, "--sites", *pair, "--out", store, "--batch-size", "80"])
    train = ["--recipe", "vl_sae", "--site", "+".join(pair), "--sae.n-latents", "64", "--sae.k", "8"]
    train += [
        "--training.tokens",
        "6000",
        "--training.batch-size",
        "256",
        "--training.tracker",
        "none",
        "--training.lr",
        "2e-3",
    ]
    cli.main(["train", "--store", store, *train, "--out", run])
    cli.main(["eval", "zero_shot", run, data, *model, "--phrase", "a {}"])
    found = read_json(tmp_path / "run/eval/zero_shot/result.json")
    details = found["details"]
    assert found["n"]["classes"] == 8 and found["n"]["validation"] + found["n"]["test"] == 160
    assert details["plain"]["value"] > 0.85 and details["plain"]["floor"] < 0.3
    assert found["value"] == pytest.approx(details["enhanced"]["value"] - details["plain"]["value"])
    assert details["alpha"] == best({float(a): v for a, v in details["curve"].items()})
    capsys.readouterr()
    for wrong, said in (
        ([run, str(microworld.path("clip")), *model], "no"),
        ([run, data, *model, "--label", "nothing"], "no field 'nothing'"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["eval", "zero_shot", *wrong])
        assert said in capsys.readouterr().err
