"""What the concepts of an audit are called: the words whose CLIP embedding is nearest to the images, real and generated, that a concept is active on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vsae.audit_jobs import Audit as Job
from vsae.jobs import Extract, Model
from vsae.progress import track

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float
    from scipy.sparse import csr_array

    from evals.blindspots_found import Audit
    from vsae.activations.store import SiteReader
    from vsae.run import Run

FOLDER = "names"
"""CLIP's embeddings of each set of images, a store each, below OUT."""
UNNAMED = "no CLIP was given to name concepts (--names)"


@dataclass(frozen=True)
class Called:
    """A concept's name."""

    name: str
    cosine: float
    margin: float
    """Cosine of the first name less that of the second."""
    above_chance: bool
    """The cosine exceeds that of 95 % of the names of random images."""
    others: tuple[str, ...]

    @property
    def shown(self) -> str:
        """With a question mark where it is not above chance."""
        return self.name + ("" if self.above_chance else "?")


def concept_names(
    job: Job, run: "Run", sites: "Mapping[str, SiteReader]", found: "Audit", data: Mapping[str, str]
) -> Mapping[int, Called]:
    """By concept; none without --names, and for concepts that are silent. sites and data: by name, "real" first. Raises ValueError and OSError.

    Generated images count, too: what a generator draws far too often is hardly to be seen in the real ones.
    """
    if job.names is None:
        return {}
    import numpy as np
    from scipy.sparse import vstack

    from evals import naming, naming_runs, vocabulary
    from vsae import cli
    from vsae.activations import ActivationStore
    from vsae.reading import load_model

    words = vocabulary.read(job.words)
    spec = Model("clip", job.names, job.names_options, device=job.model.device)
    parts = []
    for name, site in sites.items():
        out, about = job.out / FOLDER / name, (vocabulary.IMAGE,)
        cli.extract(Extract(data[name], spec, about, out, job.batch_size, max_bad_share=0.5, workers=job.workers))
        part = found.settings["part"] if name == "real" else (0.0, 1.0)
        parts.append(beside(run, site, ActivationStore.open(out).site(vocabulary.IMAGE), found, part))
    scores, embeddings = vstack([each[0] for each in parts]).tocsc(), np.concatenate([each[1] for each in parts])
    T = vocabulary.embed(words, load_model(spec), job.names_template, track)
    names, floor = naming_runs.by_images(scores, embeddings, T, job.seed)
    high, said = naming.bar(floor), [each[0] for each in words]
    return {
        concept: Called(
            said[names.words[at, 0]],
            float(names.cosine[at, 0]),
            float(names.margin[at]),
            bool(names.cosine[at, 0] > high),
            tuple(said[word] for word in names.words[at, 1:].tolist()),
        )
        for at, concept in enumerate(names.latent.tolist())
    }


def beside(
    run: "Run", site: "SiteReader", encoder: "SiteReader", found: "Audit", part: tuple[float, float]
) -> "tuple[csr_array, Float[np.ndarray, 'images d']]":
    """Of the images of one set: energies [images, concepts], and CLIP's embeddings."""
    import numpy as np

    from evals.blindspots import by_concept
    from evals.embedded import embedded
    from evals.pooling import candidates, pool
    from vsae.activations import Select

    codec = candidates(run.sae)
    batches = site.sequential(4096, Select(found.settings["kinds"], part, run.skip))
    codes = pool(codec, track(batches, "names", -(-site.n_rows // 4096)), "mean")
    assert not isinstance(codes.scores, np.ndarray)
    rows, embeddings = embedded(encoder, [site.keys[at] for at in codes.samples.tolist()], part, track=track)
    return by_concept(codes.scores, found.concept).tocsr()[rows], embeddings
