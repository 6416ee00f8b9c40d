"""atoms.parquet in a run directory: where each atom is from, for dictionaries whose atoms are rows of the data (ITDA)."""

from pathlib import Path

from vsae.files import write_whole

ATOMS = "atoms.parquet"
Origin = tuple[str, int]
"""Key of the sample (its number, where there are no keys) and position of the token."""


def write_origins(run: Path, origins: list[Origin]) -> None:
    """One row an atom, in their order: key, position."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    keys, positions = ([origin[column] for origin in origins] for column in (0, 1))
    table = pa.table({"key": pa.array(keys, pa.string()), "position": pa.array(positions, pa.int64())})
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
        table = pq.read_table(path, columns=["key", "position"])
    except (pa.ArrowInvalid, KeyError) as error:
        raise ValueError(f"{path} is no table of atoms ({error}): restore it.") from error
    return list(zip(table["key"].to_pylist(), table["position"].to_pylist(), strict=True))
