"""Processor time, which nobody else spends, compared so that a processor may change its speed meanwhile."""

import math
import resource
from collections.abc import Callable

LESS, TRIES = 5, 20
"""How often both are measured at least, and at most."""
TIMES = 8
"""How much more is measured to see how work grows."""


def children_cpu_s() -> float:
    """Processor seconds of all processes that this one has begun and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def takes_less_than(bound: float, reference: Callable[[], float], measured: Callable[[], float]) -> bool:
    """Whether the least that `measured` takes is below `bound` times the least that `reference` does.

    More tries bring both nearer to the truth, so none can be lucky. A processor may run at 0.4 of its speed for all
    tries of one of them: whoever calls leaves a factor of 2.5 or more between `bound` and what is expected.
    """
    least, most = math.inf, math.inf
    for tried in range(1, TRIES + 1):
        least, most = min(least, reference()), min(most, measured())
        if tried >= LESS and most < bound * least:
            return True
    return False


def grows_evenly(seconds: Callable[[int], float], most: int) -> bool:
    """Whether work grows as what it is done for: eight times that takes eight times as long, where 64 is its square."""
    return takes_less_than(3 * TIMES, lambda: seconds(most // TIMES), lambda: seconds(most))
