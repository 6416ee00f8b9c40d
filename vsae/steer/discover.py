"""`vsae steer --vocabulary`: many latents, each alone; a name for what it does to pictures, verified on other prompts.

images/bare/, images/latent_12_4/, images/random_1_4/   the same prompts and seeds without an edit, with a latent at strength 4, with a random direction of the same size
latents.json, random.safetensors                        which latents, how large each gets, and the random directions
discovered.parquet                                      a row for each latent and direction: name, accuracy with its interval, p, q, whether it is beyond random directions, how alike the pictures still are
result.json, report/
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from vsae.report.page import Fact
from vsae.report.results import Grid, Part, Picture, Section, Strip, write
from vsae.steer.images import BARE, LOOKED, Judge, Pictures, named, others
from vsae.steer_jobs import Steer

if TYPE_CHECKING:
    from evals.discovery import Discovery, Named
    from vsae.interventions import Intervention
    from vsae.run import Run

Alike = dict[str, float | None]
"""Cosine of a picture with the edit and without, mean over prompts, by direction; None where there is no such pair."""
PAIRS, SHOWN = 4, 40
"""Pairs of pictures of each latent on the page, and latents."""


def discover(job: Steer, run: "Run", model: Any, site: str) -> Path:
    """Do what is not done yet; returns the page."""
    from evals import discovery
    from vsae.evaluations import told

    words = vocabulary(job)
    pictures = Pictures(job, model)
    sizes, random = chosen(job, run, model, site)
    judge = Judge(str(job.judge))
    texts = judge.texts([job.phrase.format(word) for word in words])
    strength = max(job.strengths)
    pictures.draw(BARE, {})
    for name, edit in edits(job, run, sizes, random, strength).items():
        pictures.edited(named(name, strength), site, edit, {"direction": name, "strength": strength})
    bare = looked_at(pictures, judge, BARE)
    seen = {name: looked_at(pictures, judge, named(name, strength)) for name in names(sizes, random)}
    latents = {name: seen[name] @ texts.T for name in names(sizes, {})}
    controls = {name: seen[name] @ texts.T for name in random}
    found = discovery.evaluate(bare @ texts.T, latents, controls, words, resamples=job.resamples, seed=job.seed)
    alike = {name: mean(np.einsum("pd,pd->p", bare, each)) for name, each in seen.items()}
    save(job, run, found, alike, words)
    told(table(found), job.out)
    return page(job, run, pictures, found, alike, others(bare), words)


def vocabulary(job: Steer) -> tuple[str, ...]:
    """The words, or those of the one .txt file that is named, a line each. Raises ValueError for fewer than two."""
    words = job.vocabulary
    if len(words) == 1 and words[0].endswith(".txt"):
        path = Path(words[0])
        if not path.is_file():
            raise ValueError(f"there is no file {path}: give words, or a .txt with one a line.")
        words = tuple(path.read_text("utf-8").splitlines())
    words = tuple(dict.fromkeys(word.strip() for word in words if word.strip()))
    if len(words) < 2:
        raise ValueError(f"the vocabulary has {len(words)} word: names need two or more to choose from.")
    return words


def chosen(job: Steer, run: "Run", model: Any, site: str) -> tuple[dict[int, float], dict[str, torch.Tensor]]:
    """Latents with their sizes, and random directions; those of an earlier start of the same job where they are there."""
    from modalities.data import Bad, open_dataset
    from modalities.data.first import First
    from vsae.files import read_json, write_json
    from vsae.interventions import checked
    from vsae.steer.directions import batches
    from vsae.steering import examples
    from vsae.tensors import read_tensors, write_tensors

    sae, note, vectors = run.sae, job.out / "latents.json", job.out / "random.safetensors"
    if job.latents:
        checked(sae, job.latents)
    if not note.is_file():
        data = First(open_dataset(job.examples or job.prompts), job.most_examples)
        read = (data.read(at) for at in range(len(data)))
        samples = [sample for sample in read if not isinstance(sample, Bad)]
        ex = examples(sae, batches(job, run, model, site, samples))
        rng = np.random.default_rng(job.seed)
        live = np.flatnonzero(ex.fires > 0)
        latents = list(job.latents) or sorted(rng.permutation(live)[: job.choose].tolist())
        sizes = [job.value] * len(latents) if job.value is not None else ex.sizes(latents)
        random = {f"random_{i + 1}": torch.from_numpy(rng.standard_normal(sae.d_model)) for i in range(job.controls)}
        write_tensors(vectors, random)
        write_json(note, {str(j): float(size) for j, size in zip(latents, sizes, strict=True)})
    return {int(j): size for j, size in read_json(note).items()}, read_tensors(vectors)


def names(sizes: dict[int, float], random: dict[str, torch.Tensor]) -> list[str]:
    return [*(f"latent_{j}" for j in sizes), *random]


def edits(
    job: Steer, run: "Run", sizes: dict[int, float], random: dict[str, torch.Tensor], strength: float
) -> "dict[str, Intervention]":
    """A function for `model.edit` for each latent, and for each random direction, which goes as far as one of the latents does in its turn."""
    from modalities.base import KINDS
    from vsae.interventions import Add, Clamp, Intervention, Operation, Where
    from vsae.steering import Along

    kind = Clamp if job.operation == "clamp" else Add
    operations: dict[str, Operation] = {f"latent_{j}": kind([j], size) for j, size in sizes.items()}
    own = list(operations.values())
    for at, (name, vector) in enumerate(random.items()):
        operations[name] = Along(vector.to(run.sae.b_dec), own[at % len(own)])
    where = Where(kinds=job.kinds, skip=run.skip)
    return {
        name: Intervention(run.sae, operation, strength=strength, where=where, kind_names=KINDS)
        for name, operation in operations.items()
    }


def looked_at(pictures: Pictures, judge: Judge, folder: str) -> Float[np.ndarray, "prompts d"]:
    """The judge's unit embedding of each prompt's picture; NaN where there is no picture."""
    images, found = pictures.all_of(folder), np.full((len(pictures.prompts), judge.d), np.nan)
    order = list(images)
    for start in range(0, len(order), LOOKED):
        part = order[start : start + LOOKED]
        found[part] = judge.images([images[at] for at in part])
    return found


def mean(values: Float[np.ndarray, "prompts"]) -> float | None:
    """Of those that are there."""
    there = values[np.isfinite(values)]
    return float(there.mean()) if len(there) else None


def save(job: Steer, run: "Run", found: "Discovery", alike: Alike, words: tuple[str, ...]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from evals.result import Result, write_result
    from vsae.files import write_whole

    rows = []
    for one in found.named:
        low, high = one.accuracy.interval or (None, None)
        row = {"direction": one.direction, "name": one.name, "growth": one.growth, "accuracy": one.accuracy.value}
        row |= {"beyond": one.beyond, "low": low, "high": high, "floor": 0.5, "p": one.p, "q": one.q, "n": one.n}
        rows.append(row | {"alike": alike[one.direction]})
    numbers = {name: pa.float64() for name in ("growth", "accuracy", "low", "high", "floor", "p", "q", "alike")}
    types = {"direction": pa.string(), "name": pa.string(), "n": pa.int64(), "beyond": pa.bool_()} | numbers
    made = pa.Table.from_pylist(rows, pa.schema([(name, types[name]) for name in rows[0]]))
    write_whole(job.out / "discovered.parquet", lambda path: pq.write_table(made, path))
    n = {"latents": sum(one.direction.startswith("latent_") for one in found.named), "words": len(words)}
    write_result(
        job.out,
        Result(
            metric=f"latents whose name a judge verifies (q <= {found.alpha:g}) and which random directions do not bring as far",
            value=found.found.value,
            floor=found.found.floor,
            interval=found.found.interval,
            n=n | {"verifying pairs": max(one.n for one in found.named)},
            seeds={"generation, latents, random directions and bootstrap": job.seed},
            splits={"propose": "every second prompt from the first", "verify": "every second prompt from the second"},
            normalisation="raw activations",
            token_kinds=list(job.kinds or ()),
            fingerprint=run.fingerprint,
            details=found,
        ),
    )


def ordered(found: "Discovery") -> "list[Named]":
    """Latents, the surest first; then the random directions."""
    return sorted(
        found.named,
        key=lambda one: (
            one.direction.startswith("random_"),
            not one.beyond,
            one.q,
            -(one.accuracy.value or 0),
            -(one.growth or 0),
        ),
    )


def table(found: "Discovery") -> Any:
    from rich.markup import escape
    from rich.table import Table

    from evals.steering_shown import said

    shown = Table("direction", "name", "picked (floor 0.5)", "q", title="What latents do to pictures")
    for one in ordered(found)[:SHOWN]:
        shown.add_row(one.direction, escape(one.name or "-"), said(one.accuracy), f"{one.q:.2g}")
    shown.caption = f"verified at q <= {found.alpha:g}, and more than random directions bring: {said(found.found)} of the latents, {floor_of(found)} of random directions"
    return shown


def two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def floor_of(found: "Discovery") -> str:
    return "unknown" if found.found.floor is None else f"{found.found.floor:.2f}"


def page(
    job: Steer,
    run: "Run",
    pictures: Pictures,
    found: "Discovery",
    alike: Alike,
    unlike: float | None,
    words: tuple[str, ...],
) -> Path:
    """unlike: how alike pictures of different prompts are."""
    from evals.discovery import is_found
    from evals.steering_shown import said

    listed = ordered(found)
    sure = [one for one in listed if is_found(one, found.alpha) and one.direction.startswith("latent_")]
    facts = [
        Fact(
            "latents",
            f"{sum(one.direction.startswith('latent_') for one in listed):,}",
            f"{len(words):,} words to name them by",
        ),
        Fact("verified", said(found.found), f"floor: random directions of the same size {floor_of(found)}"),
    ]
    lead = (
        f"Each latent of {run.path.name} was raised alone (strength {max(job.strengths):g}) while {Path(job.model.name).name} drew {len(pictures.prompts)} prompts, always from the same seeds. "
        "The name is the word that the pictures came nearer to, on every second prompt. On the others a judge picks, for that word, between the picture with the edit and the one without.",
    )
    columns = ("direction", "name", "cosine grew by", "picked", "q", "pairs", "alike")
    rows = [
        (one.direction.replace("_", " "), one.name or "-", "-" if one.growth is None else f"{one.growth:+.3f}", said(one.accuracy), f"{one.q:.2g}", f"{one.n}", two(alike[one.direction]))
        for one in listed
    ]  # fmt: skip
    strong = [at for at, one in enumerate(listed) if one in sure]
    evidence: list[Part] = []
    for one in listed[:SHOWN]:
        title = f"{one.direction.replace('_', ' ')}: {one.name or 'no name'}, picked {said(one.accuracy)}"
        evidence.append(Strip(pairs(pictures, named(one.direction, max(job.strengths))), title))
    sections = [
        Section(
            "Names",
            [
                f"Floor of picked: 0.5. q: exact test against a coin, Benjamini-Hochberg over the latents. In bold: q <= {found.alpha:g}, and the cosine grew more than under every random direction, which can beat a coin too.",
                f"Alike: cosine of a picture with the edit and without, as the judge sees them, mean over all prompts. 1: nothing to be seen, so raise --strengths before the name is blamed; pictures of different prompts: {two(unlike)}.",
            ],
            [Grid(columns, rows, strong)],
        ),
        Section("Pictures", ["Verifying prompts: without the edit, and with it."], evidence),
        Section(
            "What this does not show",
            [
                f"The name is the nearest of the {len(words)} words given, and {Path(str(job.judge)).name} both proposed and verified it: what it cannot see it cannot name.",
                "A verified name says that the pictures come nearer to the word, not that nothing else changes: vsae steer --concept measures that.",
                f"The {len(listed) - len(rows[:SHOWN])} others are in discovered.parquet." if len(listed) > SHOWN else "discovered.parquet has the same rows.",
            ],
        ),
    ]  # fmt: skip
    return write(job.out / "report", f"What latents of {run.path.name} do", lead, facts, sections)


def pairs(pictures: Pictures, folder: str) -> list[Picture]:
    found = list[Picture]()
    for prompt in range(1, len(pictures.prompts), 2):
        both = pictures.picture(BARE, prompt), pictures.picture(folder, prompt)
        if both[0] is not None and both[1] is not None and len(found) < 2 * PAIRS:
            found += [Picture(both[0], f"without: {pictures.caption(prompt)}"), Picture(both[1], "with")]
    return found
