"""A folder holds to the job that began it: what is there may only be gone on with by the same job."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vsae.files import read_json, write_json


def hold_to(out: Path, what: str, settings: Mapping[str, Any]) -> None:
    """Note the settings in OUT/WHAT.json, or see that they are what was noted there. Raises ValueError naming those that differ."""
    wanted, note = json.loads(json.dumps(dict(settings), default=str)), out / f"{what}.json"
    if not note.is_file():
        out.mkdir(parents=True, exist_ok=True)
        write_json(note, wanted)
    elif differing := [name for name, value in read_json(note).items() if wanted.get(name) != value]:
        raise ValueError(
            f"{out} holds another {what}; what differs: {', '.join(differing)}. Choose another --out, or remove it."
        )
