"""Pairs: row i of both sites is the same sample, in one shuffle; what does not pair is refused."""

import numpy as np
import pytest
import torch
from fake_model import KINDS, Chunk, Tokens, chunks

from vsae.activations import PairSource

N = 150


def number(sample, width):
    """A vector that tells which sample it is of."""
    return torch.full((width,), float(sample))


def pooled(start, n=N, per_batch=10, keys=str):
    """Two pooled sites, of 4 and of 6 dimensions."""
    for batch in range(start, n // per_batch):
        mine = range(batch * per_batch, (batch + 1) * per_batch)
        rows = [{"key": keys(i), "path": f"{i}.jpg", "caption": None} for i in mine]
        sites = {
            site: Tokens(
                torch.stack([number(i * sign, width) for i in mine])[:, None],
                torch.zeros(per_batch, 1, dtype=torch.uint8),
                None,
            )
            for site, width, sign in (("image", 4, 1), ("text", 6, -1))
        }
        yield Chunk(batch, rows, [], sites)


@pytest.fixture
def store(write):
    return write(make_chunks=pooled, rows_per_shard=37)


def of(pair):
    return pair.first.values[:, 0].tolist()


def test_row_i_of_both_is_the_same_sample_once_an_epoch_in_another_order(store):
    pairs = store.pairs("image", "text", pool_samples=64, block_samples=8)
    batches = pairs.batches(25, seed=1, epochs=2)
    seen = []
    for image, text in batches:
        assert image.values.shape == (25, 4) and text.values.shape == (25, 6)
        assert torch.equal(image.values[:, 0], -text.values[:, 0]) and torch.equal(image.samples, text.samples)
        assert torch.equal(image.values[:, 0].long(), image.samples)
        seen += image.samples.tolist()
    first, second = seen[:N], seen[N:]
    assert sorted(first) == sorted(second) == list(range(N)) and first != second
    assert abs(np.corrcoef(first, range(N))[0, 1]) < 0.5, "shuffled"
    again = [s for pair in pairs.batches(25, seed=1, epochs=2) for s in pair.first.samples.tolist()]
    other = [s for pair in pairs.batches(25, seed=2, epochs=1) for s in pair.first.samples.tolist()]
    assert again == seen and other != first


@pytest.mark.parametrize("batch_size", [25, 7, 200])
def test_it_goes_on_exactly_where_it_was(store, batch_size):
    pairs = store.pairs("image", "text", pool_samples=64, block_samples=8)
    whole = [of(pair) for pair, _ in zip(pairs.batches(batch_size, seed=3), range(12), strict=False)]
    assert all(len(batch) == batch_size for batch in whole), "filled up from the next epoch"
    for stop in (0, 1, 5, 11):
        batches = pairs.batches(batch_size, seed=3)
        for _ in range(stop):
            next(batches)
        rest = pairs.batches(batch_size, seed=3, state=batches.state())
        assert [of(next(rest)) for _ in range(12 - stop)] == whole[stop:]
    with pytest.raises(ValueError, match="another seed, store"):
        pairs.batches(batch_size, seed=4, state=batches.state())


def test_parts_moments_samples_and_order(store):
    train, val = (store.pairs("image", "text", part=part) for part in ((0, 0.8), (0.8, 1)))
    assert not set(train.samples) & set(val.samples) and len(train.samples) + len(val.samples) == N
    image, text = val.moments()
    expected = np.mean(val.samples)
    assert image.mean.tolist() == pytest.approx([expected] * 4) and text.mean.tolist() == pytest.approx([-expected] * 6)
    a, b = val.sample_rows(10, seed=0)
    assert (
        torch.equal(a[:, 0], -b[:, 0]) and a.dtype == torch.float32 and set(a[:, 0].long().tolist()) <= set(val.samples)
    )
    assert torch.cat([pair.first.samples for pair in val.sequential(7)]).tolist() == val.samples.tolist()
    assert train.fingerprint[0]["site"] == "image" and train.fingerprint[1]["select"]["part"] == [0, 0.8]


def test_tokens_pair_by_sample_and_one_kind_of_token_pairs_by_row(write):
    store = write(make_chunks=chunks)
    pairs = store.pairs("blocks.1", "text.2:input", tokens=True, pool_samples=32, block_samples=4)
    vision, text = store.site("blocks.1").read(0, 76 * 17), store.site("text.2:input")
    words = text.read(0, text.n_rows)
    seen = []
    for a, b in pairs.batches(9, seed=0, epochs=1):
        order = a.samples.unique_consecutive()
        assert torch.equal(order, b.samples.unique_consecutive())
        seen += order.tolist()
        for sample in order:
            assert torch.equal(a.values[a.samples == sample], vision.values[vision.samples == sample])
            assert torch.equal(b.values[b.samples == sample], words.values[words.samples == sample])
            assert a.positions[a.samples == sample].tolist() == list(range(17))
    assert sorted(seen) == list(range(76))
    with pytest.raises(ValueError, match=r"blocks\.1 has 17 rows of sample '0-0' where a pair needs one"):
        store.pairs("blocks.1", "text.2:input")
    pairs = store.pairs("blocks.1", "blocks.1", kinds=(("cls",), ("cls",)))
    a, b = next(pairs.batches(20, seed=0))
    assert torch.equal(a.values, b.values) and torch.equal(a.values, vision.values[a.samples * 17])
    with pytest.raises(ValueError, match="no row each"):
        store.pairs("blocks.1", "text.2:input", tokens=True).sample_rows(3, 0)


def test_samples_without_a_row_of_the_kind_are_skipped_and_counted(write):
    def some(start):
        for chunk in chunks(start, 3):
            tokens = chunk.activations["text.2:input"]
            tokens.kinds[0] = KINDS.index("special")  # a caption of no words
            yield chunk

    store = write(make_chunks=some)
    pairs = store.pairs("blocks.1", "text.2:input", kinds=(None, ("text",)), tokens=True)
    assert pairs.n_skipped == 3 and len(pairs.samples) == len(store.samples) - 3
    with pytest.raises(ValueError, match="no sample has rows of these kinds at both"):
        store.pairs("blocks.1", "text.2:input", kinds=(None, ("image",)), tokens=True)


def test_stores_of_other_samples_are_refused(store, write):
    fewer = write("fewer", make_chunks=lambda start: pooled(start, 100)).site("text")
    other = write("other", make_chunks=lambda start: pooled(start, keys=lambda i: f"k{i}")).site("text")
    same = write("same", make_chunks=pooled).site("text")
    with pytest.raises(ValueError, match="image has 150 samples and text 100, so they do not pair"):
        PairSource(store.site("image"), fewer)
    with pytest.raises(ValueError, match="sample 0 is '0' at image and 'k0' at text"):
        PairSource(store.site("image"), other)
    assert len(PairSource(store.site("image"), same).samples) == N
    with pytest.raises(ValueError, match="batch_size is 0"):
        store.pairs("image", "text").batches(0, seed=0)
    with pytest.raises(ValueError, match="choose from image, text"):
        store.pairs("image", "caption")
