"""Texts that are longer than a tower takes are cut, as its own library cuts them; here somebody is told so."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any


def tell_of_cut(texts: Sequence[str], limit: int, count: Callable[[str], int]) -> bool:
    """Warn of the first text with more than `limit` tokens; True if there is one. `count`: tokens of a text, marks included, when nothing is cut."""
    # A token is at least one character, but for the marks: short texts need no counting.
    long = next((text for text in texts if len(text) + 2 > limit and count(text) > limit), None)
    if long is not None:
        warnings.warn(
            f"texts of more than {limit} tokens, the most this model takes, are cut there; the first has {count(long)} and begins {long[:60]!r}. "
            "Shorten them, or split them into several samples. This is said once.",
            stacklevel=2,
        )
    return long is not None


def counter(tokenizer: Any) -> Callable[[str], int]:
    """Tokens of a text under a tokenizer of transformers, or of open_clip (its own, or one that wraps transformers')."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    if callable(getattr(inner, "encode", None)) and hasattr(inner, "sot_token_id"):
        return lambda text: len(inner.encode(text)) + 2
    return lambda text: len(inner(text, truncation=False, verbose=False)["input_ids"])
