"""Webdataset tar shards, indexed once and then read at random.

    key      path in the tar up to the first dot of the base name, as webdataset groups them
    image    .jpg .jpeg .png .webp; or the only member that ends so (`1.photo.jpg`)
    mask     .mask.png        label     .cls, or a field of the json
    captions .txt, and `caption`, `captions` or `text` of the json

Shards keep the order given, samples the order of their first member. Members of a key need not be neighbours; when one comes a second
time, a second sample begins. A key that was there before gets "#2". A shard that is damaged or cut off gives what can be read; each
damage is a candidate of its own, which reads as `Bad`.
"""

import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from modalities.data.decode import MAX_PIXELS, Unreadable, decode, decode_mask, unopened
from modalities.data.samples import Bad, Sample, identify
from modalities.data.tarindex import Damage, Member, index
from modalities.data.text import distinct, find_captions, find_label, printable, sorted_classes

IMAGES = ("jpg", "jpeg", "png", "webp")
MASK = "mask.png"


class Group(NamedTuple):
    """The members of one sample, by extension in lower case."""

    shard: Path
    members: dict[str, Member]


class Parts(NamedTuple):
    """Everything of a sample but its pixels."""

    captions: tuple[str, ...]
    label: str | None
    record: dict[str, Any]


class Tars:
    """Samples of webdataset shards. Raises ValueError when a shard is no tar, or when there is no sample in any.

    name: of the dataset, for people. label: field of the json that is the label; by default .cls, then `label`, `class`, ...
    max_pixels: larger images are bad, known from their header before they are decoded.
    """

    def __init__(
        self, shards: Sequence[Path], name: str, label: str | None = None, max_pixels: int = MAX_PIXELS
    ) -> None:
        self._name, self._label, self._max_pixels = name, label, max_pixels
        keys: list[str] = []
        self._found: list[Group | Damage] = []
        for shard in shards:
            for key, found in _groups(shard):
                keys.append(printable(key))
                self._found.append(found)
        if not any(isinstance(found, Group) for found in self._found):
            raise ValueError(f"the shards {printable(name)} hold no samples: see that they were written to the end.")
        self._keys = distinct(keys)
        first = [found for found in self._found[:100] if isinstance(found, Group)]
        if label is not None and all(self._label_of(group) is None for group in first):
            raise ValueError(f"the json of {printable(name)} has no field {label!r} that holds a string or a number.")

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    def classes(self) -> tuple[str, ...]:
        return sorted_classes(self._label_of(found) for found in self._found if isinstance(found, Group))

    def __len__(self) -> int:
        return len(self._found)

    def read(self, index: int) -> Sample | Bad:
        key, found = self._keys[index], self._found[index]
        if isinstance(found, Damage):
            return Bad(key, printable(found.shard.name), found.reason)
        path = found.shard.name
        try:
            name = _image(found.members)
            path = f"{path}/{found.members[name].name}"
            parts = self._parts(found)
            image = decode(io.BytesIO(_bytes(found, name)), self._max_pixels)
            mask = _mask(found, self._max_pixels)
        except Unreadable as error:
            return Bad(key, printable(path), str(error))
        except OSError as error:
            return Bad(key, printable(path), unopened(error))
        return Sample(key, printable(path), image, parts.captions, parts.label, mask, parts.record)

    def identity(self) -> dict[str, Any]:
        entries = (
            (key, sorted((suffix, member.size) for suffix, member in found.members.items()))
            if isinstance(found, Group)
            else (key, found.reason)
            for key, found in zip(self._keys, self._found, strict=True)
        )
        return identify("tars", printable(self._name), entries, max_pixels=self._max_pixels, label=self._label)

    def shard(self, index: int) -> Path:
        """The file that a candidate is in."""
        return self._found[index].shard

    def members(self, index: int) -> list[Member]:
        """Where a sample's files lie in its shard, as they lie; none for a damage."""
        found = self._found[index]
        return [] if isinstance(found, Damage) else sorted(found.members.values(), key=lambda member: member.offset)

    def _label_of(self, group: Group) -> str | None:
        try:
            return self._parts(group).label
        except Unreadable:
            return None

    def _parts(self, group: Group) -> Parts:
        record = _record(group) if "json" in group.members else {}
        label = _text(group, "cls") if self._label is None else None
        return Parts(find_captions(_text(group, "txt"), record), label or find_label(record, self._label), record)


def _groups(shard: Path) -> list[tuple[str, Group | Damage]]:
    """(key, group) in the order of first members, and the shard's damages where they were met."""
    groups: list[tuple[str, Group | Damage]] = []
    latest: dict[str, Group] = {}
    for found in index(shard):
        if isinstance(found, Damage):
            groups.append((f"{shard.name}@{found.offset}", found))
            continue
        # webdataset's own two patterns: members it keeps for itself, and where a key ends.
        split = re.match(r"((?:.*/|)[^.]+)[.]([^/]*)$", found.name, re.DOTALL)
        if split is None or re.match(r"__[^/]*__($|/)", found.name):
            continue
        key, suffix = split[1], split[2].lower()
        if key not in latest or suffix in latest[key].members:
            latest[key] = Group(shard, {})
            groups.append((key, latest[key]))
        latest[key].members[suffix] = found
    return groups


def _image(members: dict[str, Member]) -> str:
    """Which member is the image."""
    for name in IMAGES:
        if name in members:
            return name
    others = [name for name in members if name.endswith(tuple(f".{image}" for image in IMAGES)) and name != MASK]
    if len(others) != 1:
        what = f"{len(others)} images" if others else "no image"
        raise Unreadable(f"has {what} under one key: its members are {', '.join(members)}")
    return others[0]


def _bytes(group: Group, name: str) -> bytes:
    """A member's content by one read at its place: no state, so any thread may, at any time."""
    member = group.members[name]
    with open(group.shard, "rb", buffering=0) as file:
        content = os.pread(file.fileno(), member.size, member.offset)
    if len(content) < member.size:
        raise Unreadable(f"{group.shard.name} is cut off inside {member.name}: what came after it is lost")
    return content


def _text(group: Group, name: str) -> str:
    """A text member, or "" where there is none."""
    return _bytes(group, name).decode("utf-8", "replace").strip() if name in group.members else ""


def _record(group: Group) -> dict[str, Any]:
    content = _bytes(group, "json")
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        raise Unreadable("its json cannot be parsed") from None
    if not isinstance(record, dict):
        raise Unreadable(f"its json is a {type(record).__name__}, not an object with fields")
    return record


def _mask(group: Group, max_pixels: int) -> Image.Image | None:
    if MASK not in group.members:
        return None
    content = _bytes(group, MASK)
    try:
        return decode_mask(io.BytesIO(content), max_pixels)
    except Unreadable as error:
        raise Unreadable(f"its {MASK} {error}") from error.__cause__
