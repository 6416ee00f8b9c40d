"""Explicit alignment of two representations before a VL-SAE (Shen et al. 2025, step A; spec/papers.md section 5). Rows are pairs [x_v | x_l].

    e_v = E_v x_v + a_v     e_l = E_l x_l + a_l                        to one width
    L = NCE(e_v, e_l) + mse(D_v e_v + c_v, x_v) + mse(D_l e_l + c_l, x_l)
    NCE = cross entropy, both ways, of cos(e_v, e_l) / T against the diagonal,    T = 0.07

Where x_v and x_l of a pair point apart (a modality gap, or two models), a shared code of the raw rows is not shared at all; of aligned ones it is.
The recipe vl_sae does this by itself where its two sites are of different widths, or when asked (align_width). The authors' code leaves the normalisation inside NCE out (`normalize=False` here), though the text says cosine. Ours: mse over the data's variance,
so that its weight does not depend on units, and weights from the first `rows` pairs in memory.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vsae.activations import JoinedSource
from vsae.activations.memory import TensorSource
from vsae.files import digest, read_json, write_json
from vsae.objectives import spread
from vsae.tensors import read_tensors, write_tensors

WEIGHTS, ABOUT = "alignment.safetensors", "alignment.json"


class Halves(NamedTuple):
    first: Float[Tensor, "batch d_first"]
    second: Float[Tensor, "batch d_second"]


class Alignment(nn.Module):
    """Two linear autoencoders whose inner rows agree for pairs. `encode` and `decode` take and give both halves."""

    def __init__(self, d_first: int, d_second: int, width: int):
        super().__init__()
        self.encoders = nn.ModuleList(nn.Linear(d, width) for d in (d_first, d_second))
        self.decoders = nn.ModuleList(nn.Linear(width, d) for d in (d_first, d_second))

    @property
    def columns(self) -> tuple[int, int]:
        first, second = (encoder.get_parameter("weight").shape[1] for encoder in self.encoders)
        return first, second

    @property
    def width(self) -> int:
        return len(self.encoders[0].get_parameter("bias"))

    def encode(self, x: Halves) -> Halves:
        return Halves(self.encoders[0](x.first), self.encoders[1](x.second))

    def decode(self, e: Halves) -> Halves:
        return Halves(self.decoders[0](e.first), self.decoders[1](e.second))

    def forward(self, rows: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch aligned"]:
        """Joined rows to joined aligned rows, 2 width wide."""
        return torch.cat(self.encode(Halves(*rows.split(self.columns, 1))), 1)


def infonce(
    first: Float[Tensor, "batch d"], second: Float[Tensor, "batch d"], temperature: float = 0.07, normalize: bool = True
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE of pairs: how badly row i of one finds row i of the other. ln(batch) when all look alike."""
    if normalize:
        first, second = F.normalize(first, dim=1), F.normalize(second, dim=1)
    logits, own = first @ second.T / temperature, torch.arange(len(first), device=first.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def fit(
    source: JoinedSource,
    width: int,
    *,
    epochs: int = 50,
    batch_size: int = 2048,
    lr: float = 5e-5,
    temperature: float = 0.07,
    normalize: bool = True,
    rows: int = 65_536,
    seed: int = 0,
) -> Alignment:
    """Train an alignment on the pairs of `source` (the paper's defaults: AdamW, weight decay 0.01, cosine decay). Deterministic on one device.

    Raises ValueError unless two sites are joined.
    """
    if len(source.columns) != 2:
        raise ValueError(f"{len(source.columns)} sites are joined, but an alignment is of two.")
    first, second = source.columns
    options = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "temperature": temperature}
    return fit_rows(source.sample_rows(rows, seed), (first, second), width, normalize=normalize, seed=seed, **options)  # type: ignore[arg-type]


@torch.enable_grad()
def fit_rows(
    x: Float[Tensor, "rows columns"],
    columns: tuple[int, int],
    width: int,
    *,
    epochs: int = 50,
    batch_size: int = 2048,
    lr: float = 5e-5,
    temperature: float = 0.07,
    normalize: bool = True,
    seed: int = 0,
) -> Alignment:
    """`fit` to joined rows at hand."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        alignment = Alignment(*columns, width).to(x.device)
    optimiser = torch.optim.AdamW(alignment.parameters(), lr=lr, weight_decay=0.01)
    steps = epochs * -(-len(x) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(epochs):
        for some in torch.randperm(len(x), generator=generator).split(batch_size):
            pair = Halves(*x[some].split(columns, 1))
            inner = alignment.encode(pair)
            loss = infonce(*inner, temperature, normalize)
            for want, got in zip(pair, alignment.decode(inner), strict=True):
                loss = loss + (want - got).square().sum() / spread(want).clamp_min(torch.finfo(want.dtype).tiny)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
    return alignment.eval().requires_grad_(False)


@torch.no_grad()
def aligned(source: JoinedSource, alignment: Alignment) -> JoinedSource:
    """The aligned rows of all pairs, in memory: what a VL-SAE trains on. Its fingerprint names the source and the alignment."""
    x = source.sample_rows(source.n_rows, 0)
    rows = torch.cat([alignment(some) for some in x.split(65_536)])
    weights = digest({name: tensor.tolist() for name, tensor in alignment.state_dict().items()})
    given = {key: value for key, value in source.fingerprint.items() if key not in ("joined", "columns")}
    halves = (part.contiguous() for part in rows.chunk(2, 1))
    return JoinedSource(
        *(TensorSource(half, given | {"alignment": weights, "side_of_pair": i}) for i, half in enumerate(halves))
    )


def save(alignment: Alignment, path: str | Path) -> None:
    """Write it to a directory, as safetensors and JSON."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    write_tensors(path / WEIGHTS, {name: tensor.contiguous() for name, tensor in alignment.state_dict().items()})
    about: dict[str, Any] = {"columns": alignment.columns, "width": alignment.width}
    write_json(path / ABOUT, about)


def load(path: str | Path) -> Alignment:
    """The inverse of `save`. Raises FileNotFoundError or ValueError with a sentence."""
    path = Path(path)
    if not (path / ABOUT).is_file():
        raise FileNotFoundError(f"{path} holds no alignment (there is no {ABOUT}).")
    about = read_json(path / ABOUT)
    first, second = about["columns"]
    alignment = Alignment(first, second, about["width"])
    alignment.load_state_dict(read_tensors(path / WEIGHTS))
    return alignment.eval().requires_grad_(False)
