"""Intra and Inter similarity: the two known answers of the notes, the definition as a loop, and what must not matter."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from evals.concept_similarity import concept_similarity, firsts

N, LATENTS, TOP = 240, 8, 5


def planted(seed=0, matched=True):
    """Sample i is of concept i % 8; its image and text embeddings are one-hot in it; each latent fires for its concept, in both or (not matched) for another in texts."""
    rng = np.random.default_rng(seed)
    concept = np.arange(N) % LATENTS
    said = concept if matched else (concept + 1) % LATENTS
    codes = [np.eye(LATENTS)[of] * rng.uniform(1, 2, (N, 1)) for of in (concept, said)]
    return csr_array(codes[0]), csr_array(codes[1]), np.eye(LATENTS)[concept], np.eye(LATENTS)[concept]


def test_matched_lists_of_one_hot_concepts_are_1_within_and_0_between():
    found = concept_similarity(*planted(), top=TOP)
    assert found.intra.value == pytest.approx(1) and found.inter.value == pytest.approx(0)
    assert found.difference.value == pytest.approx(1) and found.difference.floor == 0
    assert found.difference.interval == pytest.approx((1, 1)) and 0 < found.intra.floor < 0.9
    exchanged = concept_similarity(*planted(matched=False), top=TOP)
    assert exchanged.intra.value == pytest.approx(0) and exchanged.difference.value < 0


def test_lists_from_one_pool_are_as_alike_within_as_between():
    rng = np.random.default_rng(0)
    codes = [csr_array(rng.random((4000, 100)) * (rng.random((4000, 100)) < 0.5)) for _ in range(2)]
    embeddings = [rng.standard_normal((4000, 16)) + 1.0 for _ in range(2)]
    found = concept_similarity(*codes, *embeddings, top=20)
    assert found.difference.value == pytest.approx(0, abs=0.01)
    low, high = found.difference.interval
    assert low < 0 < high or max(abs(low), abs(high)) < 0.01
    assert found.intra.value == pytest.approx(found.intra.floor, abs=0.02)
    assert found.inter.value == pytest.approx(found.inter.floor, abs=0.02)


def slow(image, text, a, b, top):
    cos = lambda u, v: u @ v / np.linalg.norm(u) / np.linalg.norm(v)  # noqa: E731
    lists = [
        [sorted(range(len(z)), key=lambda at: (-z[at, j], at))[:top] for j in range(z.shape[1])]
        for z in (image.toarray(), text.toarray())
    ]
    means = [[e[rows].mean(0) for rows in side] for e, side in zip((a, b), lists, strict=True)]
    n = image.shape[1]
    intra = np.mean([cos(means[0][i], means[1][i]) for i in range(n)])
    return intra, np.mean([cos(means[0][i], means[1][j]) for i in range(n) for j in range(i + 1, n)])


def test_it_is_the_definition_and_order_of_samples_and_scale_do_not_matter():
    rng = np.random.default_rng(1)
    image, text = (csr_array(rng.random((60, 6))) for _ in range(2))
    a, b = rng.standard_normal((2, 60, 5)) + 0.3
    found = concept_similarity(image, text, a, b, top=7)
    intra, inter = slow(image, text, a, b, 7)
    assert found.intra.value == pytest.approx(intra) and found.inter.value == pytest.approx(inter)
    order = rng.permutation(60)
    again = concept_similarity(csr_array(3 * image[order]), csr_array(-1 * text[order]), 2 * a[order], b[order], top=7)
    assert again.intra.value == pytest.approx(intra) and again.inter.value == pytest.approx(inter)


def test_equal_texts_count_once_and_latents_with_too_few_are_left_out():
    image, text, a, b = planted()
    said = [f"text {at // (2 * LATENTS)} of {at % LATENTS}" for at in range(N)]  # two samples in a row say the same
    assert firsts(said).sum() == N // 2 and firsts(["x", "y", "x"]).tolist() == [True, True, False]
    assert concept_similarity(image, text, a, b, said=said, top=N // LATENTS // 2).left_out == 0
    with pytest.raises(ValueError, match="0 latents are activated by 16 images and by 16 texts"):
        concept_similarity(image, text, a, b, said=said, top=16)
    text = text.toarray()
    text[:, 2] = 0
    found = concept_similarity(image, csr_array(text), a, b, top=TOP)
    assert found.left_out == 1 and 2 not in found.latents
    few = concept_similarity(image, csr_array(text), a, b, top=TOP, most=3)
    assert len(few.latents) == 3
    with pytest.raises(ValueError, match="of 239 and 240 samples"):
        concept_similarity(image, csr_array(text), a[1:], b[1:])
