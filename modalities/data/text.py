"""Names, captions and labels from files that strangers wrote, as strings that every format can hold."""

from collections.abc import Iterable, Mapping
from typing import Any

CAPTIONS = ("caption", "captions", "text")
LABELS = ("label", "class", "class_name", "category")


def printable(text: str) -> str:
    """`text` as valid Unicode: what cannot be encoded (a file name's stray bytes, lone surrogates) becomes a `\\udcff` escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def distinct(names: Iterable[str]) -> list[str]:
    """`names`, each once: the second "a" becomes "a#2", unless that is a name too; then the next number that is free."""
    listed = list(names)
    taken, seen, count = set(listed), set[str](), dict[str, int]()
    for i, name in enumerate(listed):
        if name in seen:
            number = count.get(name, 1) + 1
            while f"{name}#{number}" in taken:
                number += 1
            count[name] = number
            listed[i] = f"{name}#{number}"
            taken.add(listed[i])
        seen.add(listed[i])
    return listed


def find_captions(*sources: Any) -> tuple[str, ...]:
    """Every non-empty caption in strings, lists of strings, and mappings with one of `CAPTIONS`; each once, in order."""
    found: dict[str, None] = {}
    for source in sources:
        if isinstance(source, str):
            if text := printable(source).strip():
                found[text] = None
        elif isinstance(source, Mapping):
            found |= dict.fromkeys(find_captions(*(source.get(name) for name in CAPTIONS)))
        elif isinstance(source, Iterable):
            found |= dict.fromkeys(find_captions(*source))
    return tuple(found)


def find_label(record: Mapping[str, Any], name: str | None) -> str | None:
    """The record's label: its field `name`, or the first of `LABELS` that holds a string or a number."""
    for field in LABELS if name is None else (name,):
        value = record.get(field)
        if isinstance(value, str | int | float) and str(value).strip():
            return printable(str(value)).strip()
    return None


def sorted_classes(labels: Iterable[str | None]) -> tuple[str, ...]:
    """The labels that occur, sorted; by value where all are digits."""
    found = {label for label in labels if label is not None}
    numbers = all(label.isdecimal() for label in found)
    return tuple(sorted(found, key=lambda label: (len(label) if numbers else 0, label)))
