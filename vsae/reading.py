"""What a job reads: its model and images, or its run and the site it belongs to. Part of the roof, for models and images live in `modalities`."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vsae import jobs

if TYPE_CHECKING:
    from PIL.Image import Image

    from vsae.activations import ActivationStore, Source
    from vsae.activations.store import SiteReader
    from vsae.run import Run

LOCATION = ".location.json"
"""In a store: where its images lay on this machine. Hidden, because that is no part of what the store is."""


def reading(job: jobs.Extract) -> tuple[Any, Any, Callable[..., Iterator[Any]]]:
    """Model, dataset, and its chunks from a batch on (of every so many-th batch). The sites are checked before anything is written."""
    from modalities.data import open_dataset
    from modalities.extract import stream
    from modalities.gradients import Gradients
    from modalities.segments import Pool
    from modalities.several import Several
    from modalities.sided import Sided

    data, model = open_dataset(job.data), load_model(job.model)
    if job.more:
        model = Several({"": model} | {name: load_model(spec) for name, spec in job.more.items()})
    if job.gradient != "none":
        if job.pool != "none":
            raise ValueError("a gradient belongs to one token: extract it without --pool.")
        model = Gradients(model, job.gradient, job.gradient_class)
    apart = job.segments == "modality"
    if apart and job.pool == "none":
        raise ValueError("--segments modality pools the tokens of each modality: give --pool mean.")
    if apart:
        model = Sided(model, job.pool)
    for site in sites(job):
        with model.edit(site, lambda values, kinds: values):
            pass  # placing and removing a hook refuses a name that is no site

    pool = None if job.pool == "none" or apart else Pool(job.pool, job.segments)

    def chunks(start: int, step: int = 1) -> Iterator[Any]:
        return stream(model, data, sites(job), job.batch_size, start, workers=job.workers, step=step, pool=pool)

    return model, data, chunks


def load_model(spec: jobs.Model) -> Any:
    import torch

    import modalities
    from vsae.activations.together import Team

    device = spec.device
    if device == "auto":
        n = torch.cuda.device_count() if torch.cuda.is_available() else 0
        device = f"cuda:{Team.of_launch().local_rank % n}" if n else "cpu"
    options: dict[str, Any] = {"device": device}
    if not spec.pretrained:
        options |= {"pretrained": False, "seed": spec.seed}
    if spec.img_size is not None:
        options["img_size"] = spec.img_size
    return modalities.load(spec.family, spec.name, **(options | spec.options))


def identities(model: Any) -> dict[str, Any]:
    """The provenance of a model, and by name that of those read with it."""
    from modalities.several import Several

    if not isinstance(model, Several):
        return {"model": model.provenance}
    return {"model": model.provenances[""], "more": {name: of for name, of in model.provenances.items() if name}}


def sites(job: jobs.Extract) -> list[str]:
    """What the job's store holds: its sites, each with its gradient behind it where that is wanted, or its image and its text side in its place."""
    if job.segments == "modality":
        from modalities.sided import sides

        return [name for site in job.sites for name in sides(site)]
    if job.gradient == "none":
        return list(job.sites)
    return [name for site in job.sites for name in (site, f"{site}:gradient")]


def pooling(job: jobs.Extract) -> dict[str, Any]:
    """How the tokens are pooled, and what gradients are of, for requests and fingerprints; nothing where neither is."""
    pooled = {} if job.pool == "none" else {"pool": {"how": job.pool, "by": job.segments}}
    of = {"scalar": job.gradient} | ({} if job.gradient_class is None else {"class": job.gradient_class})
    return pooled | ({} if job.gradient == "none" else {"gradient": of})


def streamed(job: Any) -> "Source":
    """The activations of an extract job's model, without disk, for the train job that names its file."""
    from modalities.base import KINDS
    from vsae import config
    from vsae.activations import Select, StreamSource
    from vsae.activations.manifest import split_site

    spec = config.from_mapping(jobs.Extract, {"out": "", **config.read_yaml(job.stream)}, str(job.stream))
    model, data, chunks = reading(spec)
    site = job.site or sites(spec)[0]
    path, side = split_site(site)
    select, known = Select(job.kinds, skip=job.skip), identities(model)
    name, slash, own = path.partition("/")
    provenance = known["model"]
    if slash and name in known.get("more", {}):
        provenance, path = known["more"][name], own
    fingerprint = {
        "model": provenance,
        "preprocessing": provenance["preprocessing"],
        **pooling(spec),
        "site": path,
        "side": side,
        "data": data.identity(),
        "store": None,
        "select": select.describe(),
    }
    return StreamSource(chunks, site, select, fingerprint=fingerprint, kind_names=KINDS, pool_rows=job.pool_rows)


def opened(run: Path, store: Path, self_check: bool = True) -> tuple["Run", "SiteReader"]:
    """A run, and the site of the store that it belongs to. Of a paired run, the first of its modalities that the store holds.

    Raises ValueError with both fingerprints where there is none, and for runs that read two sites at once.
    """
    from vsae.activations import ActivationStore, fingerprint
    from vsae.run import Run

    loaded, whole = Run.load(run, self_check=self_check), ActivationStore.open(store)
    if "joined" in loaded.fingerprint:
        held = [fingerprint.identity(whole.site(site).fingerprint) for site in whole.sites]
        sides = [fingerprint.identity(each) in held for each in loaded.fingerprint["joined"]]
        loaded = loaded.side(sides.index(True) if any(sides) else 0)
    site = site_of(whole, loaded.fingerprint)
    fingerprint.check(loaded.fingerprint, site.fingerprint)
    return loaded, site


def site_of(store: "ActivationStore", known: Mapping[str, Any]) -> "SiteReader":
    """The site of a store with this fingerprint, whatever its name there; else that of the same name, else the only one. Raises ValueError."""
    from vsae.activations import fingerprint

    ours = fingerprint.identity(known)
    name = known["site"] + (":input" if known["side"] == "input" else "")
    fits = [site for site in store.sites if fingerprint.identity(store.site(site).fingerprint) == ours]
    return store.site(fits[0] if fits else name if name in store.sites else None)


def images_of(store: Path, data: str | None, option: str = "--data") -> str:
    """Where the images of a store are: `data` (the command line's `option`) where it is given, else where they were. Raises ValueError."""
    from vsae.files import read_json

    if data is None and (store / LOCATION).is_file():
        data = read_json(store / LOCATION)["data"]
    if data is None:
        raise ValueError(f"{store} does not say where its images are: give {option}.")
    return data


def pictures(store: Path, data: str | None, site: Any) -> Callable[[Mapping[str, Any]], "Image | None"]:
    """Sample row -> the picture as the model saw it, or None where it can no longer be read."""
    from modalities.data import Bad, open_dataset
    from modalities.data.view import view

    dataset = open_dataset(images_of(store, data))
    index = {key: at for at, key in enumerate(dataset.keys)}
    preprocessing = site.fingerprint["preprocessing"]

    def picture(row: Mapping[str, Any]) -> "Image | None":
        found = dataset.read(index[row["key"]]) if row["key"] in index else None
        if found is None or isinstance(found, Bad) or found.image is None:
            return None
        return view(found.image, preprocessing)

    return picture
