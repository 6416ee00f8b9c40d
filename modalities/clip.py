"""Image-text dual encoders (CLIP, SigLIP, CoCa), through open_clip: both towers, token by token, and the embeddings they meet in.

    load("clip", "ViT-B-32", pretrained="laion2b_s34b_b79k")    an open_clip name and one of its weights
    load("clip", "hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
    load("clip", "path/to/directory")                           open_clip_config.json and weights
    load("clip", "google/siglip-base-patch16-224")              transformers: see `modalities.dual`; or a directory it wrote

Sites are open_clip's module paths, and two more: "image_embedding" and "text_embedding", pooled and projected, not normalised.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from modalities.base import KINDS, ActivationModel, Activations, Batch, NotTokens, Tokens
from modalities.cut import TellOfCut
from modalities.dual import IMAGE, NEEDS, TEXT, DualModel, both, sides
from modalities.images import ImageTokens, filled, pooled
from modalities.layout import kinds_of
from modalities.loading import commit, loading, local_dir, placed, provenance, read_config
from modalities.preprocessing import of_transform
from modalities.sites import Site, nearest


class ClipModel(ActivationModel):
    """Two towers. Batches hold "image" [batch, 3, height, width], "text" [batch, length] (token ids), or both.

    `run` gives open_clip's own output: normalised features of each and the logit scale.
    """

    def __init__(
        self,
        module: nn.Module,
        provenance: dict[str, Any],
        transform: Callable[[Any], Tensor],
        tokenizer: Callable[[Any], Tensor],
    ) -> None:
        self._transform = transform
        self.tokenizer = tokenizer
        self._tell_of_cut = TellOfCut(tokenizer)
        visual: Any = module.visual
        self._image_tokens = ImageTokens(getattr(visual, "trunk", visual))
        places: dict[str, nn.Module] = {IMAGE: visual}
        if isinstance(getattr(module, "text", None), nn.Module):
            places[TEXT] = module.text  # type: ignore[assignment]
        else:
            places[TEXT] = _split_encode_text(module)
        size = visual.image_size
        example = {
            "image": torch.zeros(2, 3, *(size if isinstance(size, Sequence) else (size, size))),
            "text": tokenizer(["a photo"] * 2),
        }
        super().__init__(module, provenance, example, places)

    def prepare(self, samples: Sequence[Any]) -> Batch:
        """The images of samples that all have one, and the first captions of samples that all have one. Raises ValueError for neither."""
        images, captions = sides(samples)
        batch = {"image": torch.stack([self._transform(image) for image in images])} if images else {}
        return batch | (self.texts(captions) if captions else {})

    def texts(self, captions: Sequence[str]) -> Batch:
        """A batch of texts alone: with the "image" of another, what `logits` takes."""
        ids = self.tokenizer(list(captions))
        self._tell_of_cut(captions, ids.shape[1])
        return {"text": ids}

    def needs(self, sites: Sequence[str]) -> dict[str, str]:
        """What every sample must have -> the first of the sites that needs it."""
        towers = {"image" if self._is_image(Site.parse(site).path) else "text": site for site in reversed(sites)}
        return {NEEDS[tower]: site for tower, site in towers.items()}

    def logits(self, batch: Batch, gradients: bool = False) -> Float[Tensor, "images texts"]:
        """Every image against every text, by the model's own scale (and bias), with the edits in force: zero-shot logits."""
        module: Any = self.module
        batch = both(batch)
        image, text = (self.run({name: batch[name]}, gradients) for name in ("image", "text"))
        image, text = features(image, 0), features(text, 1)
        with torch.inference_mode(not gradients):
            scores = module.logit_scale.exp() * image @ text.T
            return scores if getattr(module, "logit_bias", None) is None else scores + module.logit_bias

    def forward(self, batch: Batch) -> Any:
        if "image" not in batch:
            return self._text_output(batch["text"])
        return self.module(image=batch["image"], text=batch.get("text"))

    def activations(self, batch: Batch, sites: Sequence[str]) -> dict[str, Activations]:
        """As for every model; a tower that is not asked for does not run."""
        towers = {"image" if self._is_image(Site.parse(site).path) else "text" for site in sites}
        return super().activations({name: value for name, value in batch.items() if name in towers} or batch, sites)

    def tokens(self, site: Site, hidden: Tensor, batch: Batch) -> Tokens:
        if site.path in (IMAGE, TEXT):
            return pooled(hidden)
        name = "image" if self._is_image(site.path) else "text"
        if name not in batch:
            raise NotTokens(f"site '{site}' is in the {name} tower: the batch has no {name!r}.")
        if hidden.ndim == 3 and self._sequence_first(site.path):
            seen = self._seen(site, hidden.transpose(0, 1), batch)
            return seen._replace(restore=lambda new: seen.restore(new).transpose(0, 1))
        return self._seen(site, hidden, batch)

    def _seen(self, site: Site, hidden: Tensor, batch: Batch) -> Tokens:
        if self._is_image(site.path):
            if "attn_pool" in site.path and hidden.ndim == 3 and hidden.shape[1] > 1 and site.side == "output":
                return Tokens(hidden, filled("special", hidden), None, lambda new: new)  # learned queries, not patches
            return self._image_tokens(site, hidden, batch["image"], self._places.get(site.path, self.module))
        kinds = text_kinds(batch["text"], self.tokenizer)
        if len(hidden) != len(kinds) or hidden.ndim not in (2, 3):
            raise NotTokens(
                f"site '{site}' passes {list(hidden.shape)} for {len(kinds)} texts: no row of tokens for each of them."
            )
        if hidden.ndim == 2:
            return pooled(hidden)
        if hidden.shape[1] > kinds.shape[1]:  # CoCa appends a class token
            kinds = torch.cat([kinds, filled("cls", hidden)[:, kinds.shape[1] :]], dim=1)
        if hidden.shape[1] != kinds.shape[1]:
            raise NotTokens(f"site '{site}' passes {hidden.shape[1]} tokens for {kinds.shape[1]} of text.")
        return Tokens(hidden, kinds, None, lambda new: new)

    def _text_output(self, text: Tensor) -> Any:
        """CoCa's own pass wants an image; its text features are then given alone."""
        if hasattr(self.module, "text_decoder"):
            return {"text_features": self.module.encode_text(text)}  # type: ignore[operator]
        return self.module(image=None, text=text)

    def _is_image(self, path: str) -> bool:
        return path == IMAGE or path.split(".")[0] == "visual"

    def _sequence_first(self, path: str) -> bool:
        """Inside a transformer that runs on [tokens, batch, d]; its own input and output are [batch, tokens, d]."""
        parts = path.split(".")
        around = [self._places.get(".".join(parts[:end])) for end in range(1, len(parts))]
        itself = self._places.get(path)
        inside = [*around, itself] if isinstance(itself, nn.MultiheadAttention) else around
        return any(getattr(place, "batch_first", True) is False for place in inside)


