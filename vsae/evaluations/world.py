"""vsae eval all --world: every evaluation whose answer is known in a rendered world, beside that answer and its floor.

    real       scenes                                               dropped    the same without one shape, as of a generator that cannot draw it
    fresh      other scenes of the same world: nothing to find      unseen     scenes of shapes that no model has seen
    noisy      scenes of the same shapes, with noise: a shift       train      what SAEs and probes are fitted on

Part of the roof, like `vsae.demo`, whose steps these are: what is done is not done again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vsae import audit_jobs, eval_jobs, jobs
from vsae.demo import BATCH, HELD_OUT, LR, PAIRS, VIT, once, say
from vsae.evaluations import audits, masks, quality
from vsae.evaluations.world_answers import ALPHA, DROPPED, SHUFFLE, Answer, collected
from vsae.files import read_json, write_json
from vsae.held import hold_to
from vsae.segmentation_jobs import EvalSegmentation
from vsae.world_jobs import EvalAll

if TYPE_CHECKING:
    from rich.table import Table

SETS: dict[str, tuple[int, dict[str, Any]]] = {
    "train": (40_000, {}),
    "real": (41_000, {}),
    "dropped": (41_000, {"multiply": {f"shape:{DROPPED}": 0.0}}),
    "fresh": (42_000, {}),
    "unseen": (43_000, {"shapes": ("hexagon", "diamond")}),
    "noisy": (44_000, {"style": "noisy"}),
}
"""Scenes by name: seed, and how their world differs. No tiny model was trained on them."""
PAIRED = ("train", "real")


def everything(job: EvalAll) -> Path:
    """Do what is not done yet; returns the directory with summary and result.json."""
    from vsae.evaluations import told

    if not job.world:
        raise ValueError(
            "eval all knows the right answers of one place only: give --world, or name an evaluation (vsae eval --help)."
        )
    here = job.out
    hold_to(job, "world", {name: value for name, value in asdict(job).items() if name != "out"})
    say("1 of 4", f"{len(SETS)} sets of rendered scenes and the activations of tiny models on them")
    for name, (seed, knobs) in SETS.items():
        prepare(here, name, job.scenes if name == "train" else job.scenes // 2, seed, knobs)
    say("2 of 4", "an SAE on patches, a VL-SAE on pairs of image and caption")
    train(here, "patches", VIT, "topk", 16, job.tokens, job.latents, ("patch",))
    train(here, "pairs", "+".join(PAIRS), "vl_sae", 32, job.tokens // 10, job.latents, None)
    say("3 of 4", "evaluations")
    evaluate(here)
    say("4 of 4", "beside what is known")
    answers = collected(here)
    summarise(here, answers)
    return told(table(answers), here)


def prepare(here: Path, name: str, n: int, seed: int, knobs: Mapping[str, Any]) -> None:
    """Scenes of one set, and their store."""
    from modalities import microworld
    from vsae import cli

    if not (here / "scenes" / name).exists():
        microworld.write(here / "scenes" / name, n, seed, **knobs)
    vit = jobs.Model("dinov2", str(microworld.path("vit")))
    clip = {"clip": jobs.Model("clip", str(microworld.path("clip")))} if name in PAIRED else {}
    sites = (VIT, *PAIRS) if clip else (VIT,)
    out = here / "stores" / name
    cli.extract(jobs.Extract(str(here / "scenes" / name), vit, sites, out, batch_size=100, more=clip))


def train(
    here: Path, name: str, site: str, recipe: str, k: int, tokens: int, latents: int, kinds: tuple[str, ...] | None
) -> None:
    from vsae import cli, config

    wanted = {
        "store": here / "stores" / "train",
        "site": site,
        "out": here / "runs" / name,
        "recipe": recipe,
        "kinds": kinds,
        "val_share": HELD_OUT,
        "sae": {"n_latents": latents, "k": k},
        "training": {"tokens": tokens, "batch_size": BATCH, "lr": LR, "tracker": "none"},
    }
    cli.train(config.from_mapping(cli.train_type(["--recipe", recipe]), wanted, "eval all"))


def evaluate(here: Path) -> None:
    """The evaluations, each the function behind its own command."""
    from modalities.microworld.attributes import VALUES

    stores, out = here / "stores", here / "eval"
    patches, pairs = here / "runs" / "patches", here / "runs" / "pairs"
    asked = eval_jobs.EvalRecovery((patches, stores / "train"), out=out / "recovery")
    once(out / "recovery", asked, quality.recovery)
    generated = (patches, stores / "real", stores / "dropped", stores / "fresh")
    once(
        out / "blindspots", audit_jobs.EvalBlindspots(generated, out=out / "blindspots", alpha=ALPHA), audits.blindspots
    )
    sets = (patches, *(stores / name for name in ("train", "real", "unseen", "noisy")))
    once(out / "ood", eval_jobs.EvalOod(sets, near=("unseen",), out=out / "ood"), audits.ood)
    scored = audit_jobs.EvalFiltering(pairs, stores / "real", shuffle=SHUFFLE, out=out / "filtering")
    once(out / "filtering", scored, audits.filtering)
    again = audit_jobs.EvalFiltering(
        pairs,
        stores / "train",
        shuffle=SHUFFLE,
        retrain="+".join(PAIRS),
        clean=stores / "real",
        keep=1 - SHUFFLE,
        out=out / "retraining",
    )
    once(out / "retraining", again, audits.filtering)
    names = here / "classes.json"
    write_json(names, ["background", *VALUES["shape"]])
    aligned = EvalSegmentation(
        (patches, stores / "train", stores / "real"), classes=names, out=out / "segmentation", dense=32
    )
    once(out / "segmentation", aligned, masks.segmentation)


def table(answers: Sequence[Answer]) -> "Table":
    from rich.table import Table

    shown = Table("planted", "measured", "value", "95 % interval", "known answer", "floor", "beside", "")
    shown.title = "Evaluations whose right answer is known"
    for each in answers:
        digits = 3 if 0 < each.known <= 1 and each.floor < 1 else 0
        value = "-" if each.value is None else f"{each.value:.{digits}f}"
        interval = f"{each.interval[0]:.3f} to {each.interval[1]:.3f}" if each.interval else ""
        floor = f"{each.floor:.3g}"
        shown.add_row(
            each.planted,
            each.measure,
            value,
            interval,
            f"{each.known:.3g}",
            floor,
            each.beside,
            "" if each.met else "missed",
        )
    return shown


def summarise(here: Path, answers: Sequence[Answer]) -> None:
    """Write result.json."""
    from evals.result import Result, write_result

    runs = {name: read_json(here / "runs" / name / "run.json")["fingerprint"] for name in ("patches", "pairs")}
    world = read_json(here / "world.json")
    write_result(
        here,
        Result(
            metric="share of planted answers that are met",
            value=sum(each.met for each in answers) / len(answers),
            floor=0.0,
            interval=None,
            n={"answers": len(answers), "scenes": world["scenes"]},
            seeds={name: seed for name, (seed, _) in SETS.items()},
            splits={name: knobs for name, (_, knobs) in SETS.items()},
            normalisation=runs["patches"]["normalisation"]["mode"],
            token_kinds=["patch"],
            fingerprint=runs,
            details={"answers": answers, "settings": world},
        ),
    )


JOBS = {"all": (EvalAll, everything)}
