"""Do single latents line up with the classes of a segmentation? One logistic regression per latent and class, on the patches.

    fit          min over (w, b) of mean BCE(sigmoid(w z + b), y) + rho / 2 (w^2 + (b - b0)^2),  rho = 1e-8, b0 = logit(prevalence)
    choice       for each class the latent with the smallest loss on the fit split; everything else is measured on the report split
    probe R      1 - mean_c loss_c / mean_c H(p_c)  (the authors' code), and mean_c (1 - loss_c / H(p_c))  (their text)
    coverage     share of classes with AP > .3, .5, .7 (strict)
    purity@16    of the 16 patches on which a class's latent is largest: the share of the most frequent label, whichever that is (published), and of the
                 class itself (ours: matched precision)
    IoU          of w z + b > t against the class, t the best on the fit split

Definition: 2511.17735. Codes are sparse: the many zeros of a latent are one group of rows, that are counted and not looked at. H is the entropy of the class on
the report split, the loss of the best constant there. Classes that the report split lacks are left out, and named. Floors: of R 0, of AP the prevalence.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csc_array
from scipy.special import expit, logit

from evals.ranking import average_precisions

RHO = 1e-8
COVERAGE = (0.3, 0.5, 0.7)
TOP = 16
ROWS = 256
"""Entries looked at together: [ROWS, classes] fits the processor's cache."""


@dataclass(frozen=True)
class Probes:
    """w, b and the fit loss of every (latent, class)."""

    weight: Float[np.ndarray, "n_latents classes"]
    bias: Float[np.ndarray, "n_latents classes"]
    loss: Float[np.ndarray, "n_latents classes"]
    """Mean BCE on the fit split, without the penalty."""


def fit_probes(
    codes: csc_array,
    labels: Int[np.ndarray, "patches"],
    n_classes: int,
    steps: int = 30,
    tolerance: float = 1e-10,
    threads: int | None = None,
) -> Probes:
    """Damped Newton (Levenberg-Marquardt) steps in closed form, all classes of a latent at once.

    codes: [patches, n_latents], signed or not; labels: 0 to n_classes - 1; threads: as many latents at once, torch's number by default, and the same result
    with any. Costs steps * entries * classes, and memory for the codes and the answer alone. Raises ValueError for a class no patch has, and where every
    patch has the same.
    """
    counts = np.bincount(labels, minlength=n_classes)
    if missing := np.flatnonzero(counts == 0).tolist():
        raise ValueError(f"classes {missing} are on no patch of the fit split: leave them out, or give more images.")
    if n_classes < 2:
        raise ValueError("all patches have one class: nothing can be told apart.")
    shape = (codes.shape[1], n_classes)
    found = Probes(np.zeros(shape), np.zeros(shape), np.zeros(shape))

    def fit(latent: int) -> None:
        entries = slice(codes.indptr[latent], codes.indptr[latent + 1])
        found.weight[latent], found.bias[latent], found.loss[latent] = fit_latent(
            codes.data[entries].astype(np.float64), labels[codes.indices[entries]], counts, steps, tolerance
        )

    with ThreadPoolExecutor(threads or torch.get_num_threads()) as pool:
        list(pool.map(fit, range(codes.shape[1])))
    return found


