"""Learning rate: linear warm-up, flat, linear decay to zero (Gao et al. 2024, appendix A.6).

    factor = min(1, after / (warmup * budget), (budget - before) / (decay * budget))

Tokens and not steps are counted, so that a short batch at the end of an epoch moves the rate by its share. `after` and `before` a step:
the first step already learns, and so does the last.
"""


def lr_factor(before: int, batch: int, budget: int, warmup: float, decay: float) -> float:
    """Share of the peak rate in (0, 1] for a step of `batch` tokens, `before` of `budget` tokens having been seen."""
    rising = (before + batch) / (warmup * budget) if warmup else 1.0
    falling = (budget - before) / (decay * budget) if decay else 1.0
    return min(1.0, rising, falling)
