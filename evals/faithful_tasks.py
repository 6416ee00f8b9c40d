"""What a model is asked, so that it can be seen what a substitution costs: a task a family.

LanguageTask    next-token prediction. A unit is a predicted token; image tokens are in no vocabulary, so they have no loss, but a KL
MatchingTask    an image against texts (class prompts, or the captions of all the images), by the model's own logit scale. A unit is an image
HeadTask        an image against the classes of the model's own head (true: what the model says itself) or of a linear probe. A unit is an image
PaintingTask    an image for each caption, with fixed seeds. A unit is an image; its change is the mean squared difference of pixels in [0, 1]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from evals.faithfulness import MODEL, Outcome
from modalities.base import KINDS, Batch
from modalities.causal import next_token_loss

ROWS = 1024


class Units(NamedTuple):
    """Of the units of a batch: the sample of the batch each is of, and of what kind it is."""

    samples: Int[np.ndarray, "units"]
    kinds: list[str]


@runtime_checkable
class Task(Protocol):
    def answer(self, batch: Batch, samples: Sequence[Any], condition: str) -> Any:
        """The model's answer, with the edits in force, which `condition` names."""

    def outcome(self, batch: Batch, samples: Sequence[Any], answer: Any, own: Any) -> Outcome:
        """Of an answer beside the model's own."""

    def units(self, batch: Batch, samples: Sequence[Any]) -> Units: ...


@dataclass(frozen=True)
class LanguageTask:
    """Of a `CausalModel`. Rows of a packed batch are its samples: documents share them."""

    model: Any

    def answer(self, batch: Batch, samples: Sequence[Any], condition: str) -> Tensor:
        return self.model.run(batch).logits

    def outcome(self, batch: Batch, samples: Sequence[Any], answer: Tensor, own: Tensor) -> Outcome:
        there = self.predicted(batch)
        loss = next_token_loss(answer, batch).masked_fill(
            self.kinds(batch).to(answer.device) == KINDS.index("image"), torch.nan
        )
        at = there.to(answer.device)[:, 1:]
        said, before = answer[:, :-1][at].float(), own[:, :-1][at].float()
        ids = batch["input_ids"].to(answer.device)[:, 1:][at]
        right = torch.where(loss[:, 1:][at].isnan(), torch.nan, (said.argmax(1) == ids).float())
        return Outcome(as_array(loss[:, 1:][at]), as_array(right), as_array(divergence(said, before)))

    def units(self, batch: Batch, samples: Sequence[Any]) -> Units:
        row, place = self.predicted(batch)[:, 1:].nonzero(as_tuple=True)
        kinds = self.kinds(batch)[row, place + 1]
        return Units(row.cpu().numpy(), [KINDS[kind] for kind in kinds.tolist()])

    def kinds(self, batch: Batch) -> Tensor:
        return self.model.marked(batch)["kinds"].cpu()

    def predicted(self, batch: Batch) -> Tensor:
        """Tokens that are no filling and follow one that is none."""
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).cpu() != 0
        before = torch.zeros_like(mask)
        before[:, 1:] = mask[:, :-1]
        return mask & before


@dataclass(frozen=True)
class MatchingTask:
    """Of a dual encoder. texts: what every image is held against; truth: sample key -> number of its text; tower: where the site is."""

    model: Any
    texts: Sequence[str]
    truth: Mapping[str, int]
    tower: str
    per_pass: int = 64
    known: dict[str, Tensor] = field(default_factory=dict)
    """Embeddings of the texts by condition: an edit in the image tower does not reach them."""

    def answer(self, batch: Batch, samples: Sequence[Any], condition: str) -> Tensor:
        condition = condition if self.tower == "text" else MODEL
        if condition not in self.known:
            pieces = [self.texts[at : at + self.per_pass] for at in range(0, len(self.texts), self.per_pass)]
            self.known[condition] = torch.cat(
                [self.embedded(self.model.texts(piece), "text_embedding") for piece in pieces]
            )
        image = self.embedded({"image": batch["image"]}, "image_embedding")
        module = self.model.module
        bias = getattr(module, "logit_bias", None)
        with torch.no_grad():
            scores = module.logit_scale.exp() * image @ self.known[condition].T
            return scores if bias is None else scores + bias

    def embedded(self, batch: Batch, site: str) -> Float[Tensor, "rows d"]:
        return torch.nn.functional.normalize(self.model.activations(batch, [site])[site].values[:, 0], dim=-1)

    def outcome(self, batch: Batch, samples: Sequence[Any], answer: Tensor, own: Tensor) -> Outcome:
        return classified(answer, own, torch.tensor([self.truth[sample.key] for sample in samples]))

    def units(self, batch: Batch, samples: Sequence[Any]) -> Units:
        return Units(np.arange(len(samples)), ["cls"] * len(samples))


