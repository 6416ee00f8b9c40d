"""Image-text models of transformers: LLaVA-1.5, LLaVA-NeXT, FastVLM, Qwen2-VL, Qwen2.5-VL, and others that make tokens as these do.

    load("llava", "llava-hf/llava-1.5-7b-hf")
    load("llava", "path/to/directory")        as `save_pretrained` of the model and of its processor write it

Sites are the model's own module paths; in LLaVA (in Qwen: model.visual.blocks.N, model.visual.merger):

    model.vision_tower.encoder.layers.N       patches of each image, those of a prompt's images one after the other
    model.multi_modal_projector               the same as image tokens
    model.language_model.layers.N             residual stream over all tokens; ":input", .mlp, .self_attn.o_proj:input as in `llm`

A tower's own output is that of its last layer, which LLaVA does not use: to edit what it does use, take "...projector:input".
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor, nn

from modalities.base import KINDS, Batch, NotTokens, Tokens
from modalities.causal import N_IMAGES, CausalModel
from modalities.chat import conversation, defused, joined, render, with_images
from modalities.image_cells import fixed_cells, image_cells, next_tiles, place
from modalities.images import ImageTokens, filled
from modalities.layout import padded, positions, regrouped, rows_of_counts
from modalities.llm import check_length, check_limit, check_padding, context_limit, filler, within
from modalities.loading import config_commit, loading, local_dir, placed, provenance
from modalities.preprocessing import of_processor
from modalities.sites import Site

PER_TOKEN = {"input_ids": 0, "attention_mask": 0, "mm_token_type_ids": 0, "token_type_ids": 0}
"""What a processor gives for each token, and what it is for padding (the ids have their own)."""


class ImageTextModel(CausalModel):
    """An image-text model. `run` gives transformers' own output. Batches hold what its processor gives, and marks of every token."""

    def __init__(
        self,
        module: nn.Module,
        provenance: dict[str, Any],
        processor: Any,
        *,
        prompt: str | None = None,
        length: int | None = None,
        padding: str = "right",
        chat_template: str | None = None,
    ) -> None:
        from PIL import Image

        self.processor, self.length, self.padding, self.limit = processor, length, padding, context_limit(module)
        self.tokenizer = processor.tokenizer
        self._prompt, self._template = prompt, chat_template
        config: Any = module.config
        self._config = config
        self._image_token = int(self._config.image_token_id)
        inner: Any = getattr(module, "model", module)
        words = module.get_input_embeddings()  # type: ignore[operator]
        towers = {
            name: child
            for name, child in inner.named_children()
            if words not in child.modules() and any(True for _ in child.parameters())
        }
        self._towers = tuple(f"model.{name}" if inner is not module else name for name in towers)
        # A fixed number until the example shows which.
        self._each, self._grid = 1, None
        grey = self._encoded("the example", processor.image_token, [], [Image.new("RGB", (64, 64), (128,) * 3)])
        if "pixel_values" in grey and grey["pixel_values"].ndim == 4:
            self._each = int((grey["input_ids"] == self._image_token).sum())
            cells = fixed_cells(self._each, (grey["pixel_values"].shape[2], grey["pixel_values"].shape[3]))
            self._grid = (int(cells.row.max()) + 1, int(cells.column.max()) + 1) if int(cells.row.max()) >= 0 else None
        self._tower = ImageTokens(next(iter(towers.values())))
        super().__init__(module, provenance, processor.tokenizer, self._together([grey]))

    def prepare(self, samples: Sequence[Any]) -> Batch:
        """Samples, conversations or texts (see `modalities.chat`) in the model's chat template, with their images.

        Raises ValueError, naming the sample, where images and their places do not agree, or where the tokens are too many.
        """
        return self.marked(self._together([self._one(sample) for sample in samples]))

    def _one(self, sample: Any) -> Batch:
        said = conversation(sample, self._prompt)
        marks = {
            *self.tokenizer.all_special_tokens,
            self.processor.image_token,
            getattr(self.processor, "video_token", None),
        }
        turns = defused(with_images(said), sorted(mark for mark in marks if mark))
        text, answers = render(said.name, turns, self._through_template)
        return self._cut(
            said.name, self._encoded(said.name, text, answers, [image.convert("RGB") for image in said.images])
        )

    def _through_template(self, messages: list[dict[str, Any]], is_open: bool) -> str:
        if not (self._template or self.processor.chat_template):
            return joined(self.processor.image_token)(messages, is_open)
        return self.processor.apply_chat_template(
            messages, chat_template=self._template, tokenize=False, add_generation_prompt=is_open
        )

    def _encoded(self, name: str, text: str, answers: Sequence[tuple[int, int]], images: Sequence[Any]) -> Batch:
        """One sample as the processor gives it, [1, length] and images, with the mark of its answer."""
        begin = self.tokenizer.bos_token
        special = not (begin and text.startswith(begin))
        try:
            made = self.processor(
                text=[text], images=list(images) or None, add_special_tokens=special, return_tensors="pt"
            )
        except ValueError as error:
            raise ValueError(
                f"{name} does not suit the model's processor: {' '.join(str(error).split())[:200]}"
            ) from error
        ids = made["input_ids"][0]
        answer = torch.zeros(len(ids), dtype=torch.bool)
        if answers:
            told = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
            answer = expanded(
                torch.tensor(told["input_ids"]), within(told["offset_mapping"], answers), ids, self._image_token
            )
        return dict(made) | {"answer": answer[None]}

    def _cut(self, name: str, one: Batch) -> Batch:
        ids = one["input_ids"][0]
        check_length(name, len(ids), self.length, self.limit)
        if self.length is not None and bool((ids[self.length :] == self._image_token).any()):
            raise ValueError(f"{name} has image tokens after the first {self.length}: give a larger length than that.")
        return {key: value[:, : self.length] if key in (*PER_TOKEN, "answer") else value for key, value in one.items()}

    def _together(self, ones: Sequence[Batch]) -> Batch:
        """One batch of prepared samples: sequences are padded, images follow each other."""
        fills = PER_TOKEN | {"input_ids": filler(self.tokenizer), "answer": False}
        batch: Batch = {}
        for key in dict.fromkeys(key for one in ones for key in one):
            values = [one[key] for one in ones if key in one]
            if key in fills:
                batch[key] = padded([value[0] for value in values], self.padding, fills[key])
            elif key == "pixel_values" and values[0].ndim == 5:  # as many tiles for each image, as the processor does
                tiles = max(value.shape[1] for value in values)
                batch[key] = torch.cat(
                    [nn.functional.pad(value, [0] * 6 + [0, tiles - value.shape[1]]) for value in values]
                )
            else:
                batch[key] = torch.cat(values)
        if self.padding == "left" and "mm_token_type_ids" not in batch:  # Qwen numbers its tokens itself, in three axes
            batch["position_ids"] = positions(batch["attention_mask"])
        return batch

    def marked_images(self, batch: Batch, kinds: UInt8[Tensor, "rows length"]) -> Batch:
        ids = batch["input_ids"]
        marks = place(ids, self._image_token, image_cells(self._config, batch, self._each))
        found = kinds.clone()
        found[ids == self._image_token] = KINDS.index("image")
        found[(marks["image"] >= 0) & (marks["column"] < 0) & (marks["row"] >= 0)] = KINDS.index("special")
        return marks | {"kinds": found}

    def tokens(self, site: Site, hidden: Tensor, batch: Batch) -> Tokens:
        tower = next((name for name in self._towers if site.path == name or site.path.startswith(f"{name}.")), None)
        if tower is None:
            return super().tokens(site, hidden, batch)._replace(grid=self._grid)
        if "image_grid_thw" in batch:
            return self._patches(site, hidden, batch)
        pixels, config = batch["pixel_values"], self._config
        sizes = batch["image_sizes"].tolist() if config.model_type == "llava_next" else None
        pictures = [1] * len(pixels) if sizes is None else [next_tiles(config, size) for size in sizes]
        shape = torch.empty((sum(pictures), *pixels.shape[-3:]), device="meta")
        seen = self._tower(site, hidden, shape, self._places[site.path])
        if tower != self._towers[0]:
            seen = seen._replace(kinds=filled("image", seen.values))
        each = seen.values.shape[1]
        return regrouped(seen, rows_of_counts(by_row([count * each for count in pictures], batch[N_IMAGES].tolist())))

    def _patches(self, site: Site, hidden: Tensor, batch: Batch) -> Tokens:
        """Qwen's tower: the patches of all images in one row, in an order of its own, before and after they are merged."""
        counts = batch["image_grid_thw"].prod(1).tolist()
        merged = self._config.vision_config.spatial_merge_size**2
        for kind, parts in (("patch", 1), ("image", merged)):
            if hidden.ndim == 2 and len(hidden) * parts == sum(counts):
                seen = Tokens(hidden[None], filled(kind, hidden[None]), None, lambda new: new[0])
                rows = by_row([count // parts for count in counts], batch[N_IMAGES].tolist())
                return regrouped(seen, rows_of_counts(rows))
        raise NotTokens(
            f"site '{site}' passes {list(hidden.shape)} for {sum(counts)} patches: choose the module around it."
        )


def load(
    name: str,
    *,
    revision: str | None = None,
    prompt: str | None = None,
    length: int | None = None,
    padding: str = "right",
    chat_template: str | None = None,
    pretrained: bool = True,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> ImageTextModel:
    """An image-text model from the hub or a directory.

    prompt: what the user asks about an image that comes with a caption only; the caption is then the answer.
    length: cut prompts after so many tokens (never within images); None: one longer than the model's context is an error.
    padding: "right", or "left", which generation needs.
    chat_template: Jinja, in place of the processor's own. A processor without one gets images and texts one after the other.
    pretrained: False takes random weights drawn from `seed`, which the provenance says.
    device, dtype: where and in what the model runs; None keeps the library's choice.

    Raises FileNotFoundError, OSError (cannot be had or read) or ValueError (unknown option, another family), each one sentence.
    """
    check_padding(padding)
    from transformers import AutoConfig, AutoModelForImageTextToText

    source = str(local_dir(name) or name)
    told = {"revision": revision} if revision else {}
    with loading(name, seed):
        config = AutoConfig.from_pretrained(source, **told)
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise ValueError(
            f"{name} is a {config.model_type}, no image-text model: load it with its own family, as load('llm', ...)."
        )
    processor = _processor(name, source, told)
    with loading(name, seed):
        auto = AutoModelForImageTextToText
        module = auto.from_pretrained(source, **told) if pretrained else auto.from_config(config)
    check_limit(length, context_limit(module))
    record = provenance(
        "llava",
        "transformers",
        name,
        module,
        revision=revision or config_commit(config, name),
        seed=None if pretrained else seed,
        preprocessing=_preprocessing(processor, config),
        dtype=dtype,
    ) | {"sequence": {"prompt": prompt, "length": length, "padding": padding, "chat_template": chat_template}}
    return ImageTextModel(
        placed(module, device, dtype),
        record,
        processor,
        prompt=prompt,
        length=length,
        padding=padding,
        chat_template=chat_template,
    )


def _processor(name: str, source: str, told: dict[str, str]) -> Any:
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(source, **told)
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise FileNotFoundError(
            f"{name} has no image-text processor that can be loaded; save one beside the weights ({said})"
        ) from error
    if not all(hasattr(processor, part) for part in ("tokenizer", "image_processor", "image_token")):
        raise FileNotFoundError(
            f"{name} has only a {type(processor).__name__}, no image-text processor: save one beside the weights."
        )
    return processor


def _preprocessing(processor: Any, config: Any) -> dict[str, Any]:
    """What the grid of an image's tokens lies on: the whole image, or, where the processor crops, what it leaves."""
    images = processor.image_processor
    whole = {"resize": None, "resize_mode": "exact", "interpolation": None, "crop": None}
    if config.model_type == "llava_next" or not set(dict(images.size or {})) & {"height", "shortest_edge"}:
        return whole | {"library": " ".join(repr(images).split())}
    try:
        return of_processor(images)
    except ValueError:
        return whole | {"library": " ".join(repr(images).split())}


def by_row(counts: Sequence[int], rows: Sequence[int]) -> list[list[int]]:
    """`counts`, an image each, in lists of as many images as each row has."""
    left = iter(counts)
    return [[next(left) for _ in range(number)] for number in rows]


def expanded(
    ids: Int[Tensor, "short"], mark: Bool[Tensor, "short"], whole: Int[Tensor, "length"], image_token: int
) -> Bool[Tensor, "length"]:
    """A mark of the text's tokens, where each place of an image has become a run of image tokens."""
    places = whole == image_token
    found = torch.zeros(len(whole), dtype=torch.bool)
    found[~places] = mark[ids != image_token]
    return found
