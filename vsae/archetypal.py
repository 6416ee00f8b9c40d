"""Relaxed archetypal dictionary: atoms near the convex hull of the data (Fel et al. 2025, 2502.12892, section 4).

    D = exp(m) (W C + Lambda)       C  [anchors, d_model]     points of the data, frozen (k-means centroids: vsae.anchors)
                                    W  [n_latents, anchors]   W >= 0, every row sums to 1
                                    Lambda                    |Lambda_i| <= delta for every row i
                                    m                         a learnable scalar, 0 at first

    projection, after every optimiser step:    W <- relu(W) / row sums       Lambda_i <- Lambda_i min(1, delta / |Lambda_i|)

delta = 0 is the strict archetypal SAE. The paper writes |Lambda|^2 <= delta; its code bounds each row's norm, and so do we. m and the projection by
clipping and dividing (not the Euclidean one) are the code's too. Ours: the projection is a step of its own and not part of reading the atoms; a row
of W that clipping empties becomes the anchor it was last nearest to keeping; atoms in excess of the anchors start as random mixtures
of neighbouring anchors (one-hot rows of an identity would leave them zero), and where anchors are in excess the atoms start far apart.

Centring. The paper standardises its data and decodes without a bias. Here the anchors are points of x - mean, and b_dec is the mean and stays so (recipe
`ra_topk`, unless told to learn it): with m = 0 and Lambda = 0 every b_dec + D_i is then a point of the data's hull, in normalised and in raw
activations alike, and m moves it along its ray from the mean. The price: the mean lies inside the hull, so non-negative codes of centred atoms reach
everywhere, and extreme points are no longer the only dictionary that explains mixtures of them; `centre=False` keeps atoms and data where they are.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vsae.dictionaries import Dictionary
from vsae.ops.pieces import row_pieces

DRIFT = 200.0
"""W's learning rate is DRIFT / anchors of the others'. Adam moves each entry of a row by about the learning rate and clipping keeps the ones that rose, so a
step with all of it adds lr * anchors / 2 to a row that sums to 1: with thousands of anchors the atoms would all fall into the mean at once. Ours."""
NEIGHBOURS = 4
"""Anchors mixed into one atom where atoms outnumber anchors."""


class RelaxedArchetypal(Dictionary):
    """Atoms exp(m) (W C + Lambda), not of unit norm. `W` is [n_latents, anchors]: at 32,000 each, 4 GB in float32 and as much for each of Adam's moments.

    W C is computed once a step, however often the atoms are read: `backward`, `project_`, loading and moving make it anew, and so does any write to
    the parameters that PyTorch counts (fused optimisers' are not counted, but `project_` follows them; nor are writes through `.data`).
    """

    C: Tensor

    def __init__(
        self,
        anchors: Float[Tensor, "anchors d_model"],
        W: Float[Tensor, "n_latents anchors"],
        delta: float = 1.0,
    ):
        super().__init__()
        if delta < 0:
            raise ValueError(f"delta is {delta}: it bounds how far an atom may leave the hull, and is 0 or more.")
        self.register_buffer("C", anchors.detach().clone())
        self.W = nn.Parameter(W.detach().clone())
        self.Lambda = nn.Parameter(anchors.new_zeros(len(W), anchors.shape[1]))
        self.log_scale = nn.Parameter(anchors.new_zeros(()))
        self.delta = delta
        self._cache: tuple[tuple[Any, ...], Tensor] | None = None
        self.project_()

    def forward(self) -> Float[Tensor, "n_latents d_model"]:
        key = self._state()
        if self._cache is None or self._cache[0] != key:
            with torch.autocast(self.W.device.type, enabled=False):
                atoms = self.log_scale.exp() * (self.W @ self.C + self.Lambda)
            if atoms.requires_grad:  # backward frees the graph: what is read after it needs a new one
                atoms.register_hook(self._forget)
            self._cache = key, atoms
        return self._cache[1]

    @property
    def n_latents(self) -> int:
        return len(self.W)

    def rates(self) -> dict[str, float]:
        """W learns slower the more anchors there are: Adam moves every entry of a row at once, and clipping keeps half of it (see `DRIFT`)."""
        return {"W": min(1.0, DRIFT / self.W.shape[1])}

    @torch.no_grad()
    def project_(self) -> None:
        self._cache = None
        for (rows,) in row_pieces(self.W):
            empty = rows.amax(1, keepdim=True) <= 0
            best = (
                rows.argmax(1, keepdim=True) if rows.is_cuda or empty.any() else None
            )  # on a CPU asking is the cheaper
            rows.relu_()
            rows.div_(rows.sum(1, keepdim=True).masked_fill_(empty, 1))
            if best is not None:
                rows.scatter_add_(1, best, empty.to(rows.dtype))
        norms = torch.linalg.vector_norm(self.Lambda, dim=1, keepdim=True)
        self.Lambda.mul_((self.delta / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_max(1))

    def _state(self) -> tuple[Any, ...]:
        """Changes when the atoms do: in-place writes raise a tensor's version, moving it changes where it lies."""
        tensors = (self.C, self.W, self.Lambda, self.log_scale)
        return torch.is_grad_enabled(), *((t.data_ptr(), t._version, t.requires_grad) for t in tensors)

    def _forget(self, grad: Tensor) -> None:
        self._cache = None

    def _apply(self, fn: Any, recurse: bool = True) -> "RelaxedArchetypal":
        self._cache = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}

    def extra_repr(self) -> str:
        return f"n_latents={len(self.W)}, anchors={len(self.C)}, delta={self.delta}"


def starting_weights(
    anchors: Float[Tensor, "anchors d_model"], n_latents: int, seed: int
) -> Float[Tensor, "n_latents anchors"]:
    """Row-stochastic W with which no two atoms are equal: each anchor at most once as it is, then random mixtures of an anchor and its nearest.

    Where anchors outnumber atoms, the atoms start far from each other: two that start in one corner of the hull stay there, and a third is never reached.
    """
    generator = torch.Generator().manual_seed(seed)
    points = anchors.detach().cpu()
    n = len(points)
    W = torch.zeros(n_latents, n, dtype=points.dtype)
    pure = torch.randperm(n, generator=generator) if n_latents >= n else spread_out(points, n_latents, seed)
    W[torch.arange(len(pure)), pure] = 1
    if mixed := n_latents - len(pure):
        if n == 1:
            raise ValueError(f"{n_latents} atoms cannot differ with a single anchor: take more anchors.")
        centre = torch.randint(n, (mixed,), generator=generator)
        shares = torch.rand(mixed, min(NEIGHBOURS, n), generator=generator, dtype=points.dtype).log().neg()
        for some in torch.arange(mixed).split(1024):
            near = torch.cdist(points[centre[some]], points).topk(shares.shape[1], largest=False).indices
            W[len(pure) + some] = W[len(pure) + some].scatter(1, near, shares[some])
    return (W / W.sum(1, keepdim=True)).to(anchors)


def spread_out(points: Float[Tensor, "points d_model"], count: int, seed: int) -> Int[Tensor, "count"]:
    """Indices of `count` different points, each drawn by its squared distance to those drawn before (Arthur and Vassilvitskii 2007, k-means++)."""
    from sklearn.cluster import kmeans_plusplus  # takes a second to import

    drawn = torch.from_numpy(kmeans_plusplus(points.numpy(), count, random_state=seed, n_local_trials=1)[1]).unique()
    others = torch.ones(len(points), dtype=torch.bool).index_fill(0, drawn, False).nonzero().squeeze(1)
    return torch.cat([drawn, others])[:count]  # equal points are drawn twice: then any others
