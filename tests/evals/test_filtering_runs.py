"""The whole job on planted pairs: a mixed token stream for SAE-V, two embeddings for VL-SAE."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from evals.filtering import judge
from evals.filtering_runs import Scored, embedded, mixed, replanted, report, table
from evals.pair_scores import Mixed, Pairs
from evals.retraining import Training
from evals.retraining_runs import evaluate
from vsae.activations import write_store
from vsae.files import read_json
from vsae.paired import PairedDistance, TwoDecoders
from vsae.run import Run
from vsae.sae import SAE
from vsae.sparsifiers import TopK

N, CONCEPTS, PATCHES, WORDS, D = 300, 20, 6, 5, 24
KINDS = ("image", "text", "pad")


class Tokens(NamedTuple):
    values: torch.Tensor
    kinds: torch.Tensor
    grid: None = None


class Chunk(NamedTuple):
    batch: int
    samples: list
    bad: list
    activations: dict


def store_of(path, sites, prefix="k"):
    """Sites of [N, tokens, D] values with the kinds of their tokens."""

    def chunks(start):
        for batch in range(start, N // 50):
            rows = slice(batch * 50, batch * 50 + 50)
            columns = dict.fromkeys(("path", "label", "width", "height")) | {"caption": "some words of it"}
            samples = [columns | {"key": f"{prefix}{i}"} for i in range(rows.start, rows.stop)]
            found = {
                name: Tokens(torch.from_numpy(x[rows]).float(), torch.tensor(kinds, dtype=torch.uint8).expand(50, -1))
                for name, (x, kinds) in sites.items()
            }
            yield Chunk(batch, samples, [], found)

    request = {"model": {"name": "planted", "weights": "abc", "preprocessing": {}}, "data": {"n": N, "prefix": prefix}}
    return write_store(path, chunks, request, dtype="float32", kind_names=KINDS)


def test_a_mixed_stream_is_scored_and_judged(tmp_path):
    rng = np.random.default_rng(0)
    matched = rng.random(N) >= 0.3
    values = np.zeros((N, PATCHES + WORDS, D))
    for i in range(N):
        order = rng.permutation(CONCEPTS)
        seen, said = order[:3], order[:3] if matched[i] else order[3:6]
        for token in range(PATCHES + WORDS):
            about = seen[token % 3] if token < PATCHES else said[token % 3]
            values[i, token, about] = rng.uniform(1.2, 2)
    site = store_of(tmp_path / "store", {"layer": (values, [0] * PATCHES + [1] * WORDS)}).site()
    atoms = torch.eye(D)[:CONCEPTS]
    sae = SAE.from_weights(atoms.T.contiguous(), torch.zeros(CONCEPTS), atoms, torch.zeros(D), TopK(3))
    about = {"select": {"kinds": None, "part": [0, 1]}, "normalisation": {"mode": "none"}, "store": "another"}
    run = Run(tmp_path / "run", sae, {"fingerprint": site.fingerprint | about})
    scored = mixed(run, site, fit_samples=120, batch_size=64, track=lambda items, what, n: items)
    again = mixed(run, site, fit_samples=120, batch_size=1000, track=lambda items, what, n: items)
    for name, scores in scored.scores.items():
        np.testing.assert_allclose(scores, again.scores[name], rtol=1e-6, atol=1e-6)
    assert scored.lengths.tolist() == [WORDS] * N
    streamed(run, values, matched, scored)
    found = report(run, site, scored, matched, tmp_path / "out", planted="here", resamples=20)
    assert found["both (code, centred)"].auroc.value == 1.0 and found["both (paper)"].auroc.value == 1.0
    assert found["union (code)"].auroc.value < 0.1
    assert found["raw cosine"].auroc.value > 0.95 and abs(found["random"].auroc.value - 0.5) < 0.15
    assert found["length"].auroc.value == 0.5 and found["length"].length_correlation is None
    assert read_json(tmp_path / "out" / "result.json")["value"] == 1.0
    listed = read_json(tmp_path / "out" / "scores.json")
    assert listed["keys"][7] == "k7" and listed["scores"]["l0"][7] == scored.scores["l0"][7] == 1.0
    assert (tmp_path / "out" / "filtering.png").read_bytes().startswith(b"\x89PNG")
    assert table(found).row_count == len(found)


def streamed(run, values, matched, scored):
    """The same scores from activations, without a store, and by a loop over tokens."""
    scorer, kinds = Mixed(run, KINDS), torch.tensor([0] * PATCHES + [1] * WORDS, dtype=torch.uint8)

    def activations(rows):
        x = torch.from_numpy(values[rows]).float()
        return {"layer": Tokens(x, kinds.expand(len(x), -1))}

    scorer.fit([activations(slice(0, 70)), activations(slice(70, 120))])
    parts = [scorer(activations(slice(start, start + 75))) for start in range(0, N, 75)]
    found = {name: np.concatenate([part.scores[name] for part in parts]) for name in scorer.names}
    for name in ("l0", "l1", "cooccurring"):
        np.testing.assert_allclose(found[name], scored.scores[name], rtol=1e-6)
    w = np.nan_to_num(scorer.weights)
    for i in range(N):
        on = values[i].argmax(1)  # one concept a token
        image, said = set(on[:PATCHES]), set(on[PATCHES:])
        assert found["both"][i] == pytest.approx(sum(w[c] for c in image & said), abs=1e-9)
        assert found["union"][i] == pytest.approx(sum(w[c] for c in image | said), abs=1e-9)
    assert roc_auc_score(matched, found["both"]) == 1.0
    behind = np.concatenate([part.behind.toarray() for part in parts])
    np.testing.assert_allclose(behind.sum(1), found["both"], atol=1e-9)
    alone = scorer({"layer": Tokens(torch.ones(2, 3, D), torch.tensor([[0, 1, 2], [0, 0, 2]], dtype=torch.uint8))})
    assert np.isnan(alone.scores["both"]).tolist() == [False, True]
    with pytest.raises(ValueError, match="have none of one"):
        scorer.fit([{"layer": Tokens(torch.ones(2, 3, D), torch.zeros(2, 3, dtype=torch.uint8))}])
    without = {**run.meta, "fingerprint": run.fingerprint | {"select": {"kinds": None, "part": [0, 1], "skip": 2}}}
    later = Mixed(Run(run.path, run.sae, without), KINDS)
    later.weights = scorer.weights
    x, padding = activations(slice(0, 20))["layer"], torch.full((20, 1), 2, dtype=torch.uint8)
    padded = Tokens(torch.cat([torch.ones(20, 1, D), x.values], 1), torch.cat([padding, x.kinds], 1))
    cut = Tokens(
        x.values[:, 2:], x.kinds[:, 2:]
    )  # the first two of each sample are not scored, whatever padding is before them
    for seen in (x, padded):
        for name, score in later({"layer": seen}).scores.items():
            np.testing.assert_allclose(score, scorer({"layer": cut}).scores[name])


def test_two_embeddings_are_scored_by_the_agreement_of_their_codes(tmp_path):
    rng = np.random.default_rng(1)
    atoms = np.linalg.qr(rng.standard_normal((D, D)))[0][:CONCEPTS]
    x = np.zeros((N, CONCEPTS))
    for row in x:
        row[rng.choice(CONCEPTS, 3, replace=False)] = 1
    pair = [x @ atoms + 0.1 * rng.standard_normal((N, D)) for _ in range(2)]
    store = store_of(tmp_path / "store", {"a": (pair[0][:, None], [0]), "b": (pair[1][:, None], [1])})
    sites = store.site("a"), store.site("b")
    weight = torch.from_numpy(atoms).float()
    sae = SAE(PairedDistance(weight), TopK(3), TwoDecoders(torch.cat([weight, weight], 1)), torch.zeros(2 * D)).eval()
    about = {"joined": [site.fingerprint for site in sites], "columns": [D, D], "normalisation": {"mode": "none"}}
    run = Run(tmp_path / "run", sae, {"fingerprint": sites[0].fingerprint | about})
    scored, matched = embedded(run, sites, shuffle=0.3, batch_size=70)
    assert (~matched).sum() == round(0.3 * N)
    scorer = Pairs(run)
    seen = scorer(
        {name: Tokens(torch.from_numpy(x[:, None]).float(), None) for name, x in zip("ab", pair, strict=True)}
    )
    apart = embedded(run, sites)[0]
    np.testing.assert_allclose(seen.scores["agreement"], apart.scores["agreement"], atol=1e-6)
    np.testing.assert_allclose(seen.scores["clip"], apart.scores["CLIP score"], atol=1e-6)
    np.testing.assert_allclose(seen.behind.sum(1), seen.scores["agreement"], atol=1e-6)
    assert sorted(scorer.names) == sorted(seen.scores)
    found = report(run, sites[0], scored, matched, tmp_path / "out", planted="30 %", resamples=20)
    assert found["agreement"].auroc.value > 0.98 and found["CLIP score"].auroc.value > 0.95
    assert abs(found["random"].auroc.value - 0.5) < 0.15
    other, _ = embedded(run, sites, shuffle=0.3, batch_size=4096)
    for name, scores in scored.scores.items():
        np.testing.assert_allclose(scores, other.scores[name], rtol=1e-6, atol=1e-6)
    strange = [{**about["joined"][0], "model": {"weights": "other"}}, about["joined"][1]]
    with pytest.raises(ValueError, match="do not belong together"):
        embedded(Run(run.path, sae, {"fingerprint": run.fingerprint | {"joined": strange}}), sites)
    with pytest.raises(ValueError, match="1 of 1 pairs are matched"):
        judge(np.ones(1), np.ones(1, bool), np.ones(1))
    with pytest.raises(ValueError, match="0 of 0 pairs are matched"):
        judge(np.zeros(0), np.zeros(0, bool), np.zeros(0))
    whole, left = embedded(run, sites)
    assert left.all()
    with pytest.raises(ValueError, match="judged on matched and mismatched"):
        report(run, sites[0], whole, left, tmp_path / "out", planted="none")


def test_replanted_captions_are_never_their_own():
    order, matched = replanted(100, 0.3, seed=0)
    assert sorted(order.tolist()) == list(range(100)) and (~matched).sum() == 30
    assert (order[matched] == np.flatnonzero(matched)).all()
    assert replanted(100, 0.0, seed=0)[1].all()


def test_projections_retrained_on_what_agreement_keeps(tmp_path):
    """Exchanged captions are dropped by agreement, so that what is kept trains better projections than random pairs; mistakes are sentences."""
    rng = np.random.default_rng(1)
    maps = [rng.standard_normal((CONCEPTS, D)) for _ in range(2)]
    stores = []
    for name in ("train", "clean"):
        x = np.abs(rng.standard_normal((N, CONCEPTS))) * (rng.random((N, CONCEPTS)) < 0.3)
        pair = [(x @ m + 0.1 * rng.standard_normal((N, D)))[:, None] for m in maps]
        stores.append(store_of(tmp_path / name, {"a": (pair[0], [0]), "b": (pair[1], [1])}, name))
    matched = replanted(N, 0.4, 0)[1]
    scored = Scored({"oracle": matched.astype(float), "random score": rng.random(N)}, np.ones(N), np.arange(N))
    config = Training(width=16, steps=60, batch_size=64, lr=1e-2)
    options = {"shuffle": 0.4, "share": 0.6, "seeds": (0, 1), "config": config}
    worth = evaluate(tuple(stores), "a+b", scored, matched, **options)
    found = {each.name: each for each in worth.found}
    assert found["oracle"].matched == 1 and found["oracle"].pairs == round(0.6 * N) and worth.clean == N
    assert found["oracle"].over_random.value > 0.03
    assert abs(found["all"].matched - 0.6) < 0.01
    with pytest.raises(ValueError, match="share 300 pairs"):
        evaluate((stores[0], stores[0]), "a+b", scored, matched, **options)
    with pytest.raises(ValueError, match="of two sites"):
        evaluate(tuple(stores), "a", scored, matched, **options)
    other = Scored(scored.scores, scored.lengths, np.arange(1, N + 1))
    with pytest.raises(ValueError, match="of other pairs"):
        evaluate(tuple(stores), "a+b", other, matched, **options)
