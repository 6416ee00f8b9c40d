import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fake_model import KINDS, REQUEST, Bad, Chunk, Tokens, chunk, chunks
from safetensors.torch import load_file

from vsae.activations import ActivationStore, write_store
from vsae.activations.journal import Journal
from vsae.activations.manifest import site_folder

ALL = [chunk(batch) for batch in range(10)]
VISION = torch.cat([c.activations["blocks.1"].values.reshape(-1, 16) for c in ALL])


def test_rows_come_back_in_order_with_kinds_samples_and_positions(write):
    store = write()
    assert store.sites == ["blocks.1", "text.2:input"]
    batch = store.site("blocks.1").read(0, 76 * 17)
    assert torch.equal(batch.values, VISION)
    assert torch.equal(batch.kinds, torch.tensor([0] + [2] * 16, dtype=torch.uint8).repeat(76))
    assert torch.equal(batch.samples, torch.arange(76).repeat_interleave(17))
    assert torch.equal(batch.positions, torch.arange(17, dtype=torch.int32).repeat(76))
    samples = store.samples.to_pylist()
    assert len(samples) == 76
    assert samples[7] == {
        "key": "1-0",
        "path": "photos/1/0.jpg",
        "caption": "<b>é</b>",
        "label": None,
        "width": 32,
        "height": 24,
    }


def test_padding_is_not_stored_unless_asked_for(write):
    text = write().site("text.2:input")
    assert text.tokens is None
    expected = [c.activations["text.2:input"] for c in ALL]
    rows = torch.cat([t.values[t.kinds != 6] for t in expected])
    assert torch.equal(text.read(0, text.n_rows).values, rows)
    padded = write("padded", keep_pad=True).site("text.2:input")
    assert padded.tokens == 5
    assert padded.n_rows == 76 * 5
    assert padded.stats().count == text.n_rows
    assert padded.stats(["pad"]).count == padded.n_rows - text.n_rows


