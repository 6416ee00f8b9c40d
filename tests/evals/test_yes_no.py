"""POPE-style answers: by counting, with the floors of always saying the same, and the questions of the shared photos where they are."""

import json
from pathlib import Path

import numpy as np
import pytest

from evals.yes_no import Question, answered, by_kind, changed, read

COCO = Path(__file__).resolve().parents[3] / "shared/data/coco_mini/object_yes_no.jsonl"


def test_numbers_by_counting():
    truth = np.array([True] * 6 + [False] * 4)
    said = np.array([True] * 5 + [False] + [True, False, False, False])
    difference = np.where(said, 1.0, -1.0) * (1 + np.arange(10) / 100)
    found = answered(truth, difference, np.arange(10))
    assert found.accuracy.value == 0.8 and found.accuracy.floor == 0.6
    precision, recall = 5 / 6, 5 / 6
    assert found.f1.value == pytest.approx(2 * precision * recall / (precision + recall))
    assert found.precision.value == pytest.approx(precision) and found.recall.value == pytest.approx(recall)
    assert found.yes.value == 0.6 and found.yes.floor == 0.6
    assert found.balanced.value == pytest.approx((5 / 6 + 3 / 4) / 2) and found.balanced.floor == 0.5
    pairs = [(a > b) + (a == b) / 2 for a in difference[truth] for b in difference[~truth]]
    assert found.auroc.value == pytest.approx(np.mean(pairs)) and found.auroc.floor == 0.5
    low, high = found.accuracy.interval
    assert low < 0.8 < high


@pytest.mark.parametrize("answer", [1.0, -1.0])
def test_always_the_same_answer_is_the_floor(answer):
    truth = np.array([True] * 6 + [False] * 4)
    found = answered(truth, np.full(10, answer), np.arange(10))
    assert found.auroc.value == found.balanced.value == 0.5
    if answer > 0:
        assert found.accuracy.value == found.accuracy.floor and found.f1.value == pytest.approx(found.f1.floor)
    else:
        assert found.f1.value == 0 and found.yes.value == 0 and found.precision.value is None
        assert found.recall.value == found.recall.floor == 0


def test_questions_of_one_image_are_drawn_together():
    truth = np.tile([True, False], 20)
    right = np.repeat(np.arange(20) % 2 == 0, 2)  # an image's two answers are both right or both wrong
    difference = np.where(truth == right, 1.0, -1.0)
    together = answered(truth, difference, np.repeat(np.arange(20), 2)).accuracy.interval
    alone = answered(truth, difference, np.arange(40)).accuracy.interval
    assert together[1] - together[0] > 1.2 * (alone[1] - alone[0])


def test_kinds_of_no_are_each_held_against_every_yes():
    rows = [Question("a", "?", True, "present")] * 4
    rows += [Question("b", "?", False, "random")] * 4 + [Question("c", "?", False, "popular")] * 4
    difference = np.array([1.0] * 4 + [-1.0] * 4 + [1.0] * 4)
    found = by_kind(rows, difference, resamples=50)
    assert {name: each.n for name, each in found.items()} == {"all": 12, "random": 8, "popular": 8}
    assert found["random"].accuracy.value == 1 and found["popular"].accuracy.value == 0.5
    order = np.random.default_rng(0).permutation(12)
    again = by_kind([rows[at] for at in order], difference[order])
    assert again["popular"].accuracy.value == 0.5 and again["all"].f1.value == found["all"].f1.value


def test_reading_and_its_mistakes(tmp_path):
    path = tmp_path / "q.jsonl"
    row = {"image": "1", "question": "is there a cat?", "answer": "Yes"}
    path.write_text(json.dumps(row) + "\n\n" + json.dumps(row | {"answer": "no", "kind": "random"}))
    assert read(path) == [
        Question("1", "is there a cat?", True, "all"),
        Question("1", "is there a cat?", False, "random"),
    ]
    for text, said in (
        ('{"image": 1}', "line 1 is no question"),
        (json.dumps(row | {"answer": "perhaps"}), "neither yes nor no"),
        ("", "has no questions"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=said):
            read(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read(tmp_path / "none")
    with pytest.raises(ValueError, match="1 have an answer"):
        answered(np.array([True, False]), np.array([1.0, np.nan]), np.arange(2))


def test_the_questions_of_the_shared_photos():
    found = read(COCO)
    assert len(found) == 1942 and sum(question.yes for question in found) == 971
    assert {question.kind for question in found} == {"present", "popular", "random"}
    flat = by_kind(found, np.ones(len(found)), resamples=20)
    assert flat["all"].accuracy.value == 0.5 and flat["popular"].yes.value == 1


def test_a_kind_with_both_answers_stands_alone():
    rows = [Question("a", "?", yes, kind) for kind in ("colour", "shape") for yes in (True, False)]
    found = by_kind(rows, np.array([1.0, -1.0, 1.0, 1.0]), resamples=20)
    assert {name: each.accuracy.value for name, each in found.items()} == {"all": 0.75, "colour": 1, "shape": 0.5}


def test_the_change_is_that_of_the_numbers():
    rng = np.random.default_rng(0)
    rows = [Question(str(at // 3), "?", bool(rng.random() < 0.5), "all") for at in range(60)]
    before, after = rng.standard_normal((2, 60))
    one, other = (by_kind(rows, x, resamples=2)["all"] for x in (before, after))
    found = changed(rows, before, after, resamples=50)
    for name, each in found.items():
        assert each.value == pytest.approx(getattr(other, name).value - getattr(one, name).value)
        assert each.interval[0] <= each.value <= each.interval[1]
    assert all(
        each.value == 0 and each.interval == (0, 0) for each in changed(rows, after, after, resamples=20).values()
    )
