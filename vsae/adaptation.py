"""Group bias adaptation: how often a latent speaks is set by a controller, not by a penalty (GBA, 2506.14002; spec A16).

    u_m = a_m <D_m, x - b_dec>      z = u 1[u > theta]      tied, unit atoms D_m, a learnt gain a_m; theta_m >= 0 gets no gradient; the loss is mse alone

Latents come in K groups; group k may fire in a share p_k of the rows, p_1 ... p_K falling geometrically. Every `every` steps, with p_m the share of rows since
the last time in which latent m fired, r_m = max u_m - theta_m over those (0 where it did not fire), and T_k the mean of r_m over group k:

    p_m > p_k          theta_m <- theta_m + rate r_m
    p_m < epsilon      theta_m <- max(theta_m - rate T_k, 0)

The paper writes b = -theta with -1 <= b <= 0 on rows of norm 1; as theta never passes the largest u seen, no other bound is needed on rows of any norm.
We know the paper from notes: values u, and not u - theta, for those that speak, and thresholds that start where groups fire as often as they may, are ours.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vsae.controllers import Controller
from vsae.dictionaries import Dictionary
from vsae.encoders import Encoder, Linear
from vsae.objectives import Loss
from vsae.preactivations import Affine
from vsae.sae import SAE
from vsae.sparsifiers import Threshold
from vsae.training.state import Training


class Gained(Encoder):
    """u = a (D x): the atoms look for themselves, each with a gain of its own. Fused, it is a plain linear one."""

    def __init__(self, gain: Float[Tensor, "n_latents"]):
        super().__init__()
        self.gain = nn.Parameter(gain.detach().clone())

    def fold(self, scale: Float[Tensor, "d_model"], dictionary: Dictionary) -> Linear:
        return Linear(self.gain[:, None] * dictionary() / scale, torch.zeros_like(self.gain))

    def forward(self, x: Float[Tensor, "batch d_model"], dictionary: Dictionary) -> Affine:
        return Affine(x, self.gain[:, None] * dictionary(), torch.zeros_like(self.gain))


class GroupBias(Controller):
    """The module's docstring has the rule. Its buffers are what was counted since the last adaptation; no step waits for the device.

    frequencies: p_k of each latent's group. groups: number of the group of each latent.
    """

    fired: Tensor
    best: Tensor
    rows: Tensor
    frequencies: Tensor
    groups: Tensor

    def __init__(
        self, n_latents: int, n_groups: int, highest: float, lowest: float, every: int, rate: float, epsilon: float
    ):
        super().__init__()
        self.every, self.rate, self.epsilon = every, rate, epsilon
        groups = group_of(n_latents, n_groups)
        self.register_buffer("groups", groups, persistent=False)
        self.register_buffer("frequencies", targets(n_groups, highest, lowest)[groups], persistent=False)
        self.register_buffer("fired", torch.zeros(n_latents, dtype=torch.int64))
        self.register_buffer("best", torch.zeros(n_latents))
        self.register_buffer("rows", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, training: Training, x: Float[Tensor, "batch columns"], loss: Loss) -> None:
        """Raises TypeError for an SAE whose sparsifier has no fixed thresholds."""
        sparsifier, code = training.sae.sparsifier, loss.output.code
        if not isinstance(sparsifier, Threshold):
            raise TypeError(f"group bias adaptation moves thresholds, and {type(sparsifier).__name__} has none.")
        self.fired += code.counts(len(self.fired))
        self.best.scatter_reduce_(0, code.indices.flatten(), code.values.flatten().to(self.best.dtype), "amax")
        self.rows += len(code.values)
        if training.step % self.every == 0:
            self.adapt(sparsifier)

    @torch.no_grad()
    def adapt(self, sparsifier: Threshold) -> None:
        """Move the thresholds by what was counted, and begin to count anew."""
        share = self.fired / self.rows.clamp(min=1)
        above = torch.where(self.fired > 0, self.best - sparsifier.threshold, 0).relu()
        members = self.groups.bincount()
        means = torch.zeros_like(members, dtype=above.dtype).index_add_(0, self.groups, above) / members.clamp(min=1)
        up = torch.where(share > self.frequencies, above, 0)
        down = torch.where(share < self.epsilon, means[self.groups], 0)
        sparsifier.threshold.add_(self.rate * (up - down)).clamp_(min=0)
        for counted in (self.fired, self.best, self.rows):
            counted.zero_()


def group_of(n_latents: int, n_groups: int) -> Tensor:
    """The group of each latent: neighbours, in groups of one size but for rounding."""
    return torch.arange(n_latents) * n_groups // n_latents


def targets(n_groups: int, highest: float, lowest: float) -> Float[Tensor, "groups"]:
    """Frequencies falling geometrically from `highest` to `lowest`; a single group gets `highest`."""
    return highest * (lowest / highest) ** torch.linspace(0, 1, n_groups)


@torch.no_grad()
def adapted(sae: SAE, x: Float[Tensor, "rows d_model"], frequencies: Float[Tensor, "n_latents"]) -> SAE:
    """Set thresholds with which each latent fires in its share of the rows (in 1 at least), then gains with which these reconstruct best."""
    assert isinstance(sae.sparsifier, Threshold) and isinstance(sae.encoder, Gained)
    counts = (frequencies * len(x)).round().long().clamp(1, len(x) - 1)
    for some in torch.arange(sae.n_latents).split(1024):
        u = (x - sae.b_dec) @ sae.atoms[some.to(x.device)].T
        order = u.sort(0, descending=True).values
        sparsifier, at = sae.sparsifier, counts[some].to(x.device)
        sparsifier.threshold[some] = order.gather(0, at[None])[0].clamp(min=0)
    x_hat = sae(x).x_hat - sae.b_dec
    energy = x_hat.square().sum()
    if energy > 0:
        best = ((x - sae.b_dec) * x_hat).sum() / energy
        sae.encoder.gain.mul_(best)
        sae.sparsifier.threshold.mul_(best)
    return sae
