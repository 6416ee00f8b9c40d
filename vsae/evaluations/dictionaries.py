"""vsae eval dark_matter, stability, similarity, geometry, attention_heads, monosemanticity, modality: what a dictionary and its latents are like, without knowing what they stand for."""

from pathlib import Path

from vsae import suite_jobs
from vsae.evaluations import shown, told
from vsae.progress import track
from vsae.reading import images_of, opened


def dark_matter(job: suite_jobs.EvalDarkMatter) -> Path:
    """Split a run's error; returns the directory with result.json and the figure."""
    from evals import dark_matter_runs
    from vsae.run import Run

    run, site = opened(job.run, job.store, job.self_check)
    found = dark_matter_runs.evaluate(
        run,
        site,
        out := job.out or job.run / "eval" / "dark_matter",
        kinds=job.kinds,
        others=[Run.load(path, self_check=job.self_check) for path in job.others],
        pursuit=job.pursuit,
        resamples=job.resamples,
        seed=job.seed,
        batch_size=job.batch_size,
        track=track,
    )
    return told(dark_matter_runs.table(found), out)


def stability(job: suite_jobs.EvalStability) -> Path:
    """Compare runs of one recipe; returns the directory with result.json and the figure."""
    from evals import stability_runs
    from vsae.run import Run

    if len(job.paths) < 3:
        raise ValueError("stability needs two runs or more and then their store: vsae eval stability RUN RUN... STORE.")
    *paths, store = job.paths
    first, site = opened(paths[0], store, job.self_check)
    runs = [first, *(Run.load(path, self_check=job.self_check) for path in paths[1:])]
    out = job.out or paths[0] / "eval" / "stability"
    return told(stability_runs.stability_table(stability_runs.stability_of(runs, site, out, seed=job.seed)), out)


def similarity(job: suite_jobs.EvalSimilarity) -> Path:
    """Compare itda runs by their atoms' origins; returns the directory with result.json and the figure."""
    from evals import similarity_runs
    from vsae.run import Run

    first, second = ([Run.load(path, self_check=job.self_check) for path in paths] for paths in (job.runs, job.against))
    out = job.out or job.runs[0] / "eval" / "similarity"
    found = similarity_runs.evaluate(
        first,
        second or None,
        out,
        prefixes=job.prefixes,
        offered=job.rows,
        resamples=job.resamples,
        seed=job.seed,
    )
    names = [[run.path.name for run in runs] for runs in (first, second or first)]
    return told(similarity_runs.table(found, *names), out)


def geometry(job: suite_jobs.EvalGeometry) -> Path:
    """Measure a run's dictionary; returns the directory with result.json and the figure."""
    import torch

    from evals import attributes, geometry_runs, ood_dense

    run, site = opened(job.run, job.store, job.self_check)
    head = ood_dense.read_head(job.directions, job.directions_name) if job.directions else None
    out = job.out or job.run / "eval" / "geometry"
    found = geometry_runs.geometry_of(
        run,
        site,
        out,
        directions=torch.from_numpy(head.weight) if head else None,
        attributes=attributes.read(images_of(job.store, job.attributes), job.field) if job.attributes else None,
        rows=job.rows,
        pooling=job.pooling,
        resamples=job.resamples,
        seed=job.seed,
        batch_size=job.batch_size,
        track=track,
    )
    return told(geometry_runs.geometry_table(found), out)


def attention_heads(job: suite_jobs.EvalAttentionHeads) -> Path:
    """Tell a run's latents by attention head; returns the directory with result.json and the figure."""
    from evals import attention_heads as heads

    run, site = opened(job.run, job.store, job.self_check)
    found = heads.evaluate(
        run,
        site,
        out := job.out or job.run / "eval" / "attention_heads",
        job.heads,
        top=job.top,
        cosine=job.cosine,
        kinds=job.kinds,
        resamples=job.resamples,
        seed=job.seed,
        batch_size=job.batch_size,
        track=track,
    )
    return told(heads.table(found), out)


def monosemanticity(job: suite_jobs.EvalMonosemanticity) -> Path:
    """Score a run's latents by another encoder; returns the directory with result.json and the figure."""
    from evals import monosemanticity_runs
    from vsae.activations import ActivationStore

    run, site = opened(job.run, job.store, job.self_check)
    encoder = ActivationStore.open(job.encoder).site(job.encoder_site)
    out = job.out or job.run / "eval" / "monosemanticity"
    options = {"resamples": job.resamples, "seed": job.seed, "batch_size": job.batch_size}
    found = monosemanticity_runs.evaluate(
        run, site, encoder, out, pooling=job.pooling, kinds=job.kinds, track=track, **options
    )
    return told(monosemanticity_runs.table(found), out)


def modality(job: suite_jobs.EvalModality) -> Path:
    """Tell a run's latents apart by modality; returns the directory with result.json and the figure."""

    from evals import modality_runs
    from vsae.activations import ActivationStore
    from vsae.run import Run

    run = Run.load(job.run, self_check=job.self_check)
    if "joined" in run.fingerprint:
        store = ActivationStore.open(job.store)
        first, second = (store.site(each["site"]) for each in run.fingerprint["joined"])
    else:
        run, first = opened(job.run, job.store, job.self_check)
        second = first
    encoder = None
    if job.encoder is not None:
        theirs = ActivationStore.open(job.encoder)
        encoder = theirs.site(job.encoder_sites[0]), theirs.site(job.encoder_sites[1])
    out = job.out or job.run / "eval" / "modality"
    found = modality_runs.evaluate(
        run,
        (first, second),
        out,
        image_kinds=job.image_kinds,
        text_kinds=job.text_kinds,
        encoder=encoder,
        top=job.top,
        rate=job.rate,
        alpha=job.alpha,
        resamples=job.resamples,
        seed=job.seed,
        batch_size=job.batch_size,
        track=track,
    )
    if found.concepts is not None:
        shown(modality_runs.concept_table(found.concepts))
    return told(modality_runs.table(found.modality), out)


JOBS = {
    "dark_matter": (suite_jobs.EvalDarkMatter, dark_matter),
    "stability": (suite_jobs.EvalStability, stability),
    "similarity": (suite_jobs.EvalSimilarity, similarity),
    "geometry": (suite_jobs.EvalGeometry, geometry),
    "attention_heads": (suite_jobs.EvalAttentionHeads, attention_heads),
    "monosemanticity": (suite_jobs.EvalMonosemanticity, monosemanticity),
    "modality": (suite_jobs.EvalModality, modality),
}
