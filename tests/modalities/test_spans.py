"""Spans of a text's tokens, against what the model itself read of it."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import modalities
from modalities.spans import spans_of

TEXT = "what is  this ? a dog sits here"


@pytest.fixture(scope="module")
def directory(tmp_path_factory, tokenizer_of):
    path = tmp_path_factory.mktemp("spans")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=40, max_position_embeddings=32, **sizes)).save_pretrained(path)
    tokenizer_of().save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("options", [{}, {"length": 4}, {"sequence": "pack", "length": 4}])
def test_a_span_is_the_word_of_the_token_that_was_read(directory, options):
    model = modalities.load("llm", directory, **options)
    ids = model.layout(model.prepare([TEXT])).ids[0].tolist()
    spans = spans_of(directory, model.provenance["sequence"])(TEXT)
    want = ["", *TEXT.split()][: 4 if options == {"length": 4} else None]
    assert [TEXT[begin:end] for begin, end in spans] == want
    assert model.tokenizer.convert_ids_to_tokens(ids[: len(want)])[1:] == want[1:]


def test_what_cannot_be_shown_is_refused(directory, tmp_path):
    with pytest.raises(ValueError, match="in a chat template"):
        spans_of(directory, {"chat": True})
    with pytest.raises(OSError, match="cannot load"):
        spans_of(str(tmp_path), {"chat": False})
