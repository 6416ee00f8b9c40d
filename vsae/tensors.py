"""Tensors in safetensors files, written whole, with errors in the library's own words turned into a sentence that names the file."""

import os
import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vsae.files import write_whole


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write CPU copies of the tensors to `path`. Raises OSError, leaving the old file, where the disk does not take them."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the umask asks for; safetensors lets nobody else read its files
        try:
            save_file(plain, temporary)
        except SafetensorError as error:
            if number := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
            raise OSError(f"cannot write {path}: {error}") from error
        temporary.chmod(mode)

    write_whole(path, write)


def read_tensors(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """All tensors of a file. Raises FileNotFoundError, or ValueError naming a file that is not readable."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: restore it or make it again.")
    try:
        return load_file(path, device=device)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): restore it or make it again.") from error
