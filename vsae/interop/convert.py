"""From one library's files to another's, or to a run directory of ours."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vsae.interop.foreign import Imported
from vsae.interop.formats import WRITERS, read, write
from vsae.run import RUN, SELF_CHECK_ROWS, Run, save_run, versions
from vsae.sae import SAE
from vsae.tables import ATOMS, read_origins, write_origins
from vsae.transcoder import Transcoder

OURS = "vsae"
FORMATS = (OURS, *WRITERS)
"""What can be written: ours is a run directory."""


def convert(
    source: Path, out: Path, to: str = OURS, store: Path | None = None, site: str | None = None, **options: Any
) -> None:
    """Write the SAE at `source` (a run, or files of a format that is known) to the directory `out`.

    A run of ours gets its self-check's rows, and what it belongs to, from a site of `store`: that the SAE reads this site is the caller's word.
    Without one the rows are random, and run.json says so. Raises FileNotFoundError, FileExistsError or ValueError with a sentence.
    """
    if to not in FORMATS:
        raise ValueError(f"no SAE can be written as '{to}': choose from {', '.join(FORMATS)}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is there already: choose another, or remove it.")
    if (source / RUN).is_file():
        if to == OURS:
            raise ValueError(f"{source} is a run of vsae already.")
        run = Run.load(source)
        origins = read_origins(source) if (source / ATOMS).is_file() else None
        write(run.sae, out, to, run.fingerprint, origins)
        return
    found = read(source, **options)
    if to == OURS:
        import_run(found, out, store, site)
    else:
        write(found.sae, out, to, unknown(found), found.origins)


def import_run(found: Imported, out: Path, store: Path | None = None, site: str | None = None) -> None:
    """A run directory of an SAE that was not trained here. No number in it pretends otherwise."""
    fingerprint, rows = unknown(found), random_rows(found.sae)
    if store is not None:
        fingerprint, rows = known(found.sae, store, site)
    meta = {
        "recipe": {"name": found.format, "fields": {}},
        "config": None,
        "fingerprint": fingerprint,
        "metrics": {"val": None},
        "training": None,
        "imported": found.origin | {"self_check_rows": "random" if store is None else str(store)},
    }
    out.mkdir(parents=True, exist_ok=True)
    if found.origins is not None:
        write_origins(out, found.origins)
    save_run(out, found.sae, rows, meta)


def unknown(found: Imported) -> dict[str, Any]:
    """A fingerprint of what the files say. It fits no store, as they do not say which weights."""
    model = {"name": found.model} if found.model else {}
    return common() | {"model": model, "site": found.site or "an unnamed site", "side": "output", "store": None}


def known(sae: SAE, store: Path, site: str | None) -> tuple[dict[str, Any], Float[Tensor, "rows d_model"]]:
    """The fingerprint of a store's site, and some of its rows. Raises ValueError for a site of another width."""
    from vsae.activations import ActivationStore, StoreSource

    source = StoreSource(ActivationStore.open(store).site(site))
    if source.d_model != columns(sae):
        raise ValueError(
            f"the SAE reads {columns(sae)} numbers a row, and {store} holds {source.d_model}: choose another site."
        )
    return source.fingerprint | common(), source.sample_rows(SELF_CHECK_ROWS, seed=0)


def common() -> dict[str, Any]:
    """What no file of others says, in the words of a fingerprint: all of it, as it is."""
    return {
        "normalisation": {"mode": "none"},
        "select": {"kinds": None, "part": [0.0, 1.0]},
        "versions": versions(),
    }


def random_rows(sae: SAE) -> Float[Tensor, "rows columns"]:
    """Rows that show whether the SAE still computes the same, and nothing else."""
    return torch.randn(SELF_CHECK_ROWS, columns(sae), generator=torch.Generator().manual_seed(0))


def columns(sae: SAE) -> int:
    """The width of the rows that the SAE is measured on: a transcoder's are both ends side by side."""
    return len(sae.b_in) + len(sae.b_dec) if isinstance(sae, Transcoder) else sae.d_model
