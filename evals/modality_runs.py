"""`vsae eval modality`: which latents are of images, of texts, or of both, in a store whose samples have tokens of each; or of a run on two sites.

With another encoder's embeddings of the images and texts, also whether those that a latent likes are of one thing (evals.concept_similarity).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from rich.table import Table
from scipy.sparse import csr_array, vstack

from evals.concept_similarity import TOP, ConceptSimilarity, concept_similarity
from evals.embedded import embedded
from evals.figures import ACCENT, QUIET, save
from evals.modality import ALPHA, KINDS, RATE, Modality, Side, modality
from evals.reconstruction import Codec
from evals.result import Result, write_result
from vsae.activations import Batch, Select, fingerprint, whole_samples
from vsae.activations.store import SiteReader
from vsae.run import Run

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
IMAGE, TEXT = ("image", "patch"), ("text",)


@torch.inference_mode()
def side(codec: Codec, batches: Iterable[Batch]) -> tuple[Side, np.ndarray]:
    """Sums of each sample's codes, and which samples they are. Raises ValueError for no row."""
    totals, fired, tokens, samples = list[Any](), list[Any](), list[np.ndarray](), list[np.ndarray]()
    for batch in whole_samples(batches):
        code = codec.encode(batch.values.to(codec.atoms))
        ids, owner, sizes = np.unique(batch.samples.numpy(), return_inverse=True, return_counts=True)
        values = code.values.double().cpu().numpy()
        row, slot = np.nonzero(values)
        place = (owner[row], code.indices.cpu().numpy()[row, slot])
        shape = (len(ids), codec.n_latents)
        totals.append(csr_array((np.abs(values[row, slot]), place), shape=shape))
        fired.append(csr_array((np.ones(len(row), np.int64), place), shape=shape))
        tokens.append(sizes.astype(np.int64))
        samples.append(ids)
    if not samples:
        raise ValueError(
            "there is no token of one of the two modalities: name their kinds with --image-kinds and --text-kinds."
        )
    return Side(
        csr_array(vstack(totals, "csr")), csr_array(vstack(fired, "csr")), np.concatenate(tokens)
    ), np.concatenate(samples)


def matched(
    first: tuple[Side, np.ndarray], second: tuple[Side, np.ndarray]
) -> tuple[Side, Side, Int64[np.ndarray, "samples"]]:
    """Both sides of the samples that have both, in one order, and which samples those are."""
    common = np.intersect1d(first[1], second[1])
    found = []
    for of, samples in (first, second):
        at = np.searchsorted(samples, common)
        found.append(Side(csr_array(of.total[at]), csr_array(of.fired[at]), of.tokens[at]))
    return found[0], found[1], common


@dataclass(frozen=True)
class Shared:
    """What `evaluate` finds; `concepts` where there are embeddings."""

    modality: Modality
    concepts: ConceptSimilarity | None


def alike(
    sides: tuple[Side, Side],
    rows: list[dict[str, Any]],
    encoder: tuple[SiteReader, SiteReader],
    top: int,
    resamples: int,
    seed: int,
    batch_size: int,
    track: Track,
) -> ConceptSimilarity:
    """Of the samples that the encoder's store has an image and a text of. A latent likes what it activates for most, on the mean over tokens."""
    keys, place = [row["key"] for row in rows], {}
    for at, site in enumerate(encoder):
        own, x = embedded(site, keys, batch_size=batch_size, track=track)
        place[at] = dict(zip(own.tolist(), x, strict=True))
    both = np.array(sorted(place[0].keys() & place[1].keys()), np.int64)
    embeddings = [np.stack([place[at][row] for row in both.tolist()]) for at in (0, 1)]
    codes = [csr_array(side.total[both] / side.tokens[both, None]) for side in sides]
    texts = [rows[at]["caption"] or rows[at]["key"] for at in both.tolist()]
    return concept_similarity(*codes, *embeddings, said=texts, top=top, resamples=resamples, seed=seed)


