"""The geometry and colours of a model's own preprocessing, as JSON, so that a heat map can be laid over what the model saw.

    {"resize": 256, "resize_mode": "shortest", "interpolation": "bicubic", "crop": [224, 224], "mean": [...], "std": [...], "library": "..."}

`resize` is an edge, or [height, width]: made exactly so ("exact"), covered ("shortest") or fitted into ("longest", padded by the crop).
"""

from typing import Any

from torchvision.transforms import InterpolationMode


def of_transform(transform: Any) -> dict[str, Any]:
    """Record of a torchvision, timm or open_clip evaluation transform. Raises ValueError for one it cannot describe."""
    record: dict[str, Any] = {"resize": None, "resize_mode": "exact", "interpolation": None, "crop": None}
    for step in transform.transforms:
        name = type(step).__name__
        if name == "Resize":
            whole = isinstance(step.size, int) or len(step.size) == 1
            record["resize"] = pair(step.size)[0] if whole else pair(step.size)
            record["resize_mode"] = "shortest" if whole else "exact"
            record["interpolation"] = interpolation(step.interpolation)
        elif name == "ResizeKeepRatio":
            record["resize"] = pair(step.size)
            record["resize_mode"] = "longest" if step.longest else "shortest"
            record["interpolation"] = interpolation(step.interpolation)
        elif name in ("CenterCrop", "CenterCropOrPad"):
            record["crop"] = pair(step.size)
            if name == "CenterCropOrPad":
                record["fill"] = step.fill
            if getattr(step, "fill", 0):
                record["fill"] = step.fill
        elif name == "Normalize":
            record["mean"], record["std"] = numbers(step.mean), numbers(step.std)
        elif name not in ("ToTensor", "MaybeToTensor", "MaybeConvertMode"):
            raise ValueError(
                f"the model's preprocessing has a step {name} that vsae cannot record: load it with img_size=..."
            )
    return record | {"library": repr(transform)}


def of_processor(processor: Any) -> dict[str, Any]:
    """Record of a transformers image processor. Raises ValueError for one whose geometry it cannot describe."""
    size = {name: edge for name, edge in dict(processor.size or {}).items() if edge}
    crop = dict(processor.crop_size or {}) if getattr(processor, "do_center_crop", None) else None
    record: dict[str, Any] = {"resize": None, "resize_mode": "exact"}
    if set(size) == {"shortest_edge"}:
        edge, share = size["shortest_edge"], getattr(processor, "crop_pct", None)
        record["resize"], record["resize_mode"] = edge, "shortest"
        if share and edge < 384:  # ConvNeXt's processor: widens, then crops; from 384 pixels on it squashes
            record["resize"], crop = int(edge / share), {"height": edge, "width": edge}
        elif share:
            record["resize"], record["resize_mode"] = [edge, edge], "exact"
    elif set(size) == {"height", "width"}:
        record["resize"] = [size["height"], size["width"]]
    else:
        raise ValueError(
            f"{type(processor).__name__} resizes to {size}, which vsae cannot record: load the model with img_size=..."
        )
    return record | {
        "interpolation": interpolation(processor.resample),
        "crop": [crop["height"], crop["width"]] if crop else None,
        "mean": numbers(processor.image_mean),
        "std": numbers(processor.image_std),
        "library": " ".join(repr(processor).split()),
    }


def pair(size: Any) -> list[int]:
    edges = [size] if isinstance(size, int) else list(size)
    return [int(edge) for edge in (edges * 2)[:2]]


def numbers(values: Any) -> list[float]:
    return [round(float(value), 7) for value in values]


def interpolation(mode: Any) -> str:
    """One name for a torchvision mode, PIL's number or a plain name."""
    if isinstance(mode, InterpolationMode | str):
        return str(getattr(mode, "value", mode))
    return {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}[int(mode)]
