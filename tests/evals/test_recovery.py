"""Planted answers first, then what must hold of any scores, then slow references, then a person's mistakes."""

import json

import numpy as np
import pytest
import torch
from scipy.sparse import csc_array
from sklearn.metrics import average_precision_score, f1_score

from evals import ranking
from evals.attributes import Attributes, of_records, read
from evals.pooling import BothSigns, pool
from evals.ranking import average_precisions, best_threshold, resampled
from evals.recovery import Labelled, difference, recover, shuffled
from evals.splitting import absorption, correlations, splitting
from evals.sums import draws
from vsae.activations import Batch
from vsae.code import Code

NAMES = ("a", "b", "c", "d")


def labelled(scores, truth, start=0):
    scores = scores if isinstance(scores, np.ndarray) else csc_array(scores)
    return Labelled(scores, csc_array(truth), np.arange(start, start + len(truth)))


def planted(n, start, seed, n_latents=40, noise=0.1):
    """Attribute i is latent 3 + 5 i, of random magnitude; every other latent is sparse noise."""
    rng = np.random.default_rng(seed)
    truth = rng.random((n, 4)) < [0.1, 0.2, 0.3, 0.5]
    scores = rng.random((n, n_latents)) * (rng.random((n, n_latents)) < noise)
    scores[:, [3, 8, 13, 18]] = truth * rng.lognormal(0, 0.5, (n, 4))
    return labelled(csc_array(scores.astype(np.float32)), truth, start)


@pytest.fixture(scope="module")
def splits():
    return planted(600, 0, 1), planted(500, 600, 2)


def test_planted_indicators_are_found_with_ap_1(splits):
    found = recover(*splits, NAMES)
    assert [each.latent for each in found.attributes] == [3, 8, 13, 18]
    assert [each.ap.value for each in found.attributes] == [1] * 4
    assert all(each.ap.interval == (1, 1) and each.f1.value > 0.97 for each in found.attributes)
    prevalence = splits[1].truth.toarray().mean(0)
    np.testing.assert_allclose([each.ap.floor for each in found.attributes], prevalence)
    np.testing.assert_allclose([each.f1.floor for each in found.attributes], 2 * prevalence / (1 + prevalence))
    assert found.share_ap["0.9"].value == 1 and found.share_ap["0.9"].floor == 0
    assert found.share_ap["0.3"].floor == np.mean(prevalence > 0.3)


def test_shuffled_labels_give_prevalence(splits):
    luck = shuffled(*splits, NAMES)
    for each in luck.attributes:
        assert each.ap.value == pytest.approx(each.ap.floor, abs=0.08) and each.selection_ap < 0.65


@pytest.mark.parametrize("value", [0.0, 1.0, -2.0])
@pytest.mark.parametrize("dense", [True, False])
def test_constant_and_dead_latents_have_exactly_the_prevalence(value, dense):
    truth = np.arange(100)[:, None] % 10 < 3
    scores = np.full((100, 2), value, np.float32)
    precisions = average_precisions(scores if dense else csc_array(scores), csc_array(truth))
    assert (precisions == 0.3).all()


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("low", [-3, 0])
def test_ap_is_scikit_learns_with_many_ties_zeros_and_negatives(monkeypatch, dense, low):
    rng = np.random.default_rng(0)
    scores = rng.integers(low, 4, (200, 15)).astype(np.float32) * (rng.random((200, 15)) < 0.6)
    truth = rng.random((200, 6)) < 0.3
    truth[:, 5] = False
    monkeypatch.setattr(ranking, "BLOCK_ENTRIES", 500)
    found = average_precisions(scores if dense else csc_array(scores), csc_array(truth))
    for a in range(5):
        expected = [average_precision_score(truth[:, a], scores[:, j]) for j in range(15)]
        np.testing.assert_allclose(found[a], expected, rtol=1e-12)
    assert np.isnan(found[5]).all()


