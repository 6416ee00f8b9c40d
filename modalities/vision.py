"""Vision backbones: any timm model, any transformers vision model. DINOv2, with and without registers, is the flagship.

load("vision", "vit_small_patch14_reg4_dinov2.lvd142m")     a timm name, or "hf-hub:..." for timm weights on the hub
load("vision", "facebook/dinov2-small")                     a transformers name
load("vision", "path/to/directory")                         either, by what config.json says
"""

import warnings
from collections.abc import Callable, Collection, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from modalities.base import ActivationModel, Batch, Tokens
from modalities.images import ImageTokens, Size, image_of
from modalities.loading import commit, config_commit, loading, local_dir, placed, provenance, read_config
from modalities.preprocessing import of_processor, of_transform
from modalities.sites import Site, nearest


class VisionModel(ActivationModel):
    """An image backbone. Batches are {"image": [batch, 3, height, width]}; `run` gives what the library's model gives.

    transform: PIL image -> [3, height, width]. options: passed to the module's forward.
    """

    def __init__(
        self,
        module: nn.Module,
        provenance: dict[str, Any],
        transform: Callable[[Any], Tensor],
        size: Size,
        options: dict[str, Any] | None = None,
    ) -> None:
        self._transform = transform
        self._options = options or {}
        self._tokens = ImageTokens(module)
        super().__init__(module, provenance, {"image": torch.zeros(2, 3, *size)})

    def prepare(self, samples: Sequence[Any]) -> Batch:
        return {"image": torch.stack([self._transform(image_of(sample)) for sample in samples])}

    def forward(self, batch: Batch) -> Any:
        return self.module(batch["image"], **self._options)

    def tokens(self, site: Site, hidden: Tensor, batch: Batch) -> Tokens:
        return self._tokens(site, hidden, batch["image"], self._places[site.path])


