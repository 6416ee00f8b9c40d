"""Is what `vsae filter` keeps worth training on? The tiny CLIP learns to match again, from each choice of rendered pairs of which 30 % are mismatched.

    python -c "from modalities import microworld; microworld.write('pairs', 3000, 52_000, corrupt=0.3, corruptions=('mismatched',))"
    W=modalities/microworld/weights
    vsae filter --data pairs --model.family clip --model.name $W/clip --out filtered --train --latents 256 --k 16 --tokens 40000 --share 0.5
    python benchmarks/retrain_clip.py --data pairs --scores filtered/scores.parquet [--seeds 3] [--steps 400]

The vision tower starts with the shipped weights without its projection, the text tower at random; both are trained by InfoNCE alone, the same number of steps for
each choice. kept: the best half by each score of the file. random: a random half. matched: a half of pairs that are known to match, the best that any
filter could do. all: every pair. Reported: R@1 both ways among 256 held-out scenes (floor 1/256), mean and Student's 95 % interval over seeds, which draw
initial weights, batches and random halves, and the difference from random, seed by seed.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from scipy import stats

import modalities
from modalities.data import open_dataset
from modalities.microworld.train import clip as tiny
from modalities.microworld.train.common import pixels
from modalities.microworld.train.tokens import clip_tokenizer

BATCH, LR = 64, 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--scores", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    images, ids, keys = read(options.data)
    table = pq.read_table(options.scores)
    at = {key: row for row, key in enumerate(table["key"].to_pylist())}
    rows = np.array([at[key] for key in keys])
    wrong = np.array(table["wrong"].to_pylist(), dtype=bool)[rows]
    half = len(keys) // 2
    choices = {}
    for name in table.column_names:
        if name.startswith("score_"):
            score = np.array(table[name].to_pylist(), dtype=float)[rows]
            choices[name.removeprefix("score_")] = np.argsort(-score, kind="stable")[:half]
    found: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        rng = np.random.default_rng(seed)
        drawn = {
            "random": rng.permutation(len(keys))[:half],
            "matched": rng.permutation(np.flatnonzero(~wrong))[:half],
            "all": np.arange(len(keys)),
        }
        for name, chosen in ({**choices, **drawn}).items():
            found.setdefault(name, []).append(retrained(images[chosen], ids[chosen], options.steps, seed))
            print(f"seed {seed}  {name:<12} {len(chosen)} pairs  R@1 {found[name][-1]:.3f}", flush=True)
    Console(width=120).print(report(found, {name: float((~wrong[c]).mean()) for name, c in choices.items()}))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


def read(data: str) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Images as the tower takes them, first captions as its tokens, keys."""
    dataset = open_dataset(data)
    samples = [dataset.read(number) for number in range(len(dataset))]
    images = pixels(np.stack([np.asarray(sample.image.convert("RGB")) for sample in samples]))
    ids = clip_tokenizer(tiny.CONTEXT)(
        [s.captions[0] for s in samples], padding="longest", return_tensors="pt"
    ).input_ids
    return images, ids, [sample.key for sample in samples]


def retrained(images: torch.Tensor, ids: torch.Tensor, steps: int, seed: int) -> float:
    """Mean of R@1 both ways after training on these pairs."""
    torch.manual_seed(seed)
    clip = tiny.build()
    shipped = modalities.load("clip", str(modalities.microworld.path("clip"))).module.visual.state_dict()
    clip.visual.load_state_dict({k: v for k, v in shipped.items() if k != "proj"}, strict=False)
    optimiser = torch.optim.AdamW(clip.parameters(), lr=LR, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=steps, pct_start=0.1)
    clip.train()
    for step in range(steps):
        if step * BATCH % len(images) < BATCH:
            order = torch.randperm(len(images))
        batch = order[torch.arange(BATCH).add(step * BATCH).remainder(len(order))]
        image = F.normalize(clip.encode_image(images[batch]), dim=-1)
        text = F.normalize(tiny.text_features(clip, ids[batch]), dim=-1)
        clip.logit_scale.data.clamp_(max=4.6)
        loss = tiny.nce(image, text, clip.logit_scale.exp(), torch.eye(BATCH) > 0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    clip.eval()
    found = tiny.retrieval(clip)
    return (found["image_to_text_r1"] + found["text_to_image_r1"]) / 2


def report(found: dict[str, list[float]], matched: dict[str, float]) -> Table:
    shown = Table(title="R@1 of a tiny CLIP retrained on each choice (floor 1/256)")
    for column in ("chosen by", "matched", "R@1", "95 % interval", "over random", "95 % interval "):
        shown.add_column(column, justify="right")
    for name, values in sorted(found.items(), key=lambda item: -np.mean(item[1])):
        over = np.subtract(values, found["random"])
        share = f"{matched[name]:.1%}" if name in matched else ""
        own = ["", ""] if name == "random" else [f"{over.mean():+.3f}", between(over)]
        shown.add_row(name, share, f"{np.mean(values):.3f}", between(values), *own)
    return shown


def between(values: list[float]) -> str:
    """Student's 95 % interval of a mean."""
    if len(values) < 2:
        return "-"
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values) or 1e-12)
    return f"{low:.3f} to {high:.3f}"


if __name__ == "__main__":
    main()
