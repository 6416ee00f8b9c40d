"""A rendered world whose concepts, masks, captions and classes are known exactly, and tiny models trained on it.

write(out, n, seed, **knobs)     scenes as webdataset shards
path(name)                       the directory of a shipped model: vit, clip, llava or diffusion, each in its real relative's format
draw, render, table              scenes as tables, pixels and facts, for those who want no files
"""

from importlib import import_module
from pathlib import Path
from typing import Any

MODELS = ("vit", "clip", "llava", "diffusion")

_HOMES = {
    "write": "shards",
    "records": "shards",
    "World": "scenes",
    "draw": "scenes",
    "render": "renderer",
    "table": "tables",
}

__all__ = ["MODELS", "World", "draw", "path", "records", "render", "table", "write"]


def path(name: str) -> Path:
    """Directory of a shipped model. Raises ValueError for another name, FileNotFoundError if it has not been trained here."""
    if name not in MODELS:
        raise ValueError(f"the microworld has no model {name!r}: choose one of {', '.join(MODELS)}.")
    directory = Path(__file__).parent / "weights" / name
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is missing: run `python -m modalities.microworld.train {name}`.")
    return directory


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
