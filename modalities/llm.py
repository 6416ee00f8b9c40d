"""Causal language models of transformers, from safetensors or GGUF.

    load("llm", "HuggingFaceTB/SmolLM2-135M-Instruct")     a hub name
    load("llm", "path/to/directory")                       config.json and safetensors, or one .gguf file
    load("llm", "path/to/model.gguf")

Sites are the model's own module paths; in Llama and its kind:

    model.layers.7                       residual stream after layer 7; ":input": before it
    model.layers.7.mlp                   what the MLP adds; ":input": what it gets
    model.layers.7.self_attn             what the attention adds
    model.layers.7.self_attn.o_proj:input    the heads' outputs, concatenated
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from modalities.base import Batch
from modalities.causal import INDEX, CausalModel
from modalities.chat import conversation, render, text_only
from modalities.layout import padded, positions, rows_of_counts
from modalities.loading import config_commit, loading, local_dir, placed, provenance

SEQUENCES = ("per_sample", "pack")


class Said(NamedTuple):
    ids: Int[Tensor, "length"]
    answer: Bool[Tensor, "length"]


class LanguageModel(CausalModel):
    """A causal language model. `run` gives transformers' own output, with the logits.

    sequence: "per_sample": each sample is a row, cut after `length` tokens. "pack": the samples of a batch, one after the other with
    the end mark between them, cut into rows of `length` tokens; each sample's activations are in its own row all the same, but it
    was read in the context of those before it, as in pre-training (FAST, arXiv 2506.07691, compares both).
    chat: whether a plain text is put into the chat template as what the user says. Conversations always are.
    """

    def __init__(
        self,
        module: nn.Module,
        provenance: dict[str, Any],
        tokenizer: Any,
        *,
        sequence: str = "per_sample",
        length: int | None = None,
        padding: str = "right",
        chat: bool = False,
        chat_template: str | None = None,
    ) -> None:
        self.limit = context_limit(module)
        self.sequence, self.length, self.padding = sequence, length, padding
        self._chat, self._template = chat, chat_template
        ids = torch.zeros(2, 4, dtype=torch.int64)
        super().__init__(module, provenance, tokenizer, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def prepare(self, samples: Sequence[Any]) -> Batch:
        """Texts, conversations or Samples (see `modalities.chat`), tokenised. Images are left out.

        Raises ValueError, naming the sample, for one that says nothing or is longer than the model's context.
        """
        said = [self._said(sample) for sample in samples]
        return self._packed(said) if self.sequence == "pack" else self._rows(said)

    def _rows(self, said: Sequence[Said]) -> Batch:
        fill = filler(self.tokenizer)
        mask = padded([torch.ones_like(one.ids) for one in said], self.padding, 0)
        batch = {"input_ids": padded([one.ids for one in said], self.padding, fill), "attention_mask": mask}
        if self.padding == "left":
            batch["position_ids"] = positions(mask)
        return self.marked(batch | {"answer": padded([one.answer for one in said], self.padding, False)})

    def _packed(self, said: Sequence[Said]) -> Batch:
        assert self.length is not None
        end = self.tokenizer.eos_token_id
        between = Said(
            torch.tensor([] if end is None else [end], dtype=torch.int64),
            torch.zeros(int(end is not None), dtype=torch.bool),
        )
        ends = [
            between if end is not None and int(one.ids[-1]) != end else Said(one.ids[:0], one.answer[:0])
            for one in said
        ]
        pieces = [
            Said(torch.cat([one.ids, stop.ids]), torch.cat([one.answer, stop.answer]))
            for one, stop in zip(said, ends, strict=True)
        ]
        ids, answer = torch.cat([one.ids for one in pieces]), torch.cat([one.answer for one in pieces])
        rows = [torch.ones_like(row) for row in ids.split(self.length)]
        batch = {
            "input_ids": padded(list(ids.split(self.length)), "right", filler(self.tokenizer)),
            "attention_mask": padded(rows, "right", 0),
            "answer": padded(list(answer.split(self.length)), "right", False),
            # Rows are full but for the last, so that a token's place in the text is its place in the rows.
            INDEX: rows_of_counts([[len(one.ids)] for one in pieces]),
        }
        return self.marked(batch)

    def _said(self, sample: Any) -> Said:
        said = conversation(sample)
        answers: list[tuple[int, int]] = []
        if said.plain and not self._chat:
            text = said.turns[0].parts[0]["text"]
        else:
            text, answers = render(said.name, said.turns, self._through_template)
        encoded = self.tokenizer(
            text,
            add_special_tokens=said.plain and not self._chat,
            return_offsets_mapping=bool(answers),
            verbose=False,
        )
        ids = torch.tensor(encoded["input_ids"], dtype=torch.int64)
        if not len(ids):
            raise ValueError(f"{said.name} has no tokens: give it a text.")
        answer = within(encoded["offset_mapping"], answers) if answers else torch.zeros(len(ids), dtype=torch.bool)
        if self.sequence == "per_sample":
            check_length(said.name, len(ids), self.length, self.limit)
            ids, answer = ids[: self.length], answer[: self.length]
        return Said(ids, answer)

    def _through_template(self, messages: list[dict[str, Any]], is_open: bool) -> str:
        return self.tokenizer.apply_chat_template(
            text_only(messages), chat_template=self._template, tokenize=False, add_generation_prompt=is_open
        )


def load(
    name: str,
    *,
    gguf_file: str | None = None,
    revision: str | None = None,
    sequence: str = "per_sample",
    length: int | None = None,
    padding: str = "right",
    chat: bool = False,
    chat_template: str | None = None,
    pretrained: bool = True,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> LanguageModel:
    """A causal language model from the hub, a directory or a .gguf file.

    gguf_file: the one to take, in a repository or a directory with several.
    sequence, chat: see `LanguageModel`. chat_template: Jinja, in place of the tokenizer's own.
    length: cut samples after so many tokens; None: a sample that is longer than the model's context is an error. With "pack", the
        length of a row; None: the context, at most 2048.
    padding: "right", or "left", which generation needs.
    pretrained: False takes random weights drawn from `seed`, which the provenance says.
    device, dtype: where and in what the model runs; None keeps the library's choice.

    Raises FileNotFoundError, OSError (cannot be had or read) or ValueError (unknown option, another family), each one sentence.
    """
    if sequence not in SEQUENCES:
        raise ValueError(f"sequence is {sequence!r}: choose one of {', '.join(SEQUENCES)}.")
    check_padding(padding)
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source, gguf_file = gguf_of(name, gguf_file)
    told: dict[str, Any] = {"revision": revision} if revision else {}
    told |= {"gguf_file": gguf_file} if gguf_file else {}
    with loading(name, seed):
        config = AutoConfig.from_pretrained(source, **told)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ValueError(
            f"{name} is a {config.model_type}, no causal language model: load it with its own family, as load('llava', ...)."
        )
    with loading(name, seed):
        module = (
            AutoModelForCausalLM.from_pretrained(source, **told)
            if pretrained
            else AutoModelForCausalLM.from_config(config)
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **told)
    limit = context_limit(module)
    if sequence == "pack" and length is None:
        length = min(limit or 2048, 2048)
    check_limit(length, limit)
    if (chat or chat_template) and not (chat_template or tokenizer.chat_template):
        raise ValueError(f"{name} has no chat template: leave chat out, or give chat_template=...")
    record = provenance(
        "llm",
        "transformers",
        name,
        module,
        revision=revision or config_commit(config, name),
        seed=None if pretrained else seed,
        preprocessing={"tokenizer": type(tokenizer).__name__, "vocabulary": len(tokenizer)},
        dtype=dtype,
    ) | {
        "sequence": {
            "policy": sequence,
            "length": length,
            "padding": padding,
            "chat": chat,
            "chat_template": chat_template,
        }
    }
    return LanguageModel(
        placed(module, device, dtype),
        record,
        tokenizer,
        sequence=sequence,
        length=length,
        padding=padding,
        chat=chat,
        chat_template=chat_template,
    )


def gguf_of(name: str, gguf_file: str | None) -> tuple[str, str | None]:
    """Where transformers is to look, and for which .gguf file; safetensors are preferred where both are.

    Raises FileNotFoundError or ValueError for a file that is not there, or several to choose from.
    """
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return str(path.parent), path.name
    directory = local_dir(name)
    if directory is None:
        return name, gguf_file
    found = sorted(file.name for file in directory.glob("*.gguf"))
    if gguf_file is not None:
        if gguf_file not in found:
            raise FileNotFoundError(
                f"{directory} holds no {gguf_file}: it holds {', '.join(found) or 'no .gguf file'}."
            )
        return str(directory), gguf_file
    if (directory / "config.json").is_file() or not found:
        return str(directory), None
    if len(found) > 1:
        raise ValueError(f"{directory} holds {len(found)} .gguf files: choose one, as in gguf_file={found[0]!r}.")
    return str(directory), found[0]


def context_limit(module: Any) -> int | None:
    """Tokens a model can take, or None where its configuration names no limit."""
    limit = getattr(module.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else None


def check_limit(length: int | None, limit: int | None) -> None:
    if length is not None and not (isinstance(length, int) and 1 <= length <= (limit or length)):
        raise ValueError(f"length is {length!r}: choose 1 to {limit or 'any'}, the model's context in tokens.")


def check_padding(padding: str) -> None:
    if padding not in ("left", "right"):
        raise ValueError(f"padding is {padding!r}: choose 'left' or 'right'.")


def check_length(name: str, count: int, length: int | None, limit: int | None) -> None:
    """Raises ValueError for a sample that nobody allowed to be cut and that the model cannot take."""
    if length is None and limit is not None and count > limit:
        raise ValueError(
            f"{name} has {count} tokens, more than the model's {limit}: load the model with length={limit} to cut it."
        )


def filler(tokenizer: Any) -> int:
    """Token id for padding: any does, since the attention mask says what is padding."""
    return next((one for one in (tokenizer.pad_token_id, tokenizer.eos_token_id) if one is not None), 0)


def within(offsets: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]]) -> Bool[Tensor, "length"]:
    """Which tokens, given as [begin, end) in characters, share a character with one of the spans."""
    return torch.tensor(
        [any(begin < end_ and end > begin_ and end > begin for begin_, end_ in spans) for begin, end in offsets]
    )
