"""Explanations before a scripted judge whose answers are known, so that the counting is proven, and once before the microworld's LLaVA."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.sparse import csc_array
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

import modalities
from evals import explaining
from evals.explaining_asked import TILE, Material, sheet
from evals.explaining_runs import ask, table
from modalities import microworld
from modalities.judge import Asked, Judge
from vsae import cli, jobs
from vsae.activations import ActivationStore
from vsae.run import save_run

from .planted_store import run_of

COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}
N = 120
ABOUT = {"splits": {}, "normalisation": "none", "token_kinds": ["patch"], "fingerprint": {}}


def planted(seed=0):
    """Latent k is active on the images of colour k, a third each."""
    shown = np.random.default_rng(seed).permutation(np.arange(N) % 3)
    scores = np.eye(3)[shown] * np.random.default_rng(1).uniform(0.5, 2, (N, 1))
    drawn = explaining.draw(csc_array(scores), np.arange(N) < N // 2, 3, shown=4, asked=8)
    names = list(COLOURS)
    words = {k: name for k, name in enumerate(names)}

    def lit(row, latent, seed):
        return Image.new("RGB", (8, 8), (0, 0, 0) if seed is not None else COLOURS[names[shown[row]]])

    embeddings = np.eye(4)[shown]
    embed = lambda texts: np.eye(4)[[names.index(text) if text in names else 3 for text in texts]]  # noqa: E731
    picture = lambda row: Image.new("RGB", (8, 8), COLOURS[names[shown[row]]])  # noqa: E731
    material = Material(
        lambda row: f"k{row}", picture, lit, lambda row: f"a {names[shown[row]]} thing", embed, embeddings
    )
    return drawn, material, words, shown


class Knowing:
    """Says what is true of colours; `wrong(n)`: whether its n-th answer is turned over."""

    sees, provenance = True, {"name": "scripted"}

    def __init__(self, wrong=lambda n: False):
        self.wrong, self.n, self.said = wrong, 0, []

    def right(self, asked):
        if len(asked.options) == 2:
            if asked.image is None:
                return int(asked.prompt.split("\n")[0].split()[2] not in asked.prompt.split("\n")[1])
            colour = next((word for word in COLOURS if word in asked.prompt), None)
            return int(asked.image.getpixel((4, 4)) != COLOURS.get(colour))
        if asked.image is None:
            middle = [line.split()[2] for line in asked.prompt.split("\n")[1:]]
        else:
            middle = [asked.image.getpixel((TILE * i + TILE // 2, TILE // 2)) for i in range(5)]
        return min(range(5), key=lambda i: middle.count(middle[i]))

    def choose(self, asked, track=None):
        found = []
        for each in asked:
            answer = self.right(each)
            if self.wrong(self.n):
                answer = (answer + 1) % len(each.options)
            self.n += 1
            found.append(np.where(np.arange(len(each.options)) == answer, -0.1, -3.0))
        return found

    def say(self, prompt, image=None, tokens=24):
        if image is None:
            return prompt.split("\n")[1].split()[2]
        pixel = image.getpixel((TILE // 2, TILE // 2))
        return next(name for name, colour in COLOURS.items() if colour == pixel)


class Always(Knowing):
    def right(self, asked):
        return 0


def test_a_knowing_judge_is_right_and_its_null_is_at_the_floor(tmp_path):
    drawn, material, words, _ = planted()
    found = ask(drawn, material, Knowing(), tmp_path, given=words, about=ABOUT, resamples=20)
    for kind in ("detection", "fuzzing", "intruder", "embedding"):
        assert found.scores[kind].score.value == 1 and found.scores[kind].score.interval == (1, 1), kind
    assert found.scores["detection"].auroc.value == 1
    # of the null's questions: never shown where its own latent is active, and on silent images of the other's colour it says yes
    lean = [
        row
        for row in map(json.loads, (tmp_path / "asked.jsonl").read_text().splitlines())
        if row["kind"] == "detection"
    ]
    said = {}
    for row in lean:
        said.setdefault(row["latent"], []).append(
            (row["right"] == "yes", row["null_log_p"][0] > row["null_log_p"][1], row["log_p"][0] > row["log_p"][1])
        )
    null = np.mean(
        [balanced_accuracy_score([r for r, _, _ in each], [s for _, s, _ in each]) for each in said.values()]
    )
    assert found.scores["detection"].null.value == pytest.approx(null) and null < 0.5
    agreed = np.mean([s == own for each in said.values() for _, s, own in each])
    assert found.scores["detection"].agreement == pytest.approx(agreed)
    assert found.scores["fuzzing"].null.value == 0.5 and found.scores["fuzzing"].agreement == 0.5  # it always says no
    assert found.scores["intruder"].score.floor == 0.2 and len(lean) == 3 * 16
    written = json.loads((tmp_path / "result.json").read_text())
    assert (
        written["value"] == 1 and written["floor"] == 0.5 and written["n"] == {"latents": 3, "questions": 48 + 48 + 6}
    )
    assert "{}" in written["details"]["prompts"]["fuzzing"] and written["details"]["explanations"]["1"] == "green"
    assert (tmp_path / "explaining.png").read_bytes().startswith(b"\x89PNG") and table(found).row_count == 4


def test_a_judge_that_always_says_yes_has_the_floor_and_agrees_with_its_null(tmp_path):
    drawn, material, words, _ = planted()
    found = ask(drawn, material, Always(), tmp_path, given=words, about=ABOUT, resamples=0)
    for kind in ("detection", "fuzzing"):
        each = found.scores[kind]
        assert each.score.value == each.auroc.value == each.null.value == 0.5 and each.agreement == 1
        assert each.score.interval is None


def test_one_wrong_answer_in_four_is_three_quarters(tmp_path):
    drawn, material, words, _ = planted()
    found = ask(drawn, material, Knowing(lambda n: n % 4 == 0), tmp_path, given=words, about=ABOUT, resamples=0)
    assert found.scores["detection"].score.value == 0.75 and (found.scores["detection"].by_latent == 0.75).all()


def test_the_judge_explains_for_itself_and_texts_do_as_well(tmp_path):
    drawn, material, words, _ = planted()
    found = ask(drawn, material, Knowing(), tmp_path / "a", about=ABOUT, resamples=0)
    assert found.explanations == words
    read = ask(drawn, material, Knowing(), tmp_path / "b", captions=True, about=ABOUT, resamples=0)
    assert read.explanations == words and set(read.scores) == {"detection", "intruder", "embedding"}
    assert all(each.score.value == 1 for each in read.scores.values())
    blind = Knowing()
    blind.sees = False
    with pytest.raises(ValueError, match="sees no images"):
        ask(drawn, material, blind, tmp_path / "c", about=ABOUT)
    with pytest.raises(ValueError, match="no explanation of latent"):
        ask(drawn, material, Knowing(), tmp_path / "c", given={}, about=ABOUT)


def test_scores_are_those_of_a_slow_loop():
    rng = np.random.default_rng(0)
    owner, right = rng.integers(0, 5, 300), rng.random(300) < 0.4
    lean, null = rng.standard_normal((2, 300))
    found = explaining.scored(owner, right, lean, null, 6, resamples=0)
    for k in range(5):
        mine = owner == k
        assert found.by_latent[k] == pytest.approx(balanced_accuracy_score(right[mine], lean[mine] > 0))
    curves = [roc_auc_score(right[owner == k], lean[owner == k]) for k in range(5)]
    assert found.auroc.value == pytest.approx(np.mean(curves)) and np.isnan(found.by_latent[5])
    order = rng.permutation(300)
    again = explaining.scored(owner[order], right[order], lean[order], null[order], 6, resamples=0)
    np.testing.assert_allclose(found.by_latent, again.by_latent)
    assert abs(found.score.value - 0.5) < 0.1  # random answers: the floor
    said = rng.integers(0, 5, 300)
    chosen = explaining.chosen(owner, said, np.where(right, said, (said + 1) % 5), said, 5, resamples=0)
    assert (
        chosen.score.value == pytest.approx(np.mean([right[owner == k].mean() for k in range(5)]))
        and chosen.null.value == 1
    )
    assert chosen.agreement == pytest.approx(right.mean())
    assert explaining.scored(owner[:0], right[:0], lean[:0], null[:0], 2).score.value is None


def test_samples_are_drawn_apart_and_too_few_are_refused():
    rng = np.random.default_rng(0)
    scores = rng.random((200, 9)) * (rng.random((200, 9)) < 0.3)
    scores[:, 4], scores[:, 5] = 0, 1  # dead, and active everywhere
    first = rng.random(200) < 0.5
    drawn = explaining.draw(csc_array(scores), first, 9, shown=5, asked=7)
    assert sorted(each.latent for each in drawn) == [0, 1, 2, 3, 6, 7, 8]
    for each in drawn:
        z = scores[:, each.latent]
        assert first[each.shown].all() and not first[each.active].any() and not first[each.silent].any()
        assert (z[each.active] > 0).all() and (z[each.silent] == 0).all() and len(set(each.silent.tolist())) == 7
        assert z[each.shown].min() >= np.sort(z[first])[::-1][5]
        assert each.active[0] == np.flatnonzero(~first)[z[~first].argmax()]  # from the strongest ...
        assert z[each.active[-1]] == z[~first][z[~first] > 0].min()  # ... to the weakest
    assert [each.latent for each in explaining.draw(csc_array(scores), first, 9, 5, 7, among={2, 4})] == [2]
    with pytest.raises(ValueError, match="give more samples"):
        explaining.draw(csc_array(scores), first, 9, shown=5, asked=150)
    assert all((explaining.others(n) != np.arange(n)).all() for n in (2, 3, 8))
    with pytest.raises(ValueError, match="5 samples or more"):
        explaining.draw(csc_array(scores), first, 9, shown=5, asked=4)
    with pytest.raises(ValueError, match="two latents or more"):
        explaining.others(1)
    image = sheet([Image.new("RGB", (9, 5), colour) for colour in COLOURS.values()], row=False)
    assert image.size == (2 * TILE, 2 * TILE) and image.getpixel((TILE // 2, TILE + TILE // 2)) == COLOURS["blue"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Scenes, and an SAE whose atoms are directions of the tiny ViT's patches for shapes."""
    from evals import attributes
    from evals.embedded import embedded

    home = tmp_path_factory.mktemp("explaining")
    microworld.write(home / "scenes", 160, 78_000)
    vit = jobs.Model("dinov2", str(microworld.path("vit")))
    cli.extract(jobs.Extract(str(home / "scenes"), vit, ("layernorm",), home / "store"))
    site = ActivationStore.open(home / "store").site()
    table = attributes.read(home / "scenes")
    rows, E = embedded(site, table.keys)
    truth = table.truth.toarray()[rows].astype(float)
    kept = [at for at, name in enumerate(table.names) if name.startswith("shape:")]
    fit = np.linalg.lstsq(np.c_[truth, np.ones(len(E))], E, rcond=None)[0]
    atoms = torch.nn.functional.normalize(torch.from_numpy(fit[kept]).float(), dim=1)
    run = run_of(home / "run", site, atoms, kinds=["patch"], bias=torch.from_numpy(E.mean(0)).float())
    (home / "run").mkdir()
    save_run(home / "run", run.sae, torch.from_numpy(E[:32]).float(), run.meta)
    (home / "said.json").write_text(json.dumps({at: table.names[k].split(":")[1] for at, k in enumerate(kept)}))
    (home / "prompts.yaml").write_text(
        'detection: "is there a {}?"\nfuzzing: "is there a {}?"\ndetection_texts: "{0}. is there a {1}?"\n'
    )
    return home


