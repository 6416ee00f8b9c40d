"""A site is a named place in a model: a module's path, and the side of it that is read or edited.

    "blocks.11"             what the module gives
    "blocks.11:input"       what the module gets

Modules that give a tuple or a ModelOutput are read and edited at their first tensor, the hidden state.
"""

import copy
import dataclasses
import difflib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Callback = Callable[[Tensor | None], Tensor | None]
"""Gets the hidden state passing by (None when there is no tensor); gives the one to go on with, or None to leave it alone."""


class Site(NamedTuple):
    path: str
    side: str

    @classmethod
    def parse(cls, text: str) -> "Site":
        """`path`, `path:input` or `path:output`. Raises ValueError for another side."""
        path, _, side = text.partition(":")
        if side not in ("", "input", "output"):
            raise ValueError(f"site {text!r} has side {side!r}: write {path!r} for the output or '{path}:input'.")
        return cls(path, side or "output")

    def __str__(self) -> str:
        return self.path if self.side == "output" else f"{self.path}:input"


def attach(
    module: nn.Module, side: str, callback: Callback, choose: Callable[[Any], Tensor | None] | None = None
) -> RemovableHandle:
    """Call `callback` with the hidden state on each pass through one side of `module`, until the handle is removed.

    choose: the hidden state in what passes; None: its first tensor.
    """
    seen = choose or hidden_state
    if side == "output":

        def after(_module: nn.Module, _args: Any, output: Any) -> Any:
            old = seen(output)
            new = callback(old)
            return None if new is None else replaced(output, old, new)

        handle = module.register_forward_hook(after)
        # transformers collects the hidden states it goes on with (LLaVA's vision features) by hooks of its own: after ours.
        hooks: Any = module._forward_hooks
        for key, hook in list(hooks.items()):
            if getattr(hook, "__name__", "") == "output_capturing_hook":
                hooks.move_to_end(key)
        return handle

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        old = seen((*args, *kwargs.values()))
        new = callback(old)
        return None if new is None else (replaced(args, old, new), replaced(kwargs, old, new))

    return module.register_forward_pre_hook(before, with_kwargs=True)


def attach_heads(attention: nn.MultiheadAttention, callback: Callback) -> RemovableHandle:
    """`attach` at the input of `attention.out_proj`: the heads' outputs, concatenated.

    The fused kernel never calls `out_proj`, so the heads are computed a second time, by the same code with an identity in its place;
    what the model goes on with is its own output, plus `out_proj` of what the callback changed: no change is no change to the bit.
    """
    weight = attention.out_proj.weight
    identity = nn.Linear(len(weight), len(weight), bias=False, device=weight.device, dtype=weight.dtype).requires_grad_(
        False
    )
    nn.init.eye_(identity.weight)
    if attention.out_proj.bias is not None:
        identity.bias = nn.Parameter(torch.zeros_like(attention.out_proj.bias), requires_grad=False)
    twin = copy.copy(attention)
    for name in (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_pre_hooks_with_kwargs",
    ):
        setattr(twin, name, type(getattr(attention, name))())
    twin._modules = {**attention._modules, "out_proj": identity}

    def after(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        heads = twin(*args, **kwargs)[0]
        new = callback(heads)
        if new is None:
            return None
        return (output[0] + nn.functional.linear(new - heads, attention.out_proj.weight), *output[1:])

    return attention.register_forward_hook(after, with_kwargs=True)


def hidden_state(value: Any) -> Tensor | None:
    """The first tensor of what a module gets or gives: the value itself, or the first of a tuple, a dict or a ModelOutput."""
    return next(iter(tensors(value)), None)


def tensors(value: Any) -> list[Tensor]:
    """The tensors of what a module gets or gives, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [item for _, item in _items(value) if isinstance(item, Tensor)]


def replaced(value: Any, old: Tensor | None, new: Tensor) -> Any:
    """`value` with `new` wherever it holds `old`: self-attention gets one tensor as query, key and value."""
    if isinstance(value, Tensor):
        return new if value is old else value
    changes = {key: new for key, item in _items(value) if item is old}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **changes)
    if isinstance(value, dict):
        return value | changes
    items = [changes.get(index, item) for index, item in enumerate(value)]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names closest to a mistyped one, for an error message."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
    return ", ".join(repr(one) for one in close) or "none"


def _items(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, dict):  # a ModelOutput, too
        return list(value.items())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return list(enumerate(value)) if isinstance(value, tuple | list) else []
