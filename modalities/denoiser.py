"""A pipeline's denoiser, UNet or transformer, read and edited step by step as it paints the captions' images.

    model = load("diffusion", NAME).denoiser(num_inference_steps=20, guidance_scale=7.5)
    model.activations(batch, ["unet.mid_block@0"])              at the scheduler's first call
    model.activations(batch, ["unet.mid_block"])                at all, one after the other along the tokens
    with model.edit("unet.mid_block", fn): pipe("a red cat")    fn(values, kinds, step=Step(index, time)), at every step
    with model.edit("unet.mid_block@3", fn): ...                at one step

Tokens are cells of the latents, row by row. Of a block with two streams (SD3, Flux), it is the image's that passes.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from modalities.base import ActivationModel, Activations, Batch, NotTokens, Tokens, takes
from modalities.images import ImageTokens, patch_size
from modalities.pipeline import Now, Pipeline, on_prompt, seed_of
from modalities.prompts import CONDITIONAL
from modalities.sites import Site, hidden_state, nearest, tensors


class Denoiser(ActivationModel):
    """The denoiser of a pipeline. Batches: "prompt", the captions, and "seeds", one for each.

    seed: an image's own is a function of this and its sample's key. negative_prompt, options: as in a call of the pipeline, for
    every image that `run` and `activations` make. `run` gives the pipeline's own output, with images; `activations` stops before.
    Rows of `activations` are those of the prompt, without the negative one's.

    Raises ValueError for options the pipeline does not take, and for a pipeline without a UNet or transformer.
    """

    def __init__(self, pipe: Pipeline, *, seed: int = 0, negative_prompt: str | None = None, **options: Any) -> None:
        if pipe.denoiser is None:
            raise ValueError(f"{type(pipe.library).__name__} has neither unet nor transformer to read.")
        self.pipe, self.seed = pipe, seed
        self.options = options | ({} if negative_prompt is None else {"negative_prompt": negative_prompt})
        pipe.check(self.options)
        module = getattr(pipe.library, pipe.denoiser)
        self._tower = ImageTokens(module)
        self._patch = patch_size(module)
        self._reading = False
        record = {
            **pipe.text.provenance,
            "part": pipe.denoiser,
            "weights": pipe.weights,
            "text": pipe.text.provenance["weights"],
            "scheduler": {"class": type(pipe.library.scheduler).__name__, **_json(dict(pipe.library.scheduler.config))},
            "generation": {"seed": seed, **_json(self.options)},
        }
        example: Batch = {"prompt": ("a photo",) * 2, "seeds": (0, 1), "until": 0}
        super().__init__(nn.ModuleDict({pipe.denoiser: module}), record, example)
        self.steps = len(pipe.library.scheduler.timesteps)
        """Calls of the scheduler; the denoiser is read before each."""

    def prepare(self, samples: Sequence[Any]) -> Batch:
        """First captions of samples (or texts, which are their own keys), with seeds. Raises ValueError for a sample without a caption."""
        from modalities.diffusion import caption_of

        return {
            "prompt": tuple(caption_of(sample) for sample in samples),
            "seeds": tuple(seed_of(self.seed, sample if isinstance(sample, str) else sample.key) for sample in samples),
        }

    def forward(self, batch: Batch) -> Any:
        options = dict(self.options)
        if "until" in batch:  # each module once, for who counts the calls
            options = {
                name: value for name, value in options.items() if name not in ("true_cfg_scale", "negative_prompt")
            }
            options |= {"until": batch["until"]} | (
                {"guidance_scale": 1.0} if "guidance_scale" in self.pipe.takes else {}
            )
        return self.pipe(list(batch["prompt"]), seeds=batch["seeds"], **options)

    def activations(self, batch: Batch, sites: Sequence[str]) -> dict[str, Activations]:
        """Activations at each site at one step ("unet.mid_block@3"), or, where none is named, at all of them: then [batch, steps * tokens,
        d_model], step after step, with no grid."""
        every = {site: self._at_steps(site) for site in sites}
        self._reading = True
        try:
            found = super().activations(batch, [one for names in every.values() for one in names])
        finally:
            self._reading = False
        count = len(batch["prompt"])
        return {site: _joined([found[name] for name in names], count) for site, names in every.items()}

    @contextmanager
    def edit(self, site: str, fn: Callable[..., Tensor], prompt: str = CONDITIONAL) -> Iterator[ActivationModel]:
        """As for every model, in `run` and in calls of the pipeline.

        fn: (values [rows, tokens, d_model], kinds) -> values; one with an argument `step` is given the `modalities.pipeline.Step`, too.
        prompt: whose rows are edited under guidance: those of the "conditional" prompt, of the "negative" one, or "both".
        """
        self._at_steps(site)
        timed = takes(fn, "step")

        def now(values: Tensor, kinds: Tensor) -> Tensor:
            return fn(values, kinds, step=self._now.step) if timed else fn(values, kinds)

        with super().edit(site, on_prompt(now, prompt, lambda: self._now.parts)):
            yield self

    def tokens(self, site: Site, hidden: Tensor, batch: Batch) -> Tokens:
        now = self._now
        rows, size = len(now.latents), self._size()
        image = torch.empty(rows, 3, *size, device="meta")  # cells are told from its shape alone
        seen = self._tower(site, hidden, image, self._places[_split(site.path)[0]])
        if self._patch is not None and seen.grid not in (None, (size[0] // self._patch[0], size[1] // self._patch[1])):
            raise NotTokens(
                f"site '{site}' passes {hidden.shape[1]} tokens, which are not the image's: choose another."
            )
        return seen

    @property
    def _now(self) -> Now:
        if self.pipe.now is None:
            raise ValueError("the denoiser is edited in a pass that no Pipeline started: call model.pipeline()(...).")
        return self.pipe.now

    def _size(self) -> tuple[int, int]:
        """(rows, columns) of the latents."""
        now = self._now
        if now.latents.ndim == 4:
            return now.latents.shape[2], now.latents.shape[3]
        places = now.inputs.get("img_ids")
        if now.latents.ndim != 3 or not isinstance(places, Tensor):
            raise NotTokens(f"latents of shape {list(now.latents.shape)} are no picture: these sites cannot be read.")
        rows, columns = (places.reshape(-1, places.shape[-1])[:, -2:].amax(0) + 1).tolist()
        return int(rows), int(columns)

    def _passing(self, value: Any) -> Tensor | None:
        rows = len(self._now.latents)
        found = [one for one in tensors(value) if one.ndim > 2 and len(one) == rows and self._is_image(one)]
        if not found:
            return hidden_state(value)
        text = self._now.inputs.get("encoder_hidden_states")
        as_long = isinstance(text, Tensor) and text.ndim == 3 and text.shape[1] == found[0].shape[1]
        several = any(one is not found[0] and one.shape == found[0].shape for one in found)
        # Blocks give their two streams in either order: nothing tells them apart then.
        return None if as_long and several and self._patch is not None else found[0]

    def _is_image(self, tensor: Tensor) -> bool:
        size = self._size()
        if tensor.ndim != 3 or self._patch is None:
            return True
        return tensor.shape[1] == (size[0] // self._patch[0]) * (size[1] // self._patch[1])

    def _view(self, site: Site, hidden: Tensor | None) -> Tokens:
        if hidden is None:
            near = nearest(site.path, self._shapes)
            raise NotTokens(
                f"site '{site}' passes no tensor known to be the image's (prompts may be as long as images): try {near}."
            )
        return self.tokens(site, hidden, {})

    def _attach(self, site: Site, callback: Callable[[Tensor | None], Tensor | None]) -> Any:
        path, step = _split(site.path)

        def in_time(hidden: Tensor | None) -> Tensor | None:
            if step is not None and self._now.step.index != step:
                return None
            if self._reading and CONDITIONAL not in self._now.parts:
                return None
            return callback(hidden)

        return super()._attach(Site(path, site.side), in_time)

    def _at_steps(self, site: str) -> list[str]:
        where = Site.parse(site)
        path, step = _split(where.path)
        if step is not None and step >= self.steps:
            raise ValueError(f"site {site!r} is at step {step}: this pipeline has 0 to {self.steps - 1}.")
        steps = range(self.steps) if step is None else [step]
        return [str(Site(f"{path}@{one}", where.side)) for one in steps]


def _split(path: str) -> tuple[str, int | None]:
    path, at, step = path.partition("@")
    if at and not step.isdecimal():
        raise ValueError(f"site '{path}@{step}' names no step: write a number from 0, as in '{path}@0'.")
    return path, int(step) if at else None


def _joined(found: Sequence[Activations], rows: int) -> Activations:
    """Steps one after the other. The rows of the prompt are the last ones."""
    values = torch.cat([one.values[-rows:] for one in found], dim=1)
    kinds = torch.cat([one.kinds[-rows:] for one in found], dim=1)
    return Activations(values, kinds, found[0].grid if len(found) == 1 else None)


def _json(options: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(options, default=str, sort_keys=True))
