"""Run directories: what is saved is what is loaded, and a directory that is not sound says which file and why."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import vsae
from vsae.run import Run, save_run
from vsae.sae import SAE
from vsae.sparsifiers import ReLU, Threshold, TopK

D, N = 8, 24


def rows(n=300, seed=0):
    return 3 + torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def sae(sparsifier, seed=1):
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(N, D, generator=draw)
    return SAE.from_weights(weight.T / D, torch.randn(N, generator=draw) / 9, weight, rows().mean(0), sparsifier)


SPARSIFIERS = [TopK(5), ReLU(), Threshold(torch.tensor(0.3)), Threshold(torch.linspace(0, 1, N))]
META = {"fingerprint": {"model": {"name": "m"}, "site": "blocks.2", "side": "input"}, "metrics": {"val": None}}


@pytest.fixture
def saved(tmp_path):
    save_run(tmp_path, sae(TopK(5)), rows(), META)
    return tmp_path


@pytest.mark.parametrize("sparsifier", SPARSIFIERS, ids=["topk", "relu", "threshold", "thresholds"])
def test_loading_gives_back_the_same_codes_and_reconstructions(sparsifier, tmp_path):
    original, x = sae(sparsifier), rows(100, 5)
    save_run(tmp_path, original, rows(), META)
    loaded = Run.load(tmp_path).sae
    assert torch.equal(loaded.encode(x).dense(N), original.encode(x).dense(N))
    assert torch.equal(loaded(x).x_hat, original(x).x_hat)
    assert torch.equal(SAE.load(tmp_path)(x).x_hat, original(x).x_hat)


def test_files_have_the_names_and_shapes_others_rely_on(saved):
    weights = load_file(saved / "sae_weights.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    assert shapes == {"W_enc": (D, N), "b_enc": (N,), "W_dec": (N, D), "b_dec": (D,)}
    assert load_file(saved / "self_check.safetensors")["rows"].shape == (256, D)
    meta = json.loads((saved / "run.json").read_text())
    assert meta["schema"] == 1 and meta["self_check"]["n"] == 256 and meta["self_check"]["nmse_floor"] == 1.0
    assert not list(saved.glob(".*partial"))
    assert len({path.stat().st_mode for path in saved.iterdir()}) == 1, "safetensors alone would let nobody else read"


def test_the_self_check_is_the_nmse_of_its_rows(saved):
    x, original = rows()[:256], sae(TopK(5))
    error = (x - original(x).x_hat).double().square().sum()
    expected = error / (x.double() - x.double().mean(0)).square().sum()
    meta = Run.load(saved).meta
    assert meta["self_check"]["nmse"] == pytest.approx(float(expected), rel=1e-6)
    assert meta["self_check"]["l0"] == float((original.encode(x).values != 0).sum() / 256)


def test_saving_twice_gives_equal_bytes(saved, tmp_path):
    again = tmp_path / "again"
    again.mkdir()
    save_run(again, sae(TopK(5)), rows(), META)
    for name in ("run.json", "cfg.json", "sae_weights.safetensors", "self_check.safetensors"):
        assert (saved / name).read_bytes() == (again / name).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_self_check_allows_for_other_numbers(saved, dtype):
    assert Run.load(saved, dtype=dtype).sae.b_dec.dtype == dtype


def rewrite(path, change):
    meta = json.loads((path / "run.json").read_text())
    change(meta)
    (path / "run.json").write_text(json.dumps(meta))


def test_a_failing_self_check_is_refused_unless_told_otherwise(saved):
    rewrite(saved, lambda meta: meta["self_check"].update(nmse=meta["self_check"]["nmse"] + 0.05))
    with pytest.raises(ValueError, match=r"fails its self-check: nmse on its own 256 rows.*--no-self-check"):
        Run.load(saved)
    assert Run.load(saved, self_check=False).sae.n_latents == N


def test_sparsity_is_checked_too(saved):
    rewrite(saved, lambda meta: meta["sae"]["sparsifier"].update(k=6))
    with pytest.raises(ValueError, match="fails its self-check"):
        Run.load(saved)


def test_weights_from_elsewhere_are_named_even_without_the_self_check(saved):
    weights = load_file(saved / "sae_weights.safetensors")
    save_file({name: tensor * 1.0001 for name, tensor in weights.items()}, saved / "sae_weights.safetensors")
    with pytest.raises(ValueError, match=r"sae_weights\.safetensors is not the file this run was saved with"):
        Run.load(saved, self_check=False)


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "self_check.safetensors"])
def test_truncated_and_missing_files_are_named(saved, name):
    (saved / name).write_bytes((saved / name).read_bytes()[:100])
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        Run.load(saved)
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing"):
        Run.load(saved)


def test_directories_that_hold_no_finished_run_are_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        Run.load(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(FileNotFoundError, match="a run that is not finished: repeat the command"):
        Run.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "not readable JSON"),
        ("[1]", "not the description of a run"),
        ('{"schema": 99}', "newer vsae"),
        ('{"schema": 1}', "lacks fingerprint, sae, self_check, weights"),
    ],
)
def test_a_description_that_is_not_one_is_said(saved, content, sentence):
    (saved / "run.json").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        Run.load(saved)


def test_rows_that_do_not_vary_cannot_be_a_self_check(tmp_path):
    with pytest.raises(ValueError, match="all alike"):
        save_run(tmp_path, sae(TopK(5)), torch.ones(4, D), META)


def test_importing_vsae_is_cheap():
    heavy = "{'torch', 'numpy', 'transformers', 'diffusers', 'matplotlib', 'accelerate', 'sklearn'}"
    code = f"import sys, vsae, vsae.training.config; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_public_name_is_there():
    for name in vsae.__all__:
        assert getattr(vsae, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = vsae.trian
