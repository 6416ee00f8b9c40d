"""A language or image-text model as a judge: which of some answers it finds likeliest, or what it says itself.

An answer's score is the sum of the log-probabilities of its tokens after the prompt, in the model's own chat template; so a judge always chooses, and never
says what cannot be read. Log-probabilities of answers of other lengths are sums too: give answers of about one length, as yes and no.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL.Image import Image

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
        rows = [(at, option) for at, each in enumerate(asked) for option in each.options]
        scores: list[list[float]] = [[] for _ in asked]
        starts = range(0, len(rows), self.batch_size)
        for start in track(starts, "judge", len(starts)):
            some = rows[start : start + self.batch_size]
            batch = self.model.prepare([sample(asked[at], option) for at, option in some])
            loss = next_token_loss(self.model.run(batch).logits, batch).cpu()
            answer = batch["answer"].cpu() & ~loss.isnan()
            if not bool(answer.any(1).all()):
                raise ValueError(
                    "the judge's prompt leaves no token of the answer: shorten it, or load the judge with a larger length."
                )
            found = -torch.where(answer, loss, 0).double().sum(1)
            for (at, _), value in zip(some, found.tolist(), strict=True):
                scores[at].append(value)
        return [np.array(each) for each in scores]

    def say(self, prompt: str, image: Image | None = None, tokens: int = 24) -> str:
        """The judge's own words, greedily, on one line."""
        batch = self.model.prepare([sample(Asked(prompt, (), image), None)])
        ids = self.model.generate(batch, max_new_tokens=tokens, do_sample=False)
        told = self.model.tokenizer.decode(ids[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return " ".join(told.split())


def sample(asked: Asked, answer: str | None) -> Sample:
    extra = {"prompt": asked.prompt} | ({} if answer is None else {"answer": answer})
    return Sample("question", "question", asked.image, extra=extra)
