"""vsae eval yes_no: what an image-text model says is in an image, and what an edit of its latents makes of it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from vsae.evaluations import enhancing, told
from vsae.progress import track
from vsae.question_jobs import EvalYesNo
from vsae.reading import load_model

if TYPE_CHECKING:
    from evals.yes_no import Question
    from vsae.run import Run

Name = TypeVar("Name")
Pass = Callable[[Mapping[str, Any], "Sequence[Question]"], torch.Tensor]
"""A batch of prompts, and the questions they ask -> logits of the next token."""


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
    details: dict[str, Any] = {}
    splits, measure, kinds = {"report": job.data}, "accuracy", list(job.kinds or ())
    if run is not None and "joined" in run.fingerprint:
        found = enhancing.enhanced(job, run, model, data, questions)
        questions, difference, measure, kinds = found.questions, found.difference, "balanced", ["text"]
        details = {"alphas": found.alphas, "validation: balanced": found.curves, "validation: n": found.n_validation}
        splits = {"alpha": "half of the images by a hash of their keys", "report": "the other half"}
    else:
        passes: dict[str, Pass] = {"model": lambda batch, _: next_token(model, batch)}
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
    headline = next(iter(change.values()))[measure] if change else numbers["model"]["all"].accuracy
    what = "accuracy" if measure == "accuracy" else f"{measure} accuracy"
    write_result(
        job.out,
        Result(
            metric=f"change of the {what} of yes/no answers" if change else "accuracy of yes/no answers",
            value=headline.value,
            floor=headline.floor,
            interval=headline.interval,
            n={"questions": len(questions), "images": len({question.image for question in questions})},
            seeds={"bootstrap, random latents, exchanged images and questions about the rendered world": job.seed},
            splits=splits,
            normalisation="raw activations",
            token_kinds=kinds,
            fingerprint=run.fingerprint if run else {"model": model.provenance},
            details={"answers": numbers, "change": change, **details},
        ),
    )
    save(job, questions, difference)
    return told(table(numbers, change, details), job.out)


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
    job: EvalYesNo, model: Any, data: Any, questions: "Sequence[Question]", passes: Mapping[Name, Pass]
) -> dict[Name, np.ndarray]:
    """log p(yes) - log p(no) of each question, by the name of the pass."""

    places = {key: at for at, key in enumerate(data.keys)}
    if missing := [question.image for question in questions if question.image not in places]:
        raise ValueError(f"{job.data} has no image {missing[0]!r}, which a question is about.")
    yes, no = first_tokens(job, model, prompt(job, data, places, questions[0]))
    found: dict[Name, list[float]] = {name: [] for name in passes}
    starts = range(0, len(questions), job.batch_size)
    for start in track(starts, "ask", len(starts)):
        some = questions[start : start + job.batch_size]
        batch = model.prepare([prompt(job, data, places, question) for question in some])
        for name, one_pass in passes.items():
            said = one_pass(batch, some).double()
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

    if "pool" in run.fingerprint:
        raise ValueError(f"{job.run} reads pooled tokens: this needs an SAE of one site's tokens, or a VL-SAE.")
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
    where = Where(kinds=job.kinds, skip=run.skip)

    def under(change: Operation) -> Pass:
        def through(batch: Mapping[str, Any], _: "Sequence[Question]") -> torch.Tensor:
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


def table(numbers: Mapping[str, Any], change: Mapping[str, Any], details: Mapping[str, Any]) -> Any:
    """Every measure of all questions, beside its change under each edit, and the accuracy by kind."""
    from rich.markup import escape
    from rich.table import Table

    from evals.steering_shown import said
    from evals.yes_no import MEASURES

    plain, chosen = numbers["model"], details.get("alphas", {})
    shown = Table("", "floor", "model", *(("under an edit", "change, floor 0") if change else ()))
    for name in change or {"": None}:
        shown.add_section()
        if name:
            shown.add_row(name + (f", alpha {chosen[name]:g}" if name in chosen else ""))
        for measure in MEASURES:
            row = [getattr(of["all"], measure) for of in (plain, *([numbers[name]] if name else []))]
            row += [change[name][measure]] if name else []
            shown.add_row(measure, f"{row[0].floor:.2f}", *map(said, row))
        for kind in [kind for kind in plain if kind != "all"]:
            row = [of[kind].accuracy for of in (plain, *([numbers[name]] if name else []))]
            shown.add_row(f"accuracy, {escape(kind)} ({plain[kind].n:,})", f"{row[0].floor:.2f}", *map(said, row))
    shown.caption = f"{plain['all'].n:,} questions"
    return shown


JOBS = {"yes_no": (EvalYesNo, yes_no)}
