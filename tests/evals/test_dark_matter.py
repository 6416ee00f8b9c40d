"""The error's linear part against numpy's least squares, and where it is planted: all of it, none of it, in one token kind only."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from evals.dark_matter import split
from vsae.activations import Batch
from vsae.code import Code

D, KINDS = 6, ("cls", "patch", "pad")


@dataclass
class Known:
    """x_hat = x - error(x)."""

    error: object
    n_latents = D
    atoms = torch.eye(D, dtype=torch.float64)

    def encode(self, x):
        return Code.full(x)

    def decode(self, code):
        return code.values - self.error(code.values)


def batches(x, kinds, samples, size):
    parts = zip(*(t.split(size) for t in (x, kinds, samples)), strict=True)
    return [Batch(a, b, c, torch.zeros(len(a), dtype=torch.int32)) for a, b, c in parts]


def data(n=600, seed=0, shift=3.0):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, D, generator=rng, dtype=torch.float64) * torch.linspace(1, 3, D) + shift
    return x, (torch.arange(n) % 4 != 0).to(torch.uint8), torch.arange(n) // 4


def measured(error, size=100, resamples=20, **options):
    fit, report = data(seed=0), data(seed=1)
    return split(Known(error), batches(*fit, size), batches(*report, size), KINDS, resamples=resamples, **options)


M = torch.randn(D, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64) / 4


def noise(x):
    """The same for a row wherever it stands, and no linear function of it."""
    return torch.sin(1e4 * x) + x.sum(1, keepdim=True).mul(7e3).cos()


def test_a_linear_error_is_all_linear_and_noise_is_not():
    found = measured(lambda x: x @ M + 2)
    assert found.total.r2.value == pytest.approx(1) and found.total.r2_mean_of_dimensions == pytest.approx(1)
    assert found.total.nonlinear_fvu.value == pytest.approx(0, abs=1e-12)
    assert found.total.linear_fvu.value == pytest.approx(found.total.fvu.value)
    assert found.total.r2.floor < 0.05
    lost = measured(noise).total
    assert abs(lost.r2.value) < 0.06 and lost.nonlinear_fvu.value == pytest.approx(lost.fvu.value, rel=0.06)
    half = measured(lambda x: (x - 3) @ M + noise(x)).total
    assert 0.1 < half.r2.value < 0.9 and half.r2.interval[0] < half.r2.value < half.r2.interval[1]


def test_the_same_as_numpys_least_squares():
    def error(x):
        return (x - 3) @ M + 0.3 * noise(x)

    found = measured(error, size=77).total
    (x, _, _), (x_report, _, _) = data(seed=0), data(seed=1)
    e, e_report = error(x).numpy(), error(x_report).numpy()

    def with_one(rows):
        return np.concatenate([rows.numpy(), np.ones((len(rows), 1))], 1)

    solved = np.linalg.lstsq(with_one(x), e, rcond=1e-9)[0]
    rest = e_report - with_one(x_report) @ solved
    about = e_report - e.mean(0)
    spread = np.square(x_report.numpy() - x.numpy().mean(0)).sum()
    assert found.r2.value == pytest.approx(1 - np.square(rest).sum() / np.square(about).sum())
    assert found.r2_mean_of_dimensions == pytest.approx((1 - np.square(rest).sum(0) / np.square(about).sum(0)).mean())
    assert found.nonlinear_fvu.value == pytest.approx(np.square(rest).sum() / spread)
    assert found.fvu.value == pytest.approx(np.square(e_report).sum() / spread)
    q, q_report = np.square(e).sum(1), np.square(e_report).sum(1)
    norm_rest = q_report - with_one(x_report) @ np.linalg.lstsq(with_one(x), q, rcond=1e-9)[0]
    assert found.norm_r2.value == pytest.approx(1 - np.square(norm_rest).sum() / np.square(q_report - q.mean()).sum())


def test_batches_do_not_matter_and_kinds_have_their_own_map():
    def error(x):
        return torch.where(x[:, :1] > 0, 1, 1) * (x @ M)

    one, many = measured(error, size=600, resamples=5), measured(error, size=13, resamples=5)
    assert one.total.r2.value == pytest.approx(many.total.r2.value) and one.total.fvu.value == pytest.approx(
        many.total.fvu.value
    )
    assert set(one.kinds) == {"cls", "patch"} and one.kinds["cls"].rows == 150 and one.samples == 150

    (x, kinds, samples), report = data(seed=0), data(seed=1)
    x, x_report = x.clone(), report[0].clone()
    x[:, 0], x_report[:, 0] = kinds.double() * 100, report[1].double() * 100  # tells the error which kind it is

    def by_kind(rows):
        return torch.where(rows[:, :1] > 50, (rows - 3) @ M, -((rows - 3) @ M)) * torch.tensor([0.0, 1, 1, 1, 1, 1])

    found = split(
        Known(by_kind), batches(x, kinds, samples, 100), batches(x_report, *report[1:], 100), KINDS, resamples=5
    )
    assert found.kinds["cls"].r2.value == pytest.approx(1) and found.kinds["patch"].r2.value == pytest.approx(1)
    assert found.total.r2.value < 0.999


def test_too_few_rows_no_error_and_no_number_are_sentences():
    x, kinds, samples = data(8)
    some = batches(x, kinds, samples, 8)
    with pytest.raises(ValueError, match="fits anything: give 12 or more"):
        split(Known(noise), some, some, KINDS)
    with pytest.raises(ValueError, match="nothing to split"):
        measured(torch.zeros_like)
    with pytest.raises(ValueError, match="no row to fit on"):
        split(Known(noise), [], some, KINDS)
    with pytest.raises(ValueError, match="NaN or infinity"):
        measured(lambda x: x / 0)
    few = data(30)
    found = split(Known(noise), batches(*few, 30), batches(*few, 30), KINDS, resamples=3)
    assert found.left_out == ("cls",) and set(found.kinds) == {"patch"}
