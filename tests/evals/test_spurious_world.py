"""Self-regularised heads on the rendered world's first spurious correlation: background and shape of the only object."""

import numpy as np
import pytest
import torch
from PIL import Image

import vsae
from evals.heads import compared
from modalities import load, microworld
from modalities.microworld import draw, render
from modalities.microworld.scenes import World
from vsae.activations.memory import TensorSource
from vsae.recipes import TopK
from vsae.training.config import TrainConfig

SITE = "image_embedding"
SHAPES, GROUNDS = ("circle", "square"), ("sand", "grass")
"""The usual background of a shape is that of the same number."""


def scenes(model, n, seed, bias, **knobs):
    """(embeddings, shape, background) of scenes of one object."""
    found = draw(n, seed, world=World(counts=(1.0,), background_bias=bias, **knobs))
    parts = []
    for start in range(0, n, 200):
        images = [Image.fromarray(image) for image in render(found[start : start + 200]).images]
        parts.append(model.activations(model.prepare(images), [SITE])[SITE].values[:, 0])
    return torch.cat(parts).float(), found.shape[:, 0], found.background


def on_the_world(folder, seed, train=300, test=1000, reference=1500, bias=0.98, strength=1.0, n_unintended=8):
    """The heads of `evals.heads.compared`; U: the latents that tell the two backgrounds best apart where shapes say nothing of them."""
    model = load("clip", str(microworld.path("clip")))
    x, _, ground = scenes(model, reference, 50_000 + seed, 0.0)
    source = TensorSource(x)
    config = TrainConfig(tokens=100_000, batch_size=256, lr=2e-3, tracker="none", seed=seed)
    run = vsae.train(source, TopK(n_latents=128, k=8), folder, config, progress=False)
    code = run.sae.encode(x)
    h = torch.zeros(len(x), run.sae.n_latents).scatter_(1, code.indices, code.values).numpy()
    apart = np.abs(h[ground == 0].mean(0) - h[ground == 1].mean(0))
    unintended = np.argsort(-apart, kind="stable")[:n_unintended].tolist()
    live = np.flatnonzero((h > 0).any(0)).tolist()
    world = {"shapes": SHAPES, "backgrounds": GROUNDS}
    fit_x, fit_y, _ = scenes(model, train, 60_000 + seed, bias, **world)
    test_x, test_y, test_ground = scenes(model, test, 61_000 + seed, 0.0, **world)
    atoms = run.sae.atoms.detach().double().numpy()
    return compared(
        (fit_x.double().numpy(), fit_y),
        (test_x.double().numpy(), test_y, test_ground),
        atoms,
        unintended,
        live,
        strength,
        seed=seed,
    )


def test_the_worst_group_is_right_when_latents_of_the_background_are_unintended(tmp_path):
    """At full size, three seeds: benchmarks/RESULTS.md."""
    found = on_the_world(tmp_path / "run", 0, train=200, test=400, reference=600)
    worst = {name: each.worst.value for name, each in found.items()}
    assert all(each.worst.floor == 0 and each.left_out == 0 and len(each.groups) == 4 for each in found.values())
    assert worst["regularised"] > worst["plain"] + 0.3 and worst["regularised"] > worst["random"] + 0.2
    assert found["regularised"].overall.value > found["plain"].overall.value
    assert found["plain"].overall.floor == pytest.approx(0.5, abs=0.05)