def test_threshold_is_the_best_of_all_and_lies_between_values():
    rng = np.random.default_rng(0)
    for _ in range(20):
        score, has = rng.integers(0, 6, 50).astype(float), rng.random(50) < 0.4
        threshold, f1 = best_threshold(score, has)
        tried = [f1_score(has, score > at) for at in (-np.inf, *np.arange(6))]
        assert f1 == pytest.approx(max(tried)) == f1_score(has, score > threshold)
    assert best_threshold(np.array([0.0, 0, 4, 6]), np.array([False, False, True, True])) == (2.0, 1.0)
    assert best_threshold(np.zeros(4), np.array([True, False, False, False])) == (-np.inf, 0.4)


def test_bootstrap_is_scikit_learn_on_repeated_rows():
    rng = np.random.default_rng(3)
    score, has, groups = rng.integers(0, 5, 60).astype(float), rng.random(60) < 0.4, np.arange(60) // 3
    weights = draws(20, 10, 0)
    found = resampled(score, has, 2.5, groups, weights)
    for at, drawn in enumerate(weights):
        rows = np.repeat(np.arange(60), drawn[groups].astype(int))
        assert found.ap_draws[at] == pytest.approx(average_precision_score(has[rows], score[rows]))
        assert found.f1_draws[at] == pytest.approx(f1_score(has[rows], score[rows] > 2.5))
    assert found.ap == pytest.approx(average_precision_score(has, score))


def test_a_latent_is_never_chosen_on_the_report_split():
    """papers.md section 2: 500 random latents; the best on the report split would look twice as good as it is."""
    rng = np.random.default_rng(0)
    halves = []
    for start in (0, 600):
        truth = rng.random((600, 20)) < 0.045
        halves.append(labelled(rng.random((600, 500)).astype(np.float32), truth, start))
    found = recover(*halves, tuple(map(str, range(20))), resamples=0)
    leaked = average_precisions(halves[1].scores, halves[1].truth).max(1).mean()
    assert found.mean_ap.value < 0.065 < 0.085 < leaked
    assert np.mean([each.selection_ap for each in found.attributes]) > 0.085


def test_permuting_latents_permutes_the_answer_and_nothing_else(splits):
    order = np.random.default_rng(0).permutation(40)
    moved = [Labelled(csc_array(split.scores[:, order]), split.truth, split.samples) for split in splits]
    ours, theirs = recover(*splits, NAMES), recover(*moved, NAMES)
    assert [order[each.latent] for each in theirs.attributes] == [each.latent for each in ours.attributes]
    assert [each.ap for each in theirs.attributes] == [each.ap for each in ours.attributes]


def test_dead_and_constant_latents_change_nothing(splits):
    wider = []
    for split in splits:
        dense = split.scores.toarray()
        ones = np.ones((len(dense), 3), np.float32)
        wider.append(Labelled(csc_array(np.hstack([dense, 0 * ones, ones])), split.truth, split.samples))
    assert recover(*wider, NAMES).attributes == recover(*splits, NAMES).attributes


def test_an_attribute_shared_by_three_latents_is_a_split():
    rng = np.random.default_rng(0)
    halves = []
    for start in (0, 900):
        kind = rng.integers(0, 9, 900)
        scores = np.zeros((900, 20), np.float32)
        for child in range(3):
            scores[:, 4 + child] = (kind == child) * rng.lognormal(0, 0.2, 900)
        scores[:, 10] = (kind == 5) * rng.lognormal(0, 0.2, 900)
        halves.append(labelled(csc_array(scores), np.stack([kind < 3, kind == 5], 1), start))
    found = recover(*halves, ("wide", "whole"))
    wide, whole = splitting(found, *halves, ("wide", "whole"))
    assert set(wide.latents) == {4, 5, 6} and wide.f1 > 0.97
    assert wide.f1_gain == pytest.approx(wide.f1 - found.attributes[0].f1.value) and wide.f1_gain > 0.3
    assert (whole.latents, whole.f1_gain) == ((10,), 0.0)


