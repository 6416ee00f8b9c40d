"""Where each member of a tar lies, and what of it is damaged.

`tarfile` ends without a word at a damaged header, and so would lose the rest of a shard in silence. Here the damage is named, and the
members after it are found again.
"""

import tarfile
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

BLOCK = tarfile.BLOCKSIZE
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Member(NamedTuple):
    name: str
    offset: int
    """Of the content, in bytes."""
    size: int


class Damage(NamedTuple):
    shard: Path
    offset: int
    reason: str


def index(shard: Path) -> Iterator[Member | Damage]:
    """Regular files in the tar and its damages, in order. Raises ValueError for a file that is no tar, or is compressed."""
    with shard.open("rb") as file:
        _check(shard, file)
        yield from _scan(shard, file)


def _check(shard: Path, file: BufferedReader) -> None:
    first = file.read(BLOCK)
    if not first:
        raise ValueError(f"{shard} is an empty file: leave it out, or get it again.")
    if kind := next((kind for magic, kind in COMPRESSED.items() if first.startswith(magic)), None):
        raise ValueError(f"{shard} is compressed ({kind}): unpack it to a plain .tar, which can be read at random.")
    if first[257:262] != b"ustar" and any(first):
        try:
            tarfile.TarInfo.frombuf(first, tarfile.ENCODING, "surrogateescape")
        except tarfile.HeaderError:
            raise ValueError(f"{shard} is not a tar: give webdataset shards.") from None


def _scan(shard: Path, file: BufferedReader) -> Iterator[Member | Damage]:
    size = file.seek(0, 2)
    file.seek(0)
    end = 0  # of what is accounted for
    whole = True
    # ignore_zeros makes tarfile look on, block by block, for the next good header.
    with tarfile.TarFile(
        fileobj=file, mode="r", ignore_zeros=True, encoding="utf-8", errors="surrogateescape"
    ) as archive:
        while (info := _next(archive)) is not None:
            archive.members.clear()  # type: ignore[attr-defined] # it would keep them all
            if _content(file, end, info.offset):
                yield Damage(shard, end, _damaged(shard, end, "the next readable file follows"))
            end = archive.offset
            whole = info.offset_data + info.size <= size
            if info.isreg() and not info.issparse():
                yield Member(info.name, info.offset_data, info.size)
    if _content(file, end, size):
        yield Damage(shard, end, _damaged(shard, end, "nothing after it can be read"))
    elif end >= size and whole:
        yield Damage(shard, end, f"{shard.name} has no end mark: it was cut off, or not written to the end")


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        return archive.next()
    except Exception:  # hostile headers break tarfile in many ways; the caller sees how far it came
        return None


def _content(file: BufferedReader, start: int, stop: int) -> bool:
    """Whether there is anything but zeros, which end or pad a tar, in the block at `start`."""
    place = file.tell()
    file.seek(start)
    block = file.read(min(BLOCK, max(0, stop - start)))
    file.seek(place)
    return any(block)


def _damaged(shard: Path, offset: int, after: str) -> str:
    return f"{shard.name} is damaged at byte {offset}: {after}"
