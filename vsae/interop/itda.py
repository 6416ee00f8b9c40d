"""ITDA: `atoms.pt` [n, d], `atom_indices.pt` [n, 2] (the sequence and token each atom was), `metadata.yaml`. After 2505.17769 and a fork of its code.

Here an atom's sequence is its sample's number in the data; read, it is the sample's key, too, as theirs have none.

z = k steps of matching pursuit on unit atoms, with the largest |correlation| each time and signed codes; x_hat = z D. Neither bias nor centre.
What metadata.yaml calls its fields is known only in part: k is looked for as k, l0 and target_l0, or given as the option k.
"""

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from vsae.dictionaries import Free
from vsae.files import write_text, write_whole
from vsae.interop.foreign import Imported, checksums, number, read_pickle, take
from vsae.pursuit import MatchingPursuit
from vsae.sae import SAE
from vsae.sparsifiers import TopK
from vsae.tables import Origin

NAME = "itda"
ATOMS, INDICES, METADATA = "atoms.pt", "atom_indices.pt", "metadata.yaml"


def recognises(path: Path) -> bool:
    return (path / ATOMS).is_file()


def read(path: Path, k: int | None = None) -> Imported:
    """The dictionary as an SAE of matching pursuit, and where its atoms come from, if the files say. Raises ValueError with a sentence."""
    where, beside = path / ATOMS, path / METADATA
    (atoms,) = take({"atoms": read_pickle(where, kind=Tensor)}, where, atoms="n d")
    about = (yaml.safe_load(beside.read_text("utf-8")) if beside.is_file() else None) or {}
    if not isinstance(about, dict):
        raise ValueError(f"{beside} holds no fields: restore it, or remove it and give the option k.")
    said = {"k": k or next((about[name] for name in ("k", "l0", "target_l0") if name in about), None)}
    norms = torch.linalg.vector_norm(atoms, dim=1, keepdim=True)
    if not bool(((norms - 1).abs() < 1e-2).all()):  # half precision rounds a norm by as much as this
        raise ValueError(f"the atoms of {where} are not of unit norm, as ITDA's are: the file is damaged.")
    steps = number(said, "k", path)
    zero = torch.zeros(atoms.shape[1])
    sae = SAE(MatchingPursuit(signed=True), TopK(steps), Free(atoms / norms, unit_norm=False), zero)
    files = [file for file in (where, path / INDICES, beside) if file.is_file()]
    config: dict[str, Any] = {name: str(value) for name, value in about.items()}
    origins = None
    if (path / INDICES).is_file():
        indices = read_pickle(path / INDICES, kind=Tensor)
        if list(indices.shape) != [len(atoms), 2]:
            raise ValueError(
                f"{path / INDICES} is {list(indices.shape)}, not two numbers for each of {len(atoms)} atoms."
            )
        origins = [Origin(str(sample), token, sample) for sample, token in indices.long().tolist()]
    model = about.get("model_name") or about.get("lm_name")
    site = about.get("submodule_name")
    return Imported(sae.eval().requires_grad_(False), NAME, checksums(*files), model, site, config, origins=origins)


def write(sae: SAE, path: Path, fingerprint: dict[str, Any]) -> None:
    """atoms.pt and metadata.yaml. Raises ValueError for all but signed matching pursuit on unit atoms without a centre."""
    atoms = sae.atoms.detach().cpu().float()
    unit = bool(((torch.linalg.vector_norm(atoms, dim=1) - 1).abs() < 1e-4).all())
    pursuit = isinstance(sae.encoder, MatchingPursuit) and sae.encoder.signed and type(sae.sparsifier) is TopK
    if not (pursuit and unit and type(sae) is SAE and not bool(sae.bias.any())) or sae.scale is not None:
        raise ValueError(
            f"{NAME} knows signed matching pursuit of unit atoms alone, without a centre: this SAE is another."
        )
    assert isinstance(sae.sparsifier, TopK)
    model = fingerprint.get("model", {}).get("name")
    write_whole(path / ATOMS, lambda temporary: torch.save(atoms.contiguous().clone(), temporary))
    about = {"k": sae.sparsifier.k, "model_name": model, "submodule_name": fingerprint.get("site")}
    write_text(path / METADATA, yaml.safe_dump(about))


def write_origins(path: Path, origins: list[Origin]) -> None:
    """atom_indices.pt: the number of each atom's sample, and its token's position."""
    indices = torch.tensor([[origin.sample, origin.position] for origin in origins], dtype=torch.int64)
    write_whole(path / INDICES, lambda temporary: torch.save(indices, temporary))
