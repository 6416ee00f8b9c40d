"""How a pipeline reads a prompt: learned from one call of its own `encode_prompt`, so that texts are encoded alone as it would."""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modalities.base import Batch

CONDITIONAL, NEGATIVE = "conditional", "negative"
PROMPT, OTHER = " A photo", ""
"""What the pipeline is asked to encode: any two texts that differ, and that show whether it strips and lowers them."""

ORDERS = (
    ((CONDITIONAL,),),  # no negative prompt, or with a call of its own
    ((CONDITIONAL,), (NEGATIVE,)),
    ((NEGATIVE, CONDITIONAL),),
    ((CONDITIONAL, NEGATIVE),),
)
"""Calls of an encoder in one call of the pipeline; in each, whose prompts the equal parts of its rows are."""


class Encoder(NamedTuple):
    tokenizer: Any
    length: int
    """Tokens to which the pipeline fills or cuts every prompt."""
    masked: bool
    """Whether the encoder gets an attention mask."""
    options: dict[str, Any]
    """What else it gets, as output_hidden_states."""
    order: tuple[tuple[str, ...], ...]
    """One of `ORDERS`."""


class Reading(NamedTuple):
    encoders: dict[str, Encoder]

    def batch(self, library: Any, texts: Sequence[str]) -> Batch:
        """Token ids [batch, length], and masks where they are used, of each encoder."""
        return {
            key: value
            for name, encoder in self.encoders.items()
            for key, value in tokenised(library, name, encoder.length, encoder.masked, texts).items()
        }

    def arguments(self, name: str, batch: Batch) -> dict[str, Any]:
        """What an encoder gets besides its token ids. A batch made by hand may leave the mask out."""
        mask = batch.get(f"{name}.attention_mask")
        return self.encoders[name].options | ({} if mask is None else {"attention_mask": mask})

    def parts(self, name: str, call: int, rows: int, prompts: int) -> tuple[str, ...]:
        """Whose prompts the rows are that an encoder gets in its `call`-th pass (from 0) of one pipeline call with so many prompts."""
        order = self.encoders[name].order
        parts = order[call] if call < len(order) else (NEGATIVE,) if call == 1 else ()
        if len(parts) == 2 and rows == prompts:  # guidance is off
            return (CONDITIONAL,)
        return parts

    def record(self) -> dict[str, Any]:
        return {
            name: {
                "tokenizer": type(encoder.tokenizer).__name__,
                "vocabulary": len(encoder.tokenizer),
                "length": encoder.length,
                "masked": encoder.masked,
            }
            for name, encoder in self.encoders.items()
        }


def how_it_reads(name: str, library: Any, encoders: Sequence[str]) -> Reading:
    """Let a pipeline (of text parts only) encode one prompt, and see what its encoders get.

    Raises ValueError for a pipeline that does not tokenise, fill and cut its prompts in the one way we know.
    """
    heard: dict[str, list[dict[str, Any]]] = {encoder: [] for encoder in encoders}

    def listen(encoder: str) -> Any:
        module = getattr(library, encoder)

        def hear(_module: Any, args: Any, kwargs: Any) -> None:
            heard[encoder].append(named(module, args, kwargs))

        return module.register_forward_pre_hook(hear, with_kwargs=True)

    kind = type(library).__name__
    hooks = [listen(encoder) for encoder in encoders]
    try:
        with torch.no_grad():
            library.encode_prompt(**_told(library, next(getattr(library, encoders[0]).parameters()).device))
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{name} is a {kind}, which does not encode a prompt from its text encoders alone: {said}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return Reading({encoder: _encoder(name, library, encoder, calls) for encoder, calls in heard.items()})


def tokenised(library: Any, name: str, length: int, masked: bool, texts: Sequence[str]) -> Batch:
    tokenizer = tokenizer_of(library, name)
    if hasattr(library, "_text_preprocessing"):  # PixArt and others lower and strip
        takes = inspect.signature(library._text_preprocessing).parameters
        told = {key: value for key, value in _defaults(library).items() if key in takes}
        texts = library._text_preprocessing(list(texts), **told)
    made = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return {name: made["input_ids"]} | ({f"{name}.attention_mask": made["attention_mask"]} if masked else {})


def tokenizer_of(library: Any, encoder: str) -> Any:
    return getattr(library, encoder.replace("text_encoder", "tokenizer"), None)


def named(module: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a module is called with, by the names of its `forward`."""
    return dict(inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments)


def _encoder(name: str, library: Any, encoder: str, calls: list[dict[str, Any]]) -> Encoder:
    unknown = ValueError(
        f"{name} is a {type(library).__name__}, whose {encoder} reads prompts in a way of its own: it is not supported."
    )
    if tokenizer_of(library, encoder) is None or not all(isinstance(call.get("input_ids"), Tensor) for call in calls):
        raise unknown
    flat = [call | call.pop("kwargs", {}) for call in calls]
    if not flat:
        raise unknown
    length, masked = flat[0]["input_ids"].shape[1], flat[0].get("attention_mask") is not None
    of = {
        prompt: tokenised(library, encoder, length, masked, [text])
        for prompt, text in ((CONDITIONAL, PROMPT), (NEGATIVE, OTHER))
    }

    def whose(ids: Tensor, mask: Tensor | None) -> str:
        for prompt, made in of.items():
            same = torch.equal(ids.cpu(), made[encoder][0])
            if same and (mask is None or torch.equal(mask.cpu(), made[f"{encoder}.attention_mask"][0])):
                return prompt
        raise unknown

    order = []
    for call in flat:
        masks = call["attention_mask"] if masked else [None] * len(call["input_ids"])
        order.append(tuple(whose(ids, mask) for ids, mask in zip(call["input_ids"], masks, strict=True)))
    if tuple(order) not in ORDERS:
        raise unknown
    options = {key: value for key, value in flat[0].items() if key not in ("input_ids", "attention_mask")}
    return Encoder(
        tokenizer_of(library, encoder),
        length,
        masked,
        {key: value for key, value in options.items() if isinstance(value, bool)},
        tuple(order),
    )


def _told(library: Any, device: torch.device) -> dict[str, Any]:
    """What the pipeline's own call would tell `encode_prompt`, for our prompts."""
    told = _defaults(library) | {
        "prompt": [PROMPT],
        "negative_prompt": [OTHER],
        "device": device,
        "num_images_per_prompt": 1,
        "do_classifier_free_guidance": True,
    }
    return {name: told[name] for name in inspect.signature(library.encode_prompt).parameters if name in told}


def _defaults(library: Any) -> dict[str, Any]:
    takes = inspect.signature(type(library).__call__).parameters
    return {name: one.default for name, one in takes.items() if one.default is not one.empty}
