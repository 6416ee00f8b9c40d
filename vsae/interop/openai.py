"""OpenAI's sparse_autoencoder: one .pt file, the state dict with the activation's name in it. Read from its source (`Autoencoder.from_state_dict`).

    encoder.weight [n, d]   decoder.weight [d, n] (none where tied)   pre_bias [d]   latent_bias [n]   activation   activation_state_dict {k, postact_fn}

z = activation((x - pre_bias) W_enc + latent_bias), x_hat = z W_dec + pre_bias. An activation called TopK means, too, that each row is normalised first
and taken back afterwards: see `vsae.interop.parts.RowNormalised`.
"""

from pathlib import Path
from typing import Any

import torch

from vsae.files import write_whole
from vsae.interop.foreign import Imported, checksums, number, plain, read_pickle, refusal, take
from vsae.interop.parts import RowNormalised, SignedTopK, row_normalised
from vsae.sae import SAE
from vsae.sparsifiers import ReLU, Sparsifier, TopK

NAME = "openai"
FILE = "autoencoder.pt"
"""What `write` calls it; any name is read."""


def file_of(path: Path) -> Path:
    return path / FILE if path.is_dir() else path


def recognises(path: Path) -> bool:
    return file_of(path).suffix == ".pt" and {"pre_bias", "latent_bias"} <= names_in(file_of(path))


def names_in(path: Path) -> set[str]:
    """The names in a dictionary that torch saved; none where it is not one."""
    try:
        return set(read_pickle(path))
    except (ValueError, FileNotFoundError):
        return set()


def read(path: Path) -> Imported:
    """The autoencoder of a file. Raises ValueError with a sentence for an activation that is not known."""
    where = file_of(path)
    found = read_pickle(where)
    weight, b_enc, b_dec = take(found, where, encoder__weight="n d", latent_bias="n", pre_bias="d")
    decoder = weight.T
    if "decoder.weight" in found:
        decoder = take(found, where, latent_bias="n", pre_bias="d", decoder__weight="d n")[2]
    kind = found.get("activation", "ReLU")
    state = found.get("activation_state_dict") or {}
    if kind == "TopK":
        k, after = number(state, "k", where), state.get("postact_fn", "ReLU")
        if after not in ("ReLU", "Identity"):
            raise ValueError(f"{where} applies {after} to the k largest, which has no counterpart here.")
        sparsifier: Sparsifier = TopK(k) if after == "ReLU" else SignedTopK(k)
        sae = row_normalised(weight.T, b_enc, decoder.T, b_dec, sparsifier, "layer_norm")
    elif kind == "ReLU":
        sae = SAE.from_weights(weight.T, b_enc, decoder.T, b_dec, ReLU())
    else:
        raise ValueError(f"{where} has the activation {kind}, which has no counterpart here.")
    return Imported(sae, NAME, checksums(where), config={"activation": kind} | state)


def write(sae: SAE, path: Path, fingerprint: dict[str, Any]) -> None:
    """`autoencoder.pt` for `Autoencoder.from_state_dict`: ReLU, or one that was read from there. Raises ValueError for others."""
    more: dict[str, Any] = {"activation": "ReLU"}
    if isinstance(sae.encoder, RowNormalised) and sae.encoder.how == "layer_norm":
        if not isinstance(sae.sparsifier, TopK | SignedTopK):
            raise refusal(sae.sparsifier, NAME, "TopK alone, where rows are normalised")
        W_dec, b_dec = sae.atoms[:-2], sae.atoms[-2]
        weight = sae.encoder.weight.detach()
        b_enc = sae.encoder.bias + weight @ b_dec
        after = "ReLU" if isinstance(sae.sparsifier, TopK) else "Identity"
        more = {"activation": "TopK", "activation_state_dict": {"k": sae.sparsifier.k, "postact_fn": after}}
    else:
        of = plain(sae, NAME)
        if type(of.sparsifier) is not ReLU:
            raise refusal(of.sparsifier, NAME, "ReLU, and TopK only of rows that are normalised")
        weight, b_enc, W_dec, b_dec = of.W_enc.T, of.b_enc, of.W_dec, of.b_dec
    n = len(b_enc)
    tensors = {"encoder.weight": weight, "decoder.weight": W_dec.T, "pre_bias": b_dec, "latent_bias": b_enc}
    whole = {name: tensor.detach().cpu().float().contiguous().clone() for name, tensor in tensors.items()}
    unknown = {"stats_last_nonzero": torch.zeros(n, dtype=torch.long)}
    unknown |= {"latents_activation_frequency": torch.ones(n), "latents_mean_square": torch.zeros(n)}  # as at its start
    write_whole(path / FILE, lambda temporary: torch.save(whole | unknown | more, temporary))
