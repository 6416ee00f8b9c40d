"""One process of a team that writes the fake model's store, and what may go wrong in it."""

import os
import signal
import sys
import time
from pathlib import Path

from fake_model import KINDS, REQUEST, Bad, Chunk, chunk

from vsae.activations import shards
from vsae.activations.together import Team, write_together

N = 18
EMPTY = 4
"""The batch without a readable sample."""


def batch_of(number):
    return chunk(number) if number != EMPTY else Chunk(number, [], [Bad(f"{number}-bad", "gone.jpg", "missing")], {})


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def main(out, n=N, log=None, delay=0.0, fails=None, differs=(), full=None, dies=(None, None), **options):
    """log: file that gets a line "process shard" for each shard written. fails, differs, full, dies: processes that have computing fail, are given
    another job, have a full disk, and are killed (and at which point)."""
    team = Team.of_launch()
    point = dies[1] if dies[0] == team.rank else None
    write_shard, written = shards.write_shard, []

    def noted(path, rows):
        written.append(path)
        if full == team.rank:
            raise OSError(28, "No space left on device", str(path))
        if point == "writing" and len(written) == 2:
            os.replace = lambda *_: die()
        result = write_shard(path, rows)
        if log:
            with Path(log).open("a") as file:
                file.write(f"{team.rank} {path.parent.name}/{path.name}\n")
        if point == "written" and len(written) == 2:
            die()
        return result

    def share(start, step):
        for number in range(start, n, step):
            time.sleep(delay)
            if fails == team.rank and number >= 6:
                raise ValueError("batch 6 is beyond me.")
            if point == "computing" and number >= 12:
                die()
            yield batch_of(number)

    shards.write_shard = noted
    data = {"data": {"n": 81 if team.rank in differs else 80}}
    options = {"rows_per_shard": 50, "kind_names": KINDS, "max_bad_share": 0.2} | options
    try:
        write_together(out, share, REQUEST | data, team=team, **options)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def process(rank, size, port, said, out, told):
    """As `torchrun` would start it; what it says on stderr goes to a file."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    main(out, **told)
