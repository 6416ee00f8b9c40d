"""dictionary_learning's files, made by hand from the source of its release 0.1.0: the package itself wants nnsight < 0.4 and umap-learn.

`forward` below says again, densely, what each of its classes computes.
"""

import json
import pickle

import pytest
import torch

from vsae import interop
from vsae.sparsifiers import AbsTopK, Gated, ReLU, Threshold, TopK

D, N, K = 12, 48, 5


def files(kind, weights):
    """(state dict, dense codes and reconstructions of x) of each class."""
    W_enc, b_enc, W_dec, b_dec = weights
    layers = {"encoder.weight": W_enc.T, "encoder.bias": b_enc, "decoder.weight": W_dec.T}
    matrices = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    batch = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(0.7)}
    vector = torch.linspace(-0.5, 1.5, N)
    uncentred = kind in ("AutoEncoderNew", "JumpReluAutoEncoder")

    def forward(x):
        if kind == "GatedAutoEncoder":
            u = (x - b_dec) @ W_enc
            z = (u + b_enc > 0) * (vector.exp() * u - vector).relu()
            return z, z @ W_dec + b_dec
        z = ((x if uncentred else x - b_dec) @ W_enc + b_enc).relu()
        if kind == "AutoEncoderTopK":
            z = z * (z >= z.topk(K).values[:, -1:])
        elif kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
            z = z * (z > 0.7)
        elif kind == "JumpReluAutoEncoder":
            z = z * (z > vector)
        return z, z @ W_dec + b_dec

    tensors = {
        "AutoEncoder": layers | {"bias": b_dec},
        "AutoEncoderNew": layers | {"decoder.bias": b_dec},
        "JumpReluAutoEncoder": matrices | {"threshold": vector},
        "GatedAutoEncoder": {name: layers[name] for name in ("encoder.weight", "decoder.weight")}
        | {"decoder_bias": b_dec, "gate_bias": b_enc, "r_mag": vector, "mag_bias": -vector},
        "AutoEncoderTopK": layers | {"b_dec": b_dec} | batch,
        "BatchTopKSAE": layers | {"b_dec": b_dec} | batch,
        "MatryoshkaBatchTopKSAE": matrices | batch | {"group_sizes": torch.tensor([16, 32])},
    }[kind]
    return tensors, forward


def save(path, kind, tensors, **more):
    trainer = {
        "dict_class": kind,
        "lm_name": "EleutherAI/pythia-70m",
        "submodule_name": "resid_post_layer_3",
        "layer": 3,
    }
    (path / "config.json").write_text(json.dumps({"trainer": trainer | more, "buffer": {"io": "out"}}))
    torch.save(tensors, path / "ae.pt")


KINDS = ["AutoEncoder", "GatedAutoEncoder", "AutoEncoderNew", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE"]
KINDS += ["MatryoshkaBatchTopKSAE"]


@pytest.mark.parametrize("backup", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_their_classes_compute_the_same_here(tmp_path, weights, x, kind, backup):
    tensors, forward = files(kind, weights)
    save(tmp_path, kind, {"ae": tensors, "step": 7} if backup else tensors, k=K)
    found = interop.read(tmp_path)
    code, x_hat = forward(x)
    output = found.sae(x)
    assert 0 < (code != 0).float().mean() < 0.9
    torch.testing.assert_close(output.code.dense(N), code, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.x_hat, x_hat, atol=1e-5, rtol=1e-5)
    assert (found.format, found.model) == ("dictionary_learning", "EleutherAI/pythia-70m")
    assert found.site == "resid_post_layer_3"


def test_a_threshold_that_was_never_set_is_a_relu(tmp_path, weights, x):
    tensors, _ = files("BatchTopKSAE", weights)
    save(tmp_path, "BatchTopKSAE", tensors | {"threshold": torch.tensor(-1.0)})
    W_enc, b_enc, _, b_dec = weights
    code = interop.read(tmp_path).sae(x).code.dense(N)
    torch.testing.assert_close(code, ((x - b_dec) @ W_enc + b_enc).relu(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("sparsifier", "kind"),
    [
        (Gated(torch.linspace(-1, 1, N), torch.linspace(0, 1, N)), "GatedAutoEncoder"),
        (ReLU(), "AutoEncoder"),
        (TopK(K), "AutoEncoderTopK"),
        (Threshold(torch.tensor(0.4)), "JumpReluAutoEncoder"),
    ],
)
def test_what_we_write_is_read_again(tmp_path, make, agree, sparsifier, kind):
    ours = make(sparsifier)
    interop.write(ours, tmp_path, "dictionary_learning", {"site": "layers.3", "model": {"name": "m"}})
    found = interop.read(tmp_path)
    assert found.config["trainer"]["dict_class"] == kind and (found.site, found.model) == ("layers.3", "m")
    agree(ours, found.sae)


def test_the_names_we_write_are_theirs(tmp_path, make, weights):
    """load_state_dict of AutoEncoderTopK, which is strict, wants exactly these."""
    interop.write(make(TopK(K)), tmp_path, "dictionary_learning")
    written = torch.load(tmp_path / "ae.pt", weights_only=True)
    theirs, _ = files("AutoEncoderTopK", weights)
    assert {name: (t.shape, t.dtype) for name, t in written.items()} == {
        n: (t.shape, t.dtype) for n, t in theirs.items()
    }


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_a_pickle_with_code_in_it_is_refused(tmp_path, weights, capsys):
    tensors, _ = files("AutoEncoder", weights)
    save(tmp_path, "AutoEncoder", tensors | {"bias": Evil()})
    with pytest.raises(ValueError, match=r"ae\.pt holds more than tensors, which would mean to execute it"):
        interop.read(tmp_path)
    (tmp_path / "ae.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"ae\.pt "):
        interop.read(tmp_path)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "change", "sentence"),
    [
        ("IdentityDict", {}, "a IdentityDict of dictionary_learning, which has no counterpart here"),
        ("AutoEncoder", {"bias": None}, r"ae\.pt has no tensor bias"),
        ("AutoEncoder", {"decoder.weight": torch.ones(N, D)}, r"decoder\.weight is \[48, 12\], but should be \[d, n\]"),
        ("AutoEncoderTopK", {"k": None, "b_dec": torch.ones(D)}, "does not say what k is"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, weights, kind, change, sentence):
    tensors, _ = files("AutoEncoder", weights)
    save(tmp_path, kind, tensors | change)
    with pytest.raises(ValueError, match=sentence):
        interop.read(tmp_path)


def test_damaged_and_unknown_files_are_said(tmp_path, weights, make):
    save(tmp_path, "AutoEncoder", files("AutoEncoder", weights)[0])
    (tmp_path / "ae.pt").write_bytes((tmp_path / "ae.pt").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"ae\.pt is not a file that torch saved"):
        interop.read(tmp_path)
    (tmp_path / "ae.pt").unlink()
    with pytest.raises(ValueError, match=r"\(config\.json\) is of no format known here: saelens, sparsify"):
        interop.read(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no"):
        interop.read(tmp_path / "nothing")
    with pytest.raises(ValueError, match="the same as AbsTopK: it knows ReLU, TopK, Gated and thresholds"):
        interop.write(make(AbsTopK(3)), tmp_path, "dictionary_learning")
    with pytest.raises(ValueError, match="no SAE can be written as 'onnx': choose from saelens"):
        interop.write(make(ReLU()), tmp_path, "onnx")
