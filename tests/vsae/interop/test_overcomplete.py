"""overcomplete's own package makes the state dicts that we read, and loads those that we write."""

import pytest
import torch
from overcomplete.sae import SAE as PlainSAE
from overcomplete.sae import BatchTopKSAE, JumpSAE, MpSAE, RAJumpSAE, RATopKSAE, TopKSAE

from vsae import interop
from vsae.sparsifiers import AbsTopK, ReLU, Threshold, TopK

D, N, M, K = 12, 48, 60, 5
IDENTITY = {"normalization": "identity"}


def random(module):
    """Every parameter of theirs random, so that nothing is right by being 0."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            scale = 0.3 if name.endswith(("multiplier", "thresholds")) else 1
            parameter.copy_(scale * torch.randn(parameter.shape, generator=draw))
    return module


def saved(path, module, name="model.pth"):
    torch.save(module.state_dict(), path / name)
    return path / name


def compare(found, theirs, x):
    theirs.eval()
    output, (_, code, x_hat) = found.sae(x), theirs(x)
    assert 0 < (code != 0).float().mean() < 0.9
    torch.testing.assert_close(output.code.dense(N), code, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.x_hat, x_hat, atol=1e-4, rtol=1e-5)


def points():
    return torch.randn(M, D, generator=torch.Generator().manual_seed(2))


MODELS = {
    "SAE": (lambda: PlainSAE(D, N, dictionary_params={"use_multiplier": True}), {}),
    "TopKSAE": (lambda: TopKSAE(D, N, top_k=K), {"top_k": K}),
    "JumpSAE": (lambda: JumpSAE(D, N), {}),
    "RATopKSAE": (lambda: RATopKSAE(D, N, points(), top_k=K, delta=0.5), {"top_k": K, "delta": 0.5}),
    "RAJumpSAE": (lambda: RAJumpSAE(D, N, points(), delta=2.0), {"delta": 2.0}),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_they_save_computes_the_same_here(tmp_path, x, name):
    make, options = MODELS[name]
    theirs = random(make())
    found = interop.read(saved(tmp_path, theirs), model=name.removeprefix("RA"), **options)
    assert found.format == "overcomplete"
    compare(found, theirs, x)


def test_a_code_at_the_running_threshold_counts(tmp_path, x):
    theirs = random(BatchTopKSAE(D, N, top_k=len(x) * K))
    theirs(x)  # in training, it sets the threshold to one of these very codes
    border = float(theirs.running_threshold)
    found = interop.read(saved(tmp_path, theirs), model="BatchTopKSAE", threshold=border)
    compare(found, theirs, x)
    assert (found.sae(x).code.values != 0).sum() == len(x) * K


@pytest.mark.parametrize("how", ["l2", "l1", "max_l2", "max_l1", "identity"])
def test_the_normalisations(tmp_path, x, how):
    theirs = random(PlainSAE(D, N, dictionary_params={"normalization": how}))
    found = interop.read(saved(tmp_path, theirs), model="SAE", normalization=how)
    torch.testing.assert_close(found.sae.atoms, theirs.get_dictionary(), atol=1e-6, rtol=1e-5)
    compare(found, theirs, x)


def test_tied_untied_and_batch_normed_encoders(tmp_path, x):
    for theirs in (PlainSAE(D, N).tied(), PlainSAE(D, N).tied(bias=True), PlainSAE(D, N).untied(bias=True)):
        random(theirs)
        compare(interop.read(saved(tmp_path, theirs), model="SAE"), theirs, x)
    theirs = random(PlainSAE(D, N, encoder_module="mlp_bn_1"))
    theirs(3 * torch.randn(500, D) + 1)  # moves the running mean and variance
    compare(interop.read(saved(tmp_path, theirs), model="SAE"), theirs, x)


def test_matching_pursuit(tmp_path, x):
    theirs = random(MpSAE(D, N, k=K))
    with pytest.warns(UserWarning, match="takes a step even where"):
        found = interop.read(saved(tmp_path, theirs), model="MpSAE", top_k=K)
    compare(found, theirs, x)


WRITTEN = [
    (ReLU(), lambda: PlainSAE(D, N, dictionary_params=IDENTITY)),
    (TopK(K), lambda: TopKSAE(D, N, top_k=K, dictionary_params=IDENTITY)),
    (Threshold(torch.tensor(0.4)), lambda: JumpSAE(D, N, dictionary_params=IDENTITY)),
]


@pytest.mark.parametrize(("sparsifier", "build"), WRITTEN)
def test_they_load_what_we_write_which_lacks_b_dec_and_says_so(tmp_path, make, weights, x, sparsifier, build):
    ours, theirs = make(sparsifier), build()
    with pytest.warns(UserWarning, match="reconstructions are ours less b_dec"):
        interop.write(ours, tmp_path, "overcomplete")
    theirs.load_state_dict(torch.load(tmp_path / "overcomplete.pt", weights_only=True))
    output, (_, code, x_hat) = ours(x), theirs.eval()(x)
    torch.testing.assert_close(code, output.code.dense(N), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x_hat + weights[3], output.x_hat, atol=1e-5, rtol=1e-5)
    compare(interop.read(tmp_path), theirs, x)


def test_what_is_missing_or_unknown_is_said(tmp_path, make):
    theirs = random(PlainSAE(D, N, dictionary_params={"use_multiplier": True}))
    where = saved(tmp_path, theirs)
    for options, sentence in (
        ({}, "does not say which SAE it is: give the option model"),
        ({"model": "QSAE"}, "it is 'QSAE'"),
        ({"model": "TopKSAE"}, "does not say what top_k is"),
        ({"model": "BatchTopKSAE"}, "does not hold its running_threshold"),
        ({"model": "SAE", "normalization": "l3"}, "the normalization 'l3' is not known"),
        ({"model": "SAE", "k": 3}, "takes no option k"),
        ({"model": "MpSAE", "top_k": 3}, "not of unit norm"),
    ):
        with pytest.raises(ValueError, match=sentence):
            interop.read(where, **options)
    for other in ("mlp_bn_3", "mlp_ln_1"):
        with pytest.raises(ValueError, match="an encoder that is not linear"):
            interop.read(saved(tmp_path, PlainSAE(D, N, encoder_module=other)), model="SAE")
    with pytest.raises(ValueError, match="it knows ReLU, TopK and thresholds"):
        interop.write(make(AbsTopK(3)), tmp_path, "overcomplete")
    torch.save(theirs, tmp_path / "module.pth")
    with pytest.raises(ValueError, match=r"module\.pth holds more than tensors, which would mean to execute it"):
        interop.read(tmp_path / "module.pth")
