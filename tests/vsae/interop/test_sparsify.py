"""sparsify's own package (eai-sparsify) writes what we read, and loads what we write."""

import json
import os

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its kernels want a GPU

import pytest
import torch
from sparsify import SparseCoder, SparseCoderConfig

from vsae import interop
from vsae.dictionaries import Free
from vsae.encoders import Linear
from vsae.sparsifiers import GroupMax, ReLU, TopK
from vsae.transcoder import Transcoder

D, N, K = 12, 48, 5


def coder(dtype=torch.float32, **options):
    made = SparseCoder(D, SparseCoderConfig(**{"num_latents": N, "k": K} | options), dtype=dtype)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return made


@pytest.mark.parametrize(
    "options",
    [{}, {"activation": "groupmax", "k": 6}, {"transcode": True}, {"transcode": True, "skip_connection": True}],
)
def test_what_they_write_computes_the_same_here(tmp_path, x, options):
    theirs = coder(**options)
    theirs.save_to_disk(tmp_path / "layers.5")
    found = interop.read(tmp_path / "layers.5")
    output, expected = found.sae(x), theirs(x)
    code = torch.zeros(len(x), N).scatter(1, expected.latent_indices, expected.latent_acts)
    torch.testing.assert_close(output.code.dense(N), code, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.x_hat, expected.sae_out, atol=1e-5, rtol=1e-5)
    assert isinstance(found.sae, Transcoder) == ("transcode" in options)
    assert (found.format, found.site) == ("sparsify", "layers.5")


def test_bfloat16_becomes_float32_without_rounding(tmp_path):
    theirs = coder(torch.bfloat16)
    theirs.save_to_disk(tmp_path)
    sae = interop.read(tmp_path).sae
    assert sae.b_dec.dtype == torch.float32
    assert torch.equal(sae.atoms, theirs.W_dec.float())


@pytest.mark.parametrize("sparsifier", [TopK(K), GroupMax(6)])
def test_they_load_what_we_write(tmp_path, make, x, sparsifier):
    ours = make(sparsifier)
    interop.write(ours, tmp_path, "sparsify")
    theirs, output = SparseCoder.load_from_disk(tmp_path)(x), ours(x)
    torch.testing.assert_close(theirs.sae_out, output.x_hat, atol=1e-5, rtol=1e-5)
    code = torch.zeros(len(x), N).scatter(1, theirs.latent_indices, theirs.latent_acts)
    torch.testing.assert_close(output.code.dense(N), code, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("skipping", [False, True])
def test_they_load_transcoders_of_ours_without_their_centre(tmp_path, x, skipping):
    draw = torch.Generator().manual_seed(2)
    shapes = {"weight": (N, D), "bias": (N,), "atoms": (N, D), "b_dec": (D,), "b_in": (D,), "skip": (D, D)}
    t = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    parts = Linear(t["weight"], t["bias"]), TopK(K), Free(t["atoms"], unit_norm=False), t["b_dec"]
    ours = Transcoder(*parts, b_in=t["b_in"], skip=t["skip"] if skipping else None).eval()
    interop.write(ours, tmp_path, "sparsify")
    theirs = SparseCoder.load_from_disk(tmp_path)
    assert theirs.cfg.transcode and theirs.cfg.skip_connection == skipping
    torch.testing.assert_close(theirs(x).sae_out, ours(x).x_hat, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(interop.read(tmp_path).sae(x).x_hat, ours(x).x_hat, atol=1e-4, rtol=1e-5)

    wider = Transcoder(*parts[:2], Free(torch.randn(N, 7), unit_norm=False), torch.zeros(7), b_in=t["b_in"], skip=None)
    with pytest.raises(
        ValueError, match="between sites of one width alone: this one is of Linear and Free, from 12 to 7"
    ):
        interop.write(wider, tmp_path / "wider", "sparsify")


def test_the_model_is_known_from_the_run_above(tmp_path):
    coder().save_to_disk(tmp_path / "layers.5")
    (tmp_path / "config.json").write_text(json.dumps({"model": "HuggingFaceTB/SmolLM2-135M"}))
    assert interop.read(tmp_path / "layers.5").model == "HuggingFaceTB/SmolLM2-135M"


def test_what_there_is_no_counterpart_for_is_said(tmp_path, make):
    coder().save_to_disk(tmp_path / "a")
    cfg = json.loads((tmp_path / "a/cfg.json").read_text())
    (tmp_path / "a/cfg.json").write_text(json.dumps(cfg | {"activation": "softmax"}))
    with pytest.raises(ValueError, match="selects by softmax, which has no counterpart here"):
        interop.read(tmp_path / "a")
    with pytest.raises(ValueError, match="the same as GroupMax: it knows TopK, and GroupMax of groups of one size"):
        interop.write(make(GroupMax(5)), tmp_path / "d", "sparsify")
    coder(skip_connection=True).save_to_disk(tmp_path / "b")
    with pytest.raises(ValueError, match="adds a linear map of x"):
        interop.read(tmp_path / "b")
    with pytest.raises(ValueError, match="the same as ReLU: it knows TopK, and GroupMax"):
        interop.write(make(ReLU()), tmp_path / "c", "sparsify")
