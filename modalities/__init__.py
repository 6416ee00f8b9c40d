"""models + data -> activations with token kinds. Knows models and data; knows no SAE."""

from importlib import import_module
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modalities.base import ActivationModel

FAMILIES = {
    "vision": "modalities.vision",
    "dinov2": "modalities.vision",
    "clip": "modalities.clip",
    "llava": "modalities.llava",
    "llm": "modalities.llm",
    "diffusion": "modalities.diffusion",
}
"""Family -> the module whose `load` knows it; imported when asked for, because each brings a large library."""


def load(family: str, name_or_dir: str, **options: Any) -> "ActivationModel":
    """The model `name_or_dir` (a hub name or a local directory) of a family. Options: see `load` of the family's module.

    Raises ValueError for an unknown family or option, FileNotFoundError or OSError where the model cannot be had.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown model family {family!r}: choose one of {', '.join(FAMILIES)}.")
    family_load = import_module(FAMILIES[family]).load
    takes = signature(family_load).parameters
    open_ended = any(one.kind is Parameter.VAR_KEYWORD for one in takes.values())
    if unknown := [] if open_ended else [option for option in options if option not in list(takes)[1:]]:
        raise ValueError(
            f"models of family {family!r} take no option {unknown[0]!r}: choose from {', '.join(list(takes)[1:])}."
        )
    return family_load(str(name_or_dir), **options)
