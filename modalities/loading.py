"""What loading a model of any family needs: weights with an identity, random weights from a seed, errors that are sentences."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def local_dir(name: str) -> Path | None:
    """The directory a name means, or None for a hub name. Raises FileNotFoundError for what can only be a path and is none."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise FileNotFoundError(
            f"{name} is a file: give the directory that holds the model's configuration and weights."
        )
    if name.startswith(("/", "./", "../", "~", ".\\")) or (name.count("/") > 1 and ":" not in name):
        raise FileNotFoundError(f"there is no directory {name}: give a directory with a model, or a hub name.")
    return None


def read_config(directory: Path, file: str) -> dict[str, Any]:
    """A JSON configuration in a model directory. Raises FileNotFoundError or ValueError."""
    if not (directory / file).is_file():
        raise FileNotFoundError(f"{directory} holds no {file}: is it a model directory?")
    try:
        content = json.loads((directory / file).read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{directory / file} is not readable JSON ({error}): restore it.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{directory / file} holds no JSON object: restore it.")
    return content


@contextmanager
def loading(name: str, seed: int) -> Iterator[None]:
    """Turn what a library raises while it loads into one sentence, and draw what weights it draws at random from `seed`.

    Raises OSError.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    except Exception as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise OSError(f"cannot load {name}{_hint(error, said)}: {said}") from error


def _hint(error: BaseException | None, said: str) -> str:
    """What is behind an error of the hub: libraries say of some that a file is missing."""
    from huggingface_hub import errors

    behind = []
    while error is not None:
        behind.append(error)
        error = error.__cause__ or error.__context__
    if any(isinstance(one, errors.GatedRepoError) for one in behind):
        return " (it is gated: accept its terms on its page at the hub, then log in with `hf auth login`)"
    offline = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError)
    if any(isinstance(one, offline) for one in behind) or "connect" in said.lower() or "offline" in said.lower():
        return " (no connection to the hub, and no copy in its cache)"
    return ""


def config_commit(config: Any, name: str) -> str | None:
    """The commit that transformers loaded a configuration from: as it noted it, else from where the file lies in the hub's cache."""
    return getattr(config, "_commit_hash", None) or (None if local_dir(name) else commit(name, "config.json"))


def commit(repository: str, *files: str) -> str | None:
    """The commit of the hub's repository that was just loaded, from where one of its files lies in the cache; None for one not there."""
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = repository.partition("@")
    for file in files:
        found = try_to_load_from_cache(name, file, revision=revision or None)
        if isinstance(found, str):
            parts = Path(found).parts
            return parts[parts.index("snapshots") + 1]
    return None


def placed(module: Module, device: str | torch.device | None, dtype: str | torch.dtype | None) -> Module:
    """The module on its device, in its dtype; None keeps what the library chose. Raises ValueError for an unknown dtype."""
    if isinstance(dtype, str):
        known = {
            "float32": torch.float32,
            "bfloat16": torch.bfloat16,
            "float16": torch.float16,
            "float64": torch.float64,
        }
        if dtype not in known:
            raise ValueError(f"dtype is {dtype!r}: choose one of {', '.join(known)}.")
        dtype = known[dtype]
    try:
        return module.to(device=device, dtype=dtype)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"cannot put the model on device {str(device)!r}: {str(error).splitlines()[0]}") from error


def provenance(
    family: str,
    library: str,
    name: str,
    module: nn.Module,
    *,
    revision: str | None,
    seed: int | None,
    preprocessing: dict[str, Any],
    dtype: str | torch.dtype | None,
) -> dict[str, Any]:
    """Where a model comes from. `weights` is taken before a cast to `dtype`; `seed` is set where the weights are random."""
    return {
        "family": family,
        "library": library,
        "name": os.path.basename(os.path.normpath(name)) if local_dir(name) else name,
        "revision": revision,
        "weights": weights_digest(module),
        "pretrained": seed is None,
        "seed": seed,
        "dtype": str(dtype or next(module.parameters()).dtype).removeprefix("torch."),
        "versions": {package: version(package) for package in ("torch", library)},
        "preprocessing": preprocessing,
    }


def weights_digest(module: nn.Module) -> str:
    """sha256 over names, dtypes, shapes and bytes of the state dict: the identity of a model's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
