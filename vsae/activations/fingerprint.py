"""What activations are of. An SAE fits a store when model weights, site, side and preprocessing agree; the data may differ.

A fingerprint is JSON: {"model": provenance, "site": path, "side": "input"|"output", "preprocessing": {...}, "data": identity, "store": digest}.
"""

from collections.abc import Mapping
from typing import Any

from vsae.files import digest


def check(sae_fingerprint: Mapping[str, Any], store_fingerprint: Mapping[str, Any]) -> None:
    """Raises ValueError with both fingerprints, short, and what differs, unless the SAE was trained on activations like the store's."""
    ours, theirs = identity(sae_fingerprint), identity(store_fingerprint)
    if differing := [field for field in ours if ours[field] != theirs[field]]:
        raise ValueError(
            f"the SAE and the store do not belong together: {' and '.join(differing)} differ. "
            f"The SAE was trained on {short(sae_fingerprint)}; the store holds {short(store_fingerprint)}. "
            "Extract activations from the SAE's model, site and preprocessing, or choose another SAE."
        )


def identity(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that must agree. How a library prints its own transform is left out: it changes with the library's version."""
    preprocessing = fingerprint.get("preprocessing") or {}
    return {
        "model weights": fingerprint.get("model", {}).get("weights"),
        "site": fingerprint.get("site"),
        "side": fingerprint.get("side", "output"),
        "pooling": fingerprint.get("pool"),
        "preprocessing": {field: value for field, value in preprocessing.items() if field != "library"},
    }


def short(fingerprint: Mapping[str, Any]) -> str:
    """A fingerprint in a line: `resnet18 (weights 1f2e3d4c), layer3 output, preprocessing 9a8b7c6d`."""
    model, fields = fingerprint.get("model", {}), identity(fingerprint)
    return (
        f"{model.get('name', 'an unnamed model')} (weights {str(fields['model weights'])[:8]}), "
        f"{fields['site']} {fields['side']}, preprocessing {digest(fields['preprocessing'])[:8]}"
    )
