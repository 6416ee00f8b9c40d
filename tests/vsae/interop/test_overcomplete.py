"""overcomplete's state dicts, made by hand from the source of its release 0.3.0: the package wants OpenCV and a Python before 3.13.

`codes` and the dictionaries below say again, densely, what it computes.
"""

import pytest
import torch

from vsae import interop
from vsae.sparsifiers import AbsTopK, ReLU, Threshold, TopK

D, N, M, K = 12, 48, 60, 5


@pytest.fixture
def state(weights):
    W_enc, b_enc, W_dec, _ = weights
    names = {"encoder.final_block.0.weight": W_enc.T, "encoder.final_block.0.bias": b_enc}
    return names | {"dictionary._weights": 3 * W_dec, "dictionary.multiplier": torch.tensor(0.3)}


def compare(found, x, code, atoms):
    output = found.sae(x)
    assert (code != 0).any()
    torch.testing.assert_close(output.code.dense(N), code, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.x_hat, code @ atoms, atol=1e-4, rtol=1e-5)


def saved(path, state, name="model.pth"):
    torch.save(state, path / name)
    return path / name


def test_the_selections(tmp_path, state, weights, x):
    W_enc, b_enc, W_dec, _ = weights
    z, atoms = (x @ W_enc + b_enc).relu(), W_dec * torch.tensor(0.3).exp()
    where = saved(tmp_path, state)
    compare(interop.read(where, model="SAE"), x, z, atoms)
    compare(interop.read(where, model="TopKSAE", top_k=K), x, z * (z >= z.topk(K).values[:, -1:]), atoms)
    border = float(interop.read(where, model="SAE").sae(x).code.values.max())  # is reached, and counts
    code = interop.read(where, model="BatchTopKSAE", threshold=border).sae(x).code.dense(N)
    assert (code != 0).sum() == 1
    compare(interop.read(where, model="BatchTopKSAE", threshold=0.8), x, z * (z >= 0.8), atoms)
    thresholds = torch.linspace(-3, 1, N)
    where = saved(tmp_path, state | {"thresholds": thresholds})
    compare(interop.read(where), x, z * (z >= thresholds.exp()), atoms)


@pytest.mark.parametrize("how", ["l2", "l1", "max_l2", "max_l1", "identity"])
def test_the_normalisations(tmp_path, state, x, how):
    weights = torch.randn(N, D) * torch.rand(N, 1)
    norms = {"2": weights.norm(dim=1, keepdim=True), "1": weights.abs().sum(1, keepdim=True)}.get(how[-1])
    divisor = 1 if how == "identity" else norms.max() if how.startswith("max") else norms
    where = saved(tmp_path, state | {"dictionary._weights": weights})
    sae = interop.read(where, model="SAE", normalization=how).sae
    torch.testing.assert_close(sae.atoms, weights / divisor * torch.tensor(0.3).exp(), atol=1e-6, rtol=1e-5)


def test_an_archetypal_dictionary_is_projected_as_there(tmp_path, state, x):
    C, W, relax = torch.randn(M, D), torch.randn(N, M), torch.randn(N, D)
    relax[0] = 0
    archetypal = {"dictionary.C": C, "dictionary.W": W, "dictionary.Relax": relax}
    rest = {name: value for name, value in state.items() if name != "dictionary._weights"}
    found = interop.read(saved(tmp_path, rest | archetypal), model="TopKSAE", top_k=K, delta=0.5)
    simplex = W.clamp_min(0) / W.clamp_min(0).sum(1, keepdim=True)
    short = torch.stack([row * min(1.0, 0.5 / max(float(row.norm()), 1e-9)) for row in relax])
    expected = (simplex @ C + short) * torch.tensor(0.3).exp()
    torch.testing.assert_close(found.sae.atoms, expected, atol=1e-5, rtol=1e-5)


def test_tied_untied_and_batch_normed_encoders(tmp_path, state, weights, x):
    own = {name: value for name, value in state.items() if name.startswith("dictionary")}
    atoms, weight, bias = weights[2] * torch.tensor(0.3).exp(), torch.randn(N, D), torch.randn(N)
    compare(interop.read(saved(tmp_path, own), model="SAE"), x, (x @ atoms.T).relu(), atoms)
    where = saved(tmp_path, own | {"encoder.weight": weight, "encoder.bias": bias})
    compare(interop.read(where, model="SAE"), x, (x @ weight.T + bias).relu(), atoms)

    layers = torch.nn.Sequential(torch.nn.Linear(D, N), torch.nn.BatchNorm1d(N))
    layers(3 * torch.randn(500, D) + 1)
    torch.nn.init.normal_(layers[1].weight)
    layers.eval()
    block = {f"encoder.final_block.{name}": value for name, value in layers.state_dict().items()}
    compare(interop.read(saved(tmp_path, own | block), model="SAE"), x, layers(x).relu().detach(), atoms)


def test_matching_pursuit(tmp_path, weights, x):
    state = {"dictionary._weights": weights[2], "dictionary.multiplier": torch.tensor(0.0)}
    with pytest.warns(UserWarning, match="takes a step even where"):
        sae = interop.read(saved(tmp_path, state), model="MpSAE", top_k=K).sae
    code, residual = torch.zeros(len(x), N), x.clone()
    for _ in range(K):
        value, index = (residual @ weights[2].T).max(1)
        code[torch.arange(len(x)), index] += value
        residual -= value[:, None] * weights[2][index]
    torch.testing.assert_close(sae(x).code.dense(N), code, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae(x).x_hat, x - residual, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sparsifier", [ReLU(), TopK(K), Threshold(torch.tensor(0.4))])
def test_what_we_write_lacks_b_dec_and_says_so(tmp_path, make, weights, x, sparsifier):
    ours = make(sparsifier)
    with pytest.warns(UserWarning, match="reconstructions are ours less b_dec"):
        interop.write(ours, tmp_path, "overcomplete")
    code = ours(x).code.dense(N)
    compare(interop.read(tmp_path), x, code, weights[2])
    torch.testing.assert_close(interop.read(tmp_path).sae(x).x_hat + weights[3], ours(x).x_hat, atol=1e-5, rtol=1e-5)


def test_what_is_missing_or_unknown_is_said(tmp_path, state, make):
    where = saved(tmp_path, state)
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
    where = saved(tmp_path, state | {"encoder.mlp_blocks.0.0.weight": torch.ones(D, D)})
    with pytest.raises(ValueError, match="an encoder that is not linear"):
        interop.read(where, model="SAE")
    with pytest.raises(ValueError, match="it knows ReLU, TopK and thresholds"):
        interop.write(make(AbsTopK(3)), tmp_path, "overcomplete")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(ValueError, match=r"module\.pth holds more than tensors, which would mean to execute it"):
        interop.read(tmp_path / "module.pth")
