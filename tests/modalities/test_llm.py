"""Tiny Llama and GPT-2 in their native format, and SmolLM2 with its real weights."""

import math
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import modalities
from modalities.base import KINDS
from modalities.causal import loss_by_kind, next_token_loss
from modalities.data import Sample, open_dataset
from modalities.gradients import Gradients
from vsae.interventions import Direction, Where

TEXTS = ["a red cat", "what is this ? a dog sits here .", "it"]
SIZES = {"vocab_size": 40, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
CHAT = "{% for m in messages %}{{ m.role }} : {{ m.content }} </s>{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
WIKITEXT = Path(__file__).resolve().parents[2] / "../shared/data/text/wikitext2_valid.txt"


def llama():
    return LlamaForCausalLM(
        LlamaConfig(
            **SIZES,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
        )
    )


def gpt2():
    return GPT2LMHeadModel(GPT2Config(**SIZES, n_embd=16, n_layer=3, n_head=4, n_positions=32))


@pytest.fixture(scope="module")
def directory(tmp_path_factory, tokenizer_of):
    """name -> a directory as `save_pretrained` writes it."""
    root = tmp_path_factory.mktemp("llm")
    for name, build in (("llama", llama), ("gpt2", gpt2)):
        torch.manual_seed(0)
        build().save_pretrained(root / name)
        tokenizer = tokenizer_of()
        tokenizer.chat_template = CHAT
        tokenizer.save_pretrained(root / name)
    return lambda name: str(root / name)


@pytest.fixture(scope="module")
def model(directory):
    return modalities.load("llm", directory("llama"), padding="left")


def names(kinds):
    return [[KINDS[kind] for kind in row] for row in kinds.tolist()]


def layers(model):
    return "model.layers" if "model.layers.0" in model.sites() else "transformer.h"


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_captured_is_the_librarys_own_hidden_states(directory, name, padding):
    model = modalities.load("llm", directory(name), padding=padding)
    batch = model.prepare(TEXTS)
    with torch.no_grad():
        told = model.module(**model.inputs(batch), output_hidden_states=True)
    at, norm = layers(model), "model.norm" if name == "llama" else "transformer.ln_f"
    sites = [f"{at}.0", f"{at}.1", f"{at}.0:input", f"{at}.2:input", norm, "lm_head"]
    got = model.activations(batch, sites)
    for site, hidden in zip(sites, [1, 2, 0, 2, 3], strict=False):
        assert torch.equal(got[site].values, told.hidden_states[hidden]), site
    assert torch.equal(got["lm_head"].values, told.logits)


def test_inside_a_layer_the_parts_add_up(model):
    batch = model.prepare(TEXTS)
    at = "model.layers.1"
    parts = (f"{at}:input", f"{at}.self_attn", f"{at}.self_attn.o_proj:input", f"{at}.mlp", f"{at}.mlp:input", at)
    found = model.activations(batch, parts)
    before, attention, heads, mlp, mlp_in, after = (found[part].values for part in parts)
    layer = model.module.model.layers[1]
    assert torch.equal(layer.self_attn.o_proj(heads), attention)
    assert torch.equal(layer.mlp(mlp_in), mlp)
    assert torch.equal(before + attention + mlp, after)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_padding_on_either_side_gives_the_same_activations(directory, name):
    left, right = (modalities.load("llm", directory(name), padding=side) for side in ("left", "right"))
    site = f"{layers(left)}.2"
    a, b = (m.activations(m.prepare(TEXTS), [site])[site] for m in (left, right))
    for row, length in enumerate([4, 10, 2]):
        torch.testing.assert_close(a.values[row, -length:], b.values[row, :length], atol=1e-5, rtol=1e-4)


def test_kinds_by_hand(directory, model):
    special, text, pad = "special", "text", "pad"
    batch = model.prepare(["a red cat", "it </s>"])
    assert names(model.activations(batch, ["model.layers.0"])["model.layers.0"].kinds) == [
        [special, text, text, text],
        [pad, special, text, special],
    ]
    right = modalities.load("llm", directory("llama"), padding="right", length=3)
    batch = right.prepare(["a red cat", "it"])
    assert names(right.layout(batch).kinds) == [[special, text, text], [special, text, pad]]
    assert right.layout(batch).ids.tolist()[1][2] == -1 and batch["input_ids"][1, 2] == 0
    assert (right.layout(batch).image == -1).all()


def test_the_end_mark_is_special_even_where_it_also_pads(directory):
    model = modalities.load("llm", directory("llama"))
    model.tokenizer.pad_token = "</s>"
    assert names(model.layout(model.prepare(["a </s>", "a red cat"])).kinds)[0] == ["special", "text", "special", "pad"]


def test_a_batch_made_by_hand_needs_only_ids(model):
    ids = torch.tensor([[2, 5, 6, 3]])
    with torch.no_grad():
        assert torch.equal(model.run({"input_ids": ids}).logits, model.module(input_ids=ids).logits)
    assert names(model.layout({"input_ids": ids}).kinds) == [["special", "text", "text", "special"]]


def test_packed_rows_hold_all_texts_and_give_each_its_own_activations(directory):
    model = modalities.load("llm", directory("llama"), sequence="pack", length=6)
    batch = model.prepare(["a red cat", "it", "no dog"])
    rows = [" ".join(model.tokenizer.convert_ids_to_tokens(row)) for row in batch["input_ids"].tolist()]
    assert rows == ["<s> a red cat </s> <s>", "it </s> <s> no dog </s>"]
    layout = model.layout(batch)
    assert layout.ids.tolist()[1] == [*model.tokenizer.convert_tokens_to_ids(["<s>", "it", "</s>"]), -1, -1]
    assert names(layout.kinds)[1] == ["special", "text", "special", "pad", "pad"]
    site = "model.layers.2"
    with torch.no_grad():
        rows = model.module(input_ids=batch["input_ids"], output_hidden_states=True).hidden_states[2]
    got = model.activations(batch, ["model.layers.1"])["model.layers.1"]
    assert torch.equal(got.values[0], rows[0, :5]) and torch.equal(got.kinds, layout.kinds)
    assert torch.equal(got.values[1, :3], torch.cat([rows[0, 5:], rows[1, :2]])) and not got.values[1, 3:].any()
    told = model.activations(batch, ["layout"])["layout"]
    assert torch.equal(told.kinds, layout.kinds) and told.values.shape == (*layout.kinds.shape, 5)
    bare = model.run(batch).logits
    with model.edit(site, lambda values, kinds: values):
        assert torch.equal(model.run(batch).logits, bare)
    with model.edit(site, lambda values, kinds: torch.cat([values[:2], values[2:] + 1])):
        changed = (model.run(batch).logits != bare).any(-1)
    assert changed.tolist() == [[False] * 6, [False, False, True, True, True, True]]  # the third text alone


def test_reading_is_transparent_and_stops_early(model):
    batch = model.prepare(TEXTS)
    bare = model.run(batch).logits
    ran = []
    hooks = [layer.register_forward_hook(lambda *_: ran.append(1)) for layer in model.module.model.layers]
    model.activations(batch, ["model.layers.1:input", "model.layers.0.mlp"])
    for hook in hooks:
        hook.remove()
    assert len(ran) == 1  # layer 0 was finished, layer 1 only begun
    with torch.no_grad():
        assert torch.equal(model.run(batch).logits, bare)
        assert torch.equal(model.module(**model.inputs(batch)).logits, bare)


SITES = [
    "model.layers.0",
    "model.layers.1:input",
    "model.layers.1.mlp",
    "model.layers.2.self_attn.o_proj:input",
    "lm_head",
]


@pytest.mark.parametrize(("site", "use_cache"), [*((site, True) for site in SITES), (SITES[1], False)])
def test_identity_is_bit_identical_and_zero_is_not_in_forward_and_generate(model, site, use_cache):
    batch = model.prepare(TEXTS)
    options = {
        "max_new_tokens": 3,
        "do_sample": False,
        "use_cache": use_cache,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    with torch.no_grad():
        bare = model.module.generate(batch["input_ids"], attention_mask=batch["attention_mask"], **options)
    logits = model.run(batch).logits
    with model.edit(site, lambda values, kinds: values):
        assert torch.equal(model.run(batch).logits, logits)
        same = model.generate(batch, **options)
    assert torch.equal(same.sequences, bare.sequences)
    assert all(torch.equal(a, b) for a, b in zip(same.logits, bare.logits, strict=True))
    with model.edit(site, lambda values, kinds: torch.zeros_like(values)):
        assert not torch.equal(model.run(batch).logits, logits)
        assert not torch.equal(model.generate(batch, **options).logits[-1], bare.logits[-1])


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_shows_the_edit_each_new_token_with_its_kind(model, use_cache):
    batch = model.prepare(["a red cat", "it"])
    end, dog = model.tokenizer.convert_tokens_to_ids(["</s>", "dog"])
    says = {4: (dog, end), 5: (dog, dog), 6: (dog, end), 7: (end, end)}  # length so far -> the next token of each row
    seen, length = [], [0]

    def watch(values, kinds):
        length[0] = values.shape[1] if values.shape[1] > 1 or not use_cache else length[0] + 1
        seen.append(names(kinds))
        return values

    def dictate(values, kinds):
        forced = torch.full_like(values, -100.0)
        forced[[0, 1], -1, list(says[length[0]])] = 100.0
        return forced

    with model.edit("model.layers.0", watch), model.edit("lm_head", dictate):
        out = model.generate(batch, max_new_tokens=4, do_sample=False, use_cache=use_cache)
    prompt = [["special", "text", "text", "text"], ["pad", "pad", "special", "text"]]
    new = [["text", "text", "text"], ["special", "pad", "pad"]]
    assert seen[0] == prompt and len(seen) == 4
    for step in range(3):
        told = (
            [[row[step]] for row in new] if use_cache else [a + b[: step + 1] for a, b in zip(prompt, new, strict=True)]
        )
        assert seen[step + 1] == told
    assert out[1, 4:].tolist() == [end, 0, 0, 0]


@pytest.mark.parametrize("use_cache", [True, False])
def test_an_edit_is_told_where_each_token_of_a_growing_answer_stands(model, use_cache):
    told = {"ids": [[], []], "position": [[], []], "answer": [[], []]}

    def watch(values, kinds, layout):
        assert layout.kinds.equal(kinds) and values.shape[:2] == layout.ids.shape
        for name, rows in told.items():
            for row, mark in zip(rows, getattr(layout, name).tolist(), strict=True):
                row[:] = mark if not use_cache else row + mark
        return values

    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "use_cache": use_cache}
    with model.edit("model.layers.1", watch):
        out = model.generate(model.prepare(["a red cat", "it"]), **options)
    assert told["position"] == [[0, 1, 2, 3, 4, 5, 6], [-1, -1, 0, 1, 2, 3, 4]]
    assert told["answer"] == [[False] * 4 + [True] * 3] * 2
    assert told["ids"][0] == out[0, :7].tolist()
    assert told["ids"][1] == [-1, -1, *out[1, 2:7].tolist()]


def test_a_place_in_the_prompt_is_edited_there_and_at_no_token_that_is_generated(model):
    """With a cache the newest token is alone in its row: it is not place 0."""
    reached = []
    first = Direction(torch.ones(16), where=Where(positions=(0,)), kind_names=KINDS)

    def watch(values, kinds, layout):
        new = first(values, kinds, layout=layout)
        reached.append((new != values).any(-1).nonzero().tolist())
        return new

    with model.edit("model.layers.1", watch):
        model.generate(model.prepare(["a red cat", "it"]), max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert reached == [[[0, 0], [1, 2]], [], []]
    answered = []
    only = Direction(torch.ones(16), where=Where(answer=True), kind_names=KINDS)
    with model.edit(
        "model.layers.1", lambda v, k, layout: answered.append(int((only(v, k, layout) != v).any(-1).sum())) or v
    ):
        model.generate(model.prepare(["a red cat", "it"]), max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert answered == [0, 2, 2]


def test_an_intervention_is_given_the_layout_by_the_model(directory):
    """Packed rows, too: place 0 of each text, wherever it lies in them."""
    texts = ["a red cat", "it", "this photo"]
    bare = modalities.load("llm", directory("llama"), sequence="pack", length=16)
    batch = bare.prepare(texts)
    assert bare.layout(batch).position.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, -1, -1], [0, 1, 2, 3, -1]]
    old = bare.activations(batch, ["model.layers.0"])["model.layers.0"].values
    with bare.edit("model.layers.0", Direction(torch.ones(16), where=Where(positions=(0,)), kind_names=KINDS)):
        new = bare.activations(batch, ["model.layers.0"])["model.layers.0"].values
    assert (new != old).any(-1).nonzero().tolist() == [[0, 0], [1, 0], [2, 0]]


def test_edits_end_with_their_context_also_after_an_exception(model):
    batch = model.prepare(TEXTS)
    bare = model.run(batch).logits

    def broken(values, kinds):
        raise RuntimeError("as planned")

    for run in (model.run, lambda b: model.generate(b, max_new_tokens=2)):
        with pytest.raises(RuntimeError, match="as planned"), model.edit("model.layers.1", broken):
            run(batch)
        assert torch.equal(model.run(batch).logits, bare)
    assert not model.module._forward_pre_hooks  # what follows the generated tokens is gone too
    model.generate(batch, max_new_tokens=2)
    assert torch.equal(model.activations(batch, ["lm_head"])["lm_head"].values, bare)


def test_experts_tokens_are_seen_in_their_rows(tmp_path, tokenizer_of):
    config = MixtralConfig(**SIZES, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
                           num_key_value_heads=2, num_local_experts=4, max_position_embeddings=32)  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    tokenizer_of().save_pretrained(tmp_path)
    model = modalities.load("llm", str(tmp_path))
    batch = model.prepare(TEXTS)
    gate = next(site for site in model.sites() if site.endswith("mlp.gate"))
    wide, flat = (
        model.activations(batch, [gate[: -len(".gate")] + ":input"]),
        model.activations(batch, [f"{gate}:input"]),
    )
    assert torch.equal(*(next(iter(found.values())).values for found in (wide, flat)))


def test_loss_is_the_librarys_and_is_told_by_kind(model):
    batch = model.prepare(["a red cat </s>", "it is a dog"])
    logits = model.run(batch).logits
    loss = next_token_loss(logits, batch)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[1, 0] = labels[0, 0] = -100  # neither <s> is predicted
    with torch.no_grad():
        whole = model.module(**model.inputs(batch), labels=labels).loss
    torch.testing.assert_close(loss[~loss.isnan()].mean(), whole)
    by = loss_by_kind(loss, batch["kinds"], batch["answer"])
    assert {name: one.tokens for name, one in by.items()} == {"all": 8, "text": 7, "special": 1}
    by_hand = -torch.log_softmax(logits[0, 3], -1)[3]
    assert by["special"].mean == pytest.approx(float(by_hand), rel=1e-5)


def test_gradients_of_the_loss_are_its_slopes_and_padding_has_none(model):
    batch = model.prepare(TEXTS)
    site = f"{layers(model)}.0"
    found = Gradients(model, "next_token").activations(batch, [site, f"{site}:gradient"])
    g, kinds = found[f"{site}:gradient"].values, found[site].kinds
    assert torch.equal(found[site].values, model.activations(batch, [site])[site].values)
    assert (g[kinds == KINDS.index("pad")] == 0).all() and (g[kinds == KINDS.index("text")] != 0).any()
    direction, totals = torch.randn_like(g), []
    for sign in (1, -1):
        with model.edit(site, lambda values, kinds, sign=sign: values + sign * 1e-3 * direction):
            totals.append(next_token_loss(model.run(batch).logits, batch).nansum())
    there = (kinds != KINDS.index("pad"))[:, :, None]
    torch.testing.assert_close((totals[0] - totals[1]) / 2e-3, (g * direction * there).sum(), rtol=2e-2, atol=1e-3)


def test_a_sure_model_loses_nothing_and_padding_is_not_counted():
    batch = {"input_ids": torch.tensor([[0, 0, 5, 6, 7]]), "attention_mask": torch.tensor([[0, 0, 1, 1, 1]])}
    logits = torch.zeros(1, 5, 10)
    logits[0, 2, 6] = 100.0
    loss = next_token_loss(logits, batch)
    assert loss.isnan().tolist() == [[True, True, True, False, False]]
    assert loss[0, 3].item() == pytest.approx(0, abs=1e-6) and loss[0, 4].item() == pytest.approx(math.log(10))


CONVERSATION = [
    {"role": "user", "content": "is it a cat ?"},
    {"role": "assistant", "content": "yes a cat ."},
    {"role": "user", "content": "yes a cat . what ?"},
    {"role": "assistant", "content": "cat"},
]


def test_the_chat_template_is_put_around_and_the_answers_are_marked(model):
    batch = model.prepare([CONVERSATION])
    tokens = model.tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    assert " ".join(tokens) == (
        "user : is it a cat ? </s> assistant : yes a cat . </s> user : yes a cat . what ? </s> assistant : cat </s>"
    )
    answer = batch["answer"][0].tolist()
    assert [place for place, mark in enumerate(answer) if mark] == [10, 11, 12, 13, 26]
    layout = model.layout(batch)
    assert layout.answer[0].tolist() == answer
    assert names(layout.kinds)[0][7] == "special" and names(layout.kinds)[0][8] == "text"


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        (CONVERSATION[:1], "user : is it a cat ? </s> assistant :"),
        (Sample("k", "p", extra={"prompt": "what ?", "answer": "cat"}), "user : what ? </s> assistant : cat </s>"),
        (Sample("k", "p", extra={"conversations": [{"from": "human", "value": "<image>\nwhat ?"}, {"from": "gpt", "value": "cat"}]}),
         "user : what ? </s> assistant : cat </s>"),
        (Sample("k", "p", captions=("a cat", "a dog")), "<s> a cat"),
        ("a cat", "<s> a cat"),
    ],
)  # fmt: skip
def test_what_a_sample_says(model, sample, said):
    assert " ".join(model.tokenizer.convert_ids_to_tokens(model.prepare([sample])["input_ids"][0])) == said


