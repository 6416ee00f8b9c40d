"""Text encoders of a diffusers pipeline, loaded alone; the pipeline itself, when something must be generated.

    model = load("diffusion", "stable-diffusion-v1-5/stable-diffusion-v1-5")     a hub name
    model = load("diffusion", "path/to/directory")                              as `save_pretrained` of a pipeline writes it
    pipe = model.pipeline()                                                     loads the denoiser and the autoencoder too
    with model.edit("text_encoder.encoder.layers.9", fn, prompt="conditional"):
        images = pipe("a red cat", "blurry", seeds=[0]).images

Sites are a subfolder and the module path of the encoder in it: "text_encoder.encoder.layers.N" (CLIP), "text_encoder_2.text_model.encoder.layers.N"
(CLIP with projection), "text_encoder_3.encoder.block.N" (T5). Mind which layer a pipeline uses: SDXL and SD3 take CLIP's last but one.
Denoiser blocks, with their time steps: `model.denoiser()`, or load(..., part="denoiser").
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from modalities.base import ActivationModel, Activations, Batch, NotTokens, Tokens
from modalities.cut import TellOfCut
from modalities.images import pooled
from modalities.layout import kinds_of
from modalities.loading import loading, local_dir, placed, provenance, read_config
from modalities.pipeline import Pipeline, on_prompt
from modalities.prompts import CONDITIONAL, Reading, how_it_reads
from modalities.sites import Site

if TYPE_CHECKING:
    from modalities.denoiser import Denoiser

TEXT = ("text_encoder", "tokenizer")
PARTS = ("text", "denoiser")


class Source(NamedTuple):
    """Where a pipeline's parts come from."""

    name: str
    contents: dict[str, Any]
    """Its model_index.json."""
    options: dict[str, Any]
    """For diffusers: revision, variant."""


class TextEncoders(ActivationModel):
    """The text encoders of one pipeline. Batches hold token ids [batch, length] under each encoder's name and, where the pipeline gives
    the encoder an attention mask, that under "NAME.attention_mask".

    `run` gives each encoder's own output by its name. Padding is to the pipeline's full length, as it always encodes.
    """

    def __init__(
        self, module: nn.ModuleDict, provenance: dict[str, Any], reading: Reading, library: Any, source: Source
    ) -> None:
        self.reading = reading
        self.tokenizers = {name: encoder.tokenizer for name, encoder in reading.encoders.items()}
        self._tell_of_cut = {name: TellOfCut(tokenizer) for name, tokenizer in self.tokenizers.items()}
        self.parts: tuple[str, ...] = (CONDITIONAL,)
        """Whose prompts the equal parts of the rows now passing are; a pipeline sets it."""
        self._library, self._source = library, source
        self._pipeline: Pipeline | None = None
        super().__init__(module, provenance, self._encoded(["a photo", ""]))

    def prepare(self, samples: Sequence[Any]) -> Batch:
        """First captions of samples (or texts), as the pipeline itself tokenises them. Raises ValueError for a sample without one."""
        texts = [caption_of(sample) for sample in samples]
        batch = self._encoded(texts)
        for name, tell in self._tell_of_cut.items():
            tell(texts, batch[name].shape[1])
        return batch

    def forward(self, batch: Batch) -> Any:
        return {
            name: self.module[name](batch[name], **self.reading.arguments(name, batch))  # type: ignore[index]
            for name in self.reading.encoders
            if name in batch
        }

    def activations(self, batch: Batch, sites: Sequence[str]) -> dict[str, Activations]:
        """As for every model; an encoder that is not asked for does not run."""
        wanted = {Site.parse(site).path.split(".")[0] for site in sites}
        return super().activations(
            {key: value for key, value in batch.items() if key.split(".")[0] in wanted} or batch, sites
        )

    @contextmanager
    def edit(
        self, site: str, fn: Callable[[Tensor, Tensor], Tensor], prompt: str = CONDITIONAL
    ) -> Iterator[ActivationModel]:
        """As for every model, in `run` and in calls of `pipeline()`.

        prompt: what is edited in a pipeline call: the "conditional" prompt, the "negative" one, or "both". What `run` encodes is
            conditional. A pipeline without guidance, or SDXL without a negative prompt, encodes no negative one.
        """
        with super().edit(site, on_prompt(fn, prompt, lambda: self.parts)):
            yield self

    def tokens(self, site: Site, hidden: Tensor, batch: Batch) -> Tokens:
        name = site.path.split(".")[0]
        if name not in batch:
            raise NotTokens(f"site '{site}' is in {name}: the batch has only {', '.join(batch)}.")
        kinds = kinds_of(batch[name], self.tokenizers[name])
        if hidden.ndim == 2 and len(hidden) == len(kinds):
            return pooled(hidden)
        if hidden.shape[:2] != kinds.shape or hidden.ndim != 3 or "relative_attention_bias" in site.path:
            raise NotTokens(
                f"site '{site}' passes {list(hidden.shape)} for {len(kinds)} prompts of {kinds.shape[1]} tokens: "
                "choose the module around it."
            )
        return Tokens(hidden, kinds, None, lambda new: new)

    def pipeline(self, **components: Any) -> Pipeline:
        """The whole pipeline around these text encoders; its denoiser and autoencoder are loaded at the first call.

        components: replace the pipeline's own, as scheduler=... or safety_checker=None. That makes a new pipeline, and gives it from then on.
        Raises FileNotFoundError or OSError where a part cannot be had.
        """
        if self._pipeline is None or components:
            from diffusers import DiffusionPipeline

            name, contents, options = self._source
            check_folders(name, contents, set(components))
            own = {part: component for part, component in self._library.components.items() if part.startswith(TEXT)}
            weight = next(self.module.parameters())
            with loading(name, 0):
                whole = DiffusionPipeline.from_pretrained(
                    str(local_dir(name) or name), torch_dtype=weight.dtype, **options, **(own | components)
                )
            self._pipeline = Pipeline(whole.to(weight.device), self)
        return self._pipeline

    def denoiser(self, *, seed: int = 0, negative_prompt: str | None = None, **options: Any) -> "Denoiser":
        """The pipeline's denoiser as a model whose blocks are read and edited step by step: see `modalities.denoiser`."""
        from modalities.denoiser import Denoiser

        return Denoiser(self.pipeline(), seed=seed, negative_prompt=negative_prompt, **options)

    @contextmanager
    def inside(self, name: str, ids: Int[Tensor, "batch length"], parts: tuple[str, ...]) -> Iterator[None]:
        """For `Pipeline`: encoder `name` now runs on these ids, which are those of the prompts `parts`."""
        outer = self._batch, self.parts
        self._batch, self.parts = {name: ids}, parts
        try:
            yield
        finally:
            self._batch, self.parts = outer

    def _encoded(self, texts: Sequence[str]) -> Batch:
        return self.reading.batch(self._library, texts)


