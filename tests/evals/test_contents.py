"""Planted differences and planted company are found, nothing else is, and the counts are those of slow loops."""

import json

import numpy as np
import pytest
import torch
from scipy.sparse import csc_array
from scipy.stats import binomtest, hypergeom

from evals import contents
from evals.contents_runs import evaluate, table
from vsae import cli
from vsae.run import save_run

from .planted_store import run_of, store_of


def planted(n=400, m=300, seed=0):
    """Latent 0 is commoner in the first, 1 in the second, 2 and 3 always together, 39 dead, 38 everywhere."""
    rng = np.random.default_rng(seed)
    first, second = rng.random((n, 40)) < 0.2, rng.random((m, 40)) < 0.2
    first[:, 0], second[:, 0] = rng.random(n) < 0.6, rng.random(m) < 0.1
    first[:, 1], second[:, 1] = rng.random(n) < 0.1, rng.random(m) < 0.4
    for each in (first, second):
        each[:, 3] = each[:, 2]
        each[:, 39], each[:, 38] = False, True
    return csc_array(first.astype(float)), csc_array(second.astype(float))


def test_planted_differences_are_found_and_halves_have_none():
    first, second = planted()
    found = contents.differences(first, second)
    assert np.flatnonzero(found.found()).tolist() == [0, 1] and found.order()[:2].tolist() == [0, 1]
    assert found.difference[0] == pytest.approx(0.5, abs=0.1) and found.difference[1] == pytest.approx(-0.3, abs=0.1)
    assert np.isnan(found.q[39]) and found.p[38] == 1 and found.samples == (400, 300)
    assert contents.halves(first, second) <= 0.02
    back = contents.differences(second, first)
    np.testing.assert_allclose(back.p, found.p, rtol=1e-9)
    np.testing.assert_allclose(back.difference, -found.difference)


def test_p_is_that_of_a_slow_count_and_order_and_size_do_not_matter():
    first, second = planted(20, 15)
    found, a, b = contents.differences(first, second, min_samples=1), first.toarray() > 0, second.toarray() > 0
    for k in range(38):
        x, total = int(a[:, k].sum()), int(a[:, k].sum() + b[:, k].sum())
        masses = [hypergeom.pmf(i, 35, total, 20) for i in range(total + 1)]
        if total:
            assert found.p[k] == pytest.approx(min(1, 2 * min(sum(masses[: x + 1]), sum(masses[x:]))))
    order = np.random.default_rng(1).permutation(20)
    again = contents.differences(csc_array(first.toarray()[order] * 7), second, min_samples=1)
    np.testing.assert_allclose(again.p, found.p)
    negative = csc_array(-first.toarray())
    assert contents.differences(negative, second, min_samples=1).first.max() == 0  # only positive scores are active


def test_under_the_null_p_is_no_smaller_than_it_says():
    rng = np.random.default_rng(0)
    first, second = (csc_array((rng.random((200, 1000)) < 0.3).astype(float)) for _ in range(2))
    p = contents.differences(first, second).p
    assert binomtest(int((p < 0.05).sum()), 1000, 0.05, "greater").pvalue > 0.01 and (p < 0.05).mean() > 0.02


def test_company_is_found_and_its_floor_is_what_permuted_samples_have():
    first, _ = planted()
    found = contents.together(first)
    assert found.pairs[0].tolist() == [2, 3] and found.npmi[0] == pytest.approx(1) and (found.npmi[1:] < 1).all()
    assert found.floor < 0.5 and (found.npmi[1:] <= found.floor + 0.2).all()
    assert 38 not in found.pairs and 39 not in found.pairs
    fired = first.toarray() > 0
    for (i, j), value, n in zip(found.pairs.tolist(), found.npmi.tolist(), found.samples.tolist(), strict=True):
        both = (fired[:, i] & fired[:, j]).mean()
        assert value == pytest.approx(np.log(both / (fired[:, i].mean() * fired[:, j].mean())) / -np.log(both))
        assert n == (fired[:, i] & fired[:, j]).sum()
    none = contents.together(csc_array((50, 3)))
    assert none.pairs.shape == (0, 2) and np.isnan(none.floor)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home, rng = tmp_path_factory.mktemp("contents"), np.random.default_rng(0)
    for name, much in (("a", 5), ("b", 1)):
        x = torch.zeros(200, 3, 8)
        thing = rng.integers(0, 8, (200, 3))
        thing[rng.random((200, 3)) < 0.1 * much] = 2
        x[torch.arange(200)[:, None], torch.arange(3)[None], torch.from_numpy(thing)] = 1.0
        store = store_of(home / name, {"layer": (x, [0, 0, 0])})
    run = run_of(home / "run", store.site(), torch.eye(8), kinds=["patch"])
    (home / "run").mkdir()
    save_run(home / "run", run.sae, store.site().read(0, 64).values, run.meta)
    (home / "names.json").write_text(json.dumps({"2": "moustache"}))
    return home


def test_as_a_person_types_it(home, capsys):
    names = ["--names", str(home / "names.json"), "--resamples", "20"]
    cli.main(["eval", "contents", str(home / "run"), str(home / "a"), str(home / "b"), *names])
    out = home / "run/eval/contents"
    written = json.loads((out / "result.json").read_text())
    rows = {row["latent"]: row for row in written["details"]["differences"]}
    assert rows[2]["name"] == "moustache" and rows[2]["difference"] > 0.3 and rows[2]["q"] < 1e-6
    assert (
        written["details"]["differences"][0]["latent"] == 2 and rows[2]["low"] < rows[2]["difference"] < rows[2]["high"]
    )
    assert written["floor"] < 0.1 and written["n"]["first"] == written["n"]["second"] == 200
    assert (out / "contents.png").read_bytes().startswith(b"\x89PNG") and "moustache" in capsys.readouterr().out


def test_batches_do_not_matter_and_mistakes_are_sentences(home, tmp_path, capsys):
    from vsae.reading import opened

    run, first = opened(home / "run", home / "a")
    second = opened(home / "run", home / "b")[1]
    found = [evaluate(run, first, second, tmp_path / str(size), resamples=0, batch_size=size) for size in (7, 4096)]
    np.testing.assert_array_equal(found[0].differences.p, found[1].differences.p)
    assert table(found[0]).row_count >= 1
    for paths, said in (
        ([home / "run", home / "a"], "needs a run and two stores"),
        ([home / "run", home / "a", home / "a"], "the same store"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["eval", "contents", *map(str, paths)])
        assert said in capsys.readouterr().err
    with pytest.raises(ValueError, match="need one SAE"):
        contents.differences(csc_array((3, 2)), csc_array((3, 4)))
    with pytest.raises(ValueError, match="one or more in both"):
        contents.differences(csc_array((3, 2)), csc_array((0, 2)))