def told(home, *more):
    llava = ["--judge", str(microworld.path("llava")), "--prompts", str(home / "prompts.yaml")]
    few = ["--shown", "3", "--asked", "5", "--latents", "2"]
    cli.main(["eval", "explaining", str(home / "run"), str(home / "store"), *llava, *few, *more])
    return json.loads((home / "run/eval/explaining/result.json").read_text())


def test_a_real_judge_sees_pictures_and_their_lit_parts(world, capsys):
    written = told(world, "--explanations", str(world / "said.json"))
    rows = [json.loads(line) for line in (world / "run/eval/explaining/asked.jsonl").read_text().splitlines()]
    scores = written["details"]["scores"]
    assert written["n"] == {"latents": 2, "questions": 20 + 20 + 2}
    assert set(scores) == {"detection", "fuzzing", "intruder"}
    assert 0 <= written["value"] <= 1 and written["details"]["judge"]["family"] == "llava"
    assert all(np.exp(row["log_p"]).sum() <= 1 + 1e-4 for row in rows)
    assert "Explanations of 2 latents" in capsys.readouterr().out


def test_a_real_judge_reads_captions_says_what_it_sees_and_batches_do_not_matter(world):
    written = told(world, "--captions")
    assert set(written["details"]["scores"]) == {"detection", "intruder"}
    assert len(written["details"]["explanations"]) == 2
    judge, grey = (
        Judge(modalities.load("llava", str(microworld.path("llava")))),
        Image.new("RGB", (64, 64), (90, 90, 90)),
    )
    seen, blind = (judge.choose([Asked("is there a star?", ("yes", "no"), image)])[0] for image in (grey, None))
    assert seen.shape == (2,) and (seen < 0).all() and not np.allclose(seen, blind)
    texts = ("star", "large red square", "ring")
    asked = [Asked(f"is there a {text}?", ("yes", "no", "a star"), grey) for text in texts]
    for one, other in zip(judge.choose(asked), Judge(judge.model, 2).choose(asked), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)  # of float32, in batches that are padded


def test_mistakes_are_sentences(world, capsys):
    (world / "bad.json").write_text("[1]")
    (world / "bad.yaml").write_text("question: what?\n")
    for more, said in (
        (["--family", "llm"], "a language model sees no pictures"),
        (["--explanations", str(world / "bad.json")], "is not an object of latent -> words"),
        (["--explanations", str(world / "none.json")], "is no file"),
        (["--prompts", str(world / "bad.yaml")], "question"),
        (["--asked", "500"], "give more samples"),
        (["--asked", "4"], "5 samples or more"),
        (["--encoder", str(world / "store")], "called image_embedding"),
    ):
        with pytest.raises(SystemExit):
            told(world, *more)
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error
    with pytest.raises(ValueError, match="family llava or llm"):
        Judge(object())
