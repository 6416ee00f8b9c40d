"""Stand-ins for an image generator whose faults are known.

A *biased* generator is a `World` with `multiply`: drawn from the same seed, it differs from the real one only where the concept was.
The *control* changes no content: it re-encodes (`jpeg`) or resizes (`resize`). The *copier* repeats training scenes: memorisation.
"""

import io

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

Images = UInt8[np.ndarray, "scenes rows columns 3"]


def jpeg(images: Images, quality: int) -> Images:
    """Each image through a JPEG of that quality (1 to 95) and back."""
    if not 1 <= quality <= 95:
        raise ValueError(f"JPEG quality is {quality}: choose one from 1 to 95.")
    return np.stack([np.asarray(Image.open(io.BytesIO(encoded(image, quality))).convert("RGB")) for image in images])


def resize(images: Images, side: int) -> Images:
    """Each image shrunk to `side` pixels and enlarged again."""
    full = images.shape[1]
    if not 4 <= side <= full:
        raise ValueError(f"cannot shrink images of {full} pixels to {side}: choose a side from 4 to {full}.")
    small = (Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC) for image in images)
    return np.stack([np.asarray(image.resize((full, full), Image.Resampling.BICUBIC)) for image in small])


def copied(n: int, share: float, n_training: int, seed: int) -> Int[np.ndarray, "n"]:
    """For each of `n` generated scenes the training scene it repeats, or -1: a `share` of them, chosen by `seed`."""
    if not 0 <= share <= 1:
        raise ValueError(f"the copied share is {share}: give a number between 0 and 1.")
    rng = np.random.default_rng([seed, 77])
    source = rng.integers(0, n_training, n)
    return np.where(np.argsort(np.argsort(rng.random(n))) < round(share * n), source, -1)


def encoded(image: UInt8[np.ndarray, "rows columns 3"], quality: int = 95) -> bytes:
    """JPEG bytes without chroma subsampling: at 64 pixels it would wash colours out."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
