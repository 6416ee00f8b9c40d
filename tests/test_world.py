"""`vsae eval all --world`, small: every number of the table is a file's, answers are judged by their floors, and mistakes are sentences."""

import pytest
import torch
from sklearn.metrics import average_precision_score

from evals import attributes
from vsae import cli
from vsae.activations import ActivationStore, Select
from vsae.evaluations import world_answers
from vsae.files import read_json
from vsae.run import Run

SMALL = ["--world", "--scenes", "160", "--latents", "64", "--tokens", "20000"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("world") / "out"
    cli.main(["eval", "all", "--out", str(out), *SMALL])
    return out


def test_every_answer_is_a_file_s(made):
    written = read_json(made / "result.json")
    answers = written["details"]["answers"]
    assert len(answers) == 9 and written["value"] == sum(each["met"] for each in answers) / 9
    by_measure = {(each["planted"], each["measure"]): each for each in answers}
    scores = read_json(made / "eval" / "filtering" / "result.json")["details"]["scores"]
    found = by_measure["30% of the captions exchanged", "AUROC of the agreement of codes"]
    assert found["value"] == scores["agreement"]["auroc"]["value"] and found["floor"] == 0.5
    assert f"CLIP score {scores['CLIP score']['auroc']['value']:.3f}" in found["beside"]
    worth = read_json(made / "eval" / "retraining" / "result.json")["details"]["retrained"]
    found = next(each for each in answers if each["measure"].startswith("mean recall"))
    by_name = {each["name"]: each["mean_recall"]["value"] for each in worth["found"]}
    assert (found["value"], found["known"], found["floor"]) == tuple(
        by_name[n] for n in ("agreement", "matched", "random")
    )
    aligned = read_json(made / "eval" / "segmentation" / "result.json")
    found = by_measure["masks of shapes", "mean AP of one latent a shape"]
    assert found["value"] == aligned["value"] and found["interval"] == aligned["interval"]
    assert found["met"] == (aligned["interval"][0] > aligned["floor"])
    audited = read_json(made / "eval" / "blindspots" / "result.json")["details"]["generators"]
    found = by_measure["nothing: other scenes of the same world", "blindspots found (BH)"]
    assert found["value"] == audited["fresh"]["n_blindspots"] and found["known"] == 0
    assert audited["dropped"]["paired"] and not audited["fresh"]["paired"]


def test_what_fell_most_is_held_against_the_truth(made):
    """By the latent's largest activation in each scene and scikit-learn's average precision; the truth as the scenes were drawn."""
    audited = read_json(made / "eval" / "blindspots" / "result.json")["details"]["generators"]["dropped"]
    (latent, *_) = audited["smallest_delta"][0]["latents"]
    site = ActivationStore.open(made / "stores" / "real").site("layernorm")
    sae = Run.load(made / "runs" / "patches").sae
    largest = torch.zeros(len(site.keys))
    for batch in site.sequential(4096, Select(("patch",))):
        codes = sae.encode(batch.values).dense(sae.n_latents)[:, latent]
        largest.scatter_reduce_(0, batch.samples, codes, "amax")
    truth = attributes.read(made / "scenes" / "real")
    has = truth.truth[truth.rows_of(site.keys)][:, truth.names.index("shape:triangle")].toarray().ravel()
    found = next(
        each for each in read_json(made / "result.json")["details"]["answers"] if "smallest" in each["measure"]
    )
    assert found["value"] == pytest.approx(average_precision_score(has, largest.numpy()))
    assert found["floor"] == pytest.approx(has.mean())


def test_once_more_does_nothing_again(made, capsys):
    before = {path: path.stat().st_mtime_ns for path in (made / "eval").rglob("result.json")}
    cli.main(["eval", "all", "--out", str(made), *SMALL])
    assert before == {path: path.stat().st_mtime_ns for path in (made / "eval").rglob("result.json")}
    assert "whose right answer is known" in capsys.readouterr().out


def test_mistakes_are_sentences(made, capsys):
    for arguments, sentence in (
        (["eval", "all"], "give --world"),
        (
            ["eval", "all", "--out", str(made), "--world", "--scenes", "241"],
            "holds another world; what differs: latents, scenes, tokens",
        ),
    ):
        with pytest.raises(SystemExit):
            cli.main(arguments)
        assert sentence in " ".join(capsys.readouterr().err.split())


def test_a_latent_is_placed_by_its_concept_and_answers_are_met_above_their_floor():
    listed = [{"latents": [4, 9]}, {"latents": [2]}]
    assert [world_answers.place(latent, listed) for latent in (9, 2, 5, None)] == [1, 2, None, None]
    good = {"value": 0.7, "interval": [0.6, 0.8], "floor": 0.5}
    assert world_answers.above("a", "b", good, "").met
    assert not world_answers.above("a", "b", good | {"interval": [0.4, 0.8]}, "").met
    assert not world_answers.above("a", "b", good | {"value": 0.5, "interval": None}, "").met
