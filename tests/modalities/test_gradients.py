"""Activation gradients: against autograd on the bare model and against differences; activations beside them are untouched."""

import pytest
import torch

import modalities
from modalities.gradients import Gradients
from modalities.several import Several

SITES = ["blocks.0", "blocks.1"]


@pytest.fixture(scope="module")
def vit():
    return modalities.load("vision", "vit_tiny_patch16_224", pretrained=False, seed=3, img_size=32)


def test_both_sites_have_the_gradient_of_the_bare_model(vit):
    x = torch.randn(2, 3, 32, 32)
    found = Gradients(vit, "logit").activations({"image": x}, [*SITES, *(f"{site}:gradient" for site in SITES)])
    plain = vit.activations({"image": x}, SITES)
    seen = {}
    hooks = [
        vit.module.get_submodule(site).register_forward_hook(
            lambda _m, _i, out, site=site: (out.retain_grad(), seen.update({site: out}))[0]
        )
        for site in SITES
    ]
    vit.module(x).amax(1).sum().backward()
    for hook in hooks:
        hook.remove()
    vit.module.zero_grad(set_to_none=True)
    for site in SITES:
        assert torch.equal(found[site].values, plain[site].values)
        torch.testing.assert_close(found[f"{site}:gradient"].values, seen[site].grad)
        assert torch.equal(found[f"{site}:gradient"].kinds, plain[site].kinds)
        assert found[f"{site}:gradient"].grid == plain[site].grid
    assert all(p.grad is None for p in vit.module.parameters())


def test_it_is_the_slope_of_the_logit_and_each_sample_its_own(vit):
    x = torch.randn(3, 3, 32, 32)
    reader = Gradients(vit, "logit", class_index=7)
    g = reader.activations({"image": x}, ["blocks.5:gradient"])["blocks.5:gradient"].values
    direction, eps = torch.randn_like(g), 1e-2
    logits = []
    for sign in (1, -1):
        with vit.edit("blocks.5", lambda values, kinds, sign=sign: values + sign * eps * direction):
            logits.append(vit.run({"image": x})[:, 7])
    torch.testing.assert_close((logits[0] - logits[1]) / (2 * eps), (g * direction).sum((1, 2)), rtol=2e-2, atol=2e-3)
    alone = reader.activations({"image": x[1:2]}, ["blocks.5:gradient"])["blocks.5:gradient"].values
    torch.testing.assert_close(g[1:2], alone, rtol=1e-3, atol=1e-6)


def test_mistakes_are_sentences(vit):
    headless = modalities.load("vision", "vit_small_patch14_dinov2", pretrained=False, img_size=28)
    for make, sentence in (
        (lambda: Gradients(vit, "loss"), "there is no scalar 'loss'"),
        (lambda: Gradients(headless, "logit"), "no classifier"),
        (lambda: Gradients(vit, "contrastive"), "no captions to compare with"),
        (lambda: Gradients(vit, "next_token"), "no next token"),
        (lambda: Gradients(vit, "logit", 1000).gradients({"image": torch.zeros(1, 3, 32, 32)}, SITES), "class 1000"),
        (lambda: Gradients(Several({"": vit}), "logit"), "one model at a time"),
    ):
        with pytest.raises(ValueError, match=sentence):
            make()
