"""A run directory: one trained SAE, and everything needed to trust and reuse it.

sae_weights.safetensors   W_enc [d_model, n_latents], b_enc, W_dec [n_latents, d_model], b_dec, threshold [n_latents] where the SAE has one;
                          and tensors of other parts under their own names (vsae.weights); it reads and answers raw activations
cfg.json                  what SAELens needs to load the weights, where it can express the SAE
self_check.safetensors    `rows` [at most 256, d_model]: raw activations whose expected NMSE and L0 are in run.json
run.json                  schema, recipe, config, fingerprint, metrics with floors, training summary; written last: with it a run is finished
"""

from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from vsae.files import read_json, sha256, write_json
from vsae.interop import saelens
from vsae.sae import SAE
from vsae.tensors import read_tensors, write_tensors
from vsae.training.heldout import measure
from vsae.weights import built, description, tensors

if TYPE_CHECKING:
    from vsae.activations.store import SiteReader

SCHEMA = 1
WEIGHTS, SELF_CHECK, RUN, SAELENS = "sae_weights.safetensors", "self_check.safetensors", "run.json", "cfg.json"
SELF_CHECK_ROWS = 256
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""How far NMSE and L0 may be off on loading, relative and absolute: another device adds in another order, and a tie may fall otherwise."""
ROUGH_TOLERANCE = 3e-2
"""The same for half precision."""


@dataclass(frozen=True)
class Run:
    """A finished run. `sae` reads raw activations; `meta` is run.json."""

    path: Path
    sae: SAE
    meta: dict[str, Any]

    @staticmethod
    def load(
        path: str | Path,
        device: str | torch.device = "cpu",
        self_check: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> "Run":
        """Read a run directory and check that the SAE still does what it did when it was saved.

        Raises FileNotFoundError when `path` holds no finished run, ValueError when a file is damaged, foreign or from a newer vsae, or when the
        self-check fails; `self_check=False` leaves only the last out.
        """
        path = Path(path)
        meta = read_meta(path)
        if sha256_of(path / WEIGHTS) != meta["weights"]["sha256"]:
            raise ValueError(
                f"{path / WEIGHTS} is not the file this run was saved with: it is damaged or comes from elsewhere. Restore it."
            )
        sae = built(read_tensors(path / WEIGHTS), meta["sae"]).to(device, dtype)
        if self_check:
            check(sae, path, meta["self_check"])
        return Run(path, sae, meta)

    def push_to_hub(self, repo_id: str, subfolder: str | None = None, private: bool = False) -> str:
        """Publish the run with a model card; returns its address. See `vsae.hub.push`."""
        from vsae.hub import push

        return push(self, repo_id, subfolder, private)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the SAE was trained on; see vsae.activations.fingerprint."""
        return self.meta["fingerprint"]

    @property
    def skip(self) -> int:
        """How many tokens at the beginning of each sample it was trained without: evaluations leave them out, too. See `Select.skip`."""
        return self.fingerprint.get("select", {}).get("skip", 0)

    @property
    def kinds(self) -> tuple[str, ...] | None:
        """Token kinds it was trained on; None for all. Evaluations read the same where they are not told others."""
        kinds = self.fingerprint["select"]["kinds"]
        return tuple(kinds) if kinds else None

    def held_out(self, site: "SiteReader") -> tuple[float, float]:
        """The part of a site's samples that it was not trained on: all, but of its own store. Raises ValueError where none is left."""
        if self.fingerprint.get("store") != site.fingerprint["store"]:
            return 0.0, 1.0
        border = float(self.fingerprint["select"]["part"][1])
        if border == 1:
            raise ValueError(
                f"{self.path} was trained on all of {site.store.path}: measure it on another store, or train with --val-share."
            )
        return border, 1.0

    def side(self, number: int) -> "Run":
        """The run of one modality of a paired one, 0 or 1, or of the activations that were read with gradients, 0. Raises ValueError for a run that needs all of its sites at once."""
        from vsae.gradient import GradientSAE
        from vsae.paired import view

        with_gradients = isinstance(self.sae, GradientSAE) and number == 0
        if self.sae.capabilities.modalities == 1 and not with_gradients:
            raise ValueError(
                f"{self.path} reads {self.fingerprint['site']} at once, row by row: this job is for SAEs of one site."
            )
        whole = {name: value for name, value in self.fingerprint.items() if name not in ("joined", "columns")}
        about = self.meta | {"fingerprint": whole | self.fingerprint["joined"][number]}
        alone = self.sae.plain() if isinstance(self.sae, GradientSAE) else view(self.sae, number)
        return Run(self.path, alone, about)


