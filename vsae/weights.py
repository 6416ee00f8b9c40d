"""An inference SAE as tensors and JSON, and back.

Tensors have SAELens' names where SAELens has one, and the part's own elsewhere:

    encoder.weight [n, d] transposed -> W_enc    encoder.bias -> b_enc    dictionary.weight -> W_dec    b_dec    sparsifier.threshold, one a latent -> threshold
"""

from typing import Any

from torch import Tensor

import vsae.recipes  # noqa: F401 (defines the parts that files name)
from vsae.dictionaries import Dictionary, Free
from vsae.encoders import Encoder, Linear
from vsae.parts import named
from vsae.sae import SAE
from vsae.sparsifiers import Sparsifier, Threshold

KINDS: dict[str, type[Encoder] | type[Sparsifier] | type[Dictionary]] = {
    "encoder": Encoder,
    "sparsifier": Sparsifier,
    "dictionary": Dictionary,
}


def tensors(sae: SAE) -> dict[str, Tensor]:
    """Every tensor of a fused SAE, contiguous, by its name in a file."""
    found = dict(sae.state_dict())
    if isinstance(sae.sparsifier, Threshold):
        found["threshold"] = found.pop("sparsifier.threshold").expand(sae.n_latents)
    if isinstance(sae.encoder, Linear):
        found |= {"W_enc": found.pop("encoder.weight").T, "b_enc": found.pop("encoder.bias")}
    if isinstance(sae.dictionary, Free):
        found["W_dec"] = found.pop("dictionary.weight")
    return {name: tensor.detach().contiguous() for name, tensor in found.items()}


def description(sae: SAE) -> dict[str, Any]:
    """How to build a fused SAE around its tensors, as JSON."""
    parts = {name: getattr(sae, name) for name in KINDS}
    about = {name: {"class": type(part).__name__} | part.options() for name, part in parts.items()}
    return {"class": type(sae).__name__, "d_model": sae.d_model, "n_latents": sae.n_latents} | about


def built(found: dict[str, Tensor], about: dict[str, Any]) -> SAE:
    """The inverse of `tensors` and `description`. Raises ValueError for a part that is not defined here, or that takes other tensors and options."""
    theirs = {name: tensor for name, tensor in found.items() if "." in name}
    for name, ours in (
        ("b_enc", "encoder.bias"),
        ("W_dec", "dictionary.weight"),
        ("threshold", "sparsifier.threshold"),
    ):
        if name in found:
            theirs[ours] = found[name]
    if "W_enc" in found:
        theirs["encoder.weight"] = found["W_enc"].T
    parts: dict[str, Any] = {}
    for name, kind in KINDS.items():
        options = {key: value for key, value in about[name].items() if key != "class"}
        given = {key.removeprefix(f"{name}."): value for key, value in theirs.items() if key.startswith(f"{name}.")}
        cls = named(kind, about[name]["class"])
        try:
            parts[name] = cls(**given, **options)
        except TypeError as error:
            raise ValueError(
                f"this vsae's {cls.__name__} is not the one that was saved ({error}): update vsae."
            ) from None
    known = {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}
    more = {name: tensor for name, tensor in found.items() if "." not in name and name not in known}
    whole = SAE if about["class"] == "SAE" else named(SAE, about["class"])
    sae = whole(parts["encoder"], parts["sparsifier"], parts["dictionary"], found["b_dec"], **more)
    return sae.eval().requires_grad_(False)
