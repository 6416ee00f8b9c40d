"""vsae eval probing, separability, erasure, supervised, ontology: what latents know of labels, and what they do to them."""

from pathlib import Path
from typing import Any

from vsae import label_jobs
from vsae.evaluations import told
from vsae.progress import track
from vsae.reading import images_of, opened


def given(job: Any, name: str) -> tuple[tuple[Any, Any, Any, Path], dict[str, Any]]:
    """(run, site, table of attributes, where results go) of a job, and the options that all have."""
    from evals import attributes

    run, site = opened(job.run, job.store, job.self_check)
    table = attributes.read(images_of(job.store, job.attributes, "--attributes"), job.field)
    options = {
        "kinds": job.kinds,
        "resamples": job.resamples,
        "seed": job.seed,
        "batch_size": job.batch_size,
        "track": track,
    }
    return (run, site, table, job.out or job.run / "eval" / name), options


def probing(job: label_jobs.EvalProbing) -> Path:
    """Probe a run's latents; returns the directory with result.json and the figure."""
    from evals import probing_runs
    from evals.probing import Regimes

    what, options = given(job, "probing")
    regimes = Regimes(job.most, job.scarce, job.imbalanced, job.noisy)
    found = probing_runs.probing_of(
        *what,
        k=job.k,
        regimes=regimes,
        pooling=job.pooling,
        min_positives=job.min_positives,
        nonlinear=job.nonlinear,
        **options,
    )
    return told(probing_runs.probing_table(found), what[-1])


def separability(job: label_jobs.EvalSeparability) -> Path:
    """Measure how apart classes are; returns the directory with result.json and the figure."""
    from evals import separability_runs

    what, options = given(job, "separability")
    found = separability_runs.separability_of(*what, group=job.group, top=job.top, **options)
    return told(separability_runs.separability_table(found), what[-1])


def erasure(job: label_jobs.EvalErasure) -> Path:
    """Ablate latents; returns the directory with result.json and the figure."""
    from evals import erasure_runs

    what, options = given(job, "erasure")
    found = erasure_runs.erasure_of(
        *what, group=job.group, n=job.n, most_pairs=job.most_pairs, min_positives=job.min_positives, **options
    )
    return told(erasure_runs.erasure_table(found), what[-1])


def supervised(job: label_jobs.EvalSupervised) -> Path:
    """Compare with a supervised dictionary; returns the directory with result.json and the figure."""
    from evals import supervised_runs

    what, options = given(job, "supervised")
    found = supervised_runs.supervised_of(*what, groups=job.groups, n=job.n, pairs=job.pairs, **options)
    return told(supervised_runs.supervised_table(found), what[-1])


def ontology(job: label_jobs.EvalOntology) -> Path:
    """Place latents in a taxonomy; returns the directory with result.json and the figure."""
    from evals import attributes, ontology_runs

    if job.hierarchy is None:
        raise ValueError("ontology needs a taxonomy: give --hierarchy, a JSON file of parent -> [children].")
    (run, site, table, out), options = given(job, "ontology")
    tree = attributes.read_hierarchy(job.hierarchy)
    found = ontology_runs.ontology_of(run, site, table, tree, out, top=job.top, pooling=job.pooling, **options)
    return told(ontology_runs.ontology_table(found), out)


JOBS = {
    "probing": (label_jobs.EvalProbing, probing),
    "separability": (label_jobs.EvalSeparability, separability),
    "erasure": (label_jobs.EvalErasure, erasure),
    "supervised": (label_jobs.EvalSupervised, supervised),
    "ontology": (label_jobs.EvalOntology, ontology),
}
