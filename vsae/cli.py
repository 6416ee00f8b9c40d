"""The roof: `vsae COMMAND`, and with the files below it the only ones that know models, dictionaries and evaluations at once.

reading.py        models and images that jobs name
evaluations/      vsae eval NAME
demo/             vsae demo
filter/           vsae filter
audit/            vsae audit
steer/            vsae steer

Every command is a job (`vsae/jobs.py`) and a function here of the same name, which a program can call too. A person's mistake is one
sentence on stderr and exit code 2; set VSAE_TRACEBACK=1 to see where it was raised.
"""

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vsae import jobs
from vsae.progress import track

if TYPE_CHECKING:
    from vsae.activations import ActivationStore, Source
    from vsae.run import Run
    from vsae.training.loop import Failed

COMMANDS = {
    "extract": "images, texts -> activations of a model on disk",
    "train": "activations -> a sparse dictionary, in a run directory",
    "eval": "a run's numbers, beside floors and baselines: vsae eval reconstruction, vsae eval recovery",
    "explore": "a static HTML page of what each latent responds to",
    "info": "what this store or run is, in words",
    "convert": "an SAE of another library -> a run directory, and back",
    "audit": "real images, and image generators or their images -> what they draw too rarely, too often, or copy",
    "filter": "image-text data -> the part of it whose images and texts agree, in the same format",
    "steer": "latents at several strengths while a model draws or writes, beside the baselines of the same size",
    "demo": "all of it in a rendered world whose concepts are known, without network",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return
    try:
        command(arguments[0], arguments[1:])
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("VSAE_TRACEBACK"):
            raise
        print(f"vsae: {sentence(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("vsae: stopped. The same command goes on where this one was.", file=sys.stderr)
        raise SystemExit(130) from None


def sentence(error: BaseException) -> str:
    """What went wrong, on one line."""
    from vsae.files import FULL

    if isinstance(error, OSError) and error.errno in FULL:
        where = f" while writing {error.filename}" if error.filename else ""
        return f"the disk is full{where}: free some space and run the same command again."
    return " ".join(str(error).split()) or type(error).__name__


def command(name: str, rest: list[str]) -> None:
    """Parse and run one command. Raises ValueError with a sentence for what a person got wrong."""
    from vsae import about, audit, audit_jobs, config, demo, evaluations, filter, steer, steer_jobs

    simple: dict[str, tuple[type, Callable[[Any], None]]] = {
        "extract": (jobs.Extract, extract_and_tell),
        "explore": (jobs.Explore, lambda job: print(f"open {explore(job)}")),
        "info": (jobs.Info, lambda job: print(info(job))),
        "convert": (jobs.Convert, convert),
        "audit": (audit_jobs.Audit, lambda job: print(f"open {audit.audit(job)}")),
        "filter": (audit_jobs.Filter, lambda job: print(f"open {filter.filtered(job)}")),
        "steer": (steer_jobs.Steer, lambda job: print(f"open {steer.steer(job)}")),
        "demo": (jobs.Demo, demo.demo),
    }
    if name == "train":
        found = train(config.parse(train_type(rest), rest, "vsae train"))
        if not isinstance(found, dict):  # a sweep has said what came of it
            print(about.run(found))
    elif name == "eval":
        evaluations.command(rest)
    elif name in simple:
        job, run = simple[name]
        run(config.parse(job, rest, f"vsae {name}"))
    else:
        raise ValueError(f"there is no command '{name}'{config.near(name, COMMANDS)}")


def usage() -> str:
    lines = "\n".join(f"  {name:<9} {text}" for name, text in COMMANDS.items())
    return (
        f"vsae: sparse dictionaries of what models compute\n\n{lines}\n\n"
        "vsae COMMAND --help lists its options; each can stand in a YAML file too: --config FILE.yaml"
    )


def train_type(arguments: list[str]) -> type[Any]:
    """The train job with the options of the recipe that the command line or the config file names."""
    from vsae import config
    from vsae.recipes import FIXED, JOINED, RECIPES

    recipes: dict[str, type] = {**RECIPES, **JOINED, **FIXED}
    given = list(arguments)
    path, name = config.take_option(given, "--config"), config.take_option(given, "--recipe")
    name = name or (config.read_yaml(path).get("recipe") if path else None) or jobs.Train.recipe
    if name not in recipes:
        raise ValueError(f"there is no recipe '{name}'{config.near(str(name), recipes)}")
    return jobs.train_job(recipes[name])


def extract(job: jobs.Extract) -> "ActivationStore":
    """Write (or complete) the store that the job asks for, with the other processes where `accelerate launch` started several."""
    from modalities.base import KINDS
    from vsae.activations.together import Team, write_together
    from vsae.files import write_json
    from vsae.reading import LOCATION, identities, pooling, reading, sites

    model, data, chunks = reading(job)
    team = Team.of_launch()
    request = {
        **identities(model),
        **pooling(job),
        "data": data.identity(),
        "sites": sites(job),
        "batch": job.batch_size,
    }
    store = write_together(
        job.out,
        chunks,
        request,
        team=team,
        shown=lambda batches, start: track(batches, "extract", -(-len(data) // job.batch_size), start),
        rows_per_shard=job.rows_per_shard,
        dtype=job.dtype,
        kind_names=KINDS,
        max_bad_share=job.max_bad_share,
    )
    if team.rank == 0:
        write_json(job.out / LOCATION, {"data": str(Path(job.data).resolve())})
    return store


def train(job: Any) -> "Run | dict[Path, Run | Failed]":
    """Train the job's recipe (`job.sae`) and return the finished run; of a sweep, all runs by directory."""
    from vsae.activations import ActivationStore, JoinedSource, Select, StoreSource
    from vsae.reading import streamed

    if (job.store is None) == (job.stream is None):
        raise ValueError(
            "training needs activations: give --store DIR, or --stream FILE.yaml to read a model directly."
        )
    if job.stream is not None:
        return fit(job, streamed(job))
    store, border = ActivationStore.open(job.store), 1 - job.val_share
    sites = [store.site(name) for name in (job.site.split("+") if job.site else [None])]

    def part(start: float, stop: float) -> "Source":
        sources = [
            StoreSource(site, Select(job.kinds, (start, stop), job.skip), pool_rows=job.pool_rows) for site in sites
        ]
        return sources[0] if len(sources) == 1 else JoinedSource(*sources)

    return fit(job, part(0.0, border), part(border, 1.0) if job.val_share else None)


def fit(job: Any, source: "Source", val: "Source | None" = None) -> "Run | dict[Path, Run | Failed]":
    """Train on the source what the job asks for: one run, or a sweep, whose table is printed and kept beside its runs."""
    from vsae.recipes import JOINED, RECIPES
    from vsae.training import loop

    if job.sweep is None:
        return loop.train(source, job.sae, job.out, job.training, val)
    from vsae import sweeps

    runs = sweeps.planned(job.sweep, job.sae, job.training, RECIPES | JOINED)
    found = loop.sweep(source, {job.out / name: each for name, each in runs.items()}, val)
    for row in sweeps.save(job.out, found):
        numbers = "given up, see failed.json" if "failed" in row else f"NMSE {row['nmse']:.4f}  L0 {row['l0']:.1f}"
        print(f"{row['run']}  {numbers}")
    print(f"wrote {job.out / 'sweep.json'}, floor: NMSE 1 (the mean)")
    if lost := [each for each in found.values() if isinstance(each, loop.Failed)]:
        raise FloatingPointError(f"{len(lost)} of {len(found)} runs were given up. {lost[0].path}: {lost[0].why}")
    return found


def explore(job: jobs.Explore) -> Path:
    """Write the explorer's page; returns its index.html."""
    from vsae import about, report
    from vsae.activations import Select
    from vsae.reading import opened, pictures
    from vsae.report.latents import Plan

    run, site = opened(job.run, job.store, job.self_check)
    return report.explore(
        run.sae,
        site,
        pictures(job.store, job.data, site),
        job.out or job.run / "explorer",
        title=about.title(run),
        about=about.lines(run),
        facts=[report.Fact(*fact) for fact in about.facts(run)],
        select=Select(run.kinds, skip=run.skip),
        plan=Plan(top=job.top, random=job.random),
        latents=job.latents,
        thumbnail=job.thumbnail,
        track=track,
    )


def info(job: jobs.Info) -> str:
    """What a store or a run is, in words."""
    from vsae import about

    return about.describe(job.path, job.verify)


def convert(job: jobs.Convert) -> None:
    """Write the SAE as the job asks, and say on stderr what does not mean the same there."""
    from vsae import hub
    from vsae.interop.convert import convert as write

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        write(hub.located(job.source, job.subfolder), job.out, job.to, job.store, job.site, **job.options)
    for warning in said:
        print(f"vsae: WARNING: {warning.message}", file=sys.stderr)
    print(f"wrote {job.out} ({job.to})")


def extract_and_tell(job: jobs.Extract) -> None:
    from vsae import about
    from vsae.activations.together import Team

    store = extract(job)
    if Team.of_launch().rank == 0:
        print(about.store(store))


if __name__ == "__main__":
    main()
