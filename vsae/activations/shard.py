"""One shard: a safetensors file of rows, written whole and read in place.

A shard holds `values` [rows, d_model], `kinds`, `samples` and `positions` [rows]. Readers take rows out of the file straight to where they belong
(`preadv` with one buffer a row), so shuffling costs no copy beyond reading.
"""

import ctypes
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Integer, Shaped, UInt64

from vsae.activations.source import Batch
from vsae.files import write_whole

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
TAGS = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
BITS = {torch.bfloat16: np.int16, torch.float16: np.int16, torch.float32: np.int32}
"""numpy has no bfloat16, so values pass through it as integers of the same width."""

IOV_MAX = 1024
LONGEST_BUFFER = 65536
"""Rows. Far below the 2 GB that one request may read."""

BRIDGED_BYTES = 32768
"""A gap between selected rows up to this long is read and thrown away: cheaper than a second request."""
BRIDGED_ROWS = 1024
"""The same for kinds, samples and positions, which take 13 bytes a row."""

META = {"kinds": np.uint8, "samples": np.int64, "positions": np.int32}

_preadv = ctypes.CDLL(None, use_errno=True).preadv
_preadv.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong]
_preadv.restype = ctypes.c_ssize_t


def row_bytes(d_model: int, dtype: torch.dtype) -> int:
    return d_model * dtype.itemsize


def write_shard(path: Path, rows: Batch) -> tuple[int, str]:
    """Write all rows to `path`, whole or not at all. Returns size in bytes and sha256."""
    arrays = {
        "samples": ("I64", rows.samples.numpy()),
        "positions": ("I32", rows.positions.numpy()),
        "values": (TAGS[rows.values.dtype], rows.values.view(integer(rows.values.dtype)).numpy()),
        "kinds": ("U8", rows.kinds.numpy()),
    }
    header, end = {}, 0
    for name, (tag, array) in arrays.items():
        header[name] = {"dtype": tag, "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    pieces: list[bytes | memoryview] = [
        len(text).to_bytes(8, "little"),
        text,
        *(array.reshape(-1).view(np.uint8).data for _, array in arrays.values()),
    ]
    checksum = hashlib.sha256()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            for piece in pieces:
                checksum.update(piece)
                file.write(piece)

    write_whole(path, write)
    return 8 + len(text) + end, checksum.hexdigest()


def integer(dtype: torch.dtype) -> torch.dtype:
    return torch.int16 if dtype.itemsize == 2 else torch.int32


class Columns(NamedTuple):
    """Memory for rows: the columns of a `Batch` as numpy arrays, values as integers of their width."""

    values: Shaped[np.ndarray, "slots d_model"]
    kinds: Shaped[np.ndarray, "slots"]
    samples: Shaped[np.ndarray, "slots"]
    positions: Shaped[np.ndarray, "slots"]

    @staticmethod
    def empty(n: int, d_model: int, dtype: torch.dtype) -> "Columns":
        return Columns(np.empty((n, d_model), BITS[dtype]), *(np.empty(n, meta) for meta in META.values()))

    def batch(self, dtype: torch.dtype) -> Batch:
        """As tensors; the values share this memory."""
        kinds, samples, positions = (torch.from_numpy(column.copy()) for column in self[1:])
        return Batch(torch.from_numpy(self.values).view(dtype), kinds, samples, positions)