@pytest.mark.parametrize(("rows_per_shard", "shards"), [(76 * 17, 1), (38 * 17, 2), (1000, 2), (1291, 2), (5000, 1)])
def test_shards_are_full_and_the_last_one_exact(write, rows_per_shard, shards):
    store = write(rows_per_shard=rows_per_shard)
    rows = [shard["rows"] for shard in store.manifest["sites"]["blocks.1"]["shards"]]
    assert len(rows) == shards
    assert all(n == rows_per_shard for n in rows[:-1])
    assert sum(rows) == 76 * 17
    assert sorted(path.name for path in (store.path / "blocks.1").iterdir()) == [
        f"part-0000{i}.safetensors" for i in range(shards)
    ]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_shard_is_a_plain_safetensors_file_in_the_asked_for_dtype(write, dtype):
    store = write(dtype=dtype)
    part = load_file(store.path / "blocks.1" / "part-00000.safetensors")
    assert torch.equal(part["values"], VISION[:100].to(getattr(torch, dtype)))
    assert part["kinds"].dtype == torch.uint8
    assert part["samples"].tolist() == (torch.arange(100) // 17).tolist()
    assert part["positions"].tolist() == (torch.arange(100) % 17).tolist()


def test_moments_are_those_of_the_stored_rows_by_kind(write):
    site = write(dtype="bfloat16").site("blocks.1")
    rows = VISION.bfloat16().double()
    patches = torch.arange(len(rows)) % 17 != 0
    for kinds, expected in ((None, rows), (["patch"], rows[patches]), (["cls"], rows[~patches])):
        moments = site.stats(kinds)
        assert moments.count == len(expected)
        torch.testing.assert_close(moments.mean, expected.mean(0), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(moments.second, expected.square().mean(0), rtol=1e-12, atol=0)
        torch.testing.assert_close(moments.variance, expected.var(0, unbiased=False), rtol=1e-10, atol=0)


def test_the_manifest_says_what_it_is_and_nothing_of_this_machine(write, tmp_path):
    store = write()
    site = store.manifest["sites"]["text.2:input"]
    assert (site["path"], site["side"], site["grid"], site["d_model"]) == ("text.2", "input", None, 8)
    assert store.manifest["sites"]["blocks.1"]["grid"] == [4, 4]
    assert store.manifest["bad"]["count"] == 4
    assert store.manifest["bad"]["samples"][1] == {"key": "3-bad", "path": "photos/3/bad.jpg", "reason": "truncated"}
    fingerprint = store.site("text.2:input").fingerprint
    assert (fingerprint["site"], fingerprint["side"]) == ("text.2", "input")
    assert fingerprint["preprocessing"] == {"resize": 8}
    text = (store.path / "manifest.json").read_text()
    assert str(tmp_path) not in text
    assert os.uname().nodename not in text


def test_grid_is_none_when_it_varies(write):
    def varying(start):
        for c in chunks(start, 4):
            grid = (4, 4) if c.batch % 2 else (2, 8)
            c.activations = {"a": c.activations["blocks.1"]._replace(grid=grid)}
            yield c

    assert write(make_chunks=varying).site().grid is None


@pytest.mark.parametrize("site", ["../../etc", ".", "a/b", "a b", "manifest.json", "x" * 300, ""])
def test_hostile_site_names_stay_inside_the_store(write, site):
    def renamed(start):
        for c in chunks(start, 2):
            yield Chunk(c.batch, c.samples, c.bad, {site: c.activations["blocks.1"]})

    store = write(make_chunks=renamed)
    assert torch.equal(store.site(site).read(0, 5).values, VISION[:5])
    assert "/" not in site_folder(site)
    assert not site_folder(site).startswith(".")


def test_a_file_name_that_is_no_utf8_is_written_with_backslashes(write):
    def odd(start):
        for c in chunks(start, 1):
            c.samples[0]["path"] = "bad\udcff.jpg"
            yield c

    assert write(make_chunks=odd).samples["path"][0].as_py() == "bad\\udcff.jpg"


# --- killed and run again -------------------------------------------------------------------------------------------------------------


class Kill(BaseException):
    pass


def test_a_stop_at_any_step_then_the_same_command_gives_the_same_bytes(write, monkeypatch, tmp_path, contents):
    """Every durable step (append to the journal, sync, rename, unlink) of the writer is in turn the last one that happens."""
    options: dict = {"make_chunks": lambda start: chunks(start, 4), "rows_per_shard": 200}
    expected = contents(write("whole", **options).path)
    whole_steps = 0
    real = {name: getattr(os, name) for name in ("fsync", "replace", "unlink")}
    for last in range(1, 100):
        count = 0

        def step(name, last=last):
            def run(*args, **kwargs):
                nonlocal count
                count += 1
                if count >= last:
                    raise Kill
                return real[name](*args, **kwargs)

            return run

        for name in real:
            monkeypatch.setattr(os, name, step(name))
        try:
            write(f"killed-{last}", **options)
            whole_steps = last
        except Kill:
            pass
        for name, function in real.items():
            monkeypatch.setattr(os, name, function)
        if whole_steps:
            break
        write(f"killed-{last}", **options)
        assert contents(tmp_path / f"killed-{last}") == expected, f"stopped at step {last}"
    assert 20 < whole_steps < 100


@pytest.mark.parametrize("torn", [b'{"batch":4,"samp', b'{"job"', b"\xff\xfe"])
def test_a_torn_last_line_never_happened(write, contents, tmp_path, torn):
    expected = contents(write("whole").path)
    with pytest.raises(Kill):
        write("torn", make_chunks=stops_at(5))
    with (tmp_path / "torn" / "journal.jsonl").open("ab") as journal:
        journal.write(torn)
    assert contents(write("torn").path) == expected


def stops_at(batch):
    def make(start):
        yield from chunks(start, batch)
        raise Kill

    return make


def test_only_the_missing_batches_are_run_again(write):
    asked = []

    def counted(start):
        asked.append(start)
        return chunks(start)

    with pytest.raises(Kill):
        write(make_chunks=stops_at(8))
    write(make_chunks=counted)
    assert asked == [4]  # text has 24 rows a batch, so its first shard of 100 ends in batch 4
    write(make_chunks=counted)
    assert asked == [4]  # finished: the model does not run at all


def test_a_shard_lost_before_the_rerun_is_written_again(write, contents, tmp_path):
    expected = contents(write("whole").path)
    with pytest.raises(Kill):
        write("lost", make_chunks=stops_at(8))
    (tmp_path / "lost" / "blocks.1" / "part-00002.safetensors").unlink()
    assert contents(write("lost").path) == expected


def test_sigkill_at_random_moments_gives_the_same_bytes(tmp_path, contents):
    whole = write_store(
        tmp_path / "whole", lambda start: chunks(start, 30), REQUEST, kind_names=KINDS, rows_per_shard=50
    )
    rng = random.Random(0)
    killed, path = 0, tmp_path / "killed"
    while True:
        process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("fake_model.py"), path], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        if killed < 3:
            time.sleep(rng.uniform(0.02, 0.25))
            process.send_signal(signal.SIGKILL)
        code = process.wait()
        process.stdout.close()
        if code == 0:
            break
        assert code == -signal.SIGKILL
        killed += 1
    assert killed > 0
    assert contents(path) == contents(whole.path)


def test_two_processes_do_not_write_one_store(write, tmp_path):
    (tmp_path / "store").mkdir()
    journal = Journal(tmp_path / "store" / "journal.jsonl")
    with pytest.raises(OSError, match="is being written by another process: wait for it"):
        write()
    journal.close()
    assert write().site("blocks.1").n_rows == 76 * 17


# --- mistakes -----------------------------------------------------------------------------------------------------------------------


def test_another_job_is_refused_finished_or_not(write):
    write("finished")
    with pytest.raises(Kill):
        write("begun", make_chunks=stops_at(5))
    for name in ("finished", "begun"):
        with pytest.raises(ValueError, match=r"holds activations of another job \(data differ\)"):
            write(name, request=REQUEST | {"data": {"n": 81}})
        with pytest.raises(ValueError, match=r"another job \(dtype differ\)"):
            write(name, dtype="float16")


def test_a_folder_with_other_files_is_refused(write, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "holiday.jpg").touch()
    with pytest.raises(ValueError, match=r"already holds other files, such as holiday.jpg"):
        write()


def test_data_that_changed_since_the_kill_is_noticed(write):
    def other(start):
        for c in chunks(start):
            c.samples[0]["caption"] = "changed"
            yield c

    with pytest.raises(Kill):
        write(make_chunks=stops_at(8))
    with pytest.raises(ValueError, match=r"batch 4 is not what it was when .* was begun"):
        write(make_chunks=other)
    with pytest.raises(ValueError, match=r"the data ended at batch 7, earlier"):
        write(make_chunks=lambda start: chunks(start, 7))


def test_overflow_and_nan_name_sample_and_site(write):
    def with_value(value):
        def make(start):
            for c in chunks(start):
                if c.batch == 2:
                    c.activations["blocks.1"].values[3, 5, 1] = value
                yield c

        return make

    with pytest.raises(ValueError, match=r"blocks.1: activations of sample '2-3' are too large for float16"):
        write("a", make_chunks=with_value(1e5), dtype="float16")
    with pytest.raises(ValueError, match=r"blocks.1: the model gives NaN or infinity for sample '2-3'"):
        write("b", make_chunks=with_value(float("nan")))
    assert write("c", make_chunks=with_value(1e5), dtype="bfloat16").site("blocks.1").n_rows == 76 * 17


def test_too_many_bad_samples_stop_it_and_a_larger_share_goes_on(write):
    with pytest.raises(
        ValueError,
        match=r"4 of 80 samples could not be read, more than the share of 0.04 .* photos/9/bad.jpg \(truncated\)",
    ):
        write(max_bad_share=0.04)
    assert write(max_bad_share=0.05).manifest["bad"]["count"] == 4


def test_bad_samples_stop_a_long_job_early(write):
    def mostly_bad(start):
        for batch in range(start, 1000):
            yield Chunk(batch, [], [Bad(f"{batch}-{i}", "x", "truncated") for i in range(8)], {})
            assert batch < 13

    with pytest.raises(ValueError, match="104 of 104 samples could not be read"):
        write(make_chunks=mostly_bad, max_bad_share=1.0)


def test_no_data_is_a_sentence(write):
    with pytest.raises(ValueError, match="there is nothing to write"):
        write(make_chunks=lambda start: iter(()))


def test_a_full_disk_is_a_sentence_and_the_rerun_completes(write, contents, tmp_path):
    """A limit on file size stands for the full disk: it fails in the middle of writing a shard, for root too."""
    expected = contents(write("whole", rows_per_shard=400).path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, hard))
    try:
        with pytest.raises(
            OSError, match=r"the disk is full while writing .*full: free some space and run the same command again"
        ):
            write("full", rows_per_shard=400)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(FileNotFoundError, match="unfinished store: run the same extraction again"):
        ActivationStore.open(tmp_path / "full")
    assert not list((tmp_path / "full").glob("*/part-*"))
    assert contents(write("full", rows_per_shard=400).path) == expected


def test_values_that_do_not_fit_the_samples_are_refused(write):
    def short(start):
        for c in chunks(start, 1):
            c.activations = {"a": Tokens(torch.zeros(3, 2, 4), torch.zeros(3, 2, dtype=torch.uint8), None)}
            yield c

    with pytest.raises(ValueError, match=r"a: values \(3, 2, 4\) and kinds \(3, 2\) do not fit 7 samples"):
        write(make_chunks=short)


def test_unknown_dtype_is_refused(write):
    with pytest.raises(ValueError, match="dtype 'float64' is not known: choose from bfloat16"):
        write(dtype="float64")


def test_journal_lines_are_json(write, tmp_path):
    with pytest.raises(Kill):
        write(make_chunks=stops_at(5))
    lines = [json.loads(line) for line in (tmp_path / "store" / "journal.jsonl").read_text().splitlines()]
    assert [line["batch"] for line in lines if "batch" in line] == [0, 1, 2, 3, 4]
    assert {line["site"] for line in lines if "part" in line} == {"blocks.1", "text.2:input"}
