"""A world of orthonormal concepts, where what an edit does can be worked out by hand; then what must hold for any SAE."""

from typing import NamedTuple

import pytest
import torch

from vsae.code import Code
from vsae.interventions import (
    Ablate,
    Add,
    Clamp,
    Direction,
    Intervention,
    KeepOnly,
    Scale,
    Swap,
    Where,
    difference_of_means,
)
from vsae.sae import SAE
from vsae.sparsifiers import ReLU, TopK

KINDS = ("cls", "patch", "pad")
D, N = 8, 6


@pytest.fixture
def world():
    """Six orthonormal atoms in eight dimensions, an exact ReLU SAE for them, and tokens with a residual that it cannot see."""
    q = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64)).Q
    atoms, unseen = q[:, :N].T.contiguous(), q[:, N:]
    bias = 0.3 * unseen[:, 0]
    sae = SAE.from_weights(atoms.T, torch.zeros(N).double(), atoms, bias, ReLU()).double()
    z = torch.rand(2, 5, N, dtype=torch.float64) * (torch.rand(2, 5, N) < 0.5)
    residual = torch.randn(2, 5, 2, dtype=torch.float64) @ unseen.T
    kinds = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 1, 2]], dtype=torch.uint8)
    return sae, z, z @ atoms + residual, kinds, atoms, residual


@pytest.mark.parametrize(
    ("operation", "edited"),
    [
        (Clamp([2, 4], 5.0), lambda z: z.index_fill(-1, torch.tensor([2, 4]), 5.0)),
        (Add([1], 2.0), lambda z: z + 2.0 * torch.eye(N).double()[1]),
        (Scale([0, 3], 3.0), lambda z: z * torch.tensor([3.0, 1, 1, 3, 1, 1]).double()),
        (Ablate([5]), lambda z: z * torch.tensor([1.0, 1, 1, 1, 1, 0]).double()),
        (KeepOnly([1, 5]), lambda z: z * torch.tensor([0.0, 1, 0, 0, 0, 1]).double()),
    ],
    ids=["clamp", "add", "scale", "ablate", "keep only"],
)
def test_an_edit_changes_its_latents_and_leaves_the_residual(world, operation, edited):
    sae, z, x, kinds, atoms, residual = world
    new = Intervention(sae, operation, kind_names=KINDS)(x, kinds)
    torch.testing.assert_close(new, edited(z) @ atoms + residual, atol=1e-12, rtol=0)


def test_decoding_the_edited_code_alone_would_lose_the_residual(world):
    """Why edits keep the error: a clean decode of z' moves every token by what the SAE does not see, at any strength."""
    sae, _, x, kinds, _, residual = world
    strength = 2.0
    kept = Intervention(sae, Add([1], 1.0), strength=strength)(x, kinds)
    code = sae.encode(x.flatten(0, 1)).dense(N)
    code[:, 1] += strength
    plain = (code @ sae.atoms + sae.bias).view_as(x)
    torch.testing.assert_close(kept - plain, residual - sae.bias, atol=1e-12, rtol=0)
    assert (residual - sae.bias).norm(dim=-1).min() > 0.01


def test_swap_takes_the_other_inputs_codes(world):
    sae, z, x, kinds, atoms, residual = world
    other = torch.rand(10, N, dtype=torch.float64)
    code = sae.encode(other @ atoms + sae.b_dec)
    torch.testing.assert_close(
        Intervention(sae, Swap(code))(x, kinds), other.view(2, 5, N) @ atoms + residual, atol=1e-12, rtol=0
    )
    mixed = z.clone()
    mixed[..., [0, 3]] = other.view(2, 5, N)[..., [0, 3]]
    torch.testing.assert_close(
        Intervention(sae, Swap(code, [0, 3]))(x, kinds), mixed @ atoms + residual, atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "operation",
    [
        Clamp([3], 9.0),
        Add([1], 2.0),
        Ablate([0, 2]),
        KeepOnly([1]),
        Swap(Code(torch.ones(10, 2), torch.zeros(10, 2).long())),
    ],
)
def test_strength_zero_is_the_identity_to_the_bit(operation, dtype):
    sae = SAE.from_weights(torch.randn(D, N), torch.randn(N), torch.randn(N, D), torch.randn(D), TopK(2))
    x = torch.randn(2, 5, D).to(dtype)
    x[0, 0, 0] = -0.0
    kinds = torch.ones(2, 5, dtype=torch.uint8)
    same = Intervention(sae, operation, strength=0.0)(x, kinds)
    assert same.dtype == dtype and torch.equal(bits(same), bits(x))
    assert torch.equal(bits(Intervention(sae, Scale([0, 1], 1.0))(x, kinds)), bits(x))
    assert not torch.equal(Intervention(sae, operation, strength=1.0)(x, kinds), x)


