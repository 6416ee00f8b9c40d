"""Gradient pursuit is a slow loop and finds orthogonal codes; norms of errors are predicted where they are related, and not where they are not."""

import json

import numpy as np
import pytest
import torch

from evals.dark_matter_beside import GradientPursuit, line, norms
from vsae import cli
from vsae.run import save_run
from vsae.sae import SAE
from vsae.sparsifiers import TopK

from .planted_store import run_of, store_of
from .test_dark_matter import batches


def slow(x, atoms, steps):
    """One row; as dictionary_learning's grad_pursuit.py does it."""
    w = np.zeros(len(atoms))
    chosen = set()
    for _ in range(steps):
        left = x - w @ atoms
        along = atoms @ left
        chosen = {j for j in range(len(w)) if w[j] != 0} | {int(along.argmax())}
        gradient = np.array([along[j] if j in chosen else 0 for j in range(len(w))])
        moved = gradient @ atoms
        w = np.maximum(w + gradient * (moved @ left) / (moved @ moved), 0)
    return w


def test_pursuit_is_the_slow_loop_and_solves_orthogonal_atoms():
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(30, 10, generator=generator, dtype=torch.float64), dim=1)
    x, bias = torch.randn(20, 10, generator=generator, dtype=torch.float64), torch.full((10,), 0.3, dtype=torch.float64)
    pursuit = GradientPursuit(atoms, bias, 5)
    code = pursuit.encode(x)
    dense = np.array([slow(row, atoms.numpy(), 5) for row in (x - bias).numpy()])
    np.testing.assert_allclose(code.dense(30).numpy(), dense, atol=1e-10)
    np.testing.assert_allclose(pursuit.decode(code).numpy(), dense @ atoms.numpy() + 0.3, atol=1e-10)
    basis = torch.linalg.qr(torch.randn(10, 10, generator=generator, dtype=torch.float64))[0]
    truth = torch.zeros(4, 10, dtype=torch.float64)
    truth[:, [1, 7]] = torch.tensor([2.0, 1.0]).double()
    truth[3] = 0
    # exact only at the limit: the line search moves both coefficients at once
    found = GradientPursuit(basis, torch.zeros(10).double(), 8).encode(truth @ basis).dense(10)
    torch.testing.assert_close(found, truth, atol=1e-6, rtol=0)


def test_it_is_no_worse_than_the_encoder_it_stands_for():
    """A coherent dictionary: one look along the atoms is worse than pursuit with the same atoms and the same number."""
    generator = torch.Generator().manual_seed(1)
    atoms = torch.nn.functional.normalize(torch.randn(40, 8, generator=generator) + 0.7, dim=1)
    store = (torch.rand(200, 40, generator=generator) * (torch.rand(200, 40, generator=generator) < 0.07)) @ atoms

    sae = SAE.from_weights(atoms.T.contiguous(), torch.zeros(40), atoms, torch.zeros(8), TopK(3))
    pursuit = GradientPursuit.of(sae, 3)
    torch.testing.assert_close(pursuit.bias, torch.zeros(8))
    left = [(store - each.decode(each.encode(store))).square().sum() for each in (sae, pursuit)]
    assert left[1] < 0.5 * left[0]


class Leaves:
    """A code whose error has the given norms, row by row: x's first entry picks the row."""

    def __init__(self, size):
        self.size, self.atoms, self.n_latents = size, torch.ones(1, 2).double(), 1

    def encode(self, x):
        return x

    def decode(self, x):
        e = torch.zeros_like(x)
        e[:, 1] = self.size[x[:, 0].long()]
        return x - e


def test_related_norms_are_predicted_and_others_are_not():
    rng, n = np.random.default_rng(0), 600
    size = torch.from_numpy(rng.uniform(1, 2, n))
    noise = torch.from_numpy(rng.uniform(1, 2, n))
    x = torch.stack([torch.arange(n), torch.zeros(n)], 1).double()
    kinds, samples = torch.zeros(n, dtype=torch.uint8), torch.arange(n)

    def part(rows, by):
        return batches(x[rows], kinds[rows], samples[rows], by)

    codes = {"line": Leaves(0.5 * size + 0.2), "half": Leaves(size + noise), "noise": Leaves(noise), "flat": Leaves(torch.ones(n).double())}  # fmt: skip
    found = norms(Leaves(size), codes, part(slice(0, 300), 70), part(slice(300, n), 70))
    assert found["line"].value == pytest.approx(1) and abs(found["line"].floor) < 0.05
    assert found["half"].value == pytest.approx(0.5, abs=0.1) and found["half"].interval[0] < found["half"].value
    assert abs(found["noise"].value) < 0.05 and found["flat"].value is None
    again = norms(Leaves(size), codes, part(slice(0, 300), 300), part(slice(300, n), 11))
    assert again["half"].value == pytest.approx(found["half"].value)
    slope, offset = np.polyfit(size[:300], (size + noise)[:300], 1)
    assert line(size[:300].numpy(), (size + noise)[:300].numpy()) == pytest.approx((slope, offset))
    new, guess = (size + noise)[300:].numpy(), slope * size[300:].numpy() + offset
    r2 = 1 - ((new - guess) ** 2).sum() / ((new - (size + noise)[:300].numpy().mean()) ** 2).sum()
    assert found["half"].value == pytest.approx(r2)
    assert line(np.ones(5), np.arange(5.0)) == (0.0, 2.0)


def test_as_a_person_types_it(tmp_path, capsys):
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((200, 2, 6))).float()
    store = store_of(tmp_path / "store", {"layer": (x, [0, 0])})
    for name, n in (("small", 6), ("large", 18)):
        atoms = torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((n, 6))).float(), dim=1)
        run = run_of(tmp_path / name, store.site(), atoms, k=2, kinds=["patch"])
        (tmp_path / name).mkdir()
        save_run(tmp_path / name, run.sae, store.site().read(0, 64).values, run.meta)
    more = ["--others", str(tmp_path / "large"), "--pursuit", "--resamples", "10"]
    cli.main(["eval", "dark_matter", str(tmp_path / "small"), str(tmp_path / "store"), *more])
    details = json.loads((tmp_path / "small/eval/dark_matter/result.json").read_text())["details"]
    assert details["pursuit"]["total"]["fvu"]["value"] < details["total"]["fvu"]["value"]
    [(name, found)] = details["norms"].items()
    assert name.endswith("large") and found["floor"] < found["value"] < 1
    printed = capsys.readouterr().out
    assert "pursuit" in printed and "norm of the error" in printed
