"""Does an image-text model say yes to what is not there? Yes/no questions about objects (POPE, 2305.10355).

    questions   a .jsonl with image (key), question, answer ("yes" or "no"), and kind: which images, and why a "no" was asked (random, popular, ...)
    said        the sign of log p(yes) - log p(no), the two answers' first tokens, from one pass: no word is parsed
    accuracy    floor: of always giving the commoner answer
    balanced    accuracy: the mean of that on yes's and that on no's; floor 1/2, of any answer that does not look
    precision   share of the yes's that are right; floor: the share of questions whose answer is yes, as of any answer that does not look
    recall      share of what is there that is answered yes; floor: of always saying no, 0
    F1          of yes; floor: of always saying yes
    yes         share of questions answered yes; right: the share that is yes.   AUROC of the difference: floor 1/2, free of where yes begins

By kind: all its no's with all the yes's, as POPE has it; a kind that has both answers alone. With and without an edit of the model: the change of each
number on the same questions, floor 0, with an interval of the difference. Intervals are 95 % bootstraps over images, whose questions are not independent.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from sklearn.metrics import roc_auc_score

from evals.result import Estimate
from evals.steering import interval, weights


class Question(NamedTuple):
    image: str
    """Key of the image."""
    text: str
    yes: bool
    kind: str


@dataclass(frozen=True)
class Answered:
    accuracy: Estimate
    balanced: Estimate
    precision: Estimate
    recall: Estimate
    f1: Estimate
    yes: Estimate
    """Floor: the share of questions whose answer is yes."""
    auroc: Estimate
    n: int


def read(path: Path | str) -> list[Question]:
    """Questions of a .jsonl. Raises FileNotFoundError, and ValueError naming the line that is no question."""
    path, found = Path(path), list[Question]()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: give a .jsonl of questions.")
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            image, text, answer = str(row["image"]), str(row["question"]), str(row["answer"]).strip().lower()
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is no question with image, question and answer.") from error
        if answer not in ("yes", "no"):
            raise ValueError(f"{path}, line {number}: the answer is {answer[:20]!r}, neither yes nor no.")
        found.append(Question(image, text, answer == "yes", str(row.get("kind", "all"))))
    if not found:
        raise ValueError(f"{path} has no questions.")
    return found


def by_kind(
    questions: Sequence[Question], difference: Float[np.ndarray, "questions"], *, resamples: int = 500, seed: int = 0
) -> Mapping[str, Answered]:
    """difference: log p(yes) - log p(no). "all", each kind of question whose answers are all no, with all the yes's, and each that has both, where there are several."""
    truth = np.array([question.yes for question in questions])
    kinds = np.array([question.kind for question in questions])
    images = np.unique([question.image for question in questions], return_inverse=True)[1]
    groups = {"all": np.ones(len(truth), bool)}
    noes = [kind for kind in np.unique(kinds) if not truth[kinds == kind].any()]
    if len(noes) > 1:
        groups |= {str(kind): truth | (kinds == kind) for kind in noes}
    both = [kind for kind in np.unique(kinds) if 0 < truth[kinds == kind].mean() < 1]
    if len(both) > 1:
        groups |= {str(kind): kinds == kind for kind in both}
    return {
        name: answered(truth[of], difference[of], images[of], resamples=resamples, seed=seed)
        for name, of in groups.items()
    }


def answered(
    truth: Bool[np.ndarray, "questions"],
    difference: Float[np.ndarray, "questions"],
    images: np.ndarray,
    *,
    resamples: int = 500,
    seed: int = 0,
) -> Answered:
    """A difference of 0 counts as no. Raises ValueError for no question, or a difference that is not finite."""
    if not len(truth) or not np.isfinite(difference).all():
        raise ValueError(
            f"{len(truth)} questions, of which {np.isfinite(difference).sum()} have an answer: all need one."
        )
    group = np.unique(images, return_inverse=True)[1].ravel()
    n = int(group.max()) + 1
    draws = weights(n, resamples, seed)[:, group]
    whole = np.ones((1, len(truth)))
    share = float(truth.mean())

    def of(measure: Callable[[np.ndarray], np.ndarray], floor: float) -> Estimate:
        value = float(measure(whole)[0])
        return Estimate(value if np.isfinite(value) else None, floor, interval(measure(draws)))

    floors = {"accuracy": max(share, 1 - share), "precision": share, "recall": 0.0, "f1": 2 * share / (1 + share)}
    floors |= {"balanced": 0.5, "yes": share, "auroc": 0.5}
    return Answered(
        **{
            name: of(partial(measure, difference=difference, truth=truth), floors[name])
            for name, measure in MEASURES.items()
        },
        n=len(truth),
    )


