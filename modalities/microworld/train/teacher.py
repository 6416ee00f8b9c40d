"""A small convolutional network that knows the renderer's labels, and how the transformers learn from it. It is not shipped.

    L_teacher = sum_a CE(attribute a of the object in front, each patch weighted by the share of it the object covers)
                + BCE(share covered) + CE(background)
    L_lesson  = MSE(cls -> teacher's map, mean and maximum over patches) + sum_depth w_depth MSE(patch tokens -> teacher's map at that depth)
                "->": a linear layer that is thrown away;   maps standardised;   patches that no object covers count a tenth

A convolution finds outlines in a few thousand scenes; a transformer of patches, from scratch, finds none in 50 000. What lets it: hints at every
depth and not at the end alone (Romero et al. 2015), and heads that begin by looking at one neighbour each, as a 3 x 3 convolution does (`look_around`).
"""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..attributes import OBJECT_ATTRIBUTES, VALUES
from ..renderer import Rendered, render
from ..scenes import Scenes, World, draw
from .common import TRAIN_SEED, device, fit, object_shares, pixels

STEPS, BATCH, LR = 700, 64, 4e-3
GRID, WIDTH = 8, 128
CROWDED = World(counts=(0.1, 0.1, 0.2, 0.6))
"""Scenes for lessons: the more objects, the more there is to learn from each."""
HINT = 0.5


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.body = nn.Sequential(convolution(width, width), second, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


def convolution(before: int, after: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


class Teacher(nn.Module):
    """Four stages, the last two on the transformers' own 8 x 8 grid of patches, with a linear head for each attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [
                nn.Sequential(convolution(3, 32, 2), convolution(32, 32)),
                nn.Sequential(convolution(32, 64, 2), convolution(64, 64)),
                convolution(64, WIDTH, 2),
                nn.Sequential(Residual(WIDTH), Residual(WIDTH)),
            ]
        )
        self.heads = nn.ModuleDict({name: nn.Conv2d(WIDTH, len(VALUES[name]), 1) for name in OBJECT_ATTRIBUTES})
        self.covered = nn.Conv2d(WIDTH, 1, 1)
        self.background = nn.Linear(WIDTH, len(VALUES["background"]))
        self.to(device()).to(memory_format=torch.channels_last)

    def forward(self, images: Float[Tensor, "batch 3 rows columns"]) -> list[Tensor]:
        """The map after each stage."""
        maps = [images.contiguous(memory_format=torch.channels_last)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    @torch.no_grad()
    def tokens(self, images: Float[Tensor, "batch 3 rows columns"]) -> list[Tensor]:
        """The maps as tokens, one for each patch: [batch, 64, 512 or 256 or 128]. Where a map is finer than patches, a token holds all of its patch."""
        with torch.autocast(images.device.type, torch.bfloat16):
            maps = self(images)
        return [F.pixel_unshuffle(x.float(), x.shape[-1] // GRID).flatten(2).mT for x in maps]


def labels(
    scenes: Scenes, drawn: Rendered
) -> tuple[Float[Tensor, "batch patches"], dict[str, Int[Tensor, "batch patches"]]]:
    """The largest share of each patch that one object covers, and that object's attributes."""
    share, slot = object_shares(drawn).max(1)
    values = {n: torch.from_numpy(getattr(scenes, n)).gather(1, slot).to(device()) for n in OBJECT_ATTRIBUTES}
    return share.to(device()), values


def train(steps: int = STEPS, batch: int = BATCH) -> tuple[Teacher, float]:
    torch.manual_seed(3)
    teacher = Teacher()

    def loss(step: int) -> Tensor:
        scenes = draw(batch, TRAIN_SEED + 3, step * batch)
        drawn = render(scenes)
        share, values = labels(scenes, drawn)
        seen = teacher(pixels(drawn.images))[-1]
        ground = torch.from_numpy(scenes.background).to(device())
        total = F.binary_cross_entropy_with_logits(teacher.covered(seen).flatten(1), share)
        total = total + F.cross_entropy(teacher.background(seen.mean((2, 3))), ground)
        for name, head in teacher.heads.items():
            wrong = F.cross_entropy(head(seen).flatten(2), values[name], reduction="none")
            total = total + (wrong * share).sum() / share.sum()
        return total

    return teacher, fit("teacher", teacher, loss, steps, LR)


@torch.no_grad()
def accuracy(teacher: Teacher, seed: int, n: int = 1000) -> dict[str, float]:
    """Share of patches, at least half covered by one object, whose attributes are told right."""
    scenes = draw(n, seed)
    drawn = render(scenes)
    share, values = labels(scenes, drawn)
    seen = teacher(pixels(drawn.images))[-1]
    right = {name: head(seen).flatten(2).argmax(1) == values[name] for name, head in teacher.heads.items()}
    return {name: round(float(hit[share >= 0.5].float().mean()), 4) for name, hit in right.items()}


class Lesson(nn.Module):
    """`L_lesson` for a transformer with as many layers as the teacher has stages."""

    def __init__(self, teacher: Teacher, width: int):
        super().__init__()
        self._teacher = [teacher]  # in a list: not a part of what is trained
        known = self.known(pixels(render(draw(256, TRAIN_SEED, world=CROWDED)).images))
        self.spread = [(x.mean((0, 1)), x.std((0, 1)) + 1e-2) for x in known]
        self.heads = nn.ModuleList([nn.Linear(width, x.shape[-1]) for x in known]).to(device())

    def known(self, images: Tensor) -> list[Tensor]:
        """The teacher's tokens at every depth, and last, as one token, the mean and the maximum of its last map."""
        tokens = self._teacher[0].tokens(images)
        return [*tokens, torch.cat([tokens[-1].mean(1, keepdim=True), tokens[-1].amax(1, keepdim=True)], -1)]

    def forward(
        self,
        images: Float[Tensor, "batch 3 rows columns"],
        share: Float[Tensor, "batch objects patches"],
        layers: Sequence[Tensor],
        last: Float[Tensor, "batch tokens d"],
    ) -> Float[Tensor, ""]:
        """`layers`: cls and patch tokens after each layer; `last`: those after the final norm, which stand for the deepest layer."""
        targets = [(x - m) / s for x, (m, s) in zip(self.known(images), self.spread, strict=True)]
        weight = 0.1 + 0.9 * (share.sum(1) > 0.02).to(last)
        weight = weight / weight.sum()
        tokens = [F.layer_norm(x, x.shape[-1:])[:, 1:] for x in layers[:-1]] + [last[:, 1:]]
        errors = [
            (weight * (head(x) - y).square().mean(-1)).sum()
            for head, x, y in zip(self.heads, tokens, targets, strict=False)
        ]
        whole = (self.heads[-1](last[:, :1]) - targets[-1]).square().mean()
        return whole + errors[-1] + HINT * sum(errors[:-1])


@torch.no_grad()
def look_around(
    position: Float[Tensor, "patches d"],
    patch: Float[Tensor, "d 3 rows columns"],
    layers: Sequence[tuple[Tensor, Tensor]],
    heads: int,
    sharp: float = 3.0,
) -> None:
    """Start a transformer's heads as a convolution: head h looks at the patch one step from its own in direction h, the ninth at its own.

    The first d / heads channels are set aside for the place of a patch, as sines and cosines of four frequencies for each axis; a query is its
    place turned by one step, so that query . key peaks `sharp` above all but that neighbour. `layers` are (query, key) weights [d, d]. In place.
    Only a start: all of it is trained. (After Zheng et al. 2024, "Structured initialization for attention in vision transformers".)
    """
    d = position.shape[1]
    size = d // heads
    frequency = torch.arange(1, size // 4 + 1, device=position.device) * (math.pi / GRID)
    place = torch.stack(torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="xy"), -1).reshape(-1, 2)

    def turn(step: Tensor) -> Tensor:
        """Cosines and sines of one offset, as the blocks of a rotation."""
        angle = (step[:, None].to(frequency) * frequency).flatten()
        blocks = [
            torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
            for c, s in zip(angle.cos(), angle.sin(), strict=True)
        ]
        return torch.block_diag(*blocks)

    position *= 0.2
    position[:, :size] = torch.stack([turn(p)[:, 0::2].sum(1) for p in place.to(position.device)])
    patch[:size] = 0
    steps = [s for s in itertools.product((-1, 0, 1), repeat=2) if s != (0, 0)] + [(0, 0)]
    gain = math.sqrt(sharp * math.sqrt(size) / 2)
    for query, key in layers:
        for weight in (query, key):
            weight *= 0.1
        for head in range(heads):
            rows = slice(head * size, (head + 1) * size)
            query[rows, :size] += gain * turn(torch.tensor(steps[head % 9], device=position.device))
            key[rows, :size] += gain * torch.eye(size, device=position.device)
