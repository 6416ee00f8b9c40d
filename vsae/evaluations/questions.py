"""vsae eval yes_no: what an image-text model says is in an image, and what an edit of its latents makes of it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vsae.evaluations import told
from vsae.progress import track
from vsae.question_jobs import EvalYesNo
from vsae.reading import load_model

if TYPE_CHECKING:
    from evals.yes_no import Question
    from vsae.run import Run

Pass = Callable[[Mapping[str, Any]], torch.Tensor]
"""A batch of prompts -> logits of the next token."""


def yes_no(job: EvalYesNo) -> Path:
    """Ask, with and without an edit; returns the directory with result.json and answers.jsonl. Raises ValueError with a sentence."""
    from evals import yes_no as asked
    from evals.result import Result, write_result
    from modalities.data import open_dataset
    from vsae.run import Run

    checked(job)
    data = open_dataset(job.data)
    questions = (asked.read(job.questions) if job.questions else of_world(data, job.seed))[: job.most]
    run = None if job.run is None else Run.load(job.run, self_check=job.self_check)
    model = load_model(replace(job.model, options={"padding": "left"} | job.model.options))
    passes: dict[str, Pass] = {"model": lambda batch: next_token(model, batch)}
    if run is not None:
        passes |= edited(job, run, model)
    difference = answers(job, model, data, questions, passes)
    numbers: dict[str, Any] = {
        name: asked.by_kind(questions, x, resamples=job.resamples, seed=job.seed) for name, x in difference.items()
    }
    change = {
        name: asked.changed(questions, difference["model"], x, resamples=job.resamples, seed=job.seed)
        for name, x in difference.items()
        if name != "model"
    }
    headline = next(iter(change.values()))["accuracy"] if change else numbers["model"]["all"].accuracy
    write_result(
        job.out,
        Result(
            metric="change of the accuracy of yes/no answers" if change else "accuracy of yes/no answers",
            value=headline.value,
            floor=headline.floor,
            interval=headline.interval,
            n={"questions": len(questions), "images": len({question.image for question in questions})},
            seeds={"bootstrap, random latents and questions about the rendered world": job.seed},
            splits={"report": job.data},
            normalisation="raw activations",
            token_kinds=list(job.kinds or ()),
            fingerprint=run.fingerprint if run else {"model": model.provenance},
            details={"answers": numbers, "change": change},
        ),
    )
    save(job, questions, difference)
    return told(table(numbers, change), job.out)


def checked(job: EvalYesNo) -> None:
    if job.model.family != "llava":
        raise ValueError(f"family {job.model.family} does not answer questions about images: choose llava.")
    if job.phrase.count("{}") != 1:
        raise ValueError(f"--phrase is {job.phrase!r}: write {{}} once, where the question goes.")
    if job.latents and job.run is None:
        raise ValueError("latents are of an SAE: give --run, or leave --latents out.")
    if job.most is not None and job.most < 1:
        raise ValueError("0 questions are none: give --most 1 or more.")


def of_world(data: Any, seed: int) -> "list[Question]":
    """A question of each kind about each scene of the rendered world, by its json. Raises ValueError where an image has none."""
    from evals.yes_no import Question
    from modalities.data import Bad
    from modalities.microworld.questions import KINDS, ask

    found = []
    for at in range(len(data)):
        one = data.read(at)
        if isinstance(one, Bad):
            continue
        if not {"objects", "background"} <= set(one.extra):
            raise ValueError(
                f"image {one.key!r} does not say what is in it, as the rendered world's do: give --questions."
            )
        for number, kind in enumerate(KINDS):
            question = ask(dict(one.extra), np.random.default_rng([seed, at, number]), kind)
            found.append(Question(one.key, question.text, question.answer, question.kind))
    if not found:
        raise ValueError("no image can be read: there is nothing to ask about.")
    return found


def answers(
    job: EvalYesNo, model: Any, data: Any, questions: "Sequence[Question]", passes: Mapping[str, Pass]
) -> dict[str, np.ndarray]:
    """log p(yes) - log p(no) of each question, by the name of the pass."""

    places = {key: at for at, key in enumerate(data.keys)}
    if missing := [question.image for question in questions if question.image not in places]:
        raise ValueError(f"{job.data} has no image {missing[0]!r}, which a question is about.")
    yes, no = first_tokens(job, model, prompt(job, data, places, questions[0]))
    found: dict[str, list[float]] = {name: [] for name in passes}
    starts = range(0, len(questions), job.batch_size)
    for start in track(starts, "ask", len(starts)):
        samples = [prompt(job, data, places, question) for question in questions[start : start + job.batch_size]]
        batch = model.prepare(samples)
        for name, one_pass in passes.items():
            said = one_pass(batch).double()
            found[name] += (said[:, yes] - said[:, no]).tolist()
    return {name: np.array(values) for name, values in found.items()}


def prompt(job: EvalYesNo, data: Any, places: Mapping[str, int], question: "Question", answer: str = "") -> Any:
    from modalities.data import Bad, Sample

    one = data.read(places[question.image])
    if isinstance(one, Bad) or one.image is None:
        why = one.reason if isinstance(one, Bad) else "it holds none"
        raise ValueError(f"image {question.image!r}, which a question is about, cannot be read: {why}.")
    extra = {"prompt": job.phrase.replace("{}", question.text)} | ({"answer": answer} if answer else {})
    return Sample(one.key, one.path, one.image, extra=extra)


def first_tokens(job: EvalYesNo, model: Any, sample: Any) -> tuple[int, int]:
    """The tokens with which the two answers begin behind a prompt. Raises ValueError where they are the same."""
    open_end = model.prepare([sample])["input_ids"][0]
    found = []
    for answer in job.answers:
        whole = model.prepare([replace(sample, extra={**sample.extra, "answer": answer})])["input_ids"][0]
        if len(whole) <= len(open_end) or not torch.equal(whole[: len(open_end)], open_end):
            raise ValueError(
                f"the chat template does not put the answer {answer!r} behind the prompt: give another template."
            )
        found.append(int(whole[len(open_end)]))
    if found[0] == found[1]:
        raise ValueError(f"{job.answers[0]!r} and {job.answers[1]!r} begin with the same token: give other --answers.")
    return found[0], found[1]


@torch.no_grad()
def next_token(model: Any, batch: Mapping[str, Any]) -> torch.Tensor:
    return model.run(batch).logits[:, -1].float().cpu()


def edited(job: EvalYesNo, run: "Run", model: Any) -> dict[str, Pass]:
    """ "edited", and "random": as many other latents, moving every token as far."""
    from modalities.base import KINDS
    from vsae.interventions import Add, Clamp, Intervention, Operation, Scale, Where
    from vsae.interventions import checked as known
    from vsae.steering import Along, summed

    if "joined" in run.fingerprint or "pool" in run.fingerprint:
        raise ValueError(f"{job.run} reads pairs or pooled tokens: this needs an SAE of one site's tokens.")
    site = fitting_site(run, model)
    if not job.latents:
        raise ValueError("no latent is changed: give --latents.")
    sae, latents = run.sae.to(next(model.module.parameters()).device), list(job.latents)
    known(sae, latents)
    operation: Operation
    match job.operation:
        case "add":
            operation = Add(latents, job.value)
        case "clamp":
            operation = Clamp(latents, job.value)
        case "scale":
            operation = Scale(latents, job.value)
    others = np.setdiff1d(np.arange(sae.n_latents), latents)
    if len(others) < len(latents):
        raise ValueError(f"{len(others)} other latents are too few for a control of {len(latents)}.")
    control = np.random.default_rng(job.seed).choice(others, len(latents), replace=False).tolist()
    where = Where(kinds=job.kinds)

    def under(change: Operation) -> Pass:
        def through(batch: Mapping[str, Any]) -> torch.Tensor:
            with model.edit(site, Intervention(sae, change, where=where, kind_names=KINDS)):
                return next_token(model, batch)

        return through

    return {"edited": under(operation), "random": under(Along(summed(sae, control, [1.0] * len(control)), operation))}


def fitting_site(run: "Run", model: Any) -> str:
    """Where the run reads the model, seen to be this one. Raises ValueError with both fingerprints."""
    from vsae.activations import fingerprint

    about = {name: run.fingerprint[name] for name in ("site", "side")}
    read = {"model": model.provenance, "preprocessing": model.provenance["preprocessing"], **about}
    fingerprint.check(run.fingerprint, read)
    return about["site"] + (":input" if about["side"] == "input" else "")


def save(job: EvalYesNo, questions: "Sequence[Question]", difference: Mapping[str, np.ndarray]) -> None:
    """answers.jsonl: every question with its differences, in the order asked."""
    from vsae.files import write_whole

    def rows(path: Path) -> None:
        with path.open("w", encoding="utf-8") as out:
            for at, question in enumerate(questions):
                row = {"image": question.image, "question": question.text, "answer": "yes" if question.yes else "no"}
                said = {name: float(x[at]) for name, x in difference.items()}
                out.write(json.dumps(row | {"kind": question.kind, "log p(yes) - log p(no)": said}) + "\n")

    write_whole(job.out / "answers.jsonl", rows)


def table(numbers: Mapping[str, Any], change: Mapping[str, Any]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    from evals.steering_shown import said
    from evals.yes_no import MEASURES

    shown = Table("", "questions", "n", *MEASURES)
    for name, kinds in numbers.items():
        for kind, each in kinds.items():
            shown.add_row(name, escape(kind), str(each.n), *(said(getattr(each, measure)) for measure in MEASURES))
        if name in change:
            shown.add_row(f"{name}: change", "all", "", *(said(change[name][measure]) for measure in MEASURES))
        shown.add_section()
    flat = numbers["model"]["all"]
    floors = ", ".join(f"{measure} {getattr(flat, measure).floor:.2f}" for measure in MEASURES)
    shown.caption = f"floors of all: {floors}; of a change: 0"
    return shown


JOBS = {"yes_no": (EvalYesNo, yes_no)}
