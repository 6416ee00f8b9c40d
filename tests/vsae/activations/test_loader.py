import gc
import json
import threading
import time

import numpy as np
import pytest
import torch
from fake_model import KINDS, REQUEST, Chunk, Tokens, chunk, chunks
from hypothesis import given, settings
from hypothesis import strategies as st

from vsae.activations import Select, Source, StoreSource, StreamSource, write_store
from vsae.activations.plan import Blocks, epoch_plan

ALL = torch.cat([chunk(batch).activations["blocks.1"].values.reshape(-1, 16) for batch in range(10)])
SELECTS = [
    Select(),
    Select(("patch",)),
    Select(part=(0, 0.6)),
    Select(("cls",), (0.3, 1)),
    Select(("patch",), (0.2, 1), 4),
]


def rows_by_value(values):
    return values[values[:, 0].argsort()]


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


def from_store(site, select=None, **options):
    return StoreSource(site, select, **({"pool_rows": 300, "block_rows": 16} | options))


def from_model(site, select=None, **options):
    options = {"fingerprint": site.fingerprint, "kind_names": KINDS, "pool_rows": 300, "dtype": "float32"} | options
    return StreamSource(chunks, "blocks.1", select, **options)


@pytest.mark.parametrize("make", [from_store, from_model])
@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize("batch_size", [50, 299, 1000])
def test_each_selected_row_comes_exactly_once_an_epoch_in_another_order(site, make, select, batch_size):
    expected = torch.cat([batch.values for batch in site.sequential(100, select)])
    n = len(expected)
    source = make(site, select)
    assert isinstance(source, Source)
    batches = list(source.batches(batch_size, seed=1, epochs=3))
    assert all(len(batch.values) == batch_size for batch in batches[:-1])
    values = torch.cat([batch.values for batch in batches])
    epochs = values.split(n)
    assert len(epochs) == 3
    for epoch in epochs:
        assert torch.equal(rows_by_value(epoch), rows_by_value(expected))
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])
    other = torch.cat([batch.values for batch in source.batches(batch_size, seed=2, epochs=1)])
    assert not torch.equal(other, epochs[0])


@pytest.mark.parametrize("make", [from_store, from_model])
def test_kinds_samples_and_positions_stay_with_their_values(site, make):
    source = make(site)
    for batch in source.batches(70, seed=0, epochs=1):
        assert torch.equal(batch.values, ALL[batch.samples * 17 + batch.positions])
        assert torch.equal(batch.kinds, torch.where(batch.positions == 0, 0, 2).to(torch.uint8))


@pytest.mark.parametrize("make", [from_store, from_model])
@pytest.mark.parametrize("select", SELECTS)
def test_going_on_from_any_state_is_as_if_never_stopped(site, make, select):
    source = make(site, select)
    iterator = source.batches(130, seed=3, epochs=2)
    states, whole = [iterator.state()], []
    for batch in iterator:
        whole.append(batch)
        states.append(iterator.state())
    for done, state in enumerate(states):
        state = json.loads(json.dumps(state))
        assert same(list(make(site, select).batches(130, seed=3, state=state, epochs=2)), whole[done:])


def test_the_order_does_not_depend_on_threads(site):
    orders = [list(from_store(site, threads=threads).batches(64, seed=5, epochs=2)) for threads in (1, 2, 4)]
    assert same(orders[0], orders[1])
    assert same(orders[0], orders[2])


def test_it_is_endless_without_epochs(site):
    batches = from_store(site).batches(500, seed=0)
    assert sum(len(next(batches).values) for _ in range(20)) == 10000


def test_only_the_pool_in_hand_is_read_again_on_resume(site, monkeypatch):
    iterator = from_store(site).batches(50, seed=0, epochs=1)
    for _ in range(25):  # 1250 of 1292 rows
        next(iterator)
    source = from_store(site)
    read = []
    real = source.blocks.__class__.rows
    monkeypatch.setattr(
        Blocks, "rows", lambda self, some: read.append(int(self.counts[some].sum())) or real(self, some)
    )
    assert len(list(source.batches(50, seed=0, state=iterator.state(), epochs=1))) == 1
    assert sum(read) < 300


