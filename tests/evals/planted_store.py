"""Stores with known activations, and runs with known weights, for tests of whole evaluations."""

from typing import NamedTuple

import torch

from vsae.activations import write_store
from vsae.run import Run
from vsae.sae import SAE
from vsae.sparsifiers import TopK

KINDS = ("patch", "image", "text", "pad")


class Tokens(NamedTuple):
    values: torch.Tensor
    kinds: torch.Tensor
    grid: None = None


class Chunk(NamedTuple):
    batch: int
    samples: list
    bad: list
    activations: dict


def store_of(path, sites, weights="abc", size=50):
    """Sites of [samples, tokens, d] values, each with the kind numbers of its tokens; keys are k0, k1, ..."""
    n = len(next(iter(sites.values()))[0])

    def chunks(start):
        for batch in range(start, -(-n // size)):
            rows = range(batch * size, min(n, batch * size + size))
            samples = [dict.fromkeys(("path", "caption", "label", "width", "height")) | {"key": f"k{i}"} for i in rows]
            found = {
                name: Tokens(
                    x[rows.start : rows.stop].float(), torch.tensor(kinds, dtype=torch.uint8).expand(len(rows), -1)
                )
                for name, (x, kinds) in sites.items()
            }
            yield Chunk(batch, samples, [], found)

    request = {"model": {"name": "planted", "weights": weights, "preprocessing": {}}, "data": {"n": n}}
    return write_store(path, chunks, request, dtype="float32", kind_names=KINDS, rows_per_shard=700)


def run_of(path, site, atoms, k=1, kinds=None, bias=None, store="another", part=(0.0, 1.0)):
    """A TopK SAE that looks along its atoms."""
    n, d = atoms.shape
    sae = SAE.from_weights(
        atoms.T.contiguous(), torch.zeros(n), atoms, torch.zeros(d) if bias is None else bias, TopK(k)
    )
    about = {"select": {"kinds": kinds, "part": list(part)}, "normalisation": {"mode": "none"}, "store": store}
    meta = {"recipe": {"name": "topk", "fields": {}}, "self_check": {"l0": float(k)}, "config": {"seed": 0}}
    return Run(path, sae, meta | {"fingerprint": site.fingerprint | about})
