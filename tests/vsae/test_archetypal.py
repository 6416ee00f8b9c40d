"""Relaxed archetypal dictionaries and their anchors: in the hull, never stale, never NaN."""

import copy

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from vsae.anchors import kmeans_anchors
from vsae.archetypal import RelaxedArchetypal, starting_weights
from vsae.sae import SAE

pytestmark = pytest.mark.usefixtures("one_thread")


def distance_to_hull(point, points):
    """Least distance to a convex combination of the points: NNLS with a heavy row that makes the weights sum to 1."""
    heavy = 1e4
    A = np.vstack([points.T, heavy * np.ones(len(points))])
    weights, _ = nnls(A, np.append(point, heavy))
    return float(np.linalg.norm(points.T @ (weights / weights.sum()) - point))


def dictionary(n_latents=12, n_anchors=9, d=4, delta=0.5, dtype=torch.float64):
    anchors = torch.randn(n_anchors, d, dtype=dtype)
    return RelaxedArchetypal(anchors, starting_weights(anchors, n_latents, seed=0), delta)


def disturb(parts, size=1.0):
    """What an optimiser's step does: everything moves."""
    with torch.no_grad():
        for parameter in parts.parameters():
            parameter.add_(size * torch.randn_like(parameter))


def test_atoms_one_can_compute_by_hand():
    parts = RelaxedArchetypal(torch.tensor([[2.0, 0], [0, 4]]), torch.tensor([[1.0, 0], [0.5, 0.5]]), delta=1.0)
    assert parts().tolist() == [[2, 0], [1, 2]]
    with torch.no_grad():
        parts.Lambda.copy_(torch.tensor([[3.0, 4.0], [0.0, 0.5]]))
        parts.log_scale.fill_(np.log(2))
        parts.W.copy_(torch.tensor([[3.0, 1.0], [-1.0, 2.0]]))
    parts.project_()
    torch.testing.assert_close(parts(), 2 * torch.tensor([[1.5 + 0.6, 1 + 0.8], [0, 4 + 0.5]]))


@pytest.mark.parametrize("delta", [0.0, 0.3])
def test_projected_atoms_are_within_delta_of_the_hull(delta):
    parts = dictionary(delta=delta)
    disturb(parts)
    parts.project_()
    assert (parts.W >= 0).all()
    torch.testing.assert_close(parts.W.sum(1), torch.ones(12).double())
    away = (parts.Lambda.norm(dim=1)).detach()
    assert away.max() == pytest.approx(delta, abs=1e-12)
    atoms = (parts() / parts.log_scale.exp()).detach()
    assert atoms.isfinite().all()
    points = parts.C.numpy()
    assert max(distance_to_hull(atom, points) for atom in atoms.numpy()) <= delta + 1e-6
    assert distance_to_hull(10 * points[0], points) > 1


def test_projection_of_what_is_within_bounds_changes_nothing():
    parts = dictionary()
    disturb(parts)
    parts.project_()
    before = copy.deepcopy(parts.state_dict())
    parts.project_()
    for name, value in parts.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-14, atol=1e-15)


def test_a_row_that_clipping_empties_becomes_its_best_anchor():
    parts = RelaxedArchetypal(torch.eye(3), torch.tensor([[-3.0, -1.0, -2.0], [0.0, 0.0, 0.0]]), delta=0.0)
    assert parts.W[0].tolist() == [0, 1, 0]
    assert parts.W[1].sum() == 1 and parts().isfinite().all()


@pytest.mark.parametrize("delta", [0.0, 0.5])
def test_gradients_reach_W_Lambda_and_m_and_are_those_of_the_equation(delta):
    parts = dictionary(delta=delta)
    disturb(parts, 0.1)
    parts.project_()
    push = torch.randn(12, 4).double()
    got = torch.autograd.grad((parts() * push).sum(), [parts.W, parts.Lambda, parts.log_scale])
    scale = parts.log_scale.exp()
    want = scale * push @ parts.C.T, scale * push, (scale * (parts.W @ parts.C + parts.Lambda) * push).sum()
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)
        assert (g != 0).any()
    assert not parts.C.requires_grad


def test_atoms_are_computed_once_a_step_and_never_stale():
    parts = dictionary()

    def fresh():
        return parts.log_scale.exp() * (parts.W @ parts.C + parts.Lambda)

    assert parts() is parts()
    with torch.no_grad():
        assert parts() is parts() and not parts().requires_grad
    parts().sum().backward()
    parts().sum().backward()  # the first one's graph is gone
    optimiser = torch.optim.Adam(parts.parameters(), lr=0.1, fused=True)

    def step():
        optimiser.step()  # fused: raises no tensor's version
        parts.project_()

    for change in (step, lambda: disturb(parts), parts.project_, parts.float, parts.double):
        parts()
        change()
        torch.testing.assert_close(parts(), fresh())
        with torch.no_grad():
            torch.testing.assert_close(parts(), fresh())
    other = dictionary()
    disturb(other)
    for mode in (True, False):
        parts.train(mode)
        parts()
        parts.load_state_dict(other.state_dict())
        torch.testing.assert_close(parts(), other())
        disturb(parts)
    parts()
    torch.testing.assert_close(copy.deepcopy(parts)(), parts())


