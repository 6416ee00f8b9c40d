"""GemmaScope: a directory with `params.npz`, read only. W_enc [d, n], b_enc [n], W_dec [n, d], b_dec [d], threshold [n]; b_dec is not subtracted from x.

z = u 1[u > threshold] (JumpReLU), u = x W_enc + b_enc. Layout as in Lieberum et al. 2024 (2408.05147) and SAELens' loader of it.
"""

import zipfile
from pathlib import Path

import numpy as np
import torch

from vsae.interop.foreign import Imported, centred, checksums, take
from vsae.sae import SAE
from vsae.sparsifiers import Threshold

NAME = "gemmascope"
FILE = "params.npz"


def file_of(path: Path) -> Path:
    return path / FILE if path.is_dir() else path


def recognises(path: Path) -> bool:
    return file_of(path).is_file() and file_of(path).suffix == ".npz"


def read(path: Path) -> Imported:
    """The SAE of a params.npz. Raises ValueError with a sentence; objects in it are never unpickled."""
    where = file_of(path)
    try:
        with np.load(where, allow_pickle=False) as archive:
            found = {name: torch.from_numpy(archive[name]) for name in archive.files}
    except (ValueError, OSError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{where} does not hold plain arrays ({error}): it is damaged, or no SAE.") from None
    W_enc, b_enc, W_dec, b_dec, threshold = take(
        found, where, W_enc="d n", b_enc="n", W_dec="n d", b_dec="d", threshold="n"
    )
    sparsifier = Threshold(threshold.clamp_min(0))  # theirs is a ReLU, too
    sae = SAE.from_weights(W_enc, centred(W_enc, b_enc, b_dec), W_dec, b_dec, sparsifier)
    return Imported(sae, NAME, checksums(where), site="/".join(where.parts[-4:-1]))
