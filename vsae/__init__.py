"""activations -> sparse codes, dictionaries, edits. Knows tensors; knows no images and no model zoo.

    source = vsae.StoreSource(vsae.ActivationStore.open("store").site())
    run = vsae.train(source, vsae.recipes.TopK(n_latents=4096, k=32), "run")
    code = run.sae.encode(x)        # x [batch, d_model], raw activations -> Code(values, indices)
    x_hat = run.sae.decode(code)

A name is imported when it is first used, so that `import vsae` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vsae import activations, interop, objectives, ops, recipes
    from vsae.activations import ActivationStore, Batch, JoinedSource, Select, Source, StoreSource, StreamSource
    from vsae.activations.memory import TensorSource
    from vsae.code import Code
    from vsae.run import Run
    from vsae.sae import SAE
    from vsae.training.config import TrainConfig
    from vsae.training.loop import sweep, train

__all__ = [
    "SAE",
    "ActivationStore",
    "Batch",
    "Code",
    "JoinedSource",
    "Run",
    "Select",
    "Source",
    "StoreSource",
    "StreamSource",
    "TensorSource",
    "TrainConfig",
    "activations",
    "interop",
    "objectives",
    "ops",
    "recipes",
    "sweep",
    "train",
]

_HOMES = {
    "vsae.activations": ("ActivationStore", "Batch", "JoinedSource", "Select", "Source", "StoreSource", "StreamSource"),
    "vsae.activations.memory": ("TensorSource",),
    "vsae.code": ("Code",),
    "vsae.run": ("Run",),
    "vsae.sae": ("SAE",),
    "vsae.training.config": ("TrainConfig",),
    "vsae.training.loop": ("sweep", "train"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    if name in __all__:
        return import_module(f"vsae.{name}")
    raise AttributeError(f"module 'vsae' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
