"""ITDA: the rule by a slow one, what its atoms are, and the similarity of dictionaries."""

import dataclasses

import pytest
import torch

import vsae
from vsae.activations.memory import TensorSource
from vsae.activations.source import Batch
from vsae.itda import Growing, error_of, fit, frequent, matched, similarity
from vsae.pursuit import MatchingPursuit
from vsae.recipes import FIXED, ITDA
from vsae.run import Run
from vsae.tables import Origin, read_origins

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = vsae.TrainConfig(batch_size=64, tracker="none", init_rows=400)


def batches(x, size=50):
    for rows in torch.arange(len(x)).split(size):
        yield Batch(x[rows], torch.zeros(len(rows), dtype=torch.uint8), rows // 4, (rows % 4).int())


def rank_two(n=300, d=8):
    return torch.randn(n, 2) @ torch.randn(2, d)


@pytest.mark.parametrize(("error", "tau"), [("cosine_mse", 0.01), ("mse", 2.0)])
def test_it_grows_as_the_slow_rule_does(error, tau):
    """Row by row, with a pursuit written out; atoms in the order in which they came."""
    x, k = torch.randn(120, 6), 2
    x[3], x[40] = x[0], 2.5 * x[1]  # one row twice, and a direction twice
    growing = fit(batches(x), 6, k=k, tau=tau, error=error)
    atoms: list[torch.Tensor] = []
    origins: list[tuple[str, int]] = []

    def explained(row):
        left, x_hat = row.clone(), torch.zeros_like(row)
        for _ in range(min(k, len(before))):
            c = torch.stack(before) @ left
            j = int(c.abs().argmax())
            left, x_hat = left - c[j] * before[j], x_hat + c[j] * before[j]
        return x_hat

    def add(row, at):
        unit = row / row.norm()
        if all(float(unit @ atom) < 1 - 1e-6 for atom in atoms):
            atoms.append(unit)
            origins.append((str(at // 4), at % 4))

    for start in range(0, 120, 50):
        rows = x[start : start + 50]
        if len(atoms) < 6:
            counts = [sum(bool((row == other).all()) for other in rows) for row in rows]
            firsts = [i for i in range(len(rows)) if not any(bool((rows[i] == rows[j]).all()) for j in range(i))]
            for i in sorted(firsts, key=lambda i: -counts[i])[: 6 - len(atoms)]:
                add(rows[i], start + i)
        before = list(atoms)
        for i, row in enumerate(rows):
            x_hat = explained(row)
            if error == "mse":
                e = float((row - x_hat).square().sum())
            else:
                e = float((row / row.norm() - x_hat / x_hat.norm()).square().mean())
            if e > tau:
                add(row, start + i)
    torch.testing.assert_close(growing.atoms, torch.stack(atoms))
    assert [(each.key, each.position) for each in growing.origins()] == origins and origins[0] == ("0", 0)
    assert all(each.key == str(each.sample) for each in growing.origins()) and 6 < len(atoms) < 110


def test_atoms_are_the_rows_they_say_they_are_and_codes_signed():
    x = torch.randn(200, 6)
    growing = fit(batches(x), 6, k=3, tau=0.02)
    rows = x[[4 * int(key) + position for key, position, _ in growing.origins()]]
    torch.testing.assert_close(growing.atoms, torch.nn.functional.normalize(rows, dim=1))
    sae = growing.sae()
    assert isinstance(sae.encoder, MatchingPursuit) and sae.capabilities.signed and sae.capabilities.linear_decoder
    codes, x_hat = sae.encode(x), sae(x).x_hat
    assert (codes.values < 0).any() and (error_of(x, x_hat, "cosine_mse") <= 0.2).all()
    back = sae(-x)
    torch.testing.assert_close(back.x_hat, -x_hat)


def test_data_of_low_rank_need_no_more_atoms_than_seeds_and_a_lower_tau_more():
    x = rank_two()
    sizes = [len(fit(batches(x), 8, k=1, tau=tau).atoms) for tau in (0.5, 1e-3, 1e-5)]
    assert sizes[0] == 8 < sizes[1] < sizes[2] < len(x)
    assert len(fit(batches(x), 8, k=20, tau=1e-6).atoms) == 8  # twenty steps explain a plane


def test_no_more_than_most_and_rows_of_zeros_are_passed_over():
    x = torch.randn(200, 6)
    x[:3] = 0
    growing = fit(batches(x), 6, tau=0.0, most=17, k=1)
    assert len(growing.atoms) == 17 and growing.origins()[0] == ("0", 3, 0)
    with pytest.raises(ValueError, match="no row has become an atom"):
        fit(batches(torch.zeros(10, 6)), 6).sae()


def test_frequent_rows_by_hand():
    x = torch.tensor([[1.0, 0], [0, 1], [1, 0], [2, 2], [0, 1], [1, 0]])
    first, counts = frequent(x)
    assert first.tolist() == [0, 1, 3] and counts.tolist() == [3, 2, 1]


def test_similarity_is_jaccards_and_matching_counts_strict_winners():
    a = [Origin("x", 0, 0), Origin("x", 1, 0), Origin("y", 0, 1)]
    b = [
        Origin("x", 1, 7),
        Origin("y", 0, 8),
        Origin("z", 9, 9),
        Origin("z", 8, 9),
    ]  # numbered otherwise, the same keys
    assert similarity(a, b) == similarity(b, a) == 2 / 5 and similarity(a, a) == 1 and similarity(a, b[2:]) == 0
    assert similarity([], []) != similarity([], [])
    table = torch.tensor([[0.9, 0.1, 0.2], [0.3, 0.2, 0.1], [0.1, 0.5, 0.5]])
    assert matched(table) == pytest.approx(1 / 3)


def test_layers_that_see_the_same_geometry_are_matched():
    """Two 'models' with two layers each: rotations of the same rows choose the same atoms, other rows do not."""
    layers = [torch.randn(400, 6) @ torch.diag(torch.rand(6) ** 2 + 0.05) for _ in range(2)]
    turned = [x @ torch.linalg.qr(torch.randn(6, 6)).Q for x in layers]
    ours, theirs = ([fit(batches(x), 6, k=2, tau=0.03).origins() for x in each] for each in (layers, turned))
    table = torch.tensor([[similarity(a, b) for b in theirs] for a in ours])
    print(table)
    assert matched(table) == 1 and (table.diagonal() > 0.9).all()


@pytest.mark.parametrize("name", FIXED)
def test_every_fixed_recipe_ends_in_a_run_directory(tmp_path, name):
    x = torch.randn(400, 3).abs() @ torch.randn(3, 8) + 0.05 * torch.randn(400, 8)
    fields = FIXED[name].__dataclass_fields__
    sizes = {"n_latents": 5} | ({"k": 2} if name != "kmeans" else {})
    sizes |= {"iterations": 20} if "iterations" in fields else {}
    recipe = FIXED[name](**sizes)
    val = TensorSource(torch.randn(100, 3).abs() @ torch.randn(3, 8))
    run = vsae.train(TensorSource(x), recipe, tmp_path / "run", CONFIG, val, progress=False)
    assert run.sae.n_latents == 5 and run.meta["recipe"]["name"] == name and recipe.__doc__
    assert run.meta["metrics"]["val"]["l0"] <= 2 and run.meta["training"] == {
        "steps": 0,
        "tokens": run.meta["training"]["tokens"],
    }
    again = vsae.train(TensorSource(x), recipe, tmp_path / "run", CONFIG, val, progress=False)
    assert torch.equal(again.sae(x).x_hat, run.sae(x).x_hat)
    with pytest.raises(ValueError, match=r"holds another run; what differs: config\.seed"):
        vsae.train(TensorSource(x), recipe, tmp_path / "run", dataclasses.replace(CONFIG, seed=1), val, progress=False)
    if name == "itda":
        origins = read_origins(run.path)
        rows = torch.nn.functional.normalize(x[[each.sample for each in origins]], dim=1)
        torch.testing.assert_close(rows, Run.load(run.path).sae.atoms)
    else:
        with pytest.raises(FileNotFoundError, match="does not say where its atoms are from"):
            read_origins(run.path)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Growing(4, error="l1"), "there is no error 'l1'"),
        (lambda: Growing(4, tau=-1.0), "tau is -1"),
        (lambda: ITDA(k=None), "give k"),
        (lambda: ITDA(tau=-1.0), "tau -1"),
        (lambda: FIXED["kmeans"](k=2), "k is 2"),
        (lambda: FIXED["pca"](n_latents=4, k=5), "k is 5, but n_latents is 4"),
        (lambda: FIXED["snmf"](share=2.0), "share is 2"),
    ],
)
def test_mistakes_are_sentences(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
