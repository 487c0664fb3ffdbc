"""`LaunchDelay`: for how long the next plan can wait while a step runs, so that requests that come meanwhile join it.

Learnt from steps of the same size: what they took, less what planning and launching the next one took. The least of the
last few counts, less a margin. A result that was there before it was asked for says only that the host was late: such
steps are followed at once until enough of them have been awaited again. So a host that is slower than its device never
waits. Pure: seconds come from outside.
"""

from collections import deque

Size = tuple[int, int]
"""Of a step, in classes: tokens of prompts, and sequences."""

KNOWN = 3
"""So many steps of a size must have been seen before one is waited for."""
MARGIN_S, MARGIN_SHARE = 0.5e-3, 0.05
"""The next plan is with the device so long, and such a share of a step, before it is needed: long steps vary more."""
AWAITED_S = 50e-6
"""A result that was waited for takes at least so long to come."""


class LaunchDelay:
    """What is known of one engine's steps."""

    def __init__(self) -> None:
        self._seen: dict[Size, deque[float]] = {}

    def observe(self, size: Size, spare_s: float, awaited_s: float) -> None:
        """A step could have run `spare_s` before the next plan was begun; its result was awaited for `awaited_s`."""
        if awaited_s < AWAITED_S:
            self._seen.pop(size, None)
        else:
            self._seen.setdefault(size, deque(maxlen=KNOWN)).append(spare_s)

    def of(self, size: Size) -> float:
        """For how long such a step may run before the next plan is begun, in seconds; not above 0 is at once."""
        seen = self._seen.get(size, ())
        return (1 - MARGIN_SHARE) * min(seen) - MARGIN_S if len(seen) == KNOWN else 0.0
