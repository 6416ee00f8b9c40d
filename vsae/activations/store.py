"""Open a finished store and read a site of it: in order, by row, or its moments."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Int

from vsae.activations.manifest import SAMPLES, check_files, part_name, read_manifest
from vsae.activations.moments import Moments, Sums
from vsae.activations.select import Select
from vsae.activations.shard import DTYPES, Columns, open_shard
from vsae.activations.source import Batch
from vsae.files import digest

if TYPE_CHECKING:
    from vsae.activations.pairs import PairSource


class ActivationStore:
    """A finished store: one `SiteReader` a site, one table of samples."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | Path, verify: bool = False) -> "ActivationStore":
        """Raises FileNotFoundError or ValueError naming what is missing, truncated, stray or, with `verify` (reads everything), altered."""
        manifest = read_manifest(Path(path))
        check_files(Path(path), manifest, verify)
        return cls(Path(path), manifest)

    @property
    def sites(self) -> list[str]:
        return sorted(self.manifest["sites"])

    @cached_property
    def samples(self) -> pa.Table:
        """key, path, caption, label, width, height; row i is sample i."""
        return pq.read_table(self.path / SAMPLES)

    @cached_property
    def digest(self) -> str:
        return digest(self.manifest)

    def site(self, name: str | None = None) -> "SiteReader":
        """Reader of one site; the name may be left out when there is only one. Raises ValueError listing the sites."""
        if name is None and len(self.sites) == 1:
            name = self.sites[0]
        name = name if name is None else name.removesuffix(":output")
        if name not in self.sites:
            problem = f"has no site {name!r}" if name is not None else "holds several sites"
            raise ValueError(f"{self.path} {problem}: choose from {', '.join(self.sites)}.")
        return SiteReader(self, name)

    def pairs(self, first: str, second: str, **options: Any) -> "PairSource":
        """Two sites of the same samples, read together: see `PairSource` for the options and what it raises."""
        from vsae.activations.pairs import PairSource

        return PairSource(self.site(first), self.site(second), **options)


