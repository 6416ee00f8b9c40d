"""SAE-V's weights and scores on two streams whose concepts are planted: what the published score does, and what ours does, are both held to."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.stats import spearmanr

from evals import cross_modal
from evals.cross_modal import weights
from evals.filtering import SampleCodes, agreement, auroc, correlation, judge, keep, patch_scores, sae_v, stratified

SHARED, TEXT, IMAGE, D = 30, 25, 25, 128
LATENTS = SHARED + TEXT + IMAGE


def streams(gap, seed=0, tokens=1500):
    """(codes, is_image, hidden, centres): 3 latents a token, of those its modality may have; hidden = dictionary . code -+ gap / 2 + noise."""
    rng = np.random.default_rng(seed)
    atoms = np.linalg.qr(rng.standard_normal((D, LATENTS)))[0].T
    offset = np.linalg.qr(np.c_[atoms.T, rng.standard_normal(D)])[0][:, -1]
    allowed = np.r_[:SHARED, SHARED + TEXT : LATENTS], np.r_[: SHARED + TEXT]
    is_image = np.arange(2 * tokens) % 2 == 0
    codes = np.zeros((2 * tokens, LATENTS))
    for row, image in enumerate(is_image):
        codes[row, rng.choice(allowed[0 if image else 1], 3, replace=False)] = rng.uniform(0.2, 0.6, 3)
    for row in rng.choice(2 * tokens, tokens, replace=False):  # some tokens are about one thing above all
        codes[row, codes[row].argmax()] = rng.uniform(1.5, 2.5)
    hidden = codes @ atoms + np.where(is_image, 0.5, -0.5)[:, None] * gap * offset
    hidden = hidden + 0.02 * rng.standard_normal(hidden.shape)
    centres = tuple(np.where(each, gap / 2, -gap / 2) * offset for each in (True, False))
    return codes, is_image, hidden, centres


def measured(gap, form="code", centred=False):
    codes, is_image, hidden, centres = streams(gap)
    return weights(
        csr_array(codes), is_image, lambda rows: hidden[rows], form=form, centres=centres if centred else None
    )


def slow(codes, is_image, hidden, form, k=5):
    found = np.full(codes.shape[1], np.nan)
    for latent in range(codes.shape[1]):
        order = [t for t in np.argsort(-codes[:, latent], kind="stable") if codes[t, latent] > 0]
        order = order[:30] if form == "code" else order
        image = [t for t in order if is_image[t]][:k]
        text = [t for t in order if not is_image[t]][:k]
        if len(image) < k or len(text) < k:
            continue
        cos = lambda a, b: hidden[a] @ hidden[b] / np.linalg.norm(hidden[a]) / np.linalg.norm(hidden[b])  # noqa: E731
        pairs = [(a, b) for a in image for b in text] if form == "code" else list(zip(image, text, strict=True))
        found[latent] = np.mean([cos(a, b) for a, b in pairs])
    return found


@pytest.mark.parametrize("form", ["code", "paper"])
def test_weights_are_those_of_the_definition_and_unimodal_latents_have_none(form):
    codes, is_image, hidden, _ = streams(1.0)
    found = measured(1.0, form)
    np.testing.assert_allclose(found, slow(codes, is_image, hidden, form), atol=1e-12)
    assert np.isnan(found[SHARED:]).all() and (found[:SHARED] > 0.6).all()


def test_a_modality_gap_lowers_the_weights_and_centring_restores_them_exactly():
    raw = {gap: measured(gap)[:SHARED] for gap in (0, 1, 4, 10)}
    means = [raw[gap].mean() for gap in (0, 1, 4, 10)]
    assert means[0] > means[1] > means[2] > means[3] and means[0] > 0.8 and means[3] < 0
    assert spearmanr(raw[0], raw[10]).statistic < 0.95
    for gap in (1, 4, 10):
        np.testing.assert_allclose(measured(gap, centred=True)[:SHARED], raw[0], atol=1e-9)


def test_each_token_keeps_its_50_largest_and_each_latent_its_30():
    rng = np.random.default_rng(0)
    codes = rng.random((40, 120))
    kept = cross_modal.largest(csr_array(codes), 50).toarray()
    assert ((kept > 0).sum(1) == 50).all() and (kept.max(1) == codes.max(1)).all()
    # 30 text tokens above all image tokens: 'code' sees no image token, 'paper' does
    column = np.r_[np.linspace(2, 3, 30), np.linspace(0.1, 1, 10)][:, None]
    is_image = np.arange(40) >= 30
    hidden = rng.standard_normal((40, 8))
    one, other = (weights(csr_array(column), is_image, lambda rows: hidden[rows], form=f) for f in ("code", "paper"))
    assert np.isnan(one[0]) and np.isfinite(other[0])
    order = rng.permutation(40)
    again = weights(csr_array(column[order]), is_image[order], lambda rows: hidden[order][rows], form="paper")
    np.testing.assert_allclose(again, other)


# ------------------------------------------------------------ scores


def pooled(image, text, lengths):
    """Samples of given active latents, with every latent once a token of the text and once in the image."""
    counts = image + text * lengths[:, None]
    l0 = counts.sum(1) / (1 + lengths)
    return SampleCodes(csr_array(2 * image), csr_array(2 * text), csr_array(counts), l0, l0, lengths)


def captions(mismatch, n=600, seed=0, lengths=None):
    """Four shared concepts an image; a matched caption names them, another caption four others."""
    rng = np.random.default_rng(seed)
    matched = rng.random(n) >= mismatch
    image, text = np.zeros((2, n, SHARED))
    for row in range(n):
        order = rng.permutation(SHARED)
        image[row, order[:4]] = 1
        text[row, order[:4] if matched[row] else order[4:8]] = 1
    lengths = rng.integers(8, 60, n).astype(float) if lengths is None else lengths
    return pooled(image, text, lengths), matched, lengths


def test_the_published_score_prefers_mismatches_and_ours_finds_them():
    codes, matched, lengths = captions(0.3)
    scores = sae_v(codes, np.full(SHARED, 0.9) + np.linspace(0, 0.05, SHARED))
    found = {name: judge(each, matched, lengths) for name, each in scores.items()}
    assert (
        found["union"].auroc.value == 0.0
    )  # two sets of concepts are active where the caption is about something else
    assert found["both"].auroc.value == 1.0 and found["both"].auroc.interval == (1.0, 1.0)
    assert found["cooccurring"].auroc.value == 1.0
    assert found["both"].kept_matched.value == 1.0 and found["both"].kept_matched.floor == matched.mean()
    assert found["both"].auroc.floor == 0.5


def test_sums_over_tokens_measure_length_and_strata_take_it_away():
    codes, matched, lengths = captions(0.3, seed=1)
    scores = sae_v(codes, np.full(SHARED, 0.9))
    found = judge(scores["per_token"], matched, lengths)
    assert found.length_correlation > 0.999 and found.length_correlation_matched > 0.999
    assert abs(found.auroc.value - 0.5) < 0.1
    flat = stratified(lengths, lengths, 10)
    assert abs(correlation(flat, lengths)) < 0.25 < 0.99 < correlation(lengths, lengths)
    assert stratified(np.array([3.0, 1, 2, 9]), np.array([1.0, 1, 1, 50])).tolist() == pytest.approx(
        [5 / 6, 1 / 6, 1 / 2, 1 / 2]
    )


def test_short_captions_that_miss_concepts_score_lower_and_the_report_says_so():
    rng = np.random.default_rng(2)
    codes, matched, _ = captions(0.3, seed=2)
    short = rng.random(len(matched)) < 0.5
    lengths = np.where(short, 8.0, 60.0)
    text = codes.text.toarray() / 2 * (rng.random(codes.text.shape) < np.where(short, 0.6, 1.0)[:, None])
    scores = sae_v(pooled(codes.image.toarray() / 2, text, lengths), np.full(SHARED, 0.9))
    assert judge(scores["both"], matched, lengths).length_correlation_matched > 0.5
    # Where also short captions say all their concepts (24 tokens against 60 in the notes), length is no longer in the score.
    lengths = np.where(short, 24.0, 60.0)
    whole = pooled(codes.image.toarray() / 2, codes.text.toarray() / 2, lengths)
    scores = sae_v(whole, np.linspace(0.8, 1.0, SHARED))
    assert abs(judge(scores["both"], matched, lengths).length_correlation_matched) < 0.15
    assert judge(scores["per_token"], matched, lengths).length_correlation_matched > 0.95


def test_where_nothing_matches_all_scores_tie_and_auroc_is_one_half():
    codes, _, _ = captions(1.0)
    both = sae_v(codes, np.full(SHARED, 0.9))["both"]
    labels = np.random.default_rng(0).random(len(both)) < 0.5
    assert (both == 0).all() and auroc(both, labels).value == 0.5 and auroc(both, labels).interval == (0.5, 0.5)


def test_scores_by_hand():
    image, text = np.array([[2.0, 0.5, 0, 0]]), np.array([[1.5, 0, 3.0, 0]])
    counts = np.array([[3.0, 1, 2, 0]])
    codes = SampleCodes(
        csr_array(image), csr_array(text), csr_array(counts), np.array([1.5]), np.array([2.0]), np.ones(1)
    )
    w = np.array([0.5, 0.25, np.nan, 9])
    scores = {name: float(value[0]) for name, value in sae_v(codes, w).items()}
    assert scores == {"union": 0.75, "both": 0.5, "per_token": 1.75, "cooccurring": 1.0, "l0": 1.5, "l1": 2.0}
    assert sae_v(codes, w, threshold=1.0)["union"][0] == 0.5
    patches = patch_scores(csr_array(np.array([[2.0, 0.5, 0, 0], [0, 0, 0.5, 1]])), text[0], w)
    assert {name: value.tolist() for name, value in patches.items()} == {
        "l0": [2, 2], "l1": [2.5, 1.5], "cooccurring": [1, 0], "cosine": [0.75, 9],
    }  # fmt: skip


def test_agreement_is_the_cosine_of_codes():
    rng = np.random.default_rng(0)
    a, b = rng.random((5, 9)) * (rng.random((5, 9)) < 0.5), rng.random((5, 9))
    a[4] = 0
    want = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) if x.any() else 0 for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(agreement(csr_array(a), csr_array(b)), want)
    np.testing.assert_allclose(agreement(csr_array(b), csr_array(3 * b)), 1)


def test_budgets():
    scores = np.array([3.0, 1, 2])
    assert keep(scores, 0.67).tolist() == [0, 2]
    assert keep(scores, 0).tolist() == [] and keep(scores, 1).tolist() == [0, 1, 2]
    assert keep(np.array([1.0, 1, 1, 1]), 0.5).tolist() == [0, 1]
    assert keep(np.array([np.nan, 0.0]), 0.5).tolist() == [1]
    with pytest.raises(ValueError, match="share to keep is 67"):
        keep(scores, 67)


def test_mistakes_are_sentences():
    codes, matched, lengths = captions(0.3, n=20)
    with pytest.raises(ValueError, match="judged on matched and mismatched"):
        judge(lengths, np.ones(20, bool), lengths)
    with pytest.raises(ValueError, match="choose 0 or more"):
        sae_v(codes, np.ones(SHARED), threshold=-1.0)
    with pytest.raises(ValueError, match="choose code or paper"):
        weights(codes.text, matched, lambda rows: rows, form="both")
