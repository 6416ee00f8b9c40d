"""Chunks are a function of the data: from any start, with any number of threads, with bad samples anywhere."""

import io
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from modalities.base import Activations
from modalities.data import Bad, Sample, open_dataset
from modalities.extract import stream

SITE = "blocks.0"


class Mean:
    """A model whose activation is the mean colour, as one token. Notes the size of each batch, and which threads prepare."""

    def __init__(self):
        self.sizes, self.threads = [], set()

    def prepare(self, samples):
        self.threads.add(threading.current_thread().name)
        return {"image": torch.stack([torch.tensor(np.asarray(s.image).mean((0, 1))) for s in samples])}

    def activations(self, batch, sites):
        values = batch["image"].float()[:, None]
        self.sizes.append(len(values))
        return {site: Activations(values, torch.zeros(values.shape[:2], dtype=torch.uint8), None) for site in sites}


class Colours:
    """Sample i is a grey of value i; `broken` are bad. Counts what is read."""

    keys = ()

    def __init__(self, n, broken=(), fails=None):
        self.n, self.broken, self.fails = n, set(broken), fails
        self.read_so_far = []

    def __len__(self):
        return self.n

    def read(self, index):
        self.read_so_far.append(index)
        if index == self.fails:
            raise KeyboardInterrupt("stop") if self.fails == 0 else OSError(24, "Too many open files")
        if index in self.broken:
            return Bad(str(index), f"{index}.png", "is an empty file")
        return Sample(str(index), f"{index}.png", Image.new("RGB", (3, 2), (index,) * 3), ("a", "b"), "grey")

    def classes(self):
        return ("grey",)

    def identity(self):
        return {}


def values(chunk):
    return chunk.activations[SITE].values[:, 0, 0].tolist()


def decoders():
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_batches_are_the_candidates_in_order_less_the_bad(workers, start):
    data = Colours(14, broken=(1, 8, 9, 10, 11, 13))
    chunks = list(stream(Mean(), data, [SITE], 4, start_batch=start, workers=workers))
    expected = [[0, 2, 3], [4, 5, 6, 7], [], [12]]
    assert [c.batch for c in chunks] == [0, 1, 2, 3][start:]
    assert [[int(row["key"]) for row in c.samples] for c in chunks] == expected[start:]
    assert [values(c) if c.activations else [] for c in chunks] == expected[start:]
    assert [[int(b.key) for b in c.bad] for c in chunks] == [[1], [], [8, 9, 10, 11], [13]][start:]


def test_a_row_says_what_a_store_notes():
    chunk = next(stream(Mean(), Colours(1), [SITE], 4))
    assert chunk.samples == [
        {"key": "0", "path": "0.png", "caption": "a", "label": "grey", "width": 3, "height": 2},
    ]


def test_a_dataset_of_captions_has_no_size(tmp_path):
    (tmp_path / "list.jsonl").write_text('{"text": "one"}\n')

    class Length(Mean):
        def prepare(self, samples):
            return {"image": torch.tensor([[len(s.captions[0])] for s in samples])}

    (chunk,) = stream(Length(), open_dataset(tmp_path / "list.jsonl"), [SITE], 4)
    assert values(chunk) == [3]
    assert (chunk.samples[0]["width"], chunk.samples[0]["label"], chunk.samples[0]["caption"]) == (None, None, "one")


def test_a_batch_of_bad_ones_is_a_chunk_without_samples_and_asks_nothing_of_the_model():
    model = Mean()
    (chunk,) = stream(model, Colours(3, broken=range(3)), [SITE], 4)
    assert chunk.samples == [] and chunk.activations == {} and len(chunk.bad) == 3
    assert model.sizes == [] and model.threads == set()


def test_any_start_gives_the_same_bits_on_files(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(11):
        content = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(content, "JPEG")
        (tmp_path / f"{i:02}.jpg").write_bytes(content.getvalue()[: None if i % 4 else 300])
    torch.manual_seed(0)
    weight = torch.randn(3, 8)

    class Linear(Mean):
        def activations(self, batch, sites):
            return super().activations({"image": batch["image"].float() @ weight}, sites)

    whole = list(stream(Linear(), open_dataset(tmp_path), [SITE], 3, workers=2))
    for start in range(len(whole)):
        for chunk, expected in zip(
            stream(Linear(), open_dataset(tmp_path), [SITE], 3, start_batch=start, workers=1),
            whole[start:],
            strict=True,
        ):
            assert chunk.samples == expected.samples and chunk.bad == expected.bad
            assert torch.equal(chunk.activations[SITE].values, expected.activations[SITE].values)


def test_reading_ahead_is_bounded():
    data = Colours(400)
    chunks = stream(Mean(), data, [SITE], 4, workers=2)
    next(chunks)
    deadline = time.monotonic() + 10
    while len(data.read_so_far) < 16 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(data.read_so_far) == 16  # the batch that is out and three more
    chunks.close()


def test_threads_work_while_the_model_does():
    together = threading.Barrier(2, timeout=10)  # passed only when two batches are prepared at one time

    class Slow(Mean):
        def prepare(self, samples):
            together.wait()
            return super().prepare(samples)

    model = Slow()
    assert len(list(stream(model, Colours(16), [SITE], 4, workers=2))) == 4
    assert len(model.threads) == 2


@pytest.mark.parametrize("end", ["closed", "failed model", "failed read", "used up"])
def test_threads_are_gone_afterwards(end):
    data = Colours(400 if end != "used up" else 8, fails=6 if end == "failed read" else None)
    model = Mean()
    if end == "failed model":
        model.activations = lambda batch, sites: 1 / 0
    chunks = stream(model, data, [SITE], 4)
    if end == "closed":
        next(chunks)
        assert decoders()
        chunks.close()
    elif end == "used up":
        assert len(list(chunks)) == 2
    else:
        with pytest.raises(ZeroDivisionError if end == "failed model" else OSError):
            list(chunks)
    assert decoders() == [] and len(data.read_so_far) < 100


def test_what_a_thread_raises_comes_out_as_itself_after_the_batches_before_it():
    chunks = stream(Mean(), Colours(12, fails=6), [SITE], 4)
    assert values(next(chunks)) == [0, 1, 2, 3]
    with pytest.raises(OSError, match="Too many open files"):
        next(chunks)
    with pytest.raises(KeyboardInterrupt):
        next(stream(Mean(), Colours(12, fails=0), [SITE], 4))


def test_a_start_behind_the_end_gives_nothing_and_bad_numbers_are_named():
    assert list(stream(Mean(), Colours(8), [SITE], 4, start_batch=2)) == []
    for options in ({"batch_size": 0}, {"batch_size": 4, "workers": 0}, {"batch_size": 4, "start_batch": -1}):
        with pytest.raises(ValueError, match="choose at least 1, 1, 0 and 1"):
            stream(Mean(), Colours(8), [SITE], **options)
