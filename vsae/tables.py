"""atoms.parquet in a run directory: where each atom is from, for dictionaries whose atoms are rows of the data (ITDA)."""

from pathlib import Path
from typing import NamedTuple

from vsae.files import write_whole

ATOMS = "atoms.parquet"


class Origin(NamedTuple):
    """Where an atom is from."""

    key: str
    """Of the sample; its number, where there are no keys."""
    position: int
    """Of the token in the sample."""
    sample: int
    """Number of the sample in the data that were read: what libraries without keys call it."""


def write_origins(run: Path, origins: list[Origin]) -> None:
    """One row an atom, in their order: key, position, sample."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    keys, positions, samples = ([origin[column] for origin in origins] for column in range(3))
    types = pa.schema([("key", pa.string()), ("position", pa.int64()), ("sample", pa.int64())])
    table = pa.table({"key": keys, "position": positions, "sample": samples}, schema=types)
    write_whole(run / ATOMS, lambda temporary: pq.write_table(table, temporary))


def read_origins(run: str | Path) -> list[Origin]:
    """The inverse. Raises FileNotFoundError for a run whose atoms are no rows of the data, ValueError for a file that is no such table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(run) / ATOMS
    if not path.is_file():
        raise FileNotFoundError(
            f"{run} does not say where its atoms are from (there is no {ATOMS}): only itda runs do."
        )
    try:
        table = pq.read_table(path, columns=list(Origin._fields))
    except (pa.ArrowInvalid, KeyError) as error:
        raise ValueError(f"{path} is no table of atoms ({error}): restore it.") from error
    return [Origin(*row) for row in zip(*(table[name].to_pylist() for name in Origin._fields), strict=True)]
