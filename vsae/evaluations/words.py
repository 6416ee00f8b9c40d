"""vsae eval naming, explaining, contents, clustering: what latents are called, whether that is right, what collections hold and how they fall into groups."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vsae import jobs, naming_jobs
from vsae.evaluations import told
from vsae.progress import track
from vsae.reading import images_of, load_model, opened, pictures

if TYPE_CHECKING:
    from modalities.spans import Spans
    from vsae.activations import ActivationStore
    from vsae.activations.store import SiteReader


def naming(job: naming_jobs.EvalNaming) -> Path:
    """Name a run's latents; returns the directory with result.json, names.parquet and the figure."""
    from evals import attributes, naming_runs, vocabulary
    from vsae.activations import ActivationStore

    words = vocabulary.read(job.words)
    run, site = opened(job.run, job.store, job.self_check)
    encoder = embedding_site(ActivationStore.open(job.encoder), job.encoder_site)
    given = None if job.attributes == "own" else job.attributes
    table = attributes.read(images_of(job.store, given, "--attributes"), job.field) if job.attributes else None
    model = model_of(encoder, job.name, job.options, job.device)
    out = job.out or job.run / "eval" / "naming"
    found = naming_runs.evaluate(
        run,
        site,
        encoder,
        model,
        words,
        out,
        by=job.by,
        template=job.template,
        attributes=table,
        pooling=job.pooling,
        kinds=job.kinds,
        least=job.least,
        resamples=job.resamples,
        seed=job.seed,
        batch_size=job.batch_size,
        track=track,
    )
    return told(naming_runs.table(found), out)


def embedding_site(store: "ActivationStore", name: str | None, of: str = "image_embedding") -> "SiteReader":
    """The embeddings of a store: the site of that name, else the only one called so (`of`). Raises ValueError."""
    named = [site for site in store.sites if site.rsplit("/", 1)[-1] == of]
    if name is None and len(named) != 1:
        raise ValueError(
            f"{store.path} has {len(named) or 'no'} sites called {of}, among {', '.join(store.sites)}: "
            f"extract it with --model.family clip --sites {of}, or name the site with --encoder-site."
        )
    return store.site(name or named[0])


def model_of(site: "SiteReader", name: str | None, options: jobs.Options, device: str) -> Any:
    """The model that a site was extracted from. Raises ValueError where it cannot be had."""
    known = site.fingerprint["model"]
    if "family" not in known:
        raise ValueError(f"{site.store.path} does not say which model it is of: extract it again.")
    random, where = known.get("seed") is not None, name or known["name"]
    if known.get("library") == "open_clip_torch" and known.get("revision") and ":" not in where and name is None:
        options = {"pretrained": known["revision"]} | options  # a plain name has several weights
    try:
        return load_model(jobs.Model(known["family"], where, options, not random, None, known.get("seed") or 0, device))
    except (ValueError, OSError) as error:
        if name is not None:
            raise
        raise ValueError(f"the model {known['name']} cannot be loaded by that name: give --name ({error})") from error


