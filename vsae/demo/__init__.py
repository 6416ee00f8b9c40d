"""`vsae demo`: a rendered world whose concepts are known, two tiny models trained on it, and what vsae finds in them, on one page.

    scenes/     webdataset shards, as a user's own data would come
    store/      activations of a DINOv2-like ViT and of a CLIP, read in one pass
    runs/       SAEs on their patch tokens, and a VL-SAE on pairs of image and caption
    eval/       result.json and figures of every evaluation
    report/     index.html, and the explorer inside it

Each step is the function behind the command of the same name, and a step that is done is not done again. Part of the roof; nothing else outside
`modalities` knows the microworld.
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from vsae import eval_jobs, jobs
from vsae.held import hold_to


class Training(NamedTuple):
    """Where an SAE is trained, and how."""

    site: str
    recipe: str
    k: int = 16
    rows: float = 1.0
    """Rows for each patch token that `--tokens` asks for: there is one embedding a scene, and 64 patches."""
    kinds: tuple[str, ...] | None = ("patch",)


VIT, CLIP = "layernorm", "clip/visual.transformer.resblocks.3"
PAIRS = "clip/image_embedding", "clip/text_embedding"
RUNS = {
    "vit-ra_topk": Training(VIT, "ra_topk"),
    "vit-topk": Training(VIT, "topk"),
    "clip-topk": Training(CLIP, "topk"),
    "pairs-vl_sae": Training("+".join(PAIRS), "vl_sae", 32, 0.1, None),
}
"""By name, which begins with what is read. The report is about the first."""
SEED = 20_000
"""Of the scenes; no tiny model has been trained or measured on them."""
HELD_OUT = 0.4
"""Share of the scenes that no SAE sees; half of it chooses latents, the other half is reported on."""
BATCH, LR = 1024, 2e-3
PLANTED = {"recipes": ("topk", "ra_topk"), "seeds": 1, "rows": 32_768}


def demo(job: jobs.Demo) -> None:
    """Do what is not done yet and print the path of the page."""
    from vsae.demo import page

    began, here = time.monotonic(), job.out
    hold_to(job, "demo", {name: value for name, value in asdict(job).items() if name != "out"})
    say("1 of 5", f"{job.scenes:,} rendered scenes")
    scenes(here, job.scenes)
    say("2 of 5", "activations of the tiny ViT and the tiny CLIP on them")
    extract(here)
    say("3 of 5", f"{len(RUNS)} SAEs of {job.latents:,} latents")
    for name in RUNS:
        train(here, name, job)
    say("4 of 5", "numbers, beside floors and baselines")
    evaluate(here)
    say("5 of 5", "the page")
    explore(here)
    index = page.write_page(here, list(RUNS))
    print(
        f"\nafter {time.monotonic() - began:.0f} s on {os.cpu_count()} cores; the same command takes what is there and is quick\n"
    )
    print(f"open {index.resolve()}")


def scenes(here: Path, n: int) -> None:
    from modalities import microworld

    if not (here / "scenes").exists():
        microworld.write(here / "scenes", n, SEED)


def extract(here: Path) -> None:
    from modalities import microworld
    from vsae import cli

    vit = jobs.Model("dinov2", str(microworld.path("vit")))
    clip = jobs.Model("clip", str(microworld.path("clip")))
    out, sites = here / "store", (VIT, CLIP, *PAIRS)
    cli.extract_and_tell(jobs.Extract(str(here / "scenes"), vit, sites, out, batch_size=128, more={"clip": clip}))


def train(here: Path, name: str, job: jobs.Demo) -> None:
    from vsae import cli, config

    asked = RUNS[name]
    wanted = {
        "store": here / "store",
        "site": asked.site,
        "out": here / "runs" / name,
        "recipe": asked.recipe,
        "kinds": asked.kinds,
        "val_share": HELD_OUT,
        "sae": {"n_latents": job.latents, "k": asked.k},
        "training": {"tokens": round(asked.rows * job.tokens), "batch_size": BATCH, "lr": LR, "tracker": "none"},
    }
    cli.train(config.from_mapping(cli.train_type(["--recipe", asked.recipe]), wanted, "the demo"))


def evaluate(here: Path) -> None:
    """Every evaluation there is."""
    from vsae import config
    from vsae.evaluations import quality
    from vsae.files import write_json

    for name in RUNS:
        out, run = here / "eval" / f"reconstruction-{name}", here / "runs" / name
        once(out, eval_jobs.EvalReconstruction(run, here / "store", out), quality.reconstruction)
    write_json(here / "eval" / "hierarchy.json", hierarchy())
    for read in ("vit", "clip", "pairs"):
        runs = tuple(here / "runs" / name for name in RUNS if name.startswith(f"{read}-"))
        out = here / "eval" / f"recovery-{read}"
        asked = eval_jobs.EvalRecovery((*runs, here / "store"), hierarchy=here / "eval" / "hierarchy.json", out=out)
        once(out, asked, quality.recovery)
    out = here / "eval" / "planted"
    planted = config.from_mapping(quality.planted_type(), {"out": out, **PLANTED}, "the demo")
    once(out, planted, quality.planted)


def hierarchy() -> dict[str, list[str]]:
    """Parents of the world's taxonomy that have several values below them, as attribute tables name these."""
    from modalities.microworld.attributes import DEFAULT, TAXONOMY

    concepts = {value: f"{attribute}:{value}" for attribute, values in DEFAULT.items() for value in values}
    known = {
        parent: [concepts[child] for child in children if child in concepts] for parent, children in TAXONOMY.items()
    }
    return {parent: children for parent, children in known.items() if len(children) > 1}


def explore(here: Path) -> None:
    from vsae import cli

    first, out = here / "runs" / next(iter(RUNS)), here / "report" / "explorer"
    once(out, jobs.Explore(first, here / "store", out, top=12, random=6, thumbnail=64), cli.explore)


def once(out: Path, job: Any, do: Callable[[Any], Any]) -> None:
    """Do the job unless `out` is there: every job writes whole or not at all, and what it reads is held by `hold_to`."""
    if not (out / "result.json").is_file() and not (out / "index.html").is_file():
        do(job)


def say(number: str, what: str) -> None:
    print(f"\n[{number}] {what}", flush=True)
