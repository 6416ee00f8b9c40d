"""vsae eval zero_shot: whether the codes of images and of class names help a CLIP tell classes apart."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array, vstack

from vsae import label_jobs
from vsae.evaluations import told
from vsae.progress import track
from vsae.reading import load_model

PAIR = ("image_embedding", "text_embedding")


def zero_shot(job: label_jobs.EvalZeroShot) -> Path:
    """Classify with and without codes; returns the directory with result.json."""
    from evals import zero_shot as eval_zero_shot
    from evals.result import Result, write_result
    from modalities.data import open_dataset
    from vsae.activations.select import shares_of
    from vsae.run import Run

    run, model = Run.load(job.run, self_check=job.self_check), load_model(job.model)
    sides = fitting_sides(run, model)
    data = open_dataset(job.data, label=job.label)
    names = data.classes()
    if len(names) < 2:
        raise ValueError(
            f"{job.data} has {len(names)} classes: zero-shot classification needs labels of two or more (--label FIELD)."
        )
    keys, labels, images = images_of(job, data, model, sides[0].sae)
    if missing := [name for name in names if name not in labels]:
        raise ValueError(f"no image of class {missing[0]!r} can be read: leave the class out.")
    texts = model.texts([job.phrase.format(name.replace("_", " ")) for name in names])
    classes = coded(sides[1].sae, model.activations(texts, [PAIR[1]])[PAIR[1]].values[:, 0])
    truth = np.array([names.index(label) for label in labels])
    val = shares_of(keys) < 0.5
    rows = [np.flatnonzero(val), np.flatnonzero(~val)]
    parts = [eval_zero_shot.Side(images.x[at], csr_array(images.h[at])) for at in rows]
    found = eval_zero_shot.evaluate(
        classes, parts[0], truth[rows[0]], parts[1], truth[rows[1]], resamples=job.resamples, seed=job.seed
    )
    out = job.out or job.run / "eval" / "zero_shot"
    write_result(
        out,
        Result(
            metric="gain in zero-shot accuracy from the cosine of codes",
            value=found.gain.value,
            floor=found.gain.floor,
            interval=found.gain.interval,
            n={"validation": len(rows[0]), "test": len(rows[1]), "classes": len(names)},
            seeds={"bootstrap and exchanged classes": job.seed},
            splits={"alpha": "half of the images by a hash of their keys", "report": "the other half"},
            normalisation="embeddings as they are",
            token_kinds=["cls"],
            fingerprint=run.fingerprint,
            details=found,
        ),
    )
    return told(table(found), out)


def fitting_sides(run: Any, model: Any) -> tuple[Any, Any]:
    """Image and text side of a run on both embeddings, seen to be those of this model. Raises ValueError."""
    from vsae.activations import fingerprint

    if "joined" not in run.fingerprint or [each["site"] for each in run.fingerprint["joined"]] != list(PAIR):
        raise ValueError(
            f"{run.path} is no run on {'+'.join(PAIR)}: train one (--recipe vl_sae --site {'+'.join(PAIR)})."
        )
    sides = run.side(0), run.side(1)
    for side in sides:
        about = {name: side.fingerprint[name] for name in ("site", "side")}
        read = {"model": model.provenance, "preprocessing": model.provenance["preprocessing"], **about}
        fingerprint.check(side.fingerprint, read)
    return sides


def images_of(job: label_jobs.EvalZeroShot, data: Any, model: Any, sae: Any) -> tuple[list[str], list[str], Any]:
    """(keys, labels, embeddings and codes) of the images that can be read and have a label."""
    from evals.zero_shot import Side
    from modalities.data import Bad, Sample

    keys, labels, parts = list[str](), list[str](), list[Side]()
    starts = range(0, len(data), job.batch_size)
    for start in track(starts, "read images", len(starts)):
        read = [data.read(at) for at in range(start, min(start + job.batch_size, len(data)))]
        samples = [Sample(one.key, one.path, one.image, label=one.label) for one in read if not isinstance(one, Bad) and one.image is not None and one.label]  # fmt: skip
        if samples:
            values = model.activations(model.prepare(samples), [PAIR[0]])[PAIR[0]].values[:, 0]
            parts.append(coded(sae, values))
            keys += [one.key for one in samples]
            labels += [str(one.label) for one in samples]
    if not parts:
        raise ValueError(f"{job.data} has no image with a label that can be read.")
    return keys, labels, Side(np.concatenate([part.x for part in parts]), csr_array(vstack([part.h for part in parts])))


def coded(sae: Any, values: Any) -> Any:
    from evals.pooling import pooled
    from evals.zero_shot import Side
    from vsae.code import Code

    code = sae.encode(values.to(sae.b_dec))
    code = Code(code.values.float().cpu(), code.indices.cpu())
    return Side(values.double().cpu().numpy(), csr_array(pooled(code, sae.n_latents, np.arange(len(values)), "token")))


def table(found: Any) -> Any:
    from rich.table import Table

    from evals.steering_shown import said

    shown = Table("zero-shot accuracy on test images", "", title=f"alpha {found.alpha:g}, chosen on validation images")
    shown.add_row("cosine of embeddings", said(found.plain, 3))
    shown.add_row("and alpha times cosine of codes", said(found.enhanced, 3))
    shown.add_row("gain (floor 0)", said(found.gain, 3))
    shown.add_row("gain with codes of exchanged classes", said(found.control, 3))
    shown.add_row("cosine of codes alone", said(found.codes_alone, 3))
    shown.caption = f"floor: the commonest class, {found.plain.floor:.3f}"
    return shown


JOBS = {"zero_shot": (label_jobs.EvalZeroShot, zero_shot)}
