"""The four verbs, on a model small enough to work out by hand."""

from collections import namedtuple

import pytest
import torch
from torch import nn

from modalities.base import KINDS, ActivationModel, NotTokens, Tokens
from modalities.sites import Site, hidden_state, replaced

Pair = namedtuple("Pair", "hidden rest")


class Double(nn.Module):
    def forward(self, x):
        return 2 * x


class AddInPlace(nn.Module):
    def forward(self, x):
        return x.add_(1)


class TupleOf(nn.Module):
    def forward(self, x, scale):
        return Pair(x * scale, None)


class Net(nn.Module):
    """x -> 2x -> (in place) 2x + 1 -> 3 (2x + 1) -> twice doubled by one shared module -> mean over tokens."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.twice = Double()
        self.add = AddInPlace()
        self.triple = TupleOf()
        self.shared = Double()
        self.unused = Double()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.last = nn.Identity()

    def forward(self, x):
        x = self.triple(scale=3, x=self.add(self.twice(x))).hidden
        x = self.shared(self.shared(x))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.last(x).mean(1)


class Model(ActivationModel):
    def __init__(self):
        super().__init__(Net(), {}, {"x": torch.zeros(2, 3, 4)})

    def prepare(self, samples):
        return {"x": torch.stack(list(samples))}

    def forward(self, batch):
        return self.module(batch["x"])

    def tokens(self, site, hidden, batch):
        if hidden.ndim != 3:
            raise NotTokens("no tokens")
        return Tokens(hidden, torch.full(hidden.shape[:2], 4, dtype=torch.uint8), None, lambda new: new)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Model()


@pytest.fixture(scope="module")
def batch():
    return {"x": torch.arange(24.0).reshape(2, 3, 4)}


def test_values_are_what_one_computes_by_hand(model, batch):
    x = batch["x"]
    read = model.activations(batch, ["twice:input", "twice", "add", "triple", "triple:input"])
    assert torch.equal(read["twice:input"].values, x)
    # `add` works in place on what `double` gave: the copy must not follow.
    assert torch.equal(read["twice"].values, 2 * x)
    assert torch.equal(read["add"].values, 2 * x + 1)
    assert torch.equal(read["triple:input"].values, 2 * x + 1)
    assert torch.equal(read["triple"].values, 3 * (2 * x + 1))
    assert KINDS[int(read["add"].kinds[0, 0])] == "text"


def test_what_was_read_can_be_trained_on(model, batch):
    values = model.activations(batch, ["twice"])["twice"].values
    weight = torch.ones(4, requires_grad=True)
    (values @ weight).sum().backward()
    assert torch.equal(weight.grad, values.sum((0, 1)))


def test_sites_are_the_modules_passed_once(model):
    sites = model.sites()
    assert {"twice", "add", "triple", "attention", "last"} == set(sites)
    assert sites["twice"] == (3, 4)


def test_the_pass_stops_after_the_deepest_site(model, batch):
    fired = []
    hooks = [
        place.register_forward_hook(lambda *_, n=n: fired.append(n)) for n, place in model.module.named_modules() if n
    ]
    model.activations(batch, ["twice", "add:input"])
    assert fired == ["twice"]
    for hook in hooks:
        hook.remove()


def test_reading_leaves_no_hook_behind_and_changes_nothing(model, batch):
    bare = model.module(batch["x"].clone())
    model.activations(batch, ["triple"])
    assert torch.equal(model.run(batch), bare)
    assert not any(place._forward_hooks or place._forward_pre_hooks for place in model.module.modules())


@pytest.mark.parametrize(
    "site", ["twice", "twice:input", "triple", "attention:input", "attention", "attention.out_proj:input"]
)
def test_identity_edit_is_identical_to_the_bit(model, batch, site):
    with torch.no_grad():
        bare = model.module(batch["x"].clone())
    with model.edit(site, lambda values, kinds: values.clone()):
        assert torch.equal(model.run(batch), bare)


@pytest.mark.parametrize(
    "site", ["twice", "twice:input", "triple", "attention:input", "attention", "attention.out_proj:input"]
)
def test_zeroing_edit_changes_the_output_and_ends_with_its_context(model, batch, site):
    bare = model.run(batch)
    with model.edit(site, lambda values, kinds: values.zero_()):
        assert not torch.equal(model.run(batch), bare)
    assert torch.equal(model.run(batch), bare)


def test_an_edit_is_seen_by_deeper_sites_and_by_readers_of_its_own(model, batch):
    with model.edit("twice", lambda values, kinds: values + 10):
        read = model.activations(batch, ["twice", "triple"])
    assert torch.equal(read["twice"].values, 2 * batch["x"] + 10)
    assert torch.equal(read["triple"].values, 3 * (2 * batch["x"] + 11))


def test_edits_nest_the_outer_first(model, batch):
    with (
        model.edit("twice", lambda v, k: v + 1),
        model.edit("twice", lambda v, k: v * 5),
        model.edit("add:input", lambda v, k: v - 2),
    ):
        values = model.activations(batch, ["add"])["add"].values
    assert torch.equal(values, (2 * batch["x"] + 1) * 5 - 2 + 1)


def test_an_edit_in_place_does_not_reach_the_callers_tensor(model, batch):
    before = batch["x"].clone()
    with model.edit("twice:input", lambda values, kinds: values.mul_(0)):
        model.run(batch)
    assert torch.equal(batch["x"], before)


def test_gradients_run_from_an_edit_to_the_output(model, batch):
    push = torch.zeros(4, requires_grad=True)
    with model.edit("triple", lambda values, kinds: values + push):
        (gradient,) = torch.autograd.grad(model.run(batch, gradients=True).sum(), push)
    assert (gradient != 0).all() and model.module.weight.grad is None
    assert torch.equal(model.activations(batch, ["twice"])["twice"].values, 2 * batch["x"])


def test_a_pass_that_run_did_not_start_says_so(model, batch):
    with model.edit("twice", lambda v, k: v), pytest.raises(ValueError, match=r"call model\.run"):
        model.module(batch["x"])


def test_an_edit_is_removed_after_an_exception(model, batch):
    bare = model.run(batch)
    with pytest.raises(RuntimeError, match="mine"), model.edit("twice", lambda v, k: v * 0):
        raise RuntimeError("mine")
    with pytest.raises(ZeroDivisionError), model.edit("twice", lambda v, k: 1 / 0):
        model.run(batch)
    assert torch.equal(model.run(batch), bare)
    assert model._batch == {}


def test_heads_are_what_out_proj_would_get(model, batch):
    heads = model.activations(batch, ["attention.out_proj:input"])["attention.out_proj:input"].values
    output = model.activations(batch, ["attention"])["attention"].values
    projected = model.module.attention.out_proj(heads)
    torch.testing.assert_close(projected, output, atol=1e-5, rtol=1e-5)
    query = model.activations(batch, ["attention:input"])["attention:input"].values
    weights = model.module.attention(query, query, query, average_attn_weights=False)[1]
    value = nn.functional.linear(
        query, model.module.attention.in_proj_weight[8:], model.module.attention.in_proj_bias[8:]
    )
    by_hand = torch.einsum("bhqk,bkhd->bqhd", weights, value.unflatten(2, (2, 2))).flatten(2)
    torch.testing.assert_close(heads, by_hand, atol=1e-4, rtol=1e-5)


def test_an_edit_of_the_heads_goes_through_out_proj(model, batch):
    bare = model.activations(batch, ["attention"])["attention"].values
    with model.edit("attention.out_proj:input", lambda v, k: v + 1):
        moved = model.activations(batch, ["attention"])["attention"].values
    expected = bare + model.module.attention.out_proj.weight.sum(1)
    torch.testing.assert_close(moved, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("site", "sentence"),
    [
        ("twcie", "no site 'twcie'; the nearest are 'twice'"),
        ("", "no site ''"),
        ("shared", "'shared' is called 2 times in one pass"),
        ("unused", "'unused' is called never in one pass"),
        ("twice:inside", "side 'inside'"),
        ("attention.out_proj", "'attention.out_proj:input' for the heads"),
    ],
)
def test_a_wrong_site_gives_one_sentence(model, batch, site, sentence):
    for use in (lambda: model.activations(batch, [site]), lambda: model.edit(site, lambda v, k: v).__enter__()):
        with pytest.raises(ValueError, match=sentence) as error:
            use()
        assert "\n" not in str(error.value)


def test_an_edit_that_changes_the_shape_is_refused(model, batch):
    with pytest.raises(ValueError, match="keep the shape"), model.edit("twice", lambda v, k: v[:, :1]):
        model.run(batch)


def test_sites_read_as_they_are_written():
    assert Site.parse("a.0") == Site.parse("a.0:output") == ("a.0", "output")
    assert str(Site.parse("a.0:input")) == "a.0:input" and str(Site.parse("a.0:output")) == "a.0"


def test_hidden_states_are_found_and_exchanged_wherever_they_are():
    from transformers.modeling_outputs import BaseModelOutput

    old, other, new = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)
    for value in (
        old,
        (old, other),
        [None, old],
        Pair(old, other),
        {"a": old, "b": other},
        BaseModelOutput(last_hidden_state=old),
    ):
        assert hidden_state(value) is old
        changed = replaced(value, old, new)
        assert type(changed) is type(value) and hidden_state(changed) is new
    assert replaced((old, old, other), old, new) == (new, new, other)
    assert hidden_state((None, 3)) is None
