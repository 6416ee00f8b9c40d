"""Sets of pictures under an edit, and what a CLIP sees in them."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from evals.steering import Seen, shared
from vsae.report.results import Chart, Picture, Section
from vsae.steer_jobs import Steer

if TYPE_CHECKING:
    from PIL.Image import Image

    from vsae.interventions import Intervention
    from vsae.steer.directions import Directions

COLUMNS, LOOKED = 10, 64
"""Prompts on the sheet; pictures that the judge sees at once."""
BARE, LIKENESS = "bare", "image"
"""The set without an edit; and the name of how alike its images are to others, by the judge's cosine."""


class Pictures:
    """Sets of pictures of the same prompts and seeds, below OUT/images."""

    def __init__(self, job: Steer, painter: Any) -> None:
        from modalities.data import open_dataset
        from modalities.data.first import First

        self.job, self.painter = job, painter
        self.prompts = First(open_dataset(job.prompts), job.most)

    def draw(self, folder: str, note: Mapping[str, Any]) -> None:
        """What is not there yet. Raises ValueError where the bare set has nothing that can be looked at."""
        from modalities.generate import generate
        from vsae.audit import bar

        made = generate(
            self.painter,
            self.prompts,
            self.job.out / "images" / folder,
            seed=self.job.seed,
            batch_size=self.job.batch_size,
            note=note,
            progress=bar(f"draw {folder}"),
            num_inference_steps=self.job.steps,
            guidance_scale=self.job.guidance,
        )
        if folder == BARE and not made.images:
            bad = made.bad[0]
            raise ValueError(
                f"{self.job.model.name} drew nothing that can be looked at, even without an edit: {bad.key} {bad.reason}."
            )

    def edited(self, folder: str, site: str, edit: "Intervention", note: Mapping[str, Any]) -> None:
        with self.painter.edit(site, edit):
            self.draw(folder, note)

    def all_of(self, folder: str) -> "dict[int, Image]":
        """Pictures by prompt."""
        return {at: image for at in range(len(self.prompts)) if (image := self.picture(folder, at)) is not None}

    def picture(self, folder: str, prompt: int) -> "Image | None":
        from PIL import Image

        path = self.job.out / "images" / folder / "images" / f"{prompt:08d}.png"
        if not path.is_file():
            return None
        with Image.open(path) as image:
            return image.convert("RGB")

    def caption(self, prompt: int) -> str:
        from modalities.data import Bad
        from modalities.diffusion import caption_of

        sample = self.prompts.read(prompt)
        return sample.key if isinstance(sample, Bad) or not sample.captions else caption_of(sample)

    def lost(self, folder: str) -> dict[str, str]:
        """Prompts whose picture came out unusable, and how."""
        found = rows(self.job.out / "images" / folder)
        return {key: row["bad"] for key, row in found.items() if row["bad"]}


class Drawn(Pictures):
    """The pictures of one concept."""

    what = "images"

    def __init__(self, job: Steer, painter: Any) -> None:
        super().__init__(job, painter)
        self.groups = groups(job)
        self.target = target_of(job, self.groups)
        self.drawn: set[tuple[str, float]] = set()
        self._looks: dict[str, Look] = {}

    def bare(self) -> Seen:
        self.draw(BARE, {})
        return self.compared(BARE)

    def seen(self, name: str, strength: float, site: str, edit: "Intervention") -> Seen:
        folder = named(name, strength)
        self.edited(folder, site, edit, {"direction": name, "strength": strength})
        self.drawn.add((name, strength))
        return self.compared(folder)

    def compared(self, folder: str) -> Seen:
        """How far the concept is in the pictures of a set, and what of the bare set is still in them."""
        look, bare = self.look(folder), self.look(BARE)
        group, value = self.target
        kept = {
            of: np.where(
                np.isfinite(look.sees[of]).all(1) & np.isfinite(bare.sees[of]).all(1),
                (look.values(of) == bare.values(of)).astype(float),
                np.nan,
            )
            for of in self.groups
            if of != group
        }
        return Seen(look.sees[group][:, value], kept | {LIKENESS: (look.embedding * bare.embedding).sum(1)})

    def floors(self) -> dict[str, float | None]:
        """What two pictures of different prompts share without an edit."""
        bare, found = self.look(BARE), dict[str, float | None]()
        for of in self.groups:
            if of != self.target[0]:
                found[of] = shared(bare.values(of)[np.isfinite(bare.sees[of]).all(1)])
        found[LIKENESS] = others(bare.embedding)
        return found

    def look(self, folder: str) -> "Look":
        if folder not in self._looks:
            self._looks[folder] = self.judged(folder)
        return self._looks[folder]

    def judged(self, folder: str) -> "Look":
        """NaN for prompts without a picture."""
        n, pictures = len(self.prompts), self.all_of(folder)
        sees = {of: np.full((n, len(values)), np.nan) for of, values in self.groups.items()}
        embedding = np.full((n, self.judge.d), np.nan)
        order = list(pictures)
        for start in range(0, len(order), LOOKED):
            part = order[start : start + LOOKED]
            images = [pictures[at] for at in part]
            embedding[part] = self.judge.images(images)
            for of, values in self.groups.items():
                sees[of][part] = self.judge.chances(images, [self.job.phrase.format(value) for value in values])
        return Look(sees, embedding)

    @cached_property
    def judge(self) -> "Judge":
        return Judge(str(self.job.judge))

    def about_bare(self) -> dict[str, Any]:
        """For result.json: that strength 0 changes nothing, and pictures that came out unusable."""
        same, all_of = self.identical("latents")
        return {"identical at strength 0": same, "pictures": all_of, "lost": self.lost(BARE)}

    def sections(self, found: "Directions") -> list[Section]:
        """The contact sheet, which is sheet.png too."""
        from vsae.files import write_whole
        from vsae.steer.sheet import sheet

        captions = [self.caption(at) for at in range(min(COLUMNS, len(self.prompts)))]
        sets = [
            ("no edit", BARE),
            *((f"{name}, {s:g}", named(name, s)) for name, s in sorted(self.drawn, key=found.place)),
        ]
        lines = [(label, [self.picture(folder, at) for at in range(len(captions))]) for label, folder in sets]
        image = sheet(lines, captions)
        write_whole(self.job.out / "sheet.png", lambda path: image.save(path, "PNG"))
        same, all_of = self.identical("latents")
        words = [
            f"The first {len(captions)} of {len(self.prompts)} prompts, the same seed in every row.",
            f"Strength 0: {same} of {all_of} pictures are those without an edit, to the bit.",
        ]
        for label, folder in sets:
            if lost := self.lost(folder):
                key, why = next(iter(lost.items()))
                words.append(f"{label}: {len(lost)} of {len(self.prompts)} pictures came out unusable ({key}: {why}).")
        return [
            Section("Pictures", words, [Chart(Picture(image, "prompts in columns, directions and strengths in rows"))])
        ]

    def limits(self) -> list[str]:
        read = "; ".join(f"{name}: {', '.join(values)}" for name, values in self.groups.items())
        return [
            f"What is in a picture is what {Path(str(self.job.judge)).name} says, zero-shot among the values it was given ({read}), and nothing else.",
        ]

    def identical(self, name: str) -> tuple[int, int]:
        """(pictures of strength 0 that are the bare ones to the bit, all of them)."""
        folders = [self.job.out / "images" / each / "images" for each in (BARE, named(name, 0.0))]
        files = sorted({path.name for folder in folders for path in folder.iterdir()})
        same = [all((f / file).is_file() for f in folders) and one_content(folders, file) for file in files]
        return sum(same), len(files)


