"""Large blocks stay with a process that trains: counted in page faults, in a process of its own."""

import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from vsae.training import memory

JOB = """
import resource, torch
from pathlib import Path
from vsae.training.memory import kept_memory

def faults(times):  # 48 MB each, written once and given back
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.empty(12_000_000).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

print(faults(10))
before = resident()
with kept_memory(torch.device("cpu")):
    faults(30)  # small blocks between large ones, until all have their places
    print(faults(10))
print(resident() - before)
"""


@pytest.mark.skipif(memory.glibc() is None, reason="this C library cannot be told")
def test_within_it_a_block_is_fetched_once_and_after_it_all_are_given_back():
    found = subprocess.run([sys.executable, "-c", JOB], capture_output=True, text=True, check=True)
    before, within, left = map(int, found.stdout.split())
    block = 12_000_000 * 4 // resource.getpagesize()
    assert before > 9 * block
    assert within < block
    assert left < block


def test_nothing_is_told_where_nobody_listens(monkeypatch):
    told = []
    library = SimpleNamespace(mallopt=lambda *what: told.append(what), malloc_trim=lambda least: told.append("trim"))
    monkeypatch.setattr(memory, "glibc", lambda: library)
    with memory.kept_memory(torch.device("cuda")):
        pass
    assert not told
    with pytest.raises(KeyError), memory.kept_memory(torch.device("cpu")):
        assert told == [(memory.MMAP_MAX, 0), (memory.TRIM_THRESHOLD, 2**31 - 1)]
        raise KeyError
    assert (memory.MMAP_MAX, 65536) in told and told[-1] == "trim"
    monkeypatch.setattr(memory, "glibc", lambda: None)
    with memory.kept_memory(torch.device("cpu")):
        pass
