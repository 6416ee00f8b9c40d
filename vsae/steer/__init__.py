"""`vsae steer`: a latent at several strengths while a model draws or writes, and what became of everything else. Part of the roof.

    directions.safetensors  what is steered along: latents, the difference of means, random latents; directions.json says what each is
    images/NAME_STRENGTH/   pictures: images.jsonl with prompt and seed of each;  images/bare/: without an edit
    answers/NAME_STRENGTH/  answers, a file a batch;  answers/bare/: without an edit;  answers.parquet: all of them
    sheet.png               the first prompts (columns) under each direction and strength (rows)
    result.json             every number (evals.steering);  effects.parquet: a row for each direction, strength and measure;  *.png: figures
    report/                 index.html

With a vocabulary in place of a concept: see vsae/steer/discover.py. Every set of pictures or answers appears whole or is gone on with, so that an interrupted job goes on where it was.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vsae import held
from vsae.steer_jobs import Steer

if TYPE_CHECKING:
    from vsae.run import Run
    from vsae.steer.answers import Judge

ABOUT = "latents"
"""Name of the direction that the job is about."""


def steer(job: Steer, judge: "Judge | None" = None) -> Path:
    """Do what is not done yet; returns the page. Raises ValueError and OSError with a sentence.

    judge: of answers: (prompt, answer) -> how far it shows the concept, 0 to 1, in place of looking for the concept's words.
    """
    from evals import steering
    from vsae.run import Run
    from vsae.steer import directions, discover, outcome, page
    from vsae.steer.answers import Written
    from vsae.steer.images import Drawn

    checked(job)
    hold_to(job)
    run = Run.load(job.run, self_check=job.self_check)
    model, site = fitting_model(job, run)
    if job.vocabulary:
        return discover.discover(job, run, model, site)
    made: Any = Drawn(job, model) if job.model.family == "diffusion" else Written(job, model, judge)
    found = directions.found(job, run, model, site)
    bare = made.bare()
    strengths = sorted({0.0, *job.strengths})

    def make(name: str, strength: float) -> steering.Seen:
        return made.seen(name, strength, site, found.edit(job, run, name, strength))

    if job.find is not None:
        reached = steering.threshold(
            lambda s: float(steering.mean(make(ABOUT, s).reach)[0]), job.find, max(1.0, *job.strengths)
        )
        strengths = sorted({*strengths, *([] if reached is None else [reached])})
        found = found.with_threshold(reached)
    seen = {name: {s: make(name, s) for s in strengths if s or name == ABOUT} for name in found.names}
    measured = steering.evaluate(bare, seen, made.floors(), resamples=job.resamples, seed=job.seed)
    outcome.write(job, run, found, made, measured)
    return page.write_page(job, run, found, made, measured)


def checked(job: Steer) -> None:
    """Refuse what contradicts itself before anything is loaded."""
    if bool(job.concept) == bool(job.vocabulary):
        raise ValueError(
            "give --concept WORD... to steer, or --vocabulary WORDS to find out what latents do: one of the two."
        )
    if not all(word.strip() for word in job.concept):
        raise ValueError("a word of --concept is empty: leave it out.")
    if job.vocabulary and (job.model.family != "diffusion" or job.operation == "scale" or job.find is not None):
        raise ValueError(
            "--vocabulary names what latents do to pictures: use it with a diffusion model, add or clamp, and no --find."
        )
    if not job.strengths or (0 in job.strengths and len(set(job.strengths)) == 1):
        raise ValueError("no strength is left but 0, which is always drawn: give --strengths 1 2 4, say.")
    if (job.most is not None and job.most < 1) or job.most_examples < 1:
        raise ValueError("0 prompts or examples are none: give --most 1 or more.")
    if job.find is not None and not 0 < job.find < 1:
        raise ValueError(f"--find is {job.find:g}: give how far the concept should be there, between 0 and 1.")
    if job.operation == "scale" and job.find is not None:
        raise ValueError("--find looks for a strength that brings the concept out: use it with add or clamp.")
    if job.model.family not in ("diffusion", "llm", "llava"):
        raise ValueError(f"family {job.model.family} neither draws nor writes: choose diffusion, llm or llava.")
    if job.model.family == "diffusion":
        from vsae.steer import discover
        from vsae.steer.images import groups

        if job.judge is None:
            raise ValueError("pictures need someone to look at them: give --judge CLIP, a name or directory.")
        discover.vocabulary(job) if job.vocabulary else groups(job)


def hold_to(job: Steer) -> None:
    """Note what was asked for, or see that it is what was noted. Strengths may grow: what is there stays right."""
    from vsae.files import sha256
    from vsae.run import WEIGHTS

    free = {"out", "strengths", "find", "judge", "attributes", "phrase", "resamples", "self_check"}
    wanted: dict[str, Any] = {name: value for name, value in asdict(job).items() if name not in free}
    wanted["run"] = sha256(job.run / WEIGHTS) if (job.run / WEIGHTS).is_file() else str(job.run)
    wanted["model"].pop("device")
    held.hold_to(job, "steer", wanted)


def fitting_model(job: Steer, run: "Run") -> tuple[Any, str]:
    """The model, seen to be the one that the run reads, and where. Raises ValueError with both fingerprints."""
    from dataclasses import replace

    from vsae.activations import fingerprint
    from vsae.reading import load_model

    if "joined" in run.fingerprint or "pool" in run.fingerprint:
        raise ValueError(f"{job.run} reads pairs or pooled tokens: steering needs an SAE of one site's tokens.")
    spec = job.model
    if spec.family != "diffusion":  # generation needs its prompts to end together
        spec = replace(spec, options={"padding": "left"} | spec.options)
    model = load_model(spec)
    about = {name: run.fingerprint[name] for name in ("site", "side")}
    site = about["site"] + (":input" if about["side"] == "input" else "")
    read = {"model": model.provenance, "preprocessing": model.provenance["preprocessing"], **about}
    fingerprint.check(run.fingerprint, read)
    with model.edit(site, lambda values, kinds: values):
        pass  # a name that is no site is refused here
    return model, site
