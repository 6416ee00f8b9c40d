"""What language models and image-text models share: tokens with kinds, the layout of a batch, loss, and generation under an edit."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from modalities.base import KINDS, ActivationModel, Batch, NotTokens, Tokens, takes
from modalities.layout import MARKS, NO_CELL, TokenLayout, gathered, places, regrouped, special_ids, text_kinds
from modalities.sites import Site

INDEX = "index"
"""Tensor of a packed batch: for each sample, where in the rows its tokens are."""
N_IMAGES = "n_images"
"""Tensor of a batch with images: how many belong to each row."""
LAYOUT = "layout"
"""A site that is no module: row i of it says of the token in row i of every language site what `LAYOUT_COLUMNS` names."""
LAYOUT_COLUMNS = MARKS[1:]
EXACT = 256
"""Whole numbers up to this are themselves in every dtype of a store."""


class CausalModel(ActivationModel):
    """A transformers model that predicts the next token. Batches: "input_ids", "attention_mask" and, for an image-text model, the
    image tensors of its processor; further what `prepare` adds so that every token is known (`layout`).

    A batch made by hand needs no more than what the library itself takes. Site "layout" can be read along with others, into a store too: of each
    token whether it answers, which image and copy it stands for, row and column (the marks of `TokenLayout`; `LAYOUT_COLUMNS`), as numbers.
    """

    def __init__(self, module: nn.Module, provenance: dict[str, Any], tokenizer: Any, example: Batch) -> None:
        self.tokenizer = tokenizer
        self._special = special_ids(tokenizer)
        self._generating = False
        self._marks = nn.Identity()
        super().__init__(module, provenance, example, {LAYOUT: self._marks})
        self._shapes.pop(LAYOUT, None)  # nothing to edit

    def forward(self, batch: Batch) -> Any:
        if self._marks._forward_hooks:
            self._marks(_numbers(batch))
        return self.module(**self.inputs(batch), use_cache=False)

    def inputs(self, batch: Batch) -> Batch:
        """The part of a batch that the library's model takes."""
        return {name: value for name, value in batch.items() if name not in (*MARKS, INDEX, N_IMAGES)}

    def marked(self, batch: Batch) -> Batch:
        """The batch with what is known of its tokens. Raises ValueError where images and their tokens do not fit."""
        if "kinds" in batch:
            return batch
        ids = batch["input_ids"]
        nowhere = torch.full_like(ids, NO_CELL)
        cells = dict.fromkeys(("image", "copy", "row", "column"), nowhere)
        kinds = text_kinds(ids, batch.get("attention_mask", torch.ones_like(ids)), self._special)
        return (
            {"answer": torch.zeros_like(ids, dtype=torch.bool), "kinds": kinds}
            | cells
            | self.marked_images(batch, kinds)
            | batch
        )

    def marked_images(self, batch: Batch, kinds: UInt8[Tensor, "rows length"]) -> Batch:
        """Marks of the image tokens, for a family that has some. kinds: those of the other tokens."""
        return {}

    def layout(self, batch: Batch) -> TokenLayout:
        """What each token is that `activations` gives at a language site for this batch."""
        batch = self.marked(batch)
        ids = batch["input_ids"].masked_fill(batch["kinds"] == KINDS.index("pad"), -1)
        whole: list[Tensor] = [ids, *(batch[name] for name in MARKS)]
        if INDEX in batch:
            fills = (-1, KINDS.index("pad"), False, *[NO_CELL] * 4)
            whole = [gathered(m.flatten(), batch[INDEX], fill) for m, fill in zip(whole, fills, strict=True)]
        return TokenLayout(*[*whole, places(whole[1])])

    @contextmanager
    def edit(self, site: str, fn: Callable[..., Tensor]) -> Iterator[ActivationModel]:
        """As for every model, in `run` and in `generate`. A `fn` with an argument `layout` is given the `TokenLayout` of the tokens that pass,

        too: those of the prompt, and while an answer is generated the newest ones. None where they are no tokens of the text: in an image tower.
        """
        told = takes(fn, "layout")

        def here(values: Tensor, kinds: Tensor) -> Tensor:
            return fn(values, kinds, layout=self._passed(site, values.shape[1])) if told else fn(values, kinds)

        with super().edit(site, here):
            yield self

    def _passed(self, site: str, tokens: int) -> TokenLayout | None:
        """Layout of the newest tokens of the running batch."""
        whole = self.layout(self._batch)
        return TokenLayout(*(mark[:, mark.shape[1] - tokens :] for mark in whole))

    def tokens(self, site: Site, hidden: Tensor, batch: Batch) -> Tokens:
        kinds = batch["kinds"]
        if hidden.ndim == 2 and len(hidden) == kinds.numel():  # experts get all tokens in one row
            shape = hidden.shape
            seen = self.tokens(site, hidden.view(*kinds.shape, -1), batch)
            return seen._replace(restore=lambda new: seen.restore(new).reshape(shape))
        fits = hidden.ndim == 3 and len(hidden) == len(kinds)
        # While it generates, a model runs the newest tokens only, and its head the last one only.
        fits = fits and (hidden.shape[1] == kinds.shape[1] or (self._generating and hidden.shape[1] < kinds.shape[1]))
        if not fits or "rotary" in site.path:
            raise NotTokens(
                f"site '{site}' passes {list(hidden.shape)} for {len(kinds)} rows of {kinds.shape[1]} tokens: "
                "choose the module around it."
            )
        seen = Tokens(hidden, kinds[:, kinds.shape[1] - hidden.shape[1] :], None, lambda new: new)
        return regrouped(seen, batch[INDEX]) if INDEX in batch else seen

    def _placed(self, batch: Batch) -> Batch:
        return super()._placed(self.marked(batch))

    def generate(self, batch: Batch, **options: Any) -> Any:
        """The library's own `generate`, greedy or sampling, with the edits in force for the prompt and for every new token.

        options: those of transformers, such as max_new_tokens. Gives what they make it give: as a rule, prompt and answer as token ids.
        Raises ValueError for a batch that is packed or padded on the right, and for beams.
        """
        batch = self._placed(batch)
        if INDEX in batch:
            raise ValueError("this batch is packed: load the model with sequence='per_sample' to generate.")
        if bool((batch["kinds"][:, -1] == KINDS.index("pad")).any()):
            raise ValueError("this batch is padded on the right: load the model with padding='left' to generate.")
        config: Any = options.get("generation_config") or self.module.generation_config
        chosen = {
            name: options.get(name, getattr(config, name, None)) or 1 for name in ("num_beams", "num_return_sequences")
        }
        if max(chosen.values()) > 1 or options.get("assistant_model") is not None:
            raise ValueError(
                "edits follow one continuation a row: generate without beams, and give a sample several times."
            )
        grown = _Grown(batch, self._special, _as_list(options.get("eos_token_id", config.eos_token_id)))
        outer, self._batch = self._batch, batch  # images may be seen before the first step

        def step(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
            self._batch = batch | grown.after(kwargs["input_ids"])

        hook = self.module.register_forward_pre_hook(step, with_kwargs=True)
        self._generating = True
        try:
            inputs = {name: value for name, value in self.inputs(batch).items() if name != "position_ids"}
            return self.module.generate(**inputs, **options)  # type: ignore[operator]
        finally:
            hook.remove()
            self._batch, self._generating = outer, False


def _numbers(batch: Batch) -> Float[Tensor, "rows length marks"]:
    """The marks of a batch's tokens as a site has them."""
    marks = torch.stack([batch[name].long() for name in LAYOUT_COLUMNS], dim=-1)
    if marks.numel() and int(marks.max()) > EXACT:
        raise ValueError(
            f"site '{LAYOUT}': a prompt has more than {EXACT} images or cells a side of one, more than a store keeps exactly: choose smaller images."
        )
    return marks.float()


class _Grown:
    """What is known of a prompt's tokens and of those generated so far, which all are of the answer."""

    def __init__(self, batch: Batch, special: Sequence[int], ends: Sequence[int]) -> None:
        self.marks = {name: batch[name] for name in ("input_ids", *MARKS)}
        self.special, self.begun, ids = special, False, batch["input_ids"]
        self.ends = torch.tensor(list(ends), dtype=ids.dtype, device=ids.device)
        self.over = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    def after(self, ids: Int[Tensor, "batch new"]) -> Batch:
        """ids: what the model gets now: the prompt first; then the newest tokens, or all of them where it keeps no cache."""
        known = self.marks["kinds"].shape[1]
        new = ids[:, known:] if ids.shape[1] >= known else ids
        if self.begun:
            for column in new[..., None].unbind(1):
                # Rows that have ended go on as padding until the last one ends.
                there = ~self.over[:, None]
                fresh = {
                    "input_ids": column,
                    "kinds": text_kinds(column, there, self.special),
                    "answer": there,
                } | dict.fromkeys(("image", "copy", "row", "column"), torch.full_like(column, NO_CELL))
                self.marks = {name: torch.cat([mark, fresh[name]], dim=1) for name, mark in self.marks.items()}
                self.over = self.over | torch.isin(column[:, 0], self.ends)
        self.begun = True
        return self.marks


class KindLoss(NamedTuple):
    mean: float
    """Nats a token."""
    tokens: int


def next_token_loss(logits: Float[Tensor, "rows length vocabulary"], batch: Batch) -> Float[Tensor, "rows length"]:
    """Cross-entropy of each token, in nats, given those before it in its row. NaN where nothing is predicted: first tokens, padding."""
    ids = batch["input_ids"].to(logits.device)
    mask = batch["attention_mask"].to(logits.device) != 0
    loss = torch.full(ids.shape, torch.nan, device=logits.device)
    told = nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    loss[:, 1:] = told.view(len(ids), -1)
    before = torch.zeros_like(mask)
    before[:, 1:] = mask[:, :-1]
    return loss.masked_fill(~(mask & before), torch.nan)


def loss_by_kind(
    loss: Float[Tensor, "rows length"], kinds: UInt8[Tensor, "rows length"], answer: Bool[Tensor, "rows length"]
) -> dict[str, KindLoss]:
    """Mean of `next_token_loss` over "all" tokens, over those of each kind that occurs, and over the "answer".

    kinds, answer: of the predicted tokens, batch["kinds"] and batch["answer"]. Image tokens are in the vocabulary by name only: their
    loss means nothing, and "all" leaves them out.
    """
    kinds, answer, there = kinds.to(loss.device), answer.to(loss.device), ~loss.isnan()
    chosen = {"all": kinds != KINDS.index("image"), "answer": answer}
    chosen |= {KINDS[number]: kinds == number for number in kinds.unique().tolist()}
    found = {name: loss[there & where] for name, where in chosen.items()}
    return {name: KindLoss(float(of.double().mean()), len(of)) for name, of in found.items() if len(of)}


def _as_list(ends: Any) -> list[int]:
    if ends is None:
        return []
    return [int(end) for end in ends] if isinstance(ends, Sequence | Tensor) else [int(ends)]
