"""Where single latents are strongest: the samples of a site, dark where the latent is silent."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from vsae.activations import Select
from vsae.activations.store import SiteReader
from vsae.report.latents import Encodes, Plan, gather
from vsae.report.results import spotlight

if TYPE_CHECKING:
    from PIL.Image import Image

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


class Lit:
    """Reads the site twice, once and for all latents. `top`: samples a latent."""

    def __init__(self, sae: Encodes, site: SiteReader, select: Select, top: int, track: Track) -> None:
        self.site, self.rows = site, len(site.samples)

        def batches(what: str) -> Iterable[Any]:
            return track(site.sequential(4096, select), what, -(-site.n_rows // 4096))

        self.seen = gather(sae, batches, self.rows, site.grid, site.kind_names, Plan(top, 0, cofiring_rows=1))

    def samples(self, latent: int) -> list[int]:
        """Rows of the site's table of samples, the strongest first."""
        return self.seen.top.sample[self.seen.top.of(latent)].tolist()

    def light(self, latent: int, sample: int, image: "Image") -> "Image":
        """The picture of one of those samples, lit where the latent speaks; as it is where the tokens have no grid."""
        if self.site.grid is None:
            return image
        cells = self.seen.paint.of(latent * self.rows + sample)
        return spotlight(image, self.seen.paint.cell[cells], self.seen.paint.value[cells], self.site.grid)
