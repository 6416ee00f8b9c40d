"""A sparse autoencoder is three parts:

u = encoder(x - b_dec)             pre-activations           vsae.encoders
z = sparsifier(u)                  a sparse code             vsae.sparsifiers
x_hat = dictionary(z) + b_dec      z D, for most             vsae.dictionaries

In a run directory it reads raw activations: x becomes (x - shift) / scale first and x_hat is taken back, with both folded into the weights where the
encoder is linear (`fuse`).
"""

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vsae.code import Code
from vsae.dictionaries import Dictionary, Free
from vsae.encoders import Encoder, Linear
from vsae.ops.coarse import fast_forms
from vsae.ops.rescored import Trust
from vsae.preactivations import PreActivations
from vsae.sparsifiers import Sparsifier


class Output(NamedTuple):
    x_hat: Float[Tensor, "batch d_out"]
    """Reconstruction."""

    code: Code
    """What it was made of."""


class Ends(NamedTuple):
    """The two ends of an SAE in a batch of training rows: for all but transcoders and their like, the rows themselves."""

    x: Float[Tensor, "batch d_model"]
    """What is encoded."""

    target: Float[Tensor, "batch d_out"]
    """What is to be reconstructed."""


class Capabilities(NamedTuple):
    """What evaluations may assume; what does not apply is refused with a reason."""

    linear_decoder: bool
    """x_hat - b_dec is a linear function of the code, so an atom is a latent's whole effect."""

    signed: bool
    """Codes can be negative."""

    batch_dependent: bool
    """A row's code depends on the other rows of its batch (in the present mode)."""

    modalities: int = 1
    """How many modalities' rows lie side by side in a row; codes of several lie one below the other (vsae.paired)."""


