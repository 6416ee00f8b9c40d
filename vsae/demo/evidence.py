"""The demo's pictures: scenes, what is true of them, and where latents are strongest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vsae.files import read_json
from vsae.progress import track
from vsae.report.results import Picture

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
    from vsae.report.lit import Lit

    loaded, site = opened(here / "runs" / run, here / "store")
    border = loaded.fingerprint["select"]["part"][1]
    select = Select(tuple(loaded.fingerprint["select"]["kinds"]), ((border + 1) / 2, 1.0), loaded.skip)
    seen = Lit(loaded.sae, site, select, TOP, track)

    def lit(latent: int, sample: int, attribute: str) -> Picture:
        image, caption = world.picture(site.keys[sample])
        return Picture(seen.light(latent, sample, image), caption, world.has(site.keys[sample], attribute))

    return {
        one["name"]: [lit(one["latent"], sample, one["name"]) for sample in seen.samples(one["latent"])]
        for one in found
    }
