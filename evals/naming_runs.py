"""`vsae eval naming`: a run's latents by the words of a vocabulary, and where it is known what they stand for, how many of the names are right.

Latents are named on one half of the samples, and what they stand for is told on the other. Without a table of attributes all held-out samples name.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from rich.table import Table

from evals import naming, vocabulary
from evals.attributes import Attributes
from evals.embedded import embedded
from evals.figures import ACCENT, QUIET, save
from evals.label_reading import atoms_of
from evals.labelled import beside
from evals.naming import Names, Right
from evals.pooling import Pool, Pooled, Scores, candidates, pool
from evals.recovery_runs import parts
from evals.result import Estimate, Result, write_result
from evals.vocabulary import IMAGE, Words
from vsae.activations import Select, fingerprint
from vsae.activations.store import SiteReader
from vsae.files import write_whole
from vsae.run import Run

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
By = Literal["auto", "images", "atoms"]


class Named(NamedTuple):
    """Names, and those of what means nothing."""

    names: Names
    floor: Names


@dataclass(frozen=True)
class Found:
    """What the evaluation found."""

    names: Names
    floor: Names
    above: Estimate
    right: Right | None
    by: str
    words: tuple[str, ...]
    n_latents: int
    """Latents of the run: candidate n_latents + j is the negative side of latent j of a signed one."""
    candidates: int
    without_word: tuple[str, ...]
    """Attributes that the vocabulary has no word for."""
    images: int


def by_images(
    scores: Scores, embeddings: Float[np.ndarray, "images d"], words: Float[np.ndarray, "words d"], seed: int = 0
) -> Named:
    """Names of latents by the images that they are active on; the floor's latents are as active on other images."""
    other = np.random.default_rng([seed, 22]).permutation(len(embeddings))
    own, null = naming.means_of_images(scores, embeddings), naming.means_of_images(scores, embeddings[other])
    return Named(naming.name(*own, words), naming.name(*null, words))


def by_atoms(
    atoms: Float[np.ndarray, "latents d"],
    live: Int64[np.ndarray, "live"],
    embeddings: Float[np.ndarray, "images d"],
    words: Float[np.ndarray, "words d"],
    seed: int = 0,
) -> Named:
    """Names of live latents by the direction of their atoms; the floor's directions are differences of two random images."""
    null = naming.differences(embeddings, len(live), seed)
    return Named(naming.name(live, atoms[live], words), naming.name(live, null, words))


