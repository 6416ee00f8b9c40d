"""dictionary_learning (Marks, Karvonen, Mueller): `trainer_i/{config.json, ae.pt}`. Read from release 0.1.0 (PyPI).

    dict_class                       tensors of ae.pt                                                              here
    AutoEncoder                      bias  encoder.weight [n, d]  encoder.bias  decoder.weight [d, n]              ReLU (1)
    AutoEncoderNew                   encoder.weight, .bias  decoder.weight, .bias; subtracts no bias from x         ReLU
    GatedAutoEncoder                 decoder_bias  encoder.weight  decoder.weight  r_mag  gate_bias  mag_bias       Gated
    JumpReluAutoEncoder              W_enc [d, n]  b_enc  W_dec [n, d]  b_dec  threshold [n]; subtracts no bias     Threshold
    AutoEncoderTopK                  b_dec  k  threshold  encoder.weight, .bias  decoder.weight                     TopK
    BatchTopKSAE                     the same                                                                      Threshold
    MatryoshkaBatchTopKSAE           W_enc  b_enc  W_dec  b_dec  k  threshold  group_sizes                          Threshold

A backup of a training is the same file with all this under the key "ae". A threshold of -1 was never set, which leaves a ReLU. (1): `load_dictionary`
brings the atoms of an AutoEncoder to unit norm, and its codes are those of then; here, too.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vsae.files import read_json, write_json, write_whole
from vsae.interop.foreign import (
    Imported,
    Plain,
    centred,
    checksums,
    number,
    plain,
    read_pickle,
    refusal,
    take,
    uncentred,
)
from vsae.sae import SAE
from vsae.sparsifiers import Gated, ReLU, Sparsifier, Threshold, TopK

NAME = "dictionary_learning"
CONFIG, WEIGHTS = "config.json", "ae.pt"


def recognises(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def read(path: Path) -> Imported:
    """The dictionary of a trainer's directory, as its `load_dictionary` gives it. Raises ValueError with a sentence."""
    where = path / WEIGHTS
    cfg = read_json(path / CONFIG)
    trainer = cfg.get("trainer") or {}
    kind = trainer.get("dict_class")
    found = read_pickle(where)
    if isinstance(found.get("ae"), dict):  # a backup
        found = found["ae"]
    layouts = {
        "AutoEncoder": lambda: unit(linear(found, where, "bias", ReLU())),
        "AutoEncoderNew": lambda: uncentred_linear(found, where),
        "GatedAutoEncoder": lambda: gated(found, where),
        "JumpReluAutoEncoder": lambda: jumprelu(found, where),
        "AutoEncoderTopK": lambda: linear(found, where, "b_dec", TopK(number(trainer | k_of(found), "k", path))),
        "BatchTopKSAE": lambda: linear(found, where, "b_dec", threshold_of(found, where)),
        "MatryoshkaBatchTopKSAE": lambda: matrices(found, where, threshold_of(found, where)),
    }
    if kind not in layouts:
        raise ValueError(
            f"{path} is a {kind} of dictionary_learning, which has no counterpart here: {', '.join(layouts)} do."
        )
    sae = SAE.from_weights(*layouts[kind]())
    site = trainer.get("submodule_name") or trainer.get("layer")
    return Imported(sae, NAME, checksums(path / CONFIG, where), trainer.get("lm_name"), str(site), cfg)


def write(sae: SAE, path: Path, fingerprint: dict[str, Any]) -> None:
    """The directory `load_dictionary` loads. Raises ValueError for what no dict_class computes."""
    of = plain(sae, NAME)
    d, n = of.W_enc.shape
    usual = {"encoder.weight": of.W_enc.T, "encoder.bias": of.b_enc, "decoder.weight": of.W_dec.T}
    about: dict[str, Any] = {}
    if type(of.sparsifier) is ReLU and is_unit(of.W_dec):
        kind, tensors = "AutoEncoder", usual | {"bias": of.b_dec}
    elif type(of.sparsifier) is TopK:
        kind, about = "AutoEncoderTopK", {"k": of.sparsifier.k}
        k = torch.tensor(of.sparsifier.k, dtype=torch.int)
        tensors = usual | {"b_dec": of.b_dec, "k": k, "threshold": torch.tensor(-1.0)}
    elif isinstance(of.sparsifier, Gated):
        kind, tensors = "GatedAutoEncoder", {name: usual[name] for name in ("encoder.weight", "decoder.weight")}
        r, b_mag = (tensor.detach().cpu().float() for tensor in (of.sparsifier.r, of.sparsifier.b_mag))
        tensors |= {"decoder_bias": of.b_dec, "gate_bias": of.b_enc, "r_mag": r, "mag_bias": b_mag}
    elif (threshold := non_negative(of.sparsifier)) is not None:
        kind = "JumpReluAutoEncoder"
        tensors = {"W_enc": of.W_enc, "b_enc": uncentred(of), "W_dec": of.W_dec, "b_dec": of.b_dec}
        tensors["threshold"] = threshold.detach().cpu().float().expand(n)
    else:
        raise refusal(of.sparsifier, NAME, "ReLU, TopK, Gated and thresholds of at least 0")
    trainer = {"trainer_class": "vsae", "dict_class": kind, "activation_dim": d, "dict_size": n} | about
    trainer |= {"lm_name": fingerprint.get("model", {}).get("name"), "submodule_name": fingerprint.get("site")}
    side = "in" if fingerprint.get("side") == "input" else "out"
    whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    write_whole(path / WEIGHTS, lambda temporary: torch.save(whole, temporary))
    write_json(path / CONFIG, {"trainer": trainer, "buffer": {"d_submodule": d, "io": side}})


