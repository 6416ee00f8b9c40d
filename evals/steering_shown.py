"""The effects of `evals.steering` as a table and as pictures."""

from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from evals.figures import ACCENT, INK, QUIET, save
from evals.result import Estimate
from evals.steering import Steered

STYLES = ("-", "--", ":", "-.")


def said(estimate: Estimate, digits: int = 2) -> str:
    """`0.53 (0.40 to 0.66)`; `undefined`."""
    if estimate.value is None:
        return "undefined"
    value = f"{estimate.value:.{digits}f}"
    if estimate.interval is None:
        return value
    return f"{value} ({estimate.interval[0]:.{digits}f} to {estimate.interval[1]:.{digits}f})"


def verdict(found: Steered, concept: str) -> list[str]:
    """In words and numbers: whether the concept rises with the strength, and whether the first direction changes each other attribute less than the others do."""
    first = found.effects[0].direction
    return [rise(found, concept, name) for name in found.monotone] + [
        sentence
        for name, each in found.equal.items()
        for of, gap in each.items()
        for sentence in [less(first, called(name), concept, of, gap)]
    ]


def rise(found: Steered, concept: str, name: str) -> str:
    """Of one direction: its mean reach at every strength, no edit counting as strength 0."""
    there = [each for each in by_direction(found)[name] if each.reach.value is not None]
    bare = found.effects[0].reach.floor
    points: dict[float, Any] = {0.0: bare} | {each.strength: each.reach.value for each in there}
    points = {s: value for s, value in sorted(points.items()) if value is not None}
    values = list(points.values())
    rises = found.monotone[name] and len(values) > 1 and values[-1] > values[0]
    how = "rises" if rises else "does not rise" if found.monotone[name] else "does not rise at every step"
    numbers = ", ".join(f"{value:.2g} at {s:g}" for s, value in points.items())
    share = found.monotone_share[name]
    return f"'{concept}' {how} with the strength of {called(name)}: {numbers}; it never falls in {share:.0%} of the bootstrap's draws."


def less(first: str, other: str, concept: str, of: str, gap: Estimate) -> str:
    """Of one other direction and attribute, at equal reach."""
    if gap.value is None:
        return f"Whether {called(first)} change {of} less than {other} is not known: the two do not both bring out '{concept}'."
    if gap.interval is None:
        return f"Whether {called(first)} change {of} less than {other} at equal '{concept}' is not known: they keep {said(gap)} more of it here, but too few prompts bring it out for an interval."
    low, high = gap.interval
    does = "change" if low > 0 else "do not change"
    why = "" if low > 0 else ", which is less" if high < 0 else ", and 0, no difference, is in the interval"
    return f"At equal '{concept}' {called(first)} {does} {of} less than {other}: they keep {said(gap)} more of it{why}."


def called(name: str) -> str:
    if name == "means":
        return "the difference of means"
    return f"random latents {name.removeprefix('random')}" if name.startswith("random") else f"the {name}"


def table(found: Steered, concept: str) -> Table:
    """A line for each direction and strength."""
    names = list(found.effects[0].kept)
    shown = Table("direction", "strength", f"'{escape(concept)}'", *(f"kept: {escape(name)}" for name in names))
    last = ""
    for each in found.effects:
        if last and each.direction != last:
            shown.add_section()
        last = each.direction
        shown.add_row(
            each.direction, f"{each.strength:g}", said(each.reach), *(said(each.kept[name]) for name in names)
        )
    floors = ", ".join(f"{name} {e.floor:.2f}" for name, e in found.effects[0].kept.items() if e.floor is not None)
    bare = found.effects[0].reach.floor
    shown.caption = f"without an edit: '{escape(concept)}' {'undefined' if bare is None else f'{bare:.2f}'}; floors of what is kept: {escape(floors)}"
    return shown


def draw_reach(found: Steered, concept: str, path: Path) -> Path:
    """How far the concept is there, by strength."""

    def on(axes: Any) -> None:
        for number, (name, effects) in enumerate(by_direction(found).items()):
            there = [e for e in effects if e.reach.value is not None]
            x, y = [e.strength for e in there], [float(e.reach.value or 0) for e in there]
            bounds = [e.reach.interval or (v, v) for e, v in zip(there, y, strict=True)]
            errors = [[max(0.0, v - b[0]) for v, b in zip(y, bounds, strict=True)], [max(0.0, b[1] - v) for v, b in zip(y, bounds, strict=True)]]  # fmt: skip
            axes.errorbar(x, y, yerr=errors, marker="o", ms=4, lw=1.4, capsize=2, **style(number, name))
        bare = found.effects[0].reach.floor
        if bare is not None:
            axes.axhline(bare, color=QUIET, lw=1, ls=":")
        axes.set(xlabel="strength", ylabel=f"'{concept}' (dotted: without an edit)", ylim=(-0.02, 1.02))
        axes.legend(frameon=False, fontsize=8)

    return save(on, path)


def draw_kept(found: Steered, concept: str, of: str, path: Path) -> Path:
    """What is kept of one attribute, by how far the concept is there: to the upper right is better."""

    def on(axes: Any) -> None:
        for number, (name, effects) in enumerate(by_direction(found).items()):
            there = [e for e in effects if e.reach.value is not None and e.kept[of].value is not None]
            axes.plot([e.reach.value for e in there], [e.kept[of].value for e in there], marker="o", ms=4, lw=1.4, **style(number, name))  # fmt: skip
        floor = found.effects[0].kept[of].floor
        if floor is not None:
            axes.axhline(floor, color=QUIET, lw=1, ls=":")
        axes.set(xlabel=f"'{concept}'", ylabel=f"kept: {of} (dotted: floor)", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.legend(frameon=False, fontsize=8)

    return save(on, path)


def by_direction(found: Steered) -> dict[str, list[Any]]:
    names = dict.fromkeys(each.direction for each in found.effects)
    return {name: [each for each in found.effects if each.direction == name] for name in names}


def style(number: int, name: str) -> dict[str, Any]:
    """The first direction is what a figure is about, the second its baseline, the others controls."""
    return {"color": (ACCENT, INK, QUIET)[min(number, 2)], "ls": STYLES[number % len(STYLES)], "label": name}
