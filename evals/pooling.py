"""Codes of tokens -> one score a sample and latent, without a dense matrix.

    max     s[i, j] = max over the tokens of sample i of z_j, and of 0 where the code is sparse: a latent's negative side is a candidate of its own
    mean    s[i, j] = sum of z_j over them / their number
    sum     s[i, j] = sum of z_j over them
    token   every token stays a row of its own

Codes stay sparse from the first batch to the last. Only where it is asked for, for neurons, PCA and other directions, are scores dense and signed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from scipy.sparse import csc_array, csr_array, vstack
from torch import Tensor

from evals.reconstruction import Codec
from vsae.activations import Batch, whole_samples
from vsae.code import Code
from vsae.sae import SAE

Pool = Literal["max", "mean", "sum", "token"]
Scores: TypeAlias = csc_array | np.ndarray


@dataclass(frozen=True)
class Pooled:
    """Scores of the samples (or tokens) that had a selected row, in the order they came."""

    scores: Scores
    """[rows, candidates] float32. Sparse where the code is."""
    samples: Int64[np.ndarray, "rows"]
    """Row of the store's table of samples."""
    positions: Int32[np.ndarray, "rows"] | None
    """Of the token, where every token is a row; else None."""


@dataclass(frozen=True)
class BothSigns:
    """Each latent of a signed sparse code twice: candidate j is z_j where it is positive, candidate n_latents + j is -z_j where z_j is negative."""

    codec: Codec

    @property
    def n_latents(self) -> int:
        return 2 * self.codec.n_latents

    @property
    def atoms(self) -> Float[Tensor, "n_latents d_model"]:
        return torch.cat([self.codec.atoms, -self.codec.atoms])

    def encode(self, x: Float[Tensor, "batch d_model"]) -> Code:
        code = self.codec.encode(x)
        values = torch.cat([code.values.clamp_min(0), (-code.values).clamp_min(0)], 1)
        return Code(values, torch.cat([code.indices, code.indices + self.codec.n_latents], 1))

    def decode(self, code: Code) -> Float[Tensor, "batch d_model"]:
        n = self.codec.n_latents
        sign = torch.where(code.indices < n, 1, -1).to(code.values)
        return self.codec.decode(Code(code.values * sign, code.indices % n))


def candidates(sae: SAE) -> Codec:
    """The SAE, or both sides of each latent of one whose codes are signed."""
    return BothSigns(sae) if sae.capabilities.signed else sae


@torch.inference_mode()
def pool(codec: Codec, batches: Iterable[Batch], how: Pool = "max", dense: bool = False) -> Pooled:
    """Scores of every sample of `batches`, whose rows come sample after sample, as `SiteReader.sequential` gives them.

    Raises ValueError for no row, for a sample that comes back after another, and for NaN or infinity.
    """
    like, blocks, samples, positions = codec.atoms, list[Any](), list[np.ndarray](), list[np.ndarray]()
    for batch in whole_samples(batches):
        code = codec.encode(batch.values.to(like))
        if not bool(torch.isfinite(code.values).all()):
            raise ValueError("the codes hold NaN or infinity: nothing can be measured on them.")
        code = Code(code.values.float().cpu(), code.indices.cpu())
        if how == "token":
            starts = np.arange(len(batch.samples))
            positions.append(batch.positions.numpy())
        else:
            starts = np.flatnonzero(np.diff(batch.samples.numpy(), prepend=-1))
        samples.append(batch.samples.numpy()[starts])
        if dense:
            blocks.append(pooled_dense(code.dense(codec.n_latents).numpy(), starts, how))
        else:
            blocks.append(pooled(code, codec.n_latents, starts, how))
    if not blocks:
        raise ValueError("there is no row to measure: check which token kinds and which part were selected.")
    order = np.concatenate(samples)
    scores: Scores = np.concatenate(blocks) if dense else csc_array(vstack(blocks, "csr"))
    return Pooled(scores, order, np.concatenate(positions) if positions else None)


def pooled_dense(
    values: Float[np.ndarray, "tokens candidates"], starts: Int64[np.ndarray, "samples"], how: Pool
) -> Float[np.ndarray, "samples candidates"]:
    """Pool neighbouring rows of a dense code; sample i is rows starts[i] to starts[i + 1]."""
    if how == "token":
        return values
    if how == "max":
        return np.maximum.reduceat(values, starts, axis=0)
    sums = np.add.reduceat(values, starts, axis=0)
    return sums if how == "sum" else sums / np.diff(starts, append=len(values)).astype(np.float32)[:, None]


def pooled(code: Code, n_latents: int, starts: Int64[np.ndarray, "samples"], how: Pool) -> csr_array:
    """Pool neighbouring rows of a sparse code; sample i is rows starts[i] to starts[i + 1]."""
    values, shape = code.values.numpy(), (len(starts), n_latents)
    slot = values > 0 if how == "max" else values != 0
    sizes = np.diff(starts, append=len(values))
    owner = np.broadcast_to(np.repeat(np.arange(len(starts)), sizes)[:, None], values.shape)[slot]
    latent, value = code.indices.numpy()[slot], values[slot]
    if how != "max":
        # equal places add up, as they do in Code.dense
        value = value / sizes[owner].astype(np.float32) if how == "mean" else value
        return csr_array((value, (owner, latent)), shape=shape)
    order = np.lexsort((latent, owner))
    owner, latent, value = owner[order], latent[order], value[order]
    first = np.flatnonzero(np.diff(owner * n_latents + latent, prepend=-1))
    top = np.maximum.reduceat(value, first) if len(first) else value
    return csr_array((top, (owner[first], latent[first])), shape=shape)
