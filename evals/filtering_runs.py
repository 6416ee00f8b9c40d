"""`vsae eval filtering`: how well scores from a run's codes find the mismatched pairs of a store, beside what costs no SAE.

SAE-V runs      on a site of mixed samples, kinds image and text; baselines: raw cosine of the mean image and the mean text state about the mean of each kind,
                length, random
VL-SAE runs     on two sites with a row a sample, as image_embedding and text_embedding; baselines: CLIP score (cosine, where they are of one width), the
                cosine after the run's own alignment, where it has one, length, random

What is mismatched is told by the samples' own record (`planted`), or planted by giving captions to other images (`replanted`), which only pairs of
embeddings allow: in a mixed sample, attention has long mixed the two.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from rich.table import Table
from scipy.sparse import csr_array, vstack
from torch import Tensor

from evals import cross_modal
from evals.figures import ACCENT, QUIET, save
from evals.filtering import Filter, SampleCodes, agreement, judge, sae_v
from evals.mixed_codes import sample_codes
from evals.pooling import pooled
from evals.result import Result, write_result
from vsae.activations import Select, StoreSource, fingerprint, whole_samples
from vsae.activations.store import SiteReader
from vsae.code import Code
from vsae.files import write_json
from vsae.paired import mapped
from vsae.run import Run

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
BASELINES = ("CLIP score", "aligned cosine", "raw cosine", "length", "random")


@dataclass(frozen=True)
class Scored:
    """Scores of samples by name, larger: keep."""

    scores: dict[str, Float[np.ndarray, "samples"]]
    lengths: Float[np.ndarray, "samples"]
    rows: np.ndarray
    """Of the store's table of samples."""


