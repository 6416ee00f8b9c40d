"""The page of a filter: what was kept and dropped, by which score, and how far that can be trusted."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vsae.audit_jobs import Filter
from vsae.filter.scores import SCORES
from vsae.report.page import Fact
from vsae.report.results import Chart, Grid, Picture, Section, Strip, write

if TYPE_CHECKING:
    from PIL.Image import Image

    from modalities.data.subset import Safe, Units
    from vsae.run import Run

SHOWN, SIDE = 12, 160
SOURCES = 30
"""Rows of the table of sources."""
BASELINES = ("clip", "length", "random")
MEANS = {
    "agreement": "cosine of the codes of image and text (VL-SAE)",
    "clip": "cosine of the two embeddings: costs no SAE",
    "both": "sum of the cross-modal weights of the latents that speak in image and text (ours)",
    "union": "the same of latents that speak in either, as SAE-V has it: rewards a sample for all it speaks of",
    "per_token": "the same for every token: follows the length",
    "cooccurring": "number of latents above 1 in both",
    "l0": "active latents a token",
    "l1": "activation a token",
    "length": "words of the text",
    "random": "chance",
}


def write_page(job: Filter, units: "Units", run: "Run", scorer: Any) -> Path:
    """Write OUT/report/index.html."""
    from evals.filtering import correlation

    names = [*(f"score_{name}" for name in (*scorer.names, "random")), "length"]
    columns = ["index", "shard", "source", "wrong", "told", "kept", "reason", *names]
    table = pq.read_table(job.out / SCORES, columns=columns)
    bad = table.filter(pc.is_valid(table["reason"]))
    table = table.filter(pc.is_null(table["reason"]))
    kept = table["kept"].to_numpy(zero_copy_only=False)
    values = {name.removeprefix("score_"): table[name].cast(pa.float64()).to_numpy() for name in names}
    method = job.method or scorer.headline
    r = correlation(values[method], values["length"]) if not np.isnan(values[method]).any() else None
    facts = [
        Fact("samples", f"{len(table):,}", f"and {len(bad):,} that cannot be read or scored"),
        Fact("kept", f"{kept.sum():,}", f"{kept.mean():.1%} by {budget(job)}"),
        Fact("score", method, MEANS[method]),
        Fact("r with length", "undefined" if r is None else f"{r:.2f}", "0: the score does not follow the length"),
    ]
    sections = [
        spread(job, values[method], kept, method),
        judged(table, values, kept),
        sources(table, kept),
        examples(job, units, table, values[method], kept),
        *([refused(bad)] if len(bad) else []),
    ]
    lead = (
        f"Every sample of {Path(job.data).name} was scored by the codes of {run.path.name}. What is kept lies in shards/, byte for byte as it came; "
        "scores.parquet holds every sample's scores, with the latents behind them.",
    )
    return write(job.out / "report", f"Filter: {Path(job.data).name}", lead, facts, sections)


def budget(job: Filter) -> str:
    asked = {"share": job.share, "count": job.count, "threshold": job.threshold}
    name, value = next((name, value) for name, value in asked.items() if value is not None)
    among = "" if job.stratify == "none" else f", each {job.stratify} by itself"
    return f"{name} {value:g}{among}"


def spread(job: Filter, value: np.ndarray, kept: np.ndarray, method: str) -> Section:
    """The distribution of the score."""
    from PIL import Image

    from evals.figures import ACCENT, QUIET, save

    finite = np.isfinite(value)

    def draw(axes: Any) -> None:
        if not finite.any():
            return
        edges = np.histogram_bin_edges(value[finite], 60)
        for mask, color, name in ((kept, ACCENT, "kept"), (~kept, QUIET, "dropped")):
            axes.hist(value[mask & finite], edges, color=color, alpha=0.8, label=f"{name} ({mask.sum():,})")
        axes.set(xlabel=method, ylabel="samples")
        axes.legend(frameon=False)

    picture = save(draw, job.out / "report" / "scores.png")
    words = (f"Distribution of {method}: {MEANS[method]}.",)
    with Image.open(picture) as image:
        return Section("Scores", words, [Chart(Picture(image.convert("RGB"), f"histogram of {method}"))])


def judged(table: pa.Table, values: dict[str, np.ndarray], kept: np.ndarray) -> Section:
    """Every score: what it follows, and where the truth is known, how well it finds what is wrong."""
    from evals.filtering import correlation, judge

    matched = pc.is_null(table["wrong"]).to_numpy(zero_copy_only=False)
    known = bool(pc.any(pc.fill_null(table["told"], False)).as_py()) and 0 < matched.sum() < len(matched)
    rows = []
    for name, value in values.items():
        ok = np.isfinite(value)
        some = ok.sum() > 2
        r = correlation(value[ok], values["length"][ok]) if some else None
        own = [f"{name} *" if name in BASELINES else name, MEANS[name], "-" if r is None else f"{r:.2f}"]
        own += [f"{value[mask & ok].mean():.3f}" if (mask & ok).any() else "-" for mask in (kept, ~kept)]
        if known:
            try:
                found = judge(np.where(ok, value, np.nanmin(value) if some else 0), matched, values["length"])
            except ValueError:
                own += ["-", "-"]
            else:
                low, high = found.auroc.interval or (np.nan, np.nan)
                own += [f"{found.auroc.value:.3f} ({low:.3f} to {high:.3f})", f"{found.auroc_stratified.value:.3f}"]
        rows.append(tuple(own))
    columns = ["score", "what it is", "r with length", "mean of kept", "mean of dropped"]
    words = [
        "Scores marked * need no SAE. A filter that follows the length of the text keeps long samples, not good ones."
    ]
    if known:
        columns += ["AUROC of matched pairs (floor 0.5)", "among samples of like length"]
        words.append(
            f"The data say of {len(matched) - matched.sum():,} of {len(matched):,} samples what is wrong with them. "
            f"Of what is kept, {matched[kept].mean():.1%} is right; of all, {matched.mean():.1%}."
            if kept.any()
            else "Nothing is kept."
        )
    return Section("What the scores know", words, [Grid(columns, rows)])


def sources(table: pa.Table, kept: np.ndarray) -> Section:
    coded = pc.fill_null(table["source"], "(none)").combine_chunks().dictionary_encode()
    names, of = coded.dictionary.to_pylist(), coded.indices.to_numpy()
    total, own = np.bincount(of, minlength=len(names)), np.bincount(of, kept, len(names))
    order = np.argsort(-total, kind="stable")[:SOURCES]
    rows = [(names[at], f"{total[at]:,}", f"{own[at]:,.0f}", f"{own[at] / total[at]:.1%}") for at in order]
    words = [f"The {SOURCES} largest of {len(names):,} sources."] if len(names) > SOURCES else []
    return Section("Sources", words, [Grid(("source", "samples", "kept", "share kept"), rows)])


def examples(job: Filter, units: "Units", table: pa.Table, value: np.ndarray, kept: np.ndarray) -> Section:
    """Pictures: kept and dropped at random, and those nearest to the border."""
    rng, parts = np.random.default_rng(job.seed), []
    order = np.argsort(-np.where(np.isnan(value), -np.inf, value), kind="stable")
    groups = {
        "Kept, at random": rng.permutation(np.flatnonzero(kept))[:SHOWN],
        "Kept, the lowest scores": order[kept[order]][-SHOWN:],
        "Dropped, the highest scores": order[~kept[order]][:SHOWN],
        "Dropped, at random": rng.permutation(np.flatnonzero(~kept))[:SHOWN],
        "Dropped, the lowest scores": order[~kept[order]][-SHOWN:],
    }
    seen = pictures(units, table, np.unique(np.concatenate(list(groups.values()))), value)
    for name, rows in groups.items():
        found = [picture for row in rows if (picture := seen[int(row)]) is not None]
        if found:
            parts.append(Strip(found, name, told=True))
    marks = (
        "A tick: the data say that nothing is wrong with it."
        if pc.any(pc.fill_null(table["told"], False)).as_py()
        else ""
    )
    return Section("Examples", [f"Under each picture: its score, and its text. {marks}"], parts)


def pictures(units: "Units", table: pa.Table, rows: np.ndarray, score: np.ndarray) -> dict[int, Picture | None]:
    """Samples with score and text, None for one that has no image any more. A shard is opened once, and one at a time."""
    shards = table["shard"].take(pa.array(rows)).to_pylist()
    found = dict[int, Picture | None]()
    for unit in range(len(units)):
        if mine := [int(row) for row, shard in zip(rows, shards, strict=True) if shard == units.name(unit)]:
            opened = units.open(unit)
            found |= {row: shown(opened, table, row, float(score[row])) for row in mine}
    return found


def shown(unit: "Safe", table: pa.Table, row: int, score: float) -> Picture | None:
    from modalities.data import Sample

    found = unit.read(table["index"][row].as_py())
    if not isinstance(found, Sample) or found.image is None:
        return None
    turns = found.extra.get("conversations") or []
    said = found.captions[0] if found.captions else " / ".join(str(turn.get("value", "")) for turn in turns)
    wrong = table["wrong"][row].as_py()
    mark = (wrong is None) if table["told"][row].as_py() else None
    return Picture(small(found.image), f"{score:.3f}: {said[:160]}", mark)


def small(image: "Image") -> "Image":
    copy = image.copy()
    copy.thumbnail((SIDE, SIDE))
    return copy


def refused(bad: pa.Table) -> Section:
    counts = bad["reason"].value_counts().to_pylist()
    rows = [
        (each["values"], f"{each['counts']:,}") for each in sorted(counts, key=lambda each: -each["counts"])[:SOURCES]
    ]
    return Section("What could not be read or scored", ["It is never kept."], [Grid(("reason", "samples"), rows)])
