"""`vsae eval NAME`: measure runs, print the table, write result.json and its figures. Part of the roof, for evaluations live in `evals`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vsae import audit_jobs, jobs
from vsae.progress import track
from vsae.reading import images_of, opened

if TYPE_CHECKING:
    from rich.table import Table

EVALUATIONS = {
    "reconstruction": "how much of the activations an SAE keeps and how sparsely, beside PCA and k-means",
    "recovery": "which known attributes single latents stand for, beside random directions, neurons and PCA; --all: every recipe on planted features",
    "ood": "which images are out of distribution, by codes and by the dense features they must beat",
    "blindspots": "what image generators draw too rarely or too often, and what they may have memorised, beside real images against themselves",
    "filtering": "how well scores from codes find mismatched image-text pairs, beside CLIP score, length and chance",
}


def command(arguments: list[str]) -> None:
    """Parse and run one evaluation. Raises ValueError with a sentence for what a person got wrong."""
    from vsae import config

    if not arguments or arguments[0] in ("-h", "--help"):
        lines = "\n".join(f"  {name:<15} {text}" for name, text in EVALUATIONS.items())
        print(f"vsae eval NAME: measure runs\n\n{lines}\n\nvsae eval NAME --help lists its options.")
        return
    name, rest = arguments[0], arguments[1:]
    if name == "reconstruction":
        reconstruction(config.parse(jobs.EvalReconstruction, rest, "vsae eval reconstruction"))
    elif name == "recovery" and "--all" in rest:
        rest.remove("--all")
        planted(config.parse(planted_type(), rest, "vsae eval recovery --all"))
    elif name == "recovery":
        recovery(config.parse(jobs.EvalRecovery, rest, "vsae eval recovery"))
    elif name == "ood":
        ood(config.parse(jobs.EvalOod, rest, "vsae eval ood"))
    elif name == "blindspots":
        blindspots(config.parse(audit_jobs.EvalBlindspots, rest, "vsae eval blindspots"))
    elif name == "filtering":
        filtering(config.parse(audit_jobs.EvalFiltering, rest, "vsae eval filtering"))
    else:
        raise ValueError(f"there is no evaluation '{name}'{config.near(name, EVALUATIONS)}")


def reconstruction(job: jobs.EvalReconstruction) -> Path:
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


def recovery(job: jobs.EvalRecovery) -> Path:
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


def blindspots(job: audit_jobs.EvalBlindspots) -> Path:
    """Compare real and generated images in a run's latents; returns the directory with result.json and the figures."""
    from evals import blindspots_runs, blindspots_shown
    from vsae.activations import ActivationStore

    if len(job.paths) < 3:
        raise ValueError(
            "blindspots needs a run and two stores or more: vsae eval blindspots RUN REAL_STORE GENERATED_STORE..."
        )
    run, real = opened(job.paths[0], job.paths[1], job.self_check)
    out = job.out or job.paths[0] / "eval" / "blindspots"
    found = blindspots_runs.evaluate(
        run,
        real,
        [ActivationStore.open(path).site(real.name) for path in job.paths[2:]],
        out,
        control=ActivationStore.open(job.control).site(real.name) if job.control else None,
        temperature=job.temperature,
        kinds=job.kinds,
        energy=job.energy,
        least_change=job.least_change,
        alpha=job.alpha,
        permutations=job.permutations,
        min_samples=job.min_samples,
        merge=job.merge,
        resamples=job.resamples,
        seed=job.seed,
        batch_size=job.batch_size,
        track=track,
    )
    return told(blindspots_shown.table(found), out)


