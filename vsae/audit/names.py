"""What the concepts of an audit are called: the words whose CLIP embedding is nearest to the images, real and generated, that a concept is active on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vsae.audit_jobs import Audit as Job
from vsae.jobs import Extract, Model
from vsae.progress import track

if TYPE_CHECKING:
    from evals.blindspots_found import Audit

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


def concept_names(job: Job, found: "Audit", data: Mapping[str, str]) -> Mapping[int, Called]:
    """By concept; none without --names, and for concepts that are silent. data: by name. Raises ValueError and OSError.

    Generated images count, too: what a generator draws far too often is hardly to be seen in the real ones.
    """
    if job.names is None:
        return {}
    import numpy as np
    from scipy.sparse import vstack

    from evals import naming, naming_runs, vocabulary
    from evals.embedded import embedded
    from vsae import cli
    from vsae.activations import ActivationStore
    from vsae.reading import load_model

    words = vocabulary.read(job.words)
    spec = Model("clip", job.names, job.names_options, device=job.model.device)
    scores, embeddings = [], []
    for name, energies in {"real": found.real, **{each.name: each.energies for each in found.generators}}.items():
        out, about = job.out / FOLDER / name, (vocabulary.IMAGE,)
        cli.extract(Extract(data[name], spec, about, out, job.batch_size, max_bad_share=0.5, workers=job.workers))
        part = found.settings["part"] if name == "real" else (0.0, 1.0)
        rows, seen = embedded(ActivationStore.open(out).site(vocabulary.IMAGE), energies.keys, part, track=track)
        scores.append(energies.scores.tocsr()[rows])
        embeddings.append(seen)
    T = vocabulary.embed(words, load_model(spec), job.names_template, track)
    names, floor = naming_runs.by_images(vstack(scores).tocsc(), np.concatenate(embeddings), T, job.seed)
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