def load(
    name: str,
    *,
    library: str | None = None,
    pretrained: bool = True,
    seed: int = 0,
    img_size: int | Sequence[int] | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> VisionModel:
    """A vision backbone from the hub or a directory.

    library: "timm" or "transformers"; None: what the name or the directory's config.json says.
    pretrained: False takes random weights drawn from `seed`, which the provenance says.
    img_size: pixels, an edge or (height, width), where it is not to be the model's own.
    device, dtype: where and in what the model runs; None keeps the library's choice.

    Raises FileNotFoundError, OSError (cannot be had or read) or ValueError (unknown name or option), each one sentence.
    """
    library = library or _library_of(name)
    if library not in ("timm", "transformers"):
        raise ValueError(f"library is {library!r}: choose 'timm' or 'transformers'.")
    build = _timm if library == "timm" else _transformers
    module, transform, preprocessing, options, revision = build(name, pretrained, seed, _size(img_size))
    record = provenance(
        "vision",
        library,
        name,
        module,
        revision=revision,
        seed=None if pretrained else seed,
        preprocessing=preprocessing,
        dtype=dtype,
    )
    height, width = preprocessing["crop"] or preprocessing["resize"]
    return VisionModel(placed(module, device, dtype), record, transform, (height, width), options)


Built = tuple[nn.Module, Callable[[Any], Tensor], dict[str, Any], dict[str, Any], str | None]


def _timm(name: str, pretrained: bool, seed: int, size: Size | None) -> Built:
    import timm

    directory = local_dir(name)
    hub = name.startswith(("hf-hub:", "hf_hub:", "local-dir:"))
    if directory is None and not hub and "/" in name:
        name, hub = f"hf-hub:{name}", True
    if directory is None and not hub and not timm.is_model(name.split(".")[0]):
        raise ValueError(f"timm has no model {name!r}; the nearest are {nearest(name, timm.list_models())}.")
    source = f"local-dir:{directory}" if directory else name
    with loading(name, seed):
        try:
            options: dict[str, Any] = {"img_size": size} if size else {}
            module = timm.create_model(source, pretrained=pretrained, **options)
        except TypeError as error:
            if size is None or "img_size" not in str(error):
                raise
            module = timm.create_model(source, pretrained=pretrained)  # convolutions take any size
    wanted = {"input_size": (3, *size)} if size else {}
    transform = timm.data.create_transform(**timm.data.resolve_data_config(wanted, model=module))
    known: Any = module.pretrained_cfg
    origin = known.get("hf_hub_id") or known.get("tag")
    loaded = commit(origin, "model.safetensors", "config.json") if known.get("hf_hub_id") and not directory else None
    revision = (loaded or origin) if pretrained else None
    return module, transform, of_transform(transform), {}, revision


def _transformers(name: str, pretrained: bool, seed: int, size: Size | None) -> Built:
    from transformers import AutoConfig, AutoModel

    source = str(local_dir(name) or name)
    with loading(name, seed):
        config = AutoConfig.from_pretrained(source)
        config = getattr(config, "vision_config", config)  # the image tower of CLIP, SigLIP and the like
        if pretrained:
            module, info = AutoModel.from_pretrained(source, config=config, output_loading_info=True)
        else:
            module, info = AutoModel.from_config(config), {"missing_keys": ()}
    _refuse_missing(name, info["missing_keys"])
    processor = _processor(source, config)
    options = {}
    if size is None:
        preprocessing = of_processor(processor)

        def transform(image: Any) -> Tensor:
            return processor(images=image, return_tensors="pt")["pixel_values"][0]
    else:
        transform = _resized(processor, size)
        preprocessing = of_transform(transform)
    if "interpolate_pos_encoding" in signature(module.forward).parameters:
        height, width = preprocessing["crop"] or preprocessing["resize"]
        own = getattr(config, "image_size", None)
        if [height, width] != ([own, own] if isinstance(own, int) else own and list(own)):
            options = {"interpolate_pos_encoding": True}
    return module, transform, preprocessing, options, config_commit(config, name)


def _refuse_missing(name: str, missing: Collection[str]) -> None:
    """transformers fills in what a checkpoint lacks at random: that is refused, but for a pooler behind the last layer."""
    if lost := sorted(key for key in missing if not key.startswith("pooler.")):
        raise OSError(
            f"the weights of {name} lack {len(lost)} of the model's tensors, as {lost[0]!r}: is it another kind of model?"
        )
    if missing:
        warnings.warn(
            f"{name} has no weights for its pooler: they are random, and so is the site 'pooler'.", stacklevel=5
        )


def _processor(source: str, config: Any) -> Any:
    """The image processor beside the weights; failing that, and with a warning, the usual one of the model's kind."""
    from transformers import AutoImageProcessor, BitImageProcessor, CLIPImageProcessor, ViTImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError, KeyError):
        kind, edge = str(config.model_type), getattr(config, "image_size", None) or 224
        edge = edge if isinstance(edge, int) else edge[0]
        warnings.warn(
            f"{source} has no preprocessor_config.json: taking the usual preprocessing of {kind} at {edge} pixels.",
            stacklevel=5,
        )
        shortest: dict[str, Any] = {"size": {"shortest_edge": edge}, "crop_size": {"height": edge, "width": edge}}
        if kind.startswith("clip"):
            return CLIPImageProcessor(**shortest)
        if kind.startswith(("dinov2", "convnext", "resnet")):
            mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
            return BitImageProcessor(**shortest, image_mean=mean, image_std=std)
        return ViTImageProcessor(size={"height": edge, "width": edge})


def _resized(processor: Any, size: Size) -> Any:
    """The processor's colours and manner (squash, or cover and crop) at another size."""
    from timm.data.transforms import ResizeKeepRatio
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    from modalities.preprocessing import interpolation

    mode = InterpolationMode(interpolation(processor.resample))
    squash = set(dict(processor.size)) >= {"height", "width"} and not getattr(processor, "do_center_crop", False)
    steps = [Resize(size, mode)] if squash else [ResizeKeepRatio(size, interpolation=mode), CenterCrop(size)]
    return Compose([*steps, ToTensor(), Normalize(processor.image_mean, processor.image_std)])


def _library_of(name: str) -> str:
    """timm or transformers, by what is in the directory, or how the name is made."""
    directory = local_dir(name)
    if directory is not None:
        config = read_config(directory, "config.json")
        if "model_type" in config:
            return "transformers"
        if "architecture" in config:
            return "timm"
        raise ValueError(
            f"{directory / 'config.json'} is neither timm's nor transformers': say library='timm' or 'transformers'."
        )
    if name.startswith(("hf-hub:", "hf_hub:", "local-dir:", "timm/")) or "/" not in name:
        return "timm"
    return "transformers"


def _size(img_size: int | Sequence[int] | None) -> Size | None:
    if img_size is None:
        return None
    edges = [img_size, img_size] if isinstance(img_size, int) else list(img_size)
    if len(edges) != 2 or not all(isinstance(edge, int) and edge > 0 for edge in edges):
        raise ValueError(f"img_size is {img_size!r}: give pixels, an edge or (height, width).")
    return edges[0], edges[1]
