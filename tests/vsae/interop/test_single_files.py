"""saev, OpenAI and GemmaScope: files made by hand from their sources (none of them is on PyPI), and what those compute, said again densely."""

import json

import numpy as np
import pytest
import torch

from vsae import interop
from vsae.interop.parts import SignedTopK
from vsae.run import Run, save_run
from vsae.sparsifiers import AbsTopK, ReLU, Threshold, TopK

D, N, K = 12, 48, 20  # k is so large that some rows have fewer positive pre-activations


def topk(u, k=K):
    return u * (u >= u.topk(k).values[:, -1:])


def saev(path, weights, activation, schema=5, **more):
    W_enc, b_enc, W_dec, b_dec = weights
    cfg = {"d_model": D, "d_sae": N, "activation": activation}
    header = {"schema": schema, "cfg": cfg, "commit": "abc", "lib": "0.3"} if schema else {"d_vit": D, "exp_factor": 4}
    with path.open("wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        torch.save({"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec} | more, file)


SAEV = {
    "Relu": ({}, lambda u: u.relu(), {}),
    "TopK": ({"top_k": K, "aux": {"cls": "AuxK", "params": {}}}, topk, {}),
    "BatchTopK": ({"top_k": K}, lambda u: u * (u > 0.6), {"activation.threshold": torch.tensor(0.6)}),
}


@pytest.mark.parametrize("kind", SAEV)
def test_saev_computes_the_same_here(tmp_path, weights, x, kind):
    params, activate, more = SAEV[kind]
    saev(tmp_path / "sae.pt", weights, {"cls": kind, "params": params}, **more)
    found = interop.read(tmp_path / "sae.pt")
    W_enc, b_enc, W_dec, b_dec = weights
    code = activate(x @ W_enc + b_enc)
    output = found.sae(x)
    torch.testing.assert_close(output.code.dense(N), code, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.x_hat, code @ W_dec + b_dec, atol=1e-5, rtol=1e-5)
    assert found.format == "saev" and found.config["lib"] == "0.3"
    assert found.sae.capabilities.signed == (kind == "TopK") == bool((code < 0).any())