def features(output: Any, place: int) -> Float[Tensor, "batch d_model"]:
    """The normalised features of images (0) or texts (1) in what open_clip gives."""
    return output[("image_features", "text_features")[place]] if isinstance(output, dict) else output[place]


def text_kinds(ids: Int[Tensor, "batch length"], tokenizer: Any) -> UInt8[Tensor, "batch length"]:
    """Kind of each token id: `special` for start and end marks, `pad` for the filling, else `text`.

    open_clip's own tokenizer fills with 0, which is also "!": there only what follows the end mark is filling.
    """
    if hasattr(tokenizer, "tokenizer"):  # transformers', wrapped
        return kinds_of(ids, tokenizer.tokenizer)
    end = ids == tokenizer.eot_token_id
    kinds = torch.full_like(ids, KINDS.index("text"), dtype=torch.uint8)
    kinds[end | (ids == tokenizer.sot_token_id)] = KINDS.index("special")
    kinds[end.cumsum(1) > end.long()] = KINDS.index("pad")
    return kinds


def load(
    name: str,
    *,
    library: str | None = None,
    pretrained: str | bool | None = None,
    seed: int = 0,
    img_size: int | Sequence[int] | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> ClipModel | DualModel:
    """A dual encoder from open_clip's list, the hub or a directory.

    library: "open_clip" or "transformers", where the directory or the way the name is made does not tell.
    pretrained: which of the weights open_clip lists for a plain name (or a file); False takes random weights drawn from `seed`.
    img_size: pixels, an edge or (height, width), where it is not to be the model's own.

    Raises FileNotFoundError, OSError (cannot be had or read) or ValueError (unknown name or option), each one sentence.
    """
    if (library or _library_of(name)) == "transformers":
        from modalities import dual

        if img_size is not None or isinstance(pretrained, str):
            raise ValueError(
                f"{name} is of transformers, which takes neither img_size nor names of weights: leave them out."
            )
        return dual.load(name, pretrained=pretrained is not False, seed=seed, device=device, dtype=dtype)
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    path = name.removeprefix("local-dir:")
    directory = local_dir(path)
    if directory is None and path != name:
        raise FileNotFoundError(f"there is no directory {path}: give a directory with an open_clip model.")
    source, options = name, {}
    if directory is not None:
        source, options = f"local-dir:{directory}", _local_text(directory)
    elif ":" not in name:
        if name.replace("/", "-") not in open_clip.list_models():
            raise ValueError(
                f"open_clip has no model {name!r}; the nearest are {nearest(name, open_clip.list_models())}."
            )
        tags = open_clip.list_pretrained_tags_by_model(name)
        if pretrained is None or pretrained is True:
            raise ValueError(
                f"{name} has several weights: say pretrained=... one of {', '.join(tags)}, or False for random ones."
            )
    size = None if img_size is None else ((img_size, img_size) if isinstance(img_size, int) else tuple(img_size))
    random = pretrained is False
    with loading(name, seed):
        module = open_clip.create_model(
            source,
            pretrained=pretrained if isinstance(pretrained, str) and ":" not in source else None,
            load_weights=not random,
            require_pretrained=not random,
            pretrained_text=False,
            force_image_size=size,
            **options,
        )
        transform = image_transform_v2(PreprocessCfg(**module.visual.preprocess_cfg), is_train=False)
        tokenizer = open_clip.get_tokenizer(source)
    record = provenance(
        "clip",
        "open_clip_torch",
        path,
        module,
        revision=pretrained if isinstance(pretrained, str) else _commit(name) if not random else None,
        seed=seed if random else None,
        preprocessing=of_transform(transform),
        dtype=dtype,
    )
    return ClipModel(placed(module, device, dtype), record, transform, tokenizer)


def _commit(name: str) -> str | None:
    """Which commit of a repository of the hub was loaded."""
    scheme, _, repository = name.partition(":")
    return commit(repository, "open_clip_config.json") if scheme == "hf-hub" else None


def _library_of(name: str) -> str:
    """By what is in the directory, or how the name is made: ORGANISATION/NAME is the hub's, for transformers."""
    import open_clip

    directory = local_dir(name.removeprefix("local-dir:"))
    if directory is not None:
        own = (directory / "open_clip_config.json").is_file() or not (directory / "config.json").is_file()
        return "open_clip" if own else "transformers"
    listed = ":" in name or name.replace("/", "-") in open_clip.list_models()
    return "transformers" if "/" in name and not listed else "open_clip"


def _local_text(directory: Path) -> dict[str, Any]:
    """Where the text tower of a directory is a transformers model that lies in it, say so: open_clip looks in the working directory."""
    config = read_config(directory, "open_clip_config.json")
    text = config.get("model_cfg", {}).get("text_cfg", {})
    inside = directory / str(text.get("hf_model_name") or "")
    if not text.get("hf_model_name") or not (inside / "config.json").is_file():
        return {}
    return {"text_cfg": text | {"hf_model_name": str(inside.resolve()), "hf_model_pretrained": False}}


def _split_encode_text(module: Any) -> nn.Module:
    """A place between the projection and the normalisation of open_clip's built-in text tower, which is a method and no module."""
    own, place = module.encode_text, nn.Identity()

    def encode_text(text: Tensor, normalize: bool = False) -> Tensor:
        features = place(own(text))
        return nn.functional.normalize(features, dim=-1) if normalize else features

    module.encode_text = encode_text
    return place
