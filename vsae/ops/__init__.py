"""Sparse products. `reference` is the specification, `sparse` what runs; both give the same values and the same gradients.

    sparse      encode, decode and their gradients from PyTorch's operators; triton_path where CUDA has Triton
    largest     the k largest of a row in two looks; columns, prefixes: selection by latents, decoding by prefixes
    rescored    selection at low precision (coarse), values again in full, watched (Trust)
    scratch, pieces    working memory that stays, and pieces that fit a cache

Encoder weights are given as rows, [n_latents, d_model] as in torch.nn.Linear: a latent's weights lie together in memory, which is what every
product here reads. Files hold W_enc the other way round (SAELens); see `vsae.sae.SAE.W_enc`.
"""

from vsae.ops.sparse import decode, encode_above, encode_topk, entries, pick

__all__ = ["decode", "encode_above", "encode_topk", "entries", "pick"]