def test_a_plain_text_becomes_what_the_user_says_where_that_is_wanted(directory):
    model = modalities.load("llm", directory("llama"), chat=True)
    said = model.tokenizer.convert_ids_to_tokens(model.prepare(["a cat"])["input_ids"][0])
    assert " ".join(said) == "user : a cat </s> assistant :"


def test_provenance_is_the_models(directory, model):
    told = model.provenance
    assert told["family"] == "llm" and told["name"] == "llama" and told["pretrained"]
    assert told["weights"] == modalities.load("llm", directory("llama")).provenance["weights"]
    random = modalities.load("llm", directory("llama"), pretrained=False, seed=3)
    again = modalities.load("llm", directory("llama"), pretrained=False, seed=3)
    assert random.provenance == again.provenance and random.provenance["weights"] != told["weights"]


def test_smollm2_reads_wikitext_as_well_when_it_is_read(smollm2):
    corpus = open_dataset(WIKITEXT)
    documents = [text for index in range(20) if len(text := corpus.read(index).captions[0]) > 300][:2]
    batch = smollm2.prepare([text[:300] for text in documents])
    bare = smollm2.run(batch).logits
    got = smollm2.activations(batch, ["model.layers.15", "model.layers.29.self_attn.o_proj:input"])
    told = smollm2.module(**smollm2.inputs(batch), output_hidden_states=True)
    assert torch.equal(got["model.layers.15"].values, told.hidden_states[16])
    with smollm2.edit("model.layers.15", lambda values, kinds: values):
        edited = smollm2.run(batch).logits
    losses = [
        loss_by_kind(next_token_loss(logits, batch), batch["kinds"], batch["answer"]) for logits in (bare, edited)
    ]
    assert losses[0] == losses[1] and torch.equal(bare, told.logits)
    assert 10 < math.exp(losses[0]["all"].mean) < 40  # what such a model has on WikiText; 49,152 would be chance
    with smollm2.edit("model.layers.15", lambda values, kinds: torch.zeros_like(values)):
        lost = next_token_loss(smollm2.run(batch).logits, batch)
    assert loss_by_kind(lost, batch["kinds"], batch["answer"])["all"].mean > losses[0]["all"].mean + 1


