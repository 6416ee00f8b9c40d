"""The three parts together, and the plain SAE that is left when training is over."""

import copy

import pytest
import torch

from vsae.archetypal import RelaxedArchetypal, starting_weights
from vsae.dictionaries import Free
from vsae.encoders import Linear
from vsae.sae import SAE
from vsae.sparsifiers import BatchTopK, ReLU, Threshold, TopK

D, N = 6, 30
pytestmark = pytest.mark.usefixtures("one_thread")


def archetypal():
    anchors = torch.randn(20, D)
    return RelaxedArchetypal(anchors, starting_weights(anchors, N, 0))


SPARSIFIERS = {"relu": ReLU, "topk": lambda: TopK(4), "batchtopk": lambda: BatchTopK(4)}
DICTIONARIES = {"free": lambda: Free(torch.randn(N, D)), "archetypal": archetypal}


@pytest.fixture(params=SPARSIFIERS)
def sparsifier(request):
    return SPARSIFIERS[request.param]()


@pytest.fixture(params=DICTIONARIES)
def sae(request, sparsifier):
    """An SAE somewhere in training: every parameter is off its start, the threshold has seen batches."""
    sae = SAE(Linear(torch.randn(N, D), torch.randn(N)), sparsifier, DICTIONARIES[request.param](), torch.randn(D))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        sae.project_()
        for _ in range(5):
            sae(torch.randn(64, D))
    return sae


def test_an_autoencoder_one_can_check_by_hand():
    sae = SAE(Linear(torch.eye(2), torch.tensor([0.0, -1])), TopK(1), Free(torch.eye(2)), torch.tensor([1.0, 1]))
    x_hat, code = sae(torch.tensor([[4.0, 3], [1, 5], [0, 0]]))
    assert code.dense(2).tolist() == [[3, 0], [0, 3], [0, 0]]
    assert x_hat.tolist() == [[4, 1], [1, 4], [1, 1]]
    assert sae.W_enc.shape == (2, 2) and (sae.d_model, sae.n_latents) == (2, 2)


@pytest.mark.parametrize("per_dimension", [False, True])
def test_fused_sae_reads_raw_activations_and_gives_the_same(sae, per_dimension):
    shift, scale = 3 * torch.randn(D), 0.5 + torch.rand(D) * 4 if per_dimension else torch.tensor(2.5)
    fused = sae.fuse(shift, scale)
    sae.eval()
    raw = torch.randn(200, D) * scale + shift
    with torch.no_grad():
        trained, plain = sae((raw - shift) / scale), fused(raw)
    torch.testing.assert_close(plain.code.dense(N), trained.code.dense(N), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain.x_hat, trained.x_hat * scale + shift, rtol=1e-4, atol=1e-4)
    assert not fused.training and not any(p.requires_grad for p in fused.parameters())
    assert isinstance(fused.dictionary, Free) and not fused.dictionary.unit_norm
    assert type(fused.sparsifier) is {BatchTopK: Threshold}.get(type(sae.sparsifier), type(sae.sparsifier))
    if isinstance(fused.sparsifier, Threshold):
        assert torch.equal(fused.sparsifier.threshold, sae.sparsifier.threshold)


def test_fusing_shares_nothing_with_training(sae):
    fused = sae.fuse(torch.zeros(D), torch.ones(()))
    before = {name: value.clone() for name, value in fused.state_dict().items()}
    with torch.no_grad():
        for tensor in sae.state_dict().values():
            tensor.add_(1)
    assert all(torch.equal(before[name], value) for name, value in fused.state_dict().items())


def test_weights_go_through_files_layout_and_back(sae):
    plain = sae.fuse(torch.zeros(D), torch.ones(()))
    again = SAE.from_weights(plain.W_enc, plain.b_enc, plain.atoms, plain.b_dec, plain.sparsifier)
    x = torch.randn(50, D)
    assert plain.W_enc.shape == (D, N)
    assert torch.equal(plain(x).x_hat, again(x).x_hat)


def test_a_copy_by_state_is_the_same_sae(sae):
    other = copy.deepcopy(sae)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    other.atoms  # noqa: B018  what was read before loading must not be what is read after
    other.load_state_dict(sae.state_dict())
    x = torch.randn(20, D)
    assert torch.equal(sae.eval()(x).x_hat, other.eval()(x).x_hat)


def test_capabilities_say_what_evaluations_may_assume(sae):
    assert sae.train().capabilities == (True, False, isinstance(sae.sparsifier, BatchTopK), 1)
    assert sae.eval().capabilities == (True, False, False, 1)
    assert sae.fuse(torch.zeros(D), torch.ones(())).capabilities == (True, False, False, 1)


def test_reading_an_sae_changes_nothing(sae):
    sae.eval()
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    sae(torch.randn(9, D)).x_hat.sum().backward()
    sae.atoms.sum().backward()
    assert all(torch.equal(before[name], value) for name, value in sae.state_dict().items())


def test_a_step_and_its_projections_meet_the_constraint(sae):
    optimiser = torch.optim.Adam(sae.parameters(), lr=0.1)
    sae(torch.randn(9, D)).x_hat.square().sum().backward()
    assert all(parameter.grad is not None for parameter in sae.parameters())
    sae.project_gradients_()
    optimiser.step()
    sae.project_()
    if isinstance(sae.dictionary, Free):
        torch.testing.assert_close(sae.atoms.norm(dim=1), torch.ones(N))
    else:
        torch.testing.assert_close(sae.dictionary.W.sum(1), torch.ones(N))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_stored_dtypes_are_computed_with_in_the_parameters_own(sae, dtype):
    x = torch.randn(10, D).to(dtype)
    sae.eval()
    assert sae(x).x_hat.dtype == torch.float32
    torch.testing.assert_close(sae(x).x_hat, sae(x.float()).x_hat)


def test_parameter_groups_hold_every_parameter_once(sae):
    groups = sae.parameter_groups()
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in sae.parameters()} and len(grouped) == len(list(sae.parameters()))
    rates = {id(p): group["rate"] for group in groups for p in group["params"]}
    slow = sae.dictionary.rates()
    assert all(rates[id(p)] == slow.get(name.removeprefix("dictionary."), 1.0) for name, p in sae.named_parameters())
