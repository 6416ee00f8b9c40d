"""vsae eval faithfulness: what becomes of a model's answers under an SAE."""

from pathlib import Path

from vsae import jobs, suite_jobs
from vsae.evaluations import told
from vsae.progress import track
from vsae.reading import load_model


def faithfulness(job: suite_jobs.EvalFaithfulness) -> Path:
    """Substitute reconstructions in the run's model; returns the directory with result.json and the figure."""
    from evals import faithfulness_runs, faithfulness_shown
    from modalities.data import open_dataset
    from vsae.run import Run

    run = Run.load(job.run, self_check=job.self_check)
    run = run.side(job.side) if "joined" in run.fingerprint else run
    known = run.fingerprint["model"]
    if "family" not in known:
        raise ValueError(
            f"{job.run} does not say which model it belongs to: faithfulness needs a run made from a model."
        )
    random = known.get("seed") is not None
    spec = jobs.Model(
        known["family"],
        job.name or known["name"],
        job.options,
        not random,
        job.img_size,
        known.get("seed") or 0,
        job.device,
    )
    settings = faithfulness_runs.Settings(
        kinds=job.kinds,
        samples=job.samples,
        fit_samples=job.fit_samples,
        batch_size=job.batch_size,
        head=job.head,
        template=job.template,
        painting=job.painting,
        resamples=job.resamples,
        seed=job.seed,
    )
    out = job.out or job.run / "eval" / "faithfulness"
    try:
        model = load_model(spec)
    except (ValueError, OSError) as error:
        if job.name is not None:
            raise
        raise ValueError(f"the run's model {spec.name} cannot be loaded by that name: give --name ({error})") from error
    data = open_dataset(job.data)
    run.sae.to(next(model.module.parameters()).device)
    found = faithfulness_runs.evaluate(run, model, data, out, settings, track)
    return told(faithfulness_shown.table(found.total, f"{found.samples:,} samples, {found.task}"), out)


JOBS = {"faithfulness": (suite_jobs.EvalFaithfulness, faithfulness)}