@pytest.mark.parametrize(("n_latents", "n_anchors"), [(5, 9), (9, 9), (40, 9), (40, 2)])
def test_starting_atoms_are_distinct_points_of_the_hull(n_latents, n_anchors):
    anchors = torch.randn(n_anchors, 4, dtype=torch.float64)
    W = starting_weights(anchors, n_latents, seed=3)
    assert W.shape == (n_latents, n_anchors) and (W >= 0).all()
    torch.testing.assert_close(W.sum(1), torch.ones(n_latents).double())
    pure = W[: min(n_latents, n_anchors)]
    assert ((pure == 1).sum(1) == 1).all() and len(pure.argmax(1).unique()) == len(pure)
    assert (W[len(pure) :] > 0).sum(1).le(4).all()
    atoms = W @ anchors
    assert (torch.cdist(atoms, atoms) + torch.eye(n_latents)).min() > 1e-6
    assert torch.equal(W, starting_weights(anchors, n_latents, seed=3))
    assert not torch.equal(W, starting_weights(anchors, n_latents, seed=4))


def test_fewer_atoms_than_anchors_start_in_different_corners():
    corners = 100 * torch.eye(4).repeat_interleave(25, 0) + torch.rand(100, 4)
    for seed in range(10):
        assert starting_weights(corners, 4, seed).argmax(1).div(25, rounding_mode="floor").sort().values.tolist() == [
            *range(4)
        ]
    twice = torch.randn(3, 4).repeat(4, 1)  # equal points: still different anchors
    assert len(starting_weights(twice, 11, 0).argmax(1).unique()) == 11


def test_anchors_find_clusters_and_repeat_themselves():
    centres = 10 * torch.randn(6, 5)
    rows = (centres[:, None] + 0.1 * torch.randn(6, 200, 5)).flatten(0, 1)
    anchors = kmeans_anchors(rows, 60, most=1000, seed=1)
    assert torch.cdist(centres, anchors).min(1).values.max() < 0.3
    assert torch.equal(anchors, kmeans_anchors(rows, 60, most=1000, seed=1))
    assert not torch.equal(anchors, kmeans_anchors(rows, 60, most=1000, seed=2))
    points = rows.double().numpy()
    assert max(distance_to_hull(anchor, points) for anchor in anchors[:5].double().numpy()) < 1e-4


def test_anchors_are_distinct_where_rows_repeat_and_clusters_run_empty():
    rows = torch.randn(50, 3).repeat(40, 1)
    rows[:1000] = rows[0]
    distinct = len(rows.unique(dim=0))
    for n in (10, distinct - 1, distinct):
        anchors = kmeans_anchors(rows, n, most=1000, seed=0)
        assert len(anchors) == n == len(anchors.unique(dim=0))
    assert len(kmeans_anchors(rows, None, most=1000, seed=0)) == distinct
    assert len(kmeans_anchors(rows, None, most=7, seed=0)) == 7


def test_more_anchors_than_rows_is_answered_with_both_numbers():
    with pytest.raises(ValueError, match="6 anchors need as many distinct rows of activations, and the sample has 5"):
        kmeans_anchors(torch.randn(5, 3), 6, most=100, seed=0)


def test_bounds_that_cannot_be():
    with pytest.raises(ValueError, match="delta is -1"):
        dictionary(delta=-1.0)
    with pytest.raises(ValueError, match="single anchor"):
        starting_weights(torch.randn(1, 3), 2, seed=0)


def test_fusing_leaves_a_plain_dictionary_of_the_same_atoms():
    from vsae.encoders import Linear
    from vsae.sparsifiers import TopK

    parts = dictionary(dtype=torch.float32)
    disturb(parts, 0.1)
    parts.project_()
    sae = SAE(Linear(torch.randn(12, 4), torch.randn(12)), TopK(3), parts, torch.randn(4))
    fused = sae.fuse(torch.zeros(4), torch.ones(()))
    torch.testing.assert_close(fused.atoms, parts().detach())
    assert not list(fused.dictionary.buffers()) and set(dict(fused.dictionary.named_parameters())) == {"weight"}


def test_one_adam_step_moves_little_of_a_row_however_many_anchors():
    """With the whole learning rate, 4,096 anchors of noise would add lr * anchors / 2 = 2 to rows that sum to 1."""
    anchors = torch.randn(4096, 4)
    dictionary = RelaxedArchetypal(anchors, starting_weights(anchors, 16, 0))
    rate = dictionary.rates()["W"]
    assert rate == pytest.approx(200 / 4096)
    before = dictionary.W.detach().clone()
    optimiser = torch.optim.Adam([dictionary.W], lr=1e-3 * rate)
    dictionary.W.grad = torch.randn_like(dictionary.W)
    optimiser.step()
    dictionary.project_()
    moved = (dictionary.W - before).abs().sum(1) / 2
    assert moved.min() > 0.05 and moved.max() < 0.15  # 1e-3 * 200 / 2 = 0.1 of each row's mass
    few = RelaxedArchetypal(anchors[:20], starting_weights(anchors[:20], 16, 0))
    assert few.rates() == {"W": 1.0}