def fit_latent(
    z: Float[np.ndarray, "entries"],
    labels: Int[np.ndarray, "entries"],
    counts: Int[np.ndarray, "classes"],
    steps: int,
    tolerance: float,
) -> tuple[Float[np.ndarray, "classes"], Float[np.ndarray, "classes"], Float[np.ndarray, "classes"]]:
    """(w, b, loss) of one latent for every class, from its non-zeros and how many patches each class has."""
    n, n_classes = int(counts.sum()), len(counts)
    b0 = logit(counts / n)
    # scaled to unit size, so that one damping fits the gradient of w and that of b; the penalty is on the true w
    scale = float(np.sqrt(np.square(z).mean())) if len(z) else 1.0
    z = z / scale
    own = np.bincount(labels, z, n_classes)  # sum of z over the patches of each class
    zeros = n - len(z)

    def seen(w: np.ndarray, b: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean BCE, the same with its penalty, and the sums that the next step needs."""
        softplus, moments = logistic_sums(z, w, b)
        bce = (softplus + zeros * np.logaddexp(0, b) - w * own[at] - b * counts[at]) / n
        return bce, bce + RHO / 2 * (np.square(w / scale) + np.square(b - b0[at])), moments

    w, b, damping = np.zeros(n_classes), b0.copy(), np.full(n_classes, 1e-6)
    live = np.arange(n_classes)  # classes whose fit has not converged: most are done after a few steps
    bce, value, moments = seen(w, b, live)
    for _ in range(steps if len(z) else 0):
        at_w, at_b = w[live], b[live]
        p, zp, v, zv, zzv = moments[:, live]
        p0 = expit(at_b)
        gw = (zp - own[live]) / n + RHO * at_w / scale**2
        gb = (p + zeros * p0 - counts[live]) / n + RHO * (at_b - b0[live])
        hwb = zv / n
        hww = (zzv / n + RHO / scale**2) * (1 + damping[live])
        hbb = ((v + zeros * p0 * (1 - p0)) / n + RHO) * (1 + damping[live])
        determinant = np.maximum(hww * hbb - hwb**2, 1e-300)
        new_w = at_w - (hbb * gw - hwb * gb) / determinant
        new_b = at_b - (hww * gb - hwb * gw) / determinant
        new_bce, new, new_moments = seen(new_w, new_b, live)
        better = new <= value[live]
        done = better & (value[live] - new < tolerance * value[live])
        taken = live[better]
        w[taken], b[taken], bce[taken], value[taken] = new_w[better], new_b[better], new_bce[better], new[better]
        moments[:, taken] = new_moments[:, better]
        damping[live] *= np.where(better, 0.1, 10)
        live = live[~done]
        if not len(live):
            break
    return w / scale, b, bce


def logistic_sums(
    z: Float[np.ndarray, "entries"], w: Float[np.ndarray, "classes"], b: Float[np.ndarray, "classes"]
) -> tuple[Float[np.ndarray, "classes"], Float[np.ndarray, "5 classes"]]:
    """Over the entries, with s = z w + b, p = sigmoid(s) and v = p (1 - p): the sum of log(1 + e^s), and those of p, z p, v, z v and z^2 v.

    One exponential an entry and class, that cannot overflow: e = exp(-|s|). The logarithms of 1 + e are taken of products of ROWS of them, 2^ROWS at most.
    """
    powers, line = np.stack([np.ones_like(z), z, np.square(z)]), np.stack([b, w])
    softplus, moments = np.zeros(len(w)), np.zeros((5, len(w)))
    moments[:2] = powers[:2].sum(1, keepdims=True) / 2  # p = 1 / 2 + (sign of s) (q - 1 / 2)
    for start in range(0, len(z), ROWS):
        part = slice(start, start + ROWS)
        s = powers[:2, part].T @ line
        e = np.abs(s)
        np.exp(np.negative(e, out=e), out=e)
        q = 1 + e
        softplus += np.log(q.prod(0))
        np.reciprocal(q, out=q)
        e *= q
        e *= q
        moments[2:] += powers[:, part] @ e
        q -= 0.5
        moments[:2] += powers[:2, part] @ np.copysign(q, s, out=q)
        softplus += np.maximum(s, 0, out=s).sum(0)
    return softplus, moments


@dataclass(frozen=True)
class Alignment:
    """One class and the latent chosen for it; measured on the report split."""

    name: str
    latent: int
    fit_loss: float
    loss: float
    entropy: float
    ap: float
    prevalence: float
    """Floor of AP, and of matched precision."""
    purity_majority: float
    precision_matched: float
    iou: float
    positives: int
    weight: float
    bias: float
    """The class's score is weight * z + bias."""
    threshold: float
    """What is above it is said to be of the class; minus infinity: everything."""


@dataclass(frozen=True)
class Segmentation:
    """Means over classes."""

    classes: tuple[Alignment, ...]
    probe_r: float
    """1 - ratio of means."""
    probe_r_mean: float
    """Mean of per-class reductions."""
    mean_ap: float
    mean_ap_floor: float
    coverage: dict[str, float]
    coverage_floor: dict[str, float]
    purity_majority: float
    purity_floor: float
    """Share of the most frequent label among all patches."""
    precision_matched: float
    mean_iou: float
    left_out: tuple[str, ...]
    """Classes that the fit or the report split lacks."""
    n_fit: int
    n_report: int


def align(
    fit: csc_array,
    fit_labels: Int[np.ndarray, "fit"],
    report: csc_array,
    report_labels: Int[np.ndarray, "report"],
    names: tuple[str, ...],
) -> Segmentation:
    """Choose on the fit split, measure on the report split. Raises ValueError for codes of another width, and for fewer than 2 classes in both."""
    if fit.shape[1] != report.shape[1]:
        raise ValueError(
            f"the fit split has {fit.shape[1]} latents and the report split {report.shape[1]}: they are of two SAEs."
        )
    held = [np.bincount(labels, minlength=len(names)) > 0 for labels in (fit_labels, report_labels)]
    kept = np.flatnonzero(held[0] & held[1])
    if len(kept) < 2:
        raise ValueError("fewer than two classes are on both splits: give more images.")
    # patches of classes that the fit split has not stay where they are: they are not of any of the kept
    known = np.flatnonzero(held[0])
    probes = fit_probes(csc_array(fit), np.searchsorted(known, fit_labels), len(known))
    found = []
    for c in kept.tolist():
        column = int(np.searchsorted(known, c))
        latent = int(probes.loss[:, column].argmin())
        w, b = probes.weight[latent, column], probes.bias[latent, column]
        before, z = (split[:, [latent]].toarray()[:, 0].astype(np.float64) for split in (fit, report))
        found.append(
            measured(
                names[c],
                latent,
                float(probes.loss[latent, column]),
                (float(w), float(b)),
                before,
                z,
                c,
                fit_labels,
                report_labels,
            )
        )
    return summary(found, kept, names, fit_labels, report_labels)


def measured(
    name: str,
    latent: int,
    fit_loss: float,
    line: tuple[float, float],
    before: Float[np.ndarray, "fit"],
    z: Float[np.ndarray, "report"],
    c: int,
    fit_labels: Int[np.ndarray, "fit"],
    labels: Int[np.ndarray, "report"],
) -> Alignment:
    weight, bias = line
    score, has, p = weight * z + bias, labels == c, float((labels == c).mean())
    top = labels[np.argsort(-z, kind="stable")[:TOP]]
    threshold = best_iou_threshold(weight * before + bias, fit_labels == c)
    said = score > threshold
    ap = average_precisions(score[:, None], csc_array(has[:, None]))[0, 0]
    return Alignment(
        name=name,
        latent=latent,
        fit_loss=fit_loss,
        loss=float((np.logaddexp(0, score) - has * score).mean()),
        entropy=float(-(p * np.log(p) + (1 - p) * np.log1p(-p))) if p < 1 else 0.0,
        ap=float(ap),
        prevalence=p,
        purity_majority=float(np.bincount(top).max() / len(top)),
        precision_matched=float((top == c).mean()),
        iou=float((said & has).sum() / max(1, (said | has).sum())),
        positives=int(has.sum()),
        weight=weight,
        bias=bias,
        threshold=threshold,
    )


def best_iou_threshold(score: Float[np.ndarray, "rows"], has: np.ndarray) -> float:
    """Saying yes above it has the largest IoU; halfway to the next lower score, minus infinity for always."""
    order = np.argsort(-score, kind="stable")
    values, true = score[order], np.cumsum(has[order])
    ends = np.r_[np.flatnonzero(values[1:] != values[:-1]), len(values) - 1]
    best = int((true[ends] / (ends + 1 + has.sum() - true[ends])).argmax())
    return -np.inf if best == len(ends) - 1 else float((values[ends[best]] + values[ends[best] + 1]) / 2)


def summary(
    found: list[Alignment],
    kept: Int[np.ndarray, "kept"],
    names: tuple[str, ...],
    fit_labels: Int[np.ndarray, "fit"],
    labels: Int[np.ndarray, "report"],
) -> Segmentation:
    loss, entropy = np.array([each.loss for each in found]), np.array([each.entropy for each in found])
    aps, prevalence = np.array([each.ap for each in found]), np.array([each.prevalence for each in found])
    return Segmentation(
        classes=tuple(found),
        probe_r=float(1 - loss.mean() / entropy.mean()),
        probe_r_mean=float(np.mean(1 - loss / entropy)),
        mean_ap=float(aps.mean()),
        mean_ap_floor=float(prevalence.mean()),
        coverage=coverage(aps),
        coverage_floor=coverage(prevalence),
        purity_majority=float(np.mean([each.purity_majority for each in found])),
        purity_floor=float(np.bincount(labels).max() / len(labels)),
        precision_matched=float(np.mean([each.precision_matched for each in found])),
        mean_iou=float(np.mean([each.iou for each in found])),
        left_out=tuple(name for at, name in enumerate(names) if at not in set(kept.tolist())),
        n_fit=len(fit_labels),
        n_report=len(labels),
    )


def coverage(aps: Float[np.ndarray, "classes"]) -> dict[str, float]:
    """Share of classes strictly above each threshold."""
    return {str(at): float(np.mean(aps > at)) for at in COVERAGE}
