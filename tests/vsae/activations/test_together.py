"""Several processes write disjoint shards with the bytes of one, also after any of them was killed; mistakes in any of them are a sentence in all."""

import itertools
import multiprocessing
import shutil
import signal
import socket
import threading
import time
from collections import Counter

import pytest
import torch
from fake_model import KINDS, REQUEST
from team_job import N, batch_of, process

from vsae.activations import shards as shards_module
from vsae.activations import write_store
from vsae.activations.ahead import ahead
from vsae.activations.place import Place
from vsae.activations.shards import Shards
from vsae.activations.source import Batch
from vsae.activations.together import Team, write_together

OPTIONS = {"rows_per_shard": 50, "kind_names": KINDS, "max_bad_share": 0.2}
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["vsae.activations.together", "torch.distributed"])


def write(path, n=N, **options):
    """What one process writes."""
    return write_store(path, lambda start: map(batch_of, range(start, n)), REQUEST, **OPTIONS | options)


@pytest.fixture
def launch(tmp_path):
    """Run the team's job in processes; returns the exit code and what was said on stderr, of each."""
    numbers = itertools.count()

    def launch(out, size=2, **told):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        said = [tmp_path / f"said-{next(numbers)}" for _ in range(size)]
        team = [
            SERVER.Process(target=process, args=(rank, size, port, str(file), str(out), told))
            for rank, file in enumerate(said)
        ]
        for member in team:
            member.start()
        for member in team:
            member.join(300)
        codes = [member.exitcode for member in team]
        for member in team:
            member.kill()
        return [(code, file.read_text()) for code, file in zip(codes, said, strict=True)]

    return launch


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    path = tmp_path_factory.mktemp("alone") / "store"
    store = write(path)
    for site in store.manifest["sites"].values():
        assert 0 < site["shards"][-1]["rows"] < 50
    return path


def good(results):
    return [code for code, _ in results] == [0] * len(results)


def writers(log):
    """Who wrote each shard; a shard written twice is an error."""
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len(lines) == len({shard for _, shard in lines})
    return {shard: int(rank) for rank, shard in lines}


def test_three_processes_write_disjoint_shards_with_the_bytes_of_one(tmp_path, launch, alone, contents):
    results = launch(tmp_path / "store", size=3, log=tmp_path / "log")
    assert good(results), results
    assert contents(tmp_path / "store") == contents(alone)
    wrote = writers(tmp_path / "log")
    assert set(wrote) == {name for name in contents(alone) if "part-" in name}
    vision = Counter(rank for shard, rank in wrote.items() if shard.startswith("blocks.1/"))
    assert sorted(vision) == [0, 1, 2] and max(vision.values()) - min(vision.values()) <= 1
    assert good(launch(tmp_path / "store", size=2, log=tmp_path / "none")), "a finished store is returned as it is"
    assert contents(tmp_path / "store") == contents(alone) and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (2, {"n": 5, "rows_per_shard": 7}),  # several shards a batch
        (2, {"rows_per_shard": 100000, "keep_pad": True, "dtype": "float32"}),  # one shard a site
        (4, {"n": 3}),  # fewer batches than processes
        (3, {"n": 6, "rows_per_shard": 17}),  # the last batches fill the last shard
    ],
)
def test_any_number_of_processes_and_rows_a_shard_gives_the_bytes_of_one(tmp_path, launch, contents, size, told):
    write(tmp_path / "alone", **told)
    results = launch(tmp_path / "store", size=size, **told)
    assert good(results), results
    assert contents(tmp_path / "store") == contents(tmp_path / "alone")


# --- killed and run again -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("victim", "point", "size", "resumed_by"),
    [(1, "written", 3, (1, 2, 3)), (0, "written", 2, (2,)), (1, "writing", 2, (1,)), (0, "computing", 2, (3,))],
)
def test_a_kill_of_any_process_stops_the_others_and_any_number_completes_the_store(
    tmp_path, launch, alone, contents, victim, point, size, resumed_by
):
    """The victim is killed in computing, in the middle of its second shard, or when that is on disk and nobody knows yet."""
    out = tmp_path / "store"
    results = launch(out, size=size, dies=(victim, point))
    assert results.pop(victim)[0] == -signal.SIGKILL
    assert all(code == 2 and "ended before the store was finished: run the same" in said for code, said in results)
    if size == 2:
        assert f"process {victim} ended" in results[0][1]
    assert not (out / "manifest.json").exists()
    if point == "writing":
        assert list(out.glob("*/.*.partial"))
    for n in resumed_by:
        copy = tmp_path / f"by-{n}"
        shutil.copytree(out, copy)
        if n == 1:
            write(copy)
        else:
            results = launch(copy, size=n)
            assert good(results), results
        assert contents(copy) == contents(alone)


