"""Pooling against sums done by hand and against the dense matrix in float64; segments cut anywhere by batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vsae.activations import Batch, whole_samples
from vsae.code import Code
from vsae.segments import from_table, pool, pool_code, pooled

ROWS = torch.tensor([[1.0, -2], [3, -4], [10, 10], [0, 7]])
SEGMENTS = torch.tensor([0, 0, -1, 2])


def test_mean_and_maximum_by_hand():
    assert pool(ROWS, SEGMENTS, 3, "mean").tolist() == [[2, -3], [0, 0], [0, 7]]
    assert pool(ROWS, SEGMENTS, 3, "max").tolist() == [[3, -2], [0, 0], [0, 7]]
    code = Code(torch.tensor([[1.0, 5], [3, 0], [9, 9], [-2, 4]]), torch.tensor([[0, 2], [2, 0], [1, 1], [3, 0]]))
    mean, top = (pool_code(code, SEGMENTS, 3, how).dense(4).tolist() for how in ("mean", "max"))
    assert mean == [[0.5, 0, 4, 0], [0, 0, 0, 0], [4, 0, 0, -2]]
    assert top == [[1, 0, 5, 0], [0, 0, 0, 0], [4, 0, 0, -2]]
    negative = Code(torch.tensor([[-1.0], [-3.0], [-3.0]]), torch.tensor([[0], [0], [1]]))
    # latent 0 is silent in the third row, latent 1 in the first two
    assert pool_code(negative, torch.tensor([0, 0, 0]), 1, "max").dense(2).tolist() == [[0, 0]]
    assert pool_code(negative, torch.tensor([0, 0, -1]), 1, "max").dense(2).tolist() == [[-1, 0]]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 40), k=st.integers(1, 5), n=st.integers(1, 7))
@pytest.mark.parametrize("how", ["mean", "max"])
def test_codes_pool_as_the_dense_matrix(how, seed, rows, k, n):
    draw = torch.Generator().manual_seed(seed)
    indices = torch.stack([torch.randperm(12, generator=draw)[:k] for _ in range(rows)])
    values = torch.randn(rows, k, generator=draw, dtype=torch.float64) * (torch.rand(rows, k, generator=draw) > 0.3)
    segments = torch.randint(-1, n, (rows,), generator=draw)
    code = Code(values, indices)
    dense = pool(code.dense(12), segments, n, how)
    for segment in range(n):
        mine = code.dense(12)[segments == segment]
        expected = (
            torch.zeros(12, dtype=torch.float64) if not len(mine) else mine.mean(0) if how == "mean" else mine.amax(0)
        )
        torch.testing.assert_close(dense[segment], expected)
    torch.testing.assert_close(pool_code(code, segments, n, how).dense(12), dense)


def rows(*lengths):
    """Samples of these lengths; the value tells sample and position."""
    samples = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    positions = torch.cat([torch.arange(length) for length in lengths]).int()
    values = torch.stack([samples * 100.0 + positions, -samples.float()], 1)
    return Batch(values, torch.full((len(samples),), 2, dtype=torch.uint8), samples, positions)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 100])
def test_segments_do_not_depend_on_how_batches_are_cut(batch_size):
    whole = rows(3, 4, 1, 2)
    parts = [Batch(*(c[i : i + batch_size] for c in whole)) for i in range(0, len(whole.values), batch_size)]
    assert torch.equal(torch.cat([b.values for b in whole_samples(parts)]), whole.values)
    images = list(pooled(parts))
    assert torch.cat([p.values for p in images]).tolist() == [[1, 0], [101.5, -1], [200, -2], [300.5, -3]]
    assert torch.cat([p.counts for p in images]).tolist() == [3, 4, 1, 2]
    regions = torch.tensor(
        [[0, 5, 0, -1], [1, 0, 1, 0], [-1, -1, -1, -1], [2, 2, -1, -1]]
    )  # interleaved; none in sample 2
    found = list(pooled(parts, "max", from_table(regions)))
    assert torch.cat([p.samples for p in found]).tolist() == [0, 0, 1, 1, 3]
    assert torch.cat([p.segments for p in found]).tolist() == [0, 5, 0, 1, 2]
    assert torch.cat([p.values[:, 0] for p in found]).tolist() == [2, 1, 103, 102, 301]


def test_codes_of_a_store_pool_without_the_rows():
    def encode(x):
        return Code(x[:, :1], torch.full((len(x), 1), 3))

    (found,) = pooled([rows(2)], encode=encode)
    assert isinstance(found.values, Code) and found.values.dense(4).tolist() == [[0, 0, 0, 0.5]]


def test_mistakes_are_sentences():
    with pytest.raises(ValueError, match="choose mean or max"):
        pool(ROWS, SEGMENTS, 3, "sum")
    with pytest.raises(ValueError, match="numbered -1 to 2 where there are 2"):
        pool(ROWS, SEGMENTS, 2)
    shuffled = Batch(*(column.flip(0) for column in rows(2, 2)))
    with pytest.raises(ValueError, match="sample after sample"):
        list(pooled([shuffled]))
    with pytest.raises(ValueError, match="one number a row"):
        list(pooled([rows(2)], segment=lambda batch: torch.zeros(3, dtype=torch.long)))
