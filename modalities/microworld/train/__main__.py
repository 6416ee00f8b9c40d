"""Train the shipped models: `python -m modalities.microworld.train NAME|all`, NAME one of vit, clip, llava, diffusion.

clip and vit learn from a convolutional teacher, which is trained in passing and not kept; it also judges what diffusion draws. llava and diffusion start
from the clip that is there: llava sees with its vision tower, diffusion reads with its text tower. Writes `modalities/microworld/weights/NAME/`, with what
was measured on held-out scenes in `metrics.json` and a README.md.

`diffusion --multiply colour:red=0 background:night=2 --out DIR` trains a generator with habits that are known, for audits to find: into DIR, not judged.
"""

import argparse
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .. import MODELS
from . import clip, diffusion, llava, teacher, vae, vit
from .common import HELD_OUT_SEED, device, probe, weights_dir

WORDS = {
    "vit": "DINOv2-style ViT with registers (`transformers.Dinov2WithRegistersModel`). Distilled, token by token and at every depth, from a small "
    "convolutional network. That teacher (not shipped) was supervised with the renderer's labels: on each patch the shape, colour, texture and size of "
    "the object in front, and the background.",
    "clip": "CLIP in open_clip's local-dir format, contrastive on scenes and captions, and on objects (by the renderer's masks) and their names. Its "
    "vision tower first learnt, as `vit` did, from a convolutional network supervised with the renderer's labels; that loss goes on beside the "
    "contrastive one.",
    "llava": "`LlavaForConditionalGeneration`: the vision tower of `clip`, frozen, a projector and a tiny Llama; describes scenes and answers yes/no questions.",
    "diffusion": "`StableDiffusionPipeline`: CLIP text encoder (started from `clip`), UNet on 32 x 32 latents, `AutoencoderTiny`, DDIM with v-prediction; draws scenes of one or "
    "two objects. Judged by the convolutional network that taught `vit` and `clip`, whose own accuracy on real scenes is the ceiling.",
}


@cache
def taught() -> tuple[teacher.Teacher, dict[str, Any]]:
    """The teacher and its own report, trained once a run."""
    model, minutes = teacher.train()
    return model, {"teacher_minutes": round(minutes, 1), "teacher": teacher.accuracy(model, HELD_OUT_SEED)}


def train_vit() -> dict[str, Any]:
    model, minutes = vit.train(taught()[0])
    vit.save(model, weights_dir("vit"))
    shipped = vit.load()
    report = {"probe": probe(vit.features(shipped)), "patch_probe": vit.patch_probe(shipped)}
    return {"minutes": minutes} | report | taught()[1]


def train_clip() -> dict[str, Any]:
    model, minutes = clip.train(taught()[0])
    clip.save(model, weights_dir("clip"))
    shipped = clip.load()
    report = {"retrieval": clip.retrieval(shipped), "probe": probe(shipped.encode_image)}
    return {"minutes": minutes} | report | taught()[1]


def train_llava() -> dict[str, Any]:
    model, processor, minutes = llava.train(clip.load().state_dict())
    llava.save(model, processor, weights_dir("llava"))
    return {"minutes": minutes} | llava.report(*llava.load())


def train_diffusion() -> dict[str, Any]:
    codec, first = vae.train()
    painter, second = diffusion.train(codec, clip.load().state_dict())
    diffusion.save(diffusion.pipeline(painter, codec), weights_dir("diffusion"))
    return {"minutes": first + second} | diffusion.report(diffusion.load(), taught()[0]) | taught()[1]


def train_diffusion_further(steps: int) -> dict[str, Any]:
    """From the pipeline that is there; its codec stays."""
    before = json.loads((weights_dir("diffusion") / "metrics.json").read_text())
    pipe = diffusion.load()
    painter, minutes = diffusion.train(
        pipe.vae.float(),
        clip.load().state_dict(),
        steps=steps,
        painter=diffusion.painter_of(pipe),
        lr=diffusion.MORE_LR,
    )
    diffusion.save(diffusion.pipeline(painter, pipe.vae), weights_dir("diffusion"))
    told = {"minutes": before["minutes"] + minutes, "further_steps": before.get("further_steps", 0) + steps}
    return told | diffusion.report(diffusion.load(), taught()[0]) | taught()[1]


def train_diffusion_biased(multiply: Mapping[str, float], out: Path) -> dict[str, Any]:
    """From the start, on a world in which concepts are so many times as frequent; with the shipped codec."""
    codec = diffusion.load().vae.float()
    world = replace(diffusion.WORLD, multiply=multiply)
    painter, minutes = diffusion.train(codec, clip.load().state_dict(), world=world)
    diffusion.save(diffusion.pipeline(painter, codec), out)
    return {"minutes": minutes, "multiply": dict(multiply)}


def factor(text: str) -> tuple[str, float]:
    concept, _, times = text.partition("=")
    try:
        return concept, float(times)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not CONCEPT=FACTOR, as in colour:red=0") from None


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m modalities.microworld.train", description="Train the microworld's tiny models."
    )
    parser.add_argument("name", choices=[*MODELS, "all"])
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="CPU threads to use")
    parser.add_argument(
        "--further",
        type=int,
        metavar="STEPS",
        help="diffusion: train the pipeline that is there for so many steps more",
    )
    parser.add_argument(
        "--multiply",
        type=factor,
        nargs="+",
        metavar="CONCEPT=FACTOR",
        help="diffusion: train one into --out for which these are so many times as frequent; 0: it never sees any",
    )
    parser.add_argument("--out", type=Path, help="with --multiply: directory of the pipeline")
    arguments = parser.parse_args()
    if (arguments.further or arguments.multiply) and arguments.name != "diffusion":
        parser.error("--further and --multiply are for diffusion")
    if bool(arguments.multiply) != bool(arguments.out):
        parser.error("--multiply and --out go together: the shipped pipeline is that of the plain world")
    torch.set_num_threads(arguments.threads)
    if arguments.multiply:
        try:
            told = train_diffusion_biased(dict(arguments.multiply), arguments.out)
        except ValueError as error:
            parser.error(str(error))
        print(json.dumps(told, indent=1))
        return
    trainings = {"clip": train_clip, "vit": train_vit, "llava": train_llava, "diffusion": train_diffusion}
    for name in trainings if arguments.name == "all" else [arguments.name]:
        metrics = train_diffusion_further(arguments.further) if arguments.further else trainings[name]()
        metrics["minutes"] = round(metrics["minutes"], 1)
        metrics |= {
            "device": str(device()),
            "threads": arguments.threads,
            "machine": platform.machine(),
            "torch": torch.__version__,
        }
        (weights_dir(name) / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
        (weights_dir(name) / "README.md").write_text(readme(name, metrics))
        print(json.dumps(metrics, indent=1))


def readme(name: str, metrics: dict[str, Any]) -> str:
    steps = metrics.get("further_steps")
    further = f" and `python -m modalities.microworld.train {name} --further {steps}`" if steps else ""
    return (
        f"# microworld/{name}\n\n{WORDS[name]}\n\nMade by `python -m modalities.microworld.train {name}`{further}; measured on held-out scenes, "
        f"each number beside its floor:\n\n```json\n{json.dumps(metrics, indent=1)}\n```\n"
    )


if __name__ == "__main__":
    main()