class SiteReader:
    """The rows of one site, in the order they were written: sample after sample, token after token."""

    def __init__(self, store: ActivationStore, name: str) -> None:
        self.store = store
        self.name = name
        self.entry: dict[str, Any] = store.manifest["sites"][name]
        self.d_model: int = self.entry["d_model"]
        self.dtype: torch.dtype = DTYPES[store.manifest["dtype"]]
        self.kind_names: tuple[str, ...] = tuple(store.manifest["kind_names"])
        self.n_rows: int = self.entry["rows"]
        self.edges: Int[np.ndarray, "shards_and_one"] = np.cumsum(
            [0] + [shard["rows"] for shard in self.entry["shards"]]
        )

    @property
    def grid(self) -> tuple[int, int] | None:
        """(rows, columns) of the patch tokens; None where there is none, or it varies."""
        return tuple(self.entry["grid"]) if self.entry["grid"] else None

    @property
    def tokens(self) -> int | None:
        """Stored tokens a sample; None where it varies."""
        return self.entry["tokens"]

    @property
    def samples(self) -> pa.Table:
        return self.store.samples

    @cached_property
    def keys(self) -> list[str]:
        return self.samples.column("key").to_pylist()

    @property
    def fingerprint(self) -> dict[str, Any]:
        manifest, path = self.store.manifest, self.entry["path"]
        found = {name: manifest[name] for name in ("model", "preprocessing", "data")}
        name, slash, own = path.partition("/")
        if slash and name in (others := manifest["job"]["request"].get("more", {})):
            # so an SAE fits the site whether its model was read alone or with others
            found |= {"model": others[name], "preprocessing": others[name].get("preprocessing", {})}
            path = own
        request = manifest["job"]["request"]
        said = [
            name for name in ("pool", "gradient") if name in request and (name == "pool" or path.endswith(":gradient"))
        ]
        return (
            found
            | {name: request[name] for name in said}
            | {"site": path, "side": self.entry["side"], "store": self.store.digest}
        )

    def stats(self, kinds: Sequence[str] | None = None) -> Moments:
        """Moments of all rows of these kinds (None: all but padding), from the manifest: no row is read."""
        mask = Select(tuple(kinds) if kinds is not None else None).kind_mask(self.kind_names)
        total = Sums.zero(self.d_model)
        for name, moments in self.entry["moments"].items():
            if mask[self.kind_names.index(name)]:
                n = moments["count"]
                total = total + Sums(n, n * np.array(moments["mean"]), n * np.array(moments["second"]))
        return total.moments()

    def read(self, start: int, stop: int) -> Batch:
        """Rows start to stop, of all kinds. Raises ValueError outside 0 to `n_rows`."""
        if not 0 <= start <= stop <= self.n_rows:
            raise ValueError(f"rows {start} to {stop} do not exist: {self.name} has rows 0 to {self.n_rows}.")
        return self.gather(np.arange(start, stop))

    def gather(self, rows: Int[np.ndarray, "rows"]) -> Batch:
        """The given rows, which must ascend."""
        columns = Columns.empty(len(rows), self.d_model, self.dtype)
        self.scatter(rows, columns, np.arange(len(rows)))
        return columns.batch(self.dtype)

    def scatter(self, rows: Int[np.ndarray, "rows"], out: Columns, slots: Int[np.ndarray, "rows"]) -> None:
        """Put row rows[i] (ascending) at slots[i] of `out`. Safe to call from several threads for different slots."""
        cuts = np.searchsorted(rows, self.edges)
        for part in np.flatnonzero(np.diff(cuts)).tolist():
            mine = slice(cuts[part], cuts[part + 1])
            with open_shard(self.part_path(part), self.d_model, self.dtype) as shard:
                shard.scatter(rows[mine] - self.edges[part], out, slots[mine])

    def sequential(self, batch_size: int, select: Select | None = None) -> Iterator[Batch]:
        """The selected rows in order, in batches of `batch_size`; the last one is shorter."""
        waiting = np.empty(0, np.int64)
        for part in range(len(self.edges) - 1):
            found = self.edges[part] + np.flatnonzero(self.part_mask(part, select or Select()))
            waiting = np.concatenate([waiting, found])
            whole = len(waiting) - len(waiting) % batch_size if part < len(self.edges) - 2 else len(waiting)
            for start in range(0, whole, batch_size):
                yield self.gather(waiting[start : min(start + batch_size, whole)])
            waiting = waiting[whole:]

    def part_mask(self, part: int, select: Select) -> Bool[np.ndarray, "rows"]:
        """Which rows of a shard are selected."""
        n = self.entry["shards"][part]["rows"]
        if self.selects_all(select):
            return np.ones(n, bool)
        with open_shard(self.part_path(part), self.d_model, self.dtype) as shard:
            mask = select.kind_mask(self.kind_names)[shard.meta("kinds", 0, n)]
            samples = self.sample_mask(select)
            if select.skip:
                mask &= shard.meta("positions", 0, n) >= select.skip
            return mask if samples is None else mask & samples[shard.meta("samples", 0, n)]

    def sample_mask(self, select: Select) -> Bool[np.ndarray, "samples"] | None:
        """Which samples are of the part; None when all are."""
        if select.part == (0, 1):
            return None
        if select.part not in self._sample_masks:
            self._sample_masks[select.part] = select.sample_mask(self.keys)
        return self._sample_masks[select.part]

    @cached_property
    def _sample_masks(self) -> dict[tuple[float | int, float | int], Bool[np.ndarray, "samples"]]:
        return {}

    def selects_all(self, select: Select) -> bool:
        """True when no row needs to be looked at to know that it is selected."""
        mask = select.kind_mask(self.kind_names)
        return (
            select.part == (0, 1)
            and not select.skip
            and all(mask[self.kind_names.index(name)] for name in self.entry["moments"])
        )

    def part_path(self, part: int) -> Path:
        return self.store.path / self.entry["folder"] / part_name(int(part))
