"""How long to wait before the next try.

Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 (full jitter).
"""

import random


def full_jitter(attempt: int, factor_s: float, limit_s: float, *, draw: random.Random | None = None) -> float:
    """Return seconds to wait after the failed try number `attempt` (from 0): uniform in [0, factor_s * 2**attempt].

    `limit_s` bounds the upper end of that range.
    """
    top = min(limit_s, factor_s * 2.0 ** min(attempt, 62))
    return (draw or random).uniform(0.0, top)
