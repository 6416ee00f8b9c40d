"""What evaluations of the rendered world found, beside what is known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsae.files import read_json

DROPPED = "triangle"
SHUFFLE, ALPHA, LISTED = 0.3, 0.05, 50
EVALUATED = ("recovery", "blindspots", "filtering", "retraining", "ood", "segmentation")


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


def collected(here: Path) -> tuple[Answer, ...]:
    """What the evaluations wrote, beside what is known."""
    found = {name: read_json(here / "eval" / name / "result.json") for name in EVALUATED}
    return (
        smallest(here, found["blindspots"]),
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


def smallest(here: Path, found: Mapping[str, Any]) -> Answer:
    """What the concept with the smallest delta stands for in the real scenes: a shape is often shared out among several latents, all of which fall."""
    first = found["details"]["generators"]["dropped"]["smallest_delta"][0]["latents"][0]
    names, ap, prevalence = stands_for(here, first)
    own = names.index(f"shape:{DROPPED}")
    best = max(range(len(names)), key=lambda at: ap[at] - prevalence[at])
    return Answer(
        f"a generator that draws no {DROPPED}",
        f"AP for {DROPPED}s of the latent with the smallest delta",
        ap[own],
        None,
        1.0,
        prevalence[own],
        f"it stands for {names[best]}",
        best == own,
    )


def stands_for(here: Path, latent: int) -> tuple[list[str], list[float], list[float]]:
    """Of the patches' SAE on the real scenes: every attribute, the latent's average precision for it, and how many scenes have it."""
    from evals import attributes
    from evals.labelled import beside
    from evals.pooling import pool
    from evals.ranking import average_precisions
    from vsae.activations import ActivationStore, Select
    from vsae.demo import VIT
    from vsae.run import Run

    site = ActivationStore.open(here / "stores" / "real").site(VIT)
    table = attributes.read(here / "scenes" / "real")
    pooled = pool(Run.load(here / "runs" / "patches").sae, site.sequential(4096, Select(("patch",))), "max")
    scenes, _ = beside(pooled, site, table)
    ap = average_precisions(scenes.scores, scenes.truth.tocsc())[:, latent]
    return list(table.names), ap.tolist(), scenes.truth.mean(0).tolist()


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
