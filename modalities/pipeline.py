"""A diffusers pipeline whose calls tell edits where they are: whose prompt is being encoded, and which step denoised."""

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modalities.loading import weights_digest
from modalities.prompts import CONDITIONAL, NEGATIVE, named
from modalities.sites import nearest

if TYPE_CHECKING:
    from modalities.diffusion import TextEncoders

PROMPTS = {CONDITIONAL: (CONDITIONAL,), NEGATIVE: (NEGATIVE,), "both": (CONDITIONAL, NEGATIVE)}
DENOISERS = ("unet", "transformer")


@dataclass(frozen=True)
class Step:
    """Where in the course of denoising an edit is asked."""

    index: int
    """0 at the first call of the scheduler, where the latents are noise. PNDM makes one more call than there are steps, Heun two a step."""
    time: float
    """What the denoiser is told: as a rule from 1000 (noise) to 0; with flow matching too."""


@dataclass
class Now:
    """How far a running call is."""

    prompts: int
    """Images that it makes: rows for one prompt."""
    encoded: dict[str, int] = field(default_factory=dict)
    """Passes of each text encoder so far."""
    step: Step = field(default_factory=lambda: Step(0, 0.0))
    passes: int = 0
    """Passes of the denoiser in this step so far."""
    inputs: dict[str, Any] = field(default_factory=dict)
    """What the denoiser got in the latest of them, by name."""

    @property
    def latents(self) -> Tensor:
        """[rows, channels, height, width], or [rows, tokens, channels] where the pipeline packs them."""
        return self.inputs["sample"] if "sample" in self.inputs else self.inputs["hidden_states"]

    @property
    def parts(self) -> tuple[str, ...]:
        """Whose prompts the equal parts of the denoiser's rows are."""
        rows = len(self.latents)
        if rows == 2 * self.prompts and self.passes == 1:
            return NEGATIVE, CONDITIONAL  # diffusers' order, throughout
        if rows == self.prompts and self.passes <= 2:
            return (CONDITIONAL,) if self.passes == 1 else (NEGATIVE,)
        raise ValueError(
            f"this pipeline denoises {rows} rows for {self.prompts} prompts, pass {self.passes}: whose they are is unknown."
        )


