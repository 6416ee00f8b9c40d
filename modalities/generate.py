"""An image for each caption of a dataset, with a list of what was made; a job that was killed goes on where it stopped.

    generate(model, open_dataset("captions.jsonl"), "out", seed=0, num_inference_steps=30)
    with model.edit(site, fn): generate(model, dataset, "edited", seed=0, num_inference_steps=30, note={"edit": "latent 12 + 5"})

    out/images.jsonl            a row an image: key, caption, image, seed, bad, settings; itself a dataset for `open_dataset`
    out/images/00000012.png     the image of candidate 12 of the dataset

The seed of an image is a function of the set's seed and the sample's key. Its noise is the same to the bit for any batch size, batch or
device; what a denoiser makes of it is the same up to the rounding of its kernels, which may differ with the number of rows. Batches are
[b * batch_size, (b + 1) * batch_size) of the candidates, and are made again whole where an image is missing: going on gives the same bits.
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from modalities.data.samples import Bad, Dataset, Sample
from modalities.diffusion import TextEncoders
from modalities.pipeline import seed_of

LIST, FOLDER = "images.jsonl", "images"


class ImageSet(NamedTuple):
    path: Path
    """The list of images."""
    images: int
    bad: tuple[Bad, ...]
    """Candidates without a caption that can be read, and images that came out black or not finite; none of them has a file."""


def generate(
    model: TextEncoders,
    dataset: Dataset,
    out: str | Path,
    *,
    seed: int = 0,
    batch_size: int = 8,
    negative_prompt: str | None = None,
    note: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> ImageSet:
    """Paint the first caption of each sample with the pipeline of `model`, with the edits in force.

    note: JSON that tells this set from others with the same settings, above all the edit; kept with every image.
    progress: called with (candidates done, all of them) after each batch.
    options: the pipeline's own, as num_inference_steps, guidance_scale, height, width.

    Raises ValueError for options the pipeline does not take, a dataset without captions, or an `out` with images of other settings.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: choose at least 1.")
    pipe = model.pipeline()
    pipe.check(options)
    settings = json.loads(
        json.dumps(
            {
                "seed": seed,
                "negative_prompt": negative_prompt,
                "pipeline": model.provenance["name"],
                "weights": {"text": model.provenance["weights"], "denoiser": pipe.weights},
                "scheduler": type(pipe.library.scheduler).__name__,
                "data": dataset.identity()["digest"],
                "note": dict(note or {}),
                **options,
            },
            default=str,
        )
    )
    out = Path(out)
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    done = _done(out, settings)
    unread: list[Bad] = []
    for start in range(0, len(dataset), batch_size):
        samples, bad = _read(dataset, range(start, min(start + batch_size, len(dataset))))
        unread += bad
        if any(sample.key not in done for sample in samples.values()):
            captions = [sample.captions[0] for sample in samples.values()]
            seeds = [seed_of(seed, sample.key) for sample in samples.values()]
            made = pipe(captions, negative_prompt, seeds=seeds, output_type="np", **options)
            fresh: list[dict[str, Any]] = []
            for number, (index, sample) in enumerate(samples.items()):
                if sample.key in done:
                    continue
                name, reason = f"{FOLDER}/{index:08d}.png", _bad(made, number)
                if reason is None:
                    _write(out / name, made.images[number])
                row = {"key": sample.key, "caption": captions[number], "image": None if reason else name}
                fresh.append(row | {"seed": seeds[number], "bad": reason, "settings": settings})
            _append(out / LIST, fresh)
            done |= {row["key"]: row for row in fresh}
        if progress is not None:
            progress(min(start + batch_size, len(dataset)), len(dataset))
    if list(done) != (order := [key for key in dataset.keys if key in done]):
        # an image that was lost was made again last: the list is that of an uninterrupted job all the same
        done = {key: done[key] for key in order}
        _replace(out / LIST, done.values())
    if not done:
        raise ValueError(
            f"none of the {len(dataset)} samples has a caption to paint: {unread[0].reason if unread else ''}"
        )
    spoiled = [Bad(key, FOLDER, f"came out {row['bad']}") for key, row in done.items() if row["bad"]]
    return ImageSet(out / LIST, len(done) - len(spoiled), (*unread, *spoiled))


def _read(dataset: Dataset, candidates: Sequence[int]) -> tuple[dict[int, Sample], list[Bad]]:
    samples, bad = {}, []
    for index in candidates:
        found = dataset.read(index)
        if isinstance(found, Sample) and not found.captions:
            found = Bad(found.key, found.path, "has no caption")
        if isinstance(found, Bad):
            bad.append(found)
        else:
            samples[index] = found
    return samples, bad


def _bad(made: Any, number: int) -> str | None:
    """Why an image is of no use, if it is not."""
    flagged = getattr(made, "nsfw_content_detected", None)
    if flagged and flagged[number]:
        return "black: blocked by the pipeline's safety checker"
    image = made.images[number]
    if not np.isfinite(image).all():
        return "not finite: try another dtype"
    return None if _bytes(image).any() else "black"


def _bytes(image: Float[np.ndarray, "height width 3"]) -> np.ndarray:
    return (image * 255).round().clip(0, 255).astype(np.uint8)


def _write(path: Path, image: Float[np.ndarray, "height width 3"]) -> None:
    """Whole, or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        try:
            Image.fromarray(_bytes(image)).save(file, format="png")
            file.close()
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _append(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
        file.flush()
        os.fsync(file.fileno())


def _done(out: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows of the images that are there. Raises ValueError for those of other settings."""
    path = out / LIST
    if not path.exists():
        return {}
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):  # killed in the middle of a line
        os.truncate(path, len(whole))
    try:
        rows = [json.loads(line) for line in whole.splitlines()]
        found = {row["key"]: row for row in rows if row["bad"] or (out / row["image"]).is_file()}
        different = next((row["settings"] for row in rows if row["settings"] != settings), None)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no list of generated images ({error}): choose another folder.") from error
    if different is not None:
        names = sorted(name for name in {*different, *settings} if different.get(name) != settings.get(name))
        raise ValueError(f"{out} holds images made with another {', '.join(names)}: choose another folder.")
    if len(found) < len(rows):
        _replace(path, found.values())
    return found


def _replace(path: Path, rows: Any) -> None:
    partial = path.with_suffix(".part")
    partial.unlink(missing_ok=True)
    _append(partial, list(rows))
    os.replace(partial, path)
