"""Every recipe on one real store: NMSE at the L0 asked for, silent latents and stability over seeds, beside the same before training and beside PCA.

    python benchmarks/recipes.py --store stores/flickr8k-train --val stores/flickr8k-val --out eval/recipes [--recipes topk ra_topk] [--n-latents 512 --k 32 --tokens 250000]

Without --val a fifth of the store's photos is held out. The same command goes on where it was stopped: finished runs in OUT/runs are not trained again. OUT/table.md
is written anew after each recipe. All recipes have the same rate, tokens and seeds, and their own defaults otherwise: relu and gated take no L0, so theirs is what their penalty leaves.

    NMSE       about the mean of the held-out rows; 1: the mean predictor
    silent     share of latents that spoke on no held-out row
    stability  mean cosine of atoms paired one to one between seeds (evals.stability); in brackets between untrained dictionaries of the same make
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

import vsae
from evals import baselines
from evals.planted_runs import cell, markdown, sized
from evals.reconstruction import measure as measure_codec
from evals.recovery_runs import over
from evals.result import Estimate
from evals.stability import stability, untrained
from vsae.activations import Select, StoreSource
from vsae.files import write_text
from vsae.progress import track
from vsae.recipes import RECIPES
from vsae.training.heldout import measure

HELD_OUT = 0.8
"""Without another store, photos from this share on are held out."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--val")
    parser.add_argument("--site")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--n-latents", type=int, default=512)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=250_000)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    site = vsae.ActivationStore.open(options.store).site(options.site)
    if options.val:
        source = StoreSource(site, Select(("patch",)))
        val = StoreSource(vsae.ActivationStore.open(options.val).site(site.name), Select(("patch",)))
    else:
        source = StoreSource(site, Select(("patch",), (0.0, HELD_OUT)))
        val = StoreSource(site, Select(("patch",), (HELD_OUT, 1.0)))
    table = Table("recipe", "L0", "NMSE", "silent", "stability", "excess", "unmatched")
    pca = baselines.fit_pca(source.batches(4096, 0, epochs=1)).first(options.k)
    error = measure_codec(pca, val.batches(4096, 0, epochs=1), val.kind_names).total.nmse
    table.add_row(f"PCA, rank {options.k}", f"{options.k:.1f}", f"{error.value:.3f} (1.000)", *["-"] * 4)
    for name in track(options.recipes, "recipes", len(options.recipes)):
        table.add_row(name, *row(name, source, val, options))
        write_text(options.out / "table.md", markdown(table))
    print((options.out / "table.md").read_text("utf-8"))


def row(name: str, source: StoreSource, val: StoreSource, options: argparse.Namespace) -> list[str]:
    """Train once a seed, and measure."""
    recipe = sized(RECIPES[name](), options.n_latents, options.k)
    config = vsae.TrainConfig(
        tokens=options.tokens, batch_size=options.batch_size, lr=options.lr, tracker="none", device="cpu", eval_every=0
    )
    after, before = [], []
    for seed in range(options.seeds):
        config = replace(config, seed=seed)
        before.append(untrained(recipe, source, config))
        run = vsae.train(source, recipe, options.out / "runs" / f"{name}-{seed}", config, val, progress=False)
        after.append((run.sae, run.meta["metrics"]["val"]))
    floors = [
        measure(sae, (each.values for each in val.batches(4096, 0, epochs=1)), torch.device("cpu")) for sae in before
    ]

    def seeds(score: str) -> Estimate:
        return over(np.array([found[score] for _, found in after]), float(np.mean([vars(f)[score] for f in floors])))

    codes = [cell(seeds(score), score) for score in ("l0", "nmse", "dead_share")]
    signed = after[0][0].capabilities.signed
    found = stability([sae.atoms for sae, _ in after], [sae.atoms for sae in before], signed)
    excess = "-" if found.excess is None else f"{found.excess:.3f}"
    return [*codes, cell(found.stability, "stability"), excess, f"{found.unmatched:.3f}"]


if __name__ == "__main__":
    main()
