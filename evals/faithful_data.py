"""What a model is asked about, and what there is to know before it is: which samples, their labels, the site's activations on the fit part."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from evals.faithful_tasks import HeadTask, LanguageTask, MatchingTask, PaintingTask, Task, features_of
from modalities.base import KINDS
from modalities.data import Dataset, Sample
from vsae.activations import Batch
from vsae.activations.select import shares_of
from vsae.run import Run

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
PAD = KINDS.index("pad")
FIT_SHARE = 0.5
"""Of samples that no SAE was trained on."""


@dataclass(frozen=True)
class Settings:
    """What a person can choose; see `vsae.suite_jobs.EvalFaithfulness`."""

    kinds: tuple[str, ...] | None = None
    samples: int = 512
    fit_samples: int = 256
    batch_size: int = 8
    head: str = "auto"
    template: str = "a photo of a {}."
    painting: dict[str, Any] = field(default_factory=dict)
    resamples: int = 200
    seed: int = 0


def parts(run: Run, data: Dataset, settings: Settings) -> tuple[list[int], list[int]]:
    """Candidates of the fit and of the report part, by a hash of their keys. Raises ValueError where one is empty."""
    shares = shares_of(data.keys)
    own = run.fingerprint.get("data", {}).get("digest") == data.identity()["digest"]
    border = run.fingerprint["select"]["part"][1] if own else FIT_SHARE
    if border == 1:
        raise ValueError(f"{run.path} was trained on all of this data: give other data, or train with --val-share.")
    fit = np.flatnonzero(shares < border)[: settings.fit_samples].tolist()
    report = np.flatnonzero(shares >= border)[: settings.samples].tolist()
    if not fit or not report:
        raise ValueError(
            f"of {len(data)} samples {len(fit)} are left to fit on and {len(report)} to ask about: give more."
        )
    return fit, report


NEEDS = {"vision": {"image"}, "clip": {"image"}, "diffusion": {"caption"}}
"""What a sample must have to be asked about, by family."""


def batches(
    data: Dataset, candidates: Sequence[int], needs: Collection[str], size: int
) -> Iterator[tuple[list[Sample], int]]:
    """(samples that can be read and have what is needed, how many of the batch do not)."""
    with ThreadPoolExecutor(2, thread_name_prefix="decode") as pool:
        for start in range(0, len(candidates), size):
            some = candidates[start : start + size]
            read = [each for each in pool.map(data.read, some) if isinstance(each, Sample) and has(each, needs)]
            yield read, len(some) - len(read)


def has(sample: Sample, needs: Collection[str]) -> bool:
    there = {"image": sample.image is not None, "caption": bool(sample.captions)}
    return all(there[part] for part in needs)


def activations(
    model: Any,
    data: Dataset,
    site: str,
    fit: Sequence[int],
    kinds: tuple[str, ...] | None,
    skip: int,
    settings: Settings,
    track: Track,
) -> tuple[list[Batch], dict[int, Float[Tensor, "d_model"]], dict[str, Float[Tensor, "d"]]]:
    """Of the fit part: rows of the token kinds without the first `skip` of each sample, the mean of each, and what an image backbone gives of each sample (for a probe)."""
    rows, features = list[Batch](), dict[str, Tensor]()
    sums: dict[int, Tensor] = {}
    counts: dict[int, int] = {}
    wanted = None if kinds is None else {number_of(kind) for kind in kinds}
    size = settings.batch_size
    needs = model.needs([site]) if hasattr(model, "needs") else NEEDS.get(model.provenance["family"], set())
    for samples, _ in track(batches(data, fit, needs, size), "fit", -(-len(fit) // size)):
        if not samples:
            continue
        batch = model.prepare(samples)
        found = model.activations(batch, [site])[site]
        numbers = without_first(found.kinds, skip)
        mask = numbers != PAD
        if wanted is not None:
            mask &= torch.isin(numbers, torch.tensor(sorted(wanted), dtype=torch.uint8, device=numbers.device))
        x, of = found.values[mask].float().cpu(), found.kinds[mask].cpu()
        n = len(x)
        rows.append(Batch(x, of, torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int32)))
        for kind in of.unique().tolist():
            mine = x[of == kind].double()
            sums[kind], counts[kind] = sums.get(kind, 0) + mine.sum(0), counts.get(kind, 0) + len(mine)
        if probed(model, data, settings):
            given = features_of(model.run(batch)).double().cpu()
            features |= {sample.key: row for sample, row in zip(samples, given, strict=True)}
    if not sums:
        raise ValueError(f"no token of kind {', '.join(kinds or KINDS)} was read at {site}: choose other --kinds.")
    return rows, {kind: (total / counts[kind]).float() for kind, total in sums.items()}, features


def without_first(kinds: UInt8[Tensor, "batch tokens"], skip: int) -> UInt8[Tensor, "batch tokens"]:
    """The first `skip` tokens of each row that are no padding, made padding: neither read nor substituted."""
    return kinds.masked_fill((kinds != PAD).cumsum(1) <= skip, PAD) if skip else kinds


def number_of(kind: str) -> int:
    if kind not in KINDS:
        raise ValueError(f"token kind {kind!r} does not exist: choose from {', '.join(KINDS)}.")
    return KINDS.index(kind)


def probed(model: Any, data: Dataset, settings: Settings) -> bool:
    """Whether an image backbone's answers are a linear probe's."""
    if model.provenance["family"] != "vision" or settings.head == "own":
        return False
    return settings.head == "probe" or len(data.classes()) > 1


def task_of(
    model: Any,
    data: Dataset,
    site: str,
    fit: Sequence[int],
    report: Sequence[int],
    features: dict[str, Tensor],
    settings: Settings,
) -> Task:
    """The task of the model's family. Raises ValueError where the data do not say what is true."""
    family = model.provenance["family"]
    if family in ("llm", "llava"):
        return LanguageTask(model)
    if family == "diffusion":
        return PaintingTask(model, settings.seed, settings.painting)
    if family == "vision":
        if features:
            return HeadTask(model, *probe(data, features, [*fit, *report]))
        if not getattr(model.module, "num_classes", 0):
            raise ValueError("this model has no classifier of its own: give data with labels, for a probe.")
        return HeadTask(model)
    classes = data.classes()
    tower = "image" if "image" in (model.needs([site])) else "text"
    if len(classes) > 1:
        labels = labels_of(data, report)
        texts = [settings.template.format(name.replace("_", " ")) for name in classes]
        return MatchingTask(model, texts, {key: classes.index(label) for key, label in labels.items()}, tower)
    said = captions_of(data, report)
    texts = sorted(set(said.values()))
    if len(texts) < 2:
        raise ValueError(
            "these images have neither two labels nor two captions to be matched with: give data with either."
        )
    at = {text: number for number, text in enumerate(texts)}
    return MatchingTask(model, texts, {key: at[text] for key, text in said.items()}, tower)


