"""The job of `vsae eval all`. Like `vsae.jobs`; field docstrings are the command line's help."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EvalAll:
    """Run the evaluations where the right answers are known: on a rendered world, from scenes and tiny models to one table. No network, minutes on two cores."""

    world: bool = False
    """On the rendered world, the only place whose answers are all known."""
    out: Path = Path("eval/world")
    """Where scenes, stores, runs, results and the summary go. The same command goes on where it was."""
    scenes: int = 1200
    """Rendered scenes to train on; the sets that are judged have half as many each."""
    latents: int = 512
    """Of each SAE."""
    tokens: int = 400_000
    """Patch tokens that the SAE is trained on."""
