"""Free dictionaries: the unit sphere, kept by two explicit steps and by nothing else."""

import torch

from vsae.dictionaries import Free


def test_projection_brings_atoms_back_to_unit_norm():
    dictionary = Free(torch.tensor([[3.0, 4.0], [0.0, -2.0]]))
    torch.testing.assert_close(dictionary(), torch.tensor([[0.6, 0.8], [0.0, -1.0]]))
    dictionary.weight.data.mul_(7)
    dictionary.project_()
    torch.testing.assert_close(dictionary(), torch.tensor([[0.6, 0.8], [0.0, -1.0]]))


def test_reading_changes_nothing():
    dictionary = Free(torch.randn(5, 3))
    dictionary.weight.data.mul_(2)
    before, version = dictionary.weight.detach().clone(), dictionary.weight._version
    for _ in range(2):
        assert torch.equal(dictionary(), before)
    assert dictionary.weight._version == version


def test_projected_gradients_are_orthogonal_and_lose_nothing_else():
    dictionary = Free(torch.randn(50, 8).double())
    push = torch.randn(50, 8).double()
    (dictionary() * push).sum().backward()
    dictionary.project_gradients_()
    atoms, grad = dictionary.weight.detach(), dictionary.weight.grad
    torch.testing.assert_close((atoms * grad).sum(1), torch.zeros(50).double())
    torch.testing.assert_close(grad + (atoms * push).sum(1, keepdim=True) * atoms, push)


def test_without_a_constraint_nothing_is_projected():
    weight = torch.randn(4, 3) * 5
    dictionary = Free(weight, unit_norm=False)
    dictionary().square().sum().backward()
    dictionary.project_gradients_()
    dictionary.project_()
    assert torch.equal(dictionary(), weight)
    torch.testing.assert_close(dictionary.weight.grad, 2 * weight)


def test_a_zero_atom_stays_finite():
    dictionary = Free(torch.zeros(2, 3))
    dictionary.project_gradients_()  # no gradient yet: nothing to do
    assert torch.equal(dictionary(), torch.zeros(2, 3))


def test_the_given_weights_are_copied():
    weight = torch.randn(3, 2)
    before = weight.clone()
    Free(weight)
    assert torch.equal(weight, before)
