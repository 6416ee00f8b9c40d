"""The page of a steering: what each strength gave, side by side, beside the baselines, and what the numbers do not show."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.steering_shown import said, verdict
from vsae.report.page import Fact
from vsae.report.results import Chart, Grid, Part, Picture, Section, write
from vsae.steer.outcome import figure_name
from vsae.steer_jobs import Steer

if TYPE_CHECKING:
    from evals.steering import Steered
    from vsae.run import Run
    from vsae.steer.directions import Directions

MEANING = {
    "latents": "the SAE's latents",
    "means": "difference of means: examples with the concept less those without, which needs no SAE",
}


def write_page(job: Steer, run: "Run", found: "Directions", made: Any, measured: "Steered") -> Path:
    """Write OUT/report/index.html; returns it."""
    concept, latents = job.concept[0], ", ".join(map(str, found.latents))
    strongest = [each for each in measured.effects if each.direction == "latents"][-1]
    bare = strongest.reach.floor
    facts = [
        Fact("concept", concept, f"in {found.having:,} examples, not in {found.lacking:,}"),
        Fact("latents", latents, f"cosine with the difference of means {found.cosine:.2f}"),
        Fact(
            f"'{concept}' at strength {strongest.strength:g}",
            said(strongest.reach),
            f"without an edit {'undefined' if bare is None else f'{bare:.2f}'}",
        ),
        Fact(
            "rises with strength",
            "yes" if measured.monotone["latents"] else "no",
            f"in {measured.monotone_share['latents']:.0%} of the bootstrap's draws",
        ),
    ]
    if job.find is not None:
        shown = "not reached" if found.threshold is None else f"{found.threshold:.2f}"
        facts.append(Fact(f"strength for {job.find:g}", shown, "by bisection, on these prompts"))
    lead = (
        f"{'Latent' if len(found.latents) == 1 else 'Latents'} {latents} of {run.path.name}, changed ({job.operation}) in {Path(job.model.name).name} while it makes its {made.what}. Strength 1 is "
        + (
            f"{'each latent as large as it gets where the concept is' if job.value is None else f'{job.value:g}'}."
            if job.operation != "scale"
            else "the whole change."
        ),
        "Every direction moves each token as far as the latents do, so that they compare at equal size.",
    )
    answer = Section("In words", verdict(measured, concept))
    sections = [
        answer,
        *made.sections(found),
        effects(job, found, measured),
        equal(job, found, measured),
        limits(job, made),
    ]
    return write(job.out / "report", f"Steering: {concept}", lead, facts, sections)


def meaning(found: "Directions", name: str) -> str:
    if name in MEANING:
        return MEANING[name]
    control = found.controls[int(name.removeprefix("random")) - 1]
    return f"random latents ({', '.join(map(str, control))}), matched in number, firing rate and size"


def effects(job: Steer, found: "Directions", measured: "Steered") -> Section:
    names = list(measured.effects[0].kept)
    rows: list[tuple[str, ...]] = []
    strong: list[int] = []
    for each in measured.effects:
        if each.direction == "latents":
            strong.append(len(rows))
        rows.append((f"{each.direction}, {each.strength:g}", said(each.reach), *(said(each.kept[of]) for of in names), f"{each.n:,}"))  # fmt: skip
    floors = "; ".join(f"{of} {e.floor:.2f}" for of, e in measured.effects[0].kept.items() if e.floor is not None)
    words = [
        *(f"{name}: {meaning(found, name)}." for name in found.names),
        f"Kept: as it was without the edit. Floor, what two prompts share anyway: {floors}." if floors else "",
    ]
    parts: list[Part] = [chart(job, "reach", "how far the concept is there, by strength")]
    parts.append(
        Grid(("direction, strength", f"'{job.concept[0]}'", *(f"kept: {of}" for of in names), "n"), rows, strong)
    )
    return Section("Effects", [line for line in words if line], parts)


def equal(job: Steer, found: "Directions", measured: "Steered") -> Section:
    """Which direction keeps more, where both bring the concept out as far."""
    names = list(measured.effects[0].kept)
    rows = [(name, *(said(each[of]) for of in names)) for name, each in measured.equal.items()]
    words = [
        "Kept by the latents less kept by the other direction, averaged over how far both bring the concept out; above 0 the latents leave more as it was. "
        "Undefined: one of the two does not bring it out at all.",
    ]
    parts: list[Part] = [Grid(("beside", *(f"kept: {of}" for of in names)), rows)] if rows else []
    parts += [chart(job, figure_name(of), f"{of} kept, by how far the concept is there") for of in names]
    return Section("At equal effect", words, parts)


def chart(job: Steer, name: str, words: str) -> Chart:
    from PIL import Image

    with Image.open(job.out / f"{name}.png") as image:
        return Chart(Picture(image.convert("RGB"), words))


def limits(job: Steer, made: Any) -> Section:
    words = [
        *made.limits(),
        "Directions were fitted on the examples, and are reported on the prompts"
        + (
            ": the same texts here, so that latents and difference of means may look a little better than on others."
            if job.examples is None
            else "."
        ),
        "Intervals are over prompts: one seed a prompt, one SAE.",
    ]
    return Section("What this does not show", words)
