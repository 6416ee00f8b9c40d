"""Curves: log.jsonl always, TensorBoard or W&B through accelerate. Also the accelerator itself, which decides device and precision."""

import importlib.util
import json
import time
from pathlib import Path
from typing import Any, TextIO

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from vsae.activations.together import Team
from vsae.files import digest, write_text
from vsae.training.config import TrainConfig


def accelerator(config: TrainConfig, out: Path) -> Accelerator:
    """Device, precision and tracker of a run. Raises ValueError for what this machine or installation cannot do."""
    if config.tracker == "wandb" and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            "tracker is wandb, but the package is not installed: pip install 'vsae[wandb]', or choose tensorboard or none."
        )
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but PyTorch finds no CUDA card here: choose auto or cpu.")
    # accelerate keeps its state for the life of a process, and would hold a second run to the first one's device and precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    on_cuda = config.device != "cpu" and torch.cuda.is_available()
    half = config.precision == "bf16" or (config.precision == "auto" and on_cuda and torch.cuda.is_bf16_supported())
    return Accelerator(
        cpu=not on_cuda,
        mixed_precision="bf16" if half else "no",
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir=out,
    )


class Trackers:
    """Where the numbers of a run go. Nothing here changes the result."""

    def __init__(
        self, accelerator: Accelerator, config: TrainConfig, out: Path, about: dict[str, Any], step: int
    ) -> None:
        self.accelerator, self.path = accelerator, out / "log.jsonl"
        self.file: TextIO | None = None
        if Team.of_launch().rank:
            return
        # A resumed run forgets what it logged after its checkpoint, or those steps would stand there twice.
        kept = [line for line in _lines(self.path) if line.get("step", step + 1) <= step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        identity = digest([about, str(out.resolve())])[:16]
        try:
            accelerator.init_trackers(
                "vsae" if config.tracker == "wandb" else "tensorboard",
                about if config.tracker == "wandb" else None,
                {
                    "tensorboard": {"purge_step": step + 1},
                    "wandb": {"name": out.name, "id": identity, "resume": "allow", "dir": str(out)},
                },
            )
        except Exception as error:
            if not type(error).__module__.startswith("wandb"):
                raise
            raise ValueError(
                f"wandb does not start ({' '.join(str(error).split())}): log in with `wandb login`, "
                "set WANDB_MODE=offline, or choose the tracker tensorboard."
            ) from error
        self.file = self.path.open("a", encoding="utf-8")

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()
            for tracker in self.accelerator.trackers:  # end_training would end the process group, too
                tracker.finish()

    def log(self, step: int, group: str, numbers: dict[str, float]) -> None:
        """Note numbers of a step under `group/name`. Only the first of several processes does."""
        if self.file is None:
            return
        named = {f"{group}/{name}": value for name, value in numbers.items()}
        self.file.write(json.dumps({"step": step, "time": round(time.time(), 3)} | named) + "\n")
        self.file.flush()
        self.accelerator.log(named, step=step)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Parsed lines of a log; a line cut short by a kill is left out."""
    lines = []
    for line in path.read_text("utf-8", "replace").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines
