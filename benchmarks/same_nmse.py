"""The same training by every path of `vsae.ops`: where the held-out NMSE ends after 1,000 steps, beside the dense reference's.

    python benchmarks/same_nmse.py --store STORE [--n-latents 4096] [--k 32] [--steps 1000] [--batch 1024] [--lr 1e-3] [--paths reference exact int8 bf16]

One seed, so the same rows in the same order and the same start; the paths differ in nothing but how they compute. reference: `vsae.ops.reference`, dense
autograd over [batch, n_latents]. exact: what runs. int8, bf16: selection at low precision, values again in full, watched as in any training. The bar: within
0.001 of the reference's, relative. Sums in another order part two trainings slowly, so equal to the bit is not to be expected.
"""

import argparse
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import vsae
from vsae import ops
from vsae.ops import reference
from vsae.recipes import RECIPES

HELD_OUT = 0.05


def trained(path: str, store: vsae.ActivationStore, site: str, options: argparse.Namespace) -> vsae.Run:
    """One run by this path."""
    sources = [
        vsae.StoreSource(store.site(site), vsae.Select(part=part)) for part in ((0, 1 - HELD_OUT), (1 - HELD_OUT, 1))
    ]
    config = vsae.TrainConfig(
        tokens=options.steps * options.batch,
        batch_size=options.batch,
        lr=options.lr,
        tracker="none",
        device="cpu",
        selection="rescored" if path in ("int8", "bf16") else "exact",
    )
    recipe = RECIPES["topk"](n_latents=options.n_latents, k=options.k)
    with ExitStack() as changed, TemporaryDirectory() as folder:
        changed.enter_context(patch("vsae.training.student.fast_forms", lambda device: (path,)))
        if path == "reference":
            for name in ("encode_topk", "decode"):
                changed.enter_context(patch.object(ops, name, getattr(reference, name)))
        return vsae.train(sources[0], recipe, Path(folder) / "run", config, sources[1], progress=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--n-latents", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--paths", nargs="+", default=["reference", "exact", "int8", "bf16"])
    options = parser.parse_args()
    store = vsae.ActivationStore.open(options.store)
    first = None
    for path in options.paths:
        meta = trained(path, store, store.sites[0], options).meta
        nmse = meta["metrics"]["val"]["nmse"]
        first = first or nmse
        recall = meta["training"]["last_window"].get("selection_recall")
        print(
            f"{path:<10} NMSE {nmse:.6f}   {nmse / first - 1:+.1e} of {options.paths[0]}'s"
            + ("" if recall is None else f"   recall {recall:.5f}"),
            flush=True,
        )


if __name__ == "__main__":
    main()
