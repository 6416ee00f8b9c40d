"""Which attention head a latent reads: exact, because a pre-activation is linear in the heads' concatenated outputs (Kissane et al. 2024, 2406.17759).

    u_j - b_enc_j = sum over heads h of  (x - b_dec)[h] . W_enc[h, j]        x[h]: the slice of head h
    x_t[h]        = sum over tokens s of A[h, t, s] v_s[h]                   A: the head's attention pattern, v_s[h]: its values

For SAEs at an attention output with heads concatenated (`modalities` sites of that kind), where d_model = heads * head size.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vsae.sae import SAE, require


def slices(sae: SAE, heads: int) -> int:
    """Size of a head's slice. Raises ValueError where d_model is no multiple of `heads`."""
    if heads < 1 or sae.d_model % heads:
        raise ValueError(
            f"{sae.d_model} dimensions cannot be cut into {heads} heads: give the model's own number of heads."
        )
    return sae.d_model // heads


@torch.no_grad()
def head_contributions(
    sae: SAE, x: Float[Tensor, "rows d_model"], indices: Int[Tensor, "rows k"], heads: int
) -> Float[Tensor, "rows k heads"]:
    """Each head's part of the pre-activations of some latents of each row (`code.indices`, say); they add up to u - b_enc.

    Raises ValueError for a number of heads that does not divide d_model, AttributeError for an encoder that is not linear.
    """
    size = slices(sae, heads)
    centred = (x.to(sae.b_dec.dtype) - sae.b_dec).view(len(x), heads, size)
    weight = sae.linear.weight.view(-1, heads, size)
    return torch.stack([torch.einsum("rd,rkd->rk", centred[:, h], weight[:, h][indices]) for h in range(heads)], -1)


@torch.no_grad()
def head_weights(sae: SAE, heads: int) -> Float[Tensor, "n_latents heads"]:
    """Share of each latent's atom norm in each head's slice: rows sum to 1. The floor, of a latent that prefers no head, is 1 / heads."""
    require(sae, linear_decoder=True, for_="attribution to heads")
    norms = torch.linalg.vector_norm(sae.atoms.view(sae.n_latents, heads, slices(sae, heads)), dim=2)
    return norms / norms.sum(1, keepdim=True).clamp_min(torch.finfo(norms.dtype).tiny)


@torch.no_grad()
def source_contributions(
    sae: SAE,
    pattern: Float[Tensor, "heads rows tokens"],
    values: Float[Tensor, "heads tokens d_head"],
    indices: Int[Tensor, "rows k"],
) -> Float[Tensor, "rows k heads tokens"]:
    """Which tokens a latent of each row reads, and through which head, the patterns being as they are. Of a ViT: which patches.

    One sequence: rows attend to its tokens. The sum over heads and tokens is u - b_enc + <b_dec, W_enc>, as b_dec is of no token. Raises as
    `head_contributions` does.
    """
    heads, _, size = values.shape
    if slices(sae, heads) != size:
        raise ValueError(
            f"values are {heads} heads of {size}, which is not what this SAE's {sae.d_model} dimensions are."
        )
    weight = sae.linear.weight.view(-1, heads, size)[indices]
    return torch.einsum("hrs,hsd,rkhd->rkhs", pattern.to(weight), values.to(weight), weight)
