"""EleutherAI's sparsify: a directory a hookpoint, with `cfg.json` and `sae.safetensors`. Read from eai-sparsify 1.3.3 (PyPI).

    encoder.weight [n, d]   encoder.bias [n]   W_dec [n, d] (as ours: no transpose)   b_dec [d]   W_skip [d, d]

z = the k largest of relu((x - b_dec) W_enc + b_enc), or the largest of each of k groups (groupmax); x_hat = z W_dec + b_dec. A transcoder does not subtract b_dec; a skip adds x W_skip^T. Weights are
often bfloat16, and become float32 here. A hookpoint is a module of the model, and what is read is its output.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vsae.dictionaries import Free
from vsae.encoders import Linear
from vsae.files import read_json, write_json
from vsae.interop.foreign import Imported, Plain, checksums, number, plain, refusal, take
from vsae.sae import SAE
from vsae.sparsifiers import GroupMax, TopK
from vsae.tensors import read_tensors, write_tensors
from vsae.transcoder import Transcoder

NAME = "sparsify"
CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"


def recognises(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def read(path: Path) -> Imported:
    """The SAE or transcoder of a hookpoint. Raises ValueError with a sentence for an SAE with a skip, which we do not have."""
    cfg, where = read_json(path / CONFIG), path / WEIGHTS
    activation = cfg.get("activation", "topk")
    if activation not in ("topk", "groupmax"):
        raise ValueError(f"{path} selects by {activation}, which has no counterpart here.")
    found = read_tensors(where)
    if "W_dec" not in found and "decoder.weight" in found:  # as early versions called it
        found["W_dec"] = found["decoder.weight"]
    weight, bias, W_dec, b_dec = take(found, where, encoder__weight="n d", encoder__bias="n", W_dec="n o", b_dec="o")
    sparsifier = (TopK if activation == "topk" else GroupMax)(number(cfg, "k", path))
    sae: SAE
    if cfg.get("transcode"):
        skip: Tensor | None = take(found, where, W_dec="n o", W_skip="o o")[1] if cfg.get("skip_connection") else None
        dictionary, b_in = Free(W_dec, unit_norm=False), torch.zeros(weight.shape[1])
        sae = Transcoder(Linear(weight, bias), sparsifier, dictionary, b_dec, b_in=b_in, skip=skip)
        sae = sae.eval().requires_grad_(False)
    elif cfg.get("skip_connection"):
        raise ValueError(f"{path} adds a linear map of x to what an SAE says, which has no counterpart here.")
    else:
        sae = SAE.from_weights(weight.T, bias, W_dec, b_dec, sparsifier)
    model = None
    if (run := path.parent / "config.json").is_file():  # of the whole run, beside its hookpoints
        model = read_json(run).get("model")
    return Imported(sae, NAME, checksums(path / CONFIG, where), model, path.name, cfg)


def write(sae: SAE, path: Path, fingerprint: dict[str, Any]) -> None:
    """The directory sparsify's `SparseCoder.load_from_disk` loads: an SAE, or a transcoder between sites of one width.

    Raises ValueError for all but TopK and groups of one size, and for other transcoders.
    """
    if isinstance(sae, Transcoder):
        of, skip = between(sae)
    else:
        of, skip = plain(sae, NAME), None
    d, n = of.W_enc.shape
    if not isinstance(of.sparsifier, TopK | GroupMax) or (isinstance(of.sparsifier, GroupMax) and n % of.sparsifier.k):
        raise refusal(of.sparsifier, NAME, "TopK, and GroupMax of groups of one size")
    cfg = {
        "activation": "topk" if isinstance(of.sparsifier, TopK) else "groupmax",
        "expansion_factor": max(1, n // d),
        "normalize_decoder": False,
        "num_latents": n,
        "k": of.sparsifier.k,
        "multi_topk": False,
        "skip_connection": skip is not None,
        "transcode": isinstance(sae, Transcoder),
        "d_in": d,
    }
    tensors = {"encoder.weight": of.W_enc.T, "encoder.bias": of.b_enc, "W_dec": of.W_dec, "b_dec": of.b_dec}
    write_tensors(path / WEIGHTS, tensors if skip is None else tensors | {"W_skip": skip})
    write_json(path / CONFIG, cfg)


def between(sae: Transcoder) -> tuple[Plain, Tensor | None]:
    """The parts of a transcoder and its skip, with b_in folded away, which sparsify does not have. Raises ValueError for one it cannot hold."""
    d_in, d_out = len(sae.b_in), len(sae.b_dec)
    if not isinstance(sae.encoder, Linear) or not isinstance(sae.dictionary, Free) or d_in != d_out:
        raise ValueError(
            f"{NAME} has transcoders with a linear encoder between sites of one width alone: this one is of "
            f"{type(sae.encoder).__name__} and {type(sae.dictionary).__name__}, from {d_in} to {d_out}."
        )
    weight, b_dec, skip = sae.encoder.weight.detach(), sae.b_dec.detach(), sae.skip
    b_enc = sae.encoder.bias.detach() - weight @ sae.b_in.detach()
    if skip is not None:
        skip, b_dec = skip.detach(), b_dec - skip.detach() @ sae.b_in.detach()
    return Plain(weight.T, b_enc, sae.atoms.detach(), b_dec, sae.sparsifier), skip
