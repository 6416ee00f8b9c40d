"""Gradient TopK: the rule against a dense one, what is left of it without gradients, and what it is good for."""

import pytest
import torch

import vsae
from vsae.activations import JoinedSource
from vsae.activations.memory import TensorSource
from vsae.dictionaries import Free
from vsae.encoders import Linear
from vsae.gradient import GradientSAE, GradientTopK
from vsae.objectives import Objective
from vsae.recipes import GradientTopK as Recipe
from vsae.recipes import TopK as PlainRecipe
from vsae.run import Run
from vsae.sae import SAE
from vsae.sparsifiers import TopK

pytestmark = pytest.mark.usefixtures("one_thread")
D, N, K = 5, 12, 3


def parts(beta, dtype=torch.float64):
    W, b, atoms, b_dec = (torch.randn(*shape, dtype=dtype) for shape in ((N, D), (N,), (N, D), (D,)))
    return GradientSAE(Linear(W, b), GradientTopK(K, beta), Free(atoms), b_dec).to(dtype)


def dense(sae, x, g, beta):
    """z by the equation, with the graph of the values alone."""
    u = (x - sae.b_dec) @ sae.encoder.weight.T + sae.encoder.bias
    score = u.relu() + beta * u.relu() * (g @ sae.atoms.T).abs()
    kept = torch.zeros_like(u).scatter(1, score.detach().topk(K).indices, 1.0)
    return u.relu() * kept


@pytest.mark.parametrize("beta", [0.0, 0.7, 10.0])
def test_codes_loss_and_gradients_are_the_dense_ones(beta):
    sae, x, g = parts(beta), torch.randn(30, D).double(), torch.randn(30, D).double()
    rows = torch.cat([x, g], 1)
    torch.testing.assert_close(sae.encode(rows).dense(N), dense(sae, x, g, beta))
    Objective()(sae, rows).total.backward()
    mine = {name: p.grad.clone() for name, p in sae.named_parameters()}
    sae.zero_grad()
    z = dense(sae, x, g, beta)
    ((x - z @ sae.atoms - sae.b_dec).square().sum() / (x - x.mean(0)).square().sum()).backward()
    for name, p in sae.named_parameters():
        torch.testing.assert_close(mine[name], p.grad, msg=name)


def test_a_latent_one_can_check_by_hand():
    sae = GradientSAE(Linear(torch.eye(3), torch.zeros(3)), GradientTopK(1, 1.0), Free(torch.eye(3)), torch.zeros(3))
    x = torch.tensor([[3.0, 2.0, -9.0]])
    for g, index in (([0.0, 0.0, 0.0], 0), ([0.0, -2.0, 9.0], 1), ([0.1, 0.5, 0.0], 0)):
        code = sae.encode(torch.cat([x, torch.tensor([g])], 1))
        assert code.indices.tolist() == [[index]] and code.values.tolist() == [[3.0, 2.0][index : index + 1]]


def test_without_gradients_or_beta_it_is_topk():
    sae, x = parts(3.0), torch.randn(40, D).double()
    plain = SAE(sae.encoder, TopK(K), sae.dictionary, sae.b_dec)
    expected = plain.encode(x).dense(N)
    assert torch.equal(sae.encode(x).dense(N), expected) and torch.equal(sae.plain().encode(x).dense(N), expected)
    assert torch.equal(sae.encode(torch.cat([x, torch.zeros_like(x)], 1)).dense(N), expected)
    assert not torch.equal(sae.encode(torch.cat([x, 9 * torch.randn(40, D).double()], 1)).dense(N), expected)
    with pytest.raises(ValueError, match="rows are 7 wide"):
        sae.encode(torch.randn(2, 7).double())


def test_a_fused_one_reads_raw_rows_and_refuses_what_turns_gradients():
    sae, x, g = parts(0.7), torch.randn(30, D).double(), torch.randn(30, D).double()
    scale = torch.cat([torch.full((D,), 3.0), torch.full((D,), 1e-4)]).double()
    shift = torch.cat([torch.randn(D), torch.zeros(D)]).double()
    rows, raw = torch.cat([x, g], 1), torch.cat([x, g], 1) * scale + shift
    fused = sae.fuse(shift, scale)
    torch.testing.assert_close(fused.encode(raw).dense(N), sae.encode(rows).dense(N))
    torch.testing.assert_close(fused(raw).x_hat, sae(rows).x_hat * 3 + shift[:D])
    for wrong in ((shift, scale * torch.rand(2 * D)), (shift + 1, scale)):
        with pytest.raises(ValueError, match="normalise scale or none"):
            sae.fuse(*wrong)


