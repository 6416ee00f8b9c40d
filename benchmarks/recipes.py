"""Every recipe on one real store: NMSE at the L0 asked for, silent latents and stability over seeds, beside the same before training.

    python benchmarks/recipes.py --store stores/flickr8k-train --val stores/flickr8k-val --out eval/recipes [--recipes topk ra_topk] [--n-latents 512 --k 16 --tokens 307200]

Without --val a fifth of the store's photos is held out. The same command goes on where it was stopped: finished runs in OUT/runs are not trained again. OUT/table.md
is written anew after each recipe. All recipes have the same rate, tokens and seeds, and their own defaults otherwise. gba and top_afa cannot be told an L0, and others
end near what they are told; so each row has beside it what `topk` comes to at the same L0 (--frontier: its k, trained in the same way).

    NMSE       about the mean of the held-out rows; 1: the mean predictor
    topk there NMSE of topk at this L0: a straight line between its two nearest k, in log L0 and log NMSE
    silent     share of latents that spoke on no held-out row
    stability  mean cosine of atoms paired one to one between seeds (evals.stability)
    in brackets: the same before training; of what is fitted once (pca to itda), fitted to normal rows of the same mean and covariance
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

import vsae
from evals.planted_runs import RECIPES, cell, markdown, sized
from evals.recovery_runs import over
from evals.result import Estimate
from evals.stability import stability, untrained
from vsae.activations import Select, StoreSource
from vsae.files import write_text
from vsae.progress import track
from vsae.recipes import JOINED
from vsae.training.heldout import measure

HELD_OUT = 0.8
"""Without another store, photos from this share on are held out."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--val")
    parser.add_argument("--site")
    parser.add_argument("--out", type=Path, required=True)
    one_site = [name for name in RECIPES if name not in JOINED]
    parser.add_argument("--recipes", nargs="+", default=one_site, choices=one_site)
    parser.add_argument("--n-latents", type=int, default=512)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=307_200)
    parser.add_argument("--init-rows", type=int, default=8192, help="rows to start from, and all that a fit sees")
    parser.add_argument(
        "--told", nargs="*", default=[], metavar="NAME=K", help="another k for recipes that leave slots empty"
    )
    parser.add_argument("--frontier", type=int, nargs="*", default=[], metavar="K", help="k of topk to compare with")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds is {options.seeds}: stability compares two or more.")
    site = vsae.ActivationStore.open(options.store).site(options.site)
    if options.val:
        source = StoreSource(site, Select(("patch",)))
        val = StoreSource(vsae.ActivationStore.open(options.val).site(site.name), Select(("patch",)))
    else:
        source = StoreSource(site, Select(("patch",), (0.0, HELD_OUT)))
        val = StoreSource(site, Select(("patch",), (HELD_OUT, 1.0)))
    table = Table("recipe", "L0", "NMSE", "topk there", "silent", "stability", "excess", "unmatched")
    frontier = [point(k, source, val, options) for k in sorted(options.frontier)]
    for name in track(options.recipes, "recipes", len(options.recipes)):
        table.add_row(name, *row(name, source, val, options, frontier))
        write_text(options.out / "table.md", markdown(table))
    print((options.out / "table.md").read_text("utf-8"))


def configured(options: argparse.Namespace, seed: int) -> vsae.TrainConfig:
    return vsae.TrainConfig(
        tokens=options.tokens,
        batch_size=options.batch_size,
        lr=options.lr,
        init_rows=options.init_rows,
        tracker="none",
        device="cpu",
        eval_every=0,
        seed=seed,
    )


def point(k: int, source: StoreSource, val: StoreSource, options: argparse.Namespace) -> tuple[float, float]:
    """(L0, NMSE) of topk with this k, a mean over seeds."""
    found = []
    for seed in range(options.seeds):
        out = options.out / "runs" / (f"topk-{seed}" if k == options.k else f"topk-k{k}-{seed}")
        recipe = sized(RECIPES["topk"](), options.n_latents, k, source.d_model)
        run = vsae.train(source, recipe, out, configured(options, seed), val, progress=False)
        found.append((run.meta["metrics"]["val"]["l0"], run.meta["metrics"]["val"]["nmse"]))
    l0, nmse = np.mean(found, axis=0)
    return float(l0), float(nmse)


def there(l0: float, frontier: list[tuple[float, float]]) -> str:
    """NMSE of topk at this L0, where it lies between two of its k."""
    if len(frontier) < 2 or not frontier[0][0] <= l0 <= frontier[-1][0]:
        return "-"
    at, nmse = np.log(np.array(frontier)).T
    return f"{np.exp(np.interp(np.log(l0), at, nmse)):.3f}"


def row(
    name: str, source: StoreSource, val: StoreSource, options: argparse.Namespace, frontier: list[tuple[float, float]]
) -> list[str]:
    """Train once a seed, and measure."""
    asked = dict(each.split("=") for each in options.told)
    recipe = sized(RECIPES[name](), options.n_latents, int(asked.get(name, options.k)), source.d_model)
    after, before = [], []
    for seed in range(options.seeds):
        config = configured(options, seed)
        before.append(untrained(recipe, source, config))
        run = vsae.train(source, recipe, options.out / "runs" / f"{name}-{seed}", config, val, progress=False)
        after.append((run.sae, run.meta["metrics"]["val"]))
    floors = [
        measure(sae, (each.values for each in val.batches(4096, 0, epochs=1)), torch.device("cpu")) for sae in before
    ]

    def seeds(score: str) -> Estimate:
        return over(np.array([found[score] for _, found in after]), float(np.mean([vars(f)[score] for f in floors])))

    l0, nmse, silent = (cell(seeds(score), score) for score in ("l0", "nmse", "dead_share"))
    beside = there(seeds("l0").value, frontier)
    signed = after[0][0].capabilities.signed
    found = stability([sae.atoms for sae, _ in after], [sae.atoms for sae in before], signed)
    excess = "-" if found.excess is None else f"{found.excess:.3f}"
    return [l0, nmse, beside, silent, cell(found.stability, "stability"), excess, f"{found.unmatched:.3f}"]


if __name__ == "__main__":
    main()
