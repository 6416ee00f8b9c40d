"""overcomplete: the state dict of one of its SAEs, read from release 0.3.0 (PyPI). A pickled module is not opened: it would have to be executed.

    dictionary._weights [n, d]  dictionary.multiplier             D = normalised(weights) exp(multiplier); no decoder bias
    dictionary.C [m, d]  .W [n, m]  .Relax [n, d]  .multiplier    D = (W' C + Relax') exp(multiplier): rows of W on the simplex, |Relax_i| <= delta
    encoder.final_block.0.weight, .bias                           the linear encoder; with .1.running_mean ... a batch norm, folded in here
    encoder.weight, .bias                                         untied(); without a weight tied(), which is D (encoder.tied_to is D again)
    thresholds [n]                                                JumpSAE: exp(thresholds)

What else it takes to compute is not in a state dict, and has to be said: `model` (SAE, TopKSAE, BatchTopKSAE, JumpSAE, MpSAE; the archetypal ones are as
TopKSAE and JumpSAE), `top_k` (TopKSAE, MpSAE), `threshold` (BatchTopKSAE's running_threshold), `normalization` (l2 unless said), `delta` (1 unless said).
`write` puts it into overcomplete.json, which `read` knows. Its batch top-k's k is of the whole batch, not of a row: a trap, but not one of inference.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vsae.dictionaries import Free
from vsae.files import read_json, write_json, write_whole
from vsae.interop.foreign import Imported, checksums, noted, number, plain, read_pickle, refusal, take, uncentred
from vsae.pursuit import MatchingPursuit
from vsae.sae import SAE
from vsae.sparsifiers import ReLU, Sparsifier, Threshold, TopK

NAME = "overcomplete"
FILE, CONFIG = "overcomplete.pt", "overcomplete.json"
MODELS = ("SAE", "TopKSAE", "BatchTopKSAE", "JumpSAE", "MpSAE")
EPSILON = 1e-8
"""Added to norms and sums that are divided by, as there."""


def file_of(path: Path) -> Path:
    return path / FILE if path.is_dir() else path


def recognises(path: Path) -> bool:
    where = file_of(path)
    try:
        found = read_pickle(where) if where.suffix in (".pt", ".pth") else {}
    except (ValueError, FileNotFoundError):
        return False
    return "dictionary._weights" in found or "dictionary.Relax" in found


def read(path: Path, **options: Any) -> Imported:
    """The SAE of a state dict; `options` as above. Raises ValueError with a sentence for what has to be said and is not, and for other encoders."""
    where = file_of(path)
    found = read_pickle(where)
    beside = where.with_name(CONFIG)
    about = (read_json(beside) if beside.is_file() else {}) | options
    if unknown := set(about) - {"model", "top_k", "threshold", "normalization", "delta"}:
        raise ValueError(f"{NAME} takes no option {sorted(unknown)[0]}: model, top_k, threshold, normalization, delta.")
    model = "JumpSAE" if "thresholds" in found else about.get("model")
    if model not in MODELS:
        raise ValueError(
            f"{where} does not say which SAE it is: give the option model, one of {', '.join(MODELS)} (it is {model!r})."
        )
    D = dictionary(found, where, about)
    note = None
    if model == "MpSAE":
        if not bool(((torch.linalg.vector_norm(D, dim=1) - 1).abs() < 1e-4).all()):
            raise ValueError(f"the atoms of {where} are not of unit norm: its matching pursuit is another then.")
        note = f"{where} takes a step even where it has no atom to add; here such a row is at its end."
        bias = torch.zeros(D.shape[1])
        sae = SAE(MatchingPursuit(), TopK(number(about, "top_k", where)), Free(D, unit_norm=False), bias)
        sae = sae.eval().requires_grad_(False)
    else:
        weight, bias = encoder(found, where, D)
        sae = SAE.from_weights(weight.T, bias, D, torch.zeros(D.shape[1]), selected(model, found, where, about))
    files = checksums(where, *([beside] if beside.is_file() else []))
    return Imported(sae, NAME, files, config=about | {"model": model}, notes=noted(note))


def selected(model: str, found: dict[str, Any], where: Path, about: dict[str, Any]) -> Sparsifier:
    """What comes after the encoder's ReLU."""
    if model == "SAE":
        return ReLU()
    if model == "TopKSAE":
        return TopK(number(about, "top_k", where))
    if model == "JumpSAE":
        return at_least(take(found, where, thresholds="n")[0].exp())
    threshold = about.get("threshold")
    if not isinstance(threshold, int | float) or threshold < 0:
        raise ValueError(f"{where} does not hold its running_threshold: give it as the option threshold.")
    return at_least(torch.tensor(float(threshold)))


