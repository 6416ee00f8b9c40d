"""`vsae eval explaining`: a judge explains latents, or is given their names, and answers questions about them; see `evals.explaining` for what is counted.

Half of the samples explain, by a hash of their key; the other half is asked about. Every prompt, and what the judge found likely, is in asked.jsonl.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int64
from rich.table import Table

from evals import explaining
from evals.explaining import YES, Drawn, Scored
from evals.explaining_asked import Material, Prompts, Question, detection, fuzzing, intruders, listed, sheet
from evals.figures import ACCENT, QUIET, save
from evals.naming import normalised
from evals.result import Result, write_result
from modalities.judge import Asked
from vsae.files import write_text

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


@runtime_checkable
class Answers(Protocol):
    """`modalities.judge.Judge`, or what answers like it."""

    @property
    def sees(self) -> bool: ...

    @property
    def provenance(self) -> dict[str, Any]: ...

    def choose(self, asked: Sequence[Asked], track: Track) -> list[Float[np.ndarray, "options"]]: ...

    def say(self, prompt: str, image: Any = None, tokens: int = 24) -> str: ...


@dataclass(frozen=True)
class Found:
    scores: dict[str, Scored]
    explanations: dict[int, str]
    latents: tuple[int, ...]
    by: str


def ask(
    drawn: Sequence[Drawn],
    material: Material,
    judge: Answers,
    out: Path,
    *,
    given: Mapping[int, str] | None = None,
    captions: bool = False,
    prompts: Prompts | None = None,
    about: Mapping[str, Any],
    resamples: int = 200,
    seed: int = 0,
    track: Track = lambda items, what, n: items,
) -> Found:
    """Explain and ask; write asked.jsonl, result.json and explaining.png to `out`.

    given: explanations by latent, instead of the judge's own. captions: samples are their texts, as for a judge that sees no images; fuzzing is left out
    where the material does not say which tokens are active.
    about: the common fields of result.json. Raises ValueError for a judge that sees no images, unless captions.
    """
    if not captions and not judge.sees:
        raise ValueError("this judge sees no images: give one of the family llava, or ask about captions (--captions).")
    prompts = prompts or Prompts()
    said = explained(drawn, material, judge, given, captions, prompts, track)
    null = explaining.others(len(drawn), seed)
    rows: list[dict[str, Any]] = []

    def answered(kind: str, questions: list[Question]) -> tuple[np.ndarray, ...]:
        own = judge.choose([each[2] for each in questions], track)
        other = judge.choose([each[3] for each in questions], track)
        for (at, right, asked, asked_null, keys), p, q in zip(questions, own, other, strict=True):
            row = {"kind": kind, "latent": drawn[at].latent, "right": right, "keys": keys, "options": asked.options}
            rows.append(
                row
                | {
                    "prompt": asked.prompt,
                    "log_p": p.tolist(),
                    "null_prompt": asked_null.prompt,
                    "null_log_p": q.tolist(),
                }
            )
        return np.array([each[0] for each in questions], np.int64), np.stack(own), np.stack(other)

    scores: dict[str, Scored] = {}
    common: dict[str, Any] = {"latents": len(drawn), "resamples": resamples, "seed": seed}
    yes_no = {"detection": detection(drawn, said, null, material, captions, prompts)}
    if not captions or material.marked is not None:
        yes_no["fuzzing"] = fuzzing(drawn, said, null, material, captions, prompts, seed)
    for kind, questions in yes_no.items():
        owner, own, other = answered(kind, questions)
        right = np.array([each[1] == YES for each in questions])
        scores[kind] = explaining.scored(owner, right, own[:, 0] - own[:, 1], other[:, 0] - other[:, 1], **common)
    questions = intruders(drawn, material, captions, prompts, seed)
    owner, own, other = answered("intruder", questions)
    places = np.array([int(each[1]) - 1 for each in questions], np.int64)
    scores["intruder"] = explaining.chosen(owner, places, own.argmax(1), other.argmax(1), **common)
    if material.embed is not None and material.embeddings is not None:
        scores["embedding"] = embedding(drawn, said, null, material, resamples, seed)
    found = Found(
        scores,
        {d.latent: s for d, s in zip(drawn, said, strict=True)},
        tuple(d.latent for d in drawn),
        "captions" if captions else "images",
    )
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "asked.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    headline = scores["detection"].score
    details = {
        "scores": scores,
        "explanations": found.explanations,
        "prompts": asdict(prompts),
        "judge": judge.provenance,
        "explained by": "the judge" if given is None else "what was given",
        "by": found.by,
    }
    write_result(
        out,
        Result(
            metric="balanced accuracy of detection",
            value=headline.value,
            floor=headline.floor,
            interval=headline.interval,
            n={"latents": len(drawn), "questions": len(rows)},
            seeds={"latents, samples, places and bootstrap": seed},
            details=details,
            **about,
        ),
    )
    shown(found, out / "explaining.png")
    return found


def explained(
    drawn: Sequence[Drawn],
    material: Material,
    judge: Answers,
    given: Mapping[int, str] | None,
    captions: bool,
    prompts: Prompts,
    track: Track,
) -> list[str]:
    """An explanation a latent. Raises ValueError where a latent's was not given."""
    if given is not None:
        if lost := [each.latent for each in drawn if each.latent not in given]:
            raise ValueError(
                f"there is no explanation of latent {lost[0]}: give one for each, or let the judge explain."
            )
        return [given[each.latent] for each in drawn]
    found = []
    for each in track(drawn, "explain", len(drawn)):
        if captions:
            marked = material.marked
            texts = [marked(row, each.latent, None) if marked else material.text(row) for row in each.shown.tolist()]
            said = judge.say((prompts.explain_marked if marked else prompts.explain_texts).format(listed(texts)))
        else:
            said = judge.say(
                prompts.explain, sheet([material.lit(row, each.latent, None) for row in each.shown.tolist()], False)
            )
        found.append(said or "nothing")
    return found


