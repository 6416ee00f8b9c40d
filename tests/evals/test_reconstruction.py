"""Known answers first, then what must hold for any batches, then what a person can get wrong."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from evals.reconstruction import measure, to_result
from evals.result import jsonable, write_result
from evals.sums import MAX_GROUPS
from vsae.activations import Batch
from vsae.code import Code
from vsae.files import read_json

KINDS = ("cls", "register", "patch")


@dataclass
class Fixed:
    """Reconstructs by a table: row i of `data` becomes row i of `answers`, whatever batch it comes in. Latent i codes row i, with value 1."""

    data: Tensor
    answers: Tensor
    bias: Tensor

    @property
    def n_latents(self):
        return len(self.data)

    @property
    def atoms(self):
        return self.answers - self.bias

    def encode(self, x):
        return Code(x.new_ones(len(x), 1), (x[:, None] - self.data).abs().sum(2).argmin(1, keepdim=True))

    def decode(self, code):
        return self.bias + (code.values[:, :, None] * self.atoms[code.indices]).sum(1)


def batches(data, size=None, kinds=None, per_sample=4):
    kinds = torch.full((len(data),), 2) if kinds is None else kinds
    samples, positions = torch.arange(len(data)) // per_sample, torch.arange(len(data)) % per_sample
    whole = Batch(data, kinds.to(torch.uint8), samples, positions.int())
    size = size or len(data)
    return [Batch(*(column[at : at + size] for column in whole)) for at in range(0, len(data), size)]


def reference(data, answers):
    """NMSE as one would write it on a blackboard."""
    return float(((data - answers) ** 2).sum() / ((data - data.mean(0)) ** 2).sum())


def plain(measured):
    return jsonable(measured)


@pytest.fixture
def data():
    return torch.randn(120, 6, dtype=torch.float64) * torch.tensor([1, 2, 3, 0.1, 1, 0], dtype=torch.float64) + 5


def test_the_mean_scores_one_and_the_data_scores_zero(data):
    for shift in (0.0, 1e6):
        moved = data + shift
        mean = moved.mean(0).expand_as(moved)
        of_mean = measure(Fixed(moved, mean, moved.mean(0)), batches(moved), KINDS).total
        assert of_mean.nmse.value == pytest.approx(1, abs=1e-12 if shift == 0 else 1e-9)
        assert of_mean.nmse_zero_code.value == pytest.approx(1, abs=1e-9)
        assert of_mean.nmse.floor == 1 and of_mean.r2.floor == 0
        perfect = measure(Fixed(moved, moved, torch.zeros(6).double()), batches(moved), KINDS).total
        assert (perfect.nmse.value, perfect.r2.value, perfect.nmse.interval) == (0, 1, (0, 0))
        assert perfect.cosine.value == pytest.approx(1)


def test_numbers_one_can_check_by_hand():
    data = torch.tensor([[0.0, 0], [2, 0], [0, 2], [2, 2]])
    answers = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]])
    total = measure(Fixed(data, answers, torch.zeros(2)), batches(data, per_sample=1), KINDS).total
    assert total.nmse.value == pytest.approx(4 / 8)  # errors 0 + 1 + 1 + 2, spread 4 * 2
    assert total.nmse_zero_code.value == pytest.approx(16 / 8)
    assert total.relative_bias.value == pytest.approx(0.5)  # answers are the data halved
    assert total.cosine.value == pytest.approx(3 / 4)  # the zero row has no direction
    assert (total.l0.value, total.l1.value) == (1, 1)
    assert (total.n_rows, total.n_samples) == (4, 4)


@pytest.mark.parametrize("spread", [1.0, 10.0])
def test_a_mean_away_from_zero_does_not_pass_for_variance_explained(spread):
    """N(3, spread) in 64 dimensions, half of every deviation reconstructed: R2 is .75. Squares in place of squared means gave .97, and 1.44 at 10 (SAEBench 0.6.0)."""
    data = 3 + spread * torch.randn(2000, 64, dtype=torch.float64)
    answers = data - 0.5 * (data - data.mean(0))
    total = measure(Fixed(data[:200], answers[:200], torch.zeros(64).double()), batches(data[:200]), KINDS).total
    about = data[:200] - data[:200].mean(0)
    assert total.r2.value == pytest.approx(
        1 - float((0.5 * (data[:200] - data.mean(0))).square().sum() / about.square().sum())
    )
    assert total.r2.value == pytest.approx(0.75, abs=0.01) and total.nmse.value == pytest.approx(1 - total.r2.value)


def test_equals_the_blackboard_and_ignores_how_rows_are_batched(data):
    answers = data + torch.randn_like(data)
    kinds = torch.arange(120) % 3
    sae = Fixed(data, answers, torch.zeros(6).double())
    whole = measure(sae, batches(data, kinds=kinds), KINDS)
    assert whole.total.nmse.value == pytest.approx(reference(data, answers), rel=1e-12)
    for index, name in enumerate(KINDS):
        of_kind = kinds == index
        assert whole.kinds[name].nmse.value == pytest.approx(reference(data[of_kind], answers[of_kind]), rel=1e-12)
    for size in (1, 7, 64):
        split = measure(sae, batches(data, size, kinds), KINDS)
        np.testing.assert_allclose(numbers(plain(split)), numbers(plain(whole)), rtol=1e-10)


def test_ignores_a_shift_far_larger_than_the_spread(data):
    answers, zero = data + torch.randn_like(data), torch.zeros(6).double()
    here = measure(Fixed(data, answers, zero), batches(data), KINDS).total
    there = measure(Fixed(data + 1e7, answers + 1e7, zero + 1e7), batches(data + 1e7), KINDS).total
    assert there.nmse.value == pytest.approx(here.nmse.value, rel=1e-6)
    assert there.relative_bias.value == pytest.approx(here.relative_bias.value, rel=1e-6)
    assert there.nmse.interval == pytest.approx(here.nmse.interval, rel=1e-6)


def test_order_of_rows_and_of_latents_does_not_matter(data):
    sae = Fixed(data, data + torch.randn_like(data), torch.zeros(6).double())
    order = torch.randperm(120)
    mixed = Batch(*(column[order] for column in batches(data)[0]))
    renamed = Fixed(sae.data[order], sae.answers[order], sae.bias)
    a, b = measure(sae, batches(data), KINDS).total, measure(renamed, [mixed], KINDS).total
    assert a.nmse.value == pytest.approx(b.nmse.value, rel=1e-12)
    assert (a.density, a.dead, a.l0) == (b.density, b.dead, b.l0)


@dataclass
class Listed:
    """A dictionary of zeros whose code is given: only the sparsity counts."""

    code: Code
    latents: int

    n_latents = property(lambda self: self.latents)
    atoms = property(lambda self: torch.zeros(self.latents, 2))

    def encode(self, x):
        return self.code

    def decode(self, code):
        return torch.zeros(len(code.values), 2)


def test_dead_dense_signed_and_empty_slots():
    values = torch.zeros(20, 3)
    values[:, 0], values[:2, 1], values[0, 2] = (
        -1.5,
        2,
        0,
    )  # latent 0 always, and negative; latent 1 twice; latent 2 only in empty slots
    sae = Listed(Code(values, torch.tensor([0, 1, 2]).expand(20, 3).contiguous()), 10)
    total = measure(sae, batches(torch.randn(20, 2)), KINDS).total
    assert total.l0.value == pytest.approx(1.1)
    assert total.l1.value == pytest.approx((20 * 1.5 + 2 * 2) / 20)
    assert total.dead.value == pytest.approx(0.8)
    assert total.dead.floor == pytest.approx((1 - 0.11) ** 20)
    assert total.dense.value == pytest.approx(0.1)  # density 1 is above 0.1, density 0.1 is not
    assert total.density.silent == 8 and sum(total.density.counts) == 2
    assert total.density.counts[-1] == 1  # log10(1) = 0 falls in the last bin


def test_a_full_code_counts_like_its_sparse_twin():
    values = torch.randn(20, 5).relu()
    sparse = Code(values, torch.arange(5).expand(20, 5).contiguous())
    rows = batches(torch.randn(20, 2), kinds=torch.arange(20) % 2)
    a, b = (measure(Listed(code, 5), rows, KINDS) for code in (Code.full(values), sparse))
    assert plain(a) == plain(b)


def test_the_interval_covers_the_truth_and_resamples_samples_not_rows():
    """Rows of a sample are copies: resampling rows would claim a precision that is not there."""
    covered, widths = 0, []
    for seed in range(40):
        torch.manual_seed(seed)
        x = torch.randn(50, 8)
        data = x.repeat_interleave(16, 0)
        sae = Halver()
        total = measure(sae, batches(data, per_sample=16), KINDS, resamples=400).total
        covered += total.nmse.interval[0] <= 0.5 <= total.nmse.interval[1]
        alone = measure(sae, batches(x, per_sample=1), KINDS, resamples=400).total
        widths.append(np.ptp(total.nmse.interval) / np.ptp(alone.nmse.interval))
    assert 33 <= covered <= 40
    assert np.mean(widths) == pytest.approx(1, abs=0.02)


class Halver:
    """Keeps the first half of eight dimensions: NMSE 1/2 on white noise."""

    n_latents, atoms = 4, torch.eye(8)[:4]

    def encode(self, x):
        return Code.full(x[:, :4])

    def decode(self, code):
        return torch.nn.functional.pad(code.dense(4), (0, 8 - 4)) if code.values.shape[1] == 4 else torch.zeros(1, 8)


def test_more_samples_than_groups_change_no_number_but_the_interval():
    data = torch.randn(MAX_GROUPS + 500, 8)
    grouped = measure(Halver(), batches(data, 512, per_sample=1), KINDS, resamples=200).total
    answers = torch.cat([data[:, :4], torch.zeros(len(data), 4)], 1)
    assert grouped.nmse.value == pytest.approx(reference(data.double(), answers.double()), rel=1e-9)
    assert grouped.n_samples == MAX_GROUPS + 500
    assert grouped.nmse.interval[0] < grouped.nmse.value < grouped.nmse.interval[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stores_are_measured_in_full_precision(dtype):
    data = (torch.randn(200, 8) + 100).to(dtype)
    answers = data.float().clone()
    answers[:, 4:] = 0
    measured = measure(Halver(), batches(data), KINDS).total
    assert measured.nmse.value == pytest.approx(reference(data.double(), answers.double()), rel=1e-9)


def test_a_kind_that_does_not_vary_has_no_nmse_and_the_rest_has():
    data, kinds = torch.randn(21, 8), torch.full((21,), 2)
    kinds[0] = 0
    measured = measure(Halver(), batches(data, kinds=kinds), KINDS)
    assert measured.kinds["cls"].nmse.value is None and measured.kinds["cls"].r2.value is None
    assert measured.total.nmse.value is not None


def test_nothing_constant_or_broken_is_measured():
    with pytest.raises(ValueError, match="there is no row to measure"):
        measure(Halver(), [], KINDS)
    for rows in (1, 5):
        with pytest.raises(ValueError, match="all rows are equal"):
            measure(Halver(), batches(torch.full((rows, 8), 0.1)), KINDS)
    with pytest.raises(ValueError, match="the activations hold NaN"):
        measure(Halver(), batches(torch.full((5, 8), torch.nan)), KINDS)
    broken = Halver()
    broken.decode = lambda code: torch.full((len(code.values), 8), torch.inf)
    with pytest.raises(ValueError, match="the reconstruction holds NaN"):
        measure(broken, batches(torch.randn(5, 8)), KINDS)


def test_result_file_has_the_common_fields_and_the_same_bytes_again(tmp_path):
    measured = measure(Halver(), batches(torch.randn(40, 8)), KINDS)
    fields = {"splits": {"report": [0.95, 1]}, "normalisation": "raw", "fingerprint": {"site": "blocks.1"}}
    path = write_result(tmp_path / "a", to_result(measured, **fields))
    written = read_json(path)
    assert written["metric"] == "nmse" and written["floor"] == 1 and written["value"] == measured.total.nmse.value
    assert written["interval"] == list(measured.total.nmse.interval)
    assert written["n"] == {"rows": 40, "samples": 10, "latents": 4} and written["token_kinds"] == ["patch"]
    assert {"seeds", "splits", "normalisation", "fingerprint", "versions", "details"} <= set(written)
    assert path.read_bytes() == write_result(tmp_path / "b", to_result(measured, **fields)).read_bytes()
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


def test_json_has_no_nan_and_refuses_what_it_cannot_say():
    assert jsonable({"a": np.float32("nan"), "b": [np.int64(3), (1.5, float("inf"))]}) == {
        "a": None,
        "b": [3, [1.5, None]],
    }
    with pytest.raises(TypeError, match="a Tensor cannot be written"):
        jsonable(torch.ones(2))


def numbers(content):
    """Every number of nested JSON, in order."""
    match content:
        case dict():
            return [number for value in content.values() for number in numbers(value)]
        case list():
            return [number for value in content for number in numbers(value)]
        case int() | float():
            return [float(content)]
    return []