class SAE(nn.Module):
    """encoder, sparsifier, dictionary and a bias; `shift` and `scale` [d_model] where normalisation could not be folded into them.

    Inputs may have any float dtype; they are computed with in the parameters' own. Training calls `project_gradients_()` before the optimiser's step
    and `project_()` after it; nothing else ever changes a parameter.
    """

    shift: Tensor | None
    scale: Tensor | None

    def __init__(
        self,
        encoder: Encoder,
        sparsifier: Sparsifier,
        dictionary: Dictionary,
        b_dec: Float[Tensor, "d_model"],
        shift: Float[Tensor, "d_model"] | None = None,
        scale: Float[Tensor, "d_model"] | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        self.sparsifier = sparsifier
        self.dictionary = dictionary
        self.b_dec = nn.Parameter(b_dec.detach().clone())
        self.register_buffer("shift", None if shift is None else shift.detach().clone())
        self.register_buffer("scale", None if scale is None else scale.detach().clone())

    @staticmethod
    def from_weights(
        W_enc: Float[Tensor, "d_model n_latents"],
        b_enc: Float[Tensor, "n_latents"],
        W_dec: Float[Tensor, "n_latents d_model"],
        b_dec: Float[Tensor, "d_model"],
        sparsifier: Sparsifier,
    ) -> "SAE":
        """An inference SAE of plain parts from weights as files hold them (SAELens' names and layouts). No constraint on the atoms."""
        sae = SAE(Linear(W_enc.T, b_enc), sparsifier, Free(W_dec, unit_norm=False), b_dec)
        return sae.eval().requires_grad_(False)

    @staticmethod
    def load(run: str | Path, device: str | torch.device = "cpu", self_check: bool = True) -> "SAE":
        """The inference SAE of a run directory, on raw activations. See `vsae.run.Run.load`."""
        from vsae.run import Run

        return Run.load(run, device, self_check).sae

    @staticmethod
    def from_pretrained(
        name: str | Path,
        subfolder: str | None = None,
        *,
        device: str = "cpu",
        revision: str | None = None,
        **options: Any,
    ) -> "SAE":
        """The inference SAE of a local file or directory or of a repository on the hub, in any format `vsae.interop` reads. See `vsae.hub.pretrained`."""
        from vsae.hub import pretrained

        return pretrained(name, subfolder, revision, device, **options)

    def ends(self, rows: Float[Tensor, "batch columns"]) -> Ends:
        """What of a source's rows is encoded and what is to be reconstructed."""
        return Ends(rows, rows)

    def preactivations(self, x: Float[Tensor, "batch d_model"]) -> PreActivations:
        """Pre-activations of all latents, before any is selected."""
        x = x.to(self.b_dec.dtype)
        if self.shift is not None:
            x = x - self.shift
        if self.scale is not None:
            x = x / self.scale
        if self.sparsifier.entries_only:
            return self.encoder.around(x, self.b_dec, self.dictionary)
        return self.encoder(x - self.b_dec if self.encoder.centred else x, self.dictionary)

    def encode(self, x: Float[Tensor, "batch d_model"]) -> Code:
        return self.sparsifier(self.preactivations(x))

    def quick(self) -> "SAE":
        """Let a linear encoder look for the k largest at low precision in eval mode, too, where the processor is faster at it; changes and returns this SAE.

        Values stay exact, and a check on every 64th call goes back to exact selection where more than 0.05 % of the latents are missed. A row's
        misses may depend on the rows beside it, so measurements that must not are better made without.
        """
        if isinstance(self.encoder, Linear) and (forms := fast_forms(self.b_dec.device)):
            self.encoder.trust, self.encoder.quick = Trust(forms).to(self.b_dec.device), True
        return self

    def decode(self, code: Code) -> Float[Tensor, "batch d_model"]:
        x_hat = self.dictionary.decode(code) + self.b_dec
        if self.scale is not None:
            x_hat = x_hat * self.scale
        return x_hat if self.shift is None else x_hat + self.shift

    def forward(self, x: Float[Tensor, "batch d_model"]) -> Output:
        code = self.encode(x)
        return Output(self.decode(code), code)

    @property
    def atoms(self) -> Float[Tensor, "n_latents d_model"]:
        """The dictionary's rows in the units of x, with gradients."""
        return self.dictionary() if self.scale is None else self.dictionary() * self.scale

    @property
    def bias(self) -> Float[Tensor, "d_model"]:
        """What an empty code decodes to."""
        bias = self.b_dec if self.scale is None else self.b_dec * self.scale
        return bias if self.shift is None else bias + self.shift

    @property
    def W_enc(self) -> Float[Tensor, "d_model n_latents"]:
        """Encoder weights as files hold them; a view of the encoder's [n_latents, d_model]. AttributeError for an encoder without."""
        return self.linear.weight.T

    @property
    def b_enc(self) -> Float[Tensor, "n_latents"]:
        return self.linear.bias

    @property
    def linear(self) -> Linear:
        """The encoder, where it is a plain linear one and nothing happens to x before."""
        if not isinstance(self.encoder, Linear) or self.scale is not None or self.shift is not None:
            raise AttributeError(f"an SAE with a {type(self.encoder).__name__} encoder has no W_enc and b_enc.")
        return self.encoder

    @property
    def d_model(self) -> int:
        return len(self.b_dec)

    @property
    def n_latents(self) -> int:
        return self.dictionary.n_latents

    @property
    def capabilities(self) -> Capabilities:
        signed = self.sparsifier.signed or self.encoder.signed
        return Capabilities(self.dictionary.linear, signed, self.sparsifier.batch_dependent, self.dictionary.modalities)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What an optimiser trains: groups of parameters with `rate`, what their learning rate is to be multiplied by."""
        rates = {f"dictionary.{name}": rate for name, rate in self.dictionary.rates().items()}
        named = dict(self.named_parameters())
        groups = [{"params": [p for name, p in named.items() if name not in rates], "rate": 1.0}]
        return groups + [{"params": [named[name]], "rate": rate} for name, rate in rates.items()]

    def project_gradients_(self) -> None:
        """After backward, before the optimiser's step."""
        self.dictionary.project_gradients_()

    def project_(self) -> None:
        """After the optimiser's step."""
        self.dictionary.project_()
        self.sparsifier.project_()

    @torch.no_grad()
    def fuse(self, shift: Float[Tensor, "d_model"], scale: Float[Tensor, "*d_model"]) -> "SAE":
        """The inference SAE on raw activations. Training saw (x - shift) / scale, `scale` a scalar or one a dimension.

        The codes are the same; the reconstruction is of raw x. With an encoder that folds and a linear dictionary everything is in the weights,

            W_enc' = W_enc / scale    b_enc' = b_enc    W_dec' = D * scale    b_dec' = shift + scale * b_dec

        and the parts are plain (Linear, Free without constraint); otherwise the SAE keeps shift and scale, and its own parts.
        """
        scale = scale.expand(self.d_model)
        sparsifier = copy.deepcopy(self.sparsifier.inference())
        linear = self.encoder.fold(scale, self.dictionary) if self.dictionary.linear else None
        if linear is None:
            encoder, dictionary = copy.deepcopy((self.encoder.inference(), self.dictionary.inference()))
            sae = SAE(encoder, sparsifier, dictionary, self.b_dec, shift, scale)
        else:
            sae = SAE(linear, sparsifier, self.dictionary.folded(scale), shift + scale * self.b_dec)
        return sae.eval().requires_grad_(False)


def require(sae: Any, *, linear_decoder: bool = False, unsigned: bool = False, for_: str) -> None:
    """Refuse an SAE that lacks what `for_` (a phrase that can begin a sentence) assumes. Raises ValueError; what has no capabilities, as a baseline, passes."""
    found: Capabilities | None = getattr(sae, "capabilities", None)
    if found is None:
        return
    if linear_decoder and not found.linear_decoder:
        raise ValueError(
            f"{for_} takes a latent's atom for its whole effect, and this SAE's decoder is not linear in the code: choose an SAE with a linear decoder."
        )
    if unsigned and found.signed:
        raise ValueError(
            f"{for_} takes codes for positive, and this SAE's are signed: choose an SAE whose codes are not."
        )
