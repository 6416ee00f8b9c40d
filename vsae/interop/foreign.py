"""What the doors to other libraries share: an SAE that came in, one on its way out, and files opened with care."""

import pickle
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vsae.dictionaries import Free
from vsae.encoders import Linear
from vsae.files import sha256
from vsae.sae import SAE
from vsae.sparsifiers import Sparsifier
from vsae.tables import Origin


@dataclass(frozen=True)
class Imported:
    """An inference SAE on raw activations, from another library's files."""

    sae: SAE
    format: str
    """Which library's files."""

    files: dict[str, str]
    """What was read: name -> sha256."""

    model: str | None = None
    """The model it was trained on, as far as the files say."""

    site: str | None = None
    """Where in the model, in the library's own words."""

    config: dict[str, Any] = field(default_factory=dict)
    """Everything else that the files say, as JSON."""

    notes: tuple[str, ...] = ()
    """What does not mean the same here as there, a sentence each. Each was a warning, too."""

    origins: list[Origin] | None = None
    """Where each atom is from, if it is a row of the data and the files say so."""

    @property
    def origin(self) -> dict[str, Any]:
        """All but the SAE and its atoms' origins, as JSON."""
        said = {name: value for name, value in vars(self).items() if name not in ("sae", "origins")}
        return said | {"notes": list(self.notes)}


class Plain(NamedTuple):
    """The parts of an SAE that every library knows: z = sparsifier((x - b_dec) W_enc + b_enc), x_hat = z W_dec + b_dec."""

    W_enc: Float[Tensor, "d_model n_latents"]
    b_enc: Float[Tensor, "n_latents"]
    W_dec: Float[Tensor, "n_latents d_model"]
    b_dec: Float[Tensor, "d_model"]
    sparsifier: Sparsifier


def plain(sae: SAE, library: str) -> Plain:
    """The plain parts of a fused SAE, in float32 on the CPU. Raises ValueError for one that has others."""
    odd = None
    if type(sae) is not SAE or sae.scale is not None or sae.shift is not None:
        odd = f"a {type(sae).__name__} with more than an encoder, a sparsifier and a dictionary"
    elif not isinstance(sae.encoder, Linear):
        odd = f"a {type(sae.encoder).__name__} encoder"
    elif not isinstance(sae.dictionary, Free):
        odd = f"a {type(sae.dictionary).__name__} dictionary"
    if odd:
        raise ValueError(f"{library} has nothing that computes the same: this SAE has {odd}.")
    weights = (sae.W_enc, sae.b_enc, sae.atoms, sae.b_dec)
    W_enc, b_enc, W_dec, b_dec = (weight.detach().cpu().float().contiguous() for weight in weights)
    return Plain(W_enc, b_enc, W_dec, b_dec, sae.sparsifier)


def uncentred(of: Plain) -> Float[Tensor, "n_latents"]:
    """b_enc for a library that does not subtract b_dec from x: b_enc - b_dec W_enc."""
    return of.b_enc - of.b_dec @ of.W_enc


def centred(
    W_enc: Float[Tensor, "d_model n_latents"], b_enc: Float[Tensor, "n_latents"], b_dec: Float[Tensor, "d_model"]
) -> Float[Tensor, "n_latents"]:
    """The inverse of `uncentred`: our b_enc, for a library's that does not subtract b_dec from x."""
    return b_enc + b_dec @ W_enc


def refusal(sparsifier: Sparsifier, library: str, known: str) -> ValueError:
    """The sentence for a sparsifier that the library does not have."""
    return ValueError(f"{library} has nothing that computes the same as {type(sparsifier).__name__}: it knows {known}.")


def take(found: dict[str, Any], where: Path, **wanted: str) -> list[Tensor]:
    """Tensors by name, in float32; `wanted` gives their dimensions, as in W_enc="d n", where equal letters are equal sizes.

    Raises ValueError that names the file for one that is missing, no tensor of numbers, or of another shape than the ones before it say.
    """
    sizes: dict[str, int] = {}
    taken = []
    for name, dimensions in wanted.items():
        name, letters = name.replace("__", "."), dimensions.split()  # no dots in keywords
        tensor = found.get(name)
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{where} has no tensor {name}: it is not of this format, or damaged.")
        shape = list(tensor.shape)
        if len(shape) != len(letters) or any(
            sizes.setdefault(letter, size) != size for letter, size in zip(letters, shape, strict=True)
        ):
            said = ", ".join(f"{letter} = {size}" for letter, size in sizes.items())
            raise ValueError(
                f"{where}: {name} is {shape}, but should be [{', '.join(letters)}] with {said}: the file is damaged."
            )
        taken.append(tensor.detach().float())
    return taken


def read_pickle(path: Path, stream: Any = None, kind: type = dict) -> Any:
    """A dictionary (or what else `kind` is) that torch saved, in `stream` where the file holds more. Nothing in it is ever executed.

    Raises FileNotFoundError, or ValueError for a pickle with code in it, for one that is no `kind` and for a damaged one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: restore it.")
    try:
        content = torch.load(path if stream is None else stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, which would mean to execute it ({reason(error)}): "
            "save its state dict with torch.save(module.state_dict(), file) where you trust it."
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise ValueError(f"{path} is not a file that torch saved ({reason(error)}).") from None
    if not isinstance(content, kind):
        raise ValueError(f"{path} holds a {type(content).__name__}, where a {kind.__name__} should be.")
    return content


def number(cfg: dict[str, Any], name: str, where: Path) -> int:
    """A whole number that the configuration has to hold. Raises ValueError."""
    value = cfg.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{where} does not say what {name} is (it says {value!r}): its configuration is damaged.")
    return value


def reason(error: Exception) -> str:
    """The line of torch's long message that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if line.startswith(("WeightsUnpickler error", "Unsupported"))), lines[0])[:200]


def checksums(*paths: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in paths}


def noted(*notes: str | None) -> tuple[str, ...]:
    """Say each loudly, and keep it."""
    said = tuple(note for note in notes if note)
    for note in said:
        warnings.warn(note, UserWarning, stacklevel=3)
    return said
