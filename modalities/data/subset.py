"""A part of a dataset, in the dataset's own format: what is kept keeps its bytes, its key and its place.

    shards   every file of a kept sample, under a shard of the same name; headers keep mode, owner and time
    lists    .jsonl: the lines as they are; .csv, .parquet, .json: the rows, with every column
             Paths in a list stay as they are, relative to the folder of the list they come from.

A shard is one unit: many of them are read one at a time, so that memory does not grow with the data.
"""

import csv
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from jaxtyping import Bool
from numpy import ndarray

from modalities.data import open_dataset, shards_of
from modalities.data.pairs import READERS, Pairs
from modalities.data.samples import Bad, Dataset, Sample
from modalities.data.tarindex import BLOCK
from modalities.data.tars import Tars
from modalities.data.text import printable


class Units:
    """The shards of a dataset, or its one list: what is opened, scored and written at a time.

    Raises what `open_dataset` raises, and ValueError for data that has no part of its own format, or shards of one name.
    """

    def __init__(self, data: str | Path) -> None:
        path = Path(data)
        self.paths = [path] if path.suffix.lower() in READERS and path.is_file() else shards_of(path)
        names = [each.name for each in self.paths]
        if twice := next((name for at, name in enumerate(names) if name in names[:at]), None):
            raise ValueError(f"two shards are called {printable(twice)}: their parts would be one file. Rename one.")
        self._counts: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, unit: int) -> str:
        return printable(self.paths[unit].name)

    def open(self, unit: int) -> "Safe":
        found = Safe(open_dataset(self.paths[unit]))
        self._counts[unit] = len(found)
        return found

    def count(self, unit: int) -> int:
        """Candidates in a unit, which is read through the first time only."""
        return self._counts[unit] if unit in self._counts else len(self.open(unit))

    def write(self, unit: int, kept: Bool[ndarray, "candidates"]) -> Callable[[Path], None]:
        """What writes the kept candidates of a unit to the path it is called with. Raises ValueError for a sample that must not be written."""
        dataset = self.open(unit)
        if len(kept) != len(dataset):
            raise ValueError(
                f"{self.name(unit)} has {len(dataset)} candidates now and had {len(kept)}: it has changed."
            )
        rows = [at for at in range(len(kept)) if kept[at]]
        if refused := next((reason for at in rows if (reason := dataset.refused(at))), None):
            raise ValueError(f"{self.name(unit)}: {refused}")
        if isinstance(tars := dataset.inner, Tars):
            return lambda path: copy_members(tars, rows, path)
        source = self.paths[unit]
        return lambda path: LISTS[source.suffix.lower()](source, set(rows), path)


class Safe:
    """A dataset whose samples with a member that would be unpacked outside of its folder are bad."""

    def __init__(self, inner: Dataset) -> None:
        self.inner = inner
        if not isinstance(inner, Tars | Pairs):
            raise ValueError(
                "only webdataset shards and lists (.jsonl, .json, .csv, .parquet) have parts of their own."
            )

    @property
    def keys(self) -> Sequence[str]:
        return self.inner.keys

    def __len__(self) -> int:
        return len(self.inner)

    def classes(self) -> tuple[str, ...]:
        return self.inner.classes()

    def identity(self) -> dict[str, Any]:
        return self.inner.identity()

    def read(self, index: int) -> Sample | Bad:
        if reason := self.refused(index):
            return Bad(self.keys[index], printable(reason.split("'")[1]), reason)
        return self.inner.read(index)

    def refused(self, index: int) -> str | None:
        """Why a sample must not be written."""
        if not isinstance(self.inner, Tars):
            return None
        outside = (member.name for member in self.inner.members(index) if escapes(member.name))
        name = next(outside, None)
        return (
            None if name is None else f"has a member '{printable(name)}', which would be unpacked outside of its folder"
        )


def escapes(name: str) -> bool:
    """Whether a member of this name would be unpacked outside of the folder it is unpacked in, on any system."""
    if "\0" in name:
        return True
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    return bool(posix.is_absolute() or windows.drive or windows.root or ".." in posix.parts or ".." in windows.parts)


def copy_members(tars: Tars, rows: Sequence[int], path: Path) -> None:
    """Write the files of these samples of one shard to a new one, in the order they have there."""
    members = sorted((member for row in rows for member in tars.members(row)), key=lambda member: member.offset)
    shard = tars.shard(rows[0]) if rows else None
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape") as out:
        if shard is None:
            return
        with shard.open("rb") as file:
            for member in members:
                file.seek(member.offset - BLOCK)
                info = tarfile.TarInfo.frombuf(file.read(BLOCK), "utf-8", "surrogateescape")
                info.name, info.size, info.type, info.linkname = member.name, member.size, tarfile.REGTYPE, ""
                out.addfile(info, file)


def _lines(source: Path, rows: set[int], path: Path) -> None:
    with source.open("rb") as file, path.open("wb") as out:
        for number, line in enumerate(line for line in file if line.strip()):
            if number in rows:
                out.write(line if line.endswith(b"\n") else line + b"\n")


def _table(source: Path, rows: set[int], path: Path) -> None:
    with (
        source.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file,
        path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as out,
    ):
        reader, writer = csv.reader(file), csv.writer(out, lineterminator="\n")
        writer.writerow(next(reader))
        # DictReader, by which rows are counted, passes over empty ones
        writer.writerows(row for number, row in enumerate(row for row in reader if row) if number in rows)


def _parquet(source: Path, rows: set[int], path: Path) -> None:
    import pyarrow.parquet

    file, start = pyarrow.parquet.ParquetFile(source), 0
    with pyarrow.parquet.ParquetWriter(path, file.schema_arrow) as out:
        for batch in file.iter_batches():
            kept = [at for at in range(len(batch)) if start + at in rows]
            start += len(batch)
            if kept:
                out.write_batch(batch.take(pyarrow.array(kept)))


def _array(source: Path, rows: set[int], path: Path) -> None:
    content = json.loads(source.read_bytes())
    kept = [row for number, row in enumerate(content) if number in rows]
    path.write_text(json.dumps(kept, ensure_ascii=False, indent=2) + "\n", "utf-8", "surrogatepass")


LISTS: dict[str, Callable[[Path, set[int], Path], None]] = {
    ".jsonl": _lines,
    ".csv": _table,
    ".parquet": _parquet,
    ".json": _array,
}
