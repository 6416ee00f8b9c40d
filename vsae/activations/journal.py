"""The journal of an unfinished store: one JSON line for each batch seen and each shard finished, in the order in which it became true.

Line 1 is the job. A batch line is written before any shard that holds rows of it; a shard line after its file is on disk, synced. So whatever
moment the writer is killed at, the lines that can be read are true; a torn last line never happened.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any


class Journal:
    """Append-only, and locked: one process writes a store at a time. Raises OSError when another one does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._lock = Lock()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = os.fstat(self._file.fileno()).st_nlink == 0  # the other process finished between our two calls
            taken |= _held(path.parent)
        except BlockingIOError:
            taken = True
        if taken:
            self._file.close()
            raise OSError(f"{path.parent} is being written by another process: wait for it, or choose another folder.")
        os.truncate(path, sum(length for _, length in lines(path)))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All entries so far."""
        return (entry for entry, _ in lines(self.path))

    def append(self, entry: dict[str, Any], sync: bool = False) -> None:
        """Add a line; with `sync`, it and all before it survive a power cut."""
        line = memoryview(json.dumps(entry, separators=(",", ":"), allow_nan=False).encode() + b"\n")
        with self._lock:
            while line:
                line = line[self._file.write(line) :]
            if sync:
                os.fsync(self._file.fileno())

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        self._file.close()


def _held(folder: Path) -> bool:
    """Whether a process whose team lost the one with the journal still writes shards to this folder (`Shards` holds it)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # file systems without such locks
        pass
    finally:
        os.close(descriptor)
    return False


def lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Entries with their length in bytes, up to the first line that is torn."""
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                entry = json.loads(line)
            except ValueError:
                return
            yield entry, len(line)
