"""ITDA's files, made by hand as its paper and a fork of its code have them (it is not on PyPI); `pursuit` is its encoding, said again."""

import pytest
import torch

from vsae import interop
from vsae.files import read_json
from vsae.interop.convert import convert
from vsae.sparsifiers import TopK
from vsae.tables import read_origins

D, N, K = 12, 48, 4


@pytest.fixture
def saved(tmp_path, weights):
    torch.save(weights[2], tmp_path / "atoms.pt")
    torch.save(torch.stack([torch.arange(N), torch.arange(N) + 7], 1), tmp_path / "atom_indices.pt")
    (tmp_path / "metadata.yaml").write_text("k: 4\nmodel_name: gpt2\n")
    return tmp_path


def pursuit(x, atoms):
    code, residual = torch.zeros(len(x), len(atoms)), x.clone()
    for _ in range(K):
        c = residual @ atoms.T
        j = c.abs().argmax(1)
        rows = torch.arange(len(x))
        code[rows, j] += c[rows, j]
        residual -= c[rows, j, None] * atoms[j]
    return code


def test_it_computes_the_same_here_and_goes_back(saved, weights, x, tmp_path):
    found = interop.read(saved)
    code, atoms = pursuit(x, weights[2]), weights[2]
    output = found.sae(x)
    assert (code < 0).any()
    torch.testing.assert_close(output.code.dense(N), code, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.x_hat, code @ atoms, atol=1e-5, rtol=1e-5)
    assert found.format == "itda" and found.model == "gpt2" and found.origins[3] == ("3", 10, 3)
    interop.write(found.sae, tmp_path / "again", "itda", origins=found.origins)
    theirs = torch.load(tmp_path / "again" / "atom_indices.pt", weights_only=True)
    assert torch.equal(theirs, torch.load(saved / "atom_indices.pt", weights_only=True)) and theirs.dtype == torch.int64
    torch.testing.assert_close(interop.read(tmp_path / "again").sae(x).x_hat, output.x_hat, atol=1e-6, rtol=1e-6)


def test_where_atoms_are_from_survives_both_ways(saved, tmp_path):
    convert(saved, tmp_path / "run")
    assert read_origins(tmp_path / "run")[3] == ("3", 10, 3)
    assert "origins" not in read_json(tmp_path / "run" / "run.json")["imported"]
    convert(tmp_path / "run", tmp_path / "theirs", "itda")
    for name in ("atoms.pt", "atom_indices.pt"):
        ours, theirs = (torch.load(path / name, weights_only=True) for path in (tmp_path / "theirs", saved))
        torch.testing.assert_close(ours, theirs)
    (saved / "atom_indices.pt").unlink()  # nothing is made up
    convert(saved, tmp_path / "mute")
    convert(tmp_path / "mute", tmp_path / "mutes", "itda")
    assert not (tmp_path / "mute" / "atoms.parquet").exists() and not (tmp_path / "mutes" / "atom_indices.pt").exists()


def test_what_is_wrong_is_said(saved, weights, make):
    with pytest.raises(ValueError, match="itda knows signed matching pursuit of unit atoms alone"):
        interop.write(make(TopK(3)), saved / "x", "itda")
    torch.save(torch.zeros(N, 3), saved / "atom_indices.pt")
    with pytest.raises(ValueError, match=r"is \[48, 3\], not two numbers for each of 48 atoms"):
        interop.read(saved)
    (saved / "metadata.yaml").unlink()
    with pytest.raises(ValueError, match="does not say what k is"):
        interop.read(saved)
    torch.save(3 * weights[2], saved / "atoms.pt")
    with pytest.raises(ValueError, match="are not of unit norm"):
        interop.read(saved, k=3)
    torch.save([1], saved / "atoms.pt")
    with pytest.raises(ValueError, match="holds a list, where a Tensor should be"):
        interop.read(saved, k=3)
