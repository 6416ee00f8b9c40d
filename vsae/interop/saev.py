"""OSU's saev: one file, a line of JSON and then what torch saved. Read from its source, header schemas 1 to 5 and those before there was a schema.

    W_enc [d, n]   b_enc [n]   W_dec [n, d]   b_dec [d]   activation.threshold (BatchTopK)

z = activation(x W_enc + b_enc): b_dec is not subtracted, except in files without a schema, of when it was. Its TopK keeps the k largest as they are, so
negative ones too where fewer are positive: SignedTopK here. BatchTopK reads by its threshold.
"""

import io
import json
import warnings
from pathlib import Path
from typing import Any

import torch

from vsae.files import write_whole
from vsae.interop.foreign import (
    Imported,
    centred,
    checksums,
    noted,
    number,
    plain,
    read_pickle,
    refusal,
    take,
    uncentred,
)
from vsae.interop.parts import SignedTopK
from vsae.sae import SAE
from vsae.sparsifiers import ReLU, Sparsifier, Threshold, TopK

NAME = "saev"
SCHEMA = 5
FILE = "sae.pt"
"""What `write` calls it."""


def recognises(path: Path) -> bool:
    return header_of(path) is not None


def header_of(path: Path) -> dict[str, Any] | None:
    """The first line of the file, or of the one .pt file in a directory, where it is JSON."""
    try:
        with file_of(path).open("rb") as stream:
            header = json.loads(stream.readline(1 << 16))
    except (OSError, ValueError):
        return None
    return header if isinstance(header, dict) else None


def file_of(path: Path) -> Path:
    return path / FILE if path.is_dir() else path


def read(path: Path) -> Imported:
    """The SAE of a saev checkpoint. Raises ValueError with a sentence for a newer schema and for an activation that is not known."""
    where = file_of(path)
    header = header_of(path) or {}
    schema = header.get("schema")
    if schema is not None and not (isinstance(schema, int) and 1 <= schema <= SCHEMA):
        raise ValueError(f"{where} is of schema {schema} of saev: schemas 1 to {SCHEMA} are known here.")
    body = where.read_bytes().split(b"\n", 1)[1]
    found = read_pickle(where, io.BytesIO(body))
    cfg = header if schema is None else header.get("cfg") or {}
    W_enc, b_enc, W_dec, b_dec = take(found, where, W_enc="d n", b_enc="n", W_dec="n d", b_dec="d")
    kind, params = activation_of(header, cfg)
    sparsifier: Sparsifier
    note = None
    if kind == "Relu":
        sparsifier = ReLU()
    elif kind == "TopK":
        sparsifier = SignedTopK(number(params, "top_k", where))
    elif kind == "BatchTopK" and "activation.threshold" in found:
        sparsifier = Threshold(take(found, where, activation__threshold="")[0].clamp_min(0))
    elif kind == "BatchTopK":  # before it had a threshold it was a TopK in all but name
        sparsifier = SignedTopK(number(params, "top_k", where))
        note = f"{where} is a BatchTopK of before saev kept its threshold: it takes the k largest of each row, as saev did."
    else:
        raise ValueError(f"{where} has the activation {kind}, which has no counterpart here.")
    if schema is not None:
        b_enc = centred(W_enc, b_enc, b_dec)
    sae = SAE.from_weights(W_enc, b_enc, W_dec, b_dec, sparsifier)
    return Imported(sae, NAME, checksums(where), config=header, notes=noted(note))


def activation_of(header: dict[str, Any], cfg: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Class and fields of the activation; the first files of schema 1 name it in place of the SAE's class."""
    activation = cfg.get("activation")
    if isinstance(activation, dict):
        return str(activation.get("cls")), activation.get("params") or {}
    kind = header.get("cls", "Relu")
    return (kind, {"top_k": 32} | cfg) if kind in ("TopK", "BatchTopK") else ("Relu", {})


def write(sae: SAE, path: Path, fingerprint: dict[str, Any]) -> None:
    """`sae.pt` as saev's `load` takes it. Raises ValueError for what it cannot express, and warns where its TopK is another than ours."""
    of = plain(sae, NAME)
    d, n = of.W_enc.shape
    tensors = {"W_enc": of.W_enc, "b_enc": uncentred(of), "W_dec": of.W_dec, "b_dec": of.b_dec}
    params: dict[str, Any] = {}
    if type(of.sparsifier) is ReLU:
        kind = "Relu"
    elif isinstance(of.sparsifier, TopK | SignedTopK):
        kind, params = "TopK", {"top_k": of.sparsifier.k}
        if isinstance(of.sparsifier, TopK):
            warnings.warn(
                "saev's TopK keeps negative pre-activations where fewer than k are positive, and ours drops them: such rows will differ.",
                UserWarning,
                stacklevel=3,
            )
    elif isinstance(of.sparsifier, Threshold) and of.sparsifier.threshold.unique().numel() == 1:
        threshold = of.sparsifier.threshold.flatten()[0].detach().cpu().float()
        if threshold < 0:
            raise ValueError("saev takes a threshold below 0 for 0: it has nothing that computes the same.")
        kind, tensors["activation.threshold"] = "BatchTopK", threshold
    else:
        raise refusal(of.sparsifier, NAME, "ReLU, TopK and one threshold for all latents")
    cfg = {"d_model": d, "d_sae": n, "activation": {"cls": kind, "params": params}, "normalize_w_dec": False}
    header = {"schema": SCHEMA, "cfg": cfg, "commit": "unknown", "lib": "vsae"}
    whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}

    def put(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            stream.write(json.dumps(header).encode() + b"\n")
            torch.save(whole, stream)

    write_whole(path / FILE, put)