def non_negative(sparsifier: Sparsifier) -> Tensor | None:
    """The threshold of a JumpReLU that computes the same; None where there is none. A ReLU is one of 0."""
    if type(sparsifier) is ReLU:
        return torch.tensor(0.0)
    return (
        sparsifier.threshold if isinstance(sparsifier, Threshold) and bool((sparsifier.threshold >= 0).all()) else None
    )


def is_unit(atoms: Tensor) -> bool:
    """As their loader asks it."""
    return torch.allclose(torch.linalg.vector_norm(atoms, dim=1), torch.ones(len(atoms)))


def unit(of: Plain) -> Plain:
    """The same reconstruction by atoms of unit norm; a zero atom, which they divide by 0, stays."""
    norms = torch.linalg.vector_norm(of.W_dec, dim=1)
    norms = torch.where(norms > 0, norms, 1)
    return of._replace(W_enc=of.W_enc * norms, b_enc=of.b_enc * norms, W_dec=of.W_dec / norms[:, None])


def linear(found: dict[str, Any], where: Path, bias: str, sparsifier: Sparsifier) -> Plain:
    """The layout of torch's linear layers."""
    wanted = {"encoder.weight": "n d", "encoder.bias": "n", "decoder.weight": "d n", bias: "d"}
    weight, b_enc, decoder, b_dec = take(found, where, **wanted)
    return Plain(weight.T, b_enc, decoder.T, b_dec, sparsifier)


def uncentred_linear(found: dict[str, Any], where: Path) -> Plain:
    of = linear(found, where, "decoder.bias", ReLU())
    return of._replace(b_enc=centred(of.W_enc, of.b_enc, of.b_dec))


def gated(found: dict[str, Any], where: Path) -> Plain:
    """Who speaks, and how loudly."""
    wanted = {"encoder.weight": "n d", "gate_bias": "n", "decoder.weight": "d n", "decoder_bias": "d"}
    weight, b_gate, decoder, b_dec = take(found, where, **wanted)
    _, r, b_mag = take(found, where, gate_bias="n", r_mag="n", mag_bias="n")
    return Plain(weight.T, b_gate, decoder.T, b_dec, Gated(r, b_mag))


def matrices(found: dict[str, Any], where: Path, sparsifier: Sparsifier) -> Plain:
    """The layout of SAELens."""
    return Plain(*weights_of(found, where), sparsifier)


def jumprelu(found: dict[str, Any], where: Path) -> Plain:
    W_enc, b_enc, W_dec, b_dec = weights_of(found, where)
    _, threshold = take(found, where, b_enc="n", threshold="n")
    return Plain(W_enc, centred(W_enc, b_enc, b_dec), W_dec, b_dec, Threshold(threshold.clamp_min(0)))


def weights_of(found: dict[str, Any], where: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    W_enc, b_enc, W_dec, b_dec = take(found, where, W_enc="d n", b_enc="n", W_dec="n d", b_dec="d")
    return W_enc, b_enc, W_dec, b_dec


def threshold_of(found: dict[str, Any], where: Path) -> Threshold:
    """A batch top-k's running threshold, which is what decides at inference."""
    (threshold,) = take(found, where, threshold="")
    return Threshold(threshold.clamp_min(0))


def k_of(found: dict[str, Any]) -> dict[str, int]:
    """The file's own k, which is the one that counts."""
    return {"k": int(found["k"])} if isinstance(found.get("k"), Tensor) else {}
