"""Several processes extract one store: each computes every n-th batch and writes every n-th shard, and the same bytes come out as from one.

    accelerate launch --multi_gpu --num_processes 2 -m vsae.cli extract ...        torchrun --nproc-per-node 2 -m vsae.cli extract ...

Where a row lies in the store is known only when all samples before it have been read. So the processes go in rounds of one batch each. Process r
computes batch start + r, start + r + n, ..., decoding and the model two batches ahead, and tells process 0 its samples and how many rows it has.
Process 0 keeps the ledger: it answers with where in which shard the rows of the round lie. Each shard has one owner. Rows go to it straight from who
computed them, into its buffer; it hashes, sums and writes the full shard while the rounds go on, and tells process 0, whose journal alone makes it
part of the store. Neighbouring shards of a site, and sites, have different owners, so that writing is shared.

All processes go through the rows of a round in the one order that process 0 gave, so no two ever wait for each other. Memory: the batches ahead,
a shard's buffer a site, and two shards on their way to disk, in each process. When any of them is killed the others stop; what is on disk is a
store begun by one process, which any number of them may complete: shards that the journal does not know are written again. The bits are those of
one process as long as each computes with as many threads.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from vsae.activations.ahead import ahead
from vsae.activations.chunk import Chunk
from vsae.activations.ledger import Ledger
from vsae.activations.place import Piece
from vsae.activations.rows import Reading, readings
from vsae.activations.shards import Shards, rows_at
from vsae.activations.store import ActivationStore
from vsae.activations.wire import Elsewhere, Team, connected, receive, receive_rows, send, send_rows
from vsae.activations.writer import complete, full_disk_named, job_of, write_store
from vsae.files import digest

AHEAD = 2
"""Batches computed before they are asked for, in each process."""

MakeShare = Callable[[int, int], Iterable[Chunk]]
"""Chunks from a batch on, of every so many-th batch."""

Shown = Callable[[Iterable[Any], int], Iterable[Any]]

Move = tuple[int, int, Piece]
"""The process that computed rows, the one that owns their shard, and where in it they belong."""


def write_together(
    path: str | Path,
    share_from: MakeShare,
    request: Mapping[str, Any],
    *,
    team: Team,
    shown: Shown = lambda batches, start: batches,
    max_bad_share: float = 0.05,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> ActivationStore:
    """`write_store` by all processes of a team, each of which calls this with the same arguments; `path` is a folder that all of them see.

    share_from(first, step): chunks of batches first, first + step, ... shown(batches, start): shows progress, in process 0.
    Raises what `write_store` raises, ValueError where this process was given another job than process 0, and OSError with what went wrong
    in another process.
    """
    path = Path(path)
    if team.size == 1:
        options |= {"max_bad_share": max_bad_share, "progress": progress}
        return write_store(path, lambda start: shown(share_from(start, 1), start), request, **options)
    job = job_of(request, **options)
    with connected(team):
        if team.rank:
            with full_disk_named(path):
                _join(path, share_from, job, team)
            return ActivationStore.open(path)
        called = False

        def write(ledger: Ledger) -> None:
            nonlocal called
            called = True
            _lead(ledger, share_from, job, team, shown)

        try:
            store = complete(path, job, write, max_bad_share, progress)
        except (ValueError, OSError) as error:
            if not called:  # later on the others notice that this process ends
                with suppress(Elsewhere):
                    _to_all({"start": None, "failed": f"process 0: {error}"}, team)
            raise
        _to_all({"start": None, "failed": None}, team)
        return store


def _lead(ledger: Ledger, share_from: MakeShare, job: dict[str, Any], team: Team, shown: Shown) -> None:
    """Process 0: say where all rows go, and do its own share."""
    _to_all({"start": ledger.start, "job": digest(job)}, team)
    with (
        Shards(ledger.path, job, ledger.record) as shards,
        closing(_own(share_from, ledger.start, job, team)) as own,
    ):
        for _ in shown(_rounds(ledger, shards, own, team), ledger.start):
            pass
        shards.finish()
    for rank in team.others:
        ledger.record(*receive(rank)["done"])


def _rounds(ledger: Ledger, shards: Shards, own: Iterator[Reading], team: Team) -> Iterator[int]:
    """Batch after batch, each once its rows are where they belong."""
    sites: dict[str, int] = {}
    ended = False

    def moves(pieces: Iterable[Piece], source: int | None = None) -> Iterator[Move]:
        for piece in pieces:
            owner = (piece.part + sites.setdefault(piece.site, len(sites))) % team.size
            yield owner if source is None else source, owner, piece

    while not ended:
        mine = next(own, None)
        told = [_told(mine, []), *(receive(rank) for rank in team.others)]
        batches, orders = [], list[Move]()
        for source, message in enumerate(told):
            ledger.record(*message["done"])
            if message["batch"] is None:
                ended = True
            else:
                batches.append(message["batch"]["batch"])
                orders += moves(ledger.take(message["batch"], message["rows"]), source)
        if ended:
            orders += moves(ledger.end())
        _to_all({"moves": orders, "ended": ended}, team)
        _exchange(orders, mine, shards, team)
        yield from batches


def _join(path: Path, share_from: MakeShare, job: dict[str, Any], team: Team) -> None:
    """Every other process: do its share, until the store is finished."""
    order = receive(0)
    if order["start"] is not None:
        if order["job"] != digest(job):
            raise ValueError("it reads other data or another model than process 0: start all with one command.")
        done: list[dict[str, Any]] = []
        with Shards(path, job, done.append) as shards, closing(_own(share_from, order["start"], job, team)) as own:
            ended = False
            while not ended:
                mine = next(own, None)
                send(_told(mine, done), 0)
                order = receive(0)
                moves = [(source, owner, Piece(*piece)) for source, owner, piece in order["moves"]]
                _exchange(moves, mine, shards, team)
                ended = order["ended"]
            shards.finish()
            send(_told(None, done), 0)
        order = receive(0)
    if order["failed"]:
        raise Elsewhere(order["failed"])


def _own(share_from: MakeShare, start: int, job: dict[str, Any], team: Team) -> Generator[Reading, None, None]:
    """The batches that this process computes."""
    return ahead(readings(share_from(start + team.rank, team.size), job), AHEAD)


def _told(reading: Reading | None, done: list[dict[str, Any]]) -> dict[str, Any]:
    """What process 0 is told in each round: of a batch, if there is one, and of the shards that came to be on disk, which are told once."""
    told: dict[str, Any] = {"batch": reading and reading.entry, "rows": reading and reading.counts, "done": done[:]}
    del done[: len(told["done"])]
    return told


def _exchange(moves: list[Move], reading: Reading | None, shards: Shards, team: Team) -> None:
    """Rows of this round that this process has to their owners, and those that it owns into their shards."""
    for source, owner, piece in moves:
        if team.rank == source and piece.stop > piece.start:
            assert reading is not None
            rows = rows_at(reading.rows[piece.site], piece)
            if owner == source:
                shards.put(piece, rows)
            else:
                send_rows(rows, owner)
        elif team.rank == owner:
            if owner != source:
                receive_rows(shards.slots(piece), source)
            shards.filled(piece)


def _to_all(message: dict[str, Any], team: Team) -> None:
    for rank in team.others:
        send(message, rank)