def changed(
    questions: Sequence[Question],
    before: Float[np.ndarray, "questions"],
    after: Float[np.ndarray, "questions"],
    *,
    resamples: int = 500,
    seed: int = 0,
) -> Mapping[str, Estimate]:
    """How much larger each number is with the differences `after`, on the same questions of the same images."""
    truth = np.array([question.yes for question in questions])
    group = np.unique([question.image for question in questions], return_inverse=True)[1].ravel()
    draws = weights(int(group.max()) + 1, resamples, seed)[:, group]
    found = {}
    for name, measure in MEASURES.items():
        one, many = (measure(w, after, truth) - measure(w, before, truth) for w in (np.ones((1, len(truth))), draws))
        found[name] = Estimate(float(one[0]) if np.isfinite(one[0]) else None, 0.0, interval(many))
    return found


def accuracy(w: Float[np.ndarray, "draws n"], difference: np.ndarray, truth: np.ndarray) -> Float[np.ndarray, "draws"]:
    return w @ ((difference > 0) == truth) / w.sum(1)


def balanced(w: Float[np.ndarray, "draws n"], difference: np.ndarray, truth: np.ndarray) -> Float[np.ndarray, "draws"]:
    """NaN where one of the answers is not among those drawn."""
    right = (difference > 0) == truth
    return (ratio(w @ (right & truth), w @ truth, np.nan) + ratio(w @ (right & ~truth), w @ ~truth, np.nan)) / 2


def precision(w: Float[np.ndarray, "draws n"], difference: np.ndarray, truth: np.ndarray) -> Float[np.ndarray, "draws"]:
    """NaN where nothing is answered yes."""
    said = difference > 0
    return ratio(w @ (said & truth), w @ said, np.nan)


def recall(w: Float[np.ndarray, "draws n"], difference: np.ndarray, truth: np.ndarray) -> Float[np.ndarray, "draws"]:
    """NaN where no answer is yes."""
    return ratio(w @ ((difference > 0) & truth), w @ truth, np.nan)


def f1(w: Float[np.ndarray, "draws n"], difference: np.ndarray, truth: np.ndarray) -> Float[np.ndarray, "draws"]:
    """Of yes; 0 where yes is neither said nor right."""
    said = difference > 0
    return ratio(2 * (w @ (said & truth)), w @ said + w @ truth, 0.0)


def yes(w: Float[np.ndarray, "draws n"], difference: np.ndarray, truth: np.ndarray) -> Float[np.ndarray, "draws"]:
    return w @ (difference > 0) / w.sum(1)


def ratio(
    above: Float[np.ndarray, "draws"], below: Float[np.ndarray, "draws"], nothing: float
) -> Float[np.ndarray, "draws"]:
    return np.divide(above, below, out=np.full(len(below), nothing), where=below > 0)


def auroc(w: Float[np.ndarray, "draws n"], difference: np.ndarray, truth: np.ndarray) -> Float[np.ndarray, "draws"]:
    """NaN where one of the answers is not among those drawn."""
    found = np.full(len(w), np.nan)
    for at, row in enumerate(w):
        drawn = row > 0
        if truth[drawn].any() and not truth[drawn].all():
            found[at] = roc_auc_score(truth[drawn], difference[drawn], sample_weight=row[drawn])
    return found


MEASURES = {
    "accuracy": accuracy,
    "balanced": balanced,
    "precision": precision,
    "recall": recall,
    "f1": f1,
    "yes": yes,
    "auroc": auroc,
}
"""Each takes weights of questions, differences and truth; the names are those of `Answered`."""
