"""What extraction costs over the bare model: the same prepared batches through the model alone, and through `activations` into a store.

    python benchmarks/extract.py --family vision --model NAME_OR_DIR --site SITE ...            --site takes several
    python benchmarks/extract.py --family clip --model DIR --tower image --site visual.trunk.blocks.6
    python benchmarks/extract.py --family llm --model DIR --site model.layers.29
    python benchmarks/extract.py --family llava --model DIR --site model.language_model.layers.29 --options prompt="Describe the photo:"
    python benchmarks/extract.py --family diffusion --model DIR --site text_encoder.final_layer_norm

A-B-A-B in one process, medians, and the ratio of the two throughputs (bar: 0.9). The bare pass is the model's own, to its end; reading stops at
the deepest site, so name a late one for a fair pair. Images are noise; each caption has as many words as --words says. On a machine that others
use, set OMP_NUM_THREADS=1 and trust processor time.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import modalities
from modalities.base import KINDS
from modalities.data import Sample
from modalities.extract import Chunk
from vsae.activations import write_store
from vsae.jobs import options_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="vision")
    parser.add_argument("--model", default="vit_small_patch14_reg4_dinov2")
    parser.add_argument("--pretrained", action="store_true")
    parser.add_argument("--site", nargs="+", default=["blocks.11"])
    parser.add_argument("--tower", choices=("image", "text"), help="of a dual encoder: run this one alone")
    parser.add_argument(
        "--options", nargs="*", default=[], metavar="NAME=VALUE", help="of the family, as of vsae extract"
    )
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--words", type=int, default=48)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    given: dict[str, Any] = {} if Path(options.model).is_dir() else {"pretrained": options.pretrained}
    if options.family in ("vision", "clip") and given:
        given["img_size"] = options.size
    model = modalities.load(options.family, options.model, **(given | options_of(options.options)))
    rng = np.random.default_rng(0)

    def prepared() -> dict[str, Any]:
        pixels = rng.integers(0, 255, (options.batch, options.size, options.size, 3), dtype=np.uint8)
        caption = " ".join(["word"] * options.words)
        images = [Image.fromarray(one) if options.family in ("vision", "clip", "llava") else None for one in pixels]
        batch = model.prepare([Sample(str(i), str(i), image, (caption,)) for i, image in enumerate(images)])
        return {options.tower: batch[options.tower]} if options.tower else batch

    batches = [prepared() for _ in range(options.batches)]
    rows = [
        {"key": str(i), "path": str(i), "caption": None, "label": None, "width": 1, "height": 1}
        for i in range(options.batch)
    ]

    def bare() -> None:
        with torch.inference_mode():
            for batch in batches:
                model.run(batch)

    def chunks(start: int) -> Iterator[Chunk]:
        for number in range(start, len(batches)):
            named = [row | {"key": f"{number}-{row['key']}"} for row in rows]
            yield Chunk(number, named, [], model.activations(batches[number], options.site))

    def extract() -> None:
        with tempfile.TemporaryDirectory() as folder:
            write_store(Path(folder) / "store", chunks, {"model": model.provenance, "data": {}}, kind_names=KINDS)

    bare(), extract()
    times: dict[str, list[tuple[float, float]]] = {"bare model": [], "extraction": []}
    for _ in range(options.rounds):
        times["bare model"].append(seconds(bare))
        times["extraction"].append(seconds(extract))
    samples = options.batch * options.batches
    for name, taken in times.items():
        wall = [clock for clock, _ in taken]
        print(f"{name:<12} {samples / statistics.median(wall):8.1f} samples/s   ({min(wall):.2f} to {max(wall):.2f} s)")
    for which, clock in enumerate(("clock", "processor")):
        pairs = [b[which] / e[which] for b, e in zip(*times.values(), strict=True)]
        print(
            f"extraction / bare throughput by {clock} time: {statistics.median(pairs):.3f} median of pairs ({min(pairs):.3f} to {max(pairs):.3f}); bar 0.9"
        )


def seconds(work: Callable[[], None]) -> tuple[float, float]:
    """Of the clock, and of all processors together: what other jobs on the machine disturb less."""
    began, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - used


if __name__ == "__main__":
    main()
