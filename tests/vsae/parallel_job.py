"""Trainings in 1, 2 and 4 gloo processes on one machine, as a program of its own: `python parallel_job.py FOLDER`. One import, then forks."""

import dataclasses
import os
import socket
import sys
import traceback
from pathlib import Path

import torch
import train_job
from torch import multiprocessing

import vsae
from vsae.recipes import AbsTopK, ReLU, TopK

SETTINGS = vsae.TrainConfig(
    tokens=4000, batch_size=250, lr=1e-3, check_every=4, checkpoint_every=5, eval_every=8, dead_tokens=500, tracker="none",
    selection="exact", device="cpu", seed=1,
)  # fmt: skip
RECIPES = {"topk": TopK(256, 3, auxk_coefficient=1.0), "abs_topk": AbsTopK(64, 3), "relu": ReLU(64)}
CASES = [  # name, processes, shards, recipe, ends after so many batches
    ("topk-1", 1, 1, "topk", None),
    ("topk-2-rows", 2, 1, "topk", None),
    ("topk-2-latents", 2, 2, "topk", None),
    ("topk-4-latents", 4, 4, "topk", None),
    ("topk-4-both", 4, 2, "topk", None),
    ("abs_topk-1", 1, 1, "abs_topk", None),
    ("abs_topk-2-latents", 2, 2, "abs_topk", None),
    ("relu-1", 1, 1, "relu", None),
    ("relu-4-rows", 4, 1, "relu", None),
    ("resumed-latents", 2, 2, "topk", 12),
    ("resumed-latents", 2, 2, "topk", None),
    ("refused", 2, 2, "relu", None),
    ("uneven", 2, 2, "uneven", None),
]


def rows():
    draw = torch.Generator().manual_seed(0)
    atoms = torch.randn(48, 12, generator=draw)
    return (torch.rand(1600, 48, generator=draw) < 0.06).float() @ atoms + 0.1 * torch.randn(1600, 12, generator=draw)


def work(rank, size, port, folder, name, shards, recipe, halt_after):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    x = rows()
    source, val = train_job.Slow(x[:1300]), vsae.TensorSource(x[1300:])
    source.halt_after = float("inf") if halt_after is None else halt_after
    wanted = TopK(65, 3) if recipe == "uneven" else RECIPES[recipe]
    try:
        vsae.train(source, wanted, folder / name, dataclasses.replace(SETTINGS, shards=shards), val, progress=False)
    except train_job.Halted:
        os._exit(0)
    except ValueError as error:
        (folder / f"{name}-{rank}.txt").write_text(str(error))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main(folder):
    torch.set_num_threads(1)
    torch.optim.Adam([torch.zeros(1, requires_grad=True)], fused=True)  # its imports, once for all forks
    for name, size, shards, recipe, halt_after in CASES:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        fork = multiprocessing.get_context("fork")
        team = [
            fork.Process(target=work, args=(rank, size, port, folder, name, shards, recipe, halt_after))
            for rank in range(size)
        ]
        for each in team:
            each.start()
        for each in team:
            each.join(300)
            if each.exitcode != 0:
                sys.exit(f"{name}: a process ended with {each.exitcode}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
