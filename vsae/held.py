"""A folder holds to the job that began it: what is there may only be gone on with by the same job, of this version or an older one."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from vsae.files import read_json, write_json


def hold_to(job: Any, what: str, settings: Mapping[str, Any]) -> None:
    """Note the settings of a job, a dataclass with `out`, in OUT/WHAT.json, or see that they are what was noted there. Raises ValueError naming those that differ."""
    note = job.out / f"{what}.json"
    if not note.is_file():
        job.out.mkdir(parents=True, exist_ok=True)
        write_json(note, plain(settings))
    elif names := differing(read_json(note), settings, defaults(job)):
        raise ValueError(
            f"{job.out} holds another {what}; what differs: {', '.join(names)}. Choose another --out, or remove it."
        )


def differing(
    noted: Mapping[str, Any], wanted: Mapping[str, Any], usual: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> (noted, wanted) of the fields that differ. One that is not noted, for an older version did not have it, was what is usual: a new
    field's default is what was done before."""
    then, now, before = (flat(plain(each)) for each in (noted, wanted, usual))
    then = {name: value for name, value in before.items() if name in now} | then
    return {name: (then.get(name), now.get(name)) for name in sorted(then | now) if then.get(name) != now.get(name)}


def defaults(of: Any) -> dict[str, Any]:
    """The fields of a dataclass that have a default, with it; of those that hold another dataclass, its own."""
    found: dict[str, Any] = {}
    for each in fields(of):
        if is_dataclass(value := getattr(of, each.name)):
            found[each.name] = defaults(value)
        elif each.default is not MISSING:
            found[each.name] = each.default
        elif each.default_factory is not MISSING:
            found[each.name] = each.default_factory()
    return found


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As a note holds them."""
    return dict(json.loads(json.dumps(dict(settings), default=str)))


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields under dotted names."""
    found: dict[str, Any] = {}
    for name, value in content.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
