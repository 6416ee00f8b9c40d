"""dictionary_learning's own package (dictionary-learning) writes what we read, and its load_dictionary loads what we write."""

import json
import pickle

import pytest
import torch
from dictionary_learning.dictionary import AutoEncoderNew
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.standard import StandardTrainer
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.utils import load_dictionary

from vsae import interop
from vsae.sae import SAE
from vsae.sparsifiers import AbsTopK, Gated, ReLU, Threshold, TopK

D, N, K = 12, 48, 5
TRAINERS = {
    "AutoEncoder": (StandardTrainer, {}),
    "GatedAutoEncoder": (GatedSAETrainer, {}),
    "JumpReluAutoEncoder": (JumpReluTrainer, {}),
    "AutoEncoderTopK": (TopKTrainer, {"k": K}),
    "BatchTopKSAE": (BatchTopKTrainer, {"k": K}),
    "MatryoshkaBatchTopKSAE": (MatryoshkaBatchTopKTrainer, {"k": K, "group_fractions": [0.25, 0.75]}),
}
ABOUT = {"layer": 3, "lm_name": "EleutherAI/pythia-70m", "submodule_name": "resid_post_layer_3"}


def theirs_of(kind):
    """(dictionary, configuration) of a class, with every parameter random, so that nothing is right by being 0, and atoms of other norms than 1."""
    if kind == "AutoEncoderNew":  # no trainer of theirs is said to make it
        made, config = AutoEncoderNew(D, N), {"dict_class": kind} | ABOUT
    else:
        trainer, options = TRAINERS[kind]
        about = ABOUT | options | {"steps": 10_000, "activation_dim": D, "dict_size": N, "device": "cpu"}
        trained = trainer(**about)
        made, config = trained.ae, trained.config
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) / 2)
        if "BatchTopK" in kind:
            made.threshold.fill_(0.7)
    return made, config


def save(path, tensors, config, **more):
    """As their trainSAE does."""
    (path / "config.json").write_text(json.dumps({"trainer": config | more, "buffer": {"io": "out"}}))
    torch.save(tensors, path / "ae.pt")


@pytest.mark.parametrize("backup", [False, True])
@pytest.mark.parametrize("kind", ["AutoEncoderNew", *TRAINERS])
def test_what_they_write_computes_the_same_here(tmp_path, x, kind, backup):
    made, config = theirs_of(kind)
    save(tmp_path, made.state_dict(), config)
    theirs, _ = load_dictionary(str(tmp_path), "cpu")
    if backup:  # of a training that goes on: another file of the same name
        save(tmp_path, {"ae": made.state_dict(), "step": 7}, config)
    found = interop.read(tmp_path)
    code, output = theirs.encode(x), found.sae(x)
    assert 0.02 < (code != 0).float().mean() < 0.9
    torch.testing.assert_close(output.code.dense(N), code, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.x_hat, theirs(x), atol=1e-4, rtol=1e-5)
    assert (found.format, found.model) == ("dictionary_learning", "EleutherAI/pythia-70m")
    assert found.site == "resid_post_layer_3" and found.config["trainer"]["dict_class"] == kind


def test_a_threshold_that_was_never_set_is_a_relu(tmp_path, x):
    made, config = theirs_of("BatchTopKSAE")
    made.threshold.fill_(-1)
    save(tmp_path, made.state_dict(), config)
    code = interop.read(tmp_path).sae(x).code.dense(N)
    assert (code != 0).float().mean() > 0.4
    torch.testing.assert_close(code, made.encode(x), atol=1e-5, rtol=1e-5)


WRITTEN = [
    (Gated(torch.linspace(-1, 1, N), torch.linspace(0, 1, N)), "GatedAutoEncoder"),
    (ReLU(), "AutoEncoder"),
    (TopK(K), "AutoEncoderTopK"),
    (Threshold(torch.tensor(0.4)), "JumpReluAutoEncoder"),
]


@pytest.mark.parametrize(("sparsifier", "kind"), WRITTEN)
def test_they_load_what_we_write(tmp_path, make, agree, x, sparsifier, kind):
    ours = make(sparsifier)
    interop.write(ours, tmp_path, "dictionary_learning", {"site": "layers.3", "model": {"name": "m"}})
    theirs, config = load_dictionary(str(tmp_path), "cpu")
    assert type(theirs).__name__ == config["trainer"]["dict_class"] == kind
    torch.testing.assert_close(theirs.encode(x), ours(x).code.dense(N), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(theirs(x), ours(x).x_hat, atol=1e-5, rtol=1e-5)
    found = interop.read(tmp_path)
    assert (found.site, found.model) == ("layers.3", "m")
    agree(ours, found.sae)


def test_a_relu_whose_atoms_have_other_norms_is_not_what_they_would_rescale(tmp_path, weights, agree, x):
    """Their AutoEncoder is brought to atoms of unit norm as it is loaded, which would change the codes."""
    W_enc, b_enc, W_dec, b_dec = weights
    ours = SAE.from_weights(W_enc, b_enc, W_dec * torch.linspace(0.5, 3, N)[:, None], b_dec, ReLU())
    interop.write(ours, tmp_path, "dictionary_learning")
    theirs, config = load_dictionary(str(tmp_path), "cpu")
    assert config["trainer"]["dict_class"] == "JumpReluAutoEncoder"
    torch.testing.assert_close(theirs.encode(x), ours(x).code.dense(N), atol=1e-5, rtol=1e-5)
    agree(ours, interop.read(tmp_path).sae)


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_a_pickle_with_code_in_it_is_refused(tmp_path, capsys):
    made, config = theirs_of("AutoEncoder")
    save(tmp_path, made.state_dict() | {"bias": Evil()}, config)
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
def test_what_is_wrong_is_said(tmp_path, kind, change, sentence):
    made, config = theirs_of("AutoEncoder")
    save(tmp_path, made.state_dict() | change, config, dict_class=kind)
    with pytest.raises(ValueError, match=sentence):
        interop.read(tmp_path)


def test_damaged_and_unknown_files_are_said(tmp_path, make):
    made, config = theirs_of("AutoEncoder")
    save(tmp_path, made.state_dict(), config)
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