def test_saev_of_before_the_schema_subtracted_b_dec(tmp_path, weights, x):
    saev(tmp_path / "sae.pt", weights, None, schema=None)
    W_enc, b_enc, _, b_dec = weights
    code = interop.read(tmp_path).sae(x).code.dense(N)
    torch.testing.assert_close(code, ((x - b_dec) @ W_enc + b_enc).relu(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sparsifier", [ReLU(), SignedTopK(K), Threshold(torch.tensor(0.4))])
def test_what_we_write_for_saev_is_read_again(tmp_path, make, agree, sparsifier):
    ours = make(sparsifier)
    interop.write(ours, tmp_path, "saev")
    agree(ours, interop.read(tmp_path).sae)


def test_saevs_other_topk_is_said(tmp_path, make):
    with pytest.warns(UserWarning, match="keeps negative pre-activations"):
        interop.write(make(TopK(K)), tmp_path, "saev")
    with pytest.raises(ValueError, match="it knows ReLU, TopK and one threshold for all latents"):
        interop.write(make(AbsTopK(K)), tmp_path, "saev")
    with pytest.raises(ValueError, match="one threshold for all latents"):
        interop.write(make(Threshold(torch.linspace(0, 1, N))), tmp_path, "saev")


def test_what_saev_may_hold_else_is_said(tmp_path, weights):
    saev(tmp_path / "a.pt", weights, {"cls": "Gelu", "params": {}})
    with pytest.raises(ValueError, match="the activation Gelu"):
        interop.read(tmp_path / "a.pt")
    saev(tmp_path / "b.pt", weights, {"cls": "Relu", "params": {}}, schema=6)
    with pytest.raises(ValueError, match="schema 6 of saev: schemas 1 to 5"):
        interop.read(tmp_path / "b.pt")
    saev(tmp_path / "c.pt", weights, {"cls": "BatchTopK", "params": {"top_k": 3}}, schema=2)
    with pytest.warns(UserWarning, match="of before saev kept its threshold"):
        interop.read(tmp_path / "c.pt")


def openai(path, weights, **more):
    W_enc, b_enc, W_dec, b_dec = weights
    layers = {"encoder.weight": W_enc.T, "decoder.weight": W_dec.T, "pre_bias": b_dec, "latent_bias": b_enc}
    torch.save(layers | {"stats_last_nonzero": torch.zeros(N, dtype=torch.long)} | more, path)


@pytest.mark.parametrize("after", ["ReLU", "Identity"])
def test_openais_topk_normalises_each_row(tmp_path, weights, x, after):
    state = {"k": K, "postact_fn": after}
    openai(tmp_path / "7.pt", weights, activation="TopK", activation_state_dict=state)
    W_enc, b_enc, W_dec, b_dec = weights
    rows = 3 * x + 2
    mean, std = rows.mean(1, keepdim=True), rows.std(1, keepdim=True)
    code = topk(((rows - mean) / (std + 1e-5) - b_dec) @ W_enc + b_enc)
    code = code.relu() if after == "ReLU" else code
    found = interop.read(tmp_path / "7.pt")
    output = found.sae(rows)
    expected = torch.cat([code * std, std, mean], 1)
    torch.testing.assert_close(output.code.dense(N + 2), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(output.x_hat, (code @ W_dec + b_dec) * std + mean, atol=1e-4, rtol=1e-5)

    silenced = expected.clone()  # an edit is in the units of x
    silenced[:, 3] = 0
    without = (torch.where(torch.arange(N) == 3, 0, code) @ W_dec + b_dec) * std + mean
    torch.testing.assert_close(silenced @ found.sae.atoms + found.sae.bias, without, atol=1e-4, rtol=1e-5)

    interop.write(found.sae, tmp_path / "again", "openai")
    again = torch.load(tmp_path / "again/autoencoder.pt", weights_only=True)
    assert again["activation_state_dict"] == state
    torch.testing.assert_close(again["latent_bias"], b_enc, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(interop.read(tmp_path / "again").sae(rows).x_hat, output.x_hat, atol=1e-4, rtol=1e-5)


def test_rows_normalised_are_kept_by_a_run(tmp_path, weights, x):
    openai(tmp_path / "7.pt", weights, activation="TopK", activation_state_dict={"k": K, "postact_fn": "ReLU"})
    sae = interop.read(tmp_path / "7.pt").sae
    (tmp_path / "run").mkdir()
    save_run(tmp_path / "run", sae, x, {"fingerprint": {}})
    assert torch.equal(Run.load(tmp_path / "run").sae(x).x_hat, sae(x).x_hat)


def test_openais_relu_is_plain_and_may_be_tied(tmp_path, weights, make, agree, x):
    ours = make(ReLU())
    interop.write(ours, tmp_path, "openai")
    agree(ours, interop.read(tmp_path).sae)
    found = torch.load(tmp_path / "autoencoder.pt", weights_only=True)
    torch.save({name: value for name, value in found.items() if name != "decoder.weight"}, tmp_path / "autoencoder.pt")
    assert torch.equal(interop.read(tmp_path).sae.atoms, weights[0].T)
    with pytest.raises(ValueError, match="the same as TopK: it knows ReLU, and TopK only of rows that are normalised"):
        interop.write(make(TopK(K)), tmp_path, "openai")


def test_openais_other_activations_are_said(tmp_path, weights):
    openai(tmp_path / "a.pt", weights, activation="JumpReLU")
    with pytest.raises(ValueError, match="the activation JumpReLU"):
        interop.read(tmp_path / "a.pt")


def test_gemmascope_computes_the_same_here(tmp_path, weights, x):
    W_enc, b_enc, W_dec, b_dec = weights
    threshold = torch.linspace(-0.5, 1.5, N)
    where = tmp_path / "layer_12/width_16k/average_l0_71"
    where.mkdir(parents=True)
    arrays = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec, "threshold": threshold}
    np.savez(where / "params.npz", **{name: tensor.numpy() for name, tensor in arrays.items()})
    u = x @ W_enc + b_enc
    code = u.relu() * (u > threshold)
    found = interop.read(where)
    torch.testing.assert_close(found.sae(x).code.dense(N), code, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.sae(x).x_hat, code @ W_dec + b_dec, atol=1e-5, rtol=1e-5)
    assert found.site == "layer_12/width_16k/average_l0_71"


def test_an_npz_with_objects_or_without_arrays_is_refused(tmp_path, weights):
    np.savez(tmp_path / "params.npz", W_enc=np.array([print], dtype=object))
    with pytest.raises(ValueError, match=r"params\.npz does not hold plain arrays"):
        interop.read(tmp_path)
    (tmp_path / "params.npz").write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(ValueError, match=r"params\.npz does not hold plain arrays"):
        interop.read(tmp_path)
    np.savez(tmp_path / "params.npz", W_enc=weights[0].numpy())
    with pytest.raises(ValueError, match=r"params\.npz has no tensor b_enc"):
        interop.read(tmp_path)