def at_least(threshold: Tensor) -> Threshold:
    """u >= threshold, as it says there: u > the next smaller number."""
    return Threshold(torch.nextafter(threshold, torch.tensor(0.0)))


def dictionary(found: dict[str, Any], where: Path, about: dict[str, Any]) -> Tensor:
    """The atoms, as `get_dictionary` has them."""
    (multiplier,) = take(found, where, dictionary__multiplier="")
    if "dictionary.Relax" in found:
        wanted = {"dictionary.C": "m d", "dictionary.W": "n m", "dictionary.Relax": "n d"}
        C, W, relax = take(found, where, **wanted)
        W = W.relu() / (W.relu().sum(1, keepdim=True) + EPSILON)
        norms = torch.linalg.vector_norm(relax, dim=1, keepdim=True).clamp_min(torch.finfo(relax.dtype).tiny)
        return (W @ C + relax * (float(about.get("delta", 1.0)) / norms).clamp_max(1)) * multiplier.exp()
    (D,) = take(found, where, **{"dictionary._weights": "n d"})
    how = about.get("normalization", "l2")
    if how not in ("l2", "l1", "max_l2", "max_l1", "identity"):
        raise ValueError(f"{where}: the normalization {how!r} is not known: l2, l1, max_l2, max_l1 or identity.")
    if how != "identity":
        norms = torch.linalg.vector_norm(D, ord=int(how[-1]), dim=1, keepdim=True)
        D = D / (norms.max() if how.startswith("max") else norms + EPSILON)
    return D * multiplier.exp()


def encoder(found: dict[str, Any], where: Path, D: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [n, d] and bias [n] of a linear encoder. Raises ValueError for another."""
    block = "encoder.final_block"
    names = {name for name in found if name.startswith("encoder.") and not name.startswith("encoder.tied_to.")}
    if f"{block}.0.weight" in names:
        weight, bias = take(found, where, **{f"{block}.0.weight": "n d", f"{block}.0.bias": "n"})
        names -= {f"{block}.0.weight", f"{block}.0.bias"}
        if f"{block}.1.running_mean" in names:
            norm = {f"{block}.1.{name}": "n" for name in ("weight", "bias", "running_mean", "running_var")}
            gain, offset, mean, variance = take(found, where, **norm)
            gain = gain / (variance + 1e-5).sqrt()
            weight, bias = weight * gain[:, None], (bias - mean) * gain + offset
            names -= {*norm, f"{block}.1.num_batches_tracked"}
    else:
        weight = take(found, where, **{"encoder.weight": "n d"})[0] if "encoder.weight" in names else D
        bias = torch.zeros(len(D))
        if "encoder.bias" in names:
            (bias,) = take(found, where, **{"encoder.bias": "n"})
        names -= {"encoder.weight", "encoder.bias"}
    if names:
        raise ValueError(f"{where} has an encoder that is not linear ({sorted(names)[0]}): it has no counterpart here.")
    return weight, bias


def write(sae: SAE, path: Path, fingerprint: dict[str, Any]) -> None:
    """A state dict and what it takes besides: build the model with dictionary_params={"normalization": "identity"} and load it.

    Raises ValueError for what it cannot express. It has no decoder bias: with one, its reconstructions are ours less b_dec, which is a warning.
    """
    of = plain(sae, NAME)
    tensors = {"encoder.final_block.0.weight": of.W_enc.T, "encoder.final_block.0.bias": uncentred(of)}
    tensors |= {"dictionary._weights": of.W_dec, "dictionary.multiplier": torch.tensor(0.0)}
    about: dict[str, Any] = {"normalization": "identity"}
    if type(of.sparsifier) is ReLU:
        about["model"] = "SAE"
    elif type(of.sparsifier) is TopK:
        about |= {"model": "TopKSAE", "top_k": of.sparsifier.k}
    elif isinstance(of.sparsifier, Threshold) and bool((of.sparsifier.threshold >= 0).all()):
        about["model"] = "JumpSAE"
        tensors["thresholds"] = of.sparsifier.threshold.detach().cpu().float().expand(len(of.b_enc)).log()
    else:
        raise refusal(of.sparsifier, NAME, "ReLU, TopK and thresholds of at least 0")
    if bool((of.b_dec != 0).any()):
        warnings.warn(
            "overcomplete has no decoder bias: codes are the same there, and reconstructions are ours less b_dec.",
            UserWarning,
            stacklevel=3,
        )
    whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    write_whole(path / FILE, lambda temporary: torch.save(whole, temporary))
    write_json(path / CONFIG, about)
