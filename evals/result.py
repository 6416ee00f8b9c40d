"""What every evaluation writes: one result.json with the same fields, so that numbers can be compared and trusted without reading the code.

metric, value, floor, interval      the headline number, what knows-nothing scores on it, and a 95 % interval over samples
n, seeds, splits, normalisation     of what, drawn how, fitted and reported where, on which scale
token_kinds, fingerprint, versions  which rows, of which model and SAE, computed by which software
details                             everything else the evaluation measured
"""

import dataclasses
import importlib.metadata
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vsae.files import write_json

LIBRARIES = ("vsae", "torch", "numpy", "scipy", "scikit-learn")


@dataclass(frozen=True)
class Estimate:
    """A number with what it must be read beside."""

    value: float | None
    """None where it is undefined, like the NMSE of rows that are all equal."""

    floor: float | None = None
    """What chance, or the simplest baseline, scores on the same data. None where there is no such thing."""

    interval: tuple[float, float] | None = None
    """95 % bootstrap interval over samples. None where fewer than two samples were seen, or resampling does not apply."""


@dataclass(frozen=True)
class Result:
    """The common fields of an evaluation; `details` is anything `jsonable` takes."""

    metric: str
    value: float | None
    floor: float | None
    interval: tuple[float, float] | None
    n: Mapping[str, int]
    seeds: Mapping[str, int]
    splits: Mapping[str, Any]
    normalisation: str
    token_kinds: Sequence[str]
    fingerprint: Mapping[str, Any]
    details: Any = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=lambda: versions())


def write_result(folder: Path, result: Result) -> Path:
    """Write `folder/result.json`, whole or not at all. Undefined numbers are written as null."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "result.json", jsonable(result))
    return folder / "result.json"


def versions() -> dict[str, str]:
    """Python's and the libraries' versions that a number may depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in LIBRARIES}


def jsonable(content: Any) -> Any:
    """Dataclasses, arrays and paths as JSON; NaN and infinity become null. Raises TypeError for anything JSON has no word for."""
    match content:
        case None | bool() | int() | str():
            return content
        case float():
            return content if math.isfinite(content) else None
        case Path():
            return str(content)
        case np.generic() | np.ndarray():
            return jsonable(content.tolist())
        case Mapping():
            return {str(key): jsonable(value) for key, value in content.items()}
        case list() | tuple():
            return [jsonable(value) for value in content]
    if dataclasses.is_dataclass(content) and not isinstance(content, type):
        return {field.name: jsonable(getattr(content, field.name)) for field in dataclasses.fields(content)}
    raise TypeError(f"a {type(content).__name__} cannot be written to result.json.")
