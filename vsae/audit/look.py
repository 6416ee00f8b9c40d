"""The images of one set of an audit, lit where a latent speaks."""

from pathlib import Path
from typing import TYPE_CHECKING

from vsae.audit_jobs import Audit as Job
from vsae.progress import track
from vsae.report.results import Picture, Strip

if TYPE_CHECKING:
    from vsae.activations.store import SiteReader
    from vsae.run import Run

TOP = 8
"""Images of each latent."""


class Look:
    """Reads the set twice, once and for all latents; of a signed SAE, latent n_latents + j is the negative side of latent j."""

    def __init__(self, job: Job, run: "Run", site: "SiteReader", data: str) -> None:
        from evals.pooling import candidates
        from vsae.activations import Select
        from vsae.reading import pictures
        from vsae.report.lit import Lit

        self.site, self.picture = site, pictures(Path(site.store.path), data, site)
        kinds = ("patch",) if "patch" in site.entry["moments"] else None
        codec = candidates(run.sae)
        self.lit = Lit(codec, site, Select(kinds, run.held_out(site), run.skip), TOP, track)
        self.rows = {key: at for at, key in enumerate(site.keys)}

    def strip(self, latent: int, name: str) -> Strip:
        """Where the latent is strongest."""
        found = []
        for sample in self.lit.samples(latent):
            row = self.site.samples.slice(sample, 1).to_pylist()[0]
            if (image := self.picture(row)) is not None:
                found.append(Picture(self.lit.light(latent, sample, image), row["caption"] or row["key"]))
        return Strip(found, name)

    def of(self, key: str, words: str) -> Picture | None:
        """One image as it is."""
        if key not in self.rows:
            return None
        image = self.picture(self.site.samples.slice(self.rows[key], 1).to_pylist()[0])
        return None if image is None else Picture(image, words)