def probe(
    data: Dataset, features: dict[str, Tensor], candidates: Sequence[int]
) -> tuple[tuple[Tensor, Tensor], dict[str, int]]:
    """A logistic regression of the labels on what the model gives, and every sample's class."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes = data.classes()
    truth = {key: classes.index(label) for key, label in labels_of(data, candidates).items()}
    keys = [key for key in features if key in truth]
    y = np.array([truth[key] for key in keys])
    if len(set(y.tolist())) < len(classes):
        raise ValueError(
            f"the {len(keys)} samples that the probe is fitted on lack some of the {len(classes)} classes: raise --fit-samples."
        )
    x = np.stack([features[key].numpy() for key in keys])
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x, y)
    scaler, linear = fitted[0], fitted[1]
    weight, bias = linear.coef_, linear.intercept_
    if len(classes) == 2:  # scikit-learn keeps one row for two classes
        weight, bias = np.concatenate([np.zeros_like(weight), weight]), np.concatenate([np.zeros(1), bias])
    weight = weight / scaler.scale_
    return (torch.from_numpy(weight), torch.from_numpy(bias - weight @ scaler.mean_)), truth


def labels_of(data: Dataset, candidates: Iterable[int]) -> dict[str, str]:
    read = (data.read(at) for at in candidates)
    return {each.key: each.label for each in read if isinstance(each, Sample) and each.label is not None}


def captions_of(data: Dataset, candidates: Iterable[int]) -> dict[str, str]:
    read = (data.read(at) for at in candidates)
    return {each.key: each.captions[0] for each in read if isinstance(each, Sample) and each.captions}
