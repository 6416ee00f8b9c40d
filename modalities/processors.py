"""Processors of image-text models: which images went where, and what of an image the model sees."""

from collections.abc import Sequence
from typing import Any

from modalities.image_cells import TILED
from modalities.preprocessing import of_processor

Span = tuple[int, int]
"""[begin, end), in characters."""


def processor_of(name: str, source: str, told: dict[str, str]) -> Any:
    """The processor beside a model's weights. Raises FileNotFoundError for one that is missing, or that is of texts or images alone."""
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(source, **told)
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise FileNotFoundError(
            f"{name} has no image-text processor that can be loaded; save one beside the weights ({said})"
        ) from error
    if not all(hasattr(processor, part) for part in ("tokenizer", "image_processor", "image_token")):
        raise FileNotFoundError(
            f"{name} has only a {type(processor).__name__}, no image-text processor: save one beside the weights."
        )
    return processor


def preprocessing_of(processor: Any, config: Any) -> dict[str, Any]:
    """What the grid of an image's tokens lies on: the whole image, or, where the processor crops, what it leaves."""
    images = processor.image_processor
    whole = {"resize": None, "resize_mode": "exact", "interpolation": None, "crop": None}
    if config.model_type in TILED or not set(dict(images.size or {})) & {"height", "shortest_edge"}:
        return whole | {"library": " ".join(repr(images).split())}
    try:
        return of_processor(images)
    except ValueError:
        return whole | {"library": " ".join(repr(images).split())}


def by_row(counts: Sequence[int], rows: Sequence[int]) -> list[list[int]]:
    """`counts`, an image each, in lists of as many images as each row has."""
    left = iter(counts)
    return [[next(left) for _ in range(number)] for number in rows]


def moved(spans: Sequence[Span], replaced: Sequence[tuple[Span, Span]]) -> list[Span]:
    """[begin, end) in a text after each place of an image in it (old span, new span) has become the marks of the image's tokens."""

    def shift(at: int) -> int:
        return at + sum(new[1] - new[0] - (old[1] - old[0]) for old, new in replaced if old[0] < at)

    return [(shift(begin), shift(end)) for begin, end in spans]
