"""Which part of a plain text each token is that a language model of the family llm reads of it."""

from collections.abc import Callable, Mapping
from typing import Any

from modalities.llm import gguf_of
from modalities.loading import loading

Spans = list[tuple[int, int]]
"""[begin, end) in characters of each token; (0, 0) for a mark that the tokenizer adds."""


def spans_of(name: str, sequence: Mapping[str, Any], revision: str | None = None) -> Callable[[str], Spans]:
    """Reads a text as the model did whose provenance has `sequence`. name: as for load("llm", name).

    Raises OSError where the tokenizer cannot be had, and ValueError for a model that put its texts into a chat template.
    """
    if sequence.get("chat"):
        raise ValueError(f"{name} read its texts in a chat template: their tokens cannot be shown in the bare texts.")
    from transformers import AutoTokenizer

    source, gguf_file = gguf_of(name, None)
    told = ({"revision": revision} if revision else {}) | ({"gguf_file": gguf_file} if gguf_file else {})
    with loading(name, 0):
        tokenizer = AutoTokenizer.from_pretrained(source, **told)
    length = sequence.get("length") if sequence.get("policy") == "per_sample" else None

    def spans(text: str) -> Spans:
        told = tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        return [(int(begin), int(end)) for begin, end in told[:length]]

    return spans
