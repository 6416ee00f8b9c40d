"""Plain text: a .txt file whose documents are parted by empty lines."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modalities.data.samples import Bad, Sample
from modalities.data.text import printable


class Corpus:
    """The documents of a UTF-8 text file, each the caption of a sample. Only their places in the file are kept in memory.

    Raises ValueError for a file without any text.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: list[tuple[int, int]] = []
        lines: list[int] = []
        digest, begin, end = hashlib.sha256(), None, 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                digest.update(line)
                if line.strip():
                    if begin is None:
                        begin = end
                        lines.append(number)
                elif begin is not None:
                    self._places.append((begin, end))
                    begin = None
                end += len(line)
        if begin is not None:
            self._places.append((begin, end))
        if not self._places:
            raise ValueError(
                f"{printable(str(path))} holds no text: give a file with documents, parted by empty lines."
            )
        self.keys: Sequence[str] = [f"line-{number:08d}" for number in lines]
        self._digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._places)

    def classes(self) -> tuple[str, ...]:
        return ()

    def read(self, index: int) -> Sample | Bad:
        begin, end = self._places[index]
        key, path = (
            self.keys[index],
            f"{printable(self._path.name)}, line {int(self.keys[index].removeprefix('line-'))}",
        )
        try:
            with self._path.open("rb") as file:
                file.seek(begin)
                text = file.read(end - begin).decode("utf-8-sig" if begin == 0 else "utf-8").strip()
        except UnicodeDecodeError:
            return Bad(key, path, "is no UTF-8 text")
        except OSError as error:
            return Bad(key, path, f"cannot be read: {error.strerror}")
        return Sample(key, path, captions=(text,)) if text else Bad(key, path, "has no text")

    def identity(self) -> dict[str, Any]:
        """The digest is of the file itself."""
        return {
            "kind": "text",
            "name": printable(self._path.name),
            "options": {},
            "count": len(self),
            "digest": self._digest,
        }
