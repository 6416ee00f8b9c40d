import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_model import KINDS, REQUEST, chunks

from vsae.activations import ActivationStore, write_store


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., ActivationStore]:
    """Write the fake model's store to `tmp_path / name`; any argument of `write_store` may be another."""

    def write(name: str = "store", make_chunks=chunks, request=REQUEST, **options) -> ActivationStore:
        options = {"rows_per_shard": 100, "dtype": "float32", "max_bad_share": 0.2, "kind_names": KINDS} | options
        return write_store(tmp_path / name, make_chunks, request, **options)

    return write


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """`blocks.1` of a finished store: 76 samples of 17 tokens, float32, in shards of 100 rows."""
    path = tmp_path_factory.mktemp("store") / "store"
    options = {"rows_per_shard": 100, "dtype": "float32", "max_bad_share": 0.2, "kind_names": KINDS}
    return write_store(path, chunks, REQUEST, **options).site("blocks.1")


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Every file of a folder, hidden ones included, by its relative path."""
    return lambda folder: {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()
    }
