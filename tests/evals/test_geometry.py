"""Shapes of dictionaries whose answers are known, stability with the floor it needs, and the monosemanticity score against its definition."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evals.geometry import plausibility, random_atoms, shape, together
from evals.matching import match
from evals.monosemanticity import scores
from evals.stability import stability
from vsae.archetypal import RelaxedArchetypal
from vsae.code import Code

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- shape


def test_orthonormal_atoms_have_full_rank_and_no_coherence():
    found = shape(3 * torch.eye(8))
    assert found.stable_rank == pytest.approx(8) and found.effective_rank == pytest.approx(8)
    assert found.coherence == 0 and found.babel == {1: 0, 8: 0, 32: 0} and found.ood is None


def test_atoms_on_one_line_have_rank_one():
    found = shape(torch.tensor([[1.0, 0], [2, 0], [-3, 0]]))
    assert found.stable_rank == pytest.approx(1) and found.effective_rank == pytest.approx(1)
    assert found.coherence == pytest.approx(1) and found.babel[8] == pytest.approx(2)


def test_babel_is_the_worst_sum_of_cosines():
    D = F.normalize(random_atoms(12, 5, 0), dim=1)
    gram = (D @ D.T).abs().fill_diagonal_(0)
    want = max(float(gram[j].sort(descending=True).values[:8].sum()) for j in range(12))
    assert shape(D).babel[8] == pytest.approx(want) and shape(D).coherence == pytest.approx(float(gram.max()))
    assert shape(D[torch.randperm(12)]).babel == pytest.approx(shape(D).babel)


def test_ood_of_rows_of_the_data_is_0_and_of_their_opposites_2():
    rows = random_atoms(30, 8, 1)
    assert shape(rows[:9], rows).ood == pytest.approx(0, abs=1e-12)
    assert shape(torch.cat([-rows[:1], -2 * rows[:1]]), rows[:1]).ood == pytest.approx(2)


def test_ood_of_random_atoms_is_what_the_notes_say():
    """spec/papers.md section 6: .14 in eight dimensions, where a nearest point is never far."""
    assert shape(random_atoms(50, 8, 0), random_atoms(500, 8, 1)).ood == pytest.approx(0.14, abs=0.01)


def test_plausibility_of_contained_and_of_orthogonal_directions():
    v = torch.eye(6)[:2]
    assert plausibility(v, torch.cat([5 * v, random_atoms(4, 6, 0)])) == pytest.approx(1)
    assert plausibility(v, torch.eye(6)[2:]) == pytest.approx(0)
    few = random_atoms(4, 6, 0)
    assert plausibility(v, torch.cat([few, random_atoms(4, 6, 1)])) >= plausibility(v, few)


def test_a_dictionary_without_atoms_has_no_shape():
    with pytest.raises(ValueError, match="at least two atoms"):
        shape(torch.tensor([[0.0, 0], [1, 0]]))


def dense_together(Z, D):
    """The definition, written out."""
    gram, D = Z.T @ Z / len(Z), F.normalize(D, dim=1)
    live = (gram.diagonal() > 0).sum()
    off = (gram != 0).fill_diagonal_(False).sum()
    pull = torch.relu(-(gram * (D @ D.T)).fill_diagonal_(0))
    return float(off / (live * (live - 1))), float(torch.linalg.matrix_norm(pull, 2))


@pytest.mark.parametrize("n", [20, 90])
def test_firing_together_is_the_dense_definition_whatever_the_batches(n):
    Z = torch.randn(300, n).double() * (torch.rand(300, n) < 0.08)
    Z[:, 3] = 0  # a dead latent
    D = random_atoms(n, 7, 0)
    want = dense_together(Z, D)
    for size in (300, 77, 1):
        found = together([Code.full(some) for some in Z.split(size)], D)
        assert (found.connectivity, found.interference) == pytest.approx(want, rel=1e-6)
        assert found.rows == 300 and found.live == n - 1
        assert found.babel == pytest.approx(slow_babel(Z, D))
        values = torch.linalg.eigvalsh(Z.T @ Z).clamp_min(0)
        share = values[values > 1e-12 * values.sum()] / values.sum()
        assert found.rank == pytest.approx(float(torch.exp(-(share * share.log()).sum())), rel=1e-6)


def test_selections_have_a_babel_of_their_own_and_firing_a_rank():
    """Atoms 0 and 1 are near (cosine .8) and never selected together; 2 and 3 have cosine .6 and always are."""
    D = torch.zeros(4, 4, dtype=torch.float64)
    D[0, 0] = D[2, 2] = 1
    D[1, 0], D[1, 1], D[3, 2], D[3, 3] = 0.8, 0.6, -0.6, 0.8
    Z = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]).double()
    found = together([Code.full(some) for some in Z.split(3)], 5 * D)
    assert shape(D).babel[1] == pytest.approx(0.8) and found.babel == pytest.approx(0.6)
    # Z' Z / 4 has the eigenvalues 1/4, 1/4, 1, 0 (2 and 3 as one): shares 1/6, 1/6, 2/3
    assert found.rank == pytest.approx(math.exp(-2 / 6 * math.log(1 / 6) - 2 / 3 * math.log(2 / 3)))
    alone = together([Code.full(3 * torch.eye(6).double())], random_atoms(6, 9, 0))
    assert alone.rank == pytest.approx(6) and alone.babel is None
    assert together([Code.full(torch.ones(5, 6).double())], torch.eye(6)).rank == pytest.approx(1)
    silent = together([Code.full(torch.zeros(2, 3).double())], torch.eye(3))
    assert silent.rank is None and silent.babel is None


def slow_babel(Z, D):
    found = []
    for row in Z:
        mine = F.normalize(D, dim=1)[row != 0]
        if len(mine) > 1:
            n = range(len(mine))
            found.append(max(sum(abs(float(mine[i] @ mine[j])) for j in n if j != i) for i in n))
    return np.mean(found)


def test_latents_that_fire_apart_are_not_connected_and_cannot_interfere():
    found = together([Code.full(torch.eye(6))], -torch.ones(6, 3))
    assert found.connectivity == 0 and found.interference == 0
    both = together([Code.full(torch.ones(1, 2))], torch.tensor([[1.0, 0], [-1.0, 0]]))
    assert both.connectivity == 1 and both.interference == pytest.approx(1)
    with pytest.raises(ValueError, match="no row"):
        together([], torch.eye(3))


# ---- stability


def test_a_permutation_is_stable_and_a_sign_flip_only_where_signs_do_not_count():
    D, others = random_atoms(40, 16, 0), [random_atoms(40, 16, seed) for seed in (1, 2, 3)]
    same = stability([D, D[torch.randperm(40)]], others)
    assert same.stability.value == pytest.approx(1) and same.excess == pytest.approx(1) and not same.shared_start
    flipped = [D, -D[torch.randperm(40)]]
    assert stability(flipped, others, signed=True).stability.value == pytest.approx(1)
    assert stability(flipped, others).stability.value < 0.6


def test_random_dictionaries_have_no_excess_over_random_ones():
    found = stability(
        [random_atoms(60, 16, seed) for seed in range(4)], [random_atoms(60, 16, 10 + seed) for seed in range(4)]
    )
    assert abs(found.excess) < 0.05 and found.pairs == 6 and found.stability.interval is not None


@pytest.mark.parametrize(("n", "d", "known"), [(40, 64, 0.244), (256, 64, 0.326), (2000, 768, 0.119)])
def test_random_dictionaries_match_as_well_as_the_notes_say(n, d, known):
    """spec/papers.md section 0: the floor of a Hungarian cosine, which rises with the atoms and falls with the dimensions."""
    assert match(random_atoms(n, d, 0), random_atoms(n, d, 1)).matched == pytest.approx(known, abs=0.012)


def archetypal(anchors, weights):
    return RelaxedArchetypal(anchors, weights, 0.0)().detach()


def test_untrained_archetypal_dictionaries_on_the_same_anchors_are_one_and_that_is_said():
    """The published start W = eye(k, n'): before any training, two runs that "alter only the seed" agree to the last digit (spec/papers.md sections 0 and 6)."""
    C = random_atoms(200, 64, 0)
    untrained = [archetypal(C, torch.eye(40, 200, dtype=torch.float64)) for _ in range(2)]
    assert stability(untrained, [random_atoms(40, 64, seed) for seed in (1, 2)]).stability.value == pytest.approx(1)
    found = stability([random_atoms(40, 64, seed) for seed in (1, 2)], untrained)
    assert found.shared_start and found.stability.floor == pytest.approx(1) and found.excess is None


def test_the_unmatched_mean_is_the_wrong_floor():
    """Dense mixtures of the same anchors with a mean, drawn independently: nothing is learnt, and held against the unmatched mean much would seem so."""
    C = random_atoms(200, 64, 0) + 1

    def mixture(seed):
        W = torch.rand(40, 200, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return archetypal(C, W / W.sum(1, keepdim=True))

    found = stability([mixture(seed) for seed in range(4)], [mixture(10 + seed) for seed in range(4)])
    assert found.stability.value > 0.996 and found.unmatched > 0.993 and not found.shared_start
    assert abs(found.excess) < 0.1 < (found.stability.value - found.unmatched) / (1 - found.unmatched)


def test_collapsed_dictionaries_agree_and_have_no_excess_all_the_same():
    def mixtures(seed):  # random mixtures of points with a mean: all atoms are nearly that mean
        points = 1 + random_atoms(60, 16, 100 + seed)
        return torch.rand(40, 60, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) @ points

    found = stability([mixtures(seed) for seed in range(6)], [mixtures(10 + seed) for seed in range(6)])
    assert 0.9 < found.stability.value < 0.999 and found.unmatched > 0.9
    assert abs(found.excess) < 0.2


def test_a_shared_start_is_said_and_one_run_is_not_enough():
    D = random_atoms(10, 8, 0)
    found = stability([D, random_atoms(10, 8, 1)], [D, D.clone()])
    assert found.shared_start and found.excess is None
    with pytest.raises(ValueError, match="1 trained and 2 untrained"):
        stability([D], [D, D])


# ---- monosemanticity


def slow_score(a, E):
    a = (a - a.min()) / (a.max() - a.min())
    E = F.normalize(E, dim=1)
    top = bottom = 0.0
    for n in range(len(a)):
        for m in range(n):
            top += float(a[n] * a[m] * (E[n] @ E[m]))
            bottom += float(a[n] * a[m])
    return top / bottom


def test_the_score_is_its_definition_over_pairs():
    a, E = torch.rand(30, 5).double(), torch.randn(30, 4).double() + 0.5
    found = scores(a, E)
    want = [slow_score(a[:, j], E) for j in range(5)]
    np.testing.assert_allclose(found.scores, want, rtol=1e-12)
    order = torch.randperm(30)
    np.testing.assert_allclose(scores(a[order], E[order]).scores, want, rtol=1e-12)
    np.testing.assert_allclose(scores(7 * a + 3, 2 * E).scores, want, rtol=1e-12)


def test_known_scores():
    one = torch.eye(4)[torch.zeros(50, dtype=torch.long)]
    likes_half = (torch.arange(50) < 25).double()[:, None]
    assert scores(likes_half, one).scores[0] == pytest.approx(1)
    two = torch.eye(4)[
        torch.arange(50) % 2
    ]  # two clusters of 25, all liked alike but for one image that is liked not at all
    liked = torch.ones(51, 1)
    liked[50] = 0
    found = scores(liked, torch.cat([two, torch.eye(4)[2:3]]))
    assert found.scores[0] == pytest.approx(24 / 49)
    everything = torch.randn(200, 6).double() + 0.3
    nearly_flat = 1 - 1e-9 * torch.rand(200, 1).double()
    nearly_flat[0] = 0  # so that scaling leaves the others near 1
    alike = scores(nearly_flat, everything)
    assert alike.scores[0] == pytest.approx(scores(torch.rand(199, 1).double(), everything[1:]).floor, abs=1e-6)


def test_what_has_no_score_is_counted_and_not_averaged():
    a = torch.zeros(20, 4)
    a[:, 0] = torch.rand(20)
    a[3, 1] = 1.0  # likes a single image
    a[:, 2] = 5.0  # constant; latent 3 is dead
    found = scores(a, torch.randn(20, 3))
    assert found.undefined == 3 and math.isfinite(found.scores[0]) and np.isnan(found.scores[1:]).all()
    assert found.mean == found.best == pytest.approx(found.scores[0])
    with pytest.raises(ValueError, match="20 images have activations and 19 embeddings"):
        scores(a, torch.randn(19, 3))
