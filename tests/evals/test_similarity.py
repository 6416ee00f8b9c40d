"""Similarity of ITDA dictionaries: the sets by hand, chance by simulation, layers that are found again, and the command."""

import json

import numpy as np
import pytest
import torch

from evals.similarity import chance, similar
from vsae import cli
from vsae.interop.convert import convert
from vsae.tables import Origin

from .planted_store import store_of


def origins(*pairs):
    return [Origin(key, position, 0) for key, position in pairs]


A, B, C = origins(("x", 0), ("x", 1), ("y", 0)), origins(("x", 1), ("y", 0), ("z", 9), ("z", 8)), origins(("w", 0))


def test_it_is_jaccards_index_of_keys_and_positions():
    found = similar([A, B, C], None, 100, resamples=200)
    values = [[each.value for each in row] for row in found.table]
    assert values == [[1, 2 / 5, 0], [2 / 5, 1, 0], [0, 0, 1]] and found.sizes == ((3, 4, 1), (3, 4, 1))
    assert found.mean.value == pytest.approx((2 / 5 + 0 + 0) / 3) and found.accuracy is None
    low, high = found.table[0][1].interval
    assert 0 <= low < 2 / 5 < high <= 1 and found.table[0][2].interval == (0, 0)
    again = similar([A[::-1], B, C], None, 100, resamples=200)  # an order says nothing, a seed all
    assert again == found


def test_the_floor_is_what_random_rows_share():
    rng, n = np.random.default_rng(0), 200
    shared = []
    for _ in range(400):
        a, b = (set(rng.choice(n, size, replace=False).tolist()) for size in (40, 70))
        shared.append(len(a & b) / len(a | b))
    assert chance(40, 70, n) == pytest.approx(np.mean(shared), abs=0.01)
    assert chance(n, n, n) == 1  # who takes everything agrees with everyone


def test_matching_counts_counterparts_and_its_floor_is_one_in_n():
    layers = [origins(*[(f"{layer}{i}", 0) for i in range(50)]) for layer in "abc"]
    noisy = [part[:40] + origins(*[(f"q{n}{i}", 0) for i in range(10)]) for n, part in enumerate(layers)]
    found = similar(layers, noisy, 1000, resamples=100)
    assert found.accuracy.value == 1 and found.accuracy.floor == pytest.approx(1 / 3)
    assert [found.table[i][i].value for i in range(3)] == [40 / 60] * 3 and found.table[0][1].value == 0
    assert similar(layers, noisy[1:] + noisy[:1], 1000, resamples=100).accuracy.value == 0


def test_mistakes_are_sentences():
    with pytest.raises(ValueError, match="two dictionaries or more"):
        similar([A], None, 10)
    with pytest.raises(ValueError, match="4 atoms, but 3 rows were offered"):
        similar([A, B], None, 3)


def test_as_a_person_types_it(tmp_path, capsys):
    """Two 'models' that are rotations of each other choose the same patches; a third sees other things."""
    torch.manual_seed(0)
    x = torch.randn(120, 5, 6) @ torch.diag(torch.tensor([2.0, 1.5, 1, 0.5, 0.2, 0.1]))
    sites = {"a": x, "turned": x @ torch.linalg.qr(torch.randn(6, 6)).Q, "other": torch.randn(120, 5, 6)}
    store = store_of(tmp_path / "store", {name: (values, [0] * 5) for name, values in sites.items()})
    paths = {name: tmp_path / name for name in sites}
    options = ["--sae.k", "2", "--sae.tau", "0.02", "--training.batch-size", "100", "--training.tracker", "none"]
    for name, path in paths.items():
        where = ["--store", str(store.path), "--site", name, "--out", str(path), "--val-share", "0"]
        cli.main(["train", "--recipe", "itda", *where, *options])
    cli.main(["eval", "similarity", *map(str, paths.values()), "--out", str(tmp_path / "found")])
    result = json.loads((tmp_path / "found/result.json").read_text())
    values = [[each["value"] for each in row] for row in result["details"]["table"]]
    assert values[0][1] > 0.85 > 0.6 > values[0][2] and result["n"] == {"runs": 3, "rows offered": 600}
    assert (tmp_path / "found/similarity.png").is_file() and 0 < result["floor"] < 0.5
    assert "rows chosen at random" in " ".join(capsys.readouterr().out.split())

    # a shifted patch is another patch, unless it is said
    both = ["eval", "similarity", str(paths["a"]), "--against", str(paths["turned"]), "--out", str(tmp_path / "more")]
    cli.main([*both, "--prefixes", "0", "1"])
    assert json.loads((tmp_path / "more/result.json").read_text())["value"] < 0.5

    convert(paths["a"], tmp_path / "theirs", "itda")
    convert(tmp_path / "theirs", tmp_path / "back")
    back = ["eval", "similarity", str(paths["a"]), str(tmp_path / "back"), "--out", str(tmp_path / "back/found")]
    cli.main(back)
    assert json.loads((tmp_path / "back/found/result.json").read_text())["value"] == 1
    capsys.readouterr()
    for wrong, sentence in (
        ([str(tmp_path / "back"), str(tmp_path / "back")], "does not say how many rows it was grown on: give --rows"),
        ([str(paths["a"]), str(paths["other"]), "--prefixes", "1"], "1 prefixes are given for 2 runs"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["eval", "similarity", *wrong])
        assert sentence in " ".join(capsys.readouterr().err.split())