def save_run(path: Path, sae: SAE, rows: Float[Tensor, "rows d_model"], meta: dict[str, Any]) -> None:
    """Write the run directory of a fused `sae`, with raw activation `rows` for the self-check; `meta` is the rest of run.json."""
    sae = sae.to("cpu", torch.float32)
    rows = rows[:SELF_CHECK_ROWS].cpu().float()
    expected = measure(sae, [rows], torch.device("cpu"))
    write_tensors(path / WEIGHTS, tensors(sae))
    write_tensors(path / SELF_CHECK, {"rows": rows})
    if (cfg := saelens.config(sae, meta["fingerprint"])) is not None:
        write_json(path / SAELENS, cfg)
    written = {
        "schema": SCHEMA,
        "sae": description(sae),
        "weights": {"sha256": sha256(path / WEIGHTS)},
        "self_check": asdict(expected) | {"sha256": sha256(path / SELF_CHECK)},
    }
    write_json(path / RUN, meta | written)


def read_meta(path: Path) -> dict[str, Any]:
    """run.json of a finished run. Raises FileNotFoundError or ValueError with a sentence."""
    if not (path / RUN).is_file():
        state = (
            "a run that is not finished: repeat the command that began it"
            if (path / "checkpoint").is_dir()
            else "no run"
        )
        raise FileNotFoundError(f"{path} holds {state} (there is no {RUN}).")
    meta = read_json(path / RUN)
    if not isinstance(meta, dict) or not isinstance(meta.get("schema"), int):
        raise ValueError(f"{path / RUN} is not the description of a run: restore it.")
    if meta["schema"] > SCHEMA:
        raise ValueError(
            f"{path} was written by a newer vsae (schema {meta['schema']}, this one reads {SCHEMA}): update vsae."
        )
    if missing := {"sae", "weights", "self_check", "fingerprint"} - set(meta):
        raise ValueError(f"{path / RUN} lacks {', '.join(sorted(missing))}: restore it.")
    return meta


def check(sae: SAE, path: Path, expected: dict[str, Any]) -> None:
    """Compare NMSE and L0 on the self-check rows with what they were. Raises ValueError."""
    file = path / SELF_CHECK
    if sha256_of(file) != expected["sha256"]:
        raise ValueError(
            f"{file} is not the file this run was saved with: restore it, or load without the self-check (--no-self-check)."
        )
    found = measure(sae, [read_tensors(file)["rows"]], sae.b_dec.device)
    tolerance = TOLERANCE.get(sae.b_dec.dtype, ROUGH_TOLERANCE)
    for name, value in (("nmse", found.nmse), ("l0", found.l0)):
        if not abs(value - expected[name]) <= tolerance * (1 + abs(expected[name])):
            raise ValueError(
                f"{path} fails its self-check: {name} on its own {expected['n']} rows is {value:.4g}, but was {expected[name]:.4g} when it was saved. "
                "Files of two runs may be mixed, or this version computes otherwise. Load without the self-check (--no-self-check) to look."
            )


def sha256_of(path: Path) -> str:
    """Checksum of a file of the run. Raises FileNotFoundError with a sentence."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: restore it.")
    return sha256(path)


def versions() -> dict[str, str]:
    """What computed a run."""
    return {name: version(name) for name in ("vsae", "torch", "accelerate", "safetensors")}
