"""vsae eval all --world: every evaluation whose answer is known in a rendered world, beside that answer and its floor.

    real       scenes                                               dropped    the same without one shape, as of a generator that cannot draw it
    fresh      other scenes of the same world: nothing to find      unseen     scenes of shapes that no model has seen
    noisy      scenes of the same shapes, with noise: a shift       train      what SAEs and probes are fitted on

Part of the roof, like `vsae.demo`, whose steps these are: what is done is not done again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vsae import audit_jobs, jobs
from vsae.demo import BATCH, HELD_OUT, LR, PAIRS, VIT, once, say
from vsae.evaluations import audits, masks, quality
from vsae.files import read_json, write_json
from vsae.held import hold_to
from vsae.segmentation_jobs import EvalSegmentation
from vsae.world_jobs import EvalAll

if TYPE_CHECKING:
    from rich.table import Table

DROPPED = "triangle"
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
SHUFFLE, ALPHA, LISTED = 0.3, 0.05, 50


@dataclass(frozen=True)
class Answer:
    """A number whose right value is known."""

    planted: str
    measure: str
    value: float | None
    interval: tuple[float, float] | None
    known: float
    floor: float
    beside: str
    """What a baseline scores on the same, in words."""
    met: bool
    """Better than the floor by more than chance (the whole interval), and for counts the known answer itself."""


def everything(job: EvalAll) -> Path:
    """Do what is not done yet; returns the directory with summary and result.json."""
    from vsae.evaluations import told

    if not job.world:
        raise ValueError(
            "eval all knows the right answers of one place only: give --world, or name an evaluation (vsae eval --help)."
        )
    here = job.out
    hold_to(here, "world", {name: value for name, value in asdict(job).items() if name != "out"})
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
    asked = jobs.EvalRecovery((patches, stores / "train"), out=out / "recovery")
    once(out / "recovery", asked, quality.recovery)
    generated = (patches, stores / "real", stores / "dropped", stores / "fresh")
    once(
        out / "blindspots", audit_jobs.EvalBlindspots(generated, out=out / "blindspots", alpha=ALPHA), audits.blindspots
    )
    sets = (patches, *(stores / name for name in ("train", "real", "unseen", "noisy")))
    once(out / "ood", jobs.EvalOod(sets, near=("unseen",), out=out / "ood"), audits.ood)
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


def collected(here: Path) -> tuple[Answer, ...]:
    """What the evaluations wrote, beside what is known."""
    found = {name: read_json(here / "eval" / name / "result.json") for name in EVALUATED}
    return (
        *blindspots(found["recovery"], found["blindspots"]),
        mismatches(found["filtering"]),
        retrained(found["retraining"]),
        *unseen(found["ood"]),
        shapes(found["segmentation"]),
    )


def blindspots(recovery: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[Answer, ...]:
    """The latent of the dropped shape, as it was chosen on other scenes, by delta; and what is found where nothing is to be found."""
    method = recovery["details"]["methods"][0]["recovery"]
    own = next((each for each in method["attributes"] if each["name"] == f"shape:{DROPPED}"), None)
    dropped, fresh = (found["details"]["generators"][name] for name in ("dropped", "fresh"))
    live, ap = found["n"]["live"], own["ap"]["value"] if own else float("nan")
    rank = place(own and own["latent"], dropped["smallest_delta"])
    listed = place(own and own["latent"], dropped["blindspots"]) is not None
    about = f"its latent has AP {ap:.2f} for {DROPPED}s (prevalence {own['ap']['floor']:.2f})" if own else "no latent"
    planted = f"a generator that draws no {DROPPED}"
    return (
        Answer(
            planted,
            f"rank of its latent by delta among {live} live",
            float(rank) if rank is not None else None,
            None,
            1.0,
            (live + 1) / 2,
            about if rank is not None else f"{about}; below the first {LISTED}",
            rank == 1,
        ),
        Answer(
            planted,
            "its latent is a blindspot (BH)",
            float(listed),
            None,
            1.0,
            float(found["floor"] or 0),
            f"{dropped['n_blindspots']} blindspots, other shapes took its place",
            listed,
        ),
        Answer(
            "nothing: other scenes of the same world",
            "blindspots found (BH)",
            float(fresh["n_blindspots"]),
            None,
            0.0,
            ALPHA * found["n"]["tested"],
            "floor: without correction",
            fresh["n_blindspots"] == 0,
        ),
    )


def place(latent: int | None, listed: Sequence[Mapping[str, Any]]) -> int | None:
    """From 1, of the concept that a latent is part of; None where it is not listed."""
    return next((at for at, each in enumerate(listed, 1) if latent in each["latents"]), None)


def mismatches(found: Mapping[str, Any]) -> Answer:
    scores = found["details"]["scores"]
    own, clip = scores["agreement"]["auroc"], scores["CLIP score"]["auroc"]
    planted = f"{SHUFFLE:.0%} of the captions exchanged"
    return above(planted, "AUROC of the agreement of codes", own, f"CLIP score {clip['value']:.3f}")


def retrained(found: Mapping[str, Any]) -> Answer:
    """Projections retrained on what agreement keeps; the best a filter could do is known, for it is known what was exchanged."""
    by_name = {each["name"]: each for each in found["details"]["retrained"]["found"]}
    own, less, most = (by_name[name]["mean_recall"] for name in ("agreement", "random", "matched"))
    more = by_name["agreement"]["over_random"]
    return Answer(
        f"{SHUFFLE:.0%} of the captions exchanged",
        "mean recall of projections retrained on what agreement keeps",
        own["value"],
        tuple(own["interval"]) if own["interval"] else None,
        most["value"],
        less["value"],
        f"floor: as many random pairs; all pairs {by_name['all']['mean_recall']['value']:.3f}",
        more["interval"][0] > 0 if more["interval"] else more["value"] > 0,
    )


def unseen(found: Mapping[str, Any]) -> tuple[Answer, ...]:
    """The EPD of codes, beside the best score on codes and the best on features."""
    scores, answers = found["details"]["scores"], []
    for name, planted in (("unseen", "shapes that no model has seen"), ("noisy", "noise on known shapes")):
        ranked = sorted(scores, key=lambda each: -each["sets"][name]["auroc"]["value"])
        best = {bool(each["run"]): each for each in reversed(ranked)}
        told = "; ".join(
            f"best on {of} {best[on]['name']} {best[on]['sets'][name]['auroc']['value']:.3f}"
            for on, of in ((True, "codes"), (False, "features"))
        )
        epd = next(each for each in scores if each["name"] == "EPD")["sets"][name]["auroc"]
        answers.append(above(planted, "AUROC of EPD", epd, told))
    return tuple(answers)


def shapes(found: Mapping[str, Any]) -> Answer:
    own, *others = found["details"]["methods"]
    best = max(others, key=lambda each: each["mean_ap"]["value"])
    told = f"{best['name']} {best['mean_ap']['value']:.3f}"
    return above("masks of shapes", "mean AP of one latent a shape", own["mean_ap"], told)


def above(planted: str, measure: str, own: Mapping[str, Any], beside: str) -> Answer:
    """An answer that is 1 at best, met where its interval lies above the floor."""
    interval = tuple(own["interval"]) if own["interval"] else None
    least = interval[0] if interval else own["value"]
    return Answer(planted, measure, own["value"], interval, 1.0, own["floor"], beside, least > own["floor"])


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


EVALUATED = ("recovery", "blindspots", "filtering", "retraining", "ood", "segmentation")
JOBS = {"all": (EvalAll, everything)}
