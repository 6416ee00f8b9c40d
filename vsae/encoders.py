"""Encoders: activations in, pre-activations out, one for every latent; a sparsifier then decides which of them speak.

Linear      u = W_enc x + b_enc           (x is centred already: `around` subtracts b_dec)
Tied        u = D x + b_enc               D the dictionary's atoms
"""

from abc import abstractmethod
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from vsae.dictionaries import Dictionary
from vsae.ops.rescored import Trust
from vsae.parts import Part
from vsae.preactivations import Affine, PreActivations


class Encoder(Part):
    """What every encoder answers, besides `forward(x, dictionary) -> PreActivations`."""

    centred: bool = True
    """Does it want x - b_dec, or x as it is?"""

    signed: bool = False
    """Can what it selects itself be negative?"""

    affine: bool = False
    """Are its pre-activations `Affine`?"""

    def around(
        self, x: Float[Tensor, "batch d_model"], centre: Float[Tensor, "d_model"], dictionary: Dictionary
    ) -> PreActivations:
        """Pre-activations of x - centre, where it wants x centred, for somebody who only looks at their entries.

        Then a gradient to the centre alone need not go by way of one to every row.
        """
        if not self.centred:
            return self(x, dictionary)
        if self.affine and centre.requires_grad and not x.requires_grad:
            pre = self(x - centre.detach(), dictionary)
            assert isinstance(pre, Affine)
            return replace(pre, bias=_Around.apply(pre.bias, pre.weight, centre))
        return self(x - centre, dictionary)

    def fold(self, scale: Float[Tensor, "d_model"], dictionary: Dictionary) -> "Linear | None":
        """A linear encoder of x that gives what this one gives for x / scale; None where there is none, and x has to be divided each time."""
        return None

    def inference(self) -> "Encoder":
        """The same without what only training needs."""
        return self

    @abstractmethod
    def forward(self, x: Float[Tensor, "batch d_model"], dictionary: Dictionary) -> PreActivations:
        """Pre-activations of all latents."""


class _Around(Function):
    """The bias of u = (x - centre) W^T + bias, with the gradient that the centre has in the first term: du/dcentre = -du/dbias W."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, weight: Tensor, centre: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return bias.view_as(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
        (weight,) = ctx.saved_tensors
        return grad, None, -(grad.to(weight.dtype) @ weight)


class Linear(Encoder):
    """u = W_enc x + b_enc. `weight` is [n_latents, d_model], as in torch.nn.Linear: a latent's weights are one row, read and updated as one."""

    trust: Trust | None
    """Given one, it selects at low precision in training, as long as that finds the same latents."""
    quick: bool = False
    """Does it do so outside of training, too?"""
    affine = True

    def __init__(self, weight: Float[Tensor, "n_latents d_model"], bias: Float[Tensor, "n_latents"]):
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
        self.bias = nn.Parameter(bias.detach().clone())
        self.register_module("trust", None)

    def fold(self, scale: Float[Tensor, "d_model"], dictionary: Dictionary) -> "Linear | None":
        return Linear(self.weight / scale, self.bias)

    def inference(self) -> "Linear":
        return type(self)(self.weight, self.bias)

    def forward(self, x: Float[Tensor, "batch d_model"], dictionary: Dictionary) -> Affine:
        return Affine(x, self.weight, self.bias, self.trust if self.training or self.quick else None)


class Tied(Encoder):
    """u = D x + b_enc: the encoder's weights are the dictionary's own (Cunningham et al. 2023, 2309.08600). Fused, it is a plain linear one."""

    affine = True

    def __init__(self, bias: Float[Tensor, "n_latents"]):
        super().__init__()
        self.bias = nn.Parameter(bias.detach().clone())

    def fold(self, scale: Float[Tensor, "d_model"], dictionary: Dictionary) -> Linear:
        return Linear(dictionary() / scale, self.bias)

    def forward(self, x: Float[Tensor, "batch d_model"], dictionary: Dictionary) -> Affine:
        return Affine(x, dictionary(), self.bias)