def explaining(job: naming_jobs.EvalExplaining) -> Path:
    """Explain latents and score the explanations; returns the directory with result.json, asked.jsonl and the figure."""
    from evals import explaining_asked, explaining_material, explaining_runs, vocabulary
    from evals.naming_runs import same_model
    from modalities.judge import Judge
    from vsae import config
    from vsae.activations import ActivationStore

    if job.family == "llm" and not job.captions:
        raise ValueError("a language model sees no pictures: add --captions, or give a judge of the family llava.")
    prompts = explaining_asked.Prompts()
    if job.prompts:
        prompts = config.from_mapping(explaining_asked.Prompts, config.read_yaml(job.prompts), str(job.prompts))
    run, site = opened(job.run, job.store, job.self_check)
    given = explaining_material.read_explanations(job.explanations, run) if job.explanations else None
    encoder, embed = None, None
    if job.encoder is not None:
        of = vocabulary.TEXT if job.captions else vocabulary.IMAGE
        encoder = embedding_site(ActivationStore.open(job.encoder), job.encoder_site, of)
        clip = model_of(encoder, job.encoder_name, {}, job.device)
        same_model(encoder, clip, of)
        embed = lambda texts: vocabulary.embed([[text] for text in texts], clip)  # noqa: E731
    picture = None if job.captions else pictures(job.store, job.data, site)
    codes = explaining_material.read(run, site, job.kinds, job.batch_size, track)
    drawn = codes.draw(job.latents, job.shown, job.asked, job.seed, given)
    material = codes.material(drawn, picture, encoder, embed, spans_in(site, job.name) if job.captions else None)
    judge = Judge(load_model(jobs.Model(job.family, job.judge, job.judge_options, device=job.device)), job.judge_batch)
    out = job.out or job.run / "eval" / "explaining"
    found = explaining_runs.ask(
        drawn,
        material,
        judge,
        out,
        given=given,
        captions=job.captions,
        prompts=prompts,
        about=codes.about(),
        resamples=job.resamples,
        seed=job.seed,
        track=track,
    )
    return told(explaining_runs.table(found), out)


def spans_in(site: "SiteReader", name: str | None) -> "Callable[[str], Spans] | None":
    """What the language model of a store reads of a text; None for other families, and where it read conversations. Raises OSError."""
    from modalities.spans import spans_of

    known = site.fingerprint["model"]
    if known.get("family") != "llm" or known["sequence"]["chat"]:
        return None
    try:
        return spans_of(name or known["name"], known["sequence"], known.get("revision"))
    except OSError as error:
        raise ValueError(f"the tokenizer of {name or known['name']} cannot be loaded: give --name ({error})") from error


def contents(job: naming_jobs.EvalContents) -> Path:
    """Compare two collections; returns the directory with result.json and the figure."""
    from evals import contents_runs, explaining_material

    if len(job.paths) != 3 or job.paths[1].resolve() == job.paths[2].resolve():
        what = "has the same store twice" if len(job.paths) == 3 else "needs a run and two stores"
        raise ValueError(f"contents {what}: vsae eval contents RUN FIRST_STORE SECOND_STORE.")
    run, first = opened(job.paths[0], job.paths[1], job.self_check)
    _, second = opened(job.paths[0], job.paths[2], False)
    names = explaining_material.read_explanations(job.names, run) if job.names else None
    out = job.out or job.paths[0] / "eval" / "contents"
    found = contents_runs.evaluate(
        run,
        first,
        second,
        out,
        kinds=job.kinds,
        names=names,
        alpha=job.alpha,
        min_samples=job.min_samples,
        pairs=job.pairs,
        resamples=job.resamples,
        seed=job.seed,
        batch_size=job.batch_size,
        track=track,
    )
    return told(contents_runs.table(found), out)


def clustering(job: naming_jobs.EvalClustering) -> Path:
    """Cluster samples and find them; returns the directory with result.json and the figure."""
    from evals import attributes, clustering_runs, explaining_material

    run, site = opened(job.run, job.store, job.self_check)
    given = None if job.attributes == "own" else job.attributes
    table = attributes.read(images_of(job.store, given, "--attributes"), job.field) if job.attributes else None
    out = job.out or job.run / "eval" / "clustering"
    found = clustering_runs.evaluate(
        run,
        site,
        out,
        attributes=table,
        groups=job.groups,
        n=job.clusters,
        weighting=job.weighting,
        latents=job.latents,
        like=job.like,
        find=job.find,
        k=job.k,
        kinds=job.kinds,
        names=explaining_material.read_explanations(job.names, run) if job.names else None,
        resamples=job.resamples,
        seed=job.seed,
        batch_size=job.batch_size,
        track=track,
    )
    return told(clustering_runs.table(found), out)


JOBS = {
    "naming": (naming_jobs.EvalNaming, naming),
    "explaining": (naming_jobs.EvalExplaining, explaining),
    "contents": (naming_jobs.EvalContents, contents),
    "clustering": (naming_jobs.EvalClustering, clustering),
}
