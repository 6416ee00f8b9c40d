"""The polynomial dictionary: known values, gradients, the retraction, interactions, and what refuses it."""

import pytest
import torch

from vsae.attribution import head_weights
from vsae.code import Code
from vsae.interventions import Ablate, Add, Intervention, KeepOnly, Swap
from vsae.polynomial import Polynomial, retracted
from vsae.recipes.polynomial import PolySAE
from vsae.run import Run, save_run
from vsae.sae import require

pytestmark = pytest.mark.usefixtures("one_thread")
N, D = 20, 6


def dictionary(ranks=(5, 4, 3)):
    part = Polynomial.start(N, D, ranks, seed=0).double()
    with torch.no_grad():
        part.l2.fill_(0.7)
        part.l3.fill_(-0.4)
    return part


def code(batch=12, k=4):
    indices = torch.rand(batch, N).topk(k).indices
    return Code(torch.rand(batch, k, dtype=torch.float64), indices)


def slow(part, z):
    """The sum over ranks, term by term."""
    a = z @ part.U
    out = torch.zeros(len(z), D, dtype=z.dtype)
    for r in range(part.C1.shape[1]):
        out = out + a[:, r : r + 1] * part.C1[:, r]
        if r < part.C2.shape[1]:
            out = out + part.l2 * a[:, r : r + 1] ** 2 * part.C2[:, r]
        if r < part.C3.shape[1]:
            out = out + part.l3 * a[:, r : r + 1] ** 3 * part.C3[:, r]
    return out


def test_values_one_can_compute_by_hand():
    eye = torch.eye(2)
    part = Polynomial(eye, eye, eye[:, :1], eye[:, 1:], torch.tensor(-0.5), torch.tensor(0.5))
    x_hat = part.decode(Code(torch.tensor([[2.0, 3.0]]), torch.tensor([[0, 1]])))
    assert x_hat.tolist() == [
        [2 - 0.5 * 4, 3 + 0.5 * 8]
    ]  # squares of a_1 go to the first, cubes of a_1 to the second dimension
    assert part().tolist() == eye.tolist() and not part.linear


def test_values_and_gradients_are_the_slow_ones():
    part, given, push = dictionary(), code(), torch.randn(12, D).double()
    given = Code(given.values.requires_grad_(), given.indices)
    (part.decode(given) * push).sum().backward()
    ours = [given.values.grad.clone(), *(p.grad.clone() for p in part.parameters())]
    given.values.grad = None
    part.zero_grad()
    (slow(part, given.dense(N)) * push).sum().backward()
    for mine, theirs in zip(ours, [given.values.grad, *(p.grad for p in part.parameters())], strict=True):
        torch.testing.assert_close(mine, theirs)


def test_without_its_curves_it_is_the_linear_dictionary_of_its_atoms():
    part, given = dictionary(), code()
    with torch.no_grad():
        part.l2.zero_()
        part.l3.zero_()
    torch.testing.assert_close(part.decode(given), given.dense(N) @ part())
    torch.testing.assert_close(part.directions().norm(dim=1), torch.ones(N).double())


def test_the_retraction_makes_columns_orthonormal_and_leaves_what_is():
    part = dictionary()
    before = part.U.detach().clone()
    part.project_()
    torch.testing.assert_close(part.U.detach(), before)
    with torch.no_grad():
        part.U.add_(0.3 * torch.randn_like(part.U))
    wild = part.U.detach().clone()
    part.project_()
    torch.testing.assert_close(part.U.T @ part.U, torch.eye(5).double())
    R = part.U.detach().T @ wild
    torch.testing.assert_close(R.triu(), R)
    assert (R.diagonal() > 0).all()
    assert retracted(torch.zeros(4, 2)).isfinite().all()


def test_interactions_are_the_mixed_second_difference():
    """x_hat(i and j) - x_hat(i) - x_hat(j) + x_hat(none) = 2 l2 z_i z_j B_ij, where there is no cube."""
    part = dictionary()
    with torch.no_grad():
        part.l3.zero_()
    pairs = torch.tensor([[0, 1], [3, 7], [7, 3], [2, 2]])
    zi, zj = 1.5, 0.8

    def decoded(i, j, a, b):
        return part.decode(Code(torch.tensor([[a, b]]).double(), torch.tensor([[i, j]])))[0]

    for (i, j), strength in zip(pairs.tolist()[:3], part.interaction(pairs).tolist(), strict=False):
        mixed = decoded(i, j, zi, zj) - decoded(i, j, zi, 0.0) - decoded(i, j, 0.0, zj)
        assert float(mixed.detach().norm()) == pytest.approx(2 * 0.7 * zi * zj * strength)
    assert part.interaction(pairs)[1] == part.interaction(pairs)[2]
    order = torch.randperm(4)
    torch.testing.assert_close(part.interaction(pairs[order]), part.interaction(pairs)[order])


def trained(steps=30):
    x = torch.randn(400, 3) @ torch.randn(3, D)
    sae = PolySAE(N, 4, rank2=3, rank3=2).build(x, x.mean(0), 0)
    optimiser = torch.optim.Adam(sae.parameters(), lr=0.02)
    errors = []
    for _ in range(steps):
        loss = PolySAE(N, 4).objective()(sae, x)
        loss.total.backward()
        optimiser.step()
        sae.project_()
        optimiser.zero_grad()
        errors.append(float(loss.terms["mse"]))
    return sae, x, errors


def test_it_trains_on_its_manifold_and_a_saved_one_gives_the_same(tmp_path):
    sae, x, errors = trained()
    assert errors[-1] < 0.5 * errors[0] < 0.5
    U = sae.dictionary.U
    torch.testing.assert_close(U.T @ U, torch.eye(U.shape[1]), atol=1e-5, rtol=0)
    shift, scale = torch.randn(D), torch.tensor(2.5)
    fused, raw = sae.fuse(shift, scale), x * scale + shift
    torch.testing.assert_close(fused(raw).x_hat, sae(x).x_hat * scale + shift, rtol=1e-4, atol=1e-4)
    save_run(tmp_path, fused, raw, {"fingerprint": {}})
    loaded = Run.load(tmp_path).sae
    assert torch.equal(loaded(raw).x_hat, fused(raw).x_hat)
    assert not loaded.capabilities.linear_decoder and not (tmp_path / "cfg.json").exists()


def test_what_takes_atoms_for_whole_effects_refuses_it():
    sae, x, _ = trained(1)
    values, kinds = x[None], torch.zeros(1, len(x), dtype=torch.uint8)
    for operation in (Ablate([1]), Add([1], 2.0), KeepOnly([1])):
        with pytest.raises(
            ValueError, match="this SAE's decoder is not linear in the code: choose an SAE with a linear"
        ):
            Intervention(sae, operation)(values, kinds)
    edited = Intervention(sae, Swap(sae.encode(x.flip(0))))(values, kinds)  # this one decodes, and may
    torch.testing.assert_close(edited[0], x + sae(x.flip(0)).x_hat - sae(x).x_hat)
    with pytest.raises(ValueError, match="attribution to heads takes a latent's atom"):
        head_weights(sae, 2)
    require(object(), linear_decoder=True, for_="anything")


def test_ranks_that_do_not_fit_are_said():
    with pytest.raises(ValueError, match=r"ranks are \(30, 2, 2\) with 20 latents"):
        Polynomial.start(N, D, (30, 2, 2), 0)