def test_planted_absorption_is_found_and_only_there():
    """Latent 0 fires for the parent, except where the child `taken` has its own latent 1; the child `left` has latent 2 and takes nothing."""
    rng = np.random.default_rng(0)
    halves = []
    for start in (0, 1500):
        kind = rng.integers(0, 10, 1500)
        parent, taken, left = kind < 6, kind == 0, kind == 1
        firing = np.stack([parent & ~(taken & (rng.random(1500) < 0.8)), taken, left], 1)
        scores = firing * rng.lognormal(0, 0.2, (1500, 3))
        halves.append(labelled(csc_array(scores.astype(np.float32)), np.stack([parent, taken, left], 1), start))
    names = ("parent", "taken", "left")
    found = recover(*halves, names)
    absorbed, kept = absorption(found, halves[1], names, {"parent": ["taken", "left", "unknown"]})
    assert absorbed.missed.value == pytest.approx(0.8, abs=0.1) and absorbed.missed.floor < 0.02
    assert absorbed.excess.interval[0] > 0.6 and not absorbed.same_latent
    assert kept.missed.value < 0.02 and kept.excess.value < 0 and kept.n > 100


def test_correlations_of_sparse_and_dense_scores_are_numpys(splits):
    split = splits[0]
    dense = split.scores.toarray()
    expected = np.corrcoef(split.truth.toarray().T.astype(float), dense.T.astype(float))[:4, 4:]
    np.testing.assert_allclose(correlations(split.scores, split.truth), expected, atol=1e-6)
    np.testing.assert_allclose(correlations(dense, split.truth), expected, atol=1e-6)


def test_paired_difference_to_itself_is_0_and_to_noise_is_not(splits):
    ours = recover(*splits, NAMES)
    noise = [Labelled(csc_array(split.scores[:, :3]), split.truth, split.samples) for split in splits]
    theirs = recover(*noise, NAMES)
    assert difference(ours, ours).interval == (0, 0)
    gap = difference(ours, theirs, above=0.7)
    assert gap.value == 1 and gap.interval == (1, 1)


class Fixed:
    """A codec whose code of row x is x itself, sparse or full."""

    def __init__(self, n, full):
        self.n_latents, self.full, self.atoms = n, full, torch.eye(n)

    def encode(self, x):
        if self.full:
            return Code.full(x)
        indices = torch.arange(self.n_latents).repeat(len(x), 1)
        return Code(x.flip(1), indices.flip(1))

    def decode(self, code):
        return code.dense(self.n_latents)


def rows_of_samples(seed=0):
    generator = torch.Generator().manual_seed(seed)
    samples = torch.arange(7).repeat_interleave(torch.tensor([1, 5, 3, 1, 4, 2, 6]))
    values = torch.randn(len(samples), 5, generator=generator) * (
        torch.rand(len(samples), 5, generator=generator) < 0.5
    )
    kinds = torch.zeros(len(samples), dtype=torch.uint8)
    return Batch(values, kinds, samples * 3, torch.arange(len(samples), dtype=torch.int32))


@pytest.mark.parametrize("how", ["max", "mean", "sum", "token"])
@pytest.mark.parametrize("full", [True, False])
def test_pooling_is_the_obvious_loop_however_rows_are_batched(how, full):
    whole = rows_of_samples()
    x, owner = whole.values.numpy(), whole.samples.numpy()
    groups = [x[owner == sample] for sample in np.unique(owner)]
    expected = {
        "max": np.stack([g.max(0) if full else np.maximum(g.max(0), 0) for g in groups]),
        "mean": np.stack([g.mean(0) for g in groups]),
        "sum": np.stack([g.sum(0) for g in groups]),
        "token": x,
    }[how]
    for size in (1, 3, 100):
        batches = [Batch(*(column[at : at + size] for column in whole)) for at in range(0, len(x), size)]
        pooled = pool(Fixed(5, full), batches, how, dense=full)
        scores = pooled.scores if full else pooled.scores.toarray()
        np.testing.assert_allclose(scores, expected, rtol=1e-6)
        assert pooled.samples.tolist() == (owner if how == "token" else np.unique(owner)).tolist()


@pytest.mark.parametrize("full", [True, False])
def test_both_signs_of_a_latent_are_candidates_and_decode_to_the_same(full):
    whole, codec = rows_of_samples(), Fixed(5, full)
    both = BothSigns(codec)
    code = both.encode(whole.values)
    expected = torch.cat([whole.values, -whole.values], 1).clamp_min(0)
    torch.testing.assert_close(code.dense(10), expected)
    torch.testing.assert_close(both.decode(code), whole.values)
    assert both.n_latents == len(both.atoms) == 10