def test_smollm2_answers_and_is_steered_while_it_does(smollm2):
    batch = smollm2.prepare([[{"role": "user", "content": "What is the capital of France?"}]])
    tokens = batch["input_ids"].shape[1]
    said = smollm2.tokenizer.decode(smollm2.generate(batch, max_new_tokens=10, do_sample=False)[0, tokens:])
    assert "Paris" in said
    rows = []

    def far(values, kinds):
        rows.append(values.shape[1])
        return values + 20 * torch.ones(576)

    with smollm2.edit("model.layers.20", far):
        other = smollm2.tokenizer.decode(smollm2.generate(batch, max_new_tokens=4, do_sample=False)[0, tokens:])
    assert "Paris" not in other and rows == [tokens, 1, 1, 1]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"sequence": "rows"}, ValueError, "sequence is 'rows': choose one of per_sample, pack"),
        ({"padding": "both"}, ValueError, "padding is 'both': choose 'left' or 'right'"),
        ({"length": 33}, ValueError, "length is 33: choose 1 to 32"),
        ({"gguf_file": "x.gguf"}, FileNotFoundError, "holds no x.gguf: it holds no .gguf file"),
    ],
)
def test_options_that_are_wrong(directory, options, error, words):
    with pytest.raises(error, match=words):
        modalities.load("llm", directory("llama"), **options)


