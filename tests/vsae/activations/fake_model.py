"""A model whose batches are a function of their number: two sites with different tokens, some bad samples, padding. Also a program that writes a store."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

KINDS = ("cls", "register", "patch", "image", "text", "special", "pad")
REQUEST = {"model": {"name": "fake", "weights": "abc", "preprocessing": {"resize": 8}}, "data": {"n": 80}}
BATCH = 8


class Tokens(NamedTuple):
    values: Tensor
    kinds: Tensor
    grid: tuple[int, int] | None


class Bad(NamedTuple):
    key: str
    path: str
    reason: str


@dataclass
class Chunk:
    batch: int
    samples: list[dict]
    bad: list[Bad]
    activations: dict[str, Tokens]


def chunk(batch: int, d_model: int = 16, bad: bool = True) -> Chunk:
    """8 candidates, of which one is bad in every third batch: 1 + 16 vision tokens; 5 text tokens of which 1 to 3 are padding."""
    generator = torch.Generator().manual_seed(batch)
    n = BATCH - (bad and batch % 3 == 0)
    samples = [
        {
            "key": f"{batch}-{i}",
            "path": f"photos/{batch}/{i}.jpg",
            "caption": "<b>é</b>",
            "label": None,
            "width": 32,
            "height": 24,
        }
        for i in range(n)
    ]
    vision = Tokens(
        torch.randn(n, 17, d_model, generator=generator),
        torch.tensor([0] + [2] * 16, dtype=torch.uint8).repeat(n, 1),
        (4, 4),
    )
    text_kinds = torch.full((n, 5), 4, dtype=torch.uint8)
    for i in range(n):
        text_kinds[i, 4 - i % 3 :] = 6
    text = Tokens(torch.randn(n, 5, 8, generator=generator), text_kinds, None)
    broken = [Bad(f"{batch}-bad", f"photos/{batch}/bad.jpg", "truncated")] if n < BATCH else []
    return Chunk(batch, samples, broken, {"blocks.1": vision, "text.2:input": text})


def chunks(start: int, n: int = 10, delay: float = 0.0, **options) -> Iterator[Chunk]:
    for batch in range(start, n):
        time.sleep(delay)
        yield chunk(batch, **options)


if __name__ == "__main__":
    from vsae.activations import write_store

    print("writing", flush=True)
    write_store(sys.argv[1], lambda start: chunks(start, 30, delay=0.01), REQUEST, kind_names=KINDS, rows_per_shard=50)
