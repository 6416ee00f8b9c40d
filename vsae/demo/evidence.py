"""The demo's pictures: scenes, what is true of them, and where latents are strongest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vsae.files import read_json
from vsae.progress import track
from vsae.report.results import Picture, spotlight

SIDE = 128
"""Of the stored pictures, pixels."""
TOP = 8


class World:
    """The scenes of a store, with their pictures and what is true of them."""

    def __init__(self, here: Path) -> None:
        from evals import attributes
        from modalities.data import open_dataset

        self.data = open_dataset(here / "scenes")
        self.place = {key: at for at, key in enumerate(self.data.keys)}
        self.truth = attributes.read(here / "scenes").with_parents(read_json(here / "eval" / "hierarchy.json"))
        self.row = {key: row for row, key in enumerate(self.truth.keys)}
        self.names = {name: at for at, name in enumerate(self.truth.names)}

    def picture(self, key: str) -> tuple[Any, str]:
        """Enlarged image and first caption."""
        from PIL import Image

        sample: Any = self.data.read(self.place[key])
        return sample.image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), sample.captions[0]

    def has(self, key: str, attribute: str) -> bool:
        return bool(self.truth.truth[self.row[key], self.names[attribute]])


def evidence(here: Path, world: World, run: str, found: Sequence[Mapping[str, Any]]) -> dict[str, list[Picture]]:
    """Attribute -> the scenes of the report split on which its latent is strongest, dark where it is silent."""
    from vsae.activations import Select
    from vsae.reading import opened
    from vsae.report.latents import Plan, gather

    loaded, site = opened(here / "runs" / run, here / "store")
    border = loaded.fingerprint["select"]["part"][1]
    select = Select(tuple(loaded.fingerprint["select"]["kinds"]), ((border + 1) / 2, 1.0))

    def batches(what: str) -> Any:
        return track(site.sequential(4096, select), what, -(-site.n_rows // 4096))

    rows = len(site.samples)
    seen = gather(loaded.sae, batches, rows, site.grid, site.kind_names, Plan(TOP, 0, cofiring_rows=1))

    def lit(latent: int, sample: int, attribute: str) -> Picture:
        cells = seen.paint.of(latent * rows + sample)
        image, caption = world.picture(site.keys[sample])
        assert site.grid is not None
        image = spotlight(image, seen.paint.cell[cells], seen.paint.value[cells], site.grid)
        return Picture(image, caption, world.has(site.keys[sample], attribute))

    return {
        one["name"]: [
            lit(one["latent"], sample, one["name"]) for sample in seen.top.sample[seen.top.of(one["latent"])].tolist()
        ]
        for one in found
    }
