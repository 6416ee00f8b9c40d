"""`vsae train --sweep`: which runs a grid or a list means, and what came of them as a table and a picture.

    {k: [16, 32], lr: [1e-4, 3e-4]}              every combination: 4 runs
    [{recipe: topk, k: 16}, {recipe: relu}]      these 2

Names are fields of the recipe (`n` is short for n_latents), of the training settings, and `recipe` itself. In a grid of several recipes, one that lacks
a field is not multiplied by it.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pydantic

from vsae.config import near
from vsae.files import write_json, write_whole
from vsae.recipes import Recipe
from vsae.run import Run
from vsae.training.config import TrainConfig
from vsae.training.heldout import NMSE_FLOOR
from vsae.training.loop import ONE_STREAM, Failed

SHORT = {"n": "n_latents"}


def planned(
    wanted: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    base: Recipe,
    training: TrainConfig,
    recipes: Mapping[str, type[Recipe]],
) -> dict[str, tuple[Recipe, TrainConfig]]:
    """Folder name -> what is trained into it. Fields that are not swept are those of `base` and `training`.

    Raises ValueError for names that no recipe has, values that do not fit, and a sweep without runs or with the same run twice.
    """
    entries = grid(wanted) if isinstance(wanted, Mapping) else [renamed(each) for each in wanted]
    swept = list(dict.fromkeys(name for entry in entries for name in entry if name != "recipe"))
    found: dict[str, tuple[Recipe, TrainConfig]] = {}
    used: set[str] = set()
    for entry in entries:
        recipe, config, taken = run_of(entry, base, training, recipes)
        used |= taken
        label = "-".join([recipe.name, *(f"{name}{text(entry[name])}" for name in swept if name in taken)])
        if isinstance(wanted, Mapping) or label not in found:
            found[label] = recipe, config
        else:
            raise ValueError(f"the sweep asks for {label} twice: let every run of the list differ.")
    if unknown := [name for name in swept if name not in used]:
        known = {f.name for f in fields(base)} | {f.name for f in fields(TrainConfig)} | {"recipe"}
        raise ValueError(f"the sweep has an unknown field '{unknown[0]}'{near(unknown[0], sorted(known))}")
    if not found:
        raise ValueError("the sweep has no runs: give name=value,value, as in k=16,32.")
    return found


def grid(axes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the values of each name; a single value is a list of one."""
    values = {name: value if isinstance(value, list | tuple) else [value] for name, value in renamed(axes).items()}
    return [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())] if values else []


def renamed(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {SHORT.get(name, name): value for name, value in entry.items()}


def run_of(
    entry: Mapping[str, Any], base: Recipe, training: TrainConfig, recipes: Mapping[str, type[Recipe]]
) -> tuple[Recipe, TrainConfig, set[str]]:
    """One run, and which names of `entry` it took. Another recipe than the base's takes over what was set there by hand."""
    name = entry.get("recipe", base.name)
    if name not in recipes:
        raise ValueError(f"the sweep names a recipe '{name}'{near(str(name), recipes)}")
    kind = recipes[name]
    own = {field.name for field in fields(kind)}
    set_by_hand = {
        f.name: getattr(base, f.name) for f in fields(base) if kind is type(base) or getattr(base, f.name) != f.default
    }
    changed = {field: value for field, value in entry.items() if field in own}
    settings = {field: value for field, value in entry.items() if hasattr(TrainConfig, field) and field not in own}
    if shared := sorted(set(settings) & set(ONE_STREAM)):
        raise ValueError(f"the runs of a sweep share training.{shared[0]}: they read one stream of rows.")
    here = ", ".join(f"{field}={value}" for field, value in entry.items())
    try:
        recipe = pydantic.TypeAdapter(kind).validate_python(
            {field: value for field, value in set_by_hand.items() if field in own} | changed
        )
        config = pydantic.TypeAdapter(TrainConfig).validate_python(vars(training) | settings)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise ValueError(
            f"the sweep's run {here}: {'.'.join(map(str, first['loc']))} {first['msg'].lower()}."
        ) from error
    return recipe, replace(config), set(changed) | set(settings)


def text(value: Any) -> str:
    """A value as part of a folder's name."""
    written = value if isinstance(value, str) else json.dumps(value)
    return "".join(sign if sign.isalnum() or sign in ".+_-" else "_" for sign in written)


def words(given: Sequence[str]) -> dict[str, Any]:
    """`name=value,value` words as a grid; values are JSON where they can be, else the text itself. Raises ValueError for another word."""
    found: dict[str, Any] = {}
    for word in given:
        name, equals, values = word.partition("=")
        if not name or not equals:
            raise ValueError(f"'{word}' is no part of a sweep: write name=value,value, as in k=16,32.")
        found[name] = [parsed(value) for value in values.split(",")]
    return found


def parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def summary(found: Mapping[Path, Run | Failed]) -> list[dict[str, Any]]:
    """A row a run: name, settings, held-out numbers or why it failed."""
    rows: list[dict[str, Any]] = []
    for path, run in found.items():
        if isinstance(run, Failed):
            rows.append({"run": path.name, "failed": run.why})
            continue
        measured = run.meta["metrics"]["val"] or run.meta["training"]["last_window"]
        rows.append(
            {
                "run": path.name,
                "recipe": run.meta["recipe"]["name"],
                "n_latents": run.sae.n_latents,
                "lr": run.meta["training"]["lr"],
                "measured_on": "held-out rows" if run.meta["metrics"]["val"] else "the last training steps",
                "nmse": measured["nmse"],
                "nmse_floor": NMSE_FLOOR,
                "l0": measured["l0"],
                "dead_share": measured.get("dead_share", run.meta["training"]["dead_share"]),
            }
        )
    return rows


def save(out: Path, found: Mapping[Path, Run | Failed]) -> list[dict[str, Any]]:
    """Write sweep.json and sweep.png beside the runs; returns the rows."""
    rows = summary(found)
    write_json(out / "sweep.json", {"runs": rows, "nmse_floor": NMSE_FLOOR})
    if whole := [row for row in rows if "failed" not in row]:
        write_whole(out / "sweep.png", lambda path: draw(path, whole))
    return rows


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """NMSE over L0, a point a run, a line a recipe, size and learning rate; the mean predictor's 1 as the floor."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    lines: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row["recipe"], row["n_latents"], row["lr"]), []).append(row)
    for (recipe, n_latents, lr), points in lines.items():
        ordered = sorted(points, key=lambda row: row["l0"])
        xs, ys = ([row[name] for row in ordered] for name in ("l0", "nmse"))
        axes.plot(xs, ys, "o-", label=f"{recipe}, {n_latents:,} latents, lr {lr:.2g}")
    axes.axhline(NMSE_FLOOR, color="grey", linestyle=":", label="floor: the mean")
    axes.set(xscale="log", xlabel="L0 (latents a row)", ylabel=f"NMSE on {rows[0]['measured_on']}", ylim=(0, None))
    axes.legend(fontsize="small")
    figure.savefig(path, format="png", dpi=150)
