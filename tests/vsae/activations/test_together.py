"""Two processes write the bytes of one, also after any of them was killed; mistakes in any of them are a sentence in all."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_model import KINDS, REQUEST, chunks

from vsae.activations import write_store
from vsae.activations.ahead import ahead
from vsae.activations.together import Team, write_together

PROGRAM = Path(__file__).with_name("team_job.py")
OPTIONS = {"rows_per_shard": 50, "kind_names": KINDS}


def launch(out, size=2, **told):
    """Start `team_job.py` in `size` processes, as `torchrun` would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
    environment = os.environ | common | {name.upper(): str(value) for name, value in told.items()}
    return [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(out)],
            env=environment | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def ends(processes):
    """Exit code and what was said on stderr, of each."""
    said = [process.communicate(timeout=300)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    path = tmp_path_factory.mktemp("alone") / "store"
    write_store(path, lambda start: chunks(start, 30), REQUEST, **OPTIONS)
    return path


def test_three_processes_write_the_bytes_of_one(tmp_path, alone, contents):
    assert all(code == 0 for code, _ in ends(launch(tmp_path / "store", size=3)))
    assert contents(tmp_path / "store") == contents(alone)
    assert all(code == 0 for code, _ in ends(launch(tmp_path / "store", size=2))), (
        "a finished store is returned as it is"
    )
    assert contents(tmp_path / "store") == contents(alone)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_kill_of_either_process_stops_the_other_and_two_or_one_complete_the_store(tmp_path, alone, contents, victim):
    out = tmp_path / "store"
    processes = launch(out, delay=0.05)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*/part-*"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    processes[victim].send_signal(signal.SIGKILL)
    results = ends(processes)
    assert results[victim][0] == -signal.SIGKILL
    code, said = results[1 - victim]
    assert code == 2 and f"process {victim} ended before the store was finished" in said
    assert not (out / "manifest.json").exists()
    if victim:
        assert all(code == 0 for code, _ in ends(launch(out)))
    else:
        write_store(out, lambda start: chunks(start, 30), REQUEST, **OPTIONS)
    assert contents(out) == contents(alone)


@pytest.mark.parametrize("fails", [0, 1])
def test_what_one_process_finds_wrong_is_said_by_all(tmp_path, fails):
    results = ends(launch(tmp_path / "store", fails=fails))
    assert [code for code, _ in results] == [2, 2]
    assert "batch 6 is beyond me" in results[0][1]
    assert ("batch 6 is beyond me" if fails else "process 0 ended") in results[1][1]


def test_processes_of_different_jobs_and_folders_with_another_job_are_refused(tmp_path, alone):
    results = ends(launch(tmp_path / "store", differs=1))
    assert [code for code, _ in results] == [2, 2]
    assert all("reads other data or another model than process 0" in said for _, said in results)
    results = ends(launch(alone, differs="both"))
    assert [code for code, _ in results] == [2, 2]
    assert "another job" in results[0][1] and "process 0 could not write the store" in results[1][1]


def test_a_team_of_one_needs_no_launcher(tmp_path, alone, contents, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert Team.of_launch() == Team(0, 1, 0)
    shown = []
    write_together(
        tmp_path / "store",
        lambda start, step: itertools.islice(chunks(start, 30), 0, None, step),
        REQUEST,
        team=Team(),
        shown=lambda items, start: shown.append(start) or items,
        **OPTIONS,
    )
    assert contents(tmp_path / "store") == contents(alone) and shown == [0]


def test_ahead_stays_n_ahead_in_order_and_raises_at_the_item():
    made = []

    def items():
        for number in range(10):
            made.append(number)
            yield number
        raise ValueError("the eleventh")

    found = ahead(items(), 2)
    assert next(found) == 0
    time.sleep(0.3)
    assert max(made) <= 4  # one given, two ready, one waiting for a place
    assert [next(found) for _ in range(9)] == list(range(1, 10))
    with pytest.raises(ValueError, match="the eleventh"):
        next(found)
    closed = []

    def endless():
        try:
            yield from itertools.count()
        finally:
            closed.append(True)

    found = ahead(endless(), 2)
    next(found)
    found.close()
    assert closed == [True]
