"""A DINOv2-style ViT with registers (transformers' `Dinov2WithRegistersModel`), distilled from a convolutional teacher: see teacher.py.

    L = L_lesson(teacher)

No label is used here, but the teacher had every one: shape, colour, texture and size of the object in front on each patch, and the background.
(Self-supervised contrast of two views was tried first: in the minutes there are it finds colour and ground, not shape.)
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..attributes import OBJECT_ATTRIBUTES
from ..renderer import render
from ..scenes import Scenes, World, draw
from .common import (
    HELD_OUT_SEED,
    MEAN,
    PATCH,
    PROBE_SEED,
    STD,
    TRAIN_SEED,
    device,
    fit,
    halve,
    judge,
    object_shares,
    pixels,
    weights_dir,
)
from .teacher import CROWDED, Lesson, Teacher, look_around

STEPS, BATCH, LR = 1200, 32, 3e-3
WIDTH, LAYERS, HEADS, REGISTERS = 128, 4, 8, 4
PATCHES = (64 // PATCH) ** 2


def build() -> Any:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = Dinov2WithRegistersConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, mlp_ratio=4, image_size=64, patch_size=PATCH,
        num_register_tokens=REGISTERS, initializer_range=0.05,
    )  # fmt: skip
    vit: Any = Dinov2WithRegistersModel(config)
    attention = [(layer.attention.q_proj.weight, layer.attention.k_proj.weight) for layer in vit.encoder.layer]
    embeddings = vit.embeddings
    look_around(embeddings.position_embeddings[0, 1:], embeddings.patch_embeddings.projection.weight, attention, HEADS)
    return vit


def train(teacher: Teacher, steps: int = STEPS, batch: int = BATCH) -> tuple[Any, float]:
    torch.manual_seed(0)
    vit = build().to(device())
    lesson = Lesson(teacher, WIDTH)

    def loss(step: int) -> Tensor:
        """Every second batch is of scenes as they come, so that lone objects are seen as well."""
        drawn = render(draw(batch, TRAIN_SEED, step * batch, World() if step % 2 else CROWDED))
        images = pixels(drawn.images)
        seen = vit(images, output_hidden_states=True)
        states = [torch.cat([x[:, :1], x[:, -PATCHES:]], 1) for x in (*seen.hidden_states[1:], seen.last_hidden_state)]
        return lesson(images, object_shares(drawn).to(images), states[:-1], states[-1])

    matrices = [p for p in vit.encoder.layer.parameters() if p.ndim == 2]
    return vit, fit("vit", nn.ModuleList([vit, lesson]), loss, steps, LR, matrices=matrices)


def features(vit: Any):
    """cls token and mean patch token, side by side."""

    def of(images: Tensor) -> Tensor:
        tokens = vit(images).last_hidden_state
        return torch.cat([tokens[:, 0], tokens[:, -PATCHES:].mean(1)], 1)

    return of


def patch_probe(vit: Any, n: int = 400) -> dict[str, dict[str, float]]:
    """Held-out accuracy of a linear probe on single patch tokens at least half covered by one object; the floor is the commonest value's share."""
    report = {}
    (x_train, y_train), (x_test, y_test) = (patch_table(vit, draw(n, seed)) for seed in (PROBE_SEED, HELD_OUT_SEED))
    for attribute in OBJECT_ATTRIBUTES:
        accuracy = float((judge(x_train, y_train[attribute]).predict(x_test) == y_test[attribute]).mean())
        floor = float(np.bincount(y_test[attribute]).max() / len(x_test))
        report[attribute] = {"accuracy": round(accuracy, 4), "floor": round(floor, 4)}
    return report


@torch.no_grad()
def patch_table(vit: Any, scenes: Scenes) -> tuple[Float[np.ndarray, "patches d"], dict[str, np.ndarray]]:
    """Patch tokens on objects, and the attributes of the object under each."""
    drawn = render(scenes)
    patches = vit(pixels(drawn.images)).last_hidden_state[:, -PATCHES:].cpu().numpy()
    share, slot = object_shares(drawn).numpy().max(1), object_shares(drawn).numpy().argmax(1)
    rows, places = np.nonzero(share >= 0.5)
    values = {name: getattr(scenes, name)[rows, slot[rows, places]] for name in OBJECT_ATTRIBUTES}
    return patches[rows, places], values


def save(vit: Any, directory: Path) -> None:
    """transformers' format, with its image processor, in half precision."""
    from transformers import BitImageProcessor

    vit.save_pretrained(directory)
    BitImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, image_mean=MEAN, image_std=STD
    ).save_pretrained(directory)
    halve(directory)


def load() -> Any:
    from transformers import Dinov2WithRegistersModel

    model: Any = Dinov2WithRegistersModel.from_pretrained(weights_dir("vit"), dtype=torch.float32)
    return model.to(device()).eval()
