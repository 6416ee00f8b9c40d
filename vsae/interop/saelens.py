"""SAELens (6.x): a directory with `cfg.json` and `sae_weights.safetensors`. Every run directory of ours is one, where SAELens can express the SAE.

    ours                 SAELens            tensors                                              more in cfg.json
    ReLU                 standard           W_enc [d, n]  b_enc [n]  W_dec [n, d]  b_dec [d]
    TopK, AbsTopK        topk, abstopk      the same                                             k, rescale_acts_by_decoder_norm
    Threshold            jumprelu           + threshold [n]
    Gated                gated              W_enc  W_dec  b_dec  b_gate  b_mag  r_mag [n] (a run of ours calls these otherwise)
    MatchingPursuit      matching_pursuit   W_dec, b_dec, unit atoms                             max_iterations (our k), residual_threshold 0
    Transcoder           transcoder         W_enc  b_enc  W_dec [n, d_out]  b_dec [d_out]        d_out
      with ReLU,           skip_            + W_skip [d_out, d_in]
      Threshold            jumprelu_        + threshold [n]

Both compute (x - b_dec) @ W_enc + b_enc. `metadata.sae_lens_version` has to say 6 or more: without it SAELens takes the file for an old one and drops
the metadata. Read from 6.54.12 (PyPI).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vsae import weights
from vsae.dictionaries import Free
from vsae.encoders import Linear
from vsae.files import read_json, write_json
from vsae.interop.foreign import Imported, centred, checksums, noted, number, plain, take
from vsae.interop.parts import row_normalised
from vsae.pursuit import MatchingPursuit
from vsae.sae import SAE
from vsae.sparsifiers import AbsTopK, Gated, ReLU, Sparsifier, Threshold, TopK
from vsae.tensors import read_tensors, write_tensors
from vsae.transcoder import Transcoder

NAME = "saelens"
VERSION = "6.54.0"
"""The SAELens release whose file layout this is."""

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
PER_ROW = {"layer_norm": "layer_norm", "constant_norm_rescale": "norm"}
"""SAELens' normalisations that depend on the row, and ours."""


