"""The page of an audit: each finding beside its evidence, what the controls say, and what was not significant."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vsae.audit import explorer
from vsae.audit.concepts import verdict
from vsae.audit.look import Look
from vsae.audit_jobs import Audit as Job
from vsae.report.page import Fact
from vsae.report.results import Chart, Frame, Grid, Part, Picture, Section, Strip, write

if TYPE_CHECKING:
    from evals.blindspots_found import Audit, Audited, Compared, Named
    from evals.memorisation import Memorised
    from vsae.activations.store import SiteReader
    from vsae.audit.names import Called
    from vsae.run import Run

COPIES = 8


def write_page(
    job: Job,
    run: "Run",
    found: "Audit",
    called: "Mapping[int, Called]",
    named: "Named",
    sites: Mapping[str, "SiteReader"],
    data: Mapping[str, str],
) -> Path:
    """Write OUT/report/index.html and the explorer beside it. called: names of concepts; sites and data: by name, "real" first."""
    from evals.label_reading import atoms_of

    looks = {name: Look(job, run, site, data[name]) for name, site in sites.items()}
    first = found.generators[0]
    facts = [
        Fact("real images", f"{first.difference.n_real:,}", "none of them seen in training"),
        Fact(
            "concepts",
            f"{first.difference.live.sum():,}",
            f"{first.difference.tested.sum():,} often enough to be tested",
        ),
        *(
            Fact(
                each.name,
                f"{each.blindspots.sum():,} blindspots",
                f"floor: {found.null.found:.1%} of concepts between real halves",
            )
            for each in found.generators
        ),
    ]
    sections = [summary(found)]
    for at, each in enumerate(found.generators):
        by_name = names(named, named.generators[at], job.shown) if named.names else None
        sections.append(generator(job, found, each, called, by_name, looks))
    sections += [section for each in found.generators if (section := memorised(each, found.real.keys, looks))]
    sections += [across(found)] if len(found.generators) > 1 else []
    last = limits(job, found)
    explorer.write(job.out / "report" / "explorer", found, called, looks, atoms_of(run), facts, last.words)
    words = [
        "Every concept, found or not: on a map of their atoms, to search, sort and filter, with its evidence. It opens by itself, too: explorer/index.html."
    ]
    sections += [Section("All concepts", words, [Frame("explorer/index.html", "all concepts")]), last]
    lead = (
        "Each concept is a latent of a sparse autoencoder (latents with nearly the same atom count as one). Its energy is its mean activation a patch; a blindspot is a concept whose "
        "energy differs between generated and real images beyond chance (permutation test, Benjamini-Hochberg), by more than the least change, and in the same direction from real "
        "images that were only written anew.",
    )
    return write(
        job.out / "report", "Audit of " + ", ".join(each.name for each in found.generators), lead, facts, sections
    )


def summary(found: "Audit") -> Section:
    """A row a generator."""
    rows = []
    for each in found.generators:
        d = each.difference
        counts = Counter(verdict(each, k) for k in np.flatnonzero(d.live).tolist())
        kinds = ("suppressed", "exaggerated", "low-level", "unchanged", "beyond detection", "too rare to test")
        shown = [f"{counts[kind]:,}" for kind in kinds]
        rows.append(
            (each.name, "pair by pair" if d.paired else "as sets", f"{d.n_generated:,}", *shown, f"{each.skew:.2f}")
        )
    low, high = found.null.delta_range
    words = [
        f"Floor: two random halves of the real images differ in {found.null.found:.1%} of the concepts, with delta from {low:.3f} to {high:.3f} (T = {found.settings['temperature']:g}).",
        "Low-level: differs, but no more than real images do that were only written anew. Beyond detection: so rare that not even its disappearance would be sure to be found.",
    ]
    columns = (
        "generator",
        "compared",
        "images",
        "suppressed",
        "exaggerated",
        "low-level",
        "unchanged",
        "beyond detection",
        "too rare",
        "skew of delta",
    )
    return Section("Generators", words, [Grid(columns, rows)])


def names(named: "Named", each: "Compared", most: int) -> Grid:
    """What is found of a generator when all concepts of a name count as one."""
    from evals.blindspots_found import by_change

    d, rows = each.difference, []
    for k in by_change(d, each.blindspots)[:most]:
        low, high = each.interval[:, k]
        change = f"{d.relative[k]:+.2f} ({low:+.2f} to {high:+.2f})"
        numbers = f"{d.real[k]:.2e}", f"{d.generated[k]:.2e}", change, f"{d.q[k]:.1e}"
        rows.append((named.names[k], f"{len(named.concepts[k])}", verdict(each, k), *numbers))
    note = (
        f"By name: all concepts of one name, found or not, added up and tested again. {each.blindspots.sum()} of {d.tested.sum()} names are blindspots "
        f"(floor, between two halves of the real images: {named.floor:.1%}); by_name.parquet has the others. Only names above chance are in it."
    )
    columns = ("name", "concepts", "verdict", "energy, real", "energy, generated", "relative difference", "q")
    return Grid(columns, rows, note=note)


def generator(
    job: Job,
    found: "Audit",
    each: "Audited",
    called: "Mapping[int, Called]",
    by_name: Grid | None,
    looks: Mapping[str, Look],
) -> Section:
    """The blindspots of one generator with their evidence, the largest first."""
    from PIL import Image

    from evals.blindspots_found import either_way

    d, listed = each.difference, either_way(each.difference, each.blindspots, job.shown)
    rows = []
    parts: list[Part] = [by_name] if by_name else []
    with Image.open(job.out / f"{each.name}.png") as figure:
        parts.append(
            Chart(Picture(figure.convert("RGB"), f"all concepts of {each.name}: relative difference and energy"))
        )
    evidence: list[Part] = []
    for k in listed:
        latents = found.latents(k)
        name = "latent " + ", ".join(map(str, latents[:3])) + (" ..." if len(latents) > 3 else "")
        name = f"{called[k].shown} ({name})" if k in called else name
        low, high = each.interval[:, k]
        change = f"{d.relative[k]:+.2f} ({low:+.2f} to {high:+.2f})"
        rows.append((name, verdict(each, k), f"{d.real[k]:.2e}", f"{d.generated[k]:.2e}", change, f"{d.delta[k]:.3f}", f"{d.q[k]:.1e}", f"{d.limit[k]:.1e}"))  # fmt: skip
        for which in ("real", each.name):
            strip = looks[which].strip(latents[0], f"{name}, {verdict(each, k)} {d.relative[k]:+.2f}: {which} images")
            evidence += [strip] if strip.pictures else []
    columns = (
        "concept",
        "verdict",
        "energy, real",
        "energy, generated",
        "relative difference",
        "delta",
        "q",
        "detection limit",
    )
    n = int(each.blindspots.sum())
    words = [
        f"{n:,} blindspots; the {len(listed)} that change most are shown, of either sort where there are both. Relative difference: -1 gone, +1 new; floor 0."
        if n
        else "No concept differs beyond chance and beyond the control.",
        "Pictures: the images on which the latent is strongest, dark where it is silent. "
        + (
            "Names are CLIP's nearest words to the images, real and generated, that it is active on, with a question mark where they are no nearer than to random images."
            if called
            else "A name is yours to give: read it off the real images, or let a CLIP propose one (--names)."
        ),
    ]
    if listed:
        parts.append(
            Grid(columns, rows, note="concepts.parquet has all of them, with p, and those that were not found.")
        )
    return Section(each.name, words, [*parts, *evidence])


def memorised(each: "Audited", real: tuple[str, ...], looks: Mapping[str, Look]) -> Section | None:
    """Generated images beside the real ones they are nearest to. real: keys of those."""
    measures: list[tuple[str, Memorised]] = [("the nearest real image", each.nearest)]
    rows, parts = [], []
    for name, m in measures:
        order = np.argsort(np.where(np.isnan(m.distance), np.inf, m.distance), kind="stable")[:COPIES]
        pairs = []
        for i in order[np.isfinite(m.distance[order])].tolist():
            words = f"distance {m.distance[i]:.3f}" + (", a candidate" if i in m.candidates else "")
            both = (
                looks[each.name].of(each.energies.keys[i], f"generated: {words}"),
                looks["real"].of(real[m.real[i]], "real"),
            )
            pairs += [picture for picture in both if picture is not None]
        smallest = f"{m.control.min():.3f}" if len(m.control) else "-"
        rows.append(
            (
                name,
                f"{len(m.candidates):,}",
                f"{np.nanmin(m.distance):.3f}" if np.isfinite(m.distance).any() else "-",
                smallest,
            )
        )
        parts.append(Strip(pairs, f"{each.name}: nearest first, generated and real side by side"))
    if not parts[0].pictures:
        return None
    said = [
        "Relative distance of the codes: 0 is a copy. A candidate is nearer to a real image than any two real images are to each other, which is the floor.",
        "Where a generator began from the very scenes or latents of the real images, likeness is no sign of memorisation.",
    ]
    columns = ("compared with", "candidates", "smallest distance", "smallest between real images")
    return Section(f"Copies? {each.name}", said, [Grid(columns, rows), *parts])


def across(found: "Audit") -> Section:
    rows = [
        (name, "undefined" if e.value is None else f"{e.value:.2f}", f"{e.floor:.2f}")
        for name, e in found.correlations.items()
    ]
    words = [
        "Correlation of the relative differences. Floor: of two generators that are both nothing but other real images."
    ]
    return Section("Generators against each other", words, [Grid(("generators", "r", "floor"), rows)])


def limits(job: Job, found: "Audit") -> Section:
    control = f"JPEG {job.control_jpeg}" if job.control_jpeg else "the same format"
    control += f", no side longer than {job.control_side}" if job.control_side else ", at their own size"
    words = [
        f"The control is the real images as {control}. Other processing (another resize, a VAE, upscaling) is not controlled for, and would look like blindspots.",
        "A concept is what one dictionary of one model calls so. Several latents can share what a person calls one thing, and each of them is then found by itself.",
        f"False discovery rate {job.alpha:g} for each generator; |relative difference| below {job.least_change:g} does not count, however sure.",
    ]
    if found.null.crosses:
        words.append("At this temperature even real halves reach delta .1 or .9: its thresholds say nothing here.")
    return Section("What this does not show", words)