def evaluate(
    run: Run,
    site: SiteReader,
    encoder: SiteReader,
    model: Any,
    words: Words,
    out: Path,
    *,
    by: By = "auto",
    template: str = "{}",
    attributes: Attributes | None = None,
    pooling: Pool = "max",
    kinds: tuple[str, ...] | None = None,
    least: float = naming.LEAST_AP,
    resamples: int = 200,
    seed: int = 0,
    batch_size: int = 4096,
    track: Track = lambda items, what, n: items,
) -> Found:
    """Name a run's latents; write result.json, names.parquet and naming.png to `out`.

    encoder: CLIP's image embeddings of the same images; model: that CLIP, for its texts. Raises ValueError where they are not one model, where `by` is
    "atoms" and the SAE does not read these embeddings, and for an attribute table of tokens.
    """
    fingerprint.check(run.fingerprint, site.fingerprint)
    same_model(encoder, model)
    own = fingerprint.identity(run.fingerprint) == fingerprint.identity(encoder.fingerprint)
    if by == "atoms" and not own:
        raise ValueError(
            f"{run.path} does not read {encoder.store.path}'s {IMAGE}: only there do atoms and words share a space; name by images."
        )
    by = by if by != "auto" else "atoms" if own else "images"
    if attributes is not None and attributes.positions is not None:
        raise ValueError("the table of attributes is of tokens: names are of images, give one of samples.")
    kinds = kinds or run.kinds
    _, first, second = parts([run], site, site, None, None)
    if attributes is None:
        first = (first[0], 1.0)
    codec = candidates(run.sae)

    def read(part: tuple[float, float], what: str) -> Pooled:
        select = Select(kinds, part, run.skip)
        return pool(codec, track(site.sequential(batch_size, select), what, -(-site.n_rows // batch_size)), pooling)

    codes = read(first, "codes")
    keys = [site.keys[at] for at in codes.samples.tolist()]
    rows, embeddings = embedded(encoder, keys, first, batch_size, track)
    assert not isinstance(codes.scores, np.ndarray)
    scores = codes.scores.tocsr()[rows].tocsc()
    T = vocabulary.embed(words, model, template, track)
    if by == "atoms":
        live = np.flatnonzero(np.asarray(scores.maximum(0).sum(0)).ravel() > 0)
        names, floor = by_atoms(atoms_of(run), live, embeddings, T, seed)
    else:
        names, floor = by_images(scores, embeddings, T, seed)
    if not len(names.latent):
        raise ValueError(f"no latent of {run.path} is active on these {len(rows):,} images: there is nothing to name.")
    told, lost = None, list[str]()
    if attributes is not None:
        word_of = naming.words_of(attributes.names, words)
        lost = [name for name, at in zip(attributes.names, word_of.tolist(), strict=True) if at < 0]
        if len(lost) == len(attributes.names):
            raise ValueError(
                f"the vocabulary has a word for none of the attributes, such as {lost[0]!r}: add them to it."
            )
        truth, _ = beside(read(second, "what latents stand for"), site, attributes)
        told = naming.right(
            names, floor, *naming.known(truth.scores, truth.truth, word_of, least), resamples=resamples, seed=seed
        )
    found = Found(
        names,
        floor,
        naming.above_chance(names, floor, resamples, seed),
        told,
        by,
        tuple(each[0] for each in words),
        run.sae.n_latents,
        codec.n_latents,
        tuple(lost),
        len(rows),
    )
    splits = {"name": Select(kinds, first, run.skip).describe()}
    splits |= {"stand for": Select(kinds, second, run.skip).describe()} if attributes else {}
    details = {"by": by, "template": template, "pooling": pooling, "least": least}
    write_result(out, to_result(found, run, site, encoder, splits, kinds, seed, details))
    write_names(found, out / "names.parquet")
    draw(found, out / "naming.png")
    return found


def same_model(encoder: SiteReader, model: Any, site: str = IMAGE) -> None:
    """Raises ValueError where the words would be another model's than what is stored, the site of that name."""
    known = encoder.fingerprint
    if known["site"] != site:
        raise ValueError(f"{encoder.store.path} holds {known['site']}: this needs a CLIP's {site} (name its site).")
    if (weights := known["model"].get("weights")) != (ours := model.provenance.get("weights")):
        raise ValueError(
            f"{encoder.store.path} was embedded by weights {str(weights)[:8]}, but the words would be by {str(ours)[:8]}: give the same model."
        )


def to_result(
    found: Found,
    run: Run,
    site: SiteReader,
    encoder: SiteReader,
    splits: dict[str, Any],
    kinds: tuple[str, ...] | None,
    seed: int,
    details: dict[str, Any],
) -> Result:
    right = found.right if found.right is not None and found.right.first.value is not None else None
    headline = right.first if right else found.above
    numbers = {
        "above chance": found.above,
        "bar": naming.bar(found.floor),
        "mean cosine": Estimate(float(found.names.cosine[:, 0].mean()), float(found.floor.cosine[:, 0].mean())),
        "first name right": right and right.first,
        "among the first": right and right.among,
        "random names right": right and right.random_first,
        "attributes without a word": found.without_word,
    }
    return Result(
        metric="share of known latents whose first name is right" if right else "share of names above chance",
        value=headline.value,
        floor=headline.floor,
        interval=headline.interval,
        n={
            "images": found.images,
            "latents": found.candidates,
            "named": len(found.names.latent),
            "words": len(found.words),
            "known": len(right.latents) if right else 0,
        },
        seeds={"floor and bootstrap over latents": seed},
        splits=splits,
        normalisation=run.fingerprint["normalisation"]["mode"],
        token_kinds=list(kinds or site.kind_names),
        fingerprint={"sae": run.fingerprint, "store": site.fingerprint, "encoder": encoder.fingerprint},
        details=details | numbers,
    )


def rows_of(found: Found) -> list[dict[str, Any]]:
    """A row a named latent: its names with their cosines, and what it is known to stand for."""
    names, high = found.names, naming.bar(found.floor)
    meant = dict(zip(found.right.latents.tolist(), found.right.word.tolist(), strict=True)) if found.right else {}
    rows = []
    for at, candidate in enumerate(names.latent.tolist()):
        rows.append(
            {
                "latent": candidate % found.n_latents,
                "negative": candidate >= found.n_latents,
                "name": found.words[names.words[at, 0]],
                "cosine": float(names.cosine[at, 0]),
                "margin": float(names.margin[at]),
                "above_chance": bool(names.cosine[at, 0] > high),
                "names": [found.words[word] for word in names.words[at].tolist()],
                "cosines": names.cosine[at].tolist(),
                "stands_for": found.words[meant[candidate]] if candidate in meant else None,
            }
        )
    return rows


def write_names(found: Found, path: Path) -> None:
    """`rows_of` as a table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    schema = pa.schema(
        [
            ("latent", pa.int32()),
            ("negative", pa.bool_()),
            ("name", text),
            ("cosine", pa.float64()),
            ("margin", pa.float64()),
            ("above_chance", pa.bool_()),
            ("names", pa.list_(text)),
            ("cosines", pa.list_(pa.float64())),
            ("stands_for", text),
        ]
    )
    write_whole(path, lambda temporary: pq.write_table(pa.Table.from_pylist(rows_of(found), schema), temporary))


def table(found: Found) -> Table:
    shown = Table("names", "share", "95 % interval", "floor", "of")
    shown.title = f"Names of latents, by {found.by}, among {len(found.words):,} words"
    listed: list[tuple[str, Estimate, int]] = []
    if found.right is not None:
        n = len(found.right.latents)
        listed = [("first name right", found.right.first, n), ("right among the first five", found.right.among, n)]
    for name, each, n in [*listed, ("above chance", found.above, len(found.names.latent))]:
        interval = f"{each.interval[0]:.3f} to {each.interval[1]:.3f}" if each.interval else "-"
        value, floor = ("-" if number is None else f"{number:.3f}" for number in (each.value, each.floor))
        shown.add_row(name, value, interval, floor, f"{n:,} latents")
    shown.caption = "floor of right: names permuted among the latents whose meaning is known; of above chance: " + (
        "names of random images" if found.by == "images" else "names of differences of random images"
    )
    if found.without_word:
        shown.caption += f"; attributes without a word, left out: {len(found.without_word)}"
    return shown


def draw(found: Found, path: Path) -> Path:
    """Cosines of first names, and those of the floor."""

    def on(axes: Any) -> None:
        both = found.names.cosine[:, 0], found.floor.cosine[:, 0]
        edges = np.linspace(min(x.min() for x in both), max(x.max() for x in both) + 1e-9, 31)
        for values, name, color in ((both[1], "names of nothing (floor)", QUIET), (both[0], "latents", ACCENT)):
            axes.stairs(np.histogram(values, edges)[0], edges, color=color, label=name, fill=color == QUIET)
        axes.axvline(naming.bar(found.floor), color=QUIET, lw=1, ls="--")
        axes.set(xlabel="cosine of the first name", ylabel="latents")
        axes.legend(frameon=False, fontsize=8)

    return save(on, path)
