"""Sets of answers under an edit at every token that is decoded, and what is left of the unedited ones."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from evals.steering import Seen
from vsae.report.results import Grid, Section
from vsae.steer.directions import says, text_of
from vsae.steer.images import BARE, named
from vsae.steer_jobs import Steer

if TYPE_CHECKING:
    from vsae.interventions import Intervention
    from vsae.steer.directions import Directions

SHOWN, LETTERS = 5, 240
"""Prompts on the page, and how much of each answer."""
LIKELIHOOD, WORDS, FRESH = "likelihood", "words", "not repeated"

Judge = Callable[[str, str], float]
"""(prompt, answer) -> how far the answer shows the concept, from 0 to 1."""


class Written:
    """The answers of one job, greedily decoded. judge: in place of looking for the concept's words in the answer."""

    what = "answers"

    def __init__(self, job: Steer, model: Any, judge: Judge | None = None) -> None:
        from modalities.data import Bad, open_dataset
        from modalities.data.first import First

        data = First(open_dataset(job.prompts), job.most)
        read = [data.read(at) for at in range(len(data))]
        self.job, self.model = job, model
        self.judge: Judge = judge or (lambda prompt, answer: float(says(answer, job.concept)))
        self.samples = [sample for sample in read if not isinstance(sample, Bad)]
        self.bad = {sample.key: sample.reason for sample in read if isinstance(sample, Bad)}
        if not self.samples:
            raise ValueError(f"{job.prompts} has no prompt that can be read: {next(iter(self.bad.values()))}.")
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.made: set[tuple[str, float]] = set()

    def bare(self) -> Seen:
        self.write(BARE)
        return self.compared(BARE)

    def seen(self, name: str, strength: float, site: str, edit: "Intervention") -> Seen:
        self.write(named(name, strength), site, edit)
        self.made.add((name, strength))
        return self.compared(named(name, strength))

    def write(self, folder: str, site: str = "", edit: "Intervention | None" = None) -> None:
        """The batches that are not there yet, each written whole."""
        from vsae.files import read_json, write_json
        from vsae.progress import track

        if folder in self.rows:
            return
        out = self.job.out / "answers" / folder
        out.mkdir(parents=True, exist_ok=True)
        starts, found = range(0, len(self.samples), self.job.batch_size), list[dict[str, Any]]()
        for start in track(starts, f"write {folder}", len(starts)):
            path = out / f"{start:08d}.json"
            if not path.is_file():
                write_json(path, self.answers(self.samples[start : start + self.job.batch_size], site, edit))
            found += read_json(path)
        self.rows[folder] = found

    def answers(self, samples: Sequence[Any], site: str, edit: "Intervention | None") -> list[dict[str, Any]]:
        batch = self.model.prepare(samples)
        options = {"max_new_tokens": self.job.tokens, "do_sample": False}
        if edit is None:
            ids = self.model.generate(batch, **options)
        else:
            with self.model.edit(site, edit):
                ids = self.model.generate(batch, **options)
        ids = ids[:, batch["input_ids"].shape[1] :].cpu()
        there = until_end(ids, self.ends())
        chance = likelihood(self.model, batch, ids, there)
        found = []
        for at, sample in enumerate(samples):
            own = ids[at][there[at]]
            said = self.model.tokenizer.decode(own, skip_special_tokens=True).strip()
            row = {"key": sample.key, "prompt": text_of(self.job, sample), "answer": said, "ids": own.tolist()}
            found.append(row | {LIKELIHOOD: chance[at]})
        return found

    def ends(self) -> list[int]:
        ends = self.model.module.generation_config.eos_token_id
        return [] if ends is None else [int(end) for end in (ends if isinstance(ends, list) else [ends])]

    def compared(self, folder: str) -> Seen:
        rows, bare = self.rows[folder], self.rows[BARE]
        kept = {
            LIKELIHOOD: np.array([np.nan if row[LIKELIHOOD] is None else row[LIKELIHOOD] for row in rows]),
            FRESH: np.array([fresh(row["ids"]) for row in rows]),
            WORDS: np.array([overlap(a["answer"], b["answer"]) for a, b in zip(rows, bare, strict=True)]),
        }
        return Seen(np.array([self.judge(row["prompt"], row["answer"]) for row in rows], float), kept)

    def floors(self) -> dict[str, float | None]:
        """likelihood: of a token drawn evenly from the vocabulary. words: what answers to different prompts share."""
        said = [row["answer"] for row in self.rows[BARE]]
        pairs = [overlap(a, b) for i, a in enumerate(said) for j, b in enumerate(said) if i != j]
        vocabulary = len(self.model.tokenizer)
        return {LIKELIHOOD: 1 / vocabulary, FRESH: 0.0, WORDS: float(np.mean(pairs)) if pairs else None}

    def identical(self, name: str) -> tuple[int, int]:
        """(answers of strength 0 that are the bare ones, token by token, all of them)."""
        pairs = list(zip(self.rows[BARE], self.rows[named(name, 0.0)], strict=True))
        return sum(a["ids"] == b["ids"] for a, b in pairs), len(pairs)

    def about_bare(self) -> dict[str, Any]:
        same, all_of = self.identical("latents")
        return {"identical at strength 0": same, "answers": all_of, "unreadable prompts": self.bad}

    def sections(self, found: "Directions") -> list[Section]:
        """The sheet of answers; all of them are in answers.parquet."""
        self.save(found)
        sets = self.sets(found)
        prompts = [short(f"{row['key']}: {row['prompt']}") for row in self.rows[BARE][:SHOWN]]
        grids = [
            Grid(
                ("direction, strength", prompt),
                [(label, short(self.rows[folder][at]["answer"])) for label, folder in sets],
                strong=[0],
                prose=True,
            )
            for at, prompt in enumerate(prompts)
        ]
        same, all_of = self.identical("latents")
        words = [
            f"The first {len(prompts)} of {len(self.samples)} prompts, decoded greedily; answers.parquet has all of them in full.",
            f"Strength 0: {same} of {all_of} answers are those without an edit, token by token.",
            *([f"{len(self.bad)} prompts could not be read."] if self.bad else []),
        ]
        return [Section("Answers", words, grids)]

    def sets(self, found: "Directions") -> list[tuple[str, str]]:
        made = sorted(self.made, key=found.place)
        return [("no edit", BARE), *((f"{name}, {s:g}", named(name, s)) for name, s in made)]

    def save(self, found: "Directions") -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from vsae.files import write_whole

        table = pa.Table.from_pylist(
            [
                {"set": label} | {name: row[name] for name in ("key", "prompt", "answer", LIKELIHOOD)}
                for label, folder in self.sets(found)
                for row in self.rows[folder]
            ]
        )
        write_whole(self.job.out / "answers.parquet", lambda path: pq.write_table(table, path))

    def limits(self) -> list[str]:
        return [
            f"An answer shows the concept when it says {' or '.join(self.job.concept)}: not whether it makes sense.",
            f"{LIKELIHOOD}: geometric mean of the probabilities that the unedited model gives the answer's tokens. {FRESH}: share of its three-token sequences that are not there already. "
            f"{WORDS}: share of words in common with the unedited answer (Jaccard). All of them are cheap stand-ins for a reader.",
            "Answers are decoded greedily: one answer a prompt.",
        ]


