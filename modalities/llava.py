"""Image-text models of transformers: LLaVA-1.5, LLaVA-NeXT, LLaVA-OneVision, FastVLM, Qwen2-VL to Qwen3-VL, Gemma 3, Pixtral, InternVL, and
others whose processors put an image's tokens into the prompt.

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
from jaxtyping import UInt8
from torch import Tensor, nn

from modalities.base import KINDS, Activations, Batch, NotTokens, Tokens
from modalities.causal import N_IMAGES, CausalModel
from modalities.chat import conversation, defused, joined, render, with_images
from modalities.image_cells import TILED, fixed_cells, image_cells, next_tiles, place
from modalities.images import ImageTokens, filled
from modalities.layout import NO_CELL, TokenLayout, padded, positions, regrouped, rows_of_counts
from modalities.llm import check_length, check_limit, check_padding, context_limit, filler, within
from modalities.loading import config_commit, loading, local_dir, placed, provenance
from modalities.processors import Span, by_row, moved, preprocessing_of, processor_of
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
        self._each, self._grid = 0, None
        grey, wide = (
            self._encoded("the example", processor.image_token, [], [Image.new("RGB", (width, 64), (128,) * 3)])
            for width in (64, 256)
        )
        counts = {int((one["input_ids"] == self._image_token).sum()) for one in (grey, wide)}
        if (
            grey["pixel_values"].ndim == 4
            and grey["pixel_values"].shape == wide["pixel_values"].shape
            and len(counts) == 1
        ):
            self._each = counts.pop()
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

    def _encoded(self, name: str, text: str, answers: Sequence[Span], images: Sequence[Any]) -> Batch:
        """One sample as the processor gives it, [1, length] and images, with the marks of its answer and of its images."""
        begin = self.tokenizer.bos_token
        special = not (begin and text.startswith(begin))
        try:
            made = self.processor(
                text=[text],
                images=[list(images)] if images else None,
                add_special_tokens=special,
                return_offsets_mapping=True,
                return_text_replacement_offsets=True,
                return_tensors="pt",
            )
        except ValueError as error:
            raise ValueError(
                f"{name} does not suit the model's processor: {' '.join(str(error).split())[:200]}"
            ) from error
        ids = made["input_ids"][0]
        offsets, told = made.pop("offset_mapping")[0].tolist(), made.pop("text_replacement_offsets")
        replaced = [(one["span"], one["new_span"]) for one in told[0]] if images else []
        longest = moved([(0, len(text))], replaced)[0][1]
        if answers and max(end for _, end in offsets) > longest:
            raise ValueError(
                f"{name} is rewritten by the model's processor, so that its answer is not known: leave the answer out."
            )
        image = torch.full_like(ids, NO_CELL)
        for number, (_, span) in enumerate(replaced):
            image[within(offsets, [span]) & (ids == self._image_token)] = number
        return dict(made) | {"answer": within(offsets, moved(answers, replaced))[None], "image": image[None]}

    def _cut(self, name: str, one: Batch) -> Batch:
        ids = one["input_ids"][0]
        check_length(name, len(ids), self.length, self.limit)
        if self.length is not None and bool((ids[self.length :] == self._image_token).any()):
            raise ValueError(f"{name} has image tokens after the first {self.length}: give a larger length than that.")
        return {
            key: value[:, : self.length] if key in (*PER_TOKEN, "answer", "image") else value
            for key, value in one.items()
        }

    def _together(self, ones: Sequence[Batch]) -> Batch:
        """One batch of prepared samples: sequences are padded, images follow each other."""
        fills = PER_TOKEN | {"input_ids": filler(self.tokenizer), "answer": False, "image": NO_CELL}
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
            elif key == "pixel_values" and values[0].ndim == 4:  # Pixtral's, each of its own size
                height, width = (max(value.shape[axis] for value in values) for axis in (2, 3))
                batch[key] = torch.cat(
                    [nn.functional.pad(v, [0, width - v.shape[3], 0, height - v.shape[2]]) for v in values]
                )
            else:
                batch[key] = torch.cat(values)
        if self.padding == "left" and "mm_token_type_ids" not in batch:  # Qwen numbers its tokens itself, in three axes
            batch["position_ids"] = positions(batch["attention_mask"])
        return batch

    def marked_images(self, batch: Batch, kinds: UInt8[Tensor, "rows length"]) -> Batch:
        ids, cells = batch["input_ids"], image_cells(self._config, batch, self._each)
        if cells is None:
            image = batch.get("image", torch.full_like(ids, NO_CELL))
            nowhere = torch.full_like(ids, NO_CELL)
            marks = {"image": image, "copy": nowhere, "row": nowhere, "column": nowhere, N_IMAGES: image.amax(1) + 1}
        else:
            marks = place(ids, self._image_token, cells)
        found = kinds.clone()
        found[ids == self._image_token] = KINDS.index("image")
        found[(marks["image"] >= 0) & (marks["column"] < 0) & (marks["row"] >= 0)] = KINDS.index("special")
        return marks | {"kinds": found}

    def _tower_of(self, path: str) -> str | None:
        return next((name for name in self._towers if path == name or path.startswith(f"{name}.")), None)

    def activations(self, batch: Batch, sites: Sequence[str]) -> dict[str, Activations]:
        """As for every model; where no prompt of the batch has an image, a tower's site holds a token of filling for each."""
        images = any(name.startswith("pixel_values") for name in batch)
        silent = [] if images else [site for site in sites if site in self._shapes and self._tower_of(site)]
        found = super().activations(batch, [site for site in sites if site not in silent])
        weight, n = next(self.module.parameters()), len(batch["input_ids"])
        for site in silent:
            values = torch.zeros(n, 1, self._shapes[site][-1], dtype=weight.dtype, device=weight.device)
            found[site] = Activations(values, filled("pad", values), None)
        return {site: found[site] for site in sites}

    def _passed(self, site: str, tokens: int) -> TokenLayout | None:
        return None if self._tower_of(Site.parse(site).path) else super()._passed(site, tokens)

    def tokens(self, site: Site, hidden: Tensor, batch: Batch) -> Tokens:
        tower = self._tower_of(site.path)
        if tower is None:
            return super().tokens(site, hidden, batch)._replace(grid=self._grid)
        if "image_grid_thw" in batch:
            return self._patches(site, hidden, batch)
        pixels, pictures = batch["pixel_values"], self._pictures(site, batch)
        shape = torch.empty((sum(pictures), *pixels.shape[-3:]), device="meta")
        seen = self._tower(site, hidden, shape, self._places[site.path])
        if tower != self._towers[0]:
            seen = seen._replace(kinds=filled("image", seen.values))
        each = seen.values.shape[1]
        return regrouped(seen, rows_of_counts(by_row([count * each for count in pictures], batch[N_IMAGES].tolist())))

    def _pictures(self, site: Site, batch: Batch) -> list[int]:
        """How many pictures the tower sees of each image."""
        if self._config.model_type in TILED:
            return next_tiles(self._config, batch)
        pixels, images = batch["pixel_values"], int(batch[N_IMAGES].sum())
        if len(pixels) == images:
            return [1] * images
        counts = torch.stack([(batch["image"] == number).sum(1) for number in range(int(batch[N_IMAGES].max()))], 1)
        counts = counts[counts > 0] * len(pixels)  # as many tokens of each picture
        if pixels.ndim != 4 or len(counts) != images or bool((counts % counts.sum().div(len(pixels)).long()).any()):
            raise NotTokens(f"site '{site}' sees {len(pixels)} pictures of {images} images: choose a language layer.")
        return (counts // (counts.sum() // len(pixels))).tolist()

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
    processor = processor_of(name, source, told)
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
        preprocessing=preprocessing_of(processor, config),
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