def evaluate(
    run: Run,
    sites: tuple[SiteReader, SiteReader],
    out: Path,
    *,
    image_kinds: tuple[str, ...] = IMAGE,
    text_kinds: tuple[str, ...] = TEXT,
    encoder: tuple[SiteReader, SiteReader] | None = None,
    top: int = TOP,
    rate: float = RATE,
    alpha: float = ALPHA,
    resamples: int = 200,
    seed: int = 0,
    batch_size: int = 4096,
    track: Track = lambda items, what, n: items,
) -> Shared:
    """Measure a run on a site whose samples have tokens of both kinds (given twice), or a run of two sites on each of them; write result.json and modality.png.

    encoder: image and text embeddings of the same samples in one space, for Intra and Inter similarity by `top` images and texts a latent.
    Of a run's own training store only held-out samples are read. Raises ValueError.
    """
    paired = "joined" in run.fingerprint
    runs = [run.side(0), run.side(1)] if paired else [run, run]
    part = run.held_out(sites[0])
    sides = []
    for at, (each, site, wanted) in enumerate(zip(runs, sites, (image_kinds, text_kinds), strict=True)):
        fingerprint.check(each.fingerprint, site.fingerprint)
        kinds = None if paired else tuple(kind for kind in wanted if kind in site.kind_names)
        if kinds == ():
            raise ValueError(
                f"the store knows no token kind {' or '.join(wanted)}: it has {', '.join(site.kind_names)}."
            )
        batches = site.sequential(batch_size, Select(kinds, part, each.skip))
        sides.append(side(each.sae, track(batches, ("images", "texts")[at], -(-site.n_rows // batch_size))))
    *pair, common = matched(*sides)
    found = modality(*pair, rate=rate, alpha=alpha, resamples=resamples, seed=seed)
    concepts = None
    if encoder is not None:
        rows = sites[0].samples.take(common).to_pylist()
        concepts = alike((pair[0], pair[1]), rows, encoder, top, resamples, seed, batch_size, track)
    write_result(
        out,
        Result(
            metric="share of live latents that image and text share",
            value=found.shared.value,
            floor=found.shared.floor,
            interval=found.shared.interval,
            n={"samples": found.samples, "latents": len(found.score)},
            seeds={"re-pairing and bootstrap over latents": seed},
            splits={"report": Select(None, part, run.skip).describe()},
            normalisation=run.fingerprint["normalisation"]["mode"],
            token_kinds=[*image_kinds, *text_kinds],
            fingerprint={"sae": run.fingerprint, "stores": [site.fingerprint for site in sites]},
            details={"modality": found, "rate": rate, "alpha": alpha, "concepts": concepts},
        ),
    )
    draw(found, out / "modality.png")
    return Shared(found, concepts)


def concept_table(found: ConceptSimilarity) -> Table:
    shown = Table("similarity", "value", "95 % interval", "random lists")
    for name in ("intra", "inter", "difference"):
        each = getattr(found, name)
        low_high = f"{each.interval[0]:.3f} to {each.interval[1]:.3f}" if each.interval else "-"
        shown.add_row(name, f"{each.value:.3f}", low_high, f"{each.floor:.3f}")
    shown.title = f"Images and texts of {len(found.latents):,} latents ({found.left_out:,} have too few)"
    return shown


def table(found: Modality) -> Table:
    shown = Table("latents", "number", "share of live")
    live = sum(count for name, count in found.counts.items() if name != "dead")
    for name, count in found.counts.items():
        shown.add_row(name, f"{count:,}", "-" if name == "dead" or not live else f"{count / live:.1%}")
    floor = found.shared.floor
    shown.title = f"Modality of latents, {found.samples:,} pairs"
    shown.caption = f"shared after pairs were exchanged at random: {'-' if floor is None else f'{floor:.1%}'}"
    return shown


def draw(found: Modality, path: Path) -> Path:
    """Latents by modality score, the shared ones marked."""

    def on(axes: Any) -> None:
        edges = np.linspace(0, 1, 21)
        live = ~np.isnan(found.score)
        shared = found.kind == KINDS.index("shared")
        for name, which, color in (("all live", live, QUIET), ("shared", live & shared, ACCENT)):
            axes.stairs(
                np.histogram(found.score[which], edges)[0], edges, color=color, label=name, fill=name == "shared"
            )
        axes.set(xlabel="modality score (0: text only, 1: image only)", ylabel="latents")
        axes.legend(frameon=False)

    return save(on, path)
