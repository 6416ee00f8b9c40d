"""VL-SAE's enhancement of answers: identities of the notes, and one step worked out by hand."""

import pytest
import torch

from vsae.alignment import Alignment
from vsae.enhancement import Enhanced, mixed
from vsae.sae import SAE
from vsae.sparsifiers import ReLU, TopK

KINDS = ("image", "text", "pad")
D = 6


def side(bias=0.0):
    """Atoms in both directions of every axis: without a bias, every row is decoded exactly."""
    q = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64)).Q
    atoms = torch.cat([q, -q])
    b = torch.full((D,), bias).double()
    return SAE.from_weights(atoms.T.contiguous(), torch.zeros(2 * D).double(), atoms, b, ReLU()).double()


@pytest.fixture
def prompt():
    kinds = torch.tensor([[2, 0, 0, 1, 1], [0, 0, 1, 1, 1], [2, 2, 1, 1, 1]], dtype=torch.uint8)
    return torch.randn(3, 5, D, dtype=torch.float64), kinds


def test_alpha_0_is_the_identity_to_the_bit(prompt):
    values, kinds = prompt
    assert torch.equal(Enhanced(side(), side(), alpha=0.0, kind_names=KINDS)(values, kinds), values)


def test_beta_0_with_a_perfect_decoder_is_the_identity(prompt):
    values, kinds = prompt
    new = Enhanced(side(), side(), alpha=1.0, beta=0.0, kind_names=KINDS)(values, kinds)
    torch.testing.assert_close(new, values, atol=1e-12, rtol=0)


def test_one_step_by_hand_text_tokens_alone_move_and_prompts_without_image_do_not(prompt):
    values, kinds = prompt
    image, text = side(0.1), side(0.2)
    new = Enhanced(image, text, alpha=0.5, beta=0.25, kind_names=KINDS)(values, kinds)
    for row in range(2):
        x_v, x_t = values[row][kinds[row] == 0].mean(0), values[row][kinds[row] == 1].mean(0)
        h_v, h_t = (torch.zeros(2 * D).double().index_add(0, *code) for code in (one(image, x_v), one(text, x_t)))
        back = (0.75 * h_t + 0.25 * h_v) @ text.atoms + text.bias
        expected = values[row].clone()
        expected[kinds[row] == 1] += 0.5 * (back - x_t)
        torch.testing.assert_close(new[row], expected, atol=1e-12, rtol=0)
    assert torch.equal(new[2], values[2])


def test_another_images_mean_takes_the_place_of_the_prompts_own(prompt):
    values, kinds = prompt
    own = torch.stack(
        [values[row][kinds[row] == 0].mean(0) if row < 2 else torch.zeros(D).double() for row in range(3)]
    )
    image, text = side(0.1), side(0.2)
    plain = Enhanced(image, text, kind_names=KINDS)(values, kinds)
    torch.testing.assert_close(Enhanced(image, text, kind_names=KINDS, seen=own)(values, kinds), plain)
    other = Enhanced(image, text, kind_names=KINDS, seen=own[[1, 0, 2]])(values, kinds)
    assert not torch.allclose(other[:2], plain[:2]) and torch.equal(other[2], values[2])


def one(sae, x):
    code = sae.encode(x[None])
    return code.indices[0], code.values[0]


def test_generated_tokens_move_as_their_prompt_did(prompt):
    values, kinds = prompt
    edit = Enhanced(side(), side(0.3), kind_names=KINDS)
    shift = (edit(values, kinds) - values)[:, -1]
    more = torch.randn(3, 1, D, dtype=torch.float64)
    new = edit(more, torch.tensor([[1], [1], [2]], dtype=torch.uint8))
    torch.testing.assert_close(new[:2, 0] - more[:2, 0], shift[:2], atol=1e-12, rtol=0)
    assert torch.equal(new[2], more[2]) and shift[0].norm() > 0.1
    assert torch.equal(
        edit(values[:1], torch.ones(1, 5, dtype=torch.uint8)), values[:1]
    )  # another batch, without images


def test_alignment_goes_in_and_out(prompt):
    values, kinds = prompt
    alignment = Alignment(D, D, 6).double()
    image, text = side(), side()
    with torch.no_grad():
        for module in (*alignment.encoders, *alignment.decoders):
            module.weight.copy_(torch.eye(D))
            module.bias.zero_()
    plain = Enhanced(image, text, kind_names=KINDS)(values, kinds)
    same = Enhanced(image, text, kind_names=KINDS, alignment=alignment)(values, kinds)
    torch.testing.assert_close(same, plain, atol=1e-12, rtol=0)
    with torch.no_grad():
        alignment.encoders[1].weight.mul_(2)
        alignment.decoders[1].weight.mul_(0.5)
    back = Enhanced(image, text, beta=0.0, alpha=1.0, kind_names=KINDS, alignment=alignment)(values, kinds)
    torch.testing.assert_close(back, values, atol=1e-12, rtol=0)


def test_mixed_logits():
    plain, other = torch.tensor([[2.0, 1.9, 0.0]]), torch.tensor([[0.0, 1.0, 9.0]])
    assert torch.equal(mixed(plain, other, a=0.0), plain)
    # log .8 = -.223: 1.9 is kept, 0 is not
    torch.testing.assert_close(mixed(plain, other, 0.6, 0.8), torch.tensor([[0.8, 1.36, -torch.inf]]))
    with pytest.raises(ValueError, match="both are shares"):
        mixed(plain, other, a=2.0)


def test_mistakes_are_sentences():
    with pytest.raises(ValueError, match="alpha is 2"):
        Enhanced(side(), side(), alpha=2.0, kind_names=KINDS)
    atoms = torch.eye(D)
    other = SAE.from_weights(atoms[:, :4].contiguous(), torch.zeros(4), atoms[:4], torch.zeros(D), TopK(2))
    with pytest.raises(ValueError, match="12 and 4 latents"):
        Enhanced(side(), other, kind_names=KINDS)
