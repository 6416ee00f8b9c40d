"""Tables of what is true of each sample (or of each token): the truth that codes are held against.

    table.parquet            key, [position,] and columns: booleans and 0/1 as they are, words as `column:word`, lists of words as several of these
    table.jsonl              {"key": ..., ["position": ...,] "attributes": ...} a line
    table.json               {key: attributes}
    a dataset                the field `attributes` of each sample's json (or row), as webdataset shards have it

`attributes` is a list of words, each a column, or an object: {"red": true, "shape": "star", "colours": ["red", "blue"]} is red, shape:star, colours:red
and colours:blue. What a row does not name is false of it. Numbers are no attributes.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int64
from scipy.sparse import csc_array, csr_array, hstack

from modalities.data import Dataset, Sample, open_dataset
from vsae.files import read_json

FIELD = "attributes"
MOST_WORDS = 512
"""A parquet column of words with more of them than this is text or a name, not an attribute."""

Record = tuple[str, int, set[str]]
"""(key, position or -1, what is true)."""


@dataclass(frozen=True)
class Attributes:
    """Row i says what is true of sample `keys[i]`, or of its token `positions[i]`."""

    keys: tuple[str, ...]
    names: tuple[str, ...]
    truth: csr_array
    """[rows, attributes], True where it holds."""
    positions: Int64[np.ndarray, "rows"] | None = None
    """Token of the sample; None for a table of samples."""

    def rows_of(
        self, keys: Sequence[str], positions: Int[np.ndarray, "rows"] | None = None
    ) -> Int64[np.ndarray, "rows"]:
        """Row of this table for each (key, position) asked for; -1 where it has none. A table of samples ignores the positions."""
        if self.positions is None or positions is None:
            place: dict[Any, int] = {key: row for row, key in enumerate(self.keys)}
            return np.array([place.get(key, -1) for key in keys], np.int64)
        place = {asked: row for row, asked in enumerate(zip(self.keys, self.positions.tolist(), strict=True))}
        return np.array([place.get(asked, -1) for asked in zip(keys, positions.tolist(), strict=True)], np.int64)

    def with_parents(self, hierarchy: Mapping[str, Sequence[str]]) -> "Attributes":
        """Add a column for each parent the table lacks, true where one of its children is.

        Raises ValueError for a child that is neither a column nor a parent, and for a parent below itself.
        """
        columns: dict[str, csc_array] = {}
        known, truth = {name: at for at, name in enumerate(self.names)}, csc_array(self.truth)

        def column(name: str, above: tuple[str, ...]) -> csc_array:
            if name in above:
                raise ValueError(f"the hierarchy goes in a circle: {' > '.join((*above, name))}. Take one step out.")
            if name in known:
                return truth[:, [known[name]]]
            if name not in hierarchy or not hierarchy[name]:
                raise ValueError(f"the hierarchy names {name!r}, which is no attribute: {some(self.names)}.")
            if name not in columns:
                children = [column(child, (*above, name)) for child in hierarchy[name]]
                columns[name] = csc_array(hstack(children).sum(1)[:, None] > 0)
            return columns[name]

        for parent, children in hierarchy.items():
            for name in (parent, *children):
                column(name, () if name == parent else (parent,))
        if not columns:
            return self
        wider = csr_array(hstack([truth, *columns.values()], "csr", dtype=bool))
        return Attributes(self.keys, (*self.names, *columns), wider, self.positions)


def of_records(records: Iterable[Record]) -> Attributes:
    """The table of (key, position, names of what is true); columns are sorted. Raises ValueError for none, and for one that comes twice."""
    rows = list(records)
    if not rows:
        raise ValueError("the table of attributes has no rows: see that it is the right file.")
    tokens = {position >= 0 for _, position, _ in rows}
    if len(tokens) > 1:
        raise ValueError("some rows of the table of attributes have a position and some have none: give all or none.")
    seen: set[tuple[str, int]] = set()
    for key, position, _ in rows:
        if (key, position) in seen:
            where = f" at position {position}" if position >= 0 else ""
            raise ValueError(f"the table of attributes has key {key!r}{where} twice: keep one of the rows.")
        seen.add((key, position))
    names = tuple(sorted(set().union(*(true for _, _, true in rows))))
    if not names:
        raise ValueError(
            "the table of attributes has no attribute that is true of anything: see that it is the right file."
        )
    place = {name: at for at, name in enumerate(names)}
    indices = [sorted(place[name] for name in true) for _, _, true in rows]
    indptr = np.cumsum([0] + [len(row) for row in indices])
    flat = np.array([at for row in indices for at in row], np.int64)
    truth = csr_array((np.ones(len(flat), bool), flat, indptr), shape=(len(rows), len(names)))
    positions = np.array([position for _, position, _ in rows], np.int64) if tokens == {True} else None
    return Attributes(tuple(key for key, _, _ in rows), names, truth, positions)


def read(path: Path | str, field: str = FIELD, threads: int = 2) -> Attributes:
    """The table in a .parquet, .json or .jsonl file that has a column `key`; of anything else, what `modalities.data.open_dataset` finds there.

    Raises FileNotFoundError and ValueError in a sentence.
    """
    path = Path(path)
    if path.suffix == ".parquet" and path.is_file():
        return of_records(of_parquet(path))
    if path.suffix == ".json" and path.is_file():
        content = read_json(path)
        if not isinstance(content, dict):
            raise ValueError(
                f"{path} is not an object of key -> attributes: write it as one, or as .jsonl or .parquet."
            )
        return of_records((key, -1, expanded(value, f"{path}, {key!r}")) for key, value in content.items())
    if path.suffix == ".jsonl" and path.is_file():
        return of_records(of_lines(path, field))
    return of_records(of_dataset(open_dataset(path), field, threads))


def of_dataset(dataset: Dataset, field: str = FIELD, threads: int = 2) -> Iterator[Record]:
    """What each good sample's own record says. Raises ValueError when none has the field."""
    found = False
    with ThreadPoolExecutor(threads) as pool:
        for sample in pool.map(dataset.read, range(len(dataset))):
            if isinstance(sample, Sample) and field in sample.extra:
                found = True
                yield sample.key, -1, expanded(sample.extra[field], f"sample {sample.key!r}")
    if not found:
        raise ValueError(f"no sample has a field {field!r} of attributes in its json: name the field, or give a table.")


