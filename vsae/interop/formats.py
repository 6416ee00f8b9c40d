"""All doors: which format files are of, reading any, writing one by name."""

from pathlib import Path
from typing import Any

from vsae.interop import dictionary_learning, gemmascope, itda, openai, overcomplete, saelens, saev, sparsify
from vsae.interop.foreign import Imported, read_pickle
from vsae.sae import SAE
from vsae.tables import Origin

READERS: dict[str, Any] = {
    door.NAME: door for door in (saelens, sparsify, dictionary_learning, gemmascope, itda, saev, openai, overcomplete)
}
"""By name, in the order in which they are asked. A door has NAME, `recognises(path)`, `read(path, **options)` and, where writing makes sense, `write`;
`write_origins` where the format says which rows of the data atoms are."""

WRITERS = {name: door for name, door in READERS.items() if hasattr(door, "write")}


def recognised(path: Path) -> str:
    """The format of a file or directory. Raises FileNotFoundError or ValueError with a sentence."""
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}: give a file or directory with an SAE.")
    for name, door in READERS.items():
        if door.recognises(path):
            return name
    if path.suffix in (".pt", ".pth"):
        read_pickle(path)  # a file with code in it, and a damaged one, are of no format either, and say so
    inside = ", ".join(sorted(each.name for each in path.iterdir())[:8]) if path.is_dir() else f"a {path.suffix} file"
    raise ValueError(
        f"{path} ({inside or 'empty'}) is of no format known here: {', '.join(READERS)}, or a run of vsae."
    )


def read(path: str | Path, **options: Any) -> Imported:
    """The SAE in a file or directory of any known format. `options` say what a format's files leave open.

    Raises FileNotFoundError or ValueError with a sentence for what is missing, damaged, unknown or beyond our parts.
    """
    path = Path(path)
    name = recognised(path)
    try:
        return READERS[name].read(path, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ValueError(f"{path} is of {name}, which takes no such option ({error}).") from None


def write(
    sae: SAE,
    path: str | Path,
    format: str,
    fingerprint: dict[str, Any] | None = None,
    origins: list[Origin] | None = None,
) -> None:
    """Write a fused `sae` into the directory `path` as another library keeps it. Raises ValueError for what that cannot express.

    `fingerprint`: what the SAE was trained on, and `origins`: where its atoms are from, for formats with a place for it.
    """
    if format not in WRITERS:
        raise ValueError(f"no SAE can be written as '{format}': choose from {', '.join(WRITERS)}.")
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    door = WRITERS[format]
    door.write(sae, path, fingerprint or {})
    if origins is not None and hasattr(door, "write_origins"):
        door.write_origins(path, origins)
