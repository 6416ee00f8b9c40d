"""What a judge is shown of a run: its codes by sample, in an explaining and an asking half, and the pictures lit where a latent is active."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csc_array

from evals import explaining
from evals.embedded import embedded
from evals.explaining import Drawn
from evals.explaining_asked import Material, mark
from evals.pooling import candidates, pool
from evals.recovery_runs import parts
from vsae.activations import Select, fingerprint, whole_samples
from vsae.activations.select import shares_of
from vsae.activations.store import SiteReader
from vsae.report.latents import cells_of
from vsae.report.results import spotlight
from vsae.run import Run

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
Picture = Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Codes:
    """A run's codes of the samples that it was not trained on."""

    run: Run
    site: SiteReader
    codec: Any
    select: Select
    border: float
    """Samples whose hash is below it explain; the others are asked about."""
    scores: csc_array
    """[samples, candidates], maximum over tokens."""
    samples: np.ndarray
    """Row of the store's table of samples."""
    batch_size: int
    track: Track

    def draw(self, latents: int, shown: int, asked: int, seed: int, given: Mapping[int, str] | None) -> list[Drawn]:
        """Latents and samples; with `given`, among the latents that have an explanation. Raises ValueError."""
        first = shares_of([self.site.keys[at] for at in self.samples.tolist()]) < self.border
        among = None if given is None else set(given)
        return explaining.draw(self.scores, first, latents, shown, asked, seed, among)

    def material(
        self,
        drawn: Sequence[Drawn],
        picture: Picture | None,
        encoder: SiteReader | None,
        embed: Any,
        spans: Callable[[str], list[tuple[int, int]]] | None = None,
    ) -> Material:
        """Pictures (None: there are none to see), texts and embeddings of the drawn samples. Raises ValueError.

        spans: of the tokens that were read of a text; texts are then cut after the last one, and the active ones can be marked.
        """
        table = self.site.samples.to_pylist()
        keys = [table[at]["key"] for at in self.samples.tolist()]
        lit = self.cells(drawn) if picture is not None or spans is not None else {}
        E = None
        if encoder is not None:
            rows, found = embedded(encoder, keys, batch_size=self.batch_size, track=self.track)
            E = np.full((len(keys), encoder.d_model), np.nan)
            E[rows] = found
            asked = np.concatenate([np.concatenate([each.active, each.silent]) for each in drawn])
            if np.isnan(E[asked]).any():
                raise ValueError(
                    f"{encoder.store.path} lacks samples that are asked about: extract it from the same images."
                )
        grid = self.site.grid
        if picture is not None and grid is None:
            raise ValueError(
                f"{self.site.store.path} has no grid of patches to light: ask about captions (--captions)."
            )

        def seen(row: int) -> Any:
            assert picture is not None
            image = picture(table[self.samples[row]])
            if image is None:
                raise ValueError(f"the image of sample {keys[row]!r} cannot be read: give --data.")
            return image

        def light(row: int, latent: int, seed: int | None) -> Any:
            assert grid is not None
            cells, values = lit[row, latent]
            if seed is not None:
                free = np.setdiff1d(np.arange(grid[0] * grid[1]), cells)
                cells = np.random.default_rng([seed, latent]).permutation(free)[: len(cells)]
                values = values[: len(cells)]
            return spotlight(seen(row), cells.astype(np.int64), values, grid)

        def text(row: int) -> str:
            if not (said := table[self.samples[row]]["caption"]):
                raise ValueError(f"sample {keys[row]!r} has no caption to ask about.")
            return said[: max(end for _, end in spans(said))] if spans else said

        def marked(row: int, latent: int, seed: int | None) -> str:
            assert spans is not None
            whole, (cells, _) = table[self.samples[row]]["caption"], lit[row, latent]
            where = spans(whole)
            if seed is not None:
                words = [at for at, (begin, end) in enumerate(where) if whole[begin:end].strip()]
                free = np.setdiff1d(words, cells)
                cells = np.random.default_rng([seed, latent]).permutation(free)[: len(cells)]
            return mark(whole[: len(text(row))], where, cells.tolist())

        return Material(lambda row: keys[row], seen, light, text, embed, E, marked if spans else None)

    def cells(self, drawn: Sequence[Drawn]) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
        """(row, latent) -> cells and activations, of every active sample that was drawn for a latent."""
        place = {sample: row for row, sample in enumerate(self.samples.tolist())}
        wanted: dict[int, list[int]] = {}
        for each in drawn:
            for row in np.concatenate([each.shown, each.active]).tolist():
                wanted.setdefault(row, []).append(each.latent)
        found = {}
        batches = self.site.sequential(self.batch_size, self.select)
        like = self.codec.atoms.detach()
        for batch in whole_samples(self.track(batches, "pictures", -(-self.site.n_rows // self.batch_size))):
            ids = batch.samples.numpy()
            where = cells_of(batch, self.site.grid, self.site.kind_names)
            for sample in np.unique(ids).tolist():
                if (row := place.get(sample)) not in wanted:
                    continue
                tokens = np.flatnonzero(ids == sample)
                with torch.inference_mode():
                    dense = self.codec.encode(batch.values[tokens].to(like)).dense(self.codec.n_latents).cpu().numpy()
                for latent in wanted[row]:
                    active = dense[:, latent] > 0
                    found[row, latent] = where[tokens][active], dense[active, latent].astype(np.float32)
        return found

    def about(self) -> dict[str, Any]:
        """The common fields of result.json."""
        low, high = self.select.part
        return {
            "splits": {
                "explain": Select(self.select.kinds, (low, self.border), self.select.skip).describe(),
                "ask": Select(self.select.kinds, (self.border, high), self.select.skip).describe(),
            },
            "normalisation": self.run.fingerprint["normalisation"]["mode"],
            "token_kinds": list(self.select.kinds or self.site.kind_names),
            "fingerprint": {"sae": self.run.fingerprint, "store": self.site.fingerprint},
        }


def read(run: Run, site: SiteReader, kinds: tuple[str, ...] | None, batch_size: int, track: Track) -> Codes:
    """Pool a run's codes by sample. Raises ValueError where the run was trained on all of the store."""
    fingerprint.check(run.fingerprint, site.fingerprint)
    kinds = kinds or run.kinds
    _, first, second = parts([run], site, site, None, None)
    codec = candidates(run.sae)
    select = Select(kinds, (first[0], second[1]), run.skip)
    found = pool(codec, track(site.sequential(batch_size, select), "codes", -(-site.n_rows // batch_size)), "max")
    assert not isinstance(found.scores, np.ndarray)
    return Codes(run, site, codec, select, first[1], found.scores, found.samples, batch_size, track)


def read_explanations(path: Path, run: Run) -> dict[int, str]:
    """Candidate -> words, of names.parquet or {latent: words}. Raises FileNotFoundError and ValueError."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is no file: give names.parquet of vsae eval naming, or a .json of latent -> words."
        )
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        rows = pq.read_table(path).to_pylist()
        if not rows or not {"latent", "negative", "name"} <= set(rows[0]):
            raise ValueError(f"{path} is not a table of names as vsae eval naming writes it.")
        return {row["latent"] + row["negative"] * run.sae.n_latents: row["name"] for row in rows}
    try:
        content = json.loads(path.read_text("utf-8"))
        return {int(latent): str(words) for latent, words in content.items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not an object of latent -> words ({error}).") from error
