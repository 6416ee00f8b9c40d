"""Scores of image-text samples straight from a model's activations, a batch at a time, with the latents behind each.

    Pairs   a VL-SAE's run on the embeddings of images and captions: agreement, and CLIP score beside it
    Mixed   a run on the token stream of an image-text model: SAE-V's scores (evals.filtering.sae_v), by weights fitted on some samples before

What is behind a score: for Pairs, a latent's share of the codes' cosine; for Mixed, the weight of a latent that speaks in both image and text.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array, vstack

from evals import cross_modal
from evals.filtering import active, agreement, sae_v
from evals.filtering_runs import cosines
from evals.memorisation import norms
from evals.mixed_codes import sample_codes
from evals.pooling import pooled
from vsae.code import Code
from vsae.interventions import placed
from vsae.run import Run


class Seen(NamedTuple):
    """Of a batch of samples."""

    scores: dict[str, Float[np.ndarray, "samples"]]
    """Larger: keep. NaN where a sample has no image or no text token."""
    behind: csr_array
    """[samples, n_latents], how much each latent adds."""


class Pairs:
    """A run on two embeddings. Raises ValueError for another."""

    def __init__(self, run: Run) -> None:
        self.sides = run.side(0), run.side(1)
        if len({side.sae.d_model for side in self.sides}) > 1:
            raise ValueError(
                f"{run.path} reads sites of two widths, which have no CLIP score to be held against: filter by a run on two embeddings of one width."
            )
        self.sites = [site_of(side.fingerprint) for side in self.sides]
        self.headline = "agreement"
        self.names = ("agreement", "clip")

    @torch.inference_mode()
    def __call__(self, activations: Mapping[str, Any]) -> Seen:
        """`activations`: by site, values [samples, 1, d_model] as modalities give them."""
        codes, raw = [], []
        for side, site in zip(self.sides, self.sites, strict=True):
            x = activations[site].values[:, 0].to(side.sae.b_dec)
            code = side.sae.encode(x)
            values = Code(code.values.float().cpu(), code.indices.cpu())
            codes.append(pooled(values, side.sae.n_latents, np.arange(len(x)), "token"))
            raw.append(x.float().cpu())
        image, text = (csr_array(code) for code in codes)
        lengths = np.maximum(norms(image) * norms(text), np.finfo(float).tiny)
        behind = csr_array(image.multiply(text).multiply((1 / lengths)[:, None]))
        return Seen({"agreement": agreement(image, text), "clip": cosines(*raw)}, behind)


class Mixed:
    """A run on samples of image and text tokens; `fit` before the first call."""

    def __init__(self, run: Run, kind_names: Sequence[str]) -> None:
        self.kind_names = tuple(kind_names)
        self.run, self.kinds = run, (kind_names.index("image"), kind_names.index("text"))
        self.sides, self.sites = (run,), [site_of(run.fingerprint)]
        self.headline = "both"
        self.names = ("both", "union", "per_token", "cooccurring", "l0", "l1")
        self.weights = np.full(run.sae.n_latents, np.nan)

    @torch.inference_mode()
    def fit(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Cross-modal weights (the code's form, about the mean state of each modality: ours) from batches of activations, which are held in memory.

        Raises ValueError where no latent speaks for enough tokens of both.
        """
        found = [self._rows(activations) for activations in batches]
        is_image = np.concatenate([side for _, _, side, _ in found]) if found else np.zeros(0, bool)
        if is_image.all() or not is_image.any():
            raise ValueError("the weights need samples with image and text tokens: the first samples have none of one.")
        x = torch.cat([values for values, *_ in found])
        codes = csr_array(vstack([self._tokens(code) for *_, code in found], "csr"))
        image, text = (x[torch.from_numpy(mask)].mean(0, dtype=torch.float64).numpy() for mask in (is_image, ~is_image))
        self.weights = cross_modal.weights(
            codes, is_image, lambda rows: x[torch.from_numpy(rows)].double().numpy(), centres=(image, text)
        )
        if np.isnan(self.weights).all():
            raise ValueError(
                f"no latent speaks for {cross_modal.LEAST} image and {cross_modal.LEAST} text tokens or more of the samples "
                "that weights are fitted on: take more of them, or another site."
            )

    @torch.inference_mode()
    def __call__(self, activations: Mapping[str, Any]) -> Seen:
        n = len(activations[self.sites[0]].values)
        _, owner, is_image, code = self._rows(activations)
        whole, codes, _ = sample_codes(code, owner, is_image, self.run.sae.n_latents)
        scores = {name: np.full(n, np.nan) for name in self.names}
        for name, score in sae_v(codes, self.weights).items():
            scores[name][whole] = score
        both = active(codes.image, 0.0).multiply(active(codes.text, 0.0)).multiply(np.nan_to_num(self.weights)[None])
        place = csr_array((np.ones(len(whole)), (whole, np.arange(len(whole)))), shape=(n, len(whole)))
        return Seen(scores, csr_array(place @ csr_array(both)))

    def _rows(self, activations: Mapping[str, Any]) -> tuple[torch.Tensor, Int[np.ndarray, "rows"], np.ndarray, Code]:
        """Image and text tokens: hidden states, the sample each is of, whether it is an image's, and its code."""
        values, kinds, _ = activations[self.sites[0]]
        kept = (kinds == self.kinds[0]) | (kinds == self.kinds[1])
        kept &= placed(kinds, self.kind_names) >= self.run.skip
        owner = torch.arange(len(values), device=values.device)[:, None].expand_as(kinds)[kept].cpu().numpy()
        x = values[kept]
        code = self.run.sae.encode(x.to(self.run.sae.b_dec))
        is_image = (kinds[kept] == self.kinds[0]).cpu().numpy()
        return x.cpu(), owner, is_image, Code(code.values.float().cpu(), code.indices.cpu())

    def _tokens(self, code: Code) -> csr_array:
        return csr_array(pooled(code, self.run.sae.n_latents, np.arange(len(code.values)), "token"))


def site_of(fingerprint: Mapping[str, Any]) -> str:
    """As modalities name it."""
    return fingerprint["site"] + (":input" if fingerprint.get("side") == "input" else "")
