"""`vsae filter`: image-text data in, the part of it whose images and texts agree out. Part of the roof.

    scores/         a table of scores for every block of samples, written whole: what is there is not computed again
    scores.parquet  all of them, and which samples are kept: key, shard, index, reason (of a bad one), source, wrong (where it is known), length,
                    score_NAME, concepts and their strengths, kept
    weights.safetensors  of a token stream: the cross-modal weight of every latent
    shards/         the kept samples in the format they came in, byte for byte
    report/         index.html
    store/, run/    with --train: what the SAE was trained on, and the SAE

Units (shards, or the one list) are opened, scored and written one at a time. Process r of n scores every n-th block and writes every n-th unit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vsae import held
from vsae.audit_jobs import Filter
from vsae.jobs import Extract

if TYPE_CHECKING:
    from modalities.data.subset import Units
    from vsae.activations.together import Team
    from vsae.run import Run

PAIR = ("image_embedding", "text_embedding")
TRAIN_BATCH = 1024


def filtered(job: Filter) -> Path:
    """Do what is not done yet; returns the page. Raises ValueError and OSError with a sentence."""
    from modalities.data.subset import Units
    from vsae.activations.together import Team
    from vsae.filter import page, scores

    checked(job)
    team, units = Team.of_launch(), Units(job.data)
    with together(team) as wait:
        if team.rank == 0:
            hold_to(job, units)
        wait()
        run = trained(job, wait) if job.train else loaded(job)
        scorer = scores.scorer(job, run)
        todo = scores.missing(job, units)
        wait()
        if todo:
            model = fitting_model(job, scorer)
            scores.fit(job, units, scorer, model, team, wait)
            scores.score(job, units, scorer, model, team)
        wait()
        if team.rank == 0:
            scores.gather(job, units, scorer)
        wait()
        if not job.scores_only:
            write(job, units, team)
        wait()
        return page.write_page(job, units, run, scorer) if team.rank == 0 else job.out / "report" / "index.html"


def checked(job: Filter) -> None:
    """Refuse what contradicts itself before anything is read."""
    from vsae.activations import Select

    if (job.run is None) == (not job.train):
        raise ValueError("filtering needs an SAE: give --run DIR, or --train to train one on the data.")
    budgets = [name for name in ("share", "count", "threshold") if getattr(job, name) is not None]
    if len(budgets) != 1:
        raise ValueError(
            f"how much to keep is not clear ({' and '.join(budgets) or 'nothing'} given): give one of --share, --count, --threshold."
        )
    if job.threshold is not None and job.stratify != "none":
        raise ValueError(
            "--threshold is on the score itself, which --stratify replaces by ranks: give --share or --count."
        )
    if job.model.family not in ("clip", "llava"):
        raise ValueError(f"family {job.model.family} reads no pairs of image and text: choose clip or llava.")
    if job.skip and (not job.train or job.model.family == "clip"):
        raise ValueError("--skip is of the token stream that --train reads: leave it out with a run, or a clip model.")
    Select(skip=job.skip)  # not fewer than none
    if job.train and job.model.family == "llava" and job.site is None:
        raise ValueError("--train on a llava model needs --site: a language layer, as model.language_model.layers.16.")


def hold_to(job: Filter, units: "Units") -> None:
    """Note what was asked for, or see that it is what was noted: scores of another job must not be mixed in. Raises ValueError."""
    from vsae.files import digest, sha256
    from vsae.run import WEIGHTS

    free = {"out", "share", "count", "threshold", "stratify", "method", "scores_only", "workers", "self_check"}
    wanted: dict[str, Any] = {name: value for name, value in asdict(job).items() if name not in free}
    wanted["run"] = sha256(job.run / WEIGHTS) if job.run is not None and (job.run / WEIGHTS).is_file() else str(job.run)
    wanted["data"] = digest([[units.name(unit), path.stat().st_size] for unit, path in enumerate(units.paths)])
    wanted["model"].pop("device")
    held.hold_to(job, "filter", wanted)


def loaded(job: Filter) -> "Run":
    from vsae.run import Run

    assert job.run is not None
    return Run.load(job.run, self_check=job.self_check)


def trained(job: Filter, wait: Any) -> "Run":
    """The run trained on the data, from the store read of it."""
    from vsae import cli, config
    from vsae.activations.together import Team

    sites = PAIR if job.model.family == "clip" else (str(job.site),)
    store, out = job.out / "store", job.out / "run"
    cli.extract(Extract(job.data, job.model, sites, store, job.batch_size, max_bad_share=1.0, workers=job.workers))
    recipe = "vl_sae" if job.model.family == "clip" else "topk"
    wanted = {
        "store": store,
        "out": out,
        "recipe": recipe,
        "site": "+".join(sites),
        "kinds": None if job.model.family == "clip" else ("image", "text"),
        "skip": job.skip,
        "sae": {"n_latents": job.latents, "k": job.k},
        "training": {"tokens": job.tokens, "batch_size": TRAIN_BATCH, "tracker": "none", "seed": job.seed},
    }
    if Team.of_launch().rank == 0:
        cli.train(config.from_mapping(cli.train_type(["--recipe", recipe]), wanted, "vsae filter --train"))
    wait()
    return loaded(Filter(**(vars(job) | {"run": out, "train": False})))


def fitting_model(job: Filter, scorer: Any) -> Any:
    """The model, seen to be the one that the run reads. Raises ValueError with both fingerprints."""
    from vsae.activations import fingerprint
    from vsae.reading import load_model

    model = load_model(job.model)
    for side, site in zip(scorer.sides, scorer.sites, strict=True):
        with model.edit(site, lambda values, kinds: values):
            pass  # a name that is no site is refused here
        where = {name: side.fingerprint[name] for name in ("site", "side")}
        read = {"model": model.provenance, "preprocessing": model.provenance["preprocessing"], **where}
        fingerprint.check(side.fingerprint, read)
    return model


def write(job: Filter, units: "Units", team: "Team") -> None:
    """The filtered units that are not there yet, or that another budget wrote."""
    from vsae.files import digest, read_json, write_json, write_whole
    from vsae.filter import scores
    from vsae.progress import track

    folder = job.out / "shards"
    folder.mkdir(exist_ok=True)
    mine = [unit for unit in range(len(units)) if unit % team.size == team.rank]
    for unit in track(mine, "write", len(mine)):
        kept = scores.kept_of(job.out, units.name(unit))
        note, target = folder / f".{units.name(unit)}.json", folder / units.paths[unit].name
        wanted = {"kept": digest(np.flatnonzero(kept).tolist())}
        if target.is_file() and note.is_file() and read_json(note) == wanted:
            continue
        note.unlink(missing_ok=True)
        write_whole(target, units.write(unit, kept))
        write_json(note, wanted)


@contextmanager
def together(team: "Team") -> Iterator[Any]:
    """Gives what waits for all processes of the launch."""
    if team.size == 1:
        yield lambda: None
        return
    import torch.distributed as dist

    began = not dist.is_initialized()
    if began:
        # the others wait while process 0 trains or fits
        dist.init_process_group("gloo", rank=team.rank, world_size=team.size, timeout=timedelta(days=7))
    try:
        yield dist.barrier
    finally:
        if began:
            dist.destroy_process_group()