def test_models_that_cannot_be_had(tmp_path, directory):
    with pytest.raises(OSError, match=r"cannot load nobody/nothing \(no connection to the hub"):
        modalities.load("llm", "nobody/nothing")
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        modalities.load("llm", str(tmp_path / "absent"))
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"holds 2 \.gguf files: choose one, as in gguf_file='a.gguf'"):
        modalities.load("llm", str(tmp_path))
    with pytest.raises(OSError, match="cannot load"):
        modalities.load("llm", str(tmp_path / "a.gguf"))


def test_mistakes_in_use(directory, model):
    with pytest.raises(
        ValueError, match="the text has 41 tokens, more than the model's 32: load the model with length=32"
    ):
        model.prepare(["cat " * 40])
    with pytest.raises(ValueError, match="sample 'k' has no text"):
        model.prepare([Sample("k", "p")])
    with pytest.raises(ValueError, match="sample 'k' has a message with role None"):
        model.prepare([Sample("k", "p", extra={"messages": [{"text": "hello"}]})])
    with pytest.raises(ValueError, match=r"no site 'model.language_model.layers.1'; the nearest are 'model.layers"):
        model.activations(model.prepare(TEXTS), ["model.language_model.layers.1"])
    right = modalities.load("llm", directory("llama"))
    with pytest.raises(ValueError, match="padded on the right: load the model with padding='left'"):
        right.generate(right.prepare(TEXTS), max_new_tokens=2)
    packed = modalities.load("llm", directory("llama"), sequence="pack")
    with pytest.raises(ValueError, match="packed: load the model with sequence='per_sample'"):
        packed.generate(packed.prepare(TEXTS), max_new_tokens=2)
    with pytest.raises(ValueError, match="without beams"):
        model.generate(model.prepare(TEXTS), num_beams=2, max_new_tokens=2)


def test_a_model_of_another_kind_and_one_without_a_template(tmp_path, tokenizer_of):
    from transformers import ViTConfig, ViTModel

    ViTModel(
        ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a vit, no causal language model: load it with its own family"):
        modalities.load("llm", str(tmp_path))
    llama().save_pretrained(tmp_path)
    tokenizer_of().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no chat template"):
        modalities.load("llm", str(tmp_path), chat=True)
    with pytest.raises(ValueError, match="the conversation does not suit the model's chat template"):
        modalities.load("llm", str(tmp_path)).prepare([CONVERSATION])