def test_rows_of_a_sample_that_lie_apart_are_refused():
    batch = rows_of_samples()
    again = Batch(*(torch.cat([column, column[:1]]) for column in batch))
    with pytest.raises(ValueError, match="sample after sample"):
        pool(Fixed(5, False), [again])
    with pytest.raises(ValueError, match="no row to measure"):
        pool(Fixed(5, False), [])


def test_splits_that_share_a_sample_and_too_few_positives_are_sentences(splits):
    with pytest.raises(ValueError, match="600 samples are both chosen on and reported on"):
        recover(splits[0], splits[0], NAMES)
    with pytest.raises(ValueError, match="no attribute is true of 400 rows"):
        recover(*splits, NAMES, min_positives=400)
    found = recover(*splits, NAMES, min_positives=80)
    assert found.left_out == ("a",) and [each.name for each in found.attributes] == ["b", "c", "d"]


def table():
    return of_records([("x", -1, {"red", "circle"}), ("y", -1, set()), ("z", -1, {"ring"})])


def test_parents_are_true_where_a_child_is():
    taller = table().with_parents({"round": ["circle", "ring"], "thing": ["round", "red"]})
    assert taller.names == ("circle", "red", "ring", "round", "thing")
    assert taller.truth.toarray().astype(int).tolist() == [[1, 1, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 1, 1, 1]]
    with pytest.raises(ValueError, match="names 'square', which is no attribute"):
        table().with_parents({"angular": ["square"]})
    with pytest.raises(ValueError, match="circle: round > thing > round"):
        table().with_parents({"round": ["thing"], "thing": ["round"]})


def test_tables_from_json_lines_and_parquet_agree(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    truth = {
        "x": {"red": True, "shape": "star", "part": ["leg", "arm"], "size": 3},
        "y": {"red": False, "shape": "ring"},
    }
    (tmp_path / "a.json").write_text(json.dumps(truth))
    lines = [json.dumps({"key": key, "attributes": value}) for key, value in truth.items()]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    columns = {"key": ["x", "y"], "red": [True, False], "shape": ["star", "ring"], "part": [["leg", "arm"], None]}
    pq.write_table(pa.table(columns | {"size": [3, 4], "flag": [0, 1]}), tmp_path / "a.parquet")
    first, second, third = (read(tmp_path / f"a.{kind}") for kind in ("json", "jsonl", "parquet"))
    assert first.names == second.names == ("part:arm", "part:leg", "red", "shape:ring", "shape:star")
    assert first.truth.toarray().tolist() == second.truth.toarray().tolist() == [[1, 1, 1, 0, 1], [0, 0, 0, 1, 0]]
    assert third.names == ("flag", *first.names)
    assert first.rows_of(["y", "nobody", "x"]).tolist() == [1, -1, 0]


def test_table_of_tokens_is_asked_by_key_and_position():
    tokens = of_records([("x", 0, {"red"}), ("x", 2, {"blue"}), ("y", 0, {"red"})])
    assert isinstance(tokens, Attributes)
    asked = tokens.rows_of(["x", "x", "x", "y"], np.array([2, 1, 0, 0]))
    assert asked.tolist() == [1, -1, 0, 2]


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        ([], "has no rows"),
        ([("x", -1, {"a"}), ("x", -1, {"b"})], "key 'x' twice"),
        ([("x", 0, {"a"}), ("y", -1, {"b"})], "give all or none"),
        ([("x", -1, set())], "no attribute that is true"),
    ],
)
def test_a_table_that_makes_no_sense_is_a_sentence(records, sentence):
    with pytest.raises(ValueError, match=sentence):
        of_records(records)


def test_files_that_make_no_sense_are_sentences(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    (tmp_path / "b.jsonl").write_text('{"key": "x"}')
    (tmp_path / "c.json").write_text('{"x": 3}')
    for name, sentence in (("a.json", "not an object"), ("b.jsonl", "line 1 lacks"), ("c.json", "neither a list")):
        with pytest.raises(ValueError, match=sentence):
            read(tmp_path / name)
