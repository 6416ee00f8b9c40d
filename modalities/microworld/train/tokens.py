"""Small tokenizers over the microworld's own words, in the formats of their real relatives.

Byte-level BPE learned from every sentence the world can make, so that each of its words is one token and any other text still has tokens.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ..attributes import VALUES, WORDS
from ..captions import choose, everything, say
from ..questions import ask
from ..scenes import World, draw
from ..tables import table


def sentences(n: int = 4000) -> Iterator[str]:
    """Captions and questions of scenes with every value, the held-out ones too."""
    world = World(
        shapes=VALUES["shape"], colours=VALUES["colour"], textures=VALUES["texture"], backgrounds=VALUES["background"]
    )
    scenes, rng = draw(n, seed=99, world=world), np.random.default_rng(99)
    for row in range(n):
        facts = table(scenes, row)
        yield say(choose(facts, rng), rng)
        yield say(everything(facts), rng)
        yield ask(facts, rng).text.replace("?", " ?")
        yield " ".join(word for values in WORDS.values() for words in values.values() for word in words)
        yield "USER: describe the picture. ASSISTANT: yes no"


@cache
def clip_tokenizer(context: int):
    """A `CLIPTokenizer` of a thousand tokens; end of text is the largest id, as in the original; padding is id 0. Learnt once a run."""
    from transformers import CLIPTokenizer

    letters = pre_tokenizers.ByteLevel.alphabet()
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=1000, end_of_word_suffix="</w>", initial_alphabet=letters, show_progress=False, limit_alphabet=256
    )
    learner.train_from_iterator(sentences(), trainer)
    merges: Any = [tuple(pair) for pair in _merges(learner)]
    words = sorted(letters) + [letter + "</w>" for letter in sorted(letters)] + [a + b for a, b in merges]
    ids = {token: i for i, token in enumerate(dict.fromkeys(["<|pad|>", *words, "<|startoftext|>", "<|endoftext|>"]))}
    return CLIPTokenizer(vocab=ids, merges=merges, pad_token="<|pad|>", model_max_length=context)


def save_clip_tokenizer(tokenizer, directory: Path) -> None:
    """tokenizer.json and the older vocab.json and merges.txt, so that every version of the libraries reads it."""
    tokenizer.save_pretrained(directory)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (directory / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), "utf-8")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", "utf-8")


def chat_tokenizer():
    """A byte-level tokenizer with `<image>`, `<s>`, `</s>` and `<pad>`, for the language model of the tiny LLaVA."""
    from transformers import PreTrainedTokenizerFast

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<pad>", "<s>", "</s>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(sentences(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=learner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        model_max_length=256,
        padding_side="left",
    )


def _merges(learner: Tokenizer) -> list[list[str]]:
    merges = json.loads(learner.to_str())["model"]["merges"]
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
