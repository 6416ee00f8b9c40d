"""`vsae audit`: image generators against real images, in the concepts of an SAE. Part of the roof.

    real/            the list of real images that are compared (with --images, or where something is generated: with their captions)
    generated/NAME/  what a pipeline drew: images.jsonl with caption and seed of each
    control/         the real images written anew, as JPEG and no larger than the generated ones
    stores/          activations of all of them;  run/: the SAE, with --train
    names/           with --names: a CLIP's embeddings of all but the control
    result.json      every number (evals.blindspots_runs);  NAME.png: a picture of each generator
    concepts.parquet a row for each generator and concept: energies, delta, relative difference with its interval, p, q, detection limit, what it was found to be,
                     and with --names what CLIP calls it;  concepts.json: the same
    by_name.parquet  with --names: a row for each generator and name, all its concepts counted as one;  by_name.json: the same
    report/          index.html, with real and generated images of each blindspot side by side;  report/explorer/: all concepts, to search and sort

Every step takes what is there, so that an interrupted audit goes on where it was.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from vsae import held
from vsae.audit_jobs import Audit
from vsae.jobs import Extract

TRAIN_BATCH = 1024


def audit(job: Audit) -> Path:
    """Do what is not done yet; returns the page. Raises ValueError and OSError with a sentence."""
    from evals import blindspots_runs, blindspots_shown
    from vsae.audit import concepts, names, page
    from vsae.evaluations import shown, told
    from vsae.progress import track
    from vsae.reading import opened

    checked(job)
    hold_to(job)
    data = sources(job)
    site = run_site(job)
    for name, where in data.items():
        extract(job, name, where, site)
    run = job.run or trained(job, site)
    loaded, real = opened(run, job.out / "stores" / "real", job.self_check)
    others = {name: opened(run, job.out / "stores" / name, False)[1] for name in data if name != "real"}
    control = others.pop("control", None)
    found = blindspots_runs.evaluate(
        loaded,
        real,
        list(others.values()),
        job.out,
        control=control,
        temperature=job.temperature,
        least_change=job.least_change,
        alpha=job.alpha,
        seed=job.seed,
        track=track,
    )
    told(blindspots_shown.table(found), job.out)
    sites = {"real": real, **others}
    called = names.concept_names(job, found, data)
    concepts.write(found, called, job.out)
    named = blindspots_runs.by_name(found, {k: each.name for k, each in called.items() if each.above_chance})
    if called:
        concepts.write_named(named, job.out)
        shown(blindspots_shown.names_table(named))
    return page.write_page(job, loaded, found, called, named, sites, data)


def checked(job: Audit) -> None:
    """Refuse what contradicts itself before anything is read or drawn."""
    from vsae.activations import Select

    if (job.run is None) == (not job.train):
        raise ValueError("an audit needs an SAE: give --run DIR, or --train to train one on half of the real images.")
    if job.skip and not job.train:
        raise ValueError("--skip is of --train: a run leaves out the tokens that it was trained without.")
    Select(skip=job.skip)  # not fewer than none
    if job.train and job.site is None:
        raise ValueError("--train needs --site: where to read MODEL, such as blocks.11.")
    if not job.generated and not job.pipelines:
        raise ValueError("there is no generator to audit: give images (--generated) or pipelines (--pipelines).")
    given = [folder_name(each) for each in (*job.generated, *job.pipelines)]
    taken = [*given, "real", "control"]
    if twice := next((name for at, name in enumerate(taken) if name in taken[:at]), None):
        raise ValueError(f"two sets of images would be called {twice!r}: rename a folder.")


def folder_name(where: str) -> str:
    """What a generator is called: the last part of its path or hub name, without what a file system or a glob could trip over; of a list that `generate` wrote, its folder."""
    from modalities.generate import LIST

    path = Path(where)
    if path.name == LIST:
        path = path.resolve().parent
    name = path.name.split(".")[0] or path.resolve().name
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name) or "generator"


def hold_to(job: Audit) -> None:
    """Note what was asked for, or see that it is what was noted. Raises ValueError."""
    free = {
        "names",
        "names_options",
        "names_template",
        "words",
        "out",
        "temperature",
        "least_change",
        "alpha",
        "workers",
        "self_check",
        "shown",
    }
    wanted: dict[str, Any] = {name: value for name, value in asdict(job).items() if name not in free}
    wanted["model"].pop("device")
    held.hold_to(job, "audit", wanted)


def sources(job: Audit) -> dict[str, str]:
    """Name -> dataset of the real images, the control and every generator, drawn where they are not there."""
    from modalities.data import open_dataset
    from modalities.data.recode import recode

    found = {"real": job.real}
    if job.images is not None:
        found["real"] = str(recode(open_dataset(job.real), job.out / "real", most=job.images, progress=bar("real")))
    for name in job.pipelines:
        found[folder_name(name)] = drawn(job, name, found["real"])
    found |= {folder_name(where): where for where in job.generated}
    if job.control_jpeg is not None or job.control_side is not None:
        dataset, out = open_dataset(found["real"]), job.out / "control"
        written = recode(dataset, out, jpeg=job.control_jpeg, side=job.control_side, progress=bar("control"))
        found["control"] = str(written)
    return found


def drawn(job: Audit, name: str, real: str) -> str:
    """The list of images that a pipeline drew for the captions of the real ones."""
    import modalities
    from modalities.data import open_dataset
    from modalities.diffusion import TextEncoders
    from modalities.generate import generate

    out, painter = job.out / "generated" / folder_name(name), modalities.load("diffusion", name)
    assert isinstance(painter, TextEncoders)
    made = generate(
        painter,
        open_dataset(real),
        out,
        seed=job.seed,
        batch_size=job.batch_size,
        progress=bar(f"draw {folder_name(name)}"),
        num_inference_steps=job.steps,
        guidance_scale=job.guidance,
    )
    if not made.images:
        raise ValueError(f"{name} drew nothing that can be looked at: {made.bad[0].key} {made.bad[0].reason}.")
    return str(made.path)


def bar(what: str) -> Any:
    """A callback of (done, all) that shows a bar."""
    from vsae.progress import track

    state: dict[str, Any] = {}

    def step(done: int, total: int) -> None:
        if "bar" not in state:
            state["bar"], state["at"] = iter(track(range(total + 1), what, total)), 0
            next(state["bar"])
        for _ in range(done - state["at"]):
            next(state["bar"], None)
        state["at"] = done
        if done >= total:
            state["bar"].close()

    return step


def run_site(job: Audit) -> str:
    """Where the run reads."""
    from vsae.run import Run

    if job.run is None:
        return str(job.site)
    about = Run.load(job.run, self_check=False).fingerprint
    if "joined" in about or "pool" in about:
        raise ValueError(f"{job.run} reads pairs or pooled tokens: an audit needs an SAE of one site of images.")
    return about["site"] + (":input" if about["side"] == "input" else "")


def extract(job: Audit, name: str, where: str, site: str) -> None:
    from vsae import cli

    out = job.out / "stores" / name
    cli.extract(Extract(where, job.model, (site,), out, job.batch_size, max_bad_share=0.5, workers=job.workers))


def trained(job: Audit, site: str) -> Path:
    """An SAE trained on half of the real images, by a hash of their keys; the other half is compared."""
    from vsae import cli, config

    wanted = {
        "store": job.out / "stores" / "real",
        "out": job.out / "run",
        "recipe": "ra_topk",
        "site": site,
        "val_share": 0.5,
        "kinds": ("patch",),
        "skip": job.skip,
        "sae": {"n_latents": job.latents, "k": job.k},
        "training": {"tokens": job.tokens, "batch_size": TRAIN_BATCH, "tracker": "none", "seed": job.seed},
    }
    cli.train(config.from_mapping(cli.train_type(["--recipe", "ra_topk"]), wanted, "vsae audit --train"))
    return job.out / "run"