class Look:
    """What the judge sees: probabilities of each group's values, and unit embeddings."""

    def __init__(
        self, sees: dict[str, Float[np.ndarray, "prompts values"]], embedding: Float[np.ndarray, "prompts d"]
    ) -> None:
        self.sees, self.embedding = sees, embedding

    def values(self, of: str) -> np.ndarray:
        """The likeliest value of each picture; 0 where there is none, which nobody may count."""
        return np.nan_to_num(self.sees[of]).argmax(1)


class Judge:
    """A CLIP."""

    def __init__(self, name: str) -> None:
        from vsae.jobs import Model
        from vsae.reading import load_model

        self.clip = load_model(Model("clip", name))
        self.d = int(self.clip.sites()["image_embedding"][-1])

    def images(self, images: "Sequence[Image]") -> Float[np.ndarray, "images d"]:
        """Embeddings of length 1."""
        return self._unit(self.clip.prepare(list(images)), "image_embedding")

    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "texts d"]:
        """Embeddings of length 1."""
        return self._unit(self.clip.texts(texts), "text_embedding")

    def chances(self, images: "Sequence[Image]", texts: Sequence[str]) -> Float[np.ndarray, "images texts"]:
        """Zero-shot: softmax of the CLIP's own logits over the texts."""
        batch = self.clip.prepare(list(images)) | self.clip.texts(texts)
        return self.clip.logits(batch).double().softmax(1).cpu().numpy()

    def _unit(self, batch: dict[str, Any], site: str) -> np.ndarray:
        found = self.clip.activations(batch, [site])[site].values[:, 0].double()
        return (found / found.norm(dim=1, keepdim=True)).cpu().numpy()


def others(embedding: Float[np.ndarray, "prompts d"]) -> float | None:
    """Mean cosine of the pictures of two different prompts; None for fewer than two. Unit rows, NaN for prompts without a picture."""
    e = embedding[np.isfinite(embedding).all(1)]
    n = len(e)
    return float((np.square(e.sum(0)).sum() - n) / (n * (n - 1))) if n > 1 else None


def groups(job: Steer) -> dict[str, tuple[str, ...]]:
    """Attribute -> its values. Raises ValueError where they are not two at least, or none holds the concept."""
    found = {}
    for name, values in job.attributes.items():
        listed = values.split(",") if isinstance(values, str) else [str(value) for value in values]
        found[str(name)] = tuple(dict.fromkeys(value.strip() for value in listed if value.strip()))
        if len(found[str(name)]) < 2:
            raise ValueError(f"attribute {name} has {len(found[str(name)])} value: name two or more to tell apart.")
    target_of(job, found)
    if job.phrase.count("{}") != 1:
        raise ValueError(f"--phrase is {job.phrase!r}: write {{}} once, where the value goes.")
    return found


def target_of(job: Steer, found: Mapping[str, tuple[str, ...]]) -> tuple[str, int]:
    """(attribute, place of the concept among its values)."""
    for name, values in found.items():
        if job.concept[0] in values:
            return name, values.index(job.concept[0])
    said = ", ".join(f"{name}={','.join(values)}" for name, values in found.items()) or "none"
    raise ValueError(
        f"no attribute has the value '{job.concept[0]}' (given: {said}): the judge must know it among others, as in --attributes colour=red,green."
    )


def named(name: str, strength: float) -> str:
    return f"{name}_{strength:g}"


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    import json

    return {row["key"]: row for row in map(json.loads, (folder / "images.jsonl").read_text("utf-8").splitlines())}


def one_content(folders: list[Path], file: str) -> bool:
    return (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()