@dataclass(frozen=True)
class Shard:
    """An open shard. Safe to read from several threads."""

    path: Path
    descriptor: int
    offsets: dict[str, int]
    n_rows: int
    row_bytes: int

    def meta(self, name: str, start: int, stop: int) -> Integer[np.ndarray, "rows"]:
        """`kinds`, `samples` or `positions` of rows start to stop."""
        out = np.empty(stop - start, META[name])
        if len(out) and os.preadv(self.descriptor, [out.data], self.offsets[name] + start * out.itemsize) != out.nbytes:
            raise truncated(self.path)
        return out

    def scatter(self, rows: Int[np.ndarray, "rows"], out: Columns, slots: Int[np.ndarray, "rows"]) -> None:
        """Put row rows[i] (ascending) at slots[i] of `out`; values go from the file to their slot with no copy between."""
        for near in runs(rows, BRIDGED_ROWS):
            low, high = int(rows[near.start]), int(rows[near.stop - 1]) + 1
            for name in META:
                getattr(out, name)[slots[near]] = self.meta(name, low, high)[rows[near] - low]
        waste = np.empty(BRIDGED_BYTES, np.uint8)
        buffers, starts, cuts = scatter_list(rows, slots, self.row_bytes, out.values.ctypes.data, waste.ctypes.data)
        for begin, end in pairwise(cuts):
            self._announce(starts[begin], starts[end - 1] + int(buffers[end - 1, 1]))
        for begin, end in pairwise(cuts):
            for some in range(begin, end, IOV_MAX):
                self._read(buffers[some : min(some + IOV_MAX, end)], starts[some])

    def _announce(self, start: int, stop: int) -> None:
        """Let the disk begin on bytes of the values that will be asked for soon, so that it has many requests at once."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor, self.offsets["values"] + start, stop - start, os.POSIX_FADV_WILLNEED)

    def _read(self, buffers: UInt64[np.ndarray, "n 2"], start: int) -> None:
        """Fill buffers (address, bytes) one after the other, from byte `start` of the values on."""
        position, size = self.offsets["values"] + start, int(buffers[:, 1].sum())
        while (read := _preadv(self.descriptor, buffers.ctypes.data, len(buffers), position)) != size:
            if read < 0:
                raise OSError(f"{self.path} cannot be read ({os.strerror(ctypes.get_errno())}).")
            if os.fstat(self.descriptor).st_size < position + size:
                raise truncated(self.path)


@contextmanager
def open_shard(path: Path, d_model: int, dtype: torch.dtype) -> Iterator[Shard]:
    """Open a shard for reading. Raises FileNotFoundError or ValueError with the file's name."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing: restore it, or extract the store again.") from error
    try:
        length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
        try:
            header = json.loads(os.pread(descriptor, min(length, 1 << 20), 8))
            offsets = {name: 8 + length + header[name]["data_offsets"][0] for name in Batch._fields}
            layout = header["values"]["dtype"], header["values"]["shape"][1]
            n_rows = header["values"]["shape"][0]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f"{path} is not a shard of activations: restore it, or extract the store again."
            ) from error
        if layout != (TAGS[dtype], d_model):
            raise ValueError(
                f"{path} holds {layout[0]} rows of {layout[1]}, not {TAGS[dtype]} rows of {d_model} as its manifest says."
            )
        yield Shard(path, descriptor, offsets, n_rows, row_bytes(d_model, dtype))
    finally:
        os.close(descriptor)


def scatter_list(
    rows: Int[np.ndarray, "rows"], slots: Int[np.ndarray, "rows"], row_bytes: int, out: int, waste: int
) -> tuple[UInt64[np.ndarray, "n 2"], list[int], list[int]]:
    """What to read where: (address, bytes) of each buffer, the byte of the values it begins at, and the indices at which a new request begins.

    Neighbours in the file that are neighbours in memory share a buffer; short gaps between selected rows go to `waste`.
    """
    new = np.ones(len(rows), bool)
    new[1:] = (np.diff(rows) != 1) | (np.diff(slots) != 1)
    new[::LONGEST_BUFFER] = True
    heads = np.flatnonzero(new)
    first, length = rows[heads], np.diff(np.append(heads, len(rows)))
    gaps = first[1:] - first[:-1] - length[:-1]
    bridged = np.flatnonzero((gaps > 0) & (gaps <= BRIDGED_BYTES // row_bytes))
    table = np.stack([out + slots[heads] * row_bytes, length * row_bytes, first * row_bytes], axis=1)
    if len(bridged):
        wasted = gaps[bridged] * row_bytes
        bridges = np.stack([np.full(len(bridged), waste), wasted, first[bridged + 1] * row_bytes - wasted], axis=1)
        table = np.insert(table, bridged + 1, bridges, axis=0)
    ends = table[:-1, 2] + table[:-1, 1]
    cuts = np.flatnonzero(table[1:, 2] != ends) + 1
    return np.ascontiguousarray(table[:, :2]).astype(np.uint64), table[:, 2].tolist(), [0, *cuts.tolist(), len(table)]


def runs(rows: Int[np.ndarray, "rows"], bridge: int) -> Iterator[slice]:
    """Slices of ascending `rows` within which no gap is longer than `bridge` rows."""
    if not len(rows):
        return
    cuts = np.flatnonzero(np.diff(rows) > bridge + 1) + 1
    edges = [0, *cuts.tolist(), len(rows)]
    yield from (slice(a, b) for a, b in pairwise(edges))


def truncated(path: Path) -> ValueError:
    return ValueError(f"{path} is shorter than its header says: restore it, or extract the store again.")
