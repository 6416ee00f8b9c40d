"""vsae eval yes_no with a VL-SAE: answers brought nearer to the image (vsae.enhancement), by an alpha chosen on other images, beside other images' codes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from vsae.question_jobs import EvalYesNo

if TYPE_CHECKING:
    from evals.yes_no import Question
    from vsae.evaluations.questions import Pass
    from vsae.run import Run
    from vsae.sae import SAE

WAYS = {"enhanced": False, "exchanged": True}
"""Name -> whether each image's tokens are another's: the control."""
VALIDATION = 0.5
"""Share of the images that alpha is chosen on."""


class Enhancing(NamedTuple):
    questions: "list[Question]"
    """Those of the images that alpha was not chosen on."""
    difference: dict[str, Float[np.ndarray, "questions"]]
    """ "model", "enhanced" and "exchanged"."""
    alphas: dict[str, float]
    curves: dict[str, dict[float, float]]
    """alpha -> balanced accuracy on the other questions."""
    n_validation: int


def checked(job: EvalYesNo) -> None:
    if job.latents or job.kinds:
        raise ValueError("a VL-SAE moves all words by all latents: leave --latents and --kinds out.")
    if not job.alphas or not all(0 <= alpha <= 1 for alpha in job.alphas):
        raise ValueError(f"--alphas are {list(job.alphas)}: give one or more shares, from 0 to 1.")
    if not 0 <= job.beta <= 1 or not 0 <= job.mix <= 1 or not 0 < job.plausible <= 1:
        raise ValueError(
            f"--beta is {job.beta:g}, --mix {job.mix:g} and --plausible {job.plausible:g}: all are shares, the last above 0."
        )


def enhanced(job: EvalYesNo, run: "Run", model: Any, data: Any, questions: "Sequence[Question]") -> Enhancing:
    """Ask the images of one half with every alpha, and the others with the best. Raises ValueError with a sentence."""
    from evals.yes_no import balanced
    from evals.zero_shot import best
    from vsae.activations.select import shares_of
    from vsae.evaluations.questions import answers, next_token

    checked(job)
    image, text, site = sides_of(run, model)
    first = shares_of([question.image for question in questions]) < VALIDATION
    tried, kept = ([q for q, of in zip(questions, first, strict=True) if of == want] for want in (True, False))
    for part in (tried, kept):
        if len({question.yes for question in part}) < 2:
            raise ValueError(
                f"{len(part)} of {len(questions)} questions are about one half of the images, without a yes or without a no: alpha needs both in both halves, so ask about more images."
            )
    others = means_of_others(job, model, data, questions, site)

    def under(alpha: float, exchanged: bool) -> "Pass":
        from modalities.base import KINDS
        from vsae.enhancement import Enhanced

        def through(batch: Mapping[str, Any], asked: "Sequence[Question]") -> torch.Tensor:
            seen = torch.stack([others[question.image] for question in asked]) if exchanged else None
            edit = Enhanced(image, text, alpha=alpha, beta=job.beta, kind_names=KINDS, seen=seen)
            with model.edit(site, edit):
                return next_token(model, batch)

        return through

    def ask(part: "Sequence[Question]", passes: "Mapping[tuple[str, float], Pass]") -> dict[tuple[str, float], np.ndarray]:  # fmt: skip
        """Differences by way and alpha; of alpha 0 those of the model as it is."""
        plain = lambda batch, _: next_token(model, batch)  # noqa: E731
        found = answers(job, model, data, part, {("model", 0.0): plain, **passes})
        as_it_is = found["model", 0.0]
        return {name: answer(as_it_is, x, job.mix, job.plausible) for name, x in found.items()} | {
            (name, 0.0): as_it_is for name in ("model", *WAYS)
        }

    truth, whole = np.array([question.yes for question in tried]), np.ones((1, len(tried)))
    given = ask(tried, {(name, a): under(a, other) for name, other in WAYS.items() for a in sorted({*job.alphas} - {0})})  # fmt: skip
    curves = {name: {a: float(balanced(whole, given[name, a], truth)[0]) for a in sorted({*job.alphas})} for name in WAYS}  # fmt: skip
    alphas = {name: best(curve) for name, curve in curves.items()}
    given = ask(kept, {(name, a): under(a, WAYS[name]) for name, a in alphas.items() if a})
    difference = {"model": given["model", 0.0]} | {name: given[name, a] for name, a in alphas.items()}
    return Enhancing(kept, difference, alphas, curves, len(tried))


def answer(
    plain: Float[np.ndarray, "questions"], moved: Float[np.ndarray, "questions"], mix: float, plausible: float
) -> Float[np.ndarray, "questions"]:
    """log p(yes) - log p(no) of both passes mixed, among the two answers; that of the plain pass where it refuses one of them (ours: mixing refuses it for ever)."""
    from vsae.enhancement import mixed

    one, other = (torch.from_numpy(np.stack([x, np.zeros_like(x)], 1)) for x in (plain, moved))
    both = mixed(one, other, mix, plausible)
    found = (both[:, 0] - both[:, 1]).numpy()
    return np.where(np.isfinite(found), found, plain)


def sides_of(run: "Run", model: Any) -> "tuple[SAE, SAE, str]":
    """(image side, text side, the site of both), seen to be this model's. Raises ValueError."""
    from modalities.sided import SIDES, split
    from vsae.activations import fingerprint

    joined = run.fingerprint["joined"]
    names = [each["site"] for each in joined]
    ends = [name.rpartition(":") for name in names]
    pooled = [each.get("pool") for each in joined]
    if [end[2] for end in ends] != list(SIDES) or ends[0][0] != ends[1][0] or pooled[0] != {"how": "mean", "by": "modality"}:  # fmt: skip
        raise ValueError(
            f"{run.path} reads {' and '.join(names)}: answers are enhanced by a VL-SAE on SITE:image+SITE:text, the means that vsae extract --pool mean --segments modality writes."
        )
    sides = run.side(0), run.side(1)
    read = {"model": model.provenance, "preprocessing": model.provenance["preprocessing"], "side": "output"}
    for side, name in zip(sides, names, strict=True):
        fingerprint.check(side.fingerprint, read | {"site": name, "pool": pooled[0]})
    device = next(model.module.parameters()).device
    return sides[0].sae.to(device), sides[1].sae.to(device), split(names[0])[0]


def means_of_others(
    job: EvalYesNo, model: Any, data: Any, questions: "Sequence[Question]", site: str
) -> dict[str, torch.Tensor]:
    """For each image the mean image token of another one, under its own first question."""
    from evals.zero_shot import deranged
    from modalities.sided import Sided
    from vsae.evaluations.questions import prompt
    from vsae.progress import track

    places = {key: at for at, key in enumerate(data.keys)}
    asked = list({question.image: question for question in reversed(questions)}.values())
    if len(asked) < 2:
        raise ValueError("all questions are about one image: the control needs another.")
    reader, found = Sided(model, "mean"), list[torch.Tensor]()
    starts = range(0, len(asked), job.batch_size)
    for start in track(starts, "read images", len(starts)):
        samples = [prompt(job, data, places, question) for question in asked[start : start + job.batch_size]]
        found += reader.activations(model.prepare(samples), [f"{site}:image"])[f"{site}:image"].values[:, 0]
    order = deranged(np.random.default_rng(job.seed).permutation(len(asked)))
    return {question.image: found[other] for question, other in zip(asked, order, strict=True)}
