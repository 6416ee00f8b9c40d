"""Learning rate: linear warm-up, flat, then a decay to zero, straight (Gao et al. 2024, appendix A.6) or along half a cosine (Loshchilov and Hutter 2017).

    rising  = after / (warmup * budget)
    falling = (budget - before) / (decay * budget)        cosine:  (1 - cos(pi * falling)) / 2
    factor  = min(1, rising, falling)

Tokens and not steps are counted, so that a short batch at the end of an epoch moves the rate by its share. `after` and `before` a step:
the first step already learns, and so does the last.
"""

import math


def lr_factor(before: int, batch: int, budget: int, warmup: float, decay: float, shape: str = "linear") -> float:
    """Share of the peak rate in (0, 1] for a step of `batch` tokens, `before` of `budget` tokens having been seen."""
    rising = (before + batch) / (warmup * budget) if warmup else 1.0
    falling = min(1.0, (budget - before) / (decay * budget)) if decay else 1.0
    if shape == "cosine":
        falling = (1 - math.cos(math.pi * falling)) / 2
    return min(1.0, rising, falling)
