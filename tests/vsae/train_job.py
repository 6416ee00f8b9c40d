"""A training job for the kill tests, as a program of its own: `python train_job.py OUT [STEP_SECONDS [itda]]`."""

import sys
import time

import torch

import vsae
from vsae.recipes import ITDA, TopK

torch.set_num_threads(1)


GREEDY = ITDA(k=3, tau=0.03)


class Halted(Exception):
    """What a source raises to end a run in the middle, as a kill would."""


class Slow(vsae.TensorSource):
    """Takes its time for every batch, so that a signal finds the loop at work; may halt after so many."""

    seconds, halt_after = 0.0, float("inf")

    def batches(self, *args, **options):
        seconds, left = self.seconds, self.halt_after
        batches = super().batches(*args, **options)

        class Batches(type(batches)):
            def __next__(self):
                nonlocal left
                left -= 1
                if left < 0:
                    raise Halted
                time.sleep(seconds)
                return super().__next__()

        batches.__class__ = Batches
        return batches


def job(out, seconds=0.0, halt_after=float("inf"), recipe=TopK(n_latents=96, k=4), **changes):  # noqa: B008
    rows = torch.randn(4096, 12, generator=torch.Generator().manual_seed(0)).relu()
    source, val = Slow(rows[:3500]), vsae.TensorSource(rows[3500:])
    source.seconds, source.halt_after = seconds, halt_after
    settings = {
        "tokens": 60_000,
        "batch_size": 300,
        "lr": 3e-3,
        "check_every": 7,
        "checkpoint_every": 11,
        "eval_every": 40,
    }
    config = vsae.TrainConfig(**settings | {"dead_tokens": 2000, "tracker": "none"} | changes)
    return vsae.train(source, recipe, out, config, val)


if __name__ == "__main__":
    try:
        more = {"recipe": GREEDY} if "itda" in sys.argv else {}
        job(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 0.0, **more)
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
