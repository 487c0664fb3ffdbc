"""When requests arrive: all at once, at a rate (Poisson, or burstier or smoother), or as a trace says.

Times are drawn beforehand from a seed, so that a slow server cannot slow its own load down (open loop).
"""

import random
from collections.abc import Sequence

from quire.base.errors import ConfigError


def arrivals(count: int, rate: float | None, burstiness: float, seed: int) -> list[float]:
    """Seconds from the start at which `count` requests arrive, ascending.

    Gaps are gamma distributed with mean 1/rate and shape `burstiness`: 1 is a Poisson process, below 1 comes in bursts,
    above 1 is more even. Without a rate all arrive at 0.

    Raises ConfigError if rate or burstiness are not above 0.
    """
    if rate is None:
        return [0.0] * count
    if rate <= 0 or burstiness <= 0:
        raise ConfigError("--request-rate and --burstiness must be above 0; without a rate all are sent at once")
    rng = random.Random(f"arrivals-{seed}")
    times, now = [], 0.0
    for _ in range(count):
        now += rng.gammavariate(burstiness, 1 / (rate * burstiness))
        times.append(now)
    return times


def share(items: Sequence[float], part: int, parts: int) -> list[float]:
    """Every `parts`-th item from number `part` on: what one of several processes sends."""
    return list(items[part::parts])