def recognises(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def read(path: Path) -> Imported:
    """The SAE of a SAELens directory. Raises FileNotFoundError or ValueError with a sentence for what is missing, damaged or beyond our parts."""
    where = path / WEIGHTS
    cfg = modern(read_json(path / CONFIG))
    architecture = cfg.get("architecture", "standard")
    found = read_tensors(where)
    notes: list[str | None] = []
    norm = cfg.get("normalize_activations", "none")
    if norm == "expected_average_only_in":
        notes.append(
            f"{path} was trained on activations scaled to a norm of sqrt(d_in), and does not say by what factor: scale yours alike."
        )
    elif norm != "none" and norm not in PER_ROW:
        raise ValueError(f"{path} normalises activations by {norm}, which is not in its weights: fold it in SAELens.")
    if cfg.get("reshape_activations", "none") == "hook_z":
        notes.append(f"{path} reads the outputs of attention heads side by side: give rows [n_heads * d_head].")
    sae: SAE
    if architecture == "matching_pursuit":
        sae, note = pursuit(cfg, found, where)
        notes.append(note)
    elif architecture.endswith("transcoder"):
        sae = transcoder(architecture, found, where)
    else:
        sae = linear(architecture, cfg, found, where)
    if norm in PER_ROW:
        if not isinstance(sae.encoder, Linear) or type(sae) is not SAE:
            raise ValueError(f"{path} is a {architecture} that normalises each row: there is no such thing here.")
        sae = row_normalised(sae.W_enc, sae.b_enc, sae.atoms, sae.b_dec, sae.sparsifier, PER_ROW[norm])
    metadata = cfg.get("metadata", {})
    files = checksums(path / CONFIG, where)
    return Imported(sae, NAME, files, metadata.get("model_name"), metadata.get("hook_name"), cfg, noted(*notes))


def write(sae: SAE, path: Path, fingerprint: dict[str, Any]) -> None:
    """The directory SAELens loads. Raises ValueError where it has no architecture that computes the same."""
    if isinstance(sae, Transcoder):
        cfg, tensors = transcoder_config(sae, fingerprint), transcoder_tensors(sae)
    elif isinstance(sae.sparsifier, Gated):
        of = plain(sae, "SAELens")
        cfg = {"architecture": "gated"} | common(sae.d_model, sae.n_latents, fingerprint)
        r, b_mag = (tensor.detach().cpu().float() for tensor in (sae.sparsifier.r, sae.sparsifier.b_mag))
        tensors = {"W_enc": of.W_enc, "W_dec": of.W_dec, "b_dec": of.b_dec}
        tensors |= {"b_gate": of.b_enc, "b_mag": b_mag, "r_mag": r}
    else:
        cfg, tensors = config(sae, fingerprint), weights.tensors(sae)
    if cfg is None:
        parts = ", ".join(type(part).__name__ for part in (sae, sae.encoder, sae.sparsifier, sae.dictionary))
        raise ValueError(f"SAELens has no architecture that computes the same as {parts}.")
    write_tensors(path / WEIGHTS, tensors)
    write_json(path / CONFIG, cfg)


def config(sae: SAE, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
    """`cfg.json` for a fused SAE beside weights as `vsae.weights` names them, or None where SAELens has no architecture that computes the same."""
    usual = type(sae) is SAE and isinstance(sae.dictionary, Free) and sae.scale is None and sae.shift is None
    architecture = None
    if usual and isinstance(sae.encoder, Linear):
        architecture = architecture_of(sae.sparsifier)
    elif usual and isinstance(sae.encoder, MatchingPursuit) and not sae.encoder.signed and unit(sae.atoms):
        architecture = pursuit_of(sae.sparsifier)
    if architecture is None:
        return None
    return architecture | common(sae.d_model, sae.n_latents, fingerprint)


def architecture_of(sparsifier: Sparsifier) -> dict[str, Any] | None:
    """SAELens' name for a sparsifier after a linear encoder, with its options."""
    kind = type(sparsifier)
    if kind is ReLU:
        return {"architecture": "standard"}
    if isinstance(sparsifier, TopK | AbsTopK) and kind in (TopK, AbsTopK):
        name = {TopK: "topk", AbsTopK: "abstopk"}[kind]
        return {"architecture": name, "k": sparsifier.k, "rescale_acts_by_decoder_norm": False}
    if isinstance(sparsifier, Threshold) and bool((sparsifier.threshold >= 0).all()):
        return {"architecture": "jumprelu"}
    return None


def pursuit_of(sparsifier: Sparsifier) -> dict[str, Any] | None:
    """SAELens' matching pursuit of as many steps."""
    if type(sparsifier) is not TopK:
        return None
    steps = {"max_iterations": sparsifier.k, "residual_threshold": 0.0, "stop_on_duplicate_support": False}
    return {"architecture": "matching_pursuit"} | steps


def common(d_in: int, d_sae: int, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """What every cfg.json holds."""
    site, side = fingerprint.get("site"), fingerprint.get("side", "output")
    metadata = {
        "sae_lens_version": VERSION,
        "sae_lens_training_version": None,
        "model_name": fingerprint.get("model", {}).get("name"),
        "hook_name": site if side == "output" else f"{site}:{side}",
        "vsae": fingerprint,
    }
    return {
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": metadata,
    }


def unit(atoms: Tensor) -> bool:
    """Are the atoms of unit norm, to rounding?"""
    norms = torch.linalg.vector_norm(atoms, dim=1)
    return bool(((norms - 1).abs() < 1e-4).all())


def modern(cfg: dict[str, Any]) -> dict[str, Any]:
    """A cfg.json in the words of SAELens 6: older ones are flat, with other names for some fields."""
    metadata = cfg.get("metadata") or {}
    if str(metadata.get("sae_lens_version", "0")).split(".")[0] >= "6":
        return cfg
    names = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
    new = {names.get(name, name): value for name, value in cfg.items()}
    activation = new.get("activation_fn", "relu")
    if activation == "topk":
        new |= {"architecture": "topk", "k": (new.get("activation_fn_kwargs") or {}).get("k")}
    elif activation != "relu":
        raise ValueError(f"the SAE's activation function is {activation}: only relu and topk are known here.")
    if not isinstance(new.get("normalize_activations"), str):
        new["normalize_activations"] = "expected_average_only_in" if new.get("normalize_activations") else "none"
    if "hook_z" in str(new.get("hook_name")):
        new.setdefault("reshape_activations", "hook_z")
    return new | {"metadata": {name: new.get(name) for name in ("model_name", "hook_name")} | metadata}


def linear(architecture: str, cfg: dict[str, Any], found: dict[str, Any], where: Path) -> SAE:
    """An SAE with a linear encoder. Raises ValueError for an architecture that we do not have."""
    sparsifier: Sparsifier
    if architecture in ("batchtopk", "matryoshka_batchtopk"):
        raise ValueError(
            f"{where.parent} is a checkpoint of a training of {architecture}: save it with SAELens' save_inference_model."
        )
    gated = architecture == "gated"
    found = found | {"b_enc": found.get("b_gate")} if gated else found
    W_enc, b_enc, W_dec, b_dec = take(found, where, W_enc="d n", b_enc="n", W_dec="n d", b_dec="d")
    if gated:
        _, r, b_mag = take(found, where, b_enc="n", r_mag="n", b_mag="n")
        if not cfg.get("apply_b_dec_to_input", True):
            b_mag = b_mag + r.exp() * (b_dec @ W_enc)
        sparsifier = Gated(r, b_mag)
    elif architecture == "standard":
        sparsifier = ReLU()
    elif architecture in ("topk", "abstopk"):
        sparsifier = (TopK if architecture == "topk" else AbsTopK)(number(cfg, "k", where.parent))
    elif architecture == "jumprelu":
        _, threshold = take(found, where, b_enc="n", threshold="n")
        sparsifier = Threshold(threshold.clamp_min(0))  # theirs is a ReLU, too
    else:
        raise ValueError(f"{where.parent} is a '{architecture}' of SAELens, which has no counterpart here.")
    if not cfg.get("apply_b_dec_to_input", True):
        b_enc = centred(W_enc, b_enc, b_dec)
    if cfg.get("rescale_acts_by_decoder_norm"):
        norms = torch.linalg.vector_norm(W_dec, dim=1)
        W_enc, b_enc, W_dec = W_enc * norms, b_enc * norms, W_dec / norms[:, None]
    return SAE.from_weights(W_enc, b_enc, W_dec, b_dec, sparsifier)


def pursuit(cfg: dict[str, Any], found: dict[str, Tensor], where: Path) -> tuple[SAE, str | None]:
    """A matching-pursuit SAE, and what differs. Raises ValueError for atoms that are not of unit norm: choice and step are others there."""
    W_dec, b_dec = take(found, where, W_dec="n d", b_dec="d")
    if not unit(W_dec):
        raise ValueError(f"the atoms of {where} are not of unit norm: SAELens' matching pursuit is another then.")
    steps = cfg.get("max_iterations") or W_dec.shape[1]
    stops = cfg.get("residual_threshold", 1e-2) > 0 or cfg.get("stop_on_duplicate_support", True)
    note = f"{where.parent} stops early where SAELens reads it; here every row takes {steps} steps." if stops else None
    b_dec = b_dec if cfg.get("apply_b_dec_to_input", True) else torch.zeros_like(b_dec)
    sae = SAE(MatchingPursuit(), TopK(min(steps, len(W_dec))), Free(W_dec, unit_norm=False), b_dec)
    return sae.eval().requires_grad_(False), note


def transcoder(architecture: str, found: dict[str, Tensor], where: Path) -> Transcoder:
    """From one site to another; b_in is 0, as SAELens has it in b_enc."""
    wanted = {"W_enc": "d n", "b_enc": "n", "W_dec": "n o", "b_dec": "o"}
    if "jumprelu" in architecture:
        wanted["threshold"] = "n"
    if "skip" in architecture:
        wanted["W_skip"] = "o d"
    W_enc, b_enc, W_dec, b_dec, *more = take(found, where, **wanted)
    sparsifier = Threshold(more[0].clamp_min(0)) if "jumprelu" in architecture else ReLU()
    skip = more[-1] if "skip" in architecture else None
    dictionary, b_in = Free(W_dec, unit_norm=False), torch.zeros(len(W_enc))
    sae = Transcoder(Linear(W_enc.T, b_enc), sparsifier, dictionary, b_dec, b_in=b_in, skip=skip)
    return sae.eval().requires_grad_(False)


def transcoder_config(sae: Transcoder, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
    """cfg.json for a transcoder, or None for a sparsifier that SAELens' ones do not have."""
    known = {ReLU: "", Threshold: "jumprelu_"}.get(type(sae.sparsifier))
    if known is None or not isinstance(sae.encoder, Linear) or not isinstance(sae.dictionary, Free):
        return None
    about = common(len(sae.b_in), sae.n_latents, fingerprint)
    name = f"{known}{'skip_' if sae.skip is not None else ''}transcoder"
    return about | {"architecture": name, "d_out": len(sae.b_dec), "apply_b_dec_to_input": False}


def transcoder_tensors(sae: Transcoder) -> dict[str, Tensor]:
    """With b_in folded away, which SAELens does not have."""
    assert isinstance(sae.encoder, Linear)
    weight, b_dec = sae.encoder.weight.detach(), sae.b_dec.detach()
    found: dict[str, Tensor] = {"W_enc": weight.T, "b_enc": sae.encoder.bias - weight @ sae.b_in, "W_dec": sae.atoms}
    if sae.skip is not None:
        found["W_skip"], b_dec = sae.skip, b_dec - sae.skip @ sae.b_in
    if isinstance(sae.sparsifier, Threshold):
        found["threshold"] = sae.sparsifier.threshold.expand(sae.n_latents)
    return {name: tensor.detach().contiguous() for name, tensor in (found | {"b_dec": b_dec}).items()}
