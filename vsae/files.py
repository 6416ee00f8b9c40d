"""Files appear whole or not at all: write beside, fsync, rename, fsync the folder."""

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Errors of a disk that takes no more: it is full, or the user's quota or largest file size is reached."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary)` and move the result to `path`; a kill at any moment leaves the old file or the new one.

    Raises OSError, that of a full disk with `path` as its file name, leaving the old file and nothing beside it.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in FULL:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda temporary: _write_utf8(temporary, text))


def write_json(path: Path, content: Any) -> None:
    """JSON with sorted keys, so that equal content is equal bytes. Raises ValueError for NaN or infinity."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parsed content. Raises ValueError with the file's name if it is not JSON."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable JSON ({error}): restore it or make it again.") from error


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: Any) -> str:
    """sha256 of JSON content: the identity of a manifest, a fingerprint or a request."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_utf8(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")