class Pipeline:
    """A whole pipeline. `library` is diffusers' own, for everything but calls: edits are in force in calls of this one only."""

    def __init__(self, library: Any, text: "TextEncoders") -> None:
        self.library, self.text = library, text
        self.now: Now | None = None
        self.takes = tuple(inspect.signature(type(library).__call__).parameters)[1:]
        """Options that the library's pipeline knows."""
        library.set_progress_bar_config(disable=True)
        if self.denoiser:  # convolutions are a fifth faster so; the values, and the digest of the weights, stay
            getattr(library, self.denoiser).to(memory_format=torch.channels_last)

    @property
    def denoiser(self) -> str | None:
        """Name of the part that denoises: "unet" or "transformer"."""
        return next((name for name in DENOISERS if getattr(self.library, name, None) is not None), None)

    @functools.cached_property
    def weights(self) -> str | None:
        """sha256 of the denoiser's weights."""
        return weights_digest(getattr(self.library, self.denoiser)) if self.denoiser else None

    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        *,
        seeds: Sequence[int] | None = None,
        until: int | None = None,
        **options: Any,
    ) -> Any:
        """The pipeline's own output, with the edits in force.

        seeds: one for each image. An image's noise depends on its own alone, on any device; so images with and without an edit
            compare pair by pair. None: noise from torch's global state.
        until: stop before this call of the scheduler (from 0) and give None.
        options: the pipeline's own, as num_inference_steps, guidance_scale, height, width, output_type.

        Raises ValueError for options the pipeline does not take, and for numbers of prompts and seeds that differ.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        given: dict[str, Any] = {"prompt": prompts, **options}
        if negative_prompt is not None:
            given["negative_prompt"] = (
                [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else list(negative_prompt)
            )
        images = len(prompts) * int(options.get("num_images_per_prompt") or 1)
        if seeds is not None:
            if len(seeds) != images:
                raise ValueError(f"{len(seeds)} seeds for {images} images: give one for each.")
            given["generator"] = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self.check(given)
        with self._watched(Now(images), len(prompts), until):
            try:
                return self.library(**given)
            except _Until:
                return None

    def check(self, options: dict[str, Any]) -> None:
        """Raises ValueError for an option that the library's pipeline does not take."""
        for option in options:
            if option not in self.takes:
                raise ValueError(
                    f"{type(self.library).__name__} takes no {option!r}; the nearest are {nearest(option, self.takes)}."
                )

    @contextmanager
    def _watched(self, now: Now, prompts: int, until: int | None) -> Iterator[None]:
        if self.now is not None:
            raise ValueError("this pipeline is in a call already: make the second one when the first has ended.")
        scheduler = self.library.scheduler
        own = scheduler.step

        # Pipelines look at the signature for what a step takes, and leave the generator out where they do not find it.
        @functools.wraps(own)
        def step(*args: Any, **kwargs: Any) -> Any:
            if now.step.index == until:
                raise _Until
            done = own(*args, **kwargs)
            now.step, now.passes = Step(now.step.index + 1, now.step.time), 0
            return done

        with ExitStack() as clean:
            for name in self.text.reading.encoders:
                self._watch_text(name, now, prompts, clean)
            if self.denoiser:
                self._watch_denoiser(now, clean)
            self.now, scheduler.step = now, step
            clean.callback(self._rest, scheduler)
            yield

    def _rest(self, scheduler: Any) -> None:
        del scheduler.step  # the instance's: the class's own is back
        self.now = None

    def _watch_text(self, name: str, now: Now, prompts: int, clean: ExitStack) -> None:
        module = getattr(self.library, name)
        passes = ExitStack()

        def enter(_module: Any, args: Any, kwargs: Any) -> None:
            ids = named(module, args, kwargs)["input_ids"]
            call = now.encoded.get(name, 0)
            now.encoded[name] = call + 1
            passes.enter_context(self.text.inside(name, ids, self.text.reading.parts(name, call, len(ids), prompts)))

        def leave(*_: Any) -> None:
            passes.close()

        # Before the edits' own hooks, and after them.
        clean.callback(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True).remove)
        clean.callback(module.register_forward_hook(leave).remove)
        clean.callback(passes.close)

    def _watch_denoiser(self, now: Now, clean: ExitStack) -> None:
        module = getattr(self.library, str(self.denoiser))

        def enter(_module: Any, args: Any, kwargs: Any) -> None:
            now.inputs = named(module, args, kwargs)
            now.step = Step(now.step.index, float(torch.as_tensor(now.inputs["timestep"]).flatten()[0]))
            now.passes += 1

        clean.callback(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True).remove)


def seed_of(seed: int, key: str) -> int:
    """The seed of one image: a function of the set's seed and the sample's key alone, whatever its place in a batch or a job."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:8], "big") >> 1


def on_prompt(
    fn: Callable[[Tensor, Tensor], Tensor], prompt: str, parts: Callable[[], tuple[str, ...]]
) -> Callable[[Tensor, Tensor], Tensor]:
    """`fn` for the rows of one prompt ("conditional", "negative" or "both"), the others as they are.

    parts: whose prompts the equal parts of the rows now passing are. Raises ValueError for another `prompt`.
    """
    if prompt not in PROMPTS:
        raise ValueError(f"prompt is {prompt!r}: choose one of {', '.join(PROMPTS)}.")

    def change(values: Tensor, kinds: Tensor) -> Tensor:
        chosen = [part in PROMPTS[prompt] for part in parts()]
        if not chosen and prompt != "both":
            raise ValueError("this pipeline encodes more than a prompt and a negative one: whose this is, is unknown.")
        if all(chosen):
            return fn(values, kinds)
        if not any(chosen):
            return values
        rows = torch.tensor(chosen, device=values.device).repeat_interleave(len(values) // len(chosen))
        old, whole = values[rows], values.clone()
        new = fn(old, kinds[rows])
        if new.shape != old.shape:
            raise ValueError(f"the edit gave {list(new.shape)} for {list(old.shape)}: keep the shape.")
        whole[rows] = new.to(whole.dtype)
        return whole

    return change


class _Until(BaseException):
    """All steps asked for are done. No Exception, so that no pipeline swallows it."""
