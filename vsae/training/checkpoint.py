"""Checkpoints: everything a run needs to go on as if nothing had happened, in safetensors and JSON.

    out/checkpoint/step-00001000/tensors.safetensors     weights, buffers, Adam's moments, firing clock, the window of losses
    out/checkpoint/step-00001000/state.json              step, tokens, loader position, what was measured so far, sha256 of the tensors

A checkpoint is written in a folder beside, fsynced and renamed, so it is there whole or not at all; the last two are kept.
"""

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vsae.files import read_json, sha256, sync, write_json
from vsae.tensors import read_tensors, write_tensors

KEEP = 2
PREFIX = "step-"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """State of a run after `step` steps."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint and remove all but the last two. Raises OSError, leaving what was there."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{PREFIX}{checkpoint.step:08d}"
    partial = folder / f".{final.name}.partial"
    for stale in (partial, final):
        shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir()
    try:
        write_tensors(partial / "tensors.safetensors", checkpoint.tensors)
        write_json(partial / "state.json", checkpoint.state | {"sha256": sha256(partial / "tensors.safetensors")})
        os.rename(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync(folder)
    for old in saved(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def newest(folder: Path, not_after: int | None = None) -> Checkpoint | None:
    """The newest checkpoint that is whole, of a step up to `not_after`; damaged ones are passed over with a warning."""
    for path in reversed(saved(folder)):
        if not_after is not None and int(path.name.removeprefix(PREFIX)) > not_after:
            continue
        try:
            return load(path)
        except (ValueError, OSError) as damage:
            log.warning("%s Going on from the checkpoint before it.", damage)
    return None


def load(path: Path) -> Checkpoint:
    """Read one checkpoint. Raises ValueError, naming it, when it is damaged."""
    try:
        state = read_json(path / "state.json")
        if sha256(path / "tensors.safetensors") != state["sha256"]:
            raise ValueError("its tensors are not those that were written")
        tensors = read_tensors(path / "tensors.safetensors")
        return Checkpoint(int(path.name.removeprefix(PREFIX)), tensors, state)
    except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
        raise ValueError(f"the checkpoint {path} is damaged ({error}).") from error


def saved(folder: Path) -> list[Path]:
    """Folders of the checkpoints there are, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit())


def clear(folder: Path) -> None:
    """Remove what an interrupted write left behind."""
    for partial in folder.glob(f".{PREFIX}*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
