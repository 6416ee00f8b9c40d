"""One process a run directory, one request a run, and a stop that loses nothing."""

import fcntl
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from vsae import held
from vsae.files import read_json, write_json
from vsae.training.checkpoint import PREFIX
from vsae.training.config import UNTIED_TO_THE_RESULT

MARKS = (".lock", "checkpoint", "run.json")
"""What a run's directory has one of, from its first moment on."""


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Hold `out` for this process. Raises ValueError when another holds it, or when `out` is something else than a run's directory."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: give the directory of the run.")
    if (out / "manifest.json").exists():
        raise ValueError(f"{out} is an activation store: give the run a directory of its own.")
    if out.exists() and not any((out / mark).exists() for mark in MARKS):
        # a run would replace another library's cfg.json and weights, and lie among someone's photos
        others = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
        if others:
            raise ValueError(f"{out} already holds other files, such as {others[0]}: choose a new folder for the run.")
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is training into {out}: wait for it, stop it, or choose another directory."
            ) from None
        yield


def hold_to(out: Path, request: dict[str, Any], usual: dict[str, Any] | None = None) -> None:
    """Note what the run in `out` is, or raise ValueError naming the fields that differ from what was noted.

    A request that never came to a checkpoint is forgotten: nothing would be lost. `usual`: laid out as `request` is, of fields that an older
    version did not have.
    """
    folder = out / "checkpoint"
    noted = out / "run.json" if (out / "run.json").exists() else folder / "request.json"
    if not noted.exists() or (noted.parent == folder and not any(folder.rglob(f"{PREFIX}*"))):
        folder.mkdir(exist_ok=True)
        return write_json(folder / "request.json", request)
    content = read_json(noted)
    free = {f"config.{name}" for name in UNTIED_TO_THE_RESULT}
    found = held.differing({part: content.get(part) for part in request}, request, usual or {})
    differing = {name: both for name, both in found.items() if name not in free}
    if differing:
        listed = ", ".join(f"{name} ({shown(a)} there, {shown(b)} now)" for name, (a, b) in differing.items())
        raise ValueError(
            f"{out} holds another run; what differs: {listed}. Choose another directory, or ask for the same again."
        )


def shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."


class Interruption:
    """While entered, SIGINT and SIGTERM only raise a flag, for the loop to see after its step; a second signal acts as usual."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.name is not None

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set a handler
            self.before = {number: signal.signal(number, self.note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        self.__exit__()