def until_end(ids: Tensor, ends: Sequence[int]) -> Tensor:
    """Which tokens are the answer's: all up to the first end mark, with it."""
    over = torch.isin(ids, torch.tensor(list(ends), dtype=ids.dtype)).long().cumsum(1)
    return torch.cat([torch.zeros_like(over[:, :1]), over[:, :-1]], 1) == 0


@torch.no_grad()
def likelihood(model: Any, batch: dict[str, Any], ids: Tensor, there: Tensor) -> list[float | None]:
    """Geometric mean of the probabilities of each answer's tokens, from the model as it is; None for an empty answer."""
    prompt = batch["input_ids"].cpu()
    mask = torch.cat([batch["attention_mask"].cpu().long(), there.long()], 1)
    whole = torch.cat([prompt, ids], 1)
    given = {name: value for name, value in model.inputs(batch).items() if name != "token_type_ids"}
    given |= {"input_ids": whole, "attention_mask": mask}
    if "position_ids" in given:
        given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model.run(given).logits[:, prompt.shape[1] - 1 : -1].double().log_softmax(-1).cpu()
    own = logits.gather(2, ids[..., None])[..., 0]
    return [float(row[of].mean().exp()) if of.any() else None for row, of in zip(own, there, strict=True)]


def fresh(ids: Sequence[int]) -> float:
    """Share of the sequences of three tokens that have not come before; 1 where there are none."""
    threes = list(zip(ids, ids[1:], ids[2:], strict=False))
    return len(set(threes)) / len(threes) if threes else 1.0


def overlap(a: str, b: str) -> float:
    """Jaccard index of the words; 1 for two answers without any."""
    one, two = (set(re.findall(r"\w+", text.lower())) for text in (a, b))
    return len(one & two) / len(one | two) if one | two else 1.0


def short(text: str) -> str:
    return text if len(text) <= LETTERS else text[: LETTERS - 3] + "..."