def source(n=4000, seed=0):
    """Six strong directions and six weak ones, of which only the weak ones move the output: g points along them."""
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(9)))[0]
    z = torch.rand(n, 12, generator=generator) * (torch.rand(n, 12, generator=generator) < 0.3)
    z[:, 6:] *= 0.4
    g = 1e-6 * torch.randn(n, 6, generator=generator) @ atoms[6:]
    return JoinedSource(TensorSource(z @ atoms), TensorSource(g)), atoms


def test_among_known_atoms_it_loses_no_more_of_the_output_than_any_other_choice():
    """To first order, leaving latent i out changes L by z_i <D_i, g>: with a large beta the k kept are those whose loss would be largest."""
    joined, atoms = source(500)
    x, g = joined.sample_rows(500, 0).split(12, 1)
    g = 1e6 * g
    sae = GradientSAE(Linear(atoms, torch.zeros(12)), GradientTopK(2, 1e6), Free(atoms), torch.zeros(12))

    def lost(z):
        return ((x @ atoms.T - z) * (g @ atoms.T)).abs().sum(1)

    ours, plain = lost(sae.encode(torch.cat([x, g], 1)).dense(12)), lost(sae.encode(x).dense(12))
    every = [[i, j] for i in range(12) for j in range(i)]
    u = (x @ atoms.T).relu()
    best = torch.stack([lost(torch.zeros_like(u).index_copy(1, torch.tensor(two), u[:, two])) for two in every]).amin(0)
    torch.testing.assert_close(ours, best, rtol=1e-3, atol=1e-5)
    assert ours.mean() < 0.7 * plain.mean()


def test_it_trains_into_a_run_whose_first_side_needs_no_gradients(tmp_path):
    """What training makes of beta in this world is printed, not asked for."""
    (train, atoms), (val, _) = source(2000), source(1000, 1)
    config = vsae.TrainConfig(epochs=3, batch_size=200, lr=5e-3, tracker="none", eval_every=0)
    for beta in (0.0, 5.0):
        run = vsae.train(train, Recipe(24, 2, beta=beta), tmp_path / str(beta), config, val, progress=False)
        rows = val.sample_rows(1000, 0)
        error = rows[:, :12] - run.sae(rows).x_hat
        lost = float((error @ atoms[6:].T).square().sum() / (rows[:, :12] @ atoms[6:].T).square().sum())
        print(f"beta {beta}: {run.meta['metrics']['val']}, share of the effective part that is lost {lost:.3f}")
        assert isinstance(Run.load(run.path).sae, GradientSAE) and run.meta["metrics"]["val"]["l0"] <= 2
        assert run.meta["metrics"]["val"]["nmse"] < 0.6
    alone = run.side(0)
    assert type(alone.sae) is SAE and alone.fingerprint["site"] is None and "joined" not in alone.fingerprint
    with pytest.raises(ValueError, match="at once"):
        run.side(1)


def test_standardising_is_refused_before_any_step(tmp_path):
    config = vsae.TrainConfig(normalise="standardise", tracker="none")
    with pytest.raises(ValueError, match="belongs to its activation's own axes"):
        vsae.train(source(300)[0], Recipe(24, 2), tmp_path, config, progress=False)


def test_with_beta_0_it_trains_as_topk_does(tmp_path):
    joined, _ = source(500)
    config = vsae.TrainConfig(epochs=2, batch_size=100, lr=1e-3, tracker="none", selection="exact")
    ours = vsae.train(joined, Recipe(24, 2, beta=0.0), tmp_path / "ours", config, progress=False)
    theirs = vsae.train(joined.sources[0], PlainRecipe(24, 2), tmp_path / "theirs", config, progress=False)
    torch.testing.assert_close(ours.sae.atoms, theirs.sae.atoms)


def test_mistakes_are_sentences():
    with pytest.raises(ValueError, match="beta is -1"):
        Recipe(beta=-1.0)
    with pytest.raises(ValueError, match="reads a site and its gradient"):
        Recipe(8, 2, columns=(4, 6)).build(torch.randn(20, 10), torch.zeros(10), 0)
