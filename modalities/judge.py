"""A language or image-text model as a judge: which of some answers it finds likeliest, or what it says itself.

An answer's score is the sum of the log-probabilities of its tokens after the prompt, in the model's own chat template; so a judge always chooses, and never
says what cannot be read. Log-probabilities of answers of other lengths are sums too: give answers of about one length, as yes and no.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL.Image import Image
from torch import Tensor

from modalities.causal import CausalModel, next_token_loss
from modalities.data import Sample

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


class Asked(NamedTuple):
    """A question with the answers to choose from."""

    prompt: str
    options: tuple[str, ...]
    image: Image | None = None


class Judge:
    """Of the families llava and llm; an llm sees no images. Raises ValueError for another model."""

    def __init__(self, model: Any, batch_size: int = 8) -> None:
        if not isinstance(model, CausalModel):
            raise ValueError(
                f"a judge answers in words: give a model of the family llava or llm, not {type(model).__name__}."
            )
        self.model, self.batch_size = model, batch_size
        self.sees = hasattr(model, "processor")
        """Whether it takes images."""

    @property
    def provenance(self) -> dict[str, Any]:
        return self.model.provenance

    @torch.inference_mode()
    def choose(
        self, asked: Sequence[Asked], track: Track = lambda items, what, n: items
    ) -> list[Float[np.ndarray, "options"]]:
        """Log-probability of each option of each question. Raises ValueError where a prompt leaves no answer within the model's length."""
        found: list[Float[np.ndarray, "options"]] = []
        starts = range(0, len(asked), self.batch_size)
        for start in track(starts, "judge", len(starts)):
            found += self._chosen(asked[start : start + self.batch_size])
        return found

    def _chosen(self, asked: Sequence[Asked]) -> list[Float[np.ndarray, "options"]]:
        """Of a few questions. Where all options of one are single tokens after the same others, its first row has the log-probabilities of all."""
        rows = [sample(each, option) for each in asked for option in each.options]
        batch = self.model.prepare(rows)
        ids, answer = batch["input_ids"].cpu(), batch["answer"].cpu()
        ends = np.cumsum([len(each.options) for each in asked]).tolist()
        spans = [slice(end - len(each.options), end) for each, end in zip(asked, ends, strict=True)]
        short = [number for number, span in enumerate(spans) if single(ids[span], answer[span])]
        found = torch.zeros(len(rows), dtype=torch.float64)
        if short:
            some = self.model.prepare([rows[spans[number].start] for number in short])
            place = some["answer"].int().argmax(1).cpu()
            logits = self.model.run(some).logits
            likely = logits[torch.arange(len(short)), place - 1].float().log_softmax(1).cpu()
            for row, number in enumerate(short):
                options = ids[spans[number]][answer[spans[number]]]
                found[spans[number]] = likely[row, options].double()
        long = [at for number, span in enumerate(spans) if number not in short for at in range(span.start, span.stop)]
        for start in range(0, len(long), self.batch_size):
            here = long[start : start + self.batch_size]
            found[here] = self._summed([rows[at] for at in here])
        return [found[span].numpy() for span in spans]

    def _summed(self, rows: Sequence[Sample]) -> Float[Tensor, "rows"]:
        """Log-probability of each row's answer, token by token."""
        batch = self.model.prepare(rows)
        loss = next_token_loss(self.model.run(batch).logits, batch).cpu()
        answer = batch["answer"].cpu() & ~loss.isnan()
        if not bool(answer.any(1).all()):
            raise ValueError(
                "the judge's prompt leaves no token of the answer: shorten it, or load the judge with a larger length."
            )
        return -torch.where(answer, loss, 0).double().sum(1)

    def say(self, prompt: str, image: Image | None = None, tokens: int = 24) -> str:
        """The judge's own words, greedily, on one line."""
        batch = self.model.prepare([sample(Asked(prompt, (), image), None)])
        ids = self.model.generate(batch, max_new_tokens=tokens, do_sample=False)
        told = self.model.tokenizer.decode(ids[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return " ".join(told.split())


def single(ids: Int[Tensor, "options length"], answer: Bool[Tensor, "options length"]) -> bool:
    """Whether the rows differ in one token only, their whole answer, and something is before it."""
    place = int(answer[0].int().argmax())
    same = ids == ids[0]
    same[:, place] = True
    alone = bool((answer.sum(1) == 1).all()) and bool(answer[:, place].all()) and place > 0
    return alone and bool(same.all())


def sample(asked: Asked, answer: str | None) -> Sample:
    extra = {"prompt": asked.prompt} | ({} if answer is None else {"answer": answer})
    return Sample("question", "question", asked.image, extra=extra)
