"""Tensors in safetensors files, written whole, with errors in the library's own words turned into a sentence that names the file."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vsae.files import write_whole


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write CPU copies of the tensors to `path`. Raises OSError, leaving the old file, where the disk does not take them."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        try:
            save_file(plain, temporary)
        except SafetensorError as error:
            raise OSError(f"cannot write {path}: {error}") from error

    try:
        write_whole(path, write)
    except OSError:
        path.with_name(f".{path.name}.partial").unlink(missing_ok=True)
        raise


def read_tensors(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """All tensors of a file. Raises FileNotFoundError, or ValueError naming a file that is not readable."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: restore it or make it again.")
    try:
        return load_file(path, device=device)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): restore it or make it again.") from error
