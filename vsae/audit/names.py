"""What the concepts of an audit are called: the words whose CLIP embedding is nearest to the real images that a concept is active on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vsae.audit_jobs import Audit as Job
from vsae.jobs import Extract, Model
from vsae.progress import track

if TYPE_CHECKING:
    from evals.blindspots_runs import Audit
    from vsae.activations.store import SiteReader
    from vsae.run import Run

STORE = "names"
"""The store of CLIP's embeddings, below OUT/stores."""
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


def concept_names(job: Job, run: "Run", real: "SiteReader", found: "Audit", data: str) -> Mapping[int, Called]:
    """By concept; none without --names, and for concepts that are silent on the real images. Raises ValueError and OSError."""
    if job.names is None:
        return {}
    import numpy as np

    from evals import naming, naming_runs, vocabulary
    from evals.blindspots import by_concept
    from evals.embedded import embedded
    from evals.pooling import BothSigns, pool
    from vsae import cli
    from vsae.activations import ActivationStore, Select
    from vsae.reading import load_model

    words = vocabulary.read(job.words)
    spec = Model("clip", job.names, job.names_options, device=job.model.device)
    out = job.out / "stores" / STORE
    cli.extract(Extract(data, spec, (vocabulary.IMAGE,), out, job.batch_size, max_bad_share=0.5, workers=job.workers))
    encoder = ActivationStore.open(out).site(vocabulary.IMAGE)
    codec = BothSigns(run.sae) if run.sae.capabilities.signed else run.sae
    kinds, part = found.settings["kinds"], found.settings["part"]
    codes = pool(
        codec, track(real.sequential(4096, Select(kinds, part, run.skip)), "names", -(-real.n_rows // 4096)), "mean"
    )
    assert not isinstance(codes.scores, np.ndarray)
    rows, embeddings = embedded(encoder, [real.keys[at] for at in codes.samples.tolist()], part, track=track)
    scores = by_concept(codes.scores, found.concept).tocsr()[rows].tocsc()
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
