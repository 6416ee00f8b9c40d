"""vsae eval segmentation: do latents line up with masks?"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vsae.evaluations import shown, told
from vsae.progress import track
from vsae.reading import images_of, opened
from vsae.segmentation_jobs import EvalSegmentation

if TYPE_CHECKING:
    from vsae.activations.store import SiteReader


def segmentation(job: EvalSegmentation) -> Path:
    """Measure a run's latents against masks, beside baselines; returns the directory with result.json and the figure."""

    from evals import masks, segmentation_runs, segmentation_shown
    from modalities.data import open_dataset
    from vsae.activations import ActivationStore

    if not 2 <= len(job.paths) <= 3:
        raise ValueError(
            "segmentation needs a run and one store or two: vsae eval segmentation RUN FIT_STORE [REPORT_STORE]."
        )
    run, fit = opened(job.paths[0], job.paths[1], job.self_check)
    report = ActivationStore.open(job.paths[-1]).site(fit.name)

    def read(site: "SiteReader") -> masks.Masks:
        dataset = open_dataset(images_of(site.store.path, job.masks, "--masks"))
        return masks.read(dataset, site, job.label, background=job.background, least=job.least, ignore=job.ignore)

    truth = read(fit)
    out = job.out or job.paths[0] / "eval" / "segmentation"
    found = segmentation_runs.evaluate(
        run,
        fit,
        report,
        (truth, truth if len(job.paths) == 2 else read(report)),
        partial(masks.read_names, job.classes),
        out,
        dense=job.dense,
        resamples=job.resamples,
        seed=job.seed,
        batch_size=job.batch_size,
        track=track,
    )
    if found.audit:
        shown(segmentation_shown.audit_table(found.audit))
    return told(segmentation_shown.table(found), out)


JOBS = {"segmentation": (EvalSegmentation, segmentation)}
