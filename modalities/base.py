"""What every family of models has in common: four verbs on named sites.

    model.sites()                               names a person can choose from, with the shape of a sample there
    model.activations(batch, sites)             values, token kinds and grid; the pass stops after the deepest site
    with model.edit(site, fn): model.run(batch) the same site, changed in place of read
    model.run(batch)                            the model's own output

A family says how a sample becomes a batch (`prepare`), how a batch goes through the model (`forward`) and how the tensor at a
site becomes tokens (`tokens`); hooks, the early stop and edits are here. Reading changes nothing in the model.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from modalities.sites import Site, attach, attach_heads, hidden_state, nearest

KINDS = ("cls", "register", "patch", "image", "text", "special", "pad")
"""What a token can be; stored as uint8 index. `cls` is also what a pooled vector is: one token that stands for its sample."""

Batch = dict[str, Any]
"""Tensors the model takes, by name: "image" [batch, 3, height, width], "text" [batch, length], ..."""


class Activations(NamedTuple):
    values: Float[Tensor, "batch tokens d_model"]
    kinds: UInt8[Tensor, "batch tokens"]
    """Index into `KINDS`."""
    grid: tuple[int, int] | None
    """(rows, columns) of the patch tokens, row by row; None where there are none."""


class Tokens(NamedTuple):
    """The tensor at a site seen as tokens, and the way back."""

    values: Float[Tensor, "batch tokens d_model"]
    kinds: UInt8[Tensor, "batch tokens"]
    grid: tuple[int, int] | None
    restore: Callable[[Tensor], Tensor]
    """[batch, tokens, d_model] -> the module's own shape."""


class NotTokens(ValueError):
    """The tensor at this site cannot be seen as [batch, tokens, d_model]."""