def of_lines(path: Path, field: str) -> Iterator[Record]:
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            raise ValueError(f"{path}, line {number} is not JSON: write one object a line.") from None
        if not isinstance(row, dict) or not isinstance(row.get("key"), str) or field not in row:
            raise ValueError(f"{path}, line {number} lacks 'key' or {field!r}: each line needs both.")
        position = row.get("position", -1)
        if not isinstance(position, int):
            raise ValueError(f"{path}, line {number} has position {position!r}: it is the number of a token.")
        yield row["key"], position, expanded(row[field], f"{path}, line {number}")


def of_parquet(path: Path) -> Iterator[Record]:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    if "key" not in table.column_names:
        raise ValueError(f"{path} has no column 'key': add one with the key of each sample.")
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    keys, positions = columns.pop("key"), columns.pop("position", None)
    kept = {name: values for name, values in columns.items() if is_attribute(values)}
    if not kept:
        raise ValueError(f"{path} has no column of attributes: they are booleans, 0 and 1, words, or lists of words.")
    for row, key in enumerate(keys):
        true: set[str] = set()
        for name, values in kept.items():
            value = values[row]
            if isinstance(value, int | float):
                value = bool(value)
            true |= (
                expanded(value, f"{path}, row {row}")
                if name == FIELD
                else expanded({name: value}, f"{path}, row {row}")
            )
        yield str(key), -1 if positions is None else int(positions[row]), true


def is_attribute(values: Sequence[Any]) -> bool:
    """Whether a column holds booleans, 0 and 1, or few enough words."""
    present = [value for value in values if value is not None]
    if all(isinstance(value, bool | int | float) for value in present):
        return bool(present) and set(present) <= {0, 1}
    words = [word for value in present for word in (value if isinstance(value, list) else [value])]
    return all(isinstance(word, str) for word in words) and len(set(words)) <= MOST_WORDS


def expanded(value: Any, where: str) -> set[str]:
    """Names of what is true. Raises ValueError, saying where, for what is neither a list of words nor an object."""
    if value is None:
        return set()
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return set(value)
    if not isinstance(value, Mapping):
        raise ValueError(
            f"the attributes of {where} are neither a list of words nor an object: write them as one of these."
        )
    true: set[str] = set()
    for name, held in value.items():
        words = held if isinstance(held, list) else [held]
        true |= {f"{name}:{word}" for word in words if isinstance(word, str)}
        if held is True:
            true.add(str(name))
    return true


def read_hierarchy(path: Path) -> dict[str, list[str]]:
    """{parent: [children]} of a JSON file. Raises ValueError for anything else."""
    content = read_json(path)
    sound = isinstance(content, dict) and all(
        isinstance(children, list) and all(isinstance(child, str) for child in children)
        for children in content.values()
    )
    if not sound:
        raise ValueError(f"{path} is no hierarchy: write an object of parent -> list of children.")
    return content


def some(names: Sequence[str], most: int = 8) -> str:
    """The first few names, for a sentence."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
