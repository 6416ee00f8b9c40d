"""vsae eval ood, blindspots, filtering: what codes tell about images, their generators and their captions."""

from pathlib import Path

from vsae import audit_jobs, eval_jobs
from vsae.evaluations import shown, told
from vsae.progress import track
from vsae.reading import images_of, opened, site_of


def ood(job: eval_jobs.EvalOod) -> Path:
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
    if found.probes:
        shown(ood_shown.shift_table(found))
    return told(ood_shown.table(found), out)


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


def filtering(job: audit_jobs.EvalFiltering) -> Path:
    """Score pairs and measure the scores on planted mismatches; returns the directory with result.json, scores.json and the figure."""
    import numpy as np

    from evals import filtering_runs, retraining, retraining_runs
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
        first, second = (site_of(store, each) for each in run.fingerprint["joined"])
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
    retrained = None
    if job.retrain:
        if not paired or not job.clean:
            raise ValueError(
                "--retrain is for a run on two embeddings, and needs --clean: a store of other, matched pairs."
            )
        retrained = retraining_runs.evaluate(
            (store, ActivationStore.open(job.clean)),
            job.retrain,
            scored,
            matched,
            shuffle=job.shuffle,
            share=job.keep,
            seeds=range(job.retrain_seeds),
            seed=job.seed,
            track=track,
        )
        shown(retraining.table(retrained.found, retrained.clean))
    found = filtering_runs.report(
        run, first, scored, matched, out, planted=planted, retrained=retrained, resamples=job.resamples, seed=job.seed
    )
    return told(filtering_runs.table(found), out)


JOBS = {
    "ood": (eval_jobs.EvalOod, ood),
    "blindspots": (audit_jobs.EvalBlindspots, blindspots),
    "filtering": (audit_jobs.EvalFiltering, filtering),
}
