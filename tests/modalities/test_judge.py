"""What a judge finds likely, against the plain way: every question with every answer run on its own."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import modalities
from modalities.judge import Asked, Judge, sample
from modalities.llm import LanguageModel

CHAT = "{% for m in messages %}{{ m.role }} : {{ m.content }} </s>{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"


@pytest.fixture(scope="module", params=["left", "right"])
def model(request, tmp_path_factory, tokenizer_of):
    path = tmp_path_factory.mktemp("judge")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    marks = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    LlamaForCausalLM(LlamaConfig(vocab_size=40, max_position_embeddings=48, **sizes, **marks)).save_pretrained(path)
    tokenizer = tokenizer_of()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(path)
    return modalities.load("llm", str(path), padding=request.param)


def alone(model, asked):
    """log p of each answer's tokens given all before them, summed."""
    found = []
    for option in asked.options:
        batch = model.prepare([sample(asked, option)])
        with torch.no_grad():
            logits = model.module(**model.inputs(batch)).logits[0].double().log_softmax(1)
        places = batch["answer"][0].nonzero()[:, 0].tolist()
        found.append(sum(float(logits[at - 1, batch["input_ids"][0, at]]) for at in places))
    return np.array(found)


ASKED = [
    Asked("is a cat red ?", ("yes", "no")),
    Asked("what is this ? a photo shows a dog and a cat .", ("a dog", "a cat", "it")),
    Asked("what sits here ?", ("cat", "dog", "it")),
    Asked("is it blue ?", ("yes", "no no")),
    Asked("a dog ?", ("yes",)),
]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_choices_are_sums_of_the_answers_tokens_in_any_batch(model, batch_size):
    got = Judge(model, batch_size).choose(ASKED)
    assert [len(each) for each in got] == [2, 3, 3, 2, 1]
    for each, asked in zip(got, ASKED, strict=True):
        np.testing.assert_allclose(each, alone(model, asked), atol=1e-5)


def test_answers_of_one_token_take_one_row_together(model, monkeypatch):
    rows, run = [], model.run
    monkeypatch.setattr(model, "run", lambda batch: rows.append(len(batch["input_ids"])) or run(batch))
    Judge(model).choose(ASKED)
    assert rows == [3, 5]  # three questions whose answers are a token each; three answers and two, one by one


def test_a_prompt_that_leaves_no_answer_is_refused(model):
    short = LanguageModel(model.module, model.provenance, model.tokenizer, length=6)
    with pytest.raises(ValueError, match="leaves no token of the answer"):
        Judge(short).choose(ASKED[:1])
