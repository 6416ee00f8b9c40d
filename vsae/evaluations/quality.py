"""vsae eval reconstruction, recovery: how good a dictionary is."""

from pathlib import Path
from typing import Any

from vsae import eval_jobs, jobs
from vsae.evaluations import told
from vsae.progress import track
from vsae.reading import images_of, opened


def reconstruction(job: eval_jobs.EvalReconstruction) -> Path:
    """Measure a run on held-out activations, beside baselines; returns the directory with result.json and the figures."""
    from evals import baselines, frontier
    from vsae.activations import ActivationStore

    run, site = opened(job.run, job.store, job.self_check)
    out = job.out or job.run / "eval" / "reconstruction"
    found = frontier.evaluate(
        run,
        site,
        out,
        kinds=job.kinds,
        fit_site=ActivationStore.open(job.fit_store).site(site.name) if job.fit_store else None,
        fit_rows=job.fit_rows,
        kmeans=job.kmeans,
        seed=job.seed,
        batch_size=job.batch_size,
        track=track,
    )
    return told(baselines.table(found.points), out)


def recovery(job: eval_jobs.EvalRecovery) -> Path:
    """Measure which attributes single latents of the runs stand for; returns the directory with result.json and the figure."""
    from evals import attributes, recovery_runs, recovery_shown
    from vsae.activations import ActivationStore
    from vsae.run import Run

    if len(job.paths) < 2:
        raise ValueError("recovery needs runs and then their store: vsae eval recovery RUN... STORE.")
    *runs, store = job.paths
    first, site = opened(runs[0], store, job.self_check)
    truth = attributes.read(images_of(store, job.attributes, "--attributes"), job.field)
    out = job.out or runs[0] / "eval" / "recovery"
    found = recovery_runs.evaluate(
        [first, *(Run.load(run, self_check=job.self_check) for run in runs[1:])],
        site,
        truth,
        out,
        hierarchy=attributes.read_hierarchy(job.hierarchy) if job.hierarchy else None,
        pooling=job.pooling,
        kinds=job.kinds,
        fit_site=ActivationStore.open(job.fit_store).site(site.name) if job.fit_store else None,
        min_positives=job.min_positives,
        resamples=job.resamples,
        seed=job.seed,
        batch_size=job.batch_size,
        track=track,
    )
    return told(recovery_shown.table(found), out)


def planted_type() -> type[Any]:
    """The job of `--all`, with the fields of the planted world and the settings that recipes are compared at."""
    from evals.planted import Planted
    from evals.planted_runs import CONFIG

    return jobs.planted_job(Planted, CONFIG)


def planted(job: Any) -> Path:
    """Train every recipe on planted features and score what it found; returns the directory with result.json."""
    from evals import planted_runs
    from vsae import config

    known = planted_runs.RECIPES
    if unknown := [name for name in job.recipes if name not in known]:
        raise ValueError(f"there is no recipe '{unknown[0]}'{config.near(unknown[0], known)}")
    recipes = {name: planted_runs.suited(known[name](), job.world) for name in job.recipes or known}
    found = planted_runs.compare(
        recipes, job.world, job.out, seeds=range(job.seeds), rows=job.rows, config=job.training, track=track
    )
    return told(planted_runs.table(found), job.out)


JOBS = {
    "reconstruction": (eval_jobs.EvalReconstruction, reconstruction),
    "recovery": (eval_jobs.EvalRecovery, recovery),
}
