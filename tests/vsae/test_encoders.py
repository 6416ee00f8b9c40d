"""Encoders that are neither plain linear nor a pursuit."""

import pytest
import torch

from vsae.archetypal import RelaxedArchetypal, starting_weights
from vsae.dictionaries import Free
from vsae.encoders import Linear, Tied
from vsae.ops import reference
from vsae.run import Run, save_run
from vsae.sae import SAE
from vsae.sparsifiers import BatchTopK, ReLU, TopK

pytestmark = pytest.mark.usefixtures("one_thread")
B, N, D = 40, 24, 6


def archetypal(dtype):
    anchors = torch.randn(30, D, dtype=dtype)
    return RelaxedArchetypal(anchors, starting_weights(anchors, N, 0))


DICTIONARIES = {"free": lambda dtype: Free(torch.randn(N, D, dtype=dtype)), "archetypal": archetypal}


@pytest.fixture(params=DICTIONARIES)
def tied(request):
    """Somewhere in training, in double precision."""
    dictionary = DICTIONARIES[request.param](torch.float64)
    return SAE(Tied(torch.randn(N).double()), TopK(4), dictionary, torch.randn(D).double())


@pytest.mark.parametrize("wants", [False, True])
def test_a_centre_alone_gets_the_gradient_it_gets_by_way_of_the_rows(wants):
    """`around` against the subtraction itself, also where x has a gradient of its own."""
    encoder, dictionary = Linear(torch.randn(N, D).double(), torch.randn(N).double()), Free(torch.randn(N, D).double())
    x, centre = torch.randn(B, D).double().requires_grad_(wants), torch.randn(D).double().requires_grad_()
    leaves = [encoder.weight, encoder.bias, centre] + [x] * wants
    push, dead = torch.randn(B, 4).double(), torch.tensor([3, 5, 8, 13])

    def gradients(pre):
        out = (pre.top(4).values * push).sum() + (pre.latents(dead).top(4).values.sort(1).values * push).sum()
        return torch.autograd.grad(out, leaves)

    for got, want in zip(
        gradients(encoder.around(x, centre, dictionary)), gradients(encoder(x - centre, dictionary)), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_tied_values_and_gradients_are_the_dense_ones(tied):
    x, push = torch.randn(B, D).double(), torch.randn(B, D).double()
    (tied(x).x_hat * push).sum().backward()
    ours = {name: parameter.grad for name, parameter in tied.named_parameters()}
    tied.zero_grad(set_to_none=True)
    u = (x - tied.b_dec) @ tied.atoms.T + tied.encoder.bias
    kept = torch.zeros_like(u).scatter(1, u.topk(4).indices, 1.0)
    ((u.relu() * kept) @ tied.atoms + tied.b_dec).mul(push).sum().backward()
    for name, parameter in tied.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_a_tied_orthonormal_dictionary_is_the_identity_on_what_it_keeps():
    sae = SAE(Tied(torch.zeros(D)), ReLU(), Free(torch.eye(D)), torch.ones(D))
    x = torch.randn(B, D)
    torch.testing.assert_close(sae(x).x_hat, x.clamp_min(1))


@pytest.mark.parametrize("sparsifier", [TopK(4), ReLU(), BatchTopK(3)], ids=["topk", "relu", "batchtopk"])
def test_a_fused_tied_sae_is_a_plain_linear_one(tied, sparsifier, tmp_path):
    sae = SAE(tied.encoder, sparsifier, tied.dictionary, tied.b_dec).float()
    shift, scale = torch.randn(D), 0.5 + torch.rand(D)
    x = torch.randn(300, D)
    sae(torch.randn(300, D))
    fused, trained = sae.fuse(shift, scale), sae.eval()
    assert isinstance(fused.encoder, Linear) and fused.scale is None
    raw = x * scale + shift
    torch.testing.assert_close(fused.encode(raw).dense(N), trained.encode(x).dense(N), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fused(raw).x_hat, trained(x).x_hat * scale + shift, rtol=1e-4, atol=1e-4)
    save_run(tmp_path, fused, raw, {"fingerprint": {}})
    assert torch.equal(Run.load(tmp_path).sae(raw).x_hat, fused(raw).x_hat)
    assert (tmp_path / "cfg.json").exists(), "SAELens can read it"


def test_tied_pre_activations_are_the_atoms_dot_products(tied):
    x, atoms = torch.randn(B, D).double(), tied.atoms
    code, u = tied.encode(x), reference.preactivations(x - tied.b_dec, atoms, tied.encoder.bias)
    torch.testing.assert_close(code.values, u.gather(1, code.indices).relu())
    torch.testing.assert_close(tied.dictionary.decode(code), reference.decode(code, atoms))
