"""Sparsifiers decide which latents speak: pre-activations in, a sparse code out.

ReLU         z = max(u, 0)
TopK         z = the k largest entries of max(u, 0) in each row                     Gao et al. 2024 (2406.04093), eq. 1
AbsTopK      z = the k entries of u largest in |u| in each row, signed              2510.00404
GroupMax     z = the largest entry of max(u, 0) in each of k groups of latents      sparsify (EleutherAI)
BatchTopK    z = the batch * k largest entries of max(u, 0) in the batch            Bussmann et al. 2024 (2412.06410)
             for inference   z = u 1[u > theta],  theta = running mean of the smallest entry kept
FeatureChoice  z = each latent's largest entries of max(u, 0) in the batch        2411.02124
JumpReLU     z = u 1[u > theta], theta learnt, one a latent                         Rajamanoharan et al. 2024 (2407.14435)
Gated        z = 1[u > 0] max(0, exp(r) w x + b_mag)                                Rajamanoharan et al. 2024 (2404.16014)
Threshold    z = u 1[u > theta], theta fixed: one number, or one a latent           the form SAELens calls JumpReLU
"""

from vsae.sparsifiers.base import Sparsifier, checked_k
from vsae.sparsifiers.batch import BatchTopK
from vsae.sparsifiers.columns import FeatureChoice
from vsae.sparsifiers.learned import Gated, GatedCode, JumpReLU
from vsae.sparsifiers.rows import AbsTopK, GroupMax, ReLU, Threshold, TopK

__all__ = [
    "AbsTopK",
    "BatchTopK",
    "FeatureChoice",
    "Gated",
    "GatedCode",
    "GroupMax",
    "JumpReLU",
    "ReLU",
    "Sparsifier",
    "Threshold",
    "TopK",
    "checked_k",
]