@dataclass(frozen=True)
class HeadTask:
    """Of an image backbone. probe: (weight [classes, d], bias) on what the model gives, and truth: sample key -> class; without them, its own head."""

    model: Any
    probe: tuple[Tensor, Tensor] | None = None
    truth: Mapping[str, int] = field(default_factory=dict)

    def answer(self, batch: Batch, samples: Sequence[Any], condition: str) -> Tensor:
        features = features_of(self.model.run(batch))
        if self.probe is None:
            return features
        weight, bias = (each.to(features.device) for each in self.probe)
        return features.double() @ weight.T + bias

    def outcome(self, batch: Batch, samples: Sequence[Any], answer: Tensor, own: Tensor) -> Outcome:
        truth = own.argmax(1) if self.probe is None else torch.tensor([self.truth[sample.key] for sample in samples])
        return classified(answer, own, truth)

    def units(self, batch: Batch, samples: Sequence[Any]) -> Units:
        return Units(np.arange(len(samples)), ["cls"] * len(samples))


@dataclass(frozen=True)
class PaintingTask:
    """Of a pipeline's text encoders, or of its denoiser. options: the pipeline's own, for text encoders; a denoiser was loaded with its."""

    model: Any
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def answer(self, batch: Batch, samples: Sequence[Any], condition: str) -> np.ndarray:
        if "seeds" in batch:  # a denoiser's
            made = self.model.run(batch).images
        else:
            from modalities.diffusion import caption_of
            from modalities.pipeline import seed_of

            captions = [caption_of(sample) for sample in samples]
            seeds = [seed_of(self.seed, sample.key) for sample in samples]
            made = self.model.pipeline()(captions, seeds=seeds, output_type="np", **self.options).images
        made = np.stack([np.asarray(image, np.float64) for image in made])
        return made / 255 if made.max() > 1 else made

    def outcome(self, batch: Batch, samples: Sequence[Any], answer: np.ndarray, own: np.ndarray) -> Outcome:
        nothing = np.full(len(answer), np.nan)
        return Outcome(nothing, nothing, np.square(answer - own).reshape(len(answer), -1).mean(1))

    def units(self, batch: Batch, samples: Sequence[Any]) -> Units:
        return Units(np.arange(len(samples)), ["image"] * len(samples))


def classified(
    answer: Float[Tensor, "rows classes"], own: Float[Tensor, "rows classes"], truth: Int[Tensor, "rows"]
) -> Outcome:
    """Cross-entropy and hits against the truth, KL from the model's own answer."""
    answer, own, truth = answer.cpu().double(), own.cpu().double(), truth.cpu()
    loss = torch.nn.functional.cross_entropy(answer, truth, reduction="none")
    return Outcome(as_array(loss), as_array((answer.argmax(1) == truth).double()), as_array(divergence(answer, own)))


def divergence(answer: Float[Tensor, "rows classes"], own: Float[Tensor, "rows classes"]) -> Float[Tensor, "rows"]:
    """KL(own || answer) in nats, of logits; never below 0. So many rows at a time that a large vocabulary fits."""
    found = []
    for q, p in zip(answer.split(ROWS), own.split(ROWS), strict=True):
        q, p = q.log_softmax(1), p.log_softmax(1)
        found.append((p.exp() * (p - q)).sum(1))
    return torch.cat(found).clamp_min(0)


def features_of(output: Any) -> Float[Tensor, "rows d"]:
    """What an image backbone says of each image: logits or features as they are, else the pooled output, else the first token. Raises ValueError."""
    if not isinstance(output, Tensor):
        for name in ("logits", "pooler_output"):
            if isinstance(found := getattr(output, name, None), Tensor):
                return found.flatten(1)
        output = output.last_hidden_state
    if output.ndim == 2:
        return output
    if output.ndim == 3:
        return output[:, 0]
    raise ValueError(f"the model gives {list(output.shape)}, of which no class can be told: choose another model.")


def as_array(values: Tensor) -> Float[np.ndarray, "units"]:
    return values.detach().cpu().double().numpy()
