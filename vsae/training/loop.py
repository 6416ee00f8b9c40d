"""The training loop: one stream of shuffled activations in, a run directory out for every SAE that learns from it.

What happens to each SAE is in student.py. The state of a run is a `Training` (state.py), from whose checkpoint it goes on bit for bit (on CPU), alone or
beside others: they share what is read (rows, moments, samples to start from, held-out rows), and nothing that is computed.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vsae import held, parallel
from vsae.activations import JoinedSource, Source
from vsae.activations.together import Team
from vsae.files import digest
from vsae.fitted import Once
from vsae.run import RUN, Run
from vsae.training import guard
from vsae.training.config import TrainConfig
from vsae.training.heldout import Heldout, measure_each
from vsae.training.memory import kept_memory
from vsae.training.once import fit_once
from vsae.training.progress import Display
from vsae.training.student import Recipe, Shared, Student, failure, give_up

ONE_STREAM = ("batch_size", "seed", "device", "precision", "eval_rows")
"""Settings that runs on one stream have in common: they decide which rows come when, and with what numbers they are computed."""


class Failed(NamedTuple):
    """A run of a sweep that was given up."""

    path: Path
    why: str


def train(
    source: Source,
    recipe: Recipe | Once,
    out: str | Path,
    config: TrainConfig = TrainConfig(),  # noqa: B008 (frozen)
    val: Source | None = None,
    progress: bool = True,
) -> Run:
    """Train (or fit) the recipe's SAE on `source` and write the run directory `out`; held-out numbers come from `val`.

    The same call goes on where an interrupted one was, and returns a finished run as it is. Raises ValueError when `out` holds another run or is in
    use, FloatingPointError when the loss is not finite or diverges, SystemExit after SIGINT or SIGTERM, a checkpoint having been written.
    """
    out = Path(out)
    with ExitStack() as claims:
        asked = _asked(source, {out: (recipe, config)}, val, claims, Team.of_launch().rank)
        _fit(source, asked, val, progress, lone=True)
        return Run.load(out)


def sweep(
    source: Source,
    runs: Mapping[Path, tuple[Recipe, TrainConfig]],
    val: Source | None = None,
    progress: bool = True,
) -> dict[Path, Run | Failed]:
    """Train several SAEs in one pass over `source`, each into a run directory of its own that holds what training it alone would have written.

    The same call goes on where an interrupted one was: runs that are behind learn until they are level with the others, finished ones are left as
    they are, and a run whose loss diverges is given up while the others go on. Raises as `train` does, but no FloatingPointError; ValueError also
    where the settings in `ONE_STREAM` are not the same for all.
    """
    if Team.of_launch().size > 1:
        raise ValueError("a sweep trains in one process: start it without torchrun or accelerate launch.")
    for name in ONE_STREAM:
        if len(found := {getattr(config, name) for _, config in runs.values()}) > 1:
            raise ValueError(
                f"runs on one stream share training.{name}, and here it is {' and '.join(map(str, sorted(found, key=str)))}: make them sweeps of their own."
            )
    with ExitStack() as claims:
        asked = _asked(source, runs, val, claims)
        _fit(source, [each for each in asked if failure(each.out) is None], val, progress)
        why = {out: failure(out) for out in runs}
        return {out: Run.load(out) if sentence is None else Failed(out, sentence) for out, sentence in why.items()}


class Asked(NamedTuple):
    """A run that is not finished."""

    out: Path
    recipe: Recipe | Once
    config: TrainConfig
    request: dict[str, Any]


def _asked(
    source: Source,
    runs: Mapping[Path, tuple[Recipe | Once, TrainConfig]],
    val: Source | None,
    claims: ExitStack,
    rank: int = 0,
) -> list[Asked]:
    """Claim every directory, hold each to its request, and return what is left to do. Of several processes the first does, for all."""
    identity: dict[str, Any] = {
        "source": digest(source.fingerprint),
        "val": digest(val.fingerprint) if val is not None else None,
    }
    left = []
    for out, (wanted, config) in runs.items():
        recipe = fitted(wanted, source) if isinstance(wanted, Recipe) else wanted
        about = {"recipe": {"name": recipe.name, "fields": asdict(recipe)}, "config": asdict(config)}
        if rank == 0:
            claims.enter_context(guard.claimed(out))
            usual = {"recipe": {"fields": held.defaults(recipe)}, "config": held.defaults(config)}
            guard.hold_to(out, about | identity, usual)
        if not (out / RUN).exists():
            left.append(Asked(out, recipe, config, about | identity))
    return left


def fitted(recipe: Recipe, source: Source) -> Recipe:
    """A recipe for joined rows with the widths of the source's sites. Raises ValueError where there is only one site, and for other widths than theirs."""
    if "columns" not in recipe.__dataclass_fields__:
        return recipe
    given = recipe.columns  # type: ignore[attr-defined]
    if given is not None:
        if isinstance(source, JoinedSource) and tuple(given) != source.columns:
            raise ValueError(
                f"columns are {tuple(given)}, but the sites that are read together are {source.columns} wide: leave them out."
            )
        return recipe
    if not isinstance(source, JoinedSource):
        raise ValueError(
            f"{recipe.name} reads several sites side by side, and this is one: give --site A+B (a JoinedSource in Python)."
        )
    return replace(recipe, columns=source.columns)