def caption_of(sample: Any) -> str:
    """First caption of a sample, or the text itself. Raises ValueError for a sample without."""
    if isinstance(sample, str):
        return sample
    if not getattr(sample, "captions", ()):
        raise ValueError(f"sample {getattr(sample, 'key', '?')!r} has no caption: a text encoder needs one.")
    return str(sample.captions[0])


def load(
    name: str,
    *,
    part: str = "text",
    revision: str | None = None,
    variant: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **generation: Any,
) -> Any:
    """The text encoders of a pipeline from the hub or a directory; or, with part="denoiser", its denoiser.

    variant: which of the weight files, as "fp16".
    device, dtype: where and in what the models run; None keeps the library's choice (CPU, float32).
    generation: for the denoiser: see `modalities.denoiser.Denoiser`.

    Raises FileNotFoundError, OSError (cannot be had or read) or ValueError (no pipeline, no text encoder, unknown option), each one sentence.
    """
    if part not in PARTS:
        raise ValueError(f"part is {part!r}: choose one of {', '.join(PARTS)}.")
    if part == "text" and generation:
        raise ValueError(f"text encoders take no option {next(iter(generation))!r}: it is for part='denoiser'.")
    options = {key: value for key, value in (("revision", revision), ("variant", variant)) if value}
    directory = local_dir(name)
    from diffusers import DiffusionPipeline

    with loading(name, 0):
        index = None if directory else dict(DiffusionPipeline.load_config(name, revision=revision))
    index = index or read_config(Path(str(directory)), "model_index.json")
    parts = parts_of(name, index)
    encoders = [one for one in parts if one.startswith(TEXT[0])]
    unused = {one: None for one in parts if not one.startswith((*TEXT, "scheduler"))}
    check_folders(name, index, set(unused))
    quiet = {"requires_safety_checker": False} if "requires_safety_checker" in index else {}
    with loading(name, 0):
        library = DiffusionPipeline.from_pretrained(str(directory or name), **options, **unused, **quiet)
    module = nn.ModuleDict({one: getattr(library, one) for one in encoders})
    record = provenance(
        "diffusion",
        "diffusers",
        name,
        module,
        revision=revision,
        seed=None,
        preprocessing={},
        dtype=dtype,
    )
    placed(module, device, dtype).eval()
    reading = how_it_reads(name, library, encoders)
    record |= {"pipeline": index["_class_name"], "preprocessing": reading.record()}
    model = TextEncoders(module, record, reading, library, Source(name, index, options))
    return model if part == "text" else model.denoiser(**generation)


def parts_of(name: str, index: dict[str, Any]) -> list[str]:
    """The parts that a model_index.json names. Raises ValueError for one of no pipeline, or of one that reads no text."""
    if not isinstance(index.get("_class_name"), str):
        raise ValueError(f"{name} is no diffusers pipeline: its model_index.json names no pipeline class.")
    given = [key for key, value in index.items() if isinstance(value, list | tuple) and len(value) == 2 and all(value)]
    if not any(part.startswith(TEXT[0]) for part in given):
        raise ValueError(
            f"{name} is a {index['_class_name']}, which has no text encoder: choose a text-to-image pipeline."
        )
    return given


def check_folders(name: str, index: dict[str, Any], unused: set[str]) -> None:
    """Raises FileNotFoundError where a local pipeline lacks a part that is needed."""
    directory = local_dir(name)
    for part in parts_of(name, index):
        if directory is not None and part not in unused and not (directory / part).is_dir():
            raise FileNotFoundError(
                f"{directory} holds no folder {part}, which its model_index.json names: restore it."
            )
