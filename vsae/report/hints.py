"""A word or two to find a latent by: the commonest label of its top images, or words that their captions use more than others do.

Hints are drawn from the very images that are shown, so they are names to search for, not a measurement.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from vsae.report.picks import Picks

WORD = re.compile(r"[^\W\d_]{3,}")
MIN_IMAGES = 3
"""A word must be in the captions of this many top images."""

MIN_LIFT = 2.5
"""And be in this many times as many of them as of all captions."""


def hints(picks: Picks, labels: Sequence[str | None], captions: Sequence[str | None]) -> list[str]:
    """One hint a latent, '' where nothing can be said. Labels are used where there are any, captions otherwise."""
    n_latents = len(picks.start) - 1
    if any(labels):
        return [commonest([labels[s] for s in picks.sample[picks.of(latent)]]) for latent in range(n_latents)]
    words = [frozenset(WORD.findall((caption or "").lower())) for caption in captions]
    everywhere = Counter(word for each in words for word in each)
    return [
        distinctive([words[s] for s in picks.sample[picks.of(latent)]], everywhere, len(words))
        for latent in range(n_latents)
    ]


def commonest(labels: Sequence[str | None]) -> str:
    """The commonest label and how often: 'dog 12/16'."""
    counts = Counter(label for label in labels if label)
    if not counts:
        return ""
    label, count = min(counts.items(), key=lambda item: (-item[1], item[0]))
    return f"{label} {count}/{len(labels)}"


def distinctive(words: Sequence[frozenset[str]], everywhere: Counter[str], n: int) -> str:
    """Up to three words by share in these captions times log(share here / share everywhere)."""
    here = Counter(word for each in words for word in each)
    gains = {
        word: count / len(words) * math.log(count / len(words) * n / everywhere[word])
        for word, count in here.items()
        if count >= MIN_IMAGES and count * n >= MIN_LIFT * len(words) * everywhere[word]
    }
    best = sorted(gains, key=lambda word: (-gains[word], word))
    return " ".join(best[:3])