def test_a_store_that_a_process_without_a_team_still_writes_is_left_alone(tmp_path, alone, contents):
    (tmp_path / "store").mkdir()
    with (
        Shards(tmp_path / "store", {"dtype": "float32", "rows_per_shard": 5}, print),
        pytest.raises(OSError, match="is being written by another process: wait for it"),
    ):
        write(tmp_path / "store")
    write(tmp_path / "store")
    assert contents(tmp_path / "store") == contents(alone)


# --- mistakes -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [0, 1])
def test_what_one_process_finds_wrong_is_said_by_all(tmp_path, launch, fails):
    results = launch(tmp_path / "store", size=2 + fails, fails=fails)
    assert all(code == 2 for code, _ in results)
    assert "batch 6 is beyond me" in results[0][1] and "batch 6 is beyond me" in results[fails][1]
    assert all("process" in said and "Traceback" not in said for rank, (_, said) in enumerate(results) if rank != fails)


def test_a_full_disk_of_one_process_is_a_sentence_and_the_rerun_completes(tmp_path, launch, alone, contents):
    results = launch(tmp_path / "store", full=1)
    assert [code for code, _ in results] == [2, 2]
    assert all("the disk is full while writing" in said and "it goes on from here" in said for _, said in results)
    assert "process 1: the disk" in results[0][1]
    write(tmp_path / "store")
    assert contents(tmp_path / "store") == contents(alone)


def test_processes_of_different_jobs_and_folders_with_another_job_are_refused(tmp_path, launch, alone):
    results = launch(tmp_path / "store", differs=(1,))
    assert [code for code, _ in results] == [2, 2]
    assert all("reads other data or another model than process 0" in said for _, said in results)
    results = launch(alone, differs=(0, 1))
    assert [code for code, _ in results] == [2, 2]
    assert all("holds activations of another job (data differ)" in said for _, said in results)
    assert "process 0: " in results[1][1]


# --- the parts ------------------------------------------------------------------------------------------------------------------------


def test_a_team_of_one_needs_no_launcher(tmp_path, alone, contents, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert Team.of_launch() == Team(0, 1, 0)
    shown = []
    write_together(
        tmp_path / "store",
        lambda start, step: map(batch_of, range(start, N, step)),
        REQUEST,
        team=Team(),
        shown=lambda items, start: shown.append(start) or items,
        **OPTIONS,
    )
    assert contents(tmp_path / "store") == contents(alone) and shown == [0]


@pytest.mark.parametrize(("rows_per_shard", "done"), [(1, (0, 0)), (10, (0, 0)), (10, (3, 5)), (200, (2, 4))])
def test_pieces_say_of_every_row_where_it_goes(rows_per_shard, done):
    counts = [12, 0, 7, 30, 1, 10]
    rows = [(batch, row) for batch, n in enumerate(counts) for row in range(n) if (batch, row) >= done]
    place, found, ends = Place("a", 4, rows_per_shard, done), {}, []
    pieces = [piece for batch, n in enumerate(counts) for piece in place.pieces(batch, n, 100 * batch)]
    for piece in pieces + place.rest(len(counts)):
        batch = piece.first // 100
        for row in range(piece.stop - piece.start):
            found[piece.part, piece.at + row] = (batch, piece.start + row)
        if piece.next:
            ends.append(piece.entry)
    assert [found[divmod(i, rows_per_shard)] for i in range(len(rows))] == rows and len(found) == len(rows)
    assert [end["part"] for end in ends] == list(range(-(-len(rows) // rows_per_shard)))
    assert [end["rows"] for end in ends] == [
        len(rows[i : i + rows_per_shard]) for i in range(0, len(rows), rows_per_shard)
    ]
    for end in ends:
        after = rows[sum(e["rows"] for e in ends[: end["part"] + 1]) :]
        assert after == [row for row in rows if row >= tuple(end["next"])]


def test_at_most_two_shards_are_on_their_way_to_disk(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    slow, real = threading.Event(), shards_module.write_shard
    monkeypatch.setattr(shards_module, "write_shard", lambda *shard: slow.wait(60) and real(*shard))
    rows = Batch(torch.zeros(5, 4), *(torch.zeros(5, dtype=dtype) for dtype in (torch.uint8, torch.int64, torch.int32)))
    place, put, done = Place("a", 4, 5), [], []
    with Shards(tmp_path, {"dtype": "float32", "rows_per_shard": 5}, done.append) as shards:

        def fill():
            for batch in range(4):
                for piece in place.pieces(batch, 5, 0):
                    shards.put(piece, rows)
                put.append(batch)

        thread = threading.Thread(target=fill)
        thread.start()
        time.sleep(0.3)
        assert put == [0, 1]
        slow.set()
        thread.join()
        shards.finish()
    assert [entry["part"] for entry in done] == [0, 1, 2, 3]


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
