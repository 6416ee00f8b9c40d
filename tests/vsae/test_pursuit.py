"""Matching pursuit, plain and orthogonal, against loops one can read; what is left over, step by step; gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F

from vsae import ops
from vsae.code import Code
from vsae.dictionaries import Free
from vsae.encoders import Linear
from vsae.pursuit import MatchingPursuit, OrthogonalMatchingPursuit
from vsae.run import Run, save_run
from vsae.sae import SAE
from vsae.sparsifiers import ReLU, TopK

pytestmark = pytest.mark.usefixtures("one_thread")
ENCODERS = {"mp": MatchingPursuit, "signed": lambda: MatchingPursuit(signed=True), "omp": OrthogonalMatchingPursuit}
B, N, D = 40, 30, 8


@pytest.fixture(params=ENCODERS)
def kind(request):
    return request.param


def slow(x, atoms, k, kind):
    """One row at a time, one step at a time, dense: values [batch, n_latents] with gradients by autograd."""
    codes = []
    for row in x:
        left, z, chosen = row, atoms.new_zeros(len(atoms)), []
        for _ in range(k):
            along = (atoms @ left / atoms.norm(dim=1)).detach()
            j = int((along if kind == "mp" else along.abs()).argmax())
            if along[j].abs() < 1e-12 * row.norm() or (kind == "mp" and along[j] < 0):
                break
            if kind == "omp":
                chosen.append(j)
                c = torch.linalg.pinv(atoms[chosen].T) @ row
                z = torch.zeros_like(z).index_put((torch.tensor(chosen),), c)
                left = row - z @ atoms
            else:
                c = left @ atoms[j] / atoms[j].square().sum()
                z = z.index_put((torch.tensor(j),), c, accumulate=True)
                left = left - c * atoms[j]
        codes.append(z)
    return torch.stack(codes)


def world(dtype=torch.float64, n=N, unit=True):
    atoms, x = torch.randn(n, D, dtype=dtype), torch.randn(B, D, dtype=dtype)
    return x, F.normalize(atoms, dim=1) if unit else atoms


def encode(x, atoms, k, kind):
    return ENCODERS[kind]()(x, Free(atoms, unit_norm=False)).top(k)


def residual_norms(x, atoms, steps, kind):
    return torch.stack([(x - ops.decode(encode(x, atoms, k, kind), atoms)).norm(dim=1) for k in steps])


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_values_and_gradients_are_the_slow_ones(kind, k, unit):
    x, atoms = world(unit=unit)
    push = torch.randn(B, D, dtype=torch.float64)
    found, wanted = [], []
    for codes, into in ((lambda *a: encode(*a).dense(N), found), (slow, wanted)):
        given = x.clone().requires_grad_(), atoms.clone().requires_grad_()
        dictionary = given[1]
        if codes is slow:
            z = codes(*given, k, kind)
        else:
            part = Free(atoms, unit_norm=False)
            z = ENCODERS[kind]()(given[0], part).top(k).dense(N)
            dictionary = part.weight
        (push * (z @ dictionary)).sum().backward()
        into += [z.detach(), given[0].grad, dictionary.grad]
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_gradients_agree_with_finite_differences(kind):
    x, atoms = world(n=12)

    def reconstruction(x, atoms):
        dictionary = Free(atoms, unit_norm=False)
        del dictionary.weight
        dictionary.weight = atoms
        code = ENCODERS[kind]()(x, dictionary).top(3)
        return code.dense(12) @ atoms

    assert torch.autograd.gradcheck(reconstruction, (x[:4].requires_grad_(), atoms.requires_grad_()))


def test_orthonormal_atoms_are_found_in_as_many_steps_as_there_are(kind):
    """spec/papers.md, section 7: codes (2, 1, 0.5), residual norms 2.29, 1.12, 0.50, 0."""
    atoms = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64)).Q
    x = (torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64) @ atoms[[5, 1, 3]])[None]
    code = encode(x, atoms, 3, kind)
    assert code.indices.tolist() == [[5, 1, 3]]
    torch.testing.assert_close(code.values, torch.tensor([[2, 1, 0.5]], dtype=torch.float64), atol=1e-14, rtol=0)
    left = [float(x.norm()), *residual_norms(x, atoms, (1, 2, 3), kind)[:, 0].tolist()]
    assert left == pytest.approx([2.2913, 1.1180, 0.5, 0], abs=1e-4) and left[3] < 1e-14
    more = encode(x, atoms, 8, kind)
    assert (more.values != 0).sum() == 3, "nothing is left for further steps"
    torch.testing.assert_close(more.dense(D), code.dense(D))


def test_one_step_is_the_best_single_atom(kind):
    x, atoms = world()
    best = (x @ atoms.T).clamp_min(0) if kind == "mp" else x @ atoms.T
    errors = (x[:, None] - best[:, :, None] * atoms).norm(dim=2)
    torch.testing.assert_close(residual_norms(x, atoms, [1], kind)[0], errors.amin(1))


def test_no_step_makes_the_residual_longer_and_the_last_atom_is_used_up(kind):
    x, atoms = world()
    norms = residual_norms(x, atoms, range(1, 16), kind)
    assert (norms.diff(dim=0) <= 1e-12).all()
    if kind == "omp":
        assert norms[D - 1].max() < 1e-9, "as many steps as dimensions explain everything"
    code = encode(x, atoms, 5, kind)
    left = x - code.dense(N) @ atoms
    last = atoms[code.indices[:, 4]] if kind != "omp" else atoms[code.indices].flatten(0, 1)
    rows = left if kind != "omp" else left.repeat_interleave(5, 0)
    assert (last * rows).sum(1).abs().max() < 1e-12


def test_codes_are_positive_unless_signed_and_each_latent_has_one_slot(kind):
    x, atoms = world(n=10)
    code = encode(x, atoms, 9, kind)
    assert (code.values >= 0).all() if kind == "mp" else (code.values < 0).any()
    active = torch.where(code.values != 0, code.indices, -1)
    for row in active:
        spoken = row[row >= 0].tolist()
        assert len(spoken) == len(set(spoken))
    assert kind == "omp" or (code.values == 0).any(), "an atom was chosen twice somewhere, and its slots were added up"


def test_a_row_whose_every_cosine_is_negative_has_an_empty_code():
    atoms = torch.eye(3)
    assert (encode(-torch.ones(1, 3), atoms, 2, "mp").values == 0).all()
    assert encode(-torch.ones(1, 3), atoms, 3, "signed").dense(3).tolist() == [[-1, -1, -1]]


def test_zero_rows_zero_atoms_and_equal_atoms_stay_finite(kind):
    x, atoms = world(torch.float32)
    atoms[3], atoms[5], x[0] = 0, atoms[4], 0
    dictionary = Free(atoms, unit_norm=False)
    code = ENCODERS[kind]()(x, dictionary).top(12)
    ops.decode(code, dictionary()).square().sum().backward()
    assert code.values.isfinite().all() and dictionary.weight.grad.isfinite().all()
    assert (code.values[0] == 0).all() and not (code.indices[code.values != 0] == 3).any()
    assert not ((code.dense(N)[:, 4] != 0) & (code.dense(N)[:, 5] != 0)).any()


def test_rows_and_latents_may_be_reordered_and_batches_cut(kind):
    x, atoms = world()
    whole, order, latents = encode(x, atoms, 4, kind).dense(N), torch.randperm(B), torch.randperm(N)
    torch.testing.assert_close(encode(x[order], atoms, 4, kind).dense(N), whole[order])
    torch.testing.assert_close(encode(x, atoms[latents], 4, kind).dense(N), whole[:, latents])
    parts = torch.cat([encode(part, atoms, 4, kind).dense(N) for part in x.split(7)])
    torch.testing.assert_close(parts, whole)
    pre = ENCODERS[kind]()(x, Free(atoms))
    torch.testing.assert_close(pre.rows(order[:5]).top(4).dense(N), whole[order[:5]])
    some = latents[:6]
    torch.testing.assert_close(pre.latents(some).top(2).dense(6), encode(x, atoms[some], 2, kind).dense(6))


def test_single_precision_follows_double(kind):
    x, atoms = world()
    exact, single = (residual_norms(x.to(t), atoms.to(t), [6], kind).double() for t in (torch.float64, torch.float32))
    torch.testing.assert_close(single, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("per_dimension", [False, True])
def test_a_fused_and_saved_one_gives_the_same_and_its_steps_can_be_changed(kind, per_dimension, tmp_path):
    x, atoms = world(torch.float32)
    shift, scale = torch.randn(D), 0.5 + torch.rand(D) if per_dimension else torch.tensor(2.5)
    trained = SAE(ENCODERS[kind](), TopK(3), Free(atoms), torch.randn(D))
    fused, raw = trained.fuse(shift, scale), x * scale + shift
    torch.testing.assert_close(fused.encode(raw).dense(N), trained.encode(x).dense(N), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fused(raw).x_hat, trained(x).x_hat * scale + shift, rtol=1e-4, atol=1e-4)
    save_run(tmp_path, fused, raw, {"fingerprint": {}})
    loaded = Run.load(tmp_path).sae
    assert torch.equal(loaded(raw).x_hat, fused(raw).x_hat) and loaded.capabilities == fused.capabilities
    assert loaded.capabilities.signed == (kind != "mp") and not (tmp_path / "cfg.json").exists()
    errors = []
    for k in (1, 3, 8):
        loaded.sparsifier.k = k
        errors.append(float((x - (loaded(raw).x_hat - shift) / scale).square().sum()))
    assert errors[0] > errors[1] > errors[2]


def test_it_can_be_copied_and_has_no_weights_of_its_own(kind):
    encoder = copy.deepcopy(ENCODERS[kind]())
    assert not list(encoder.parameters()) and encoder.signed == (kind != "mp")


def test_sparsifiers_that_ask_for_single_entries_are_told_why_not():
    x, atoms = world()
    with pytest.raises(TypeError, match="Pursuit knows no threshold: choose a top-k sparsifier"):
        SAE(MatchingPursuit(), ReLU(), Free(atoms), torch.zeros(D)).encode(x)


def test_a_pursuit_explains_more_than_the_same_atoms_with_a_linear_encoder(kind):
    x, atoms = world()
    linear = SAE(Linear(atoms, torch.zeros(N)), TopK(4), Free(atoms), torch.zeros(D)).double()
    pursued = (x - ops.decode(encode(x, atoms, 4, kind), atoms)).square().sum()
    assert pursued < (x - linear(x).x_hat).square().sum()
    assert isinstance(linear.encode(x), Code)


def tree(rows=400, coherence=0.9):
    """The synthetic tree of MP-SAE (2506.03093; spec/papers.md section 7): 11 parents, three of which have 3 children, activations N(1.5, 1/16).

    Concepts of a level are near each other and those of different levels orthogonal (their "conditional orthogonality"); a row is one path of the tree.
    """
    base = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64)).Q
    share, own = coherence**0.5, (1 - coherence) ** 0.5
    atoms = torch.cat([own * base[:11] + share * base[30], own * base[11:20] + share * base[31]])
    parent, child = torch.randint(0, 11, (rows,)), torch.randint(0, 3, (rows,))
    there = torch.zeros(rows, 20, dtype=torch.float64).scatter(1, parent[:, None], 1.0)
    has = parent < 3
    there[has.nonzero()[:, 0], 11 + 3 * parent[has] + child[has]] = 1
    return there * (1.5 + 0.25 * torch.randn(rows, 20, dtype=torch.float64)), atoms


def test_a_path_of_a_tree_is_taken_level_by_level_where_one_look_at_all_atoms_is_misled(kind):
    z, atoms = tree()
    assert (
        (z > 0).sum(1).max() == 2 and (z.count_nonzero(0) > 0).all() and (atoms[:11] @ atoms[11:].T).abs().max() < 1e-12
    )
    code = encode(z @ atoms, atoms, 2, kind)
    torch.testing.assert_close(code.dense(20), z, atol=1e-12, rtol=0)
    linear = SAE(Linear(atoms, torch.zeros(20)), TopK(2), Free(atoms, unit_norm=False), torch.zeros(32)).double()
    with_child = (z > 0).sum(1) == 2
    chosen = linear.encode(z @ atoms).dense(20)[with_child] > 0
    assert float((chosen == (z[with_child] > 0)).all(1).double().mean()) < 0.6, (
        "parents' siblings look louder than children"
    )
