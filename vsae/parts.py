"""What encoders, sparsifiers and dictionaries have in common: a part can be written down as tensors and options, and built from them again."""

from abc import ABC
from typing import Any, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


class Part(nn.Module, ABC):
    """A part of an SAE. The tensors its constructor takes are its parameters and buffers, under the same names; `options` are its other arguments.

    Only parts of inference SAEs are written down, so what a part needs in training alone may break this, if `inference()` gives another part.
    """

    def options(self) -> dict[str, Any]:
        """The constructor's other arguments, as JSON."""
        return {}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.options().items())


def named(kind: type[M], name: str) -> type[M]:
    """The class `name` among those that have been defined as a `kind`, by anyone. Raises ValueError with a sentence."""
    found, waiting = {}, [kind]
    while waiting:
        for each in waiting.pop().__subclasses__():
            found[each.__name__] = each
            waiting.append(each)
    if name not in found:
        raise ValueError(
            f"there is no {kind.__name__.lower()} '{name}' here: import the module that defines it before loading, or update vsae."
        )
    return found[name]
