"""What a job writes beside its pictures or answers: result.json, effects.parquet, figures."""

from typing import TYPE_CHECKING, Any

from vsae.steer_jobs import Steer

if TYPE_CHECKING:
    from evals.steering import Steered
    from vsae.run import Run
    from vsae.steer.directions import Directions


def write(job: Steer, run: "Run", found: "Directions", made: Any, measured: "Steered") -> None:
    from evals import steering_shown
    from vsae.evaluations import told

    concept = job.concept[0]
    result(job, run, found, made, measured)
    parquet(job, measured)
    steering_shown.draw_reach(measured, concept, job.out / "reach.png")
    for of in measured.effects[0].kept:
        steering_shown.draw_kept(measured, concept, of, job.out / f"{figure_name(of)}.png")
    print("\n".join(steering_shown.verdict(measured, concept)))
    told(steering_shown.table(measured, concept), job.out)


def figure_name(of: str) -> str:
    return "kept_" + "".join(letter if letter.isalnum() else "_" for letter in of)


def result(job: Steer, run: "Run", found: "Directions", made: Any, measured: "Steered") -> None:
    """The headline is the concept at the largest strength, floor: without an edit."""
    from evals.result import Result, write_result
    from evals.steering_shown import verdict

    strongest = max((each for each in measured.effects if each.direction == "latents"), key=lambda each: each.strength)
    about = {name: value for name, value in vars(found).items() if name != "vectors"}
    write_result(
        job.out,
        Result(
            metric=f"'{job.concept[0]}' at strength {strongest.strength:g}",
            value=strongest.reach.value,
            floor=strongest.reach.floor,
            interval=strongest.reach.interval,
            n={"prompts": strongest.n, "examples with": found.having, "examples without": found.lacking},
            seeds={"generation, controls and bootstrap": job.seed},
            splits={"fit": job.examples or job.prompts, "report": job.prompts},
            normalisation="raw activations",
            token_kinds=list(job.kinds or ()),
            fingerprint=run.fingerprint,
            details={
                "verdict": verdict(measured, job.concept[0]),
                "steered": measured,
                "directions": about,
                "bare": made.about_bare(),
            },
        ),
    )


def parquet(job: Steer, measured: "Steered") -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from vsae.files import write_whole

    rows = []
    for each in measured.effects:
        for name, e in {"reach": each.reach, **{f"kept: {of}": e for of, e in each.kept.items()}}.items():
            low, high = e.interval or (None, None)
            rows.append(
                {"direction": each.direction, "strength": each.strength, "measure": name, "value": e.value}
                | {"floor": e.floor, "low": low, "high": high, "n": each.n}
            )
    numbers = ("strength", "value", "floor", "low", "high")
    types = [
        (name, pa.float64() if name in numbers else pa.int64() if name == "n" else pa.string()) for name in rows[0]
    ]
    table = pa.Table.from_pylist(rows, pa.schema(types))
    write_whole(job.out / "effects.parquet", lambda path: pq.write_table(table, path))
