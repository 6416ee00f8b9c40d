"""`vsae eval faithfulness`: an SAE's reconstruction in the model's place, beside PCA of as many numbers a token, mean and zero ablation.

Activations of the fit part give PCA and the mean of each token kind, which mean ablation puts in; the report part is asked about. Of a run that was trained on
the same data only samples that were held out are asked about. Where several token kinds are substituted, each is also substituted alone.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from evals import baselines
from evals.faithful_data import NEEDS, Settings, Track, activations, batches, parts, task_of, without_first
from evals.faithful_tasks import Task
from evals.faithfulness import MEAN, MODEL, ZERO, Faithful, Outcome, compare, join
from evals.faithfulness_shown import draw
from evals.reconstruction import Codec
from evals.result import Result, write_result
from modalities.base import KINDS
from modalities.data import Dataset
from vsae.activations import fingerprint
from vsae.run import Run

NONE: Track = lambda items, what, n: items  # noqa: E731


@dataclass(frozen=True)
class Comparison:
    """Substitutions by name, over all units and by the kind of what is asked; then those of each token kind alone, over all units."""

    task: str
    total: dict[str, Faithful]
    kinds: dict[str, dict[str, Faithful]]
    alone: dict[str, dict[str, Faithful]]
    samples: int
    unreadable: int


class Substitute:
    """A function for `model.edit`: reconstructions of a codec for tokens of these kinds (numbers)."""

    def __init__(self, codec: Codec, kinds: Sequence[int]) -> None:
        self.codec, self.kinds = codec, torch.tensor(list(kinds), dtype=torch.uint8)

    @torch.no_grad()
    def __call__(self, values: Float[Tensor, "batch tokens d_model"], kinds: UInt8[Tensor, "batch tokens"]) -> Tensor:
        mask = torch.isin(kinds, self.kinds.to(kinds.device))
        like = self.codec.atoms
        out = values.clone()
        if bool(mask.any()):
            x = values[mask]
            out[mask] = self.codec.decode(self.codec.encode(x.to(like))).to(x)
        return out


class Constant:
    """A function for `model.edit`: one vector a token kind."""

    def __init__(self, vectors: dict[int, Float[Tensor, "d_model"]]) -> None:
        self.vectors = vectors

    def __call__(self, values: Float[Tensor, "batch tokens d_model"], kinds: UInt8[Tensor, "batch tokens"]) -> Tensor:
        out = values.clone()
        for kind, vector in self.vectors.items():
            out[kinds == kind] = vector.to(values)
        return out


class AfterFirst:
    """An edit that leaves the first `skip` tokens of each sample alone, which the SAE was trained without."""

    def __init__(self, edit: Substitute | Constant, skip: int) -> None:
        self.edit, self.skip = edit, skip

    def __call__(self, values: Float[Tensor, "batch tokens d_model"], kinds: UInt8[Tensor, "batch tokens"]) -> Tensor:
        return self.edit(values, without_first(kinds, self.skip))


def evaluate(run: Run, model: Any, data: Dataset, out: Path, settings: Settings, track: Track = NONE) -> Comparison:
    """Ask the model with and without substitutions; write result.json and faithfulness.png to `out`.

    Raises ValueError for a model that is not the run's, data without what the task needs, and where too few samples are left.
    """
    site = run.fingerprint["site"] + (":input" if run.fingerprint["side"] == "input" else "")
    mine = {"model": model.provenance, "site": run.fingerprint["site"], "side": run.fingerprint["side"]}
    preprocessing = model.provenance["preprocessing"]
    fingerprint.check(run.fingerprint, {**run.fingerprint, **mine, "preprocessing": preprocessing})
    if run.fingerprint.get("pool"):
        raise ValueError(
            "this SAE reads pooled tokens, which the model never sees: train one on tokens to substitute them."
        )
    kinds = settings.kinds or run.kinds
    fit, report = parts(run, data, settings)
    with torch.no_grad():
        rows, means, features = activations(model, data, site, fit, kinds, run.skip, settings, track)
        task = task_of(model, data, site, fit, report, features, settings)
        pca = baselines.fit_pca(rows)
        k = max(1, min(round(run.meta["self_check"]["l0"]), pca.n_latents))
        codecs: dict[str, Codec] = {run.meta["recipe"]["name"]: run.sae, f"PCA {k}": pca.first(k)}
        wheres = {"": sorted(means)} | ({KINDS[kind]: [kind] for kind in sorted(means)} if len(means) > 1 else {})
        edits = {where: edits_of(codecs, means, ids, run.skip) for where, ids in wheres.items()}
        found, units, samples, unreadable = asked(model, data, site, report, task, edits, settings, track)
    options: dict[str, Any] = {"resamples": settings.resamples, "seed": settings.seed}
    names = sorted(set(units))
    of_kind = {name: np.array([unit == name for unit in units]) for name in names}
    comparison = Comparison(
        task=type(task).__name__,
        total=compare(found[""], samples, **options),
        kinds={name: compare(found[""], samples, mask, **options) for name, mask in of_kind.items()}
        if len(names) > 1
        else {},
        alone={where: compare(each, samples, **options) for where, each in found.items() if where},
        samples=len(np.unique(samples)),
        unreadable=unreadable,
    )
    write_result(
        out, to_result(comparison, run, model, data, [KINDS[kind] for kind in sorted(means)], fit, report, settings)
    )
    draw(comparison.total, out / "faithfulness.png")
    return comparison


def edits_of(codecs: dict[str, Codec], means: dict[int, Tensor], ids: Sequence[int], skip: int) -> dict[str, Any]:
    """What is put in, by name; None: nothing."""
    edits: dict[str, Substitute | Constant] = {
        **{name: Substitute(codec, ids) for name, codec in codecs.items()},
        MEAN: Constant({kind: means[kind] for kind in ids}),
        ZERO: Constant({kind: torch.zeros_like(means[kind]) for kind in ids}),
    }
    return {MODEL: None, **{name: AfterFirst(edit, skip) for name, edit in edits.items()}}


def asked(
    model: Any,
    data: Dataset,
    site: str,
    report: Sequence[int],
    task: Task,
    edits: dict[str, dict[str, Any]],
    settings: Settings,
    track: Track,
) -> tuple[dict[str, dict[str, Outcome]], list[str], Int64[np.ndarray, "units"], int]:
    """Outcomes by where and by name, the kind and the sample of each unit, and how many candidates could not be asked about."""
    pieces: dict[str, dict[str, list[Outcome]]] = {where: {name: [] for name in each} for where, each in edits.items()}
    kinds, numbers, unreadable, offset, size = list[str](), list[np.ndarray](), 0, 0, settings.batch_size
    truth, needs = getattr(task, "truth", {}), NEEDS.get(model.provenance["family"], set())
    for samples, bad in track(batches(data, report, needs, size), "ask", -(-len(report) // size)):
        known = [sample for sample in samples if not truth or sample.key in truth]
        unreadable += bad + len(samples) - len(known)
        if not known:
            continue
        batch = model.prepare(known)
        units = task.units(batch, known)
        kinds += units.kinds
        numbers.append(units.samples + offset)
        offset += max(len(known), int(units.samples.max(initial=-1)) + 1)
        own = task.answer(batch, known, MODEL)
        for where, each in edits.items():
            for name, edit in each.items():
                answer = own
                if edit is not None:
                    with ExitStack() as stack:
                        stack.enter_context(model.edit(site, edit))
                        answer = task.answer(batch, known, f"{where} {name}")
                pieces[where][name].append(task.outcome(batch, known, answer, own))
    if not numbers:
        raise ValueError(
            f"none of the {len(report)} samples can be asked about: they lack an image, a caption or a label."
        )
    joined = {where: {name: join(parts) for name, parts in each.items()} for where, each in pieces.items()}
    return joined, kinds, np.concatenate(numbers), unreadable


def to_result(
    found: Comparison,
    run: Run,
    model: Any,
    data: Dataset,
    kinds: list[str],
    fit: Sequence[int],
    report: Sequence[int],
    settings: Settings,
) -> Result:
    """Loss recovered against mean ablation is the headline; where there is no loss, the change recovered."""
    first = found.total[run.meta["recipe"]["name"]]
    loss, change = first.loss_recovered[MEAN], first.change_recovered[MEAN]
    has_loss = first.loss.value is not None
    headline = loss if has_loss else change
    return Result(
        metric=f"{'loss' if has_loss else 'change'} recovered, against mean ablation",
        value=headline.value,
        floor=headline.floor,
        interval=headline.interval,
        n={"samples": found.samples, "units": first.units, "unreadable": found.unreadable},
        seeds={"bootstrap and painting": settings.seed},
        splits={
            "fit": {"data": data.identity(), "samples": len(fit)},
            "report": {"data": data.identity(), "samples": len(report)},
        },
        normalisation=run.fingerprint["normalisation"]["mode"],
        token_kinds=kinds,
        fingerprint={"sae": run.fingerprint, "model": model.provenance},
        details=found,
    )