class ActivationModel(ABC):
    """A model in eval mode whose sites can be read and edited.

    module: the library's own model. extra: places that are no module of it, as modules the family calls in `forward`.
    provenance: JSON: family, library, name, revision, weights (sha256), versions, preprocessing.
    example: a batch of two samples, run once to learn which modules a pass goes through.
    """

    def __init__(
        self,
        module: nn.Module,
        provenance: dict[str, Any],
        example: Batch,
        extra: Mapping[str, nn.Module] | None = None,
    ) -> None:
        # requires_grad stays as it was: it decides between kernels that round differently, without gradients too.
        self.module = module.eval()
        self.provenance = provenance
        self._places: dict[str, nn.Module] = dict(module.named_modules()) | dict(extra or {})
        self._batch: Batch = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._calls: dict[str, int] = {}
        self._trace(example)

    @abstractmethod
    def prepare(self, samples: Sequence[Any]) -> Batch:
        """`modalities.data.Sample`s as a batch on the CPU, with the model's own preprocessing. Safe to call from several threads."""

    @abstractmethod
    def forward(self, batch: Batch) -> Any:
        """The model's own pass over a batch that is on its device. `run` calls it: nobody else should."""

    @abstractmethod
    def tokens(self, site: Site, hidden: Tensor, batch: Batch) -> Tokens:
        """The tensor that passes a site, as tokens. Raises NotTokens where it holds no row of tokens for each sample."""

    def sites(self) -> dict[str, tuple[int, ...]]:
        """Every module whose output can be read and edited -> (tokens, d_model) of the example. Inputs: the name + ":input"."""
        return dict(self._shapes)

    def run(self, batch: Batch, gradients: bool = False) -> Any:
        """The model's own output, with the edits in force. `gradients` keeps the graph, from what an edit puts in to the output:

        take them with torch.autograd.grad, so that none are left in the model's parameters.
        """
        outer, self._batch = self._batch, self._placed(batch)
        try:
            with torch.inference_mode(not gradients):
                return self.forward(self._batch)
        finally:
            self._batch = outer

    def activations(self, batch: Batch, sites: Sequence[str]) -> dict[str, Activations]:
        """Activations at each site (under the name asked for), from one pass that stops after the deepest of them.

        Values are the model's own, in its dtype and on its device, copied: nothing the model does later changes them.
        Raises ValueError for a site that does not exist, or that a pass goes through several times or never.
        """
        wanted = {Site.parse(name): name for name in sites}
        found: dict[Site, Activations] = {}

        def reader(site: Site) -> Callable[[Tensor | None], None]:
            def read(hidden: Tensor | None) -> None:
                if site in found:
                    raise ValueError(
                        f"site '{site}' is passed several times in one pass: choose a site inside or outside of it."
                    )
                view = self._view(site, hidden)
                # Inference tensors cannot be trained on; and a later in-place operation must not reach what was read.
                with torch.inference_mode(False):
                    found[site] = Activations(
                        view.values.clone(memory_format=torch.contiguous_format), view.kinds.clone(), view.grid
                    )
                if len(found) == len(wanted):
                    raise _Stop

            return read

        with ExitStack() as hooks:
            for site in wanted:
                hooks.callback(self._attach(site, reader(site)).remove)
            try:
                if wanted:
                    self.run(batch)
            except _Stop:
                pass
        if missed := [str(site) for site in wanted if site not in found]:
            raise ValueError(
                f"site {missed[0]!r} is never passed for a batch of {', '.join(batch)}: it belongs to another input."
            )
        return {name: found[Site.parse(name)] for name in sites}

    @contextmanager
    def edit(self, site: str, fn: Callable[[Tensor, Tensor], Tensor]) -> Iterator["ActivationModel"]:
        """While the context is open, the model goes on with `fn(values [batch, tokens, d_model], kinds [batch, tokens])`.

        `fn` gets a copy and gives the same shape; its result is cast to the model's dtype. Edits nest, the outer one first.
        """
        where = Site.parse(site)

        def change(hidden: Tensor | None) -> Tensor:
            view = self._view(where, hidden)
            new = fn(view.values.clone(), view.kinds)
            if new.shape != view.values.shape:
                raise ValueError(
                    f"the edit at {site!r} gave {list(new.shape)} for {list(view.values.shape)}: keep the shape."
                )
            assert hidden is not None
            # The memory layout is kept too: kernels may round differently for another.
            return torch.empty_like(hidden).copy_(view.restore(new))

        handle = self._attach(where, change)
        try:
            yield self
        finally:
            handle.remove()

    def _placed(self, batch: Batch) -> Batch:
        weight = next(self.module.parameters())

        def placed(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(weight.device, weight.dtype if value.is_floating_point() else None, non_blocking=True)

        return {name: placed(value) for name, value in batch.items()}

    def _view(self, site: Site, hidden: Tensor | None) -> Tokens:
        if hidden is None:
            raise NotTokens(f"site '{site}' passes no tensor: choose one of {nearest(site.path, self._shapes)}.")
        if not self._batch:
            raise ValueError(
                f"site '{site}' is edited in a pass that `run` did not start: call model.run(batch) in the context."
            )
        return self.tokens(site, hidden, self._batch)

    def _passing(self, value: Any) -> Tensor | None:
        """The hidden state in what a module gets or gives."""
        return hidden_state(value)

    def _attach(
        self, site: Site, callback: Callable[[Tensor | None], Tensor | None]
    ) -> torch.utils.hooks.RemovableHandle:
        parent, _, last = site.path.rpartition(".")
        attention = self._places.get(parent)
        inside = last == "out_proj" and isinstance(attention, nn.MultiheadAttention)
        if inside and site.side == "output":
            raise ValueError(
                f"site '{site}' is what {parent!r} gives: choose that, or '{site}:input' for the heads concatenated."
            )
        called = parent if inside else site.path
        if not called or called not in self._places:
            raise ValueError(
                f"this model has no site {site.path!r}; the nearest are {nearest(site.path, self._shapes)}."
            )
        if (calls := self._calls.get(called, 0)) != 1:
            how_often = f"{calls} times" if calls else "never"
            near = nearest(called, self._shapes)
            raise ValueError(f"module {called!r} is called {how_often} in one pass, so it is no site: try {near}.")
        if isinstance(attention, nn.MultiheadAttention) and inside:
            return attach_heads(attention, callback)
        return attach(self._places[called], site.side, callback, self._passing)

    def _trace(self, example: Batch) -> None:
        """One pass that counts the calls of each module and notes the shapes. At load time, before anybody has placed hooks."""

        def note(path: str) -> Callable[[Tensor | None], None]:
            def see(hidden: Tensor | None) -> None:
                self._calls[path] = self._calls.get(path, 0) + 1
                with suppress(NotTokens):
                    self._shapes[path] = tuple(self._view(Site(path, "output"), hidden).values.shape[1:])

            return see

        with ExitStack() as hooks:
            for path, place in self._places.items():
                hooks.callback(attach(place, "output", note(path), self._passing).remove)
            self.run(example)
        self._shapes = {
            path: self._shapes[path]
            for path in self._places
            if path and path in self._shapes and self._calls[path] == 1
        }


def takes(fn: Callable[..., Any], argument: str) -> bool:
    """Whether an edit function wants to be told this, too."""
    try:
        return argument in inspect.signature(fn).parameters
    except (TypeError, ValueError):  # a function in C
        return False


def kind_ids(kinds: Sequence[str]) -> UInt8[Tensor, "tokens"]:
    """Names of token kinds as they are stored."""
    return torch.tensor([KINDS.index(kind) for kind in kinds], dtype=torch.uint8)


class _Stop(BaseException):
    """Everything asked for has been read. No Exception, so that no model swallows it."""
