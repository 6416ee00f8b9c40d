"""Planted shared, one-sided and unrelated latents; the whole job on a mixed store."""

import json

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from evals.concept_similarity import concept_similarity
from evals.modality import KINDS as NAMES
from evals.modality import Side, modality
from evals.modality_runs import evaluate, table
from vsae import cli
from vsae.run import save_run

from .planted_store import run_of, store_of


def planted(n=400, seed=0):
    """30 shared, 25 text-only, 25 image-only, 20 unrelated and 5 dead latents, as in the spec."""
    rng = np.random.default_rng(seed)
    concept = rng.random((n, 105)) < 0.2
    image, text = concept.copy(), concept.copy()
    image[:, 30:55], text[:, 55:80] = False, False
    text[:, 80:100] = rng.random((n, 20)) < 0.2
    image[:, 100:], text[:, 100:] = False, False
    return image, text


def side(fired, scale=1.0, tokens=4):
    return Side(csr_array(fired * scale), csr_array(fired.astype(np.int64)), np.full(len(fired), tokens))


def test_every_latent_is_told_for_what_it_was_planted_as():
    image, text = planted()
    found = modality(side(image, 3.0), side(text, 1.0))
    told = [NAMES[kind] for kind in found.kind]
    assert told[:30] == ["shared"] * 30 and told[30:55] == ["text only"] * 25 and told[55:80] == ["image only"] * 25
    assert told[80:100].count("unrelated") >= 18 and told[100:] == ["dead"] * 5
    assert found.shared.value == pytest.approx(0.3, abs=0.03) and found.shared.floor <= 0.02
    assert found.score[30:55].max() == 0 and found.score[55:80].min() == 1 and np.isnan(found.score[100:]).all()
    one = 3 * image[:, 0].mean() / (3 * image[:, 0].mean() + text[:, 0].mean())
    assert found.score[0] == pytest.approx(one)
    assert found.together[0] == image[:, 0].sum() and found.expected[0] == pytest.approx(image[:, 0].sum() ** 2 / 400)


def test_order_does_not_matter_and_exchanged_pairs_share_nothing():
    image, text = planted()
    order = np.random.default_rng(1).permutation(400)
    again = modality(side(image[order]), side(text[order]))
    assert again.kind.tolist() == modality(side(image), side(text)).kind.tolist()
    assert modality(side(image), side(text[order])).counts["shared"] <= 3
    p = modality(side(image), side(text[order])).q
    assert np.isnan(p[30:80]).all()


def test_other_numbers_of_samples_are_refused():
    image, text = planted(20)
    with pytest.raises(ValueError, match="20 samples have images and 19 texts"):
        modality(side(image), side(text[1:]))
    with pytest.raises(ValueError, match="two samples or more"):
        modality(side(image[:1]), side(text[:1]))


def test_a_mixed_store_to_result_and_figure(tmp_path):
    rng = np.random.default_rng(0)
    values = torch.zeros(300, 5, 12)
    for i in range(300):
        shared, picture, word = rng.integers(0, 4), rng.integers(4, 8), rng.integers(8, 12)
        values[i, :2, shared] = values[i, 2, picture] = values[i, 3, shared] = values[i, 4, word] = 1 + rng.random()
    site = store_of(tmp_path / "store", {"layer": (values, [1, 1, 1, 2, 2])}).site()
    run = run_of(tmp_path / "run", site, torch.eye(12))
    found = evaluate(run, (site, site), tmp_path / "out", batch_size=64, resamples=20).modality
    again = evaluate(run, (site, site), tmp_path / "again", batch_size=1000, resamples=20).modality
    np.testing.assert_allclose(found.score, again.score)
    assert found.counts == {"dead": 0, "image only": 4, "text only": 4, "unrelated": 0, "shared": 4}
    written = json.loads((tmp_path / "out/result.json").read_text())
    assert written["value"] == pytest.approx(1 / 3) and written["floor"] == 0 and written["n"]["samples"] == 300
    assert (tmp_path / "out/modality.png").read_bytes().startswith(b"\x89PNG") and table(found).row_count == 5
    with pytest.raises(ValueError, match="no token kind sound"):
        evaluate(run, (site, site), tmp_path / "out", text_kinds=("sound",))


def test_latents_whose_images_and_texts_an_encoder_finds_alike_and_the_command(tmp_path, capsys):
    """Four shared latents, of the concept of the sample, and four of which the image side is of it and the text side of another one."""
    rng = np.random.default_rng(0)
    concept, noise = np.arange(240) % 4, lambda *shape: 0.01 * rng.standard_normal(shape)
    sites = {}
    for name, said in (("image", concept), ("text", (concept + 1) % 4)):
        x = np.concatenate([np.eye(4)[concept], 1.5 * np.eye(4)[said]], 1) * rng.uniform(1, 2, (240, 1))
        sites[name] = torch.from_numpy(x + noise(240, 8))[:, None]
    joined = torch.cat([sites["image"], sites["text"]], 1)
    store = store_of(tmp_path / "store", {"layer": (joined, [1, 2])})
    embedding = torch.from_numpy(np.eye(4)[concept] + noise(240, 4))[:, None]
    encoder = store_of(
        tmp_path / "clip", {"image_embedding": (embedding, [1]), "text_embedding": (embedding, [2])}, weights="clip"
    )
    run = run_of(tmp_path / "run", store.site(), torch.eye(8), k=2)
    both = encoder.site("image_embedding"), encoder.site("text_embedding")
    found = evaluate(run, (store.site(), store.site()), tmp_path / "out", encoder=both, resamples=20, batch_size=64)
    whole = found.concepts
    assert whole.latents.tolist() == list(range(8)) and whole.intra.value == pytest.approx(0.5, abs=0.01)
    first = concept_similarity(
        *(csr_array(sites[name][:, 0, :4].abs().numpy() * (sites[name][:, 0, :4].numpy() > 0.5)) for name in sites),
        *(embedding[:, 0].numpy() for _ in range(2)), resamples=0,
    )  # fmt: skip
    assert first.intra.value == pytest.approx(1, abs=0.01) and first.inter.value == pytest.approx(0, abs=0.02)
    written = json.loads((tmp_path / "out/result.json").read_text())["details"]["concepts"]
    assert written["intra"]["value"] == whole.intra.value and written["difference"]["floor"] == 0
    (tmp_path / "run").mkdir()
    save_run(tmp_path / "run", run.sae, store.site().read(0, 64).values, run.meta)
    told = ["eval", "modality", str(tmp_path / "run"), str(store.path), "--encoder", str(encoder.path), "--top", "8"]
    cli.main([*told, "--resamples", "20"])
    said = capsys.readouterr().out
    assert "Images and texts of 8 latents (0 have too few)" in said and "difference" in said
    with pytest.raises(SystemExit):
        cli.main([*told[:-1], "61"])
    assert "0 latents are activated by 61 images" in capsys.readouterr().err
