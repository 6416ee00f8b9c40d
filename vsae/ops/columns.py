"""Selection down the columns: every latent chooses its rows."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vsae.code import Code
from vsae.ops.sparse import entries, most, scores


def encode_columns(
    x: Float[Tensor, "batch d_model"],
    weight: Float[Tensor, "n_latents d_model"],
    bias: Float[Tensor, "n_latents"],
    budgets: Int[Tensor, "n_latents"],
) -> Code:
    """For latent i the budgets[i] rows (a tensor of the host) with the largest positive pre-activations; of equal ones at the end, any. In chunks of latents."""
    rows, latents = [], []
    with torch.no_grad():
        for lo, u in scores(weight, x, x.new_zeros(len(x))):  # [latents, batch]
            budget = budgets[lo : lo + len(u)]
            values, row = u.add(bias[lo : lo + len(u), None]).topk(most(budget), dim=1)
            rank = torch.arange(values.shape[1], device=x.device)
            latent, slot = ((values > 0) & (rank < budget.to(x.device)[:, None])).nonzero(as_tuple=True)
            rows.append(row[latent, slot])
            latents.append(latent + lo)
        row, order = torch.cat(rows).sort(stable=True)
        counts = torch.bincount(row, minlength=len(x))
        slot = torch.arange(len(row), device=x.device) - (counts.cumsum(0) - counts)[row]
        indices = row.new_zeros(len(x), max(1, most(counts)))
        indices[row, slot] = torch.cat(latents)[order]
        taken = torch.arange(indices.shape[1], device=x.device) < counts[:, None]
    return Code(entries(x, weight, bias, indices) * taken, indices)
