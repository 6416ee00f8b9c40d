"""Image-text dual encoders of transformers: CLIP and SigLIP. `load("clip", ...)` of `modalities.clip` comes here for their directories and names.

Sites are transformers' module paths (vision_model.encoder.layers.N, text_model.encoder.layers.N, ...self_attn.out_proj:input), and
"image_embedding" and "text_embedding", the pooled vectors before they are normalised.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from modalities.base import ActivationModel, Activations, Batch, NotTokens, Tokens
from modalities.cut import TellOfCut
from modalities.images import ImageTokens, image_of, pooled
from modalities.layout import kinds_of
from modalities.loading import config_commit, loading, local_dir, placed, provenance
from modalities.preprocessing import of_processor
from modalities.sites import Site

IMAGE, TEXT = "image_embedding", "text_embedding"
NEEDS = {"image": "image", "text": "caption"}
"""Tower -> what a sample must have for it."""


class DualModel(ActivationModel):
    """Two towers. Batches hold "image" [batch, 3, height, width], "text" [batch, length] with CLIP's "attention_mask", or both.

    `run` gives transformers' own output: of the whole model, or of the one tower that the batch is for.
    """

    def __init__(self, module: nn.Module, provenance: dict[str, Any], processor: Any, tokenizer: Any) -> None:
        inner: Any = module
        self.processor, self.tokenizer = processor, tokenizer
        self._tell_of_cut = TellOfCut(tokenizer)
        self.length = inner.config.text_config.max_position_embeddings
        self._masked = inner.config.model_type == "clip"
        self._image_tokens = ImageTokens(inner.vision_model)
        clip = hasattr(inner, "visual_projection")
        places = {
            IMAGE: inner.visual_projection if clip else inner.vision_model.head,
            TEXT: inner.text_projection if clip else inner.text_model.head,
        }
        size = inner.config.vision_config.image_size
        example = {"image": torch.zeros(2, 3, size, size)} | self._words(["a photo"] * 2)
        super().__init__(module, provenance, example, places)

    def prepare(self, samples: Sequence[Any]) -> Batch:
        """The images of samples that all have one, and the first captions of samples that all have one. Raises ValueError for neither."""
        images, captions = sides(samples)
        batch = {"image": self.processor(images=images, return_tensors="pt")["pixel_values"]} if images else {}
        return batch | (self._words(captions) if captions else {})

    def texts(self, captions: Sequence[str]) -> Batch:
        """A batch of texts alone: with the "image" of another, what `logits` takes."""
        return self._words(list(captions))

    def needs(self, sites: Sequence[str]) -> dict[str, str]:
        """What every sample must have -> the first of the sites that needs it."""
        return {NEEDS[self._tower(Site.parse(site).path)]: site for site in reversed(sites)}

    def logits(self, batch: Batch, gradients: bool = False) -> Float[Tensor, "images texts"]:
        """Every image against every text, by the model's own scale (and bias), with the edits in force: zero-shot logits."""
        return self.run(both(batch), gradients).logits_per_image

    def forward(self, batch: Batch) -> Any:
        module: Any = self.module
        words = {"input_ids": batch["text"]} if "text" in batch else {}
        if "attention_mask" in batch:
            words["attention_mask"] = batch["attention_mask"]
        if "image" not in batch:
            return module.get_text_features(**words)
        if not words:
            return module.get_image_features(pixel_values=batch["image"])
        return module(pixel_values=batch["image"], **words)

    def activations(self, batch: Batch, sites: Sequence[str]) -> dict[str, Activations]:
        """As for every model; a tower that is not asked for does not run."""
        towers = {self._tower(Site.parse(site).path) for site in sites}
        named = {"image": {"image"}, "text": {"text", "attention_mask"}}
        wanted = {name for tower in towers for name in named[tower]}
        return super().activations({name: value for name, value in batch.items() if name in wanted} or batch, sites)

    def tokens(self, site: Site, hidden: Tensor, batch: Batch) -> Tokens:
        if site.path in (IMAGE, TEXT):
            return pooled(hidden)
        tower = self._tower(site.path)
        if tower not in batch:
            raise NotTokens(f"site '{site}' is in the {tower} tower: the batch has no {tower!r}.")
        if tower == "image":
            return self._image_tokens(site, hidden, batch["image"], self._places[site.path])
        if hidden.ndim == 2 and len(hidden) == len(batch["text"]):
            return pooled(hidden)
        kinds = kinds_of(batch["text"], self.tokenizer)
        if hidden.ndim != 3 or hidden.shape[:2] != kinds.shape:
            raise NotTokens(f"site '{site}' passes {list(hidden.shape)} for texts of {list(kinds.shape)} tokens.")
        return Tokens(hidden, kinds, None, lambda new: new)

    def _tower(self, path: str) -> str:
        return "image" if path == IMAGE or path.split(".")[0] in ("vision_model", "visual_projection") else "text"

    def _words(self, captions: list[str]) -> Batch:
        made = self.tokenizer(
            captions, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        self._tell_of_cut(captions, self.length)
        # SigLIP was trained to see its padding
        masked = self._masked and "attention_mask" in made
        return {"text": made["input_ids"]} | ({"attention_mask": made["attention_mask"]} if masked else {})


def sides(samples: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """The images of samples that all have one, and the first captions of samples that all have one. Raises ValueError for neither."""
    with_image = all(getattr(sample, "image", sample) is not None for sample in samples)
    with_caption = all(getattr(sample, "captions", ()) for sample in samples)
    if not with_image and not with_caption:
        raise ValueError(
            "some samples have no image and some no caption: give the model one or the other for all of them."
        )
    images = [image_of(sample) for sample in samples] if with_image else []
    return images, [sample.captions[0] for sample in samples] if with_caption else []


def both(batch: Batch) -> Batch:
    """The batch, if it has images and texts. Raises ValueError for one without."""
    if lacking := [name for name in ("image", "text") if name not in batch]:
        raise ValueError(f"logits compare images with texts: the batch has no {lacking[0]!r}.")
    return batch


def load(
    name: str,
    *,
    pretrained: bool = True,
    seed: int = 0,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> DualModel:
    """A CLIP or SigLIP of transformers, from the hub or a directory with its processor. Options and errors as for `modalities.clip.load`."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

    source, told = str(local_dir(name) or name), {"revision": revision} if revision else {}
    with loading(name, seed):
        config = AutoConfig.from_pretrained(source, **told)
    if config.model_type not in ("clip", "siglip"):
        raise ValueError(
            f"{name} is a {config.model_type}, no CLIP or SigLIP of a fixed size: load it with its own family, or from open_clip."
        )
    with loading(name, seed):
        if pretrained:
            module, info = AutoModel.from_pretrained(source, output_loading_info=True, **told)
        else:
            module, info = AutoModel.from_config(config), {"missing_keys": ()}
    if lost := sorted(info["missing_keys"]):
        raise OSError(f"the weights of {name} lack {len(lost)} of the model's tensors, as {lost[0]!r}: restore them.")
    try:
        processor = AutoImageProcessor.from_pretrained(source, **told)
        tokenizer = AutoTokenizer.from_pretrained(source, **told)
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise FileNotFoundError(
            f"{name} lacks its image processor or tokenizer: save both beside the weights ({said})"
        ) from error
    record = provenance(
        "clip",
        "transformers",
        name,
        module,
        revision=revision or config_commit(config, name),
        seed=None if pretrained else seed,
        preprocessing=of_processor(processor),
        dtype=dtype,
    )
    return DualModel(placed(module, device, dtype), record, processor, tokenizer)