@torch.inference_mode()
def mixed(
    run: Run, site: SiteReader, *, fit_samples: int = 1000, batch_size: int = 4096, seed: int = 0, track: Track
) -> Scored:
    """SAE-V's scores of samples that have image and text tokens; weights are fitted on the first `fit_samples`. Raises ValueError."""
    fingerprint.check(run.fingerprint, site.fingerprint)
    if missing := {"image", "text"} - set(site.entry["moments"]):
        raise ValueError(
            f"{site.name} has no {missing.pop()} tokens: SAE-V reads mixed samples, VL-SAE two embeddings."
        )
    n, image_kind = run.sae.n_latents, site.kind_names.index("image")
    parts: dict[str, list[Any]] = {
        name: [] for name in ("image", "text", "counts", "l0", "l1", "length", "raw", "rows")
    }
    fit_codes: list[csr_array] = []
    fit_image: list[np.ndarray] = []
    taken = 0

    def mean_of(kind: str) -> Float[np.ndarray, "d_model"]:
        return np.array(StoreSource(site, Select((kind,), skip=run.skip)).moments().mean)

    centres = mean_of("image"), mean_of("text")
    select = Select(("image", "text"), skip=run.skip)
    batches = track(site.sequential(batch_size, select), "score", -(-site.n_rows // batch_size))
    for batch in whole_samples(batches):
        code = run.sae.encode(batch.values.to(run.sae.atoms))
        code = Code(code.values.float().cpu(), code.indices.cpu())
        samples, is_image = batch.samples.numpy(), (batch.kinds == image_kind).numpy()
        if taken < fit_samples:
            first = samples <= np.unique(samples)[: fit_samples - taken][-1]
            fit_codes.append(pooled(code, n, np.arange(len(samples)), "token")[: first.sum()])
            fit_image.append(is_image[first])
            taken += len(np.unique(samples[first]))
        whole, own, kept = sample_codes(code, samples, is_image, n)
        if not len(whole):
            continue
        states = []
        for mask, centre in zip((kept & is_image, kept & ~is_image), centres, strict=True):
            first = np.flatnonzero(np.diff(samples[mask], prepend=-1))
            x = batch.values[torch.from_numpy(np.flatnonzero(mask))].double().numpy() - centre
            states.append(np.add.reduceat(x, first, axis=0) / np.diff(first, append=len(x))[:, None])
        for name in ("image", "text", "counts", "l0", "l1", "length"):
            parts[name].append(getattr(own, name))
        parts["raw"].append(cosines(*(torch.from_numpy(state) for state in states)))
        parts["rows"].append(whole)
    if not parts["rows"]:
        raise ValueError(f"no sample of {site.name} has both image and text tokens: filtering needs pairs.")
    both = {name: np.concatenate(parts[name]) for name in ("l0", "l1", "length", "raw", "rows")}
    image, text, counts = (csr_array(vstack(parts[name], "csr")) for name in ("image", "text", "counts"))
    codes = SampleCodes(
        image,
        text,
        counts,
        both["l0"],
        both["l1"],
        both["length"],
    )

    fitted, is_image = csr_array(vstack(fit_codes, "csr")), np.concatenate(fit_image)
    tokens = selected_rows(site, select, len(is_image))

    def states_of(rows: np.ndarray) -> np.ndarray:
        return site.gather(tokens[rows]).values.double().numpy()

    scores: dict[str, np.ndarray] = {}
    for form in ("code", "paper"):
        for middle, about in ((None, ""), (centres, ", centred")):
            w = cross_modal.weights(fitted, is_image, states_of, form=form, centres=middle)
            found = sae_v(codes, w)
            scores |= {f"{name} ({form}{about})": found[name] for name in ("union", "both", "per_token")}
    scores |= {name: found[name] for name in ("cooccurring", "l0", "l1")}
    scores |= {"raw cosine": both["raw"], "length": codes.length, "random": chance(len(codes.length), seed)}
    return Scored(scores, codes.length, both["rows"])


@torch.inference_mode()
def embedded(
    run: Run, sites: tuple[SiteReader, SiteReader], *, shuffle: float = 0.0, batch_size: int = 4096, seed: int = 0
) -> tuple[Scored, Bool[np.ndarray, "samples"]]:
    """VL-SAE's agreement of pairs, of which a share `shuffle` gets the caption of another one; True where a pair was left alone."""
    from vsae.activations.pairs import PairSource

    codes: tuple[list[csr_array], list[csr_array]] = [], []
    raw: tuple[list[Tensor], list[Tensor]] = [], []
    rows = []
    sides = [run.side(number) for number in (0, 1)]
    for side, site in zip(sides, sites, strict=True):
        fingerprint.check(side.fingerprint, site.fingerprint)
    for pair in PairSource(*sites).sequential(batch_size):
        for number, batch in enumerate(pair):
            x = batch.values.float()
            code = sides[number].sae.encode(x)
            codes[number].append(
                pooled(Code(code.values.float(), code.indices), sides[number].sae.n_latents, np.arange(len(x)), "token")
            )
            raw[number].append(x)
        rows.append(pair.first.samples.numpy())
    where = np.concatenate(rows)
    order, matched = replanted(len(where), shuffle, seed)
    image, text = (csr_array(vstack(side, "csr")) for side in codes)
    x, y = (torch.cat(side) for side in raw)
    captions = sites[0].samples.column("caption").to_pylist()
    lengths = np.array([len((captions[at] or "").split()) for at in where[order].tolist()], np.float64)
    scores = {
        "agreement": agreement(image, csr_array(text[order])),
        "length": lengths,
        "random": chance(len(where), seed),
    }
    if x.shape == y.shape:
        scores["CLIP score"] = cosines(x, y[torch.from_numpy(order)])
    e, f = (mapped(side.sae, side_rows) for side, side_rows in zip(sides, (x, y), strict=True))
    if e is not None and f is not None:
        scores["aligned cosine"] = cosines(e, f[torch.from_numpy(order)])
    return Scored(scores, lengths, where), matched


def replanted(n: int, share: float, seed: int) -> tuple[np.ndarray, Bool[np.ndarray, "n"]]:
    """(whose caption each pair gets, whether it is its own): a share of the pairs exchange captions, none of them keeping its own."""
    rng, order = np.random.default_rng([seed, 5]), np.arange(n)
    chosen = rng.permutation(n)[: round(share * n)]
    if len(chosen) > 1:
        order[chosen] = np.roll(chosen, 1)
    return order, order == np.arange(n)


def cosines(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> Float[np.ndarray, "n"]:
    return torch.nn.functional.cosine_similarity(x.double(), y.double(), dim=1).numpy()


def chance(n: int, seed: int) -> Float[np.ndarray, "n"]:
    return np.random.default_rng([seed, 6]).random(n)


def selected_rows(site: SiteReader, select: Select, most: int) -> np.ndarray:
    """Numbers of the first selected rows."""
    found = np.empty(0, np.int64)
    for part in range(len(site.edges) - 1):
        found = np.concatenate([found, site.edges[part] + np.flatnonzero(site.part_mask(part, select))])
        if len(found) >= most:
            break
    return found[:most]


def report(
    run: Run,
    site: SiteReader,
    scored: Scored,
    matched: Bool[np.ndarray, "samples"],
    out: Path,
    *,
    planted: str,
    retrained: Any = None,
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, Filter]:
    """Judge every score, beside what models retrained on its choice are worth where that was measured; write result.json, scores.json (key -> score by name) and filtering.png to `out`."""
    found = {name: judge(s, matched, scored.lengths, resamples, seed) for name, s in scored.scores.items()}
    headline = "agreement" if "agreement" in found else "both (code, centred)"
    value = found[headline].auroc
    write_result(
        out,
        Result(
            metric=f"AUROC of matched pairs, {headline}",
            value=value.value,
            floor=value.floor,
            interval=value.interval,
            n={"pairs": len(matched), "matched": int(matched.sum())},
            seeds={"bootstrap, random score and planting": seed},
            splits={"report": site.fingerprint, "planted": planted},
            normalisation=run.fingerprint["normalisation"]["mode"],
            token_kinds=sorted(site.entry["moments"]),
            fingerprint={"sae": run.fingerprint, "store": site.fingerprint},
            details={"scores": found, "retrained": retrained},
        ),
    )
    keys = [site.keys[at] for at in scored.rows.tolist()]
    listed = {name: s.tolist() for name, s in scored.scores.items()}
    write_json(out / "scores.json", {"keys": keys, "matched": matched.tolist(), "scores": listed})
    draw(found, out / "filtering.png")
    return found


def table(found: dict[str, Filter]) -> Table:
    """Scores from the best down; baselines are marked."""
    shown = Table("score", "AUROC", "95 % interval", "by length", "r(length)", "r, matched", "matched in better half")
    shown.title = "Telling matched from mismatched pairs (floor 0.5)"
    for name, each in sorted(found.items(), key=lambda item: -(item[1].auroc.value or 0)):
        low_high = each.auroc.interval
        r, inside = each.length_correlation, each.length_correlation_matched
        shown.add_row(
            f"{name} *" if name in BASELINES else name,
            f"{each.auroc.value:.3f}",
            f"{low_high[0]:.3f} to {low_high[1]:.3f}" if low_high else "-",
            f"{each.auroc_stratified.value:.3f}",
            "-" if r is None else f"{r:.2f}",
            "-" if inside is None else f"{inside:.2f}",
            f"{each.kept_matched.value:.1%} (all {each.kept_matched.floor:.1%})",
        )
    shown.caption = "* baseline; by length: AUROC of the rank among samples of like length"
    return shown


def draw(found: dict[str, Filter], path: Path) -> Path:
    """AUROC of every score, with intervals."""

    def on(axes: Any) -> None:
        ordered = sorted(found.items(), key=lambda item: item[1].auroc.value or 0)
        for at, (name, each) in enumerate(ordered):
            color = QUIET if name in BASELINES else ACCENT
            axes.plot(each.auroc.interval or (each.auroc.value,) * 2, (at, at), color=color, lw=1.5)
            axes.plot(each.auroc.value, at, "o", color=color, ms=5)
        axes.set_yticks(range(len(ordered)), [name for name, _ in ordered], fontsize=6)
        axes.axvline(0.5, color=QUIET, lw=1, ls="--")
        axes.set(xlim=(-0.02, 1.02), xlabel="AUROC, matched above mismatched (floor 0.5)")

    return save(on, path)
