"""What the four trainings share: scenes as tensors, a schedule with progress, half-precision files, linear probes."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from ..attributes import DEFAULT
from ..renderer import Rendered, render
from ..scenes import MAX_OBJECTS, Scenes, World, draw

TRAIN_SEED, PROBE_SEED, HELD_OUT_SEED = 10, 1_000, 5_000
"""Scenes of different seeds share nothing. A training may use the hundred or so seeds after the first, so reports are on scenes no training saw."""

PATCH = 8
MEAN = STD = (0.5, 0.5, 0.5)


def weights_dir(name: str) -> Path:
    return Path(__file__).parents[1] / "weights" / name


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pixels(images: UInt8[np.ndarray, "batch rows columns 3"]) -> Float[Tensor, "batch 3 rows columns"]:
    """Images as every microworld model takes them: in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).to(device()).float().div_(127.5).sub_(1).contiguous()


def object_shares(rendered: Rendered) -> Float[Tensor, "batch 4 patches"]:
    """Share of each patch's pixels at which each object is seen."""
    seen = torch.from_numpy(rendered.instances)[:, None] == torch.arange(1, MAX_OBJECTS + 1)[:, None, None]
    return F.avg_pool2d(seen.float(), PATCH).flatten(2)


def fit(
    name: str,
    module: nn.Module,
    loss: Callable[[int], Tensor],
    steps: int,
    lr: float,
    weight_decay: float = 0.05,
    warmup: int = 100,
    matrices: Sequence[nn.Parameter] = (),
) -> float:
    """AdamW with warmup and cosine decay on `loss(step)`; shows progress and returns the minutes it took.

    `matrices` go to Muon instead (Jordan et al. 2024), with the same learning rate; it needs torch 2.9.
    """
    others = [p for p in module.parameters() if p.requires_grad and not any(p is m for m in matrices)]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimisers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)]
    if matrices:
        optimisers.append(torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))

    def scale(step: int) -> float:
        return min(1, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimiser, scale) for optimiser in optimisers]
    started, smooth = time.monotonic(), math.nan
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    module.train()
    with Progress(*columns) as progress:
        task = progress.add_task(name, total=steps)
        for step in range(steps):
            value = loss(step)
            module.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            for optimiser, schedule in zip(optimisers, schedules, strict=True):
                optimiser.step()
                schedule.step()
            smooth = value.item() if math.isnan(smooth) else 0.97 * smooth + 0.03 * value.item()
            progress.update(task, advance=1, description=f"{name}  loss {smooth:.3f}")
            if step % 100 == 99:
                progress.console.print(
                    f"{name}  step {step + 1}/{steps}  loss {smooth:.4f}  {time.monotonic() - started:.0f} s"
                )
    module.eval()
    return (time.monotonic() - started) / 60


def halve(directory: Path) -> None:
    """Rewrite every safetensors file below a directory in half precision."""
    for file in directory.rglob("*.safetensors"):
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})


def probe(
    features: Callable[[Float[Tensor, "batch 3 rows columns"]], Float[Tensor, "batch d"]],
    n_train: int = 3000,
    n_test: int = 1000,
) -> dict[str, dict[str, float]]:
    """Held-out accuracy of a linear probe for each attribute of one-object scenes, with the share of the commonest value as its floor."""
    world = World(counts=(1.0,))
    train, test = draw(n_train, PROBE_SEED, world=world), draw(n_test, HELD_OUT_SEED, world=world)
    x_train, x_test = embedded(features, train), embedded(features, test)
    report = {}
    for attribute in DEFAULT:
        y_train, y_test = (
            s.background if attribute == "background" else getattr(s, attribute)[:, 0] for s in (train, test)
        )
        accuracy = float((judge(x_train, y_train).predict(x_test) == y_test).mean())
        report[attribute] = {
            "accuracy": round(accuracy, 4),
            "floor": round(float(np.bincount(y_test).max() / n_test), 4),
        }
    return report


def judge(x: Float[np.ndarray, "scenes d"], y: Int[np.ndarray, "scenes"]):
    """A linear classifier of one attribute."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300)).fit(x, y)


@torch.no_grad()
def embedded(features: Callable[[Tensor], Tensor], scenes: Scenes, batch: int = 250) -> Float[np.ndarray, "scenes d"]:
    parts = [features(pixels(render(scenes[i : i + batch]).images)) for i in range(0, len(scenes), batch)]
    return torch.cat(parts).float().cpu().numpy()