def _fit(source: Source, asked: list[Asked], val: Source | None, progress: bool, lone: bool = False) -> None:
    """Train all from their newest checkpoints to the ends of their budgets, and save the runs. `lone`: a failure is raised, not noted."""
    for out, recipe, config, request in asked:
        if isinstance(recipe, Once):
            fit_once(source, recipe, out, config, val, request, progress)
    asked = [each for each in asked if not isinstance(each.recipe, Once)]
    if not asked:
        return
    with torch.random.fork_rng(range(torch.cuda.device_count())):  # steps seed the global generators
        _learn(source, asked, val, progress, lone)


def _learn(source: Source, asked: list[Asked], val: Source | None, progress: bool, lone: bool) -> None:
    shared = Shared(source)
    students = [
        Student(shared, recipe, config, out, request)
        for out, recipe, config, request in asked
        if isinstance(recipe, Recipe)
    ]
    behind = min(students, key=lambda student: student.training.tokens).training
    config, device, tokens = students[0].config, students[0].device, behind.tokens
    batches = source.batches(config.batch_size, config.seed, behind.loader)
    layout = students[0].layout
    progress = progress and layout.rank == 0
    display = Display(max(student.budget for student in students), tokens, progress, config.log_every_seconds)

    def dismissed(student: Student, error: FloatingPointError) -> None:
        if lone:
            raise error
        give_up(student.out, str(error))
        display.say(f"{student.out} is given up: {error}")
        learning.remove(student)

    with guard.Interruption() as interruption, display, kept_memory(device), ExitStack() as trackers:
        for student in students:
            trackers.enter_context(student.trackers)
            if student.training.step:
                display.say(f"going on from step {student.training.step:,} of {student.out}")
        learning = [student for student in students if not student.done]
        while learning:
            x = moved(next(batches).values, device).float()
            # A student that is ahead, because a kill fell between two checkpoints or others joined late, waits for the rest.
            level = [student for student in learning if student.training.tokens == tokens]
            tokens += len(x)
            for student in level:
                try:
                    student.learn(x)
                except FloatingPointError as error:
                    dismissed(student, error)
            level = [student for student in level if student in learning]

            # From here on the host may wait for the device.
            looked = [student.training for student in level if student.looked]
            display.show(max((each.step for each in looked), default=0), tokens, [each.numbers for each in looked])
            wanting = [student for student in level if student.wants_heldout] if val is not None else []
            for student, found in zip(wanting, heldout(wanting, val, config.eval_rows), strict=True):
                student.note_heldout(found)
            saved, stop = None, bool(level) and stopped(interruption, level[0])
            for student in level:
                if student.wants_saving or stop:
                    try:
                        saved = student.save(batches.state())
                    except FloatingPointError as error:
                        dismissed(student, error)
            learning = [student for student in learning if not student.done]
            if learning and stop:
                where = saved if len(students) == 1 else "each run's own directory"
                raise SystemExit(
                    f"stopped by {interruption.name} at step {max(s.training.step for s in students):,}, saved in {where}: the same call goes on from there."
                )
        complete = [student for student in students if student.done and failure(student.out) is None]
        measured = heldout(complete, val, None) if val is not None else [None] * len(complete)
    for student, metrics in zip(complete, measured, strict=True):
        student.finish(metrics, val)


def stopped(interruption: guard.Interruption, student: Student) -> bool:
    """Was a signal seen? Several processes see it at different steps, and agree when they look."""
    if student.layout.size == 1:
        return bool(interruption)
    return student.looked and parallel.agreed(bool(interruption), student.layout, student.device)


def heldout(students: Sequence[Student], val: Source | None, limit: int | None) -> list[Heldout]:
    """Measure the SAEs as they would be saved, on raw rows of `val`: always the same ones, `limit` of them, read once for all."""
    if not students or val is None:
        return []
    config, device = students[0].config, students[0].device
    batches = val.batches(config.batch_size, config.seed, epochs=1)
    layout = replace(students[0].layout, over_rows=None)  # every process measures the same rows
    with parallel.step_of(layout, 0):
        return measure_each([each.fused() for each in students], (batch.values for batch in batches), device, limit)


def moved(values: Float[Tensor, "rows d_model"], device: torch.device) -> Float[Tensor, "rows d_model"]:
    """On the device; from pinned memory, as the host would otherwise wait for the copy."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values