def ood(job: jobs.EvalOod) -> Path:
    """Measure what tells stores out of distribution from one in it; returns the directory with result.json and the figure."""
    from evals import ood_dense, ood_runs, ood_shown
    from vsae.activations import ActivationStore
    from vsae.run import RUN, Run

    runs = [path for path in job.paths if (path / RUN).is_file()]
    stores = [path for path in job.paths if path not in runs]
    if not runs or len(stores) < 3 or list(job.paths) != runs + stores:
        raise ValueError(
            "ood needs runs and then three stores or more: vsae eval ood RUN... TRAIN_STORE IN_STORE OUT_STORE..."
        )
    first, train = opened(runs[0], stores[0], job.self_check)
    inside, *outside = (ActivationStore.open(store).site(train.name) for store in stores[1:])
    names = [store.name for store in stores[2:]]
    if len(set(names)) < len(names):
        raise ValueError(f"the stores out of distribution share a folder name ({', '.join(names)}): rename one.")
    out = job.out or runs[0] / "eval" / "ood"
    found = ood_runs.evaluate(
        [first, *(Run.load(run, self_check=job.self_check) for run in runs[1:])],
        train,
        inside,
        dict(zip(names, outside, strict=True)),
        out,
        near=job.near,
        head=ood_dense.read_head(job.head, job.head_name) if job.head else None,
        classes=job.classes,
        kinds=job.kinds,
        top=job.top,
        neighbours=job.neighbours,
        resamples=job.resamples,
        seed=job.seed,
        batch_size=job.batch_size,
        track=track,
    )
    return told(ood_shown.table(found), out)


def filtering(job: audit_jobs.EvalFiltering) -> Path:
    """Score pairs and measure the scores on planted mismatches; returns the directory with result.json, scores.json and the figure."""
    import numpy as np

    from evals import filtering_runs
    from modalities.data import Sample, open_dataset
    from vsae.activations import ActivationStore
    from vsae.run import Run

    run, options = Run.load(job.run, self_check=job.self_check), {"seed": job.seed, "batch_size": job.batch_size}
    out, paired = job.out or job.run / "eval" / "filtering", "joined" in run.fingerprint
    if job.shuffle and not paired:
        raise ValueError(
            "--shuffle exchanges captions of embeddings: for a mixed site, extract a dataset with mismatched captions."
        )
    if paired:
        store = ActivationStore.open(job.store)
        first, second = (store.site(each["site"]) for each in run.fingerprint["joined"])
        scored, matched = filtering_runs.embedded(run, (first, second), shuffle=job.shuffle, **options)
    else:
        run, first = opened(job.run, job.store, job.self_check)
        scored = filtering_runs.mixed(run, first, fit_samples=job.fit_samples, track=track, **options)
        matched = np.ones(len(scored.rows), bool)
    if not job.shuffle:
        dataset = open_dataset(images_of(job.store, job.labels, "--labels"))
        read = (dataset.read(at) for at in range(len(dataset)))
        wrong = {each.key for each in read if isinstance(each, Sample) and each.extra.get(job.field)}
        matched = np.array([first.keys[at] not in wrong for at in scored.rows.tolist()], bool)
    planted = f"{job.shuffle:.0%} of the captions exchanged" if job.shuffle else f"field {job.field} of the records"
    found = filtering_runs.report(
        run, first, scored, matched, out, planted=planted, resamples=job.resamples, seed=job.seed
    )
    return told(filtering_runs.table(found), out)


def planted_type() -> type[Any]:
    """The job of `--all`, with the fields of the planted world and the settings that recipes are compared at."""
    from evals.planted import Planted
    from evals.planted_runs import CONFIG

    return jobs.planted_job(Planted, CONFIG)


def planted(job: Any) -> Path:
    """Train every recipe on planted features and score what it found; returns the directory with result.json."""
    from evals import planted_runs
    from vsae import config
    from vsae.recipes import RECIPES

    if unknown := [name for name in job.recipes if name not in RECIPES]:
        raise ValueError(f"there is no recipe '{unknown[0]}'{config.near(unknown[0], RECIPES)}")
    recipes = {name: planted_runs.suited(RECIPES[name](), job.world) for name in job.recipes or RECIPES}
    found = planted_runs.compare(
        recipes, job.world, job.out, seeds=range(job.seeds), rows=job.rows, config=job.training, track=track
    )
    return told(planted_runs.table(found), job.out)


def told(table: "Table", out: Path) -> Path:
    """Print what was found, and where it is."""
    from rich.console import Console

    Console().print(table)
    print(f"wrote {out / 'result.json'}")
    return out