def embedding(
    drawn: Sequence[Drawn],
    said: Sequence[str],
    null: Int64[np.ndarray, "n"],
    material: Material,
    resamples: int,
    seed: int,
) -> Scored:
    assert material.embed is not None and material.embeddings is not None
    T, E = normalised(material.embed(list(said))), normalised(material.embeddings)
    own, other, right = [], [], []
    for at, each in enumerate(drawn):
        rows = np.concatenate([each.active, each.silent])
        right.append(np.arange(len(rows)) < len(each.active))
        own.append(E[rows] @ T[at])
        other.append(E[rows] @ T[null[at]])
    return explaining.retrieved(own, right, other, resamples, seed)


def table(found: Found) -> Table:
    shown = Table("asked", "score", "95 % interval", "floor", "AUROC", "null judge", "agreement with it", "questions")
    shown.title = f"Explanations of {len(found.latents)} latents, by {found.by}"
    for name, each in found.scores.items():
        said = ["-" if e is None or e.value is None else f"{e.value:.3f}" for e in (each.score, each.auroc, each.null)]
        interval = f"{each.score.interval[0]:.3f} to {each.score.interval[1]:.3f}" if each.score.interval else "-"
        agreed = "-" if each.agreement is None else f"{each.agreement:.1%}"
        shown.add_row(
            name, said[0], interval, f"{each.score.floor:.3g}", said[1], said[2], agreed, f"{each.questions:,}"
        )
    shown.caption = "score: balanced accuracy (detection, fuzzing), accuracy (intruder), AUROC (embedding); the null judge is given another latent's explanation"
    return shown


def shown(found: Found, path: Path) -> Path:
    """Every latent's score of each kind, the null judge's beside it."""

    def on(axes: Any) -> None:
        for at, each in enumerate(found.scores.values()):
            for values, color, shift in ((each.null_by_latent, QUIET, 0.15), (each.by_latent, ACCENT, -0.15)):
                if values is not None:
                    spread = np.linspace(-0.1, 0.1, len(values))
                    axes.scatter(
                        at + shift + spread,
                        values,
                        s=9,
                        color=color,
                        label=None if at else ("null judge" if shift > 0 else "judge"),
                    )
            axes.hlines(each.score.floor, at - 0.35, at + 0.35, color=QUIET, lw=1, ls="--")
        axes.set(xticks=range(len(found.scores)), ylim=(-0.03, 1.03), ylabel="score of each latent; dashed: floor")
        axes.set_xticklabels(list(found.scores))
        axes.legend(frameon=False, fontsize=8)

    return save(on, path)
