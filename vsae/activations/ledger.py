"""What is known of an unfinished store: the batches seen, the shards on disk, and so where the rows of the next batch go.

One process keeps it, whichever wrote the shards. Batches come in order; shards may be told of in any order, and enter the journal in theirs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from vsae.activations.finish import finish
from vsae.activations.journal import Journal
from vsae.activations.manifest import part_name, site_folder
from vsae.activations.place import Piece, Place, default_rows
from vsae.activations.shard import DTYPES
from vsae.files import digest

ENOUGH_CANDIDATES = 100
"""The share of bad samples is judged from this many candidates on, and at the end."""


@dataclass(frozen=True)
class Seen:
    """Good and bad samples up to and with a batch, and the digest of its journal line, which it must repeat."""

    good: int = 0
    bad: int = 0
    line: str = ""

    def then(self, entry: dict[str, Any]) -> "Seen":
        return Seen(self.good + len(entry["samples"]), self.bad + len(entry["bad"]), digest(entry))

    @property
    def candidates(self) -> int:
        return self.good + self.bad


@dataclass
class Ledger:
    """The journal read, and gone on with. Raises ValueError where it is that of another job."""

    path: Path
    job: dict[str, Any]
    journal: Journal
    max_bad_share: float
    progress: Callable[[int, int], None] | None
    seen: list[Seen] = field(default_factory=lambda: [Seen()])  # seen[b]: before batch b
    places: dict[str, Place] = field(default_factory=dict)
    _shards: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # by site: where what follows each begins
    _early: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        entries = iter(self.journal)
        first = next(entries, None)
        if first is None:
            self.journal.append({"job": self.job}, sync=True)
        else:
            check_same_job(self.path, first["job"], self.job)
        for entry in entries:
            if "batch" in entry:
                self.seen.append(self.seen[-1].then(entry))
                for site in entry["sites"]:
                    self._shards.setdefault(site, [])
            elif self._intact(entry) and entry["part"] == len(self._shards[entry["site"]]):
                self._shards[entry["site"]].append(tuple(entry["next"]))
        self.start: int = min((shards[-1][0] if shards else 0 for shards in self._shards.values()), default=0)
        """The first batch that has to be read (again)."""
        self._due = self.start

    def _intact(self, shard: dict[str, Any]) -> bool:
        file = self.path / site_folder(shard["site"]) / part_name(shard["part"])
        return file.is_file() and file.stat().st_size == shard["bytes"]

    def take(self, entry: dict[str, Any], counts: dict[str, int]) -> list[Piece]:
        """Note the next batch, given its journal line and its rows by site; says where these go."""
        number = entry["batch"]
        if number != self._due:
            raise ValueError(
                f"batch {number} came where batch {self._due} was due: batches must come in order, without gaps."
            )
        self._note(entry)
        self._due += 1
        pieces = []
        for site, n_rows in counts.items():
            place = self._place(site, entry["sites"][site]["d_model"])
            pieces += place.pieces(number, n_rows, self.seen[number].good)
        if self.progress:
            self.progress(self.seen[self._due].candidates, self.seen[self._due].bad)
        return pieces

    def end(self) -> list[Piece]:
        """No batch is left: says what completes the last shards. Raises ValueError for data that are too bad, too few or fewer than before."""
        if self._due + 1 < len(self.seen):
            raise ValueError(
                f"the data ended at batch {self._due}, earlier than when {self.path} was begun. Delete the folder and extract again."
            )
        if self.seen[-1].candidates == 0:
            raise ValueError(f"there is nothing to write to {self.path}: the data holds no sample.")
        self._check_bad(self.seen[-1], [bad for entry in self.journal for bad in entry.get("bad", [])])
        return [piece for place in self.places.values() for piece in place.rest(self._due)]

    def record(self, *shards: dict[str, Any]) -> None:
        """Shards are on disk. Those of a site enter the journal in their order, so that what it knows has no gaps."""
        with self._lock:
            entries = []
            for shard in shards:
                known = self._shards[shard["site"]]
                self._early[shard["site"], shard["part"]] = shard
                while entry := self._early.pop((shard["site"], len(known)), None):
                    known.append(tuple(entry["next"]))
                    entries.append(entry)
            for entry in entries:
                self.journal.append(entry, sync=entry is entries[-1])

    def finish(self) -> None:
        """Turn the journal into the manifest."""
        assert all(len(self._shards[site]) == place.part for site, place in self.places.items())
        finish(self.path, self.job, self.journal)

    def _note(self, entry: dict[str, Any]) -> None:
        """Put a batch in the journal; one that is there already must be the same again."""
        number = entry["batch"]
        now = self.seen[number].then(entry)
        if number + 1 < len(self.seen):
            if self.seen[number + 1] != now:
                raise ValueError(
                    f"batch {number} is not what it was when {self.path} was begun: the data changed. Delete the folder and extract again."
                )
            return
        if now.candidates >= ENOUGH_CANDIDATES:
            self._check_bad(now, entry["bad"])
        self.seen.append(now)
        self.journal.append(entry)

    def _check_bad(self, seen: Seen, examples: list[dict[str, str]]) -> None:
        if seen.bad == 0 or (seen.good > 0 and seen.bad <= self.max_bad_share * seen.candidates):
            return
        example = (
            f" The last: {examples[-1]['path'] or examples[-1]['key']} ({examples[-1]['reason']})." if examples else ""
        )
        raise ValueError(
            f"{seen.bad} of {seen.candidates} samples could not be read, more than the share of {self.max_bad_share:g} that is allowed.{example} "
            "Mend the data, or allow a larger share with --max-bad-share."
        )

    def _place(self, site: str, d_model: int) -> Place:
        if site not in self.places:
            n_rows = self.job["rows_per_shard"] or default_rows(d_model, DTYPES[self.job["dtype"]])
            shards = self._shards.setdefault(site, [])
            (self.path / site_folder(site)).mkdir(exist_ok=True)
            self.places[site] = Place(site, d_model, n_rows, shards[-1] if shards else (0, 0), len(shards))
        if self.places[site].d_model != d_model:
            raise ValueError(
                f"{site} has {self.places[site].d_model} dimensions in one batch and {d_model} in another: choose another site."
            )
        return self.places[site]


def check_same_job(path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raises ValueError that names what differs."""
    flat = [{**job, **job["request"], "request": None} for job in (theirs, ours)]
    if differing := sorted(name for name in flat[0] | flat[1] if flat[0].get(name) != flat[1].get(name)):
        raise ValueError(
            f"{path} holds activations of another job ({', '.join(differing)} differ): choose another folder, or delete this one to extract again."
        )