def test_moments_are_exact_whatever_is_selected(site):
    for select in [*SELECTS, Select(part=(0.4, 0.6)), Select(part=(0.1, 0.9))]:
        rows = torch.cat([batch.values for batch in site.sequential(100, select)]).double()
        moments = from_store(site, select).moments()
        assert moments.count == len(rows)
        torch.testing.assert_close(moments.mean, rows.mean(0), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(moments.second, rows.square().mean(0), rtol=1e-9, atol=0)


def test_sample_rows_are_distinct_selected_rows(site):
    for select in SELECTS:
        source = from_store(site, select)
        everything = torch.cat([batch.values for batch in site.sequential(100, select)])
        rows = source.sample_rows(40, seed=1)
        assert rows.dtype == torch.float32
        assert len(rows.unique(dim=0)) == 40
        assert (rows[:, None] == everything[None]).all(2).any(1).all()
        assert torch.equal(rows, source.sample_rows(40, seed=1))
        assert not torch.equal(rows, source.sample_rows(40, seed=2))
        assert torch.equal(rows_by_value(source.sample_rows(10**6, seed=0)), rows_by_value(everything))


def test_a_held_batch_never_changes_and_memory_is_two_pools_when_none_is_held(site, monkeypatch):
    from vsae.activations import loader

    made = []
    real = loader._Memory
    monkeypatch.setattr(loader, "_Memory", lambda *args: made.append(args) or real(*args))
    for _ in from_store(site).batches(40, seed=0, epochs=5):
        pass
    assert made == [(300, 16, torch.float32)] * 2
    made.clear()
    held, copies = [], []
    for batch in from_store(site).batches(40, seed=0, epochs=3):
        held.append(batch.values[3:5])
        copies.append(batch.values[3:5].clone())
    assert len(made) > 2
    assert all(torch.equal(a, b) for a, b in zip(held, copies, strict=True))


def test_reading_allocates_no_more_than_it_says(tmp_path):
    """Two pools of 4096 rows, 256 dimensions, bfloat16: 4.2 MB; an epoch is 25 MB."""
    import tracemalloc

    def wide(start):
        for batch in range(start, 6):
            values = torch.randn(32, 256, 256)
            kinds = torch.full((32, 256), 2, dtype=torch.uint8)
            yield Chunk(batch, [{"key": f"{batch}-{i}"} for i in range(32)], [], {"a": Tokens(values, kinds, (16, 16))})

    site = write_store(tmp_path / "wide", wide, REQUEST, kind_names=KINDS).site()
    source = StoreSource(site, pool_rows=4096, block_rows=64)
    tracemalloc.start()
    n = sum(len(batch.values) for batch in source.batches(512, seed=0, epochs=2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == 2 * 6 * 32 * 256
    assert peak < 1.5 * 2 * 4096 * (256 * 2 + 13)


def test_a_pool_mixes_samples(tmp_path):
    """100 samples of 64 tokens; in batches of 64 from pools of half the data, far from one sample a batch."""

    def photos(start):
        for batch in range(start, 10):
            values = torch.randn(10, 64, 4)
            kinds = torch.full((10, 64), 2, dtype=torch.uint8)
            yield Chunk(batch, [{"key": f"{batch}-{i}"} for i in range(10)], [], {"a": Tokens(values, kinds, (8, 8))})

    site = write_store(tmp_path / "photos", photos, REQUEST, kind_names=KINDS).site()
    distinct = [
        len(batch.samples.unique())
        for batch in StoreSource(site, pool_rows=3200, block_rows=16).batches(64, 0, epochs=1)
    ]
    # 64 draws from about 90 of the 100 samples: 46 distinct ones expected
    assert np.mean(distinct) > 40


def test_a_shard_deleted_while_reading_is_named(write):
    store = write()
    batches = from_store(store.site("blocks.1"), pool_rows=100, block_rows=10).batches(50, seed=0)
    next(batches)
    (store.path / "blocks.1" / "part-00004.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"part-00004.safetensors is missing: restore it"):
        for _ in range(100):
            next(batches)
    with pytest.raises(FileNotFoundError, match="part-00004"):
        next(batches)


def test_a_shard_cut_short_while_reading_is_named(write):
    store = write()
    batches = from_store(store.site("blocks.1"), pool_rows=100, block_rows=10).batches(50, seed=0)
    next(batches)
    part = store.path / "blocks.1" / "part-00004.safetensors"
    part.write_bytes(part.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"part-00004.safetensors is shorter than its header says"):
        for _ in range(100):
            next(batches)


def test_threads_end_with_the_iterator(site):
    def readers():
        return [thread for thread in threading.enumerate() if thread.name.startswith("vsae-reader")]

    batches = from_store(site).batches(50, seed=0)
    next(batches)
    assert readers()
    del batches
    gc.collect()
    deadline = time.monotonic() + 10
    while readers() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not readers()


@settings(deadline=None, max_examples=60)
@given(
    shards=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    block_rows=st.integers(1, 20),
    extra=st.integers(0, 60),
    share=st.sampled_from([None, 0.02, 0.3, 0.9]),
    seed=st.integers(0, 1000),
)
def test_plans_hold_every_selected_row_once_in_pools_that_fit(shards, block_rows, extra, share, seed):
    edges = np.cumsum([0, *shards])
    rng = np.random.default_rng(seed)
    masks = None if share is None else [rng.random(n) < share for n in shards]
    blocks = Blocks.of(edges, block_rows, None if masks is None else masks.__getitem__)
    expected = np.arange(edges[-1]) if masks is None else np.flatnonzero(np.concatenate(masks))
    assert blocks.n_rows == len(expected)
    if not len(expected):
        return
    pool_rows = block_rows + extra
    plans = epoch_plan(blocks.counts, seed, 4, pool_rows, block_rows)
    rows = [blocks.rows(plan.blocks) for plan in plans]
    assert np.array_equal(np.sort(np.concatenate(rows)), expected)
    position = 0
    for plan, mine in zip(plans, rows, strict=True):
        assert 0 < plan.n_rows == len(mine) <= pool_rows
        assert plan.first_row == position
        assert (np.diff(mine) > 0).all()
        assert np.array_equal(np.sort(plan.slots(seed)), np.arange(plan.n_rows))
        position += plan.n_rows
    assert max(len(mine) for mine in rows) - min(len(mine) for mine in rows) <= 2 * block_rows


@settings(deadline=None, max_examples=15)
@given(
    pool_rows=st.integers(20, 1500),
    block_rows=st.integers(1, 20),
    batch_size=st.integers(1, 400),
    select=st.sampled_from(SELECTS),
    seed=st.integers(0, 99),
)
def test_any_sizes_give_every_row_once(site, pool_rows, block_rows, batch_size, select, seed):
    source = StoreSource(site, select, pool_rows, block_rows)
    values = torch.cat([batch.values for batch in source.batches(batch_size, seed, epochs=1)])
    expected = torch.cat([batch.values for batch in site.sequential(500, select)])
    assert torch.equal(rows_by_value(values), rows_by_value(expected))


def test_mistakes_are_sentences(site):
    with pytest.raises(ValueError, match=r"no row of blocks.1 is selected by Select\(kinds=\('text',\)"):
        from_store(site, Select(("text",)))
    with pytest.raises(ValueError, match=r"no row of blocks.1 is selected by"):
        from_model(site, Select(("text",)))
    with pytest.raises(ValueError, match=r"no row of blocks.1 is selected by"):
        from_store(site, Select(("cls",), skip=1))
    with pytest.raises(ValueError, match="a pool holds at least one block"):
        from_store(site, pool_rows=8)
    with pytest.raises(ValueError, match="at least one thread reads"):
        from_store(site, threads=0)
    with pytest.raises(ValueError, match="a batch holds at least one row"):
        from_store(site).batches(0, seed=0)
    with pytest.raises(ValueError, match=r"one batch gives 119 rows, more than pool_rows \(100\)"):
        from_model(site, pool_rows=100)
    with pytest.raises(ValueError, match=r"the chunks have no site 'blocks.9', but blocks.1, text.2:input"):
        StreamSource(chunks, "blocks.9", fingerprint={}, kind_names=KINDS)
    for make in (from_store, from_model):
        state = make(site).batches(10, seed=0).state()
        with pytest.raises(ValueError, match="the saved position belongs to another seed"):
            make(site).batches(10, seed=1, state=state)
        with pytest.raises(ValueError, match="the saved position belongs to another seed, "):
            make(site, Select(skip=1)).batches(10, seed=0, state=state)
        with pytest.raises(ValueError, match="the saved position belongs to another seed, "):
            make(site, pool_rows=400).batches(10, seed=0, state=state)


def test_a_stream_runs_the_model_once_for_start_and_first_epoch(site):
    asked = []

    def counted(start):
        for c in chunks(start):
            asked.append(c.batch)
            yield c

    source = StreamSource(counted, "blocks.1", fingerprint={}, kind_names=KINDS, pool_rows=300)
    source.moments()
    source.sample_rows(20, seed=0)
    n = len(asked)
    assert n == 3  # two chunks fill the pool, the third does not fit
    list(source.batches(100, seed=0, epochs=1))
    assert sorted(asked[n:]) == list(range(2, 10))


def test_a_stream_numbers_samples_as_a_store_does(site):
    store = {tuple(batch.samples.tolist()) for batch in [site.read(0, site.n_rows)]}
    seen = torch.cat([batch.samples for batch in from_model(site).batches(100, seed=0, epochs=1)])
    assert {tuple(sorted(seen.tolist()))} == store
