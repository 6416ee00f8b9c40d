"""Training in several processes: whose rows and whose latents are whose.

    torchrun --nproc-per-node 8 -m vsae.cli train ...                        data parallel: a process takes its rows of every batch
    torchrun --nproc-per-node 8 -m vsae.cli train --training.shards 8 ...    the dictionary divided: a process has its latents, and all rows
    ... --training.shards 4                                                  both: 4 parts of the dictionary, each trained by 2 processes on half of the rows

What one process would have computed is a sum over rows and over latents, so it is the same up to the order of adding. Every number that depends on
more than a process has is asked for here; in a single process these functions return what they are given. The engine is torch.distributed.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.autograd import Function


@dataclass(frozen=True)
class Layout:
    """`size` processes as a grid: `shards` parts of the dictionary, and size / shards parts of every batch."""

    rank: int = 0
    size: int = 1
    shards: int = 1
    over_rows: Any = None
    """The group of processes with the same latents and other rows; None where there is one."""
    over_latents: Any = None
    """The group of processes with the same rows and other latents; None where there is one."""

    @staticmethod
    def of(device: torch.device, shards: int) -> "Layout":
        """That of the running process group. Raises ValueError where `shards` does not divide it."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            if shards > 1:
                raise ValueError(
                    f"training.shards is {shards}, and this is one process: start {shards} (torchrun --nproc-per-node {shards} -m vsae.cli train ...)."
                )
            return Layout()
        size = dist.get_world_size()
        if size % shards:
            raise ValueError(
                f"training.shards is {shards}, which does not divide the {size} processes that were started."
            )
        mesh = dist.init_device_mesh(device.type, (size // shards, shards), mesh_dim_names=("rows", "latents"))
        groups = [
            mesh.get_group(name) if n > 1 else None for name, n in (("rows", size // shards), ("latents", shards))
        ]
        return Layout(dist.get_rank(), size, shards, *groups)

    @property
    def shard(self) -> int:
        return self.rank % self.shards

    @property
    def part(self) -> int:
        """Which part of the rows."""
        return self.rank // self.shards

    def cut(self, x: Shaped[Tensor, "rows ..."]) -> Shaped[Tensor, "_ ..."]:
        """This process's rows of a batch."""
        parts = self.size // self.shards
        return x[len(x) * self.part // parts : len(x) * (self.part + 1) // parts]

    def __deepcopy__(self, memo: Any) -> "Layout":
        return self  # a process group is no thing to copy


_layout, _rows = Layout(), 0


@contextmanager
def step_of(layout: Layout, rows: int) -> Iterator[None]:
    """While entered, what is computed is a part of a batch of `rows` rows."""
    global _layout, _rows
    before = _layout, _rows
    _layout, _rows = layout, rows
    try:
        yield
    finally:
        _layout, _rows = before


def all_rows(rows: int) -> int:
    """Rows of the whole batch, of which this process has `rows`."""
    return _rows if _layout.over_rows is not None else rows


def sum_rows(part: Tensor) -> Tensor:
    """The sum over processes with other rows. No gradient flows through it."""
    return summed(part, _layout.over_rows)


def sum_latents(part: Tensor) -> Tensor:
    """The sum over processes with other latents. No gradient flows through it."""
    return summed(part, _layout.over_latents)


def any_rows(part: Tensor) -> Tensor:
    """True where any process with other rows has it."""
    if _layout.over_rows is None:
        return part
    bits = part.to(torch.uint8)
    dist.all_reduce(bits, dist.ReduceOp.MAX, group=_layout.over_rows)
    return bits.bool()


def summed(part: Tensor, group: Any) -> Tensor:
    if group is None:
        return part
    total = part.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def agreed(flag: bool, layout: Layout, device: torch.device) -> bool:
    """True everywhere when it is true anywhere: for what hangs on clocks and signals. The host waits for all processes."""
    if layout.size == 1:
        return flag
    found = torch.tensor([flag], dtype=torch.uint8, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)


def least(number: int, layout: Layout, device: torch.device) -> int:
    """The smallest of all processes' numbers."""
    if layout.size == 1:
        return number
    found = torch.tensor([number], device=device)
    dist.all_reduce(found, dist.ReduceOp.MIN)
    return int(found)


def wait(layout: Layout) -> None:
    if layout.size > 1:
        dist.barrier()


def sum_gradients_(parameters: Iterable[nn.Parameter], layout: Layout) -> None:
    """After backward: each process has the gradient of its rows' part of the loss."""
    if layout.over_rows is not None:
        for parameter in parameters:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad, group=layout.over_rows)


def clip_(sae: nn.Module, largest: float, layout: Layout) -> Tensor:
    """As torch's clip_grad_norm_, over the parameters of all shards; b_dec is every shard's and counts once."""
    grads = {name: p.grad for name, p in sae.named_parameters() if p.grad is not None}
    own = torch.stack([g.square().sum() for name, g in grads.items() if name != "b_dec"]).sum()
    norm = (summed(own, layout.over_latents) + grads["b_dec"].square().sum()).sqrt()
    if not math.isinf(largest):
        scale = (largest / (norm + 1e-6)).clamp(max=1)
        for grad in grads.values():
            grad.mul_(scale)
    return norm


class Copied(Function):
    """What every shard reads: its gradient is the sum of all shards'."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return summed(grad, ctx.group), None


class Reduced(Function):
    """The sum of what all shards made: each gets its gradient as it is."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Any) -> Tensor:
        return summed(part, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def gathered(part: Tensor, group: Any, shards: int) -> Shaped[Tensor, "shards ..."]:
    """Every shard's tensor of the same shape, in the order of the shards. No gradient flows through it."""
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(shards)]
    dist.all_gather(parts, part.detach().contiguous(), group=group)
    return torch.stack(parts)
