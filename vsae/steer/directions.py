"""What a job steers along: its latents, the difference of means, and random latents, all of one size at every token."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vsae.interventions import Add, Clamp, Intervention, Operation, Scale, Where, checked
from vsae.steer_jobs import Steer

if TYPE_CHECKING:
    from vsae.run import Run

FILE, ABOUT = "directions.safetensors", "directions.json"
MEANS = "means"


@dataclass(frozen=True)
class Directions:
    latents: tuple[int, ...]
    values: tuple[float, ...]
    """What strength 1 means, for each latent."""
    controls: tuple[tuple[int, ...], ...]
    vectors: dict[str, Float[Tensor, "d_model"]]
    """By the name of each baseline."""
    cosine: float
    """Of what the latents push along and the difference of means."""
    separation: tuple[float, ...]
    """How much larger each latent is where the concept is."""
    having: int
    lacking: int
    """Examples with and without the concept."""
    threshold: float | None = None
    """The strength that was looked for, if it was found."""

    @property
    def names(self) -> tuple[str, ...]:
        return ("latents", *self.vectors)

    def place(self, at: tuple[str, float]) -> tuple[int, float]:
        """Of a (name, strength) in the order of the page."""
        return self.names.index(at[0]), at[1]

    def with_threshold(self, strength: float | None) -> "Directions":
        return replace(self, threshold=strength)

    def operation(self, job: Steer) -> Operation:
        if job.operation == "scale":
            return Scale(self.latents, 0.0 if job.value is None else job.value)
        return (Add if job.operation == "add" else Clamp)(self.latents, self.values)

    def edit(self, job: Steer, run: "Run", name: str, strength: float) -> Intervention:
        """The function for `model.edit`."""
        from modalities.base import KINDS
        from vsae.steering import Along

        operation = self.operation(job)
        if name != "latents":
            operation = Along(self.vectors[name].to(run.sae.b_dec), operation)
        where = Where(kinds=job.kinds, answer=True if job.answer_only else None, skip=run.skip)
        return Intervention(run.sae, operation, strength=strength, where=where, kind_names=KINDS)


def found(job: Steer, run: "Run", model: Any, site: str) -> Directions:
    """The directions, from the examples; those of an earlier start of the same job where they are there."""
    from vsae.files import read_json, write_json
    from vsae.tensors import read_tensors, write_tensors

    if job.latents:
        checked(run.sae, job.latents)
    if (job.out / ABOUT).is_file():
        about = {name: tuples(value) for name, value in read_json(job.out / ABOUT).items()}
        return Directions(**about, vectors=read_tensors(job.out / FILE))
    made = fitted(job, run, model, site)
    write_tensors(job.out / FILE, made.vectors)
    content = {name: value for name, value in vars(made).items() if name not in ("vectors", "threshold")}
    write_json(job.out / ABOUT, content)
    return found(job, run, model, site)


def fitted(job: Steer, run: "Run", model: Any, site: str) -> Directions:
    from modalities.data import Bad, open_dataset
    from modalities.data.first import First
    from vsae.steering import examples, summed

    sae, data = run.sae, First(open_dataset(job.examples or job.prompts), job.most_examples)
    read = (data.read(at) for at in range(len(data)))
    samples = [sample for sample in read if not isinstance(sample, Bad)]
    has = [says(text, job.concept) for text in (text_of(job, sample) for sample in samples)]
    ex = examples(sae, batches(job, run, model, site, samples), has)
    latents = tuple(job.latents) or tuple(ex.best(job.choose))
    values = [job.value] * len(latents) if job.value is not None else ex.sizes(latents)
    controls = tuple(tuple(ex.matched(latents, job.seed + number)) for number in range(job.controls))
    assert ex.means is not None  # there is a concept
    vectors = {MEANS: ex.means}
    for number, control in enumerate(controls, 1):
        vectors[f"random{number}"] = summed(sae, control, [1.0] * len(control))
    ours = summed(sae, latents, values if any(values) else [1.0] * len(latents))
    return Directions(
        latents,
        tuple(values),
        controls,
        {name: vector.contiguous().cpu() for name, vector in vectors.items()},
        float(torch.cosine_similarity(ours.double(), ex.means.to(ours).double(), dim=0)),
        tuple(float(s) for s in ex.separation()[list(latents)]),
        len(ex.having),
        len(ex.lacking),
    )


def batches(
    job: Steer, run: "Run", model: Any, site: str, samples: Sequence[Any]
) -> Iterator[tuple[Float[Tensor, "batch tokens d_model"], Bool[Tensor, "batch tokens"]]]:
    """Activations of the samples, and which of their tokens the edit would reach in a prompt."""
    from modalities.base import KINDS
    from vsae.progress import track

    where, starts = Where(kinds=job.kinds, skip=run.skip), range(0, len(samples), job.batch_size)
    for start in track(starts, "read examples", len(starts)):
        seen = model.activations(model.prepare(samples[start : start + job.batch_size]), [site])[site]
        yield seen.values, where.mask(seen.kinds, KINDS, None)


def tuples(value: Any) -> Any:
    """JSON's lists as tuples."""
    return tuple(tuples(each) for each in value) if isinstance(value, list) else value


def text_of(job: Steer, sample: Any) -> str:
    """What a sample says, as far as the model reads it."""
    if job.model.family == "diffusion":
        from modalities.diffusion import caption_of

        return caption_of(sample)
    from modalities.chat import conversation

    said = conversation(sample, job.model.options.get("prompt"))
    return " ".join(part.get("text", "") for turn in said.turns for part in turn.parts)


def says(text: str, words: Sequence[str]) -> bool:
    """Whether one of the words (or phrases) is in the text, as a whole word, in any case."""
    return any(re.search(rf"(?<!\w){re.escape(word.strip())}(?!\w)", text, re.IGNORECASE) for word in words)
