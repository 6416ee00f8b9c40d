"""Which attention head a latent reads: exact, because a pre-activation is linear in the heads' concatenated outputs (Kissane et al. 2024, 2406.17759).

    u_j - b_enc_j = sum over heads h of  (x - b_dec)[h] . W_enc[h, j]        x[h]: the slice of head h
    x_t[h]        = sum over tokens s of A[h, t, s] v_s[h]                   A: the head's attention pattern, v_s[h]: its values
    v_s[h]        = V[h]' (sum over upstream latents i of f_i D_i + rest) / n_s      n_s: the layer norm's scale at s, frozen as the pattern is

A head's features are the latents with the largest share of their atom in its slice; it is polysemantic where more than one group of them has nothing to do
with the others. The paper's authors judged that by reading; here latents are related whose slices have a larger |cosine| than a threshold (ours), directly or
through others.

For SAEs at an attention output with heads concatenated (`modalities` sites of that kind), where d_model = heads * head size.
"""

import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from vsae.code import Code
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
    slices(sae, heads)
    return shares(sae.atoms, heads)


def shares(atoms: Float[Tensor, "n_latents d_model"], heads: int) -> Float[Tensor, "n_latents heads"]:
    norms = torch.linalg.vector_norm(atoms.view(len(atoms), heads, -1), dim=2)
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


@torch.no_grad()
def head_latents(
    atoms: Float[Tensor, "n_latents d_model"], heads: int, top: int = 10, live: Bool[Tensor, "n_latents"] | None = None
) -> Int[Tensor, "heads top"]:
    """The latents with the largest share of their atom in each head's slice, largest first; of the `live` ones where they are told."""
    weights = shares(atoms, heads)
    if live is not None:
        weights = weights.masked_fill(~live.to(weights.device)[:, None], -1.0)
    return weights.topk(min(top, len(atoms) if live is None else int(live.sum())), dim=0).indices.T


@torch.no_grad()
def polysemanticity(
    atoms: Float[Tensor, "n_latents d_model"],
    heads: int,
    top: int = 10,
    cosine: float = 0.5,
    live: Bool[Tensor, "n_latents"] | None = None,
) -> Int[Tensor, "heads"]:
    """How many groups of unrelated latents each head's `top` are: 1 for a head of one feature, `top` where each is a feature of its own.

    What random directions have at the same head size is what a dictionary says nothing by: heads are less polysemantic below it only.
    """
    slice_of = torch.nn.functional.normalize(atoms.view(len(atoms), heads, -1).transpose(0, 1), dim=2)
    found = []
    for head, mine in enumerate(head_latents(atoms, heads, top, live)):
        near = (slice_of[head, mine] @ slice_of[head, mine].T).abs() > cosine
        found.append(connected_components(near.cpu().numpy(), directed=False)[0])
    return torch.tensor(found)


@torch.no_grad()
def upstream_contributions(
    sae: SAE,
    pattern: Float[Tensor, "heads rows tokens"],
    value: Float[Tensor, "heads d_residual d_head"],
    atoms: Float[Tensor, "n_upstream d_residual"],
    code: Code,
    indices: Int[Tensor, "rows k"],
    scale: Float[Tensor, "tokens"] | None = None,
) -> Float[Tensor, "rows k tokens k_upstream"]:
    """Each upstream latent's part of the pre-activations, through every token and head: one step of recursive attribution, with frozen patterns.

    value: each head's value weights, which take the layer's normed input; a norm's gain folded in. atoms, code: of an SAE of that layer's input,
    `code` of its tokens. scale: what the norm divides each token by. What the upstream SAE does not explain, and biases, are left out. Raises as
    `source_contributions` does.
    """
    written = code.values[..., None] * atoms[code.indices]
    if scale is not None:
        written = written / scale[:, None, None]
    values = torch.einsum("sid,hde->hsie", written, value.to(written))
    if slices(sae, len(value)) != value.shape[2]:
        raise ValueError(
            f"values are {len(value)} heads of {value.shape[2]}, which is not what this SAE's {sae.d_model} dimensions are."
        )
    weight = sae.linear.weight.view(-1, len(value), value.shape[2])[indices]
    return torch.einsum("hrs,hsie,rjhe->rjsi", pattern.to(weight), values.to(weight), weight)
