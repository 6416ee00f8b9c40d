"""Texts that are longer than a tower takes are cut, as its own library cuts them; here somebody is told so."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any


class TellOfCut:
    """Warns, once, of a text with more than `limit` tokens, marks included. `tokenizer`: of transformers, or of open_clip (its own, or one that wraps those).

    Safe to call from several threads, for it counts with a tokenizer of its own: transformers' keep the settings of the last call, truncation among them.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer: Any = getattr(tokenizer, "tokenizer", tokenizer)
        self.own: Any = None
        self.told = False

    def __call__(self, texts: Sequence[str], limit: int) -> None:
        if self.told:
            return
        # A token is at least one character, but for the marks: short texts need no counting.
        long = next((text for text in texts if len(text) + 2 > limit and self.count(text) > limit), None)
        if long is not None:
            self.told = True
            warnings.warn(
                f"texts of more than {limit} tokens, the most this model takes, are cut there; the first has {self.count(long)} and begins {long[:60]!r}. "
                "Shorten them, or split them into several samples. This is said once.",
                stacklevel=2,
            )

    def count(self, text: str) -> int:
        """Tokens of a text when nothing is cut."""
        if hasattr(self.tokenizer, "sot_token_id"):
            return len(self.tokenizer.encode(text)) + 2
        if self.own is None:
            self.own = copy.deepcopy(self.tokenizer)
        return len(self.own(text, truncation=False, verbose=False)["input_ids"])