def test_strength_is_linear_and_leaves_other_atoms_alone(world):
    sae, _, x, kinds, atoms, _ = world
    base = x @ atoms.T
    for strength in (0.5, 1.0, 2.0):
        new = Intervention(sae, Add([2], 1.0), strength=strength)(x, kinds) @ atoms.T
        assert torch.allclose(new[..., 2] - base[..., 2], torch.full((2, 5), strength).double())
        others = [i for i in range(N) if i != 2]
        assert (new[..., others] - base[..., others]).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("where", "touched"),
    [
        (Where(), [(b, t) for b in range(2) for t in range(5)]),
        (Where(kinds=("patch",)), [(0, 1), (0, 2), (0, 3), (0, 4), (1, 1), (1, 2), (1, 3)]),
        (Where(positions=(0, 4)), [(0, 0), (0, 4), (1, 0), (1, 4)]),
        (Where(skip=3), [(0, 3), (0, 4), (1, 3), (1, 4)]),
        (Where(kinds=("patch",), skip=2), [(0, 2), (0, 3), (0, 4), (1, 2), (1, 3)]),
        (Where(cells=((1, 0),)), [(0, 3), (1, 3)]),  # a grid of two columns: the third patch
        (Where(kinds=("cls", "pad"), positions=(4,)), [(1, 4)]),
    ],
)
def test_only_the_named_tokens_are_touched(world, where, touched):
    sae, _, x, kinds, _, _ = world
    for edit in (
        Intervention(sae, Add([0], 1.0), where=where, kind_names=KINDS, columns=2),
        Direction(torch.ones(D).double(), where=where, kind_names=KINDS, columns=2),
    ):
        changed = (edit(x, kinds) != x).any(-1).nonzero().tolist()
        assert [tuple(place) for place in changed] == touched


class Layout(NamedTuple):
    """Two images of two cells, of which the second is there in two copies, and an answer; the second row is padded on the left."""

    position: torch.Tensor = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7], [-1, -1, -1, -1, -1, 0, 1, 2]])
    image: torch.Tensor = torch.tensor([[0, 0, 1, 1, 1, -1, -1, -1], [-1] * 8])
    copy: torch.Tensor = torch.tensor([[0, 0, 0, 0, 1, -1, -1, -1], [-1] * 8])
    row: torch.Tensor = torch.tensor([[0, 0, 0, 0, 0, -1, -1, -1], [-1] * 8])
    column: torch.Tensor = torch.tensor([[0, 1, 0, 1, 1, -1, -1, -1], [-1] * 8])
    answer: torch.Tensor = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0, 0, 1]]).bool()


@pytest.mark.parametrize(
    ("where", "touched"),
    [
        (Where(positions=(0, 7)), [(0, 0), (0, 7), (1, 5)]),
        (Where(cells=((0, 1),)), [(0, 1), (0, 3), (0, 4)]),
        (Where(cells=((0, 1),), images=(1,)), [(0, 3), (0, 4)]),
        (Where(images=(1,), copies=(0,)), [(0, 2), (0, 3)]),
        (Where(answer=True), [(0, 6), (0, 7), (1, 7)]),
        (Where(answer=False, positions=(0,)), [(0, 0), (1, 5)]),
        (Where(skip=6), [(0, 6), (0, 7)]),
        (Where(skip=1, positions=(0, 1)), [(0, 1), (1, 6)]),
    ],
)
def test_what_a_model_tells_of_its_tokens_chooses_among_them(world, where, touched):
    sae, values, kinds = world[0], torch.zeros(2, 8, D).double(), torch.zeros(2, 8, dtype=torch.uint8)
    changed = Intervention(sae, Add([0], 1.0), where=where, kind_names=KINDS)(values, kinds, layout=Layout())
    assert [tuple(place) for place in changed.any(-1).nonzero().tolist()] == touched


def test_without_a_layout_positions_count_from_behind_the_padding_and_images_are_unknown(world):
    sae, values = world[0], torch.zeros(2, 4, D).double()
    kinds = torch.tensor([[2, 2, 1, 1], [1, 1, 1, 2]], dtype=torch.uint8)
    changed = Intervention(sae, Add([0], 1.0), where=Where(positions=(0, 3)), kind_names=KINDS)(values, kinds)
    assert changed.any(-1).nonzero().tolist() == [[0, 2], [1, 0], [1, 3]]
    for where in (Where(images=(0,)), Where(copies=(0,)), Where(answer=False)):
        with pytest.raises(ValueError, match="known at the layers of a language model only"):
            Intervention(sae, Add([0], 1.0), where=where, kind_names=KINDS)(values, kinds)


def test_difference_of_means_moves_one_class_onto_the_other():
    lacking = torch.randn(50, D).double()
    direction = torch.arange(D).double()
    found = difference_of_means(lacking + direction, lacking)
    torch.testing.assert_close(found, direction)
    moved = Direction(found, -1.0)((lacking + direction)[None], torch.ones(1, 50, dtype=torch.uint8))[0]
    torch.testing.assert_close(moved, lacking)
    assert torch.equal(
        bits(Direction(found, 0.0)(lacking[None], torch.ones(1, 50, dtype=torch.uint8))), bits(lacking[None])
    )


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda sae: Clamp([N], 1.0), "latents are \\[6\\].*from 0 to 5"),
        (lambda sae: Ablate([]), "at least one"),
        (lambda sae: Scale([1, 1], 2.0), "each once"),
        (lambda sae: Swap(Code(torch.ones(3, 1).double(), torch.zeros(3, 1).long())), "3 rows, this one 10"),
    ],
)
def test_mistakes_are_sentences(world, act, sentence):
    sae, _, x, kinds, _, _ = world
    with pytest.raises(ValueError, match=sentence):
        Intervention(sae, act(sae), kind_names=KINDS)(x, kinds)


def test_a_kind_or_a_grid_that_is_not_there_is_named(world):
    sae, _, x, kinds, _, _ = world
    with pytest.raises(ValueError, match="token kind 'image' does not exist"):
        Intervention(sae, Add([0], 1.0), where=Where(kinds=("image",)), kind_names=KINDS)(x, kinds)
    with pytest.raises(ValueError, match="how many columns"):
        Intervention(sae, Add([0], 1.0), where=Where(cells=((0, 0),)), kind_names=KINDS)(x, kinds)
    with pytest.raises(ValueError, match="site has 4 dimensions"):
        Intervention(sae, Add([0], 1.0))(x[..., :4], kinds)


def bits(values):
    return values.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])
